//! What a device must be able to do: memory, launches, and recorded launches that replay as one.
//!
//! Launch code, plans and loops know only this trait. [`cuda`] drives a GPU, `sim` runs the kernels on the CPU.

pub mod cuda;
mod shifted_operands;
#[cfg(feature = "sim")]
pub mod sim;
mod tensor_map;

use std::time::{Duration, Instant};

use bytemuck::{Pod, Zeroable};
use thiserror::Error;

use super::launch::Launch;

pub use tensor_map::{Swizzle, TensorMap, TensorMapSpec};

/// An address in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(transparent)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    /// What kernels receive for an operand that is not there.
    pub const NULL: Self = Self(0);

    /// The address `bytes` further on.
    pub fn offset(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

/// What a device offers; launch configurations are chosen by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceLimits {
    /// Name for reports.
    pub name: String,
    /// Compute capability (major, minor).
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of shared memory that one block may ask for.
    pub shared_bytes: u32,
    /// Bytes of device memory.
    pub memory_bytes: usize,
    /// Whether a wgmma operand in shared memory may begin between the 1024-byte blocks of its swizzle, and its groups of
    /// eight rows may lie at any multiple of 128 bytes: then one box of pixels serves all taps of a filter.
    pub shifted_operands: bool,
}

/// A kernel that a driver has loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KernelId(pub u32);

/// A kernel and the length of its only parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadedKernel {
    /// For launches.
    pub id: KernelId,
    /// Size of its argument structure.
    pub args_bytes: usize,
}

/// What can go wrong on a device.
#[derive(Debug, Error)]
pub enum DriverError {
    /// There is no driver library, no usable device, or nothing to load on it.
    #[error("{0}")]
    Unavailable(String),
    /// An allocation failed.
    #[error("out of device memory: {asked} bytes asked for, {free} free")]
    OutOfMemory {
        /// Bytes that were asked for.
        asked: usize,
        /// Bytes that were free.
        free: usize,
    },
    /// The build has no kernel of that name.
    #[error("this build has no kernel {0}")]
    MissingKernel(String),
    /// A launch was refused, or the kernel failed.
    #[error("kernel {kernel}: {reason}")]
    Launch {
        /// Its name.
        kernel: String,
        /// What the device says.
        reason: String,
    },
    /// Any other call failed.
    #[error("{call}: {reason}")]
    Call {
        /// The call.
        call: &'static str,
        /// What the device says.
        reason: String,
    },
}

/// A device with one stream of work: what is enqueued runs in order.
pub trait Driver: Send + Sync {
    /// Name on the command line.
    fn name(&self) -> &'static str;

    /// What the device offers.
    fn limits(&self) -> &DeviceLimits;

    /// Loads a kernel.
    ///
    /// # Errors
    /// [`DriverError::MissingKernel`], or what the device says.
    fn load(&self, kernel: &str) -> Result<LoadedKernel, DriverError>;

    /// Allocates memory, aligned to at least 256 bytes, with any content.
    ///
    /// # Errors
    /// [`DriverError::OutOfMemory`].
    fn allocate(&self, bytes: usize) -> Result<DevicePtr, DriverError>;

    /// Frees memory.
    ///
    /// # Safety
    /// `at` and `bytes` are those of an allocation of this driver that nothing uses any more.
    unsafe fn free(&self, at: DevicePtr, bytes: usize);

    /// Sets every byte; ordered with the launches.
    ///
    /// # Safety
    /// The range lies in an allocation of this driver.
    ///
    /// # Errors
    /// What the device says.
    unsafe fn fill(&self, at: DevicePtr, value: u8, bytes: usize) -> Result<(), DriverError>;

    /// Copies to the device; ordered with the launches, and `data` may change once this returns.
    ///
    /// # Safety
    /// The range lies in an allocation of this driver.
    ///
    /// # Errors
    /// What the device says.
    unsafe fn upload(&self, to: DevicePtr, data: &[u8]) -> Result<(), DriverError>;

    /// Copies from the device once all launches before it are done.
    ///
    /// # Safety
    /// The range lies in an allocation of this driver.
    ///
    /// # Errors
    /// What the device says, failed launches included.
    unsafe fn download(&self, from: DevicePtr, data: &mut [u8]) -> Result<(), DriverError>;

    /// Copies from the device what lies there once all work so far is done, without waiting for it; work that is enqueued
    /// later does not wait for the copy either.
    ///
    /// # Safety
    /// The range lies in an allocation of this driver.
    ///
    /// # Errors
    /// What the device says; failures of the work before it may come with [`Snapshot::wait`].
    unsafe fn snapshot(&self, from: DevicePtr, bytes: usize) -> Result<Box<dyn Snapshot>, DriverError> {
        let mut data = vec![0; bytes];
        // SAFETY: the caller's.
        unsafe { self.download(from, &mut data)? };
        Ok(Box::new(data))
    }

    /// Enqueues one launch.
    ///
    /// # Safety
    /// The addresses in the arguments fit what the kernel does with them, until the launch is done.
    ///
    /// # Errors
    /// What the device says; failures of the kernel itself may come with a later call.
    unsafe fn launch(&self, launch: &Launch) -> Result<(), DriverError>;

    /// Records launches, to be replayed as one. With `overlap` a launch may begin while the one before it ends, where the
    /// device can do that: every kernel waits for the results before it by itself.
    ///
    /// # Safety
    /// As [`Driver::launch`], for every replay.
    ///
    /// # Errors
    /// What the device says.
    unsafe fn record(&self, launches: Vec<Launch>, overlap: bool) -> Result<Box<dyn Recording>, DriverError>;

    /// Runs launches in order, `times` times, and takes the time of each: from the end of the one before to its own end.
    ///
    /// # Safety
    /// As [`Driver::launch`], for every run.
    ///
    /// # Errors
    /// What the device says.
    unsafe fn trace(&self, launches: &[Launch], times: usize) -> Result<LaunchTimes, DriverError> {
        let timed = |launch: &Launch| {
            let begin = Instant::now();
            // SAFETY: the caller's.
            unsafe { self.launch(launch) }?;
            self.synchronize()?;
            Ok(begin.elapsed())
        };
        self.synchronize()?;
        let runs = (0..times).map(|_| launches.iter().map(timed).collect()).collect::<Result<_, _>>()?;
        Ok(LaunchTimes { runs, overhead: Duration::ZERO })
    }

    /// Encodes a tensor map for the arguments of launches.
    ///
    /// # Errors
    /// The broken rule ([`TensorMapSpec::check`]), or what the device says.
    fn tensor_map(&self, spec: &TensorMapSpec) -> Result<TensorMap, DriverError>;

    /// Waits for all work.
    ///
    /// # Errors
    /// What the device says, failed launches included.
    fn synchronize(&self) -> Result<(), DriverError>;

    /// Time that the device spends on what `work` enqueues, from the end of all work before it.
    ///
    /// # Errors
    /// What `work` or the device says.
    fn elapsed(&self, work: &mut dyn FnMut() -> Result<(), DriverError>) -> Result<Duration, DriverError> {
        self.synchronize()?;
        let begin = Instant::now();
        work()?;
        self.synchronize()?;
        Ok(begin.elapsed())
    }
}

/// A copy of device memory on its way to the host.
pub trait Snapshot: Send {
    /// The bytes, once they are there.
    ///
    /// # Errors
    /// What the device says, failed launches before the copy included.
    fn wait(&mut self) -> Result<&[u8], DriverError>;

    /// Whether [`Snapshot::wait`] would return at once.
    fn arrived(&self) -> bool;
}

impl Snapshot for Vec<u8> {
    fn wait(&mut self) -> Result<&[u8], DriverError> {
        Ok(self)
    }

    fn arrived(&self) -> bool {
        true
    }
}

/// How long launches take.
#[derive(Clone, Debug, Default)]
pub struct LaunchTimes {
    /// Of each run, of each launch.
    pub runs: Vec<Vec<Duration>>,
    /// Time between two marks with nothing in between.
    pub overhead: Duration,
}

/// Launches that replay as one: a CUDA graph, or a list.
pub trait Recording: Send {
    /// Enqueues all launches, in order.
    ///
    /// # Errors
    /// What the device says.
    fn replay(&self) -> Result<(), DriverError>;
}
