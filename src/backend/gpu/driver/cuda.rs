//! An NVIDIA GPU through the CUDA driver API: the only code that knows it.
//!
//! `libcuda.so.1` is loaded when a device is opened, so neither building nor starting needs anything of CUDA. The device
//! is the first that the driver lists (`CUDA_VISIBLE_DEVICES` chooses another); its primary context is used. All work
//! goes to one stream that does not wait for the default stream.
//!
//! Launches are asynchronous and recordings replay as one CUDA graph, so a failing kernel comes to light only at the next
//! download or synchronisation, without its name. With `WARPDIFF_SYNC=1` in the environment every launch runs by itself
//! and is waited for: slow, but an error names its kernel.

mod api;
mod graph;
mod modules;
mod outbox;
mod probe;
mod staging;
mod tensor_map;

use std::ffi::c_void;
use std::ptr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use cudarc::driver::{result, sys};

use super::LaunchTimes;
use super::{
    DeviceLimits, DevicePtr, Driver, DriverError, KernelId, LoadedKernel, Recording, Snapshot, TensorMap,
    TensorMapSpec, shifted_operands,
};
use crate::backend::gpu::launch::Launch;
use api::{Context, Event, Stream, checked, reason};
use modules::{Function, Modules};
use outbox::Outbox;
use staging::Staging;

pub use probe::DeviceInfo;

/// The only chips that run machine code for `sm_90a`.
const HOPPER: (u32, u32) = (9, 0);

/// A GPU.
pub struct Cuda {
    inner: Arc<Inner>,
}

/// What recordings share with the device that made them. Fields are dropped from the first to the last.
struct Inner {
    staging: Mutex<Staging>,
    outbox: Mutex<Outbox>,
    modules: Modules,
    stream: Stream,
    context: Context,
    /// As the driver tells them.
    told: DeviceLimits,
    /// With what was found out by trying.
    limits: OnceLock<DeviceLimits>,
    /// Wait after each launch.
    synchronous: bool,
}

// SAFETY: handles of the driver API may be used from any thread once the context is current there, which `Inner::bind`
// sees to; what is mutable lies behind locks.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Cuda {
    /// Opens the first GPU that the driver lists.
    ///
    /// # Errors
    /// [`DriverError::Unavailable`] if there is no driver, no GPU that the kernels run on, or no kernels in this build; the
    /// message says what to do.
    pub fn open() -> Result<Self, DriverError> {
        Self::with(std::env::var("WARPDIFF_SYNC").is_ok_and(|v| !v.is_empty() && v != "0"))
    }

    /// As [`Cuda::open`] with `WARPDIFF_SYNC=1`: every launch is waited for.
    ///
    /// # Errors
    /// As [`Cuda::open`].
    pub fn open_synchronous() -> Result<Self, DriverError> {
        Self::with(true)
    }

    fn with(synchronous: bool) -> Result<Self, DriverError> {
        let found = probe::find()?;
        found.info.check()?;
        let context = Context::primary(found.device)?;
        context.bind()?;
        let inner = Inner {
            staging: Mutex::new(Staging::new()?),
            outbox: Mutex::new(Outbox::new()?),
            modules: Modules::new(&found.info),
            stream: Stream::new()?,
            context,
            told: found.info.limits,
            limits: OnceLock::new(),
            synchronous,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What the driver says of the GPU that [`Cuda::open`] would take, whether the kernels run on it or not.
    ///
    /// # Errors
    /// [`DriverError::Unavailable`] if there is no driver or no GPU.
    pub fn probe() -> Result<DeviceInfo, DriverError> {
        probe::find().map(|found| found.info)
    }

    /// Calls a library with the stream of this device, as a `cudaStream_t`; the context is current during the call.
    pub(crate) fn call<T>(&self, work: impl FnOnce(*mut c_void) -> T) -> Result<T, DriverError> {
        self.inner.bind()?;
        Ok(work(self.inner.stream.raw().cast()))
    }

    /// Records what a library enqueues on the stream that `work` receives.
    ///
    /// # Safety
    /// At every replay, the addresses fit what the library's kernels do with them, and what the library itself keeps for
    /// them is there.
    ///
    /// # Errors
    /// What `work` says; what the device says, such as that a call cannot be captured.
    pub(crate) unsafe fn record_calls<E: From<DriverError>>(
        &self,
        work: impl FnOnce(*mut c_void) -> Result<(), E>,
    ) -> Result<Box<dyn Recording>, E> {
        self.inner.bind()?;
        Ok(Box::new(graph::Replay::capture_calls(&self.inner, |stream| work(stream.raw().cast()))?))
    }
}

impl Inner {
    fn bind(&self) -> Result<(), DriverError> {
        self.context.bind()
    }

    fn synchronize(&self) -> Result<(), DriverError> {
        self.bind()?;
        self.stream.synchronize()
    }

    /// Looks up the function of a launch and grants it the shared memory that it asks for.
    fn prepare(&self, launch: &Launch) -> Result<Function, DriverError> {
        self.modules.function(launch.kernel, launch.config.shared).map_err(|e| refused(launch, &e.to_string()))
    }

    /// Enqueues a launch; with `overlap` it may begin while the one before it ends.
    ///
    /// # Safety
    /// As [`Driver::launch`]; the context is current.
    unsafe fn enqueue(
        &self,
        function: Function,
        launch: &Launch,
        stream: sys::CUstream,
        overlap: bool,
    ) -> Result<(), DriverError> {
        let c = &launch.config;
        let mut attributes = Vec::with_capacity(2);
        if c.cluster > 1 {
            attributes.push(attribute(
                sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
                sys::CUlaunchAttributeValue {
                    clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: c.cluster, y: 1, z: 1 },
                },
            ));
        }
        if overlap {
            attributes.push(attribute(
                sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
            ));
        }
        let config = sys::CUlaunchConfig {
            gridDimX: c.grid[0],
            gridDimY: c.grid[1],
            gridDimZ: c.grid[2],
            blockDimX: c.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: c.shared,
            hStream: stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        let mut params: [*mut c_void; 1] = [launch.args.bytes().as_ptr().cast_mut().cast()];
        // SAFETY: the kernel has one parameter, whose length was compared with that of the bytes when it was loaded; the
        // driver copies them during the call. What they point to is the caller's promise.
        let code = unsafe {
            sys::cuLaunchKernelEx(&raw const config, function.handle, params.as_mut_ptr(), ptr::null_mut()).result()
        };
        code.map_err(|e| refused(launch, &reason(e)))
    }

    /// # Safety
    /// As [`Driver::launch`].
    unsafe fn launch(&self, launch: &Launch) -> Result<(), DriverError> {
        self.bind()?;
        let function = self.prepare(launch)?;
        // SAFETY: the caller's.
        unsafe { self.enqueue(function, launch, self.stream.raw(), false)? };
        if self.synchronous {
            // SAFETY: the stream is alive.
            let done = unsafe { result::stream::synchronize(self.stream.raw()) };
            done.map_err(|e| refused(launch, &reason(e)))?;
        }
        Ok(())
    }
}

fn attribute(id: sys::CUlaunchAttributeID, value: sys::CUlaunchAttributeValue) -> sys::CUlaunchAttribute {
    sys::CUlaunchAttribute { id, pad: [0; 4], value }
}

fn refused(launch: &Launch, why: &str) -> DriverError {
    let c = &launch.config;
    let [x, y, z] = c.grid;
    let place = format!("grid {x}x{y}x{z}, {} threads, {} bytes of shared memory", c.block, c.shared);
    DriverError::Launch { kernel: launch.name.clone(), reason: format!("{why} ({place})") }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Makes the context current for what is dropped next. An error that is left over was reported by the call that met
        // it, or belongs to work whose result nobody read.
        let _ = self.synchronize();
    }
}

impl Driver for Cuda {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn limits(&self) -> &DeviceLimits {
        self.inner.limits.get_or_init(|| {
            let told = &self.inner.told;
            // A device that cannot run the probe does without: kernels for it take the other way.
            let shifted_operands = told.compute_capability == HOPPER && shifted_operands::probe(self).unwrap_or(false);
            DeviceLimits { shifted_operands, ..told.clone() }
        })
    }

    fn load(&self, kernel: &str) -> Result<LoadedKernel, DriverError> {
        self.inner.bind()?;
        let (index, args_bytes) = self.inner.modules.load(kernel)?;
        Ok(LoadedKernel { id: KernelId(index), args_bytes })
    }

    fn allocate(&self, bytes: usize) -> Result<DevicePtr, DriverError> {
        self.inner.bind()?;
        // SAFETY: the content is any, as the contract says.
        match unsafe { result::malloc_sync(bytes) } {
            Ok(at) => Ok(DevicePtr(at)),
            Err(result::DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let (free, _) = checked("cuMemGetInfo", result::mem_get_info())?;
                Err(DriverError::OutOfMemory { asked: bytes, free })
            }
            Err(e) => checked("cuMemAlloc", Err(e)),
        }
    }

    unsafe fn free(&self, at: DevicePtr, _bytes: usize) {
        if self.inner.bind().is_ok() {
            // SAFETY: the caller's. An error means that an earlier kernel failed, which was reported.
            let _ = unsafe { result::free_sync(at.0) };
        }
    }

    unsafe fn fill(&self, at: DevicePtr, value: u8, bytes: usize) -> Result<(), DriverError> {
        self.inner.bind()?;
        // SAFETY: the caller's.
        checked("cuMemsetD8Async", unsafe { result::memset_d8_async(at.0, value, bytes, self.inner.stream.raw()) })
    }

    unsafe fn upload(&self, to: DevicePtr, data: &[u8]) -> Result<(), DriverError> {
        self.inner.bind()?;
        let mut staging = self.inner.staging.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the caller's.
        unsafe { staging.upload(to, data, &self.inner.stream) }
    }

    unsafe fn download(&self, from: DevicePtr, data: &mut [u8]) -> Result<(), DriverError> {
        self.inner.bind()?;
        // SAFETY: the range is the caller's; the host memory is borrowed until the copy is done, two lines below.
        let copied = unsafe { result::memcpy_dtoh_async(data, from.0, self.inner.stream.raw()) };
        let waited = self.inner.synchronize();
        checked("cuMemcpyDtoHAsync", copied).and(waited)
    }

    unsafe fn snapshot(&self, from: DevicePtr, bytes: usize) -> Result<Box<dyn Snapshot>, DriverError> {
        // SAFETY: the caller's.
        Ok(Box::new(unsafe { outbox::Parcel::send(&self.inner, from, bytes)? }))
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<(), DriverError> {
        // SAFETY: the caller's.
        unsafe { self.inner.launch(launch) }
    }

    unsafe fn record(&self, launches: Vec<Launch>, overlap: bool) -> Result<Box<dyn Recording>, DriverError> {
        if self.inner.synchronous {
            return Ok(Box::new(graph::OneByOne::new(&self.inner, launches)));
        }
        // SAFETY: the caller's, for every replay.
        Ok(Box::new(unsafe {
            graph::Replay::capture(&self.inner, &launches, overlap && self.inner.told.compute_capability >= HOPPER)?
        }))
    }

    unsafe fn trace(&self, launches: &[Launch], times: usize) -> Result<LaunchTimes, DriverError> {
        // SAFETY: the caller's.
        unsafe { graph::trace(&self.inner, launches, times) }
    }

    fn tensor_map(&self, spec: &TensorMapSpec) -> Result<TensorMap, DriverError> {
        spec.check()?;
        self.inner.bind()?;
        tensor_map::encode(spec)
    }

    fn synchronize(&self) -> Result<(), DriverError> {
        self.inner.synchronize()
    }

    fn elapsed(&self, work: &mut dyn FnMut() -> Result<(), DriverError>) -> Result<Duration, DriverError> {
        self.inner.bind()?;
        let (begin, end) = (Event::timing()?, Event::timing()?);
        begin.record(&self.inner.stream)?;
        work()?;
        self.inner.bind()?;
        end.record(&self.inner.stream)?;
        end.synchronize()?;
        begin.until(&end)
    }
}
