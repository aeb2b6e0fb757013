//! `.npz` for evaluation scripts: `arr_0`, uint8 NHWC, and for class-conditional samples `arr_1`, int64 (N).

use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::atomic::AtomicFile;
use super::safetensors_write::write_le;
use super::sink::{Ledger, SampleShape, SampleSink};
use super::{FileError, ImageBatch};

/// Writes samples as `.npz` batch by batch, uncompressed as `numpy.savez` does; only the labels are kept in memory.
#[derive(Debug)]
pub struct NpzSink {
    archive: ZipWriter<ArchiveFile>,
    ledger: Ledger,
}

impl NpzSink {
    /// Starts the archive at `path`.
    ///
    /// # Errors
    /// [`FileError::Os`].
    pub fn create(path: &Path, shape: SampleShape) -> Result<Self, FileError> {
        let ledger = Ledger::new(path, shape);
        let mut archive = ZipWriter::new(ArchiveFile { file: AtomicFile::create(path)?, failed: false, position: 0 });
        let SampleShape { count, height, width, channels, .. } = shape;
        start_array(&mut archive, "arr_0.npy", "|u1", &[count, height, width, channels])
            .map_err(FileError::os("write", path))?;
        Ok(Self { archive, ledger })
    }
}

/// The file below the archive. After a failed operation it only pretends to work.
///
/// A dropped `ZipWriter` writes the archive's directory and prints to stderr if it cannot; on a full disk that line would come beside
/// our own error. The file is thrown away by then.
#[derive(Debug)]
struct ArchiveFile {
    file: AtomicFile,
    failed: bool,
    /// Kept up while pretending, too: the archive computes sizes from it.
    position: u64,
}

impl ArchiveFile {
    fn guard<T>(&mut self, pretended: T, work: impl FnOnce(&mut AtomicFile) -> io::Result<T>) -> io::Result<T> {
        if self.failed {
            return Ok(pretended);
        }
        let result = work(&mut self.file);
        self.failed = result.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::Interrupted);
        result
    }
}

impl Write for ArchiveFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.guard(bytes.len(), |file| file.write(bytes))?;
        self.position += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.guard((), Write::flush)
    }
}

impl Seek for ArchiveFile {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        let pretended = match position {
            SeekFrom::Start(at) => at,
            SeekFrom::Current(by) | SeekFrom::End(by) => self.position.saturating_add_signed(by),
        };
        self.position = self.guard(pretended, |file| file.seek(position))?;
        Ok(self.position)
    }
}

impl SampleSink for NpzSink {
    fn push(&mut self, images: ImageBatch<'_>, labels: Option<&[u32]>) -> Result<(), FileError> {
        self.ledger.accept(&images, labels)?;
        let result = self.archive.write_all(&images.to_bytes());
        let result = result.map_err(FileError::os("write", self.ledger.path()));
        self.ledger.record(result)
    }

    fn finish(self: Box<Self>) -> Result<(), FileError> {
        let Self { mut archive, ledger } = *self;
        ledger.check_complete()?;
        let result = (|| {
            if ledger.shape.labelled {
                start_array(&mut archive, "arr_1.npy", "<i8", &[ledger.labels.len()])?;
                write_le(&mut archive, &ledger.labels, |label| i64::from(label).to_le_bytes())?;
            }
            Ok(archive.finish()?)
        })();
        let written: ArchiveFile = result.map_err(FileError::os("write", ledger.path()))?;
        written.file.commit()
    }
}

/// Starts an archive member and writes its npy header (format version 1.0).
fn start_array(archive: &mut ZipWriter<ArchiveFile>, name: &str, dtype: &str, shape: &[usize]) -> io::Result<()> {
    // Zip64 sizes throughout: 50,000 RGB images of 256 x 256 pixels are over 4 GiB.
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(true);
    archive.start_file(name, options)?;
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

    fn write(path: &Path, labelled: bool) {
        let shape = SampleShape { count: 3, channels: 3, height: 2, width: 1, labelled };
        let values: Vec<f32> = (0..18).map(|i| i as f32 * 10.0 / 127.5 - 1.0).collect();
        let mut sink = NpzSink::create(path, shape).unwrap();
        let labels = labelled.then_some([4, 0, u32::MAX]);
        let labels = labels.as_ref().map(|labels| labels.as_slice());
        sink.push(ImageBatch::new(&values[..12], 3, 2, 1), labels.map(|l| &l[..2])).unwrap();
        sink.push(ImageBatch::new(&values[12..], 3, 2, 1), labels.map(|l| &l[2..])).unwrap();
        Box::new(sink).finish().unwrap();
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
        write(&path, false);
        assert_eq!(self::members(&fs::read(&path).unwrap()).len(), 1);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
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
