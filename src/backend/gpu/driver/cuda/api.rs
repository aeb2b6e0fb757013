//! Context, streams, events and errors of the driver API, with owners.

use std::time::Duration;

use cudarc::driver::{result, sys};

use crate::backend::gpu::driver::DriverError;

/// The driver's words for an error, with its name.
pub(super) fn reason(error: result::DriverError) -> String {
    let text = |s: Result<&std::ffi::CStr, _>| s.ok().map(|s| s.to_string_lossy().into_owned());
    let name = text(error.error_name()).unwrap_or_else(|| format!("error {}", error.0 as u32));
    match text(error.error_string()) {
        Some(words) => format!("{words} ({name})"),
        None => name,
    }
}

/// Whether a kernel that ran earlier is to blame.
fn from_a_kernel(code: sys::CUresult) -> bool {
    use sys::CUresult as C;
    matches!(
        code,
        C::CUDA_ERROR_ILLEGAL_ADDRESS
            | C::CUDA_ERROR_LAUNCH_TIMEOUT
            | C::CUDA_ERROR_ASSERT
            | C::CUDA_ERROR_HARDWARE_STACK_ERROR
            | C::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | C::CUDA_ERROR_MISALIGNED_ADDRESS
            | C::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | C::CUDA_ERROR_INVALID_PC
            | C::CUDA_ERROR_LAUNCH_FAILED
    )
}

/// The result of a call by name.
pub(super) fn checked<T>(call: &'static str, result: Result<T, result::DriverError>) -> Result<T, DriverError> {
    result.map_err(|e| {
        let hint = if from_a_kernel(e.0) { "; WARPDIFF_SYNC=1 in the environment finds out which kernel" } else { "" };
        DriverError::Call { call, reason: reason(e) + hint }
    })
}

/// The primary context of a device, retained.
pub(super) struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
}

impl Context {
    pub fn primary(device: sys::CUdevice) -> Result<Self, DriverError> {
        // SAFETY: the device was found by the driver.
        let context = checked("cuDevicePrimaryCtxRetain", unsafe { result::primary_ctx::retain(device) })?;
        Ok(Self { device, context })
    }

    /// Makes it the context of the calling thread.
    pub fn bind(&self) -> Result<(), DriverError> {
        // SAFETY: retained until `self` is dropped.
        checked("cuCtxSetCurrent", unsafe { result::ctx::set_current(self.context) })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained by `primary`, and its owner drops what was made in it first.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// A stream of the current context that does not wait for the default stream.
pub(super) struct Stream(sys::CUstream);

impl Stream {
    pub fn new() -> Result<Self, DriverError> {
        checked("cuStreamCreate", result::stream::create(result::stream::StreamKind::NonBlocking)).map(Self)
    }

    pub fn raw(&self) -> sys::CUstream {
        self.0
    }

    /// What is enqueued from now on waits for an event that was recorded.
    pub fn wait(&self, event: &Event) -> Result<(), DriverError> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both are alive.
        checked("cuStreamWaitEvent", unsafe { result::stream::wait_event(self.0, event.0, flags) })
    }

    pub fn synchronize(&self) -> Result<(), DriverError> {
        // SAFETY: the stream is alive.
        checked("cuStreamSynchronize", unsafe { result::stream::synchronize(self.0) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made by `new`; work that is under way goes on. An error was reported by the work that met it.
        let _ = unsafe { result::stream::destroy(self.0) };
    }
}

/// A point in a stream.
pub(super) struct Event(sys::CUevent);

impl Event {
    /// An event that knows its time.
    pub fn timing() -> Result<Self, DriverError> {
        Self::with(sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    /// An event that can only be waited for.
    pub fn ordering() -> Result<Self, DriverError> {
        Self::with(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    fn with(flags: sys::CUevent_flags) -> Result<Self, DriverError> {
        checked("cuEventCreate", result::event::create(flags)).map(Self)
    }

    pub fn record(&self, stream: &Stream) -> Result<(), DriverError> {
        // SAFETY: both are alive.
        checked("cuEventRecord", unsafe { result::event::record(self.0, stream.raw()) })
    }

    /// Records into a stream that is captured: the graph then records the event at every replay.
    pub fn record_in_graph(&self, stream: &Stream) -> Result<(), DriverError> {
        let external = sys::CUevent_record_flags::CU_EVENT_RECORD_EXTERNAL as u32;
        // SAFETY: both are alive.
        let code = unsafe { sys::cuEventRecordWithFlags(self.0, stream.raw(), external) };
        checked("cuEventRecordWithFlags", code.result())
    }

    pub fn synchronize(&self) -> Result<(), DriverError> {
        // SAFETY: the event is alive.
        checked("cuEventSynchronize", unsafe { result::event::synchronize(self.0) })
    }

    /// Whether what it was recorded behind is done; a failure counts as done.
    pub fn is_over(&self) -> bool {
        // SAFETY: the event is alive.
        unsafe { sys::cuEventQuery(self.0) != sys::CUresult::CUDA_ERROR_NOT_READY }
    }

    /// Time from this event to a later one; both were recorded and are over.
    pub fn until(&self, end: &Self) -> Result<Duration, DriverError> {
        // Under this name in every driver; the one of CUDA 13's header is missing from drivers before 12.8.
        type ElapsedTime = unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> sys::CUresult;
        let call = "cuEventElapsedTime";
        // SAFETY: the type is that of the function.
        let function = unsafe { sys::culib().get::<ElapsedTime>(b"cuEventElapsedTime\0") };
        let function = function.map_err(|e| DriverError::Call { call, reason: e.to_string() })?;
        let mut ms = 0.0f32;
        // SAFETY: both events are alive, and `ms` is written to.
        checked(call, unsafe { function(&raw mut ms, self.0, end.0) }.result())?;
        Ok(Duration::from_secs_f64(f64::from(ms.max(0.0)) / 1e3))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `with`; the driver keeps it until work that waits for it is done.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}
