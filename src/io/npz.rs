//! `.npz` for evaluation scripts: `arr_0`, uint8 NHWC, for class-conditional samples `arr_1`, int64 (N), and
//! `warpdiff.json`, their provenance, which `numpy.load` gives as bytes.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::provenance::FILE;
use super::safetensors_write::write_le;
use super::sink::{Format, SampleSet};
use super::{FileError, ImageBatch};

/// Writes samples as `.npz` batch by batch, uncompressed as `numpy.savez` does.
pub(super) struct NpzFormat {
    /// Before the archive, so that it is dropped first.
    mute: Mute,
    archive: ZipWriter<ArchiveFile>,
    /// The same file, to sync it.
    file: File,
    path: PathBuf,
    labels: Option<Vec<u32>>,
    provenance: String,
}

impl NpzFormat {
    /// Opens the archive at `path`, new or with `done` samples.
    ///
    /// The checksum of what is there is computed anew, which costs one pass of reading.
    pub fn open(path: &Path, set: &SampleSet, done: usize) -> Result<Self, FileError> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(FileError::os("create", path))?;
        let clone = || file.try_clone().map_err(FileError::os("open", path));
        let mute = Mute(Arc::new(AtomicBool::new(false)));
        let shape = [set.count(), set.height, set.width, set.channels];
        let mut archive = ZipWriter::new(ArchiveFile::new(clone()?, Arc::clone(&mute.0)));
        let replayed = (|| {
            start_array(&mut archive, "arr_0.npy", "|u1", &shape)?;
            let start = archive.get_ref().map_or(0, |file| file.position);
            let length = (done * set.image_len()) as u64;
            mute.set(true);
            let mut there = File::open(path)?;
            there.seek(SeekFrom::Start(start))?;
            if io::copy(&mut there.take(length), &mut archive)? != length {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "fewer samples than its progress.json counts",
                ));
            }
            mute.set(false);
            file.set_len(start + length)
        })();
        replayed.map_err(FileError::os("continue", path))?;
        Ok(Self {
            mute,
            archive,
            file,
            path: path.to_path_buf(),
            labels: set.labels.clone(),
            provenance: set.provenance.to_json(),
        })
    }
}

impl Format for NpzFormat {
    fn append(&mut self, images: ImageBatch<'_>) -> Result<(), FileError> {
        self.archive.write_all(&images.to_bytes()).map_err(FileError::os("write", &self.path))
    }

    fn sync(&mut self) -> Result<(), FileError> {
        self.file.sync_data().map_err(FileError::os("sync", &self.path))
    }

    fn complete(self: Box<Self>) -> Result<(), FileError> {
        let Self { mute, mut archive, file, path, labels, provenance } = *self;
        let result = (|| {
            if let Some(labels) = &labels {
                start_array(&mut archive, "arr_1.npy", "<i8", &[labels.len()])?;
                write_le(&mut archive, labels, |label| i64::from(label).to_le_bytes())?;
            }
            archive.start_file(FILE, stored())?;
            archive.write_all(provenance.as_bytes())?;
            archive.finish()?;
            file.sync_all()
        })();
        drop(mute);
        result.map_err(FileError::os("write", &path))
    }
}

/// Mutes an archive's file when it is dropped: a dropped `ZipWriter` completes its archive, which an interrupted run must not, and
/// prints to stderr if it cannot.
struct Mute(Arc<AtomicBool>);

impl Mute {
    fn set(&self, muted: bool) {
        self.0.store(muted, Ordering::Relaxed);
    }
}

impl Drop for Mute {
    fn drop(&mut self) {
        self.set(true);
    }
}

/// The file below the archive. While muted, and after a failed operation, it only pretends to write.
struct ArchiveFile {
    file: File,
    muted: Arc<AtomicBool>,
    failed: bool,
    /// Where the archive believes to be.
    position: u64,
    /// Where the file is.
    at: u64,
}

impl ArchiveFile {
    fn new(file: File, muted: Arc<AtomicBool>) -> Self {
        Self { file, muted, failed: false, position: 0, at: 0 }
    }
}

impl Write for ArchiveFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut written = bytes.len();
        if !self.failed && !self.muted.load(Ordering::Relaxed) {
            let result = if self.at == self.position { Ok(0) } else { self.file.seek(SeekFrom::Start(self.position)) };
            let result = result.and_then(|_| self.file.write(bytes));
            self.failed = result.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::Interrupted);
            written = result?;
            self.at = self.position + written as u64;
        }
        self.position += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for ArchiveFile {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.position = match position {
            SeekFrom::Start(at) => at,
            SeekFrom::Current(by) => self.position.saturating_add_signed(by),
            SeekFrom::End(by) => self.file.metadata()?.len().saturating_add_signed(by),
        };
        Ok(self.position)
    }
}

/// Stored, with Zip64 sizes throughout: 50,000 RGB images of 256 x 256 pixels are over 4 GiB.
fn stored() -> SimpleFileOptions {
    SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(true)
}

/// Starts an archive member and writes its npy header (format version 1.0).
fn start_array(archive: &mut ZipWriter<ArchiveFile>, name: &str, dtype: &str, shape: &[usize]) -> io::Result<()> {
    archive.start_file(name, stored())?;
    let mut extents = shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    if shape.len() == 1 {
        // Python's tuple of one.
        extents.push(',');
    }
    let dictionary = format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({extents}), }}");
    // Magic (6), version (2), length (2), dictionary, spaces, newline: a multiple of 64 bytes.
    let length = (10 + dictionary.len() + 1).next_multiple_of(64) - 10;
    let length_field = u16::try_from(length).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    archive.write_all(b"\x93NUMPY\x01\x00")?;
    archive.write_all(&length_field.to_le_bytes())?;
    archive.write_all(format!("{dictionary:<width$}\n", width = length - 1).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::npz_read::{NpyType, NpzFile};
    use crate::io::partial::Existing;
    use crate::io::provenance::Provenance;
    use crate::io::sink::open_sink;
    use std::fs;

    fn u16_at(bytes: &[u8], at: usize) -> usize {
        usize::from(u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()))
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    /// Members of an uncompressed archive by the zip specification: end record, central directory, local headers, checksums.
    fn members(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
        let end = bytes.len() - 22;
        assert_eq!(&bytes[end..end + 4], b"PK\x05\x06");
        let (count, mut at) = (u16_at(bytes, end + 10), u32_at(bytes, end + 16) as usize);
        let mut found = Vec::new();
        for _ in 0..count {
            assert_eq!(&bytes[at..at + 4], b"PK\x01\x02");
            assert_eq!(u16_at(bytes, at + 10), 0, "stored");
            let (crc, local) = (u32_at(bytes, at + 16), u32_at(bytes, at + 42) as usize);
            let (name_length, extra) = (u16_at(bytes, at + 28), u16_at(bytes, at + 30));
            let name = String::from_utf8(bytes[at + 46..at + 46 + name_length].to_vec()).unwrap();
            assert_eq!(&bytes[local..local + 4], b"PK\x03\x04");
            let begin = local + 30 + u16_at(bytes, local + 26) + u16_at(bytes, local + 28);
            let size = match u32_at(bytes, at + 24) {
                // Zip64: the extra field (id 1, length) begins with the 64-bit size.
                u32::MAX => u64::from_le_bytes(bytes[at + 50 + name_length..][..8].try_into().unwrap()) as usize,
                size => size as usize,
            };
            let data = bytes[begin..begin + size].to_vec();
            assert_eq!(crc32fast::hash(&data), crc);
            found.push((name, data));
            at += 46 + name_length + extra + u16_at(bytes, at + 32);
        }
        found
    }

    fn npy(data: &[u8]) -> (String, &[u8]) {
        assert_eq!(&data[..8], b"\x93NUMPY\x01\x00");
        let begin = 10 + u16_at(data, 8);
        assert!(begin.is_multiple_of(64) && data[begin - 1] == b'\n');
        (String::from_utf8(data[10..begin].to_vec()).unwrap().trim_end().to_string(), &data[begin..])
    }

    fn provenance() -> Provenance {
        Provenance { settings: serde_json::Map::from_iter([("seed".to_string(), 7.into())]), range: 5..8 }
    }

    fn write(path: &Path, labelled: bool) {
        let labels = labelled.then(|| vec![4, 0, u32::MAX]);
        let set = SampleSet { channels: 3, height: 2, width: 1, labels, provenance: provenance() };
        let values: Vec<f32> = (0..18).map(|i| i as f32 * 10.0 / 127.5 - 1.0).collect();
        let mut sink = open_sink(path, set, Existing::Refuse).unwrap().unwrap();
        sink.push(ImageBatch::new(&values[..12], 3, 2, 1)).unwrap();
        sink.push(ImageBatch::new(&values[12..], 3, 2, 1)).unwrap();
        sink.finish().unwrap();
    }

    #[test]
    fn the_bytes_follow_the_zip_and_npy_specifications() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.npz");
        write(&path, true);
        let members = members(&fs::read(&path).unwrap());
        assert_eq!(members[0].0, "arr_0.npy");
        let (header, data) = npy(&members[0].1);
        assert_eq!(header, "{'descr': '|u1', 'fortran_order': False, 'shape': (3, 2, 1, 3), }");
        assert_eq!(data, [0, 20, 40, 10, 30, 50, 60, 80, 100, 70, 90, 110, 120, 140, 160, 130, 150, 170]);
        assert_eq!(members[1].0, "arr_1.npy");
        let (header, data) = npy(&members[1].1);
        assert_eq!(header, "{'descr': '<i8', 'fortran_order': False, 'shape': (3,), }");
        assert_eq!(data, [4i64, 0, 4_294_967_295].map(i64::to_le_bytes).concat());
        assert_eq!(members[2].0, "warpdiff.json");
        assert_eq!(members[2].1, provenance().to_json().as_bytes());
        write(&path, false);
        assert_eq!(self::members(&fs::read(&path).unwrap()).len(), 2);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn arrays_and_origin_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.npz");
        write(&path, true);
        assert_eq!(Provenance::read(&path).unwrap(), Some(provenance()));
        let mut file = NpzFile::open(&path).unwrap();
        let mut array = file.array("arr_0").unwrap().unwrap();
        assert_eq!((array.dtype, array.shape.as_slice()), (NpyType::U8, &[3, 2, 1, 3][..]));
        let (mut first, mut last) = ([0; 7], [0; 11]);
        array.read(&mut first).unwrap();
        array.read(&mut last).unwrap();
        assert_eq!(first, [0, 20, 40, 10, 30, 50, 60]);
        assert_eq!(last[8..], [130, 150, 170]);
        assert!(array.read(&mut first).is_err(), "read behind the end");
        assert!(file.array("arr_2").unwrap().is_none());
    }

    /// Runs in addition where Python with numpy is installed (`PYTHON` names it); the test above needs neither.
    #[test]
    fn numpy_reads_it() {
        let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
        let run =
            |script: &str, path: &Path| std::process::Command::new(&python).args(["-c", script]).arg(path).output();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.npz");
        if !run("import numpy", &path).is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: no Python with numpy");
            return;
        }
        write(&path, true);
        let script = "import numpy,sys; z=numpy.load(sys.argv[1]); a,b=z['arr_0'],z['arr_1']; \
                      print(a.dtype,a.shape,int(a[1,1,0,2]),b.dtype,b.tolist())";
        let output = run(script, &path).unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "uint8 (3, 2, 1, 3) 110 int64 [4, 0, 4294967295]");
    }
}
