//! The device that is measured.

use std::sync::Arc;

use anyhow::Result;

use crate::backend::Backend;
use crate::backend::gpu::Gpu;
use crate::backend::gpu::driver::cuda::{Cuda, DeviceInfo};
use crate::backend::gpu::fp8::Fp8Scales;
use crate::bench::race;
use crate::bench::roof::Roof;
use crate::cli::device::{Arithmetic, Device, DeviceArgs};
use crate::cli::roof::RoofArgs;

/// The device, and what only a GPU has.
pub(super) struct Machine {
    pub backend: Box<dyn Backend>,
    /// The device behind the backend, if it runs the kernels.
    pub gpu: Option<Gpu>,
    pub cuda: Option<Arc<Cuda>>,
    /// What the driver tells of a GPU.
    pub info: Option<DeviceInfo>,
}

impl Machine {
    pub fn open(device: &DeviceArgs) -> Result<Self> {
        if device.device == Device::Cuda {
            let (gpu, cuda) = Gpu::open(device.unquantised()?)?;
            let gpu = device.tuned(gpu)?;
            let info = Some(Cuda::probe()?);
            return Ok(Self { backend: Box::new(gpu.clone()), gpu: Some(gpu), cuda: Some(cuda), info });
        }
        if device.device == Device::Sim {
            let gpu = device.simulator(device.unquantised()?)?;
            return Ok(Self { backend: Box::new(gpu.clone()), gpu: Some(gpu), cuda: None, info: None });
        }
        Ok(Self { backend: device.backend()?, gpu: None, cuda: None, info: None })
    }

    /// The device for whole networks, which may be quantised.
    pub fn quantised(device: &DeviceArgs, calibrate: impl FnOnce(&dyn Backend) -> Result<Fp8Scales>) -> Result<Self> {
        if device.precision != Arithmetic::Fp8 {
            return Self::open(device);
        }
        let backend = device.open()?.calibrated(calibrate)?;
        let info = if device.device == Device::Cuda { Some(Cuda::probe()?) } else { None };
        Ok(Self { backend, gpu: None, cuda: None, info })
    }

    /// What the device reaches at best. That of e4m3 is not known.
    pub fn roof(&self, device: &DeviceArgs, roof: RoofArgs) -> Roof {
        let name = if device.precision == Arithmetic::Fp8 { "fp8".into() } else { self.name() };
        Roof::measured(&name, self.backend.precision()).overridden(roof.given())
    }

    pub fn name(&self) -> String {
        self.info.as_ref().map_or_else(|| self.backend.name().into(), |info| info.limits.name.clone())
    }

    /// Bytes of the cache that operands are rotated past; none on a CPU, whose figures are no claim.
    pub fn l2(&self) -> usize {
        self.info.as_ref().map_or(0, |info| info.l2_bytes as usize)
    }

    /// Bytes that the operands of one side may take.
    pub fn memory(&self) -> usize {
        self.info.as_ref().map_or(1 << 30, |info| info.limits.memory_bytes / 3)
    }

    /// How many copies of so many bytes of operands to rotate.
    pub fn copies(&self, bytes: usize) -> usize {
        // Rotation needs no more than a few times the cache; larger operands are not copied at all.
        race::copies(bytes, self.l2(), self.memory().min(4 << 30))
    }
}
