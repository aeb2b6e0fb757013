//! `--device`, `--precision` and `--threads`.

use std::fs;
use std::path::PathBuf;

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::backend::gpu::choice::Tuning;
use crate::backend::gpu::fp8::Fp8Scales;
use crate::backend::{
    Backend, BackendError, Precision,
    cpu::Cpu,
    gpu::{Gpu, Replay},
};
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

/// Arithmetic of the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Arithmetic {
    /// 32-bit activations and weights (f64 on the reference).
    #[default]
    F32,
    /// bf16 activations and weights, f32 sums and master weights; not on the CPU.
    Bf16,
    /// As bf16, the convolutions of residual blocks on e4m3; to sample on a Hopper GPU (or --device sim).
    Fp8,
}

impl Arithmetic {
    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 | Self::Bf16 => self.precision().name(),
            Self::Fp8 => "fp8",
        }
    }

    /// What is not quantised is computed in this.
    pub fn precision(self) -> Precision {
        match self {
            Self::F32 => Precision::F32,
            Self::Bf16 | Self::Fp8 => Precision::Bf16,
        }
    }
}

/// A device that was found.
pub(super) enum Opened {
    /// Ready to run.
    Ready(Box<dyn Backend>),
    /// In need of scales.
    Fp8(Gpu),
}

impl Opened {
    /// The backend; scales of fp8 come from `calibrate`, which is given the device in bf16.
    pub fn calibrated(
        self,
        calibrate: impl FnOnce(&dyn Backend) -> anyhow::Result<Fp8Scales>,
    ) -> anyhow::Result<Box<dyn Backend>> {
        match self {
            Self::Ready(backend) => Ok(backend),
            Self::Fp8(gpu) => {
                let scales = calibrate(&gpu)?;
                Ok(Box::new(gpu.with_fp8(scales)?))
            }
        }
    }
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
#[derive(Clone, Debug, Args)]
pub(super) struct DeviceArgs {
    /// Where to run.
    #[arg(long, value_enum, default_value = "cpu")]
    pub device: Device,
    /// Arithmetic of the network.
    #[arg(long, value_enum, default_value = "f32")]
    pub precision: Arithmetic,
    /// CPU threads; as many as there are cores by default. Results do not depend on it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    #[command(flatten)]
    pub kernels: KernelArgs,
}

/// How the kernels are launched. No result depends on it.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct KernelArgs {
    /// Kernel configurations that bench --tune measured, in place of those in this build. Results do not depend on it.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    tuning: Option<PathBuf>,
    /// Steps of a loop that one CUDA graph holds. Results do not depend on it.
    #[arg(long, value_name = "N", hide_short_help = true, value_parser = clap::value_parser!(u16).range(1..=1000))]
    graph_steps: Option<u16>,
    /// Let a kernel begin while the one before it ends (from compute capability 9.0 on). Results do not depend on it.
    #[arg(long, hide_short_help = true)]
    overlap: bool,
}

impl KernelArgs {
    fn replay(&self) -> Replay {
        Replay { runs: self.graph_steps.map_or(1, usize::from), overlap: self.overlap }
    }
}

impl DeviceArgs {
    /// The backend of the device, for commands that do not sample: fp8 is refused.
    pub fn backend(&self) -> Result<Box<dyn Backend>, BackendError> {
        match self.open()? {
            Opened::Ready(backend) => Ok(backend),
            Opened::Fp8(gpu) => Err(elsewhere(gpu.name())),
        }
    }

    /// The precision, for commands that open the device by themselves: fp8 is refused.
    pub fn unquantised(&self) -> Result<Precision, BackendError> {
        match self.precision {
            Arithmetic::Fp8 => Err(elsewhere("cuda")),
            other => Ok(other.precision()),
        }
    }

    /// The device.
    pub fn open(&self) -> Result<Opened, BackendError> {
        let precision = self.precision.precision();
        let gpu = match self.device {
            Device::Ref if self.precision == Arithmetic::Fp8 => {
                return Err(fp8_refused("ref", "fp8 runs on the kernels: take --device cuda or sim"));
            }
            Device::Cpu if self.precision == Arithmetic::Fp8 => {
                return Err(fp8_refused("cpu", "fp8 runs on the kernels: take --device cuda or sim"));
            }
            Device::Cpu if precision != Precision::F32 => {
                return Err(BackendError::Precision { device: "cpu", precision });
            }
            Device::Ref => return Ok(Opened::Ready(Box::new(Reference::new(precision)))),
            Device::Cpu => return Ok(Opened::Ready(Box::new(Cpu::new(self.threads.map(usize::from))?))),
            Device::Sim => self.simulator(precision)?,
            Device::Cuda => self.tuned(Gpu::cuda(precision)?)?,
        };
        if self.precision == Arithmetic::Fp8 {
            gpu.takes_fp8()?;
            return Ok(Opened::Fp8(gpu));
        }
        Ok(Opened::Ready(Box::new(gpu)))
    }

    /// The device with the table of `--tuning`, if there is one, and its launches recorded as the options say.
    pub fn tuned(&self, gpu: Gpu) -> Result<Gpu, BackendError> {
        let gpu = gpu.with_replay(self.kernels.replay());
        let Some(path) = &self.kernels.tuning else { return Ok(gpu) };
        let refused = |reason: String| BackendError::Device { device: gpu.name().into(), reason };
        let file = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|e| refused(format!("cannot read the table {file}: {e}")))?;
        let table = Tuning::parse(&file, &text, gpu.driver().limits()).map_err(|e| refused(e.to_string()))?;
        Ok(gpu.with_tuning(table))
    }

    /// The kernels in the simulator.
    #[cfg(feature = "sim")]
    pub fn simulator(&self, precision: Precision) -> Result<Gpu, BackendError> {
        use crate::backend::gpu::driver::sim::{Options, Sim};
        let options = Options { threads: self.threads.unwrap_or(0), ..Options::default() };
        self.tuned(Gpu::new(std::sync::Arc::new(Sim::new(options)), precision))
    }

    /// The kernels in the simulator, which this build lacks.
    #[cfg(not(feature = "sim"))]
    pub fn simulator(&self, _precision: Precision) -> Result<Gpu, BackendError> {
        Err(BackendError::Unavailable {
            device: "sim".into(),
            reason:
                "this build has no simulator; build one with cargo build --release --features sim, or use --device cpu"
                    .into(),
        })
    }
}

/// fp8 in a command that does not have it.
fn elsewhere(device: &str) -> BackendError {
    fp8_refused(
        device,
        "only sample, compare and bench unet compute in fp8, and none of them trains; take --precision bf16",
    )
}

fn fp8_refused(device: &str, reason: &str) -> BackendError {
    BackendError::Unavailable { device: device.into(), reason: reason.into() }
}
