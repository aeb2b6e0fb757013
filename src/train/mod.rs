//! The training loop: examples in, checkpoints out.
//!
//! A run is a pure function of its options, its data set and its model: batches, noise, timesteps, flips and dropout are drawn from
//! counters of (seed, global example index). So a run that is stopped and resumed ends with the bits of one that was not.
//!
//! ```no_run
//! use std::sync::Arc;
//! use warpdiff::backend::cpu::Cpu;
//! use warpdiff::data::Digits;
//! use warpdiff::diffusion::{SamplerKind, SchedulerConfig};
//! use warpdiff::train::{Existing, NewRun, TrainOptions, Trainer};
//! use warpdiff::unet::UNetConfig;
//!
//! let mut trainer = Trainer::new(NewRun {
//!     backend: &Cpu::new(None)?,
//!     config: UNetConfig { in_channels: 1, out_channels: 1, ..UNetConfig::default() },
//!     scheduler: SchedulerConfig::new(SamplerKind::Ddpm),
//!     dataset: Arc::new(Digits::load()?),
//!     options: TrainOptions::default(),
//!     folder: "digits".into(),
//!     existing: Existing::Refuse,
//! })?;
//! trainer.run(&|| false, &mut |report| println!("{} {}", report.step, report.loss))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod checkpoint;
mod error;
mod loader;
mod log;
mod options;
mod schedule;
mod state;
mod trainer;

pub use checkpoint::{Arrays, Checkpoint, Existing};
pub use error::TrainError;
pub use loader::{Batches, Examples, Loader};
pub use log::StepReport;
pub use options::{MAX_EXAMPLES, TrainOptions};
pub use schedule::{Decay, Ema, EmaWarmup};
pub use state::{DatasetDescription, FORMAT, TrainingState};
pub use trainer::{NewRun, RunEnd, Trainer};
