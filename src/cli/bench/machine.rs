//! The device that products are measured on.

use std::sync::Arc;

use anyhow::Result;

use crate::backend::Backend;
use crate::backend::gpu::Gpu;
use crate::backend::gpu::driver::cuda::{Cuda, DeviceInfo};
use crate::bench::race;
use crate::cli::device::{Device, DeviceArgs};

/// The device, and what only a GPU has.
pub(super) struct Machine {
    pub backend: Box<dyn Backend>,
    /// The device behind the backend, if it runs the kernels.
    pub gpu: Option<Gpu>,
    pub cuda: Option<(Arc<Cuda>, DeviceInfo)>,
}

impl Machine {
    pub fn open(device: &DeviceArgs) -> Result<Self> {
        if device.device == Device::Cuda {
            let (gpu, cuda) = Gpu::open(device.unquantised()?)?;
            let gpu = device.tuned(gpu)?;
            return Ok(Self { backend: Box::new(gpu.clone()), gpu: Some(gpu), cuda: Some((cuda, Cuda::probe()?)) });
        }
        if device.device == Device::Sim {
            let gpu = device.simulator(device.unquantised()?)?;
            return Ok(Self { backend: Box::new(gpu.clone()), gpu: Some(gpu), cuda: None });
        }
        Ok(Self { backend: device.backend()?, gpu: None, cuda: None })
    }

    pub fn name(&self) -> String {
        self.cuda.as_ref().map_or_else(|| self.backend.name().into(), |(_, info)| info.limits.name.clone())
    }

    /// Bytes of the cache that operands are rotated past; none on a CPU, whose figures are no claim.
    pub fn l2(&self) -> usize {
        self.cuda.as_ref().map_or(0, |(_, info)| info.l2_bytes as usize)
    }

    /// Bytes that the operands of one side may take.
    pub fn memory(&self) -> usize {
        self.cuda.as_ref().map_or(1 << 30, |(_, info)| info.limits.memory_bytes / 3)
    }

    /// How many copies of so many bytes of operands to rotate.
    pub fn copies(&self, bytes: usize) -> usize {
        // Rotation needs no more than a few times the cache; larger operands are not copied at all.
        race::copies(bytes, self.l2(), self.memory().min(4 << 30))
    }
}
