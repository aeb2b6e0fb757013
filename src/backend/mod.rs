//! Where plans run. A [`Backend`] turns a [`Plan`] into an [`Executable`], which replays it without allocating.

pub mod cpu;
pub mod gpu;
pub mod snapshot;
pub mod trace;

use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use snapshot::{Snapshot, Stored};
use trace::Trace;

use crate::graph::{DType, ParamId, Plan, Value, ValueId};

/// The arithmetic of a backend, which decides the element type of activations ([`crate::graph::DType::Act`]).
///
/// Parameters, their gradients, optimiser state and the averages of the weights are f32 in either, and so are the sums
/// inside an operation, norm statistics, softmax, losses and the states of a sampler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit activations and weights. The reference computes in f64 and rounds nothing.
    #[default]
    F32,
    /// bf16 activations, and weights of convolutions and linear layers rounded to bf16 as they are read; everything
    /// else as in f32. Each operation rounds its activations once, when it stores them.
    Bf16,
}

impl Precision {
    /// Name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What can go wrong when a plan is prepared or run.
#[derive(Debug, Error)]
pub enum BackendError {
    /// A slice of the wrong length was read or written.
    #[error("{what} has {expected} elements, the slice has {actual}")]
    Length {
        /// Name of the value.
        what: String,
        /// Elements of the value.
        expected: usize,
        /// Elements of the slice.
        actual: usize,
    },
    /// A value was read or written as what it does not hold.
    #[error("the value {what:?} holds {held:?}; only values of type U8 are read as bytes, and only as bytes")]
    Type {
        /// Name of the value.
        what: String,
        /// Its elements.
        held: DType,
    },
    /// The memory is not there.
    #[error("{} MiB of memory for one buffer are not there; take a smaller batch, image or network", bytes >> 20)]
    Memory {
        /// Size that was asked for.
        bytes: usize,
    },
    /// The memory of a device does not hold the plan.
    #[error("{}", device_memory(*asked, *free, *batch))]
    DeviceMemory {
        /// Bytes of the allocation that failed.
        asked: usize,
        /// Bytes that were free.
        free: usize,
        /// The batch that would fit, if one would.
        batch: Option<usize>,
    },
    /// A kernel or a call of a device failed.
    #[error("device {device}: {reason}")]
    Device {
        /// Its name.
        device: String,
        /// What it says.
        reason: String,
    },
    /// The device does not compute in that precision.
    #[error("--device {device} does not compute in {precision}; take --precision f32, or another device")]
    Precision {
        /// The name that was asked for.
        device: &'static str,
        /// The precision that was asked for.
        precision: Precision,
    },
    /// The device is not there or cannot be used.
    #[error("device {device} is not available: {reason}")]
    Unavailable {
        /// The name that was asked for.
        device: String,
        /// Why, and what to do.
        reason: String,
    },
}

fn device_memory(asked: usize, free: usize, batch: Option<usize>) -> String {
    let remedy = match batch {
        Some(n) => format!("a batch of {n} would fit"),
        None => "take a smaller batch, image or network".into(),
    };
    format!("the device has {} MiB free, one buffer needs {} MiB; {remedy}", free >> 20, asked >> 20)
}

/// The per-parameter arrays that an executable keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Store {
    /// The parameters themselves.
    Params,
    /// First moment of AdamW.
    Moment1,
    /// Second moment of AdamW.
    Moment2,
    /// Exponential moving average of the parameters.
    Ema,
}

impl Store {
    /// All of them, in the order in which checkpoints hold them.
    pub const ALL: [Store; 4] = [Store::Params, Store::Moment1, Store::Moment2, Store::Ema];
}

/// A place to run plans.
pub trait Backend: Send + Sync {
    /// Name on the command line.
    fn name(&self) -> &'static str;

    /// The arithmetic of the executables it makes.
    fn precision(&self) -> Precision {
        Precision::F32
    }

    /// Prepares a plan: lays it out for the backend's precision and allocates everything that its runs will need.
    ///
    /// # Errors
    /// If the memory or the device is not there.
    fn compile(&self, plan: Plan) -> Result<Box<dyn Executable>, BackendError>;
}

/// A plan that is ready to run, with its parameters.
pub trait Executable: Send {
    /// The plan.
    fn plan(&self) -> &Plan;

    /// Writes an input or a state of floating-point type.
    ///
    /// # Errors
    /// [`BackendError::Length`].
    fn write_f32(&mut self, value: ValueId, data: &[f32]) -> Result<(), BackendError>;

    /// Writes an input or a state of integer type.
    ///
    /// # Errors
    /// [`BackendError::Length`].
    fn write_u32(&mut self, value: ValueId, data: &[u32]) -> Result<(), BackendError>;

    /// Writes an input or a state of floating-point type as the numbers of `pattern` over and over, the last time as many of
    /// them as are needed.
    ///
    /// # Errors
    /// [`BackendError::Length`] if the pattern is empty.
    fn write_repeated(&mut self, value: ValueId, pattern: &[f32]) -> Result<(), BackendError> {
        let len = self.plan().graph().shape(value).numel();
        self.write_f32(value, &pattern.iter().copied().cycle().take(len).collect::<Vec<_>>())
    }

    /// Reads a kept value, a state or a gradient.
    ///
    /// # Errors
    /// [`BackendError::Length`]; [`BackendError::Type`] for bytes.
    fn read_f32(&self, value: ValueId, data: &mut [f32]) -> Result<(), BackendError>;

    /// Reads as many elements of a kept value, a state or a gradient as `data` has, from element `first` on.
    ///
    /// # Errors
    /// [`BackendError::Length`] if the value ends before; [`BackendError::Type`] for bytes.
    fn read_part(&self, value: ValueId, first: usize, data: &mut [f32]) -> Result<(), BackendError> {
        let of = self.plan().graph().value(value);
        check_part(of, first, data.len())?;
        let mut all = vec![0.0; of.shape.numel()];
        self.read_f32(value, &mut all)?;
        data.copy_from_slice(&all[first..first + data.len()]);
        Ok(())
    }

    /// Reads a kept value of type [`DType::U8`].
    ///
    /// # Errors
    /// [`BackendError::Length`]; [`BackendError::Type`] for values of any other type.
    fn read_u8(&self, value: ValueId, data: &mut [u8]) -> Result<(), BackendError>;

    /// Reads a kept value, a state or a gradient at the full precision of the backend.
    ///
    /// # Errors
    /// If the device fails, during the read or in a run before it.
    fn read_f64(&self, value: ValueId) -> Result<Vec<f64>, BackendError> {
        let of = self.plan().graph().value(value);
        if of.dtype == DType::U8 {
            let mut levels = vec![0; of.shape.numel()];
            self.read_u8(value, &mut levels)?;
            return Ok(levels.into_iter().map(f64::from).collect());
        }
        let mut data = vec![0.0; of.shape.numel()];
        self.read_f32(value, &mut data)?;
        Ok(data.into_iter().map(f64::from).collect())
    }

    /// Takes a kept value or a state as it is after all runs so far, without waiting for them. Runs that are enqueued later go
    /// on beside its way to the host.
    ///
    /// # Errors
    /// If the device fails. A failure of the runs before it may come with the snapshot's own reading.
    fn snapshot(&mut self, value: ValueId) -> Result<Snapshot, BackendError> {
        let of = self.plan().graph().value(value);
        let len = of.shape.numel();
        if of.dtype == DType::U8 {
            let mut bytes = vec![0; len];
            self.read_u8(value, &mut bytes)?;
            return Ok(Snapshot::new(Box::new(bytes), Stored::Byte));
        }
        let mut floats = vec![0.0f32; len];
        self.read_f32(value, &mut floats)?;
        Ok(Snapshot::new(Box::new(bytemuck::cast_slice(&floats).to_vec()), Stored::Word))
    }

    /// Writes one parameter's slice of a store, in the graph's layout.
    ///
    /// # Errors
    /// [`BackendError::Length`]; optimiser stores exist only where the plan has an optimiser.
    fn write_param(&mut self, store: Store, param: ParamId, data: &[f32]) -> Result<(), BackendError>;

    /// Reads one parameter's slice of a store, in the graph's layout.
    ///
    /// # Errors
    /// As [`Executable::write_param`].
    fn read_param(&self, store: Store, param: ParamId, data: &mut [f32]) -> Result<(), BackendError>;

    /// Executes the plan once. A device may return before it is done; reads wait for it.
    ///
    /// # Errors
    /// If the device fails. A failure of the run itself may come with a later call: at the latest with the next read or
    /// with [`Executable::finish`].
    fn run(&mut self) -> Result<(), BackendError>;

    /// Executes the plan `times` times, each run on the states that the one before left, without waiting in between.
    ///
    /// # Errors
    /// As [`Executable::run`].
    fn run_many(&mut self, times: usize) -> Result<(), BackendError> {
        (0..times).try_for_each(|_| self.run())
    }

    /// Waits for all runs.
    ///
    /// # Errors
    /// If one of them failed.
    fn finish(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    /// Time that the device spends on `times` runs, from the end of all work before them.
    ///
    /// # Errors
    /// As [`Executable::finish`].
    fn run_timed(&mut self, times: usize) -> Result<Duration, BackendError> {
        self.finish()?;
        let begin = Instant::now();
        self.run_many(times)?;
        self.finish()?;
        Ok(begin.elapsed())
    }

    /// Executes the plan `times` times, one run after the other, and takes the time of every step: slower than
    /// [`Executable::run`], with the same results.
    ///
    /// # Errors
    /// As [`Executable::finish`].
    fn trace(&mut self, times: usize) -> Result<Trace, BackendError>;

    /// Bytes that this executable holds, workspaces included.
    fn memory_bytes(&self) -> usize;
}

/// Checks an access to a value in elements of 32 bits, or of 16 that stand for them.
pub(crate) fn check_floats(value: &Value, len: usize) -> Result<(), BackendError> {
    check_access(value, value.dtype != DType::U8, len)
}

/// Checks an access to a value in bytes.
pub(crate) fn check_bytes(value: &Value, len: usize) -> Result<(), BackendError> {
    check_access(value, value.dtype == DType::U8, len)
}

/// Checks that a value of floating-point type has the elements `first..first + len`.
pub(crate) fn check_part(value: &Value, first: usize, len: usize) -> Result<(), BackendError> {
    let numel = value.shape.numel();
    check_floats(value, if first + len <= numel { numel } else { first + len })
}

fn check_access(value: &Value, fits: bool, len: usize) -> Result<(), BackendError> {
    if !fits {
        return Err(BackendError::Type { what: value.name.clone(), held: value.dtype });
    }
    check_length(&value.name, value.shape.numel(), len)
}

/// Checks a slice against a value's number of elements.
pub(crate) fn check_length(what: &str, expected: usize, actual: usize) -> Result<(), BackendError> {
    if expected == actual {
        return Ok(());
    }
    Err(BackendError::Length { what: what.to_string(), expected, actual })
}
