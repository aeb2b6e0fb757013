//! The kernels on the CPU: the same sources, compiled by the host's C++ compiler against a SIMT simulator.
//!
//! It checks what a GPU does not: uninitialised shared memory, divergent barriers, deadlocks. Addresses are host
//! addresses.

mod library;

use std::ffi::CString;

use super::{
    DeviceLimits, DevicePtr, Driver, DriverError, KernelId, LoadedKernel, Recording, Swizzle, TensorMap, TensorMapSpec,
};
use crate::backend::gpu::launch::Launch;

pub use library::Variant;
use library::{Config, Library};

/// In which order the simulator runs threads that may run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Schedule {
    /// First come, first served.
    #[default]
    Fifo,
    /// Last come, first served.
    Lifo,
    /// Random priorities that change at random times: finds missing barriers.
    RandomPriority,
}

/// When asynchronous copies and matrix products are carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Async {
    /// At once.
    #[default]
    Eager,
    /// When somebody waits for them.
    Late,
    /// At random times.
    Random,
}

/// How the simulator runs.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Order of threads.
    pub schedule: Schedule,
    /// Time of asynchronous work.
    pub asynchronous: Async,
    /// Of the random choices.
    pub seed: u64,
    /// CPU threads; 0: as many as there are cores.
    pub threads: u16,
    /// Compute capability that the device claims, (8, 0) or (9, 0): kernels of earlier chips run where it is older.
    pub capability: (u32, u32),
    /// Whether it says that wgmma operands may begin anywhere in a swizzle; only from capability (9, 0) on.
    pub shifted_operands: bool,
    /// How many multiprocessors it says it has.
    pub multiprocessors: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            schedule: Schedule::default(),
            asynchronous: Async::default(),
            seed: 0,
            threads: 0,
            capability: (9, 0),
            shifted_operands: true,
            // As an H200, so that launches are configured as they are there.
            multiprocessors: 132,
        }
    }
}

/// The simulated device.
pub struct Sim {
    library: Library,
    config: Config,
    limits: DeviceLimits,
}

impl Sim {
    /// The simulator that is linked in.
    pub fn new(options: Options) -> Self {
        Self::with_library(Library::linked(), options)
    }

    /// Another build of the simulator, with more checks.
    ///
    /// # Errors
    /// [`DriverError::Unavailable`] if the build is not there.
    pub fn open(variant: Variant, options: Options) -> Result<Self, DriverError> {
        Ok(Self::with_library(Library::open(variant)?, options))
    }

    fn with_library(library: Library, o: Options) -> Self {
        let config = Config {
            threads: i32::from(o.threads),
            schedule: o.schedule as i32,
            async_mode: o.asynchronous as i32,
            seed: o.seed,
        };
        let limits = DeviceLimits {
            name: "simulator".into(),
            compute_capability: o.capability,
            multiprocessors: o.multiprocessors,
            shared_bytes: 227 << 10,
            memory_bytes: 1 << 40,
            shifted_operands: o.shifted_operands && o.capability >= (9, 0),
        };
        Self { library, config, limits }
    }
}

fn run(library: &Library, config: &Config, launch: &Launch) -> Result<(), DriverError> {
    let c = &launch.config;
    let (block, cluster) = ([c.block, 1, 1], [c.cluster, 1, 1]);
    let args = launch.args.bytes();
    // SAFETY: the arrays have three elements, the arguments are `args.len()` bytes aligned to 64, and that length is the
    // kernel's (checked when it was loaded); what the arguments point to is the caller's promise.
    let code = unsafe {
        (library.launch)(
            launch.kernel.0 as i32,
            c.grid.as_ptr(),
            block.as_ptr(),
            cluster.as_ptr(),
            c.shared,
            args.as_ptr().cast(),
            args.len(),
            config,
        )
    };
    if code == 0 {
        return Ok(());
    }
    Err(DriverError::Launch { kernel: launch.name.clone(), reason: library.last_error() })
}

impl Driver for Sim {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn limits(&self) -> &DeviceLimits {
        &self.limits
    }

    fn load(&self, kernel: &str) -> Result<LoadedKernel, DriverError> {
        let missing = || DriverError::MissingKernel(kernel.to_string());
        let name = CString::new(kernel).map_err(|_| missing())?;
        // SAFETY: the string ends in a zero and lives during the call.
        let id = unsafe { (self.library.find_kernel)(name.as_ptr()) };
        let id = u32::try_from(id).map_err(|_| missing())?;
        // SAFETY: the index was just found.
        let args_bytes = unsafe { (self.library.kernel_args_bytes)(id as i32) } as usize;
        Ok(LoadedKernel { id: KernelId(id), args_bytes })
    }

    fn allocate(&self, bytes: usize) -> Result<DevicePtr, DriverError> {
        // SAFETY: any size may be asked for.
        let pointer = unsafe { (self.library.malloc)(bytes) };
        if pointer.is_null() {
            return Err(DriverError::OutOfMemory { asked: bytes, free: 0 });
        }
        Ok(DevicePtr(pointer as u64))
    }

    unsafe fn free(&self, at: DevicePtr, bytes: usize) {
        // SAFETY: the caller's.
        unsafe { (self.library.free)(at.0 as *mut _, bytes) };
    }

    unsafe fn fill(&self, at: DevicePtr, value: u8, bytes: usize) -> Result<(), DriverError> {
        // SAFETY: the caller's; addresses are host addresses and launches are done when they return.
        unsafe { std::ptr::write_bytes(at.0 as *mut u8, value, bytes) };
        Ok(())
    }

    unsafe fn upload(&self, to: DevicePtr, data: &[u8]) -> Result<(), DriverError> {
        // SAFETY: as in `fill`; the slice is host memory of its own.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to.0 as *mut u8, data.len()) };
        Ok(())
    }

    unsafe fn download(&self, from: DevicePtr, data: &mut [u8]) -> Result<(), DriverError> {
        // SAFETY: as in `upload`.
        unsafe { std::ptr::copy_nonoverlapping(from.0 as *const u8, data.as_mut_ptr(), data.len()) };
        Ok(())
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<(), DriverError> {
        run(&self.library, &self.config, launch)
    }

    unsafe fn record(&self, launches: Vec<Launch>, _overlap: bool) -> Result<Box<dyn Recording>, DriverError> {
        Ok(Box::new(List { library: self.library.clone(), config: self.config, launches }))
    }

    fn tensor_map(&self, spec: &TensorMapSpec) -> Result<TensorMap, DriverError> {
        spec.check()?;
        // By CUtensorMapDataType: u8, bf16, f32.
        let data_type = match spec.element_bytes {
            1 => 0,
            2 => 9,
            _ => 7,
        };
        let swizzle = match spec.swizzle {
            Swizzle::None => 0,
            Swizzle::Bytes32 => 1,
            Swizzle::Bytes64 => 2,
            Swizzle::Bytes128 => 3,
        };
        let mut map = TensorMap([0; 16]);
        // SAFETY: the arrays have as many elements as the rank says (`check`), and the map is 128 bytes aligned to 64. The
        // address is not followed.
        let code = unsafe {
            (self.library.tensor_map_tiled)(
                (&raw mut map).cast(),
                data_type,
                spec.dims.len() as u32,
                spec.base.0 as *mut _,
                spec.dims.as_ptr(),
                spec.strides.as_ptr(),
                spec.box_dims.as_ptr(),
                [1; 5].as_ptr(),
                0,
                swizzle,
                0,
                0,
            )
        };
        if code == 0 {
            return Ok(map);
        }
        Err(DriverError::Call { call: "tensor map", reason: self.library.last_error() })
    }

    fn synchronize(&self) -> Result<(), DriverError> {
        Ok(())
    }
}

/// The simulator's graph: its launches, one after the other.
struct List {
    library: Library,
    config: Config,
    launches: Vec<Launch>,
}

impl Recording for List {
    fn replay(&self) -> Result<(), DriverError> {
        self.launches.iter().try_for_each(|launch| run(&self.library, &self.config, launch))
    }
}
