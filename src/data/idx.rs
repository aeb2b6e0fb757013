//! IDX files as MNIST, Fashion-MNIST, KMNIST and EMNIST come in: images and labels, plain or gzipped.
//!
//! Layout, big-endian: two zero bytes, the type (8: unsigned byte), the number of dimensions, each dimension as u32, the data.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::{DataError, Dataset, Split, check_request};

/// Deflate cannot pack more than 1032 bytes into one, so a header that asks for more than this is wrong.
const MAX_GZIP_RATIO: u64 = 1040;

/// Grey images of an IDX file with up to 256 classes, held in memory.
#[derive(Debug)]
pub struct IdxDataset {
    name: String,
    height: usize,
    width: usize,
    images: Vec<u8>,
    labels: Option<Vec<u8>>,
    classes: usize,
}

impl IdxDataset {
    /// Reads an image file (three dimensions: count, rows, columns) and, if given, its label file (one dimension).
    ///
    /// # Errors
    /// [`DataError::Malformed`], [`DataError::Length`], [`DataError::Pair`], [`DataError::Os`].
    pub fn open(images: &Path, labels: Option<&Path>) -> Result<Self, DataError> {
        let (dimensions, pixels) = read::<3>(images)?;
        let [count, height, width] = dimensions;
        let label_bytes = labels.map(read::<1>).transpose()?.map(|(_, bytes)| bytes);
        if let (Some(bytes), Some(label_file)) = (&label_bytes, labels)
            && bytes.len() != count
        {
            return Err(DataError::Pair {
                image_file: images.to_path_buf(),
                label_file: label_file.to_path_buf(),
                images: count,
                labels: bytes.len(),
            });
        }
        let highest = label_bytes.as_ref().and_then(|bytes| bytes.iter().max());
        Ok(Self {
            name: images.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            height,
            width,
            images: pixels,
            classes: highest.map_or(0, |&highest| usize::from(highest) + 1),
            labels: label_bytes,
        })
    }
}

impl Dataset for IdxDataset {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> usize {
        self.images.len() / (self.height * self.width)
    }

    fn channels(&self) -> usize {
        1
    }

    fn height(&self) -> usize {
        self.height
    }

    fn width(&self) -> usize {
        self.width
    }

    fn num_classes(&self) -> Option<usize> {
        self.labels.as_ref().map(|_| self.classes)
    }

    fn class_names(&self) -> Vec<String> {
        (0..self.classes).map(|class| class.to_string()).collect()
    }

    fn levels(&self) -> u32 {
        256
    }

    fn pixels(&self, index: usize, out: &mut [u8]) -> Result<Option<u32>, DataError> {
        check_request(self, index, out);
        let length = out.len();
        out.copy_from_slice(&self.images[index * length..(index + 1) * length]);
        Ok(self.labels.as_ref().map(|labels| u32::from(labels[index])))
    }
}

/// A file's bytes, decompressed if it begins as gzip does.
fn open_stream(path: &Path) -> Result<(Box<dyn Read>, u64, bool), DataError> {
    let mut file = File::open(path).map_err(DataError::os("open", path))?;
    let length = file.metadata().map_err(DataError::os("inspect", path))?.len();
    let mut start = Vec::new();
    (&mut file).take(2).read_to_end(&mut start).map_err(DataError::os("read", path))?;
    let zipped = start == [0x1f, 0x8b];
    let whole = BufReader::new(std::io::Cursor::new(start).chain(file));
    let stream: Box<dyn Read> = if zipped { Box::new(MultiGzDecoder::new(whole)) } else { Box::new(whole) };
    Ok((stream, length, zipped))
}

/// Reads an IDX file of unsigned bytes with `D` dimensions.
fn read<const D: usize>(path: &Path) -> Result<([usize; D], Vec<u8>), DataError> {
    let malformed = |offset, problem| DataError::Malformed { path: path.to_path_buf(), offset, problem };
    let (mut stream, length, zipped) = open_stream(path)?;
    let header_length = 4 + 4 * D as u64;
    let mut header = Vec::new();
    stream.by_ref().take(header_length).read_to_end(&mut header).map_err(DataError::os("read", path))?;
    let (words, []) = header.as_chunks::<4>() else {
        return Err(malformed(0, format!("the file ends inside its header of {header_length} bytes")));
    };
    let expected_magic = [0, 0, 8, D as u8];
    let (Some(magic), Some(Ok(extents))) = (words.first(), words.get(1..).map(<[[u8; 4]; D]>::try_from)) else {
        return Err(malformed(0, format!("the file ends inside its header of {header_length} bytes")));
    };
    if *magic != expected_magic {
        return Err(malformed(
            0,
            format!("it begins with {magic:02x?}; IDX bytes with {D} dimensions begin with {expected_magic:02x?}"),
        ));
    }
    let dimensions = extents.map(|word| u32::from_be_bytes(word) as usize);
    if let Some(zero) = dimensions.iter().position(|&extent| extent == 0) {
        return Err(malformed(4 + 4 * zero as u64, format!("dimension {zero} is 0")));
    }
    let wanted = dimensions
        .iter()
        .try_fold(1u64, |bytes, &extent| bytes.checked_mul(extent as u64))
        .and_then(|bytes| bytes.checked_add(header_length))
        .ok_or_else(|| malformed(4, format!("the dimensions {dimensions:?} overflow")))?;
    let wrong_length = |actual| DataError::Length {
        path: path.to_path_buf(),
        what: format!("a header with the dimensions {dimensions:?}"),
        expected: wanted,
        actual,
    };
    let possible = if zipped { length.saturating_mul(MAX_GZIP_RATIO) } else { length };
    if wanted > possible || (!zipped && wanted != length) {
        return Err(wrong_length(possible));
    }
    let wanted_data = wanted - header_length;
    // From a compressed file the buffer grows with what really arrives.
    let mut data = Vec::with_capacity(if zipped { 0 } else { wanted_data as usize });
    stream.take(wanted_data + 1).read_to_end(&mut data).map_err(DataError::os("read", path))?;
    if data.len() as u64 != wanted_data {
        return Err(wrong_length(header_length + data.len() as u64));
    }
    Ok((dimensions, data))
}

/// Whether a file begins like IDX images.
pub(super) fn is_image_file(path: &Path) -> Result<bool, DataError> {
    let mut start = Vec::new();
    let read = open_stream(path)?.0.take(4).read_to_end(&mut start);
    // A file that does not decompress is no IDX file, whatever else it may be.
    Ok(read.is_ok() && start == [0, 0, 8, 3])
}

/// The image file of a part and its label file, by the published names.
pub(super) fn find_pair(folder: &Path, split: Split) -> Option<(PathBuf, Option<PathBuf>)> {
    let prefixes: &[&str] = match split {
        Split::Train => &["train"],
        Split::Test => &["t10k", "test"],
    };
    prefixes
        .iter()
        .flat_map(|prefix| ["-idx3-ubyte", ".idx3-ubyte"].map(|kind| format!("{prefix}-images{kind}")))
        .flat_map(|name| [folder.join(&name), folder.join(name + ".gz")])
        .find(|path| path.is_file())
        .map(|images| {
            let labels = labels_beside(&images);
            (images, labels)
        })
}

/// The label file that belongs to an image file: the same name with `labels` for `images` and `idx1` for `idx3`, zipped or not.
pub(super) fn labels_beside(images: &Path) -> Option<PathBuf> {
    let name = images.file_name()?.to_str()?;
    if !name.contains("images") {
        return None;
    }
    let name = name.replace("images", "labels").replace("idx3", "idx1");
    let plain = name.strip_suffix(".gz").unwrap_or(&name);
    [name.clone(), plain.to_string(), format!("{plain}.gz")]
        .into_iter()
        .map(|name| images.with_file_name(name))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::test_support::{gzip, idx_bytes};
    use crate::data::{OpenOptions, open};
    use std::fs;

    fn pair(folder: &Path, prefix: &str, zipped: bool) -> Vec<u8> {
        let pixels: Vec<u8> = (0..3 * 4 * 5).map(|i| (i * 37 % 256) as u8).collect();
        let images = idx_bytes(&[3, 4, 5], &pixels);
        let labels = idx_bytes(&[3], &[7, 0, 9]);
        let (suffix, images, labels) =
            if zipped { (".gz", gzip(&images), gzip(&labels)) } else { ("", images, labels) };
        fs::write(folder.join(format!("{prefix}-images-idx3-ubyte{suffix}")), images).unwrap();
        fs::write(folder.join(format!("{prefix}-labels-idx1-ubyte{suffix}")), labels).unwrap();
        pixels
    }

    #[test]
    fn images_and_labels_of_both_parts_plain_and_zipped() {
        for (prefix, split) in [("train", Split::Train), ("t10k", Split::Test)] {
            for zipped in [false, true] {
                let folder = tempfile::tempdir().unwrap();
                let pixels = pair(folder.path(), prefix, zipped);
                let options = OpenOptions { split, ..OpenOptions::default() };
                let set = open(folder.path().to_str().unwrap(), &options).unwrap();
                assert_eq!((set.len(), set.channels(), set.height(), set.width()), (3, 1, 4, 5));
                assert_eq!((set.num_classes(), set.levels(), set.class_names().len()), (Some(10), 256, 10));
                let mut out = [0; 20];
                for (index, label) in [7, 0, 9].into_iter().enumerate() {
                    assert_eq!(set.pixels(index, &mut out).unwrap(), Some(label));
                    assert_eq!(out, pixels[index * 20..][..20]);
                }
                let other = OpenOptions { split: split.other(), ..options };
                let text = open(folder.path().to_str().unwrap(), &other).unwrap_err().to_string();
                assert!(text.contains("part asked for"), "{text}");
            }
        }
    }

    #[test]
    fn a_single_file_finds_its_labels_or_has_none() {
        let folder = tempfile::tempdir().unwrap();
        pair(folder.path(), "emnist-train", true);
        let path = folder.path().join("emnist-train-images-idx3-ubyte.gz");
        let path = path.to_str().unwrap();
        assert_eq!(open(path, &OpenOptions::default()).unwrap().num_classes(), Some(10));
        fs::remove_file(folder.path().join("emnist-train-labels-idx1-ubyte.gz")).unwrap();
        let set = open(path, &OpenOptions::default()).unwrap();
        assert_eq!((set.num_classes(), set.pixels(1, &mut [0; 20]).unwrap()), (None, None));
    }

    #[test]
    fn wrong_headers_lengths_and_pairs_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x-images");
        let labels = folder.path().join("x-labels");
        let good = idx_bytes(&[2, 2, 2], &[1; 8]);
        let try_bytes = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            IdxDataset::open(&path, None)
        };
        assert!(try_bytes(&good).is_ok());
        assert!(matches!(try_bytes(&good[..23]), Err(DataError::Length { expected: 24, actual: 23, .. })));
        assert!(matches!(try_bytes(&[&good[..], &[0]].concat()), Err(DataError::Length { actual: 25, .. })));
        assert!(matches!(try_bytes(&gzip(&good[..23])), Err(DataError::Length { actual: 23, .. })));
        assert!(matches!(try_bytes(&good[..9]), Err(DataError::Malformed { offset: 0, .. })));
        assert!(matches!(try_bytes(&idx_bytes(&[2, 0, 2], &[])), Err(DataError::Malformed { offset: 8, .. })));
        assert!(matches!(try_bytes(&idx_bytes(&[8], &[1; 8])), Err(DataError::Malformed { offset: 0, .. })));
        let huge = idx_bytes(&[u32::MAX, u32::MAX, u32::MAX], &[1; 8]);
        assert!(try_bytes(&huge).is_err());
        assert!(try_bytes(&gzip(&idx_bytes(&[u32::MAX, 64, 64], &[1; 8]))).is_err());
        fs::write(&path, &good).unwrap();
        fs::write(&labels, idx_bytes(&[3], &[0, 1, 2])).unwrap();
        assert!(matches!(IdxDataset::open(&path, Some(&labels)), Err(DataError::Pair { images: 2, labels: 3, .. })));
    }
}
