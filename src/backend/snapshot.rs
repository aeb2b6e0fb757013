//! Results that travel to the host while the device goes on: what [`Executable::snapshot`](super::Executable::snapshot)
//! returns.

use half::bf16;

use super::BackendError;

/// Bytes that are on their way from a device.
pub trait Arriving: Send {
    /// The bytes, once they are there.
    ///
    /// # Errors
    /// If the device failed, in a run before the snapshot was taken or since.
    fn wait(&mut self) -> Result<&[u8], BackendError>;

    /// Whether [`Arriving::wait`] would return at once.
    fn arrived(&self) -> bool;
}

impl Arriving for Vec<u8> {
    fn wait(&mut self) -> Result<&[u8], BackendError> {
        Ok(self)
    }

    fn arrived(&self) -> bool {
        true
    }
}

/// How the elements of a snapshot are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Grey levels.
    Byte,
    /// Activations in bf16.
    Bf16,
    /// f32, and integers of 32 bits.
    Word,
}

/// A value as it was when the snapshot was taken, whatever runs after it. Its memory is used again once it is dropped.
pub struct Snapshot {
    source: Box<dyn Arriving>,
    stored: Stored,
}

impl Snapshot {
    /// A snapshot whose bytes come from `source`, for a backend that makes its own.
    pub fn new(source: Box<dyn Arriving>, stored: Stored) -> Self {
        Self { source, stored }
    }

    /// Whether the value can be read without waiting.
    pub fn arrived(&self) -> bool {
        self.source.arrived()
    }

    /// Waits for a value of floating-point type.
    ///
    /// # Errors
    /// As [`Arriving::wait`].
    ///
    /// # Panics
    /// If the value holds bytes.
    pub fn floats(&mut self) -> Result<Vec<f32>, BackendError> {
        let bytes = self.source.wait()?;
        Ok(match self.stored {
            Stored::Word => bytemuck::pod_collect_to_vec(bytes),
            Stored::Bf16 => bytemuck::pod_collect_to_vec::<u8, bf16>(bytes).into_iter().map(bf16::to_f32).collect(),
            Stored::Byte => panic!("a snapshot of bytes was read as floats"),
        })
    }

    /// Waits for the elements as they are stored: of a picture its grey levels.
    ///
    /// # Errors
    /// As [`Arriving::wait`].
    pub fn bytes(&mut self) -> Result<&[u8], BackendError> {
        self.source.wait()
    }
}
