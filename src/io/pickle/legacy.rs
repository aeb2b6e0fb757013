//! What `torch.save` wrote before PyTorch 1.6: five pickles (magic number, protocol, machine, the object, keys of storages), then each
//! storage as an element count and raw bytes.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;

use super::machine::{Machine, Object, Storage, Value};
use super::opcodes::Bytes;
use super::tensors::{Places, tensors};
use super::{MAX_PICKLE, checkpoint, malformed};
use crate::io::FileError;
use crate::io::tensor_file::Contents;

/// 0x1950a86a20f9469cfc6c as a pickle has it.
const MAGIC: [u8; 12] = [0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Whether a file that begins with `head` is of this format.
pub(in crate::io) fn is_legacy(head: &[u8]) -> bool {
    let frame = if head.get(2) == Some(&0x95) { 9 } else { 0 };
    head.first() == Some(&0x80) && head.get(2 + frame..).is_some_and(|rest| rest.starts_with(&MAGIC))
}

/// Reads everything but the storages.
pub(in crate::io) fn read_legacy(path: &Path, file: &mut File) -> Result<Contents, FileError> {
    let file_len = file.metadata().map_err(FileError::os("inspect", path))?.len();
    let end = file_len.min(MAX_PICKLE);
    let mut bytes = Bytes::new(BufReader::new(&mut *file), 0, end);
    let mut machine = Machine::default();
    let mut next = |bytes: &mut _| machine.run(bytes).map_err(|error| error.in_file(path));
    next(&mut bytes)?;
    let protocol = next(&mut bytes)?;
    if protocol != Value::Int(1001) {
        return Err(checkpoint(path, format!("its protocol is {protocol:?}, and only 1001 is known")));
    }
    let system = next(&mut bytes)?;
    let root = next(&mut bytes)?;
    let keys = next(&mut bytes)?;

    let storages = places(path, &machine, &keys, bytes.position(), file)?;
    let find = |storage: &Storage| match storages.get(&storage.key) {
        Some((range, len)) if *len == storage.len => Ok(range.clone()),
        Some((_, len)) => Err(format!("storage {} has {len} elements, not {}", storage.key, storage.len)),
        None => Err(format!("storage {} is not in the file", storage.key)),
    };
    let places = Places { find: &find, file_len, big_endian: is_big_endian(&machine, &system) };
    let tensors = tensors(&machine, &root, &places).map_err(|problem| checkpoint(path, problem))?;
    Ok(Contents { tensors, ..Contents::default() })
}

fn is_big_endian(machine: &Machine, system: &Value) -> bool {
    let Some(Object::Dict(entries)) = machine.object(system) else { return false };
    entries.iter().any(|(key, value)| {
        matches!(key, Value::Text(key) if &**key == "little_endian") && *value == Value::Bool(false)
    })
}

type StoragePlaces = HashMap<Rc<str>, (Range<u64>, u64)>;

/// Bytes and element count of each storage.
fn places(
    path: &Path,
    machine: &Machine,
    keys: &Value,
    mut position: u64,
    file: &mut File,
) -> Result<StoragePlaces, FileError> {
    use std::io::{Read, Seek, SeekFrom};
    let file_len = file.metadata().map_err(FileError::os("inspect", path))?.len();
    let mut widths = HashMap::new();
    for object in &machine.objects {
        if let Object::Storage(storage) = object {
            widths.insert(storage.key.clone(), storage.element.width);
        }
    }
    let Some(keys) = machine.sequence(keys) else {
        return Err(malformed(path, position, "the keys of the storages are no list"));
    };
    let mut places = HashMap::new();
    for key in keys {
        let Value::Text(key) = key else {
            return Err(malformed(path, position, "the key of a storage is no text"));
        };
        let Some(width) = widths.get(key) else {
            return Err(malformed(path, position, format!("no tensor uses storage {key}, so its type is unknown")));
        };
        let truncated = |expected| FileError::Truncated { path: path.to_path_buf(), expected, actual: file_len };
        if file_len - position < 8 {
            return Err(truncated(position + 8));
        }
        let mut count = [0; 8];
        file.seek(SeekFrom::Start(position))
            .and_then(|_| file.read_exact(&mut count))
            .map_err(FileError::os("read", path))?;
        let count = u64::from_le_bytes(count);
        let begin = position + 8;
        let end = count.checked_mul(*width).and_then(|bytes| bytes.checked_add(begin));
        let end = end.ok_or_else(|| malformed(path, position, format!("storage {key} has {count} elements")))?;
        if end > file_len {
            return Err(truncated(end));
        }
        if places.insert(key.clone(), (begin..end, count)).is_some() {
            return Err(malformed(path, position, format!("storage {key} is there twice")));
        }
        position = end;
    }
    Ok(places)
}
