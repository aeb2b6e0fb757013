//! Reading `.npz`: arrays of bytes, integers and floats as `numpy.savez` writes them, a part at a time.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use zip::{CompressionMethod, ZipArchive};

use super::FileError;

/// A member larger than this is no text of ours.
const MAX_TEXT: u64 = 1 << 20;
/// A dictionary of three entries needs a few hundred bytes.
const MAX_HEADER: usize = 1 << 16;

/// An open archive.
#[derive(Debug)]
pub struct NpzFile {
    path: PathBuf,
    archive: ZipArchive<File>,
}

/// The elements of an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NpyType {
    /// Bytes.
    U8,
    /// 32-bit floats.
    F32,
    /// 64-bit integers.
    I64,
}

impl NpyType {
    /// Bytes of an element.
    pub fn width(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::F32 => 4,
            Self::I64 => 8,
        }
    }
}

/// An array in an archive, whose elements are read in order.
#[derive(Debug)]
pub struct NpyArray {
    path: PathBuf,
    /// Type of the elements.
    pub dtype: NpyType,
    /// Extents, the slowest first.
    pub shape: Vec<usize>,
    data: io::Take<File>,
}

impl NpzFile {
    /// Opens an archive.
    ///
    /// # Errors
    /// [`FileError::Os`]; [`FileError::Unusable`] if it is no zip archive.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let file = File::open(path).map_err(FileError::os("open", path))?;
        let archive = ZipArchive::new(file).map_err(|error| unusable(path, format!("it is no archive: {error}")))?;
        Ok(Self { path: path.to_path_buf(), archive })
    }

    /// A member as text, if there is one of that name.
    ///
    /// # Errors
    /// [`FileError::Unusable`].
    pub fn text(&mut self, name: &str) -> Result<Option<String>, FileError> {
        let Some(index) = self.archive.index_for_name(name) else { return Ok(None) };
        let bad = |problem: String| unusable(&self.path, format!("{name}: {problem}"));
        let mut member = self.archive.by_index(index).map_err(|error| bad(error.to_string()))?;
        if member.size() > MAX_TEXT {
            return Err(bad(format!("{} bytes of text", member.size())));
        }
        let mut text = String::new();
        member.read_to_string(&mut text).map_err(|error| bad(error.to_string()))?;
        Ok(Some(text))
    }

    /// The array `name` (without `.npy`), if there is one.
    ///
    /// # Errors
    /// [`FileError::Unusable`] for compressed members, Fortran order, other types, and sizes that do not fit the file.
    pub fn array(&mut self, name: &str) -> Result<Option<NpyArray>, FileError> {
        let Some(index) = self.archive.index_for_name(&format!("{name}.npy")) else { return Ok(None) };
        let bad = |problem: String| unusable(&self.path, format!("array {name}: {problem}"));
        let member = self.archive.by_index_raw(index).map_err(|error| bad(error.to_string()))?;
        if member.compression() != CompressionMethod::Stored || member.encrypted() {
            return Err(bad("it is compressed; write it with numpy.savez, not savez_compressed".into()));
        }
        let size = member.size();
        let Some(start) = member.data_start() else { return Err(bad("it has no data".into())) };
        drop(member);
        let mut file = File::open(&self.path).map_err(FileError::os("open", &self.path))?;
        let length = file.metadata().map_err(FileError::os("inspect", &self.path))?.len();
        if start.checked_add(size).is_none_or(|end| end > length) {
            return Err(bad("it ends behind the end of the file".into()));
        }
        file.seek(SeekFrom::Start(start)).map_err(FileError::os("read", &self.path))?;
        let mut data = file.take(size);
        let header = read_header(&mut data).map_err(|error| bad(format!("its header cannot be read: {error}")))?;
        let (dtype, shape) = parse_header(&header).map_err(bad)?;
        let bytes = shape.iter().try_fold(dtype.width() as u64, |bytes, &n| bytes.checked_mul(n as u64));
        if bytes != Some(data.limit()) {
            return Err(bad(format!("shape {shape:?} does not fit its {} bytes", data.limit())));
        }
        Ok(Some(NpyArray { path: self.path.clone(), dtype, shape, data }))
    }
}

impl NpyArray {
    /// The next `out.len()` bytes.
    ///
    /// # Errors
    /// [`FileError::Os`], also where there are fewer.
    pub fn read(&mut self, out: &mut [u8]) -> Result<(), FileError> {
        self.data.read_exact(out).map_err(FileError::os("read", &self.path))
    }
}

fn unusable(path: &Path, problem: String) -> FileError {
    let remedy = "write it anew, or give another file";
    FileError::Unusable { path: path.to_path_buf(), problem, remedy }
}

fn read_header(data: &mut impl Read) -> io::Result<String> {
    let invalid = |problem: &str| io::Error::new(io::ErrorKind::InvalidData, problem);
    let mut start = [0; 8];
    data.read_exact(&mut start)?;
    if !start.starts_with(b"\x93NUMPY") {
        return Err(invalid("it does not begin as an array does"));
    }
    let length = if start[6] == 1 {
        let mut length = [0; 2];
        data.read_exact(&mut length)?;
        usize::from(u16::from_le_bytes(length))
    } else {
        let mut length = [0; 4];
        data.read_exact(&mut length)?;
        u32::from_le_bytes(length) as usize
    };
    if length > MAX_HEADER {
        return Err(invalid("it is too long"));
    }
    let mut text = vec![0; length];
    data.read_exact(&mut text)?;
    String::from_utf8(text).map_err(|_| invalid("it is no text"))
}

/// Type and shape from the dictionary, a Python literal.
fn parse_header(text: &str) -> Result<(NpyType, Vec<usize>), String> {
    let after =
        |key: &str| text.split_once(key).map(|(_, rest)| rest.trim_start().trim_start_matches(':').trim_start());
    let missing = |key: &str| format!("its header has no {key}");
    let descr = after("'descr'").and_then(|rest| rest.split('\'').nth(1)).ok_or_else(|| missing("descr"))?;
    let dtype = match descr {
        "|u1" => NpyType::U8,
        "<f4" => NpyType::F32,
        "<i8" => NpyType::I64,
        other => return Err(format!("elements of type {other}; uint8, float32 and int64 are read")),
    };
    if !after("'fortran_order'").is_some_and(|rest| rest.starts_with("False")) {
        return Err("it is in Fortran order; write numpy.ascontiguousarray of it".into());
    }
    let extents = after("'shape'").and_then(|rest| rest.strip_prefix('(')).and_then(|rest| rest.split_once(')'));
    let (extents, _) = extents.ok_or_else(|| missing("shape"))?;
    let parts = extents.split(',').map(str::trim).filter(|part| !part.is_empty());
    let shape = parts.map(str::parse).collect::<Result<_, _>>().map_err(|_| missing("valid shape"))?;
    Ok((dtype, shape))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_numpy_are_understood() {
        let header = "{'descr': '|u1', 'fortran_order': False, 'shape': (3, 2, 1, 3), }   \n";
        assert_eq!(parse_header(header), Ok((NpyType::U8, vec![3, 2, 1, 3])));
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (7,), }\n";
        assert_eq!(parse_header(header), Ok((NpyType::F32, vec![7])));
        let header = "{'descr': '<i8', 'fortran_order': False, 'shape': (), }\n";
        assert_eq!(parse_header(header), Ok((NpyType::I64, vec![])));
    }

    #[test]
    fn what_is_not_read_says_why() {
        for (header, word) in [
            ("{'descr': '<f8', 'fortran_order': False, 'shape': (3,), }", "<f8"),
            ("{'descr': '|u1', 'fortran_order': True, 'shape': (3, 2), }", "Fortran"),
            ("{'descr': '|u1', 'fortran_order': False, 'shape': (3, -2), }", "shape"),
            ("{'descr': '|u1', 'fortran_order': False}", "shape"),
            ("", "descr"),
        ] {
            assert!(parse_header(header).unwrap_err().contains(word), "{header}");
        }
    }
}
