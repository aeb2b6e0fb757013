//! The CUDA kernels behind the [`Backend`] trait, on a GPU or in the simulator.
//!
//! Compiling a plan turns each node into [`launch::Launch`]es with final addresses; running it replays their
//! recording. Nothing is allocated or decided between two runs.

pub mod choice;
pub mod driver;
mod executable;
pub mod kernels;
pub mod launch;
mod lower;
pub(crate) mod memory;
mod plan_memory;

use std::sync::Arc;

use super::{Backend, BackendError, Executable, Precision};
use crate::graph::Plan;
use driver::cuda::Cuda;
use driver::{Driver, DriverError};

/// A device with its kernels.
#[derive(Clone)]
pub struct Gpu {
    driver: Arc<dyn Driver>,
    precision: Precision,
}

impl Gpu {
    /// A device and the type of its activations.
    pub fn new(driver: Arc<dyn Driver>, precision: Precision) -> Self {
        Self { driver, precision }
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
        Ok(Box::new(executable::GpuExecutable::new(&self.driver, plan.relaid(self.precision))?))
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
