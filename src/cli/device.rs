//! `--device` and `--threads`.

use clap::{Args, ValueEnum};

use crate::backend::{Backend, BackendError, cpu::Cpu};
use crate::reference::Reference;

/// Where to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Device {
    /// The naive f64 reference: slow, the yardstick of all others.
    Ref,
    /// All CPU cores, f32.
    Cpu,
    /// The CUDA kernels in a simulator.
    Sim,
    /// An NVIDIA GPU.
    Cuda,
}

/// Options of every command that computes.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct DeviceArgs {
    /// Where to run.
    #[arg(long, value_enum, default_value = "cpu")]
    pub device: Device,
    /// CPU threads; as many as there are cores by default. Results do not depend on it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

impl DeviceArgs {
    /// The backend of the device.
    pub fn backend(&self) -> Result<Box<dyn Backend>, BackendError> {
        let missing = |device: &str| {
            Err(BackendError::Unavailable {
                device: device.into(),
                reason: "this build has no CUDA kernels; use --device cpu".into(),
            })
        };
        match self.device {
            Device::Ref => Ok(Box::new(Reference)),
            Device::Cpu => Ok(Box::new(Cpu::new(self.threads.map(usize::from))?)),
            Device::Sim => missing("sim"),
            Device::Cuda => missing("cuda"),
        }
    }
}
