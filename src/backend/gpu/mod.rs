//! The CUDA kernels behind the [`Backend`] trait, on a GPU or in the simulator.
//!
//! Compiling a plan turns each node into [`launch::Launch`]es with final addresses; running it replays their
//! recording. Nothing is allocated or decided between two runs.

pub mod choice;
pub mod driver;
mod executable;
pub mod fp8;
pub mod kernels;
pub mod launch;
mod lower;
pub(crate) mod memory;
mod plan_memory;

use std::sync::Arc;

use super::{Backend, BackendError, Executable, Precision};
use crate::graph::Plan;
use choice::Tuning;
use driver::cuda::Cuda;
use driver::{Driver, DriverError};
use fp8::{Fp8Scales, Quantised};
pub use lower::Fusions;
use lower::{Decisions, Roles};

/// A device with its kernels.
#[derive(Clone)]
pub struct Gpu {
    driver: Arc<dyn Driver>,
    precision: Precision,
    fusions: Fusions,
    fp8: Option<Arc<Fp8Scales>>,
    tuning: Arc<Tuning>,
    replay: Replay,
}

/// How the launches of a plan are recorded. No bit of a result depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replay {
    /// Runs that one recording holds, for loops of that many and more: one graph a step, or one for many steps.
    pub runs: usize,
    /// Whether a launch may begin while the one before it ends (programmatic dependent launch, from Hopper on).
    pub overlap: bool,
}

impl Default for Replay {
    /// One run a recording, one launch after the other.
    fn default() -> Self {
        Self { runs: 1, overlap: false }
    }
}

impl Gpu {
    /// A device and the type of its activations, tuned by the tables in this build.
    pub fn new(driver: Arc<dyn Driver>, precision: Precision) -> Self {
        let tuning = Arc::new(Tuning::embedded(driver.limits()));
        Self { driver, precision, fusions: Fusions::default(), fp8: None, tuning, replay: Replay::default() }
    }

    /// The first NVIDIA GPU.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] if there is no driver, no GPU that the kernels run on, or no kernels in this build.
    pub fn cuda(precision: Precision) -> Result<Self, BackendError> {
        Self::open(precision).map(|(gpu, _)| gpu)
    }

    /// The first NVIDIA GPU, and its driver for those who need more of it than a [`Driver`] offers.
    ///
    /// # Errors
    /// As [`Gpu::cuda`].
    pub fn open(precision: Precision) -> Result<(Self, Arc<Cuda>), BackendError> {
        let cuda = Arc::new(Cuda::open().map_err(|e| backend_error("cuda", e))?);
        Ok((Self::new(Arc::clone(&cuda) as _, precision), cuda))
    }

    /// The same device with these fusions and no others: for comparisons.
    pub fn with_fusions(self, fusions: Fusions) -> Self {
        Self { fusions, ..self }
    }

    /// The same device with this table in place of those in the build. It changes how fast a plan is, and no bit of its
    /// results.
    pub fn with_tuning(self, tuning: Tuning) -> Self {
        Self { tuning: Arc::new(tuning), ..self }
    }

    /// The same device with its launches recorded otherwise.
    pub fn with_replay(self, replay: Replay) -> Self {
        Self { replay, ..self }
    }

    /// The same device with convolutions of e4m3 where `scales` has their inputs', for plans that do not train.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] unless activations are bf16 and the device has the kernels (see
    /// [`Gpu::takes_fp8`]).
    pub fn with_fp8(self, scales: Fp8Scales) -> Result<Self, BackendError> {
        self.takes_fp8()?;
        Ok(Self { fp8: Some(Arc::new(scales)), ..self })
    }

    /// Whether [`Gpu::with_fp8`] would work.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] with what speaks against it.
    pub fn takes_fp8(&self) -> Result<(), BackendError> {
        let (major, minor) = self.driver.limits().compute_capability;
        let reason = match (self.precision, major) {
            (Precision::Bf16, 9) => return Ok(()),
            (Precision::Bf16, _) => format!(
                "fp8 needs compute capability 9.0 (Hopper), the device has {major}.{minor}; take --precision bf16"
            ),
            (other, _) => format!("fp8 needs bf16 for everything that is not quantised, not {other}"),
        };
        Err(BackendError::Unavailable { device: self.name().into(), reason })
    }

    /// The device.
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }
}

impl Backend for Gpu {
    fn name(&self) -> &'static str {
        self.driver.name()
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn compile(&self, plan: Plan) -> Result<Box<dyn Executable>, BackendError> {
        let roles = Roles::new(plan.graph(), self.precision, self.driver.limits(), self.fusions);
        let plan = plan.relaid_without(self.precision, roles.replaced().clone());
        let fp8 = match &self.fp8 {
            None => Quantised::new(),
            Some(_) if plan_memory::optimises(plan.graph()) => {
                let reason = "fp8 is for sampling, and the plan trains; take --precision bf16".into();
                return Err(BackendError::Device { device: self.name().into(), reason });
            }
            Some(scales) => fp8::quantised(plan.graph(), self.driver.limits(), scales),
        };
        let decisions = Decisions { roles, fp8, tuning: Arc::clone(&self.tuning) };
        Ok(Box::new(executable::GpuExecutable::new(&self.driver, plan, &decisions, self.replay)?))
    }
}

/// What a driver's failure means to whoever runs a plan.
fn backend_error(device: &str, error: DriverError) -> BackendError {
    match error {
        DriverError::Unavailable(reason) => BackendError::Unavailable { device: device.into(), reason },
        DriverError::OutOfMemory { asked, free } => BackendError::DeviceMemory { asked, free, batch: None },
        other => BackendError::Device { device: device.into(), reason: other.to_string() },
    }
}
