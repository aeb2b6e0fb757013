//! What `torch.save` writes since PyTorch 1.6: a zip archive, uncompressed, of `NAME/data.pkl`, `NAME/byteorder` and a
//! `NAME/data/KEY` for each storage.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use super::machine::{Machine, Storage};
use super::opcodes::Bytes;
use super::tensors::{Places, tensors};
use super::{MAX_PICKLE, checkpoint, malformed};
use crate::io::FileError;
use crate::io::tensor_file::Contents;

/// The uncompressed records of an archive.
struct Records {
    /// Where the bytes of each record lie.
    places: HashMap<String, Range<u64>>,
    /// The folder in the archive that holds everything, with its slash.
    folder: String,
}

/// Reads everything but the storages.
pub(in crate::io) fn read_archive(path: &Path, file: &mut File) -> Result<Contents, FileError> {
    let file_len = file.metadata().map_err(FileError::os("inspect", path))?.len();
    let mut archive = ZipArchive::new(&mut *file).map_err(|error| zip_error(path, error))?;
    if archive.file_names_raw().any(|name| name.ends_with(b"/constants.pkl")) {
        return Err(checkpoint(path, "this is a TorchScript program, not a state dict"));
    }
    let records = Records::of(path, &mut archive, file_len)?;
    let pickle_at = records.get("data.pkl").map_or(0, |range| range.start);
    let pickle = read(path, &mut archive, &records, "data.pkl", MAX_PICKLE)?;
    let mut machine = Machine::default();
    let mut bytes = Bytes::new(pickle.as_slice(), 0, pickle.len() as u64);
    // Offsets of errors are those in the file.
    let root = machine.run(&mut bytes).map_err(|error| error.moved_by(pickle_at).in_file(path))?;
    let big_endian = match records.get("byteorder") {
        None => false,
        Some(_) => match read(path, &mut archive, &records, "byteorder", 16)?.trim_ascii() {
            b"little" => false,
            b"big" => true,
            other => {
                let found = String::from_utf8_lossy(other).into_owned();
                return Err(checkpoint(path, format!("its byte order is {found:?}, neither little nor big")));
            }
        },
    };
    let find = |storage: &Storage| {
        let name = format!("data/{}", storage.key);
        let Some(range) = records.get(&name) else {
            return Err(format!("the archive has no record {name} for its storage"));
        };
        let needed = storage.len.checked_mul(storage.element.width);
        let there = range.end - range.start;
        if needed != Some(there) {
            return Err(format!(
                "its storage, record {name}, has {there} bytes, but should have {} elements of {} bytes",
                storage.len, storage.element.width
            ));
        }
        Ok(range.clone())
    };
    let places = Places { find: &find, file_len, big_endian };
    let tensors = tensors(&machine, &root, &places).map_err(|problem| checkpoint(path, problem))?;
    Ok(Contents { tensors, ..Contents::default() })
}

impl Records {
    fn of(path: &Path, archive: &mut ZipArchive<&mut File>, file_len: u64) -> Result<Self, FileError> {
        let mut places = HashMap::new();
        let mut folder: Option<String> = None;
        for index in 0..archive.len() {
            let record = archive.by_index_raw(index).map_err(|error| zip_error(path, error))?;
            let name = record.name().map_err(|error| zip_error(path, error))?.into_owned();
            if record.encrypted() || record.compression() != CompressionMethod::Stored {
                return Err(checkpoint(path, format!("its record {name:?} is compressed or encrypted")));
            }
            let range = record.data_start().and_then(|begin| {
                let end = begin.checked_add(record.size())?;
                (end <= file_len && record.size() == record.compressed_size()).then_some(begin..end)
            });
            let Some(range) = range else {
                return Err(malformed(path, record.header_start(), format!("record {name:?} goes beyond the file")));
            };
            // The one nearest to the root, should a state dict be called so.
            if let Some(parent) = name.strip_suffix("data.pkl").filter(|p| p.is_empty() || p.ends_with('/'))
                && folder.as_ref().is_none_or(|f| parent.len() < f.len())
            {
                folder = Some(parent.to_string());
            }
            places.insert(name, range);
        }
        match folder {
            Some(folder) => Ok(Self { places, folder }),
            None => Err(checkpoint(path, "this is a zip archive without data.pkl, so torch.save did not write it")),
        }
    }

    /// The place of a record that is named from the archive's folder.
    fn get(&self, name: &str) -> Option<&Range<u64>> {
        self.places.get(&format!("{}{name}", self.folder))
    }
}

/// A whole record, its checksum verified.
fn read(
    path: &Path,
    archive: &mut ZipArchive<&mut File>,
    records: &Records,
    name: &str,
    limit: u64,
) -> Result<Vec<u8>, FileError> {
    let size = records.get(name).map_or(0, |range| range.end - range.start);
    if size > limit {
        return Err(checkpoint(path, format!("its record {name} has {size} bytes, more than {limit}")));
    }
    let mut record = archive.by_name(&format!("{}{name}", records.folder)).map_err(|error| zip_error(path, error))?;
    let mut bytes = Vec::with_capacity(size as usize);
    match record.read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(malformed(path, record.header_start(), format!("record {name} cannot be read: {error}"))),
    }
}

fn zip_error(path: &Path, error: ZipError) -> FileError {
    match error {
        ZipError::Io(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => FileError::os("read", path)(error),
        error => malformed(path, 0, format!("the zip archive is damaged or incomplete: {error}")),
    }
}
