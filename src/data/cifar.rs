//! CIFAR-10 in its binary version: records of one label byte and 3 x 32 x 32 pixel bytes, channel planes in the order R, G, B.

use std::fs;
use std::path::{Path, PathBuf};

use super::{DataError, Dataset, Split, check_request};

const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;
const RECORD: usize = 1 + 3 * PLANE;
const CLASSES: [&str; 10] = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// CIFAR-10: RGB images of 32x32 pixels in ten classes, held in memory.
#[derive(Debug)]
pub struct Cifar10 {
    records: Vec<u8>,
}

impl Cifar10 {
    /// Reads batches, one after the other.
    ///
    /// # Errors
    /// [`DataError::Length`] unless a file is a whole number of records, [`DataError::Malformed`] for a label over 9, [`DataError::Os`].
    pub fn open(batches: &[PathBuf]) -> Result<Self, DataError> {
        let mut records = Vec::new();
        for path in batches {
            let batch = fs::read(path).map_err(DataError::os("read", path))?;
            if batch.is_empty() || !batch.len().is_multiple_of(RECORD) {
                let whole = batch.len().div_ceil(RECORD).max(1);
                return Err(DataError::Length {
                    path: path.clone(),
                    what: format!("a CIFAR-10 batch of {whole} records of {RECORD} bytes"),
                    expected: (whole * RECORD) as u64,
                    actual: batch.len() as u64,
                });
            }
            let label = |record: &[u8]| record.first().copied().unwrap_or(0);
            if let Some(bad) = batch.chunks_exact(RECORD).position(|record| label(record) > 9) {
                return Err(DataError::Malformed {
                    path: path.clone(),
                    offset: (bad * RECORD) as u64,
                    problem: format!(
                        "label {} of record {bad} is over 9; is this the binary version of CIFAR-10?",
                        batch[bad * RECORD]
                    ),
                });
            }
            records.extend_from_slice(&batch);
        }
        Ok(Self { records })
    }
}

impl Dataset for Cifar10 {
    fn name(&self) -> &str {
        "cifar10"
    }

    fn len(&self) -> usize {
        self.records.len() / RECORD
    }

    fn channels(&self) -> usize {
        3
    }

    fn height(&self) -> usize {
        SIDE
    }

    fn width(&self) -> usize {
        SIDE
    }

    fn num_classes(&self) -> Option<usize> {
        Some(CLASSES.len())
    }

    fn class_names(&self) -> Vec<String> {
        CLASSES.map(str::to_string).to_vec()
    }

    fn levels(&self) -> u32 {
        256
    }

    fn pixels(&self, index: usize, out: &mut [u8]) -> Result<Option<u32>, DataError> {
        check_request(self, index, out);
        let record = &self.records[index * RECORD..(index + 1) * RECORD];
        let planes = &record[1..];
        for (position, pixel) in out.chunks_exact_mut(3).enumerate() {
            pixel.copy_from_slice(&[planes[position], planes[PLANE + position], planes[2 * PLANE + position]]);
        }
        Ok(Some(u32::from(record[0])))
    }
}

/// The batches of a part in a folder, in the order of their numbers; none if the folder has none.
pub(super) fn find_batches(folder: &Path, split: Split) -> Result<Vec<PathBuf>, DataError> {
    let mut found: Vec<(u32, PathBuf)> = Vec::new();
    for entry in fs::read_dir(folder).map_err(DataError::os("list", folder))? {
        let path = entry.map_err(DataError::os("list", folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let number = match split {
            Split::Train => name.strip_prefix("data_batch_").and_then(|rest| rest.strip_suffix(".bin")?.parse().ok()),
            Split::Test => (name == "test_batch.bin").then_some(0),
        };
        found.extend(number.map(|number| (number, path)));
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{OpenOptions, open};

    fn byte(record: usize, channel: usize, y: usize, x: usize) -> u8 {
        (record * 31 + channel * 101 + y * 7 + x * 3) as u8
    }

    fn batch(records: std::ops::Range<usize>) -> Vec<u8> {
        let mut bytes = Vec::new();
        for record in records {
            bytes.push((record % 10) as u8);
            for (c, y) in (0..3).flat_map(|c| (0..32).map(move |y| (c, y))) {
                bytes.extend((0..32).map(|x| byte(record, c, y, x)));
            }
        }
        bytes
    }

    #[test]
    fn batches_are_joined_by_number_and_planes_interleaved() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("data_batch_2.bin"), batch(2..3)).unwrap();
        fs::write(folder.path().join("data_batch_10.bin"), batch(3..5)).unwrap();
        fs::write(folder.path().join("data_batch_1.bin"), batch(0..2)).unwrap();
        fs::write(folder.path().join("test_batch.bin"), batch(9..10)).unwrap();
        fs::write(folder.path().join("batches.meta.txt"), "airplane").unwrap();
        let name = folder.path().to_str().unwrap();
        let set = open(name, &OpenOptions::default()).unwrap();
        assert_eq!((set.len(), set.channels(), set.height(), set.width(), set.levels()), (5, 3, 32, 32, 256));
        assert_eq!(set.class_names()[3], "cat");
        let mut out = vec![0; 3072];
        for index in 0..5 {
            assert_eq!(set.pixels(index, &mut out).unwrap(), Some(index as u32));
            for (y, x) in [(0, 0), (0, 31), (17, 5), (31, 31)] {
                for c in 0..3 {
                    assert_eq!(out[(y * 32 + x) * 3 + c], byte(index, c, y, x));
                }
            }
        }
        let test = open(name, &OpenOptions { split: Split::Test, ..OpenOptions::default() }).unwrap();
        assert_eq!((test.len(), test.pixels(0, &mut out).unwrap()), (1, Some(9)));
        let one = folder.path().join("data_batch_10.bin");
        assert_eq!(open(one.to_str().unwrap(), &OpenOptions::default()).unwrap().len(), 2);
    }

    #[test]
    fn wrong_lengths_and_labels_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data_batch_1.bin");
        let mut bytes = batch(0..2);
        bytes[RECORD] = 10;
        fs::write(&path, &bytes).unwrap();
        assert!(matches!(Cifar10::open(std::slice::from_ref(&path)), Err(DataError::Malformed { offset: 3073, .. })));
        for (length, whole) in [(0, 3073), (1, 3073), (3074, 6146), (6145, 6146)] {
            fs::write(&path, &batch(0..2)[..length]).unwrap();
            match Cifar10::open(std::slice::from_ref(&path)) {
                Err(DataError::Length { expected, actual, .. }) => {
                    assert_eq!((expected, actual), (whole, length as u64))
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
