//! Samples as a safetensors file: `samples`, f32 (N, C, H, W) in [-1, 1] and, if labelled, `labels`, i64 (N); the provenance is
//! the entry `warpdiff` of the header.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::provenance::KEY;
use super::safetensors_write::{Header, write_le};
use super::sink::{Format, SampleSet, floats};
use super::{FileError, ImageBatch};

/// Writes samples as safetensors batch by batch.
pub(super) struct TensorFormat {
    file: BufWriter<File>,
    path: PathBuf,
}

impl TensorFormat {
    /// Opens the file at `path`, new or with `done` samples.
    pub fn open(path: &Path, set: &SampleSet, done: usize) -> Result<Self, FileError> {
        let unwritable = |problem| FileError::Unwritable { path: path.to_path_buf(), problem };
        let mut header = Header::new(&[("format", "pt"), (KEY, &set.provenance.to_json())]);
        // They come first because their 8-byte elements ask for the stricter alignment.
        if let Some(labels) = &set.labels {
            header.add("labels", "I64", &[labels.len()]).map_err(unwritable)?;
        }
        let extents = [set.count(), set.channels, set.height, set.width];
        header.add("samples", "F32", &extents).map_err(unwritable)?;
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = BufWriter::with_capacity(1 << 18, file.map_err(FileError::os("create", path))?);
        (|| {
            file.write_all(&header.bytes())?;
            write_le(&mut file, set.labels.as_deref().unwrap_or_default(), |label| i64::from(label).to_le_bytes())?;
            let end = file.stream_position()? + (done * set.image_len()) as u64 * 4;
            if file.get_ref().metadata()?.len() < end && done > 0 {
                let short = "fewer samples than its progress.json counts";
                return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, short));
            }
            file.get_ref().set_len(end)?;
            file.seek(SeekFrom::Start(end))
        })()
        .map_err(FileError::os("write", path))?;
        Ok(Self { file, path: path.to_path_buf() })
    }
}

impl Format for TensorFormat {
    fn append(&mut self, images: ImageBatch<'_>) -> Result<(), FileError> {
        let values = floats(&self.path, &images)?;
        write_le(&mut self.file, values, f32::to_le_bytes).map_err(FileError::os("write", &self.path))
    }

    fn sync(&mut self) -> Result<(), FileError> {
        let result = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        result.map_err(FileError::os("sync", &self.path))
    }

    fn complete(mut self: Box<Self>) -> Result<(), FileError> {
        self.sync()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::partial::Existing;
    use crate::io::provenance::Provenance;
    use crate::io::sink::open_sink;
    use crate::io::{TensorData, TensorFile};

    #[test]
    fn samples_and_labels_come_back() {
        for labelled in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("s.safetensors");
            let provenance = Provenance { settings: serde_json::Map::new(), range: 0..3 };
            let labels = labelled.then(|| vec![2, 0, 9]);
            let set = SampleSet { channels: 5, height: 1, width: 3, labels, provenance: provenance.clone() };
            let values: Vec<f32> = (0..45).map(|i| (i as f32).sin()).collect();
            let mut sink = open_sink(&path, set, Existing::Refuse).unwrap().unwrap();
            for batch in values.chunks(15) {
                sink.push(ImageBatch::new(batch, 5, 1, 3)).unwrap();
            }
            sink.finish().unwrap();
            let file = TensorFile::open(&path).unwrap();
            assert_eq!(Provenance::read(&path).unwrap(), Some(provenance));
            assert_eq!(file.get_f32("samples", &[3, 5, 1, 3]).unwrap(), values);
            assert_eq!(file.names().count(), 1 + usize::from(labelled));
            if labelled {
                assert_eq!(file.get("labels").unwrap().data, TensorData::I64(vec![2, 0, 9]));
            }
        }
    }
}
