//! Reading weights and writing results.
//!
//! Two rules hold for everything here. A reader checks each size against the length of the file before it allocates, and answers bad
//! bytes with a [`FileError`], never with a panic. A writer works under a temporary name and renames at the end, so a killed or failed
//! run leaves the previous file (or folder) as it was. Samples, of which there may be more than anybody wants to draw again, stay in a
//! [`partial`] folder beside their destination.

pub mod atomic;
pub mod atomic_folder;
pub mod canvas;
pub mod curves;
mod error;
mod frame;
pub mod gif;
pub mod grid;
mod npz;
pub mod npz_read;
pub mod partial;
mod pickle;
pub mod pixels;
pub mod plot;
mod png_folder;
pub mod provenance;
mod safetensors;
pub mod safetensors_write;
pub mod sample_source;
mod sample_tensors;
pub mod sink;
mod tensor;
mod tensor_file;
mod ticks;
pub mod weights;

pub use canvas::Canvas;
pub use error::FileError;
pub use pixels::ImageBatch;
pub use tensor::{DataView, HostTensor, TensorData, TensorView, check_finite};
pub(crate) use tensor_file::nearest_name;
pub use tensor_file::{TensorFile, TensorInfo};
pub use weights::{Alias, RowBlocks, WeightSource};
