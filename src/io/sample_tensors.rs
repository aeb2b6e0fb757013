//! Samples as a safetensors file: `samples`, f32 (N, C, H, W) in [-1, 1] and, if labelled, `labels`, i64 (N).

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use super::atomic::AtomicFile;
use super::pixels::Elements;
use super::safetensors_write::{Header, write_le};
use super::sink::{Ledger, SampleShape, SampleSink};
use super::{FileError, ImageBatch};

/// Writes samples as safetensors batch by batch; only the labels are kept in memory.
#[derive(Debug)]
pub struct TensorSink {
    file: AtomicFile,
    /// Where the labels go; they come first in the file, because their 8-byte elements ask for the stricter alignment.
    labels_at: u64,
    ledger: Ledger,
}

impl TensorSink {
    /// Starts the file at `path`.
    ///
    /// # Errors
    /// [`FileError::Os`]; [`FileError::Unwritable`] if the size overflows.
    pub fn create(path: &Path, shape: SampleShape) -> Result<Self, FileError> {
        let ledger = Ledger::new(path, shape);
        let mut header = Header::new(&[("format", "pt")]);
        let mut label_bytes = 0;
        if shape.labelled {
            header.add("labels", "I64", &[shape.count]).map_err(|p| ledger.unwritable(p))?;
            label_bytes = shape.count as u64 * 8;
        }
        let extents = [shape.count, shape.channels, shape.height, shape.width];
        header.add("samples", "F32", &extents).map_err(|p| ledger.unwritable(p))?;
        let header = header.bytes();
        let labels_at = header.len() as u64;
        let mut file = AtomicFile::create(path)?;
        file.write_all(&header)
            .and_then(|()| file.seek(SeekFrom::Start(labels_at + label_bytes)))
            .map_err(FileError::os("write", path))?;
        Ok(Self { file, labels_at, ledger })
    }
}

impl SampleSink for TensorSink {
    fn push(&mut self, images: ImageBatch<'_>, labels: Option<&[u32]>) -> Result<(), FileError> {
        let Elements::Floats(values) = images.elements else {
            return Err(self.ledger.unwritable("tensors hold floats, bytes came".into()));
        };
        self.ledger.accept(&images, labels)?;
        let result = write_le(&mut self.file, values, f32::to_le_bytes);
        let result = result.map_err(FileError::os("write", self.ledger.path()));
        self.ledger.record(result)
    }

    fn finish(mut self: Box<Self>) -> Result<(), FileError> {
        self.ledger.check_complete()?;
        self.file
            .seek(SeekFrom::Start(self.labels_at))
            .and_then(|_| write_le(&mut self.file, &self.ledger.labels, |label| i64::from(label).to_le_bytes()))
            .map_err(FileError::os("write", self.ledger.path()))?;
        self.file.commit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{TensorData, TensorFile};

    #[test]
    fn samples_and_labels_come_back() {
        for labelled in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("s.safetensors");
            let shape = SampleShape { count: 3, channels: 5, height: 1, width: 3, labelled };
            let values: Vec<f32> = (0..45).map(|i| (i as f32).sin()).collect();
            let labels = [2, 0, 9];
            let mut sink = TensorSink::create(&path, shape).unwrap();
            for (batch, label) in values.chunks(15).zip(labels.chunks(1)) {
                sink.push(ImageBatch::new(batch, 5, 1, 3), labelled.then_some(label)).unwrap();
            }
            Box::new(sink).finish().unwrap();
            let file = TensorFile::open(&path).unwrap();
            assert_eq!(file.get_f32("samples", &[3, 5, 1, 3]).unwrap(), values);
            assert_eq!(file.names().count(), 1 + usize::from(labelled));
            if labelled {
                assert_eq!(file.get("labels").unwrap().data, TensorData::I64(vec![2, 0, 9]));
            }
        }
    }
}
