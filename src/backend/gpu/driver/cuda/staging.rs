//! Page-locked memory that uploads pass through, so that the caller's data may change at once and the stream goes on.

use cudarc::driver::result;

use super::api::{Event, Stream, checked};
use crate::backend::gpu::driver::{DevicePtr, DriverError};

/// Bytes of a page: one is filled while the device reads from the other.
const PAGE: usize = 8 << 20;
/// Alignment of pieces in a page.
const ALIGN: usize = 64;

/// Two pages in turn.
pub(super) struct Staging {
    memory: *mut u8,
    /// After the last copy out of each page.
    read: [Event; 2],
    page: usize,
    used: usize,
}

impl Staging {
    /// Page-locked memory of the current context.
    pub fn new() -> Result<Self, DriverError> {
        let read = [Event::ordering()?, Event::ordering()?];
        // SAFETY: only this structure uses it.
        let memory = checked("cuMemHostAlloc", unsafe { result::malloc_host(2 * PAGE, 0) })?;
        Ok(Self { memory: memory.cast(), read, page: 0, used: 0 })
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
            // SAFETY: the piece fits what is left of the page, which no copy reads: those of its last turn are over, and
            // those of this turn read before `used`. The destination is the caller's promise.
            let copied = unsafe {
                let at = self.memory.add(self.page * PAGE + self.used);
                at.copy_from_nonoverlapping(piece.as_ptr(), piece.len());
                let staged = std::slice::from_raw_parts(at.cast_const(), piece.len());
                result::memcpy_htod_async(to.offset(offset).0, staged, stream.raw())
            };
            checked("cuMemcpyHtoDAsync", copied)?;
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
        let _ = unsafe { result::free_host(self.memory.cast()) };
    }
}
