//! Datasets: readers for the usual formats behind one trait, and the order in which training visits them.

use std::fmt;
use std::path::Path;

mod cifar;
mod digits;
mod error;
mod folder;
mod idx;
mod order;
mod picture;
#[cfg(test)]
mod test_support;

pub use cifar::Cifar10;
pub use digits::Digits;
pub use error::{DataError, KINDS};
pub use folder::ImageFolder;
pub use idx::IdxDataset;
pub use order::dataset_index;
pub use picture::{PictureShape, read_picture};

/// A set of images of equal size, with or without classes.
pub trait Dataset: Send + Sync + fmt::Debug {
    /// A short name for logs.
    fn name(&self) -> &str;
    /// Number of images; at least 1.
    fn len(&self) -> usize;
    /// Channels: 1 (grey) or 3 (RGB).
    fn channels(&self) -> usize;
    /// Rows.
    fn height(&self) -> usize;
    /// Columns.
    fn width(&self) -> usize;
    /// Number of classes, `None` if the images have none. Labels are below it.
    fn num_classes(&self) -> Option<usize>;
    /// The classes' names, as many as there are classes; empty if there are none.
    fn class_names(&self) -> Vec<String>;
    /// Number of values a pixel can have: they are `0..levels`. 256 for photographs, 17 for the digits.
    fn levels(&self) -> u32;
    /// Writes image `index` to `out` (NHWC, `image_len` bytes) and returns its class.
    ///
    /// # Errors
    /// [`DataError`] if the image has to be read from a file and cannot be.
    ///
    /// # Panics
    /// If `index >= len` or `out` has another length than `image_len`.
    fn pixels(&self, index: usize, out: &mut [u8]) -> Result<Option<u32>, DataError>;

    /// Bytes in one image: height * width * channels.
    fn image_len(&self) -> usize {
        self.height() * self.width() * self.channels()
    }

    /// Always false: a set without images is refused when it is opened.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A pixel as the models see it: x = 2 v / (levels - 1) - 1, so that `0..levels` covers [-1, 1].
///
/// ```
/// assert_eq!(warpdiff::data::pixel_to_value(16, 17), 1.0);
/// assert_eq!(warpdiff::data::pixel_to_value(0, 256), -1.0);
/// ```
pub fn pixel_to_value(pixel: u8, levels: u32) -> f32 {
    (2.0 * f64::from(pixel) / f64::from(levels.max(2) - 1) - 1.0) as f32
}

/// Which part of a set that comes in two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Split {
    /// The part to learn from.
    #[default]
    Train,
    /// The part held out.
    Test,
}

/// How to read a dataset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// For IDX and CIFAR-10 folders: which part.
    pub split: Split,
    /// For image folders: scale the shorter side to fit and cut the centre to this (height, width).
    pub size: Option<(usize, usize)>,
    /// For image folders: convert to 1 (grey) or 3 (RGB) channels.
    pub channels: Option<usize>,
}

/// Opens a dataset: `digits`, or a file or folder whose kind is recognised; [`KINDS`] lists what is understood.
///
/// # Errors
/// [`DataError::Unknown`] if it is none; otherwise what the reader of that kind found.
///
/// ```
/// use warpdiff::data::{Dataset, OpenOptions, open};
/// let digits = open("digits", &OpenOptions::default())?;
/// assert_eq!((digits.len(), digits.height(), digits.num_classes()), (1797, 8, Some(10)));
/// # Ok::<(), warpdiff::data::DataError>(())
/// ```
pub fn open(name: &str, options: &OpenOptions) -> Result<Box<dyn Dataset>, DataError> {
    if name == "digits" {
        return Ok(Box::new(Digits::load()?));
    }
    let path = Path::new(name);
    let unknown = |problem: &str| DataError::Unknown { name: name.to_string(), problem: problem.to_string() };
    if path.is_dir() {
        if let Some((images, labels)) = idx::find_pair(path, options.split) {
            return Ok(Box::new(IdxDataset::open(&images, labels.as_deref())?));
        }
        let batches = cifar::find_batches(path, options.split)?;
        if !batches.is_empty() {
            return Ok(Box::new(Cifar10::open(&batches)?));
        }
        if let Some(other) = idx::find_pair(path, options.split.other()).map(|pair| pair.0) {
            return Err(unknown(&format!("it has {}, but not the part asked for", other.display())));
        }
        return Ok(Box::new(ImageFolder::open(path, options)?));
    }
    if !path.is_file() {
        return Err(unknown("there is no such file or folder"));
    }
    if idx::is_image_file(path)? {
        let labels = idx::labels_beside(path);
        return Ok(Box::new(IdxDataset::open(path, labels.as_deref())?));
    }
    if path.extension().is_some_and(|extension| extension == "bin") {
        return Ok(Box::new(Cifar10::open(&[path.to_path_buf()])?));
    }
    Err(unknown("the file is neither IDX images nor a CIFAR-10 batch"))
}

impl Split {
    fn other(self) -> Self {
        match self {
            Split::Train => Split::Test,
            Split::Test => Split::Train,
        }
    }
}

/// Checks the arguments of [`Dataset::pixels`].
fn check_request(set: &dyn Dataset, index: usize, out: &[u8]) {
    assert!(index < set.len(), "image {index} of {}", set.len());
    assert_eq!(out.len(), set.image_len(), "length of the buffer for an image");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_cover_minus_one_to_one() {
        for levels in [2, 17, 256] {
            for pixel in 0..levels {
                let value = pixel_to_value(pixel as u8, levels);
                let exact = 2.0 * f64::from(pixel) / f64::from(levels - 1) - 1.0;
                assert!((f64::from(value) - exact).abs() <= 3e-8);
                assert_eq!(pixel_to_value((levels - 1 - pixel) as u8, levels), -value);
            }
        }
        assert_eq!(pixel_to_value(8, 17), 0.0);
    }

    #[test]
    fn what_is_no_dataset_is_told_what_would_be() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("notes.txt");
        std::fs::write(&file, "text").unwrap();
        let empty = folder.path().join("empty");
        std::fs::create_dir(&empty).unwrap();
        for name in [file.to_str().unwrap(), "/nonexistent/x", empty.to_str().unwrap()] {
            let text = open(name, &OpenOptions::default()).unwrap_err().to_string();
            assert!(text.contains("train-images-idx3-ubyte") && text.contains(name), "{text}");
        }
    }
}
