//! The simulator's C interface (`kernels/sim/abi.h`): linked in, or loaded from one of its checking builds.

use std::ffi::{c_char, c_void};
#[cfg(feature = "sim-checks")]
use std::sync::Arc;

use crate::backend::gpu::driver::DriverError;

/// `struct sim_config`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Config {
    pub threads: i32,
    pub schedule: i32,
    pub async_mode: i32,
    pub seed: u64,
}

/// Builds of the simulator with more checks; present with the feature `sim-checks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Reports unordered accesses to shared memory.
    Race,
    /// Reports accesses outside any buffer. The process must be started with the sanitizer's library preloaded.
    Asan,
}

type LaunchFn =
    unsafe extern "C" fn(i32, *const u32, *const u32, *const u32, u32, *const c_void, usize, *const Config) -> i32;

type TensorMapFn = unsafe extern "C" fn(
    *mut c_void,
    i32,
    u32,
    *mut c_void,
    *const u64,
    *const u64,
    *const u32,
    *const u32,
    i32,
    i32,
    i32,
    i32,
) -> i32;

unsafe extern "C" {
    fn sim_launch(
        kernel: i32,
        grid: *const u32,
        block: *const u32,
        cluster: *const u32,
        dynamic_shared: u32,
        args: *const c_void,
        args_bytes: usize,
        config: *const Config,
    ) -> i32;
    fn sim_find_kernel(name: *const c_char) -> i32;
    fn sim_kernel_args_bytes(kernel: i32) -> u32;
    fn sim_last_error(out: *mut c_char, len: usize) -> usize;
    fn sim_tensor_map_tiled(
        map: *mut c_void,
        data_type: i32,
        rank: u32,
        address: *mut c_void,
        dimensions: *const u64,
        strides: *const u64,
        box_dims: *const u32,
        element_strides: *const u32,
        interleave: i32,
        swizzle: i32,
        l2_promotion: i32,
        oob_fill: i32,
    ) -> i32;
    fn sim_malloc(bytes: usize) -> *mut c_void;
    fn sim_free(pointer: *mut c_void, bytes: usize);
}

/// The functions of one build of the simulator.
#[derive(Clone)]
pub(super) struct Library {
    pub launch: LaunchFn,
    pub find_kernel: unsafe extern "C" fn(*const c_char) -> i32,
    pub kernel_args_bytes: unsafe extern "C" fn(i32) -> u32,
    pub tensor_map_tiled: TensorMapFn,
    pub malloc: unsafe extern "C" fn(usize) -> *mut c_void,
    pub free: unsafe extern "C" fn(*mut c_void, usize),
    last_error: unsafe extern "C" fn(*mut c_char, usize) -> usize,
    /// Keeps the functions loaded.
    #[cfg(feature = "sim-checks")]
    _loaded: Option<Arc<libloading::Library>>,
}

impl Library {
    /// The build that is linked in.
    pub fn linked() -> Self {
        Self {
            launch: sim_launch,
            find_kernel: sim_find_kernel,
            kernel_args_bytes: sim_kernel_args_bytes,
            tensor_map_tiled: sim_tensor_map_tiled,
            malloc: sim_malloc,
            free: sim_free,
            last_error: sim_last_error,
            #[cfg(feature = "sim-checks")]
            _loaded: None,
        }
    }

    /// One of the checking builds.
    #[cfg(feature = "sim-checks")]
    pub fn open(variant: Variant) -> Result<Self, DriverError> {
        let path = match variant {
            Variant::Race => env!("WARPDIFF_SIM_RACE"),
            Variant::Asan => env!("WARPDIFF_SIM_ASAN"),
        };
        let unavailable = |e: libloading::Error| DriverError::Unavailable(format!("{path}: {e}"));
        // SAFETY: built with this crate; its initialisers only register kernels.
        let loaded = unsafe { libloading::Library::new(path) }.map_err(unavailable)?;
        // SAFETY: the types are those of the C interface.
        unsafe {
            Ok(Self {
                launch: *loaded.get(b"sim_launch\0").map_err(unavailable)?,
                find_kernel: *loaded.get(b"sim_find_kernel\0").map_err(unavailable)?,
                kernel_args_bytes: *loaded.get(b"sim_kernel_args_bytes\0").map_err(unavailable)?,
                tensor_map_tiled: *loaded.get(b"sim_tensor_map_tiled\0").map_err(unavailable)?,
                malloc: *loaded.get(b"sim_malloc\0").map_err(unavailable)?,
                free: *loaded.get(b"sim_free\0").map_err(unavailable)?,
                last_error: *loaded.get(b"sim_last_error\0").map_err(unavailable)?,
                _loaded: Some(Arc::new(loaded)),
            })
        }
    }

    /// This build has none.
    #[cfg(not(feature = "sim-checks"))]
    pub fn open(variant: Variant) -> Result<Self, DriverError> {
        Err(DriverError::Unavailable(format!("the {variant:?} build of the simulator needs the feature sim-checks")))
    }

    /// What the last failed call of this thread has to say.
    pub fn last_error(&self) -> String {
        let mut text = vec![0u8; 16 << 10];
        // SAFETY: the buffer has the length that is given.
        let len = unsafe { (self.last_error)(text.as_mut_ptr().cast(), text.len()) };
        text.truncate(len.min(text.len()));
        String::from_utf8_lossy(&text).trim_end_matches('\0').to_string()
    }
}
