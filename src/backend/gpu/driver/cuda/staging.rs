//! Page-locked memory that uploads pass through, so that the caller's data may change at once and the stream goes on.

use cudarc::driver::{result, sys};

use super::api::{Event, Stream, checked};
use crate::backend::gpu::driver::{DevicePtr, DriverError};

/// Bytes of a page: one is filled while the device reads from the other.
const PAGE: usize = 8 << 20;
/// Alignment of pieces in a page.
const ALIGN: usize = 64;

/// Pieces of this size and more travel beside the work of the device: copies in order cost less for smaller ones.
const LARGE: usize = 256 << 10;

/// Two pages in turn, on the host and on the device.
///
/// A small piece is copied to its place in order with the launches. A large one goes to the device's page by a second stream,
/// while earlier launches run, and from there to its place in order with the launches, which takes microseconds.
pub(super) struct Staging {
    memory: *mut u8,
    device: sys::CUdeviceptr,
    /// For what does not wait for the launches.
    ahead: Stream,
    /// After the last copy that `ahead` was given.
    landed: Event,
    /// After the last copy out of each page.
    read: [Event; 2],
    page: usize,
    used: usize,
}

impl Staging {
    /// Page-locked memory of the current context.
    pub fn new() -> Result<Self, DriverError> {
        let read = [Event::ordering()?, Event::ordering()?];
        let (ahead, landed) = (Stream::new()?, Event::ordering()?);
        // SAFETY: only this structure uses it.
        let device = checked("cuMemAlloc", unsafe { result::malloc_sync(2 * PAGE) })?;
        // SAFETY: as above.
        match checked("cuMemHostAlloc", unsafe { result::malloc_host(2 * PAGE, 0) }) {
            Ok(memory) => Ok(Self { memory: memory.cast(), device, ahead, landed, read, page: 0, used: 0 }),
            Err(error) => {
                // SAFETY: allocated above, and unused.
                let _ = unsafe { result::free_sync(device) };
                Err(error)
            }
        }
    }

    /// Enqueues a copy; `data` is read before this returns.
    ///
    /// # Safety
    /// The range lies in an allocation of the current context.
    pub unsafe fn upload(&mut self, to: DevicePtr, data: &[u8], stream: &Stream) -> Result<(), DriverError> {
        for (piece, offset) in data.chunks(PAGE).zip((0..).step_by(PAGE)) {
            if self.used + piece.len() > PAGE {
                self.turn(stream)?;
            }
            let (at, target) = (self.page * PAGE + self.used, to.offset(offset).0);
            // SAFETY: the piece fits what is left of the page, which no copy reads: those of its last turn are over, and
            // those of this turn read before `used`. That holds for the page of the device, too.
            let staged = unsafe {
                let at = self.memory.add(at);
                at.copy_from_nonoverlapping(piece.as_ptr(), piece.len());
                std::slice::from_raw_parts(at.cast_const(), piece.len())
            };
            if piece.len() < LARGE {
                // SAFETY: the destination is the caller's promise.
                let copied = unsafe { result::memcpy_htod_async(target, staged, stream.raw()) };
                checked("cuMemcpyHtoDAsync", copied)?;
            } else {
                let on_device = self.device + at as u64;
                // SAFETY: the page of the device has the same room as the host's.
                let copied = unsafe { result::memcpy_htod_async(on_device, staged, self.ahead.raw()) };
                checked("cuMemcpyHtoDAsync", copied)?;
                self.landed.record(&self.ahead)?;
                stream.wait(&self.landed)?;
                // SAFETY: the destination is the caller's promise; the source was just written in the order of streams.
                let copied = unsafe { result::memcpy_dtod_async(target, on_device, piece.len(), stream.raw()) };
                checked("cuMemcpyDtoDAsync", copied)?;
            }
            self.used = (self.used + piece.len()).next_multiple_of(ALIGN);
        }
        Ok(())
    }

    /// Goes on in the other page once the device has read it.
    fn turn(&mut self, stream: &Stream) -> Result<(), DriverError> {
        self.read[self.page].record(stream)?;
        (self.page, self.used) = (1 - self.page, 0);
        // An event that was never recorded counts as over.
        self.read[self.page].synchronize()
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`; whoever owns the stream waited for its copies.
        let _ = unsafe { (result::free_host(self.memory.cast()), result::free_sync(self.device)) };
    }
}
