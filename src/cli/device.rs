//! `--device`, `--precision` and `--threads`.

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};

use crate::backend::{Backend, BackendError, Precision, cpu::Cpu, gpu::Gpu};
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

impl ValueEnum for Precision {
    fn value_variants<'a>() -> &'a [Self] {
        &[Precision::F32, Precision::Bf16]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            Precision::F32 => "32-bit activations and weights (f64 on the reference)",
            Precision::Bf16 => "bf16 activations and weights, f32 sums and master weights; not on the CPU",
        };
        Some(PossibleValue::new(self.name()).help(help))
    }
}

/// Options of every command that computes.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct DeviceArgs {
    /// Where to run.
    #[arg(long, value_enum, default_value = "cpu")]
    pub device: Device,
    /// Arithmetic of the network.
    #[arg(long, value_enum, default_value = "f32")]
    pub precision: Precision,
    /// CPU threads; as many as there are cores by default. Results do not depend on it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

impl DeviceArgs {
    /// The backend of the device.
    pub fn backend(&self) -> Result<Box<dyn Backend>, BackendError> {
        match self.device {
            Device::Ref => Ok(Box::new(Reference::new(self.precision))),
            Device::Cpu if self.precision != Precision::F32 => {
                Err(BackendError::Precision { device: "cpu", precision: self.precision })
            }
            Device::Cpu => Ok(Box::new(Cpu::new(self.threads.map(usize::from))?)),
            Device::Sim => self.sim(),
            Device::Cuda => Ok(Box::new(Gpu::cuda(self.precision)?)),
        }
    }

    #[cfg(feature = "sim")]
    fn sim(&self) -> Result<Box<dyn Backend>, BackendError> {
        use crate::backend::gpu::driver::sim::{Options, Sim};
        let options = Options { threads: self.threads.unwrap_or(0), ..Options::default() };
        Ok(Box::new(Gpu::new(std::sync::Arc::new(Sim::new(options)), self.precision)))
    }

    #[cfg(not(feature = "sim"))]
    fn sim(&self) -> Result<Box<dyn Backend>, BackendError> {
        Err(BackendError::Unavailable {
            device: "sim".into(),
            reason:
                "this build has no simulator; build one with cargo build --release --features sim, or use --device cpu"
                    .into(),
        })
    }
}
