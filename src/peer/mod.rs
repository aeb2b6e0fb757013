//! NVIDIA's libraries as peers of the kernels: cuDNN for convolutions, cuBLASLt for matrix products.
//!
//! Nothing else needs them. They are loaded when a [`Peer`] is opened, work in the context of our driver, on its stream and
//! on memory that it allocated, and are recorded and replayed as our launches are. Of all the algorithms that a library
//! proposes, each is tried and the fastest is kept.

mod cublaslt;
mod cudnn;
mod library;
mod search;

use std::ffi::c_void;
use std::path::Path;
use std::sync::Arc;

use thiserror::Error;

use crate::backend::gpu::driver::cuda::Cuda;
use crate::backend::gpu::driver::{DevicePtr, DriverError};
use crate::bench::{Pass, Product};

pub use search::PeerProduct;

/// Workspace that an algorithm may have.
pub const WORKSPACE: usize = 1 << 30;

/// Why a peer cannot be measured.
#[derive(Debug, Error)]
pub enum PeerError {
    /// The library is not there.
    #[error(
        "{file} was not found: pip install {package}, or put its folder into LD_LIBRARY_PATH, or name the Python \
         site-packages that holds it with --peer-path ({reason})"
    )]
    Missing {
        /// File name of the library.
        file: &'static str,
        /// What installs it.
        package: &'static str,
        /// What the loader says.
        reason: String,
    },
    /// The library lacks a function.
    #[error("{file} has no function {function}; a newer version is needed")]
    Function {
        /// File name of the library.
        file: &'static str,
        /// The function.
        function: &'static str,
    },
    /// A call failed.
    #[error("{call}: {reason}")]
    Call {
        /// The function of the library, and what it was called for.
        call: String,
        /// What the library says.
        reason: String,
    },
    /// The library does not do that.
    #[error("{library} does not compute {what}")]
    Unsupported {
        /// Name of the library.
        library: &'static str,
        /// What was asked for.
        what: String,
    },
    /// None of its algorithms ran.
    #[error("none of {library}'s {proposed} algorithms for {what} runs: {reason}")]
    NoAlgorithm {
        /// Name of the library.
        library: &'static str,
        /// What was asked for.
        what: String,
        /// How many algorithms it proposed.
        proposed: usize,
        /// Why the last one did not run.
        reason: String,
    },
    /// Our driver failed.
    #[error(transparent)]
    Driver(#[from] DriverError),
}

/// Which library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerKind {
    /// Convolutions.
    Cudnn,
    /// Matrix products.
    CublasLt,
}

/// Element type of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResultType {
    /// 16 bits.
    Bf16,
    /// 32 bits.
    F32,
}

impl ResultType {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }
}

/// A library that is loaded and ready.
pub struct Peer {
    library: Box<dyn Algorithms>,
    cuda: Arc<Cuda>,
}

impl Peer {
    /// Loads a library; `folder` is a folder with its file, or a Python site-packages folder.
    ///
    /// # Errors
    /// [`PeerError::Missing`], or what the library says.
    pub fn open(kind: PeerKind, cuda: &Arc<Cuda>, folder: Option<&Path>) -> Result<Self, PeerError> {
        let library: Box<dyn Algorithms> = match kind {
            PeerKind::Cudnn => Box::new(cuda.call(|_| cudnn::Cudnn::open(folder))??),
            PeerKind::CublasLt => Box::new(cuda.call(|_| cublaslt::CublasLt::open(folder))??),
        };
        Ok(Self { library, cuda: Arc::clone(cuda) })
    }

    /// Name of the library.
    pub fn name(&self) -> &'static str {
        self.library.name()
    }

    /// Its version.
    pub fn version(&self) -> String {
        self.library.version()
    }
}

impl PeerKind {
    /// Checks that the library is there, without a device.
    ///
    /// # Errors
    /// [`PeerError::Missing`] or [`PeerError::Function`].
    pub fn find(self, folder: Option<&Path>) -> Result<(), PeerError> {
        match self {
            Self::Cudnn => cudnn::find(folder),
            Self::CublasLt => cublaslt::find(folder),
        }
    }
}

/// Proposes ways to compute a product.
trait Algorithms {
    fn name(&self) -> &'static str;

    fn version(&self) -> String;

    /// Ways to compute a product from bf16 operands with f32 sums, the most promising first.
    fn propose(&self, product: &Product, pass: Pass, result: ResultType) -> Result<Vec<Box<dyn Algorithm>>, PeerError>;
}

/// One way to compute a product.
trait Algorithm {
    /// For reports.
    fn name(&self) -> String;

    /// Compiles or loads what it needs; returns the bytes of its workspace.
    fn prepare(&mut self) -> Result<usize, PeerError>;

    /// Enqueues one run.
    ///
    /// # Safety
    /// It was prepared, the addresses are those of operands, result and workspace of the lengths that the product has, the
    /// stream belongs to the current context, and all of it stays until the run is done.
    unsafe fn enqueue(&mut self, call: &Call, stream: *mut c_void) -> Result<(), PeerError>;
}

/// Operands in the order of [`crate::graph::Op`], result and workspace of one run.
#[derive(Clone, Copy, Debug)]
struct Call {
    operands: [DevicePtr; 2],
    result: DevicePtr,
    workspace: DevicePtr,
    workspace_bytes: usize,
}
