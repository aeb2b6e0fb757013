//! Options that the benchmarks have in common.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::bench::race::Protocol;
use crate::cli::device::{Arithmetic, Device, DeviceArgs};
use crate::cli::network;
use crate::cli::presets::Preset;
use crate::cli::roof::RoofArgs;
use crate::unet::UNetConfig;

/// Whose operations are measured.
#[derive(clap::Args)]
pub(super) struct NetworkArgs {
    /// The network whose layers are measured.
    #[arg(long, value_enum, default_value = "ddpm-cifar10-32")]
    preset: Preset,
    /// A model folder in place of a preset.
    #[arg(long, value_name = "DIR", conflicts_with = "preset")]
    model: Option<PathBuf>,
}

impl NetworkArgs {
    pub fn open(&self) -> Result<Network> {
        let (name, config) = network::named(self.model.as_deref(), self.preset)?;
        Ok(Network { name, config })
    }
}

/// A network with its name in reports.
pub(super) struct Network {
    pub name: String,
    pub config: UNetConfig,
}

/// How and where to measure.
#[derive(clap::Args)]
pub(super) struct MeasureArgs {
    /// Seconds to measure each line for.
    #[arg(long, default_value_t = 0.5)]
    pub seconds: f64,
    /// Seconds for everything: lines that are not reached are left out, and the report says so.
    #[arg(long)]
    pub budget: Option<f64>,
    #[command(flatten)]
    pub roof: RoofArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Write the results here, too; after each line, so that an interrupted run leaves what it has.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

impl MeasureArgs {
    pub fn protocol(&self) -> Protocol {
        Protocol::new(duration(self.seconds))
    }

    /// What is left of the budget, if there is one.
    pub fn left(&self, begin: Instant) -> Option<Duration> {
        Some(duration(self.budget?).saturating_sub(begin.elapsed()))
    }

    /// Whether products may leave statistics for norms.
    pub fn gives_statistics(&self) -> bool {
        matches!(self.device.device, Device::Cuda | Device::Sim) && self.device.precision == Arithmetic::Bf16
    }
}

/// Seconds as they were typed.
pub(super) fn duration(seconds: f64) -> Duration {
    Duration::from_secs_f64(if seconds.is_finite() { seconds.clamp(0.0, 86400.0) } else { 0.0 })
}
