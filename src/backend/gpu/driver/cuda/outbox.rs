//! Copies to the host beside the work of the device.
//!
//! A snapshot is copied twice: on the device, in order with the launches, which takes microseconds; from there to page-locked
//! memory by a second stream, while the first goes on. Memory of both sides is used again and again, so that a loop of
//! snapshots allocates nothing after its first turns.

use std::sync::{Arc, PoisonError};

use cudarc::driver::{result, sys};

use super::Inner;
use super::api::{Event, Stream, checked};
use crate::backend::gpu::driver::{DevicePtr, DriverError, Snapshot};

/// The second stream, and the parcels that nobody uses.
pub(super) struct Outbox {
    idle: Vec<Memory>,
    stream: Stream,
}

impl Outbox {
    /// An empty outbox of the current context.
    pub fn new() -> Result<Self, DriverError> {
        Ok(Self { idle: Vec::new(), stream: Stream::new()? })
    }

    /// Idle memory of at least `bytes`, the smallest that there is, or new memory; the context is current.
    fn take(&mut self, bytes: usize) -> Result<Memory, DriverError> {
        let fits = |(_, m): &(usize, &Memory)| m.bytes >= bytes;
        let smallest = self.idle.iter().enumerate().filter(fits).min_by_key(|(_, m)| m.bytes).map(|(i, _)| i);
        match smallest {
            Some(i) => Ok(self.idle.swap_remove(i)),
            None => Memory::new(bytes),
        }
    }
}

/// Memory of one snapshot, on both sides.
struct Memory {
    device: sys::CUdeviceptr,
    host: *mut u8,
    bytes: usize,
    /// After the copy on the device.
    taken: Event,
    /// After the copy to the host.
    arrived: Event,
}

// SAFETY: the host memory is page-locked for every thread and belongs to this structure alone.
unsafe impl Send for Memory {}

impl Memory {
    fn new(bytes: usize) -> Result<Self, DriverError> {
        let (taken, arrived) = (Event::ordering()?, Event::ordering()?);
        let bytes = bytes.max(1);
        // SAFETY: only this structure uses it.
        let host: *mut u8 = checked("cuMemHostAlloc", unsafe { result::malloc_host(bytes, 0) })?.cast();
        // SAFETY: just allocated, with room for `bytes`; slices need initialised memory.
        unsafe { host.write_bytes(0, bytes) };
        // SAFETY: only this structure uses it.
        match unsafe { result::malloc_sync(bytes) } {
            Ok(device) => Ok(Self { device, host, bytes, taken, arrived }),
            Err(error) => {
                // SAFETY: allocated above, and unused.
                let _ = unsafe { result::free_host(host.cast()) };
                checked("cuMemAlloc", Err(error))
            }
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`; whoever copied waited for the copy, or the device failed.
        let _ = unsafe { (result::free_host(self.host.cast()), result::free_sync(self.device)) };
    }
}

/// A snapshot on its way.
pub(super) struct Parcel {
    /// Gone once it is back in the outbox.
    memory: Option<Memory>,
    bytes: usize,
    inner: Arc<Inner>,
}

impl Parcel {
    /// Sends a range of device memory.
    ///
    /// # Safety
    /// The range lies in an allocation of the context.
    pub unsafe fn send(inner: &Arc<Inner>, from: DevicePtr, bytes: usize) -> Result<Self, DriverError> {
        inner.bind()?;
        let mut outbox = inner.outbox.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = outbox.take(bytes)?;
        // SAFETY: the source is the caller's promise. The memory has room for the bytes, and no copy uses it: it is new, or
        // its last copy was waited for.
        let copied = unsafe { result::memcpy_dtod_async(memory.device, from.0, bytes, inner.stream.raw()) };
        checked("cuMemcpyDtoDAsync", copied)?;
        memory.taken.record(&inner.stream)?;
        outbox.stream.wait(&memory.taken)?;
        // SAFETY: the host memory has room for the bytes and is not read before `arrived`.
        let copied = unsafe {
            let host = std::slice::from_raw_parts_mut(memory.host, bytes);
            result::memcpy_dtoh_async(host, memory.device, outbox.stream.raw())
        };
        checked("cuMemcpyDtoHAsync", copied)?;
        memory.arrived.record(&outbox.stream)?;
        drop(outbox);
        Ok(Self { memory: Some(memory), bytes, inner: Arc::clone(inner) })
    }
}

impl Snapshot for Parcel {
    fn wait(&mut self) -> Result<&[u8], DriverError> {
        self.inner.bind()?;
        let Some(memory) = &self.memory else { return Ok(&[]) };
        memory.arrived.synchronize()?;
        // SAFETY: the copy that wrote these bytes is over, and nothing writes them while they are borrowed.
        Ok(unsafe { std::slice::from_raw_parts(memory.host.cast_const(), self.bytes) })
    }

    fn arrived(&self) -> bool {
        // An error is for `wait` to report.
        self.inner.bind().is_err() || self.memory.as_ref().is_none_or(|m| m.arrived.is_over())
    }
}

impl Drop for Parcel {
    fn drop(&mut self) {
        // Nobody may get the memory while it is written to; an error was reported by the call that met it.
        let over = self.inner.bind().and_then(|()| self.memory.as_ref().map_or(Ok(()), |m| m.arrived.synchronize()));
        if let (Ok(()), Some(memory)) = (over, self.memory.take()) {
            self.inner.outbox.lock().unwrap_or_else(PoisonError::into_inner).idle.push(memory);
        }
    }
}
