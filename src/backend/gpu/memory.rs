//! Device memory with an owner and bounds.

use std::sync::Arc;

use super::driver::{DevicePtr, Driver, DriverError, Snapshot};

/// An allocation, freed when dropped.
pub(crate) struct DeviceBuffer {
    driver: Arc<dyn Driver>,
    at: DevicePtr,
    bytes: usize,
}

impl DeviceBuffer {
    /// Memory with every byte set to `value`; an empty buffer allocates nothing.
    pub fn filled(driver: &Arc<dyn Driver>, bytes: usize, value: u8) -> Result<Self, DriverError> {
        let at = if bytes == 0 { DevicePtr::NULL } else { driver.allocate(bytes)? };
        let buffer = Self { driver: Arc::clone(driver), at, bytes };
        if bytes > 0 {
            // SAFETY: the range is the whole allocation.
            unsafe { driver.fill(at, value, bytes)? };
        }
        Ok(buffer)
    }

    /// Its address.
    pub fn ptr(&self) -> DevicePtr {
        self.at
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Copies `data` to byte `offset`.
    pub fn write(&self, offset: usize, data: &[u8]) -> Result<(), DriverError> {
        assert!(offset + data.len() <= self.bytes, "a write past the end of a device buffer");
        if data.is_empty() {
            return Ok(());
        }
        // SAFETY: the range lies in the allocation, as just checked.
        unsafe { self.driver.upload(self.at.offset(offset), data) }
    }

    /// Copies `pattern` to byte `offset` over and over until `bytes` bytes are written.
    pub fn write_repeated(&self, offset: usize, bytes: usize, pattern: &[u8]) -> Result<(), DriverError> {
        let starts = (0..bytes).step_by(pattern.len().max(1));
        starts.into_iter().try_for_each(|at| self.write(offset + at, &pattern[..pattern.len().min(bytes - at)]))
    }

    /// Fills `data` from byte `offset`.
    pub fn read(&self, offset: usize, data: &mut [u8]) -> Result<(), DriverError> {
        assert!(offset + data.len() <= self.bytes, "a read past the end of a device buffer");
        if data.is_empty() {
            return Ok(());
        }
        // SAFETY: the range lies in the allocation, as just checked.
        unsafe { self.driver.download(self.at.offset(offset), data) }
    }

    /// Sends `bytes` from byte `offset` to the host, as they are after all work so far.
    pub fn snapshot(&self, offset: usize, bytes: usize) -> Result<Box<dyn Snapshot>, DriverError> {
        assert!(offset + bytes <= self.bytes, "a read past the end of a device buffer");
        // SAFETY: the range lies in the allocation, as just checked.
        unsafe { self.driver.snapshot(self.at.offset(offset), bytes) }
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // SAFETY: allocated in `filled` with this length; whoever enqueued work on it also owns it and drops it last.
            unsafe { self.driver.free(self.at, self.bytes) };
        }
    }
}
