//! From the value that a checkpoint's pickle leaves to a table of tensors with their places in the file.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

use super::machine::{Machine, Object, Storage, Tensor, Value};
use crate::io::tensor_file::TensorInfo;

/// A view may hold elements several times. Nobody needs this many more than there are bytes in the file.
const MAX_REPEATS: u64 = 64;

/// Where storages lie in a file.
pub(super) struct Places<'a> {
    /// The bytes of a storage of so many elements, or what is wrong with it.
    pub find: &'a dyn Fn(&Storage) -> Result<Range<u64>, String>,
    /// Length of the file.
    pub file_len: u64,
    pub big_endian: bool,
}

/// The tensors of a state dict.
///
/// Numbers, text and None beside them are left out. A dict of dicts is refused, with its keys: which of them is meant must be said.
pub(super) fn tensors(
    machine: &Machine,
    root: &Value,
    places: &Places<'_>,
) -> Result<BTreeMap<String, TensorInfo>, String> {
    let Some(Object::Dict(entries)) = machine.object(root) else {
        return Err("it holds no dict of named tensors".into());
    };
    let mut tensors = BTreeMap::new();
    let mut groups = Vec::new();
    for (key, value) in entries {
        let Value::Text(name) = key else { continue };
        match machine.object(value) {
            Some(Object::Tensor(tensor)) => {
                let info = place(tensor, places).map_err(|problem| format!("tensor {name:?}: {problem}"))?;
                match tensors.entry(name.to_string()) {
                    Entry::Vacant(entry) => entry.insert(info),
                    Entry::Occupied(_) => return Err(format!("it holds the tensor {name:?} twice")),
                };
            }
            Some(Object::Dict(_) | Object::List(_)) => groups.push(name.to_string()),
            _ => {}
        }
    }
    if tensors.is_empty() && !groups.is_empty() {
        groups.truncate(20);
        return Err(format!("it holds no tensors by name, but groups: {}", groups.join(", ")));
    }
    if tensors.is_empty() && !entries.is_empty() {
        return Err("it holds a dict without a single named tensor".into());
    }
    Ok(tensors)
}

/// The bytes that a tensor spans, and its strides where it does not fill them in row-major order.
fn place(tensor: &Tensor, places: &Places<'_>) -> Result<TensorInfo, String> {
    let storage = &tensor.storage;
    let (shape, strides) = (&tensor.shape, &tensor.strides);
    let width = storage.element.width;
    let bytes = (places.find)(storage)?;
    let overflow = || format!("its shape {shape:?} and strides {strides:?} overflow");
    let empty = shape.contains(&0);
    let count = if empty { Some(0) } else { shape.iter().try_fold(1u64, |n, &extent| n.checked_mul(extent)) };
    let count = count.ok_or_else(overflow)?;
    if count > places.file_len.saturating_mul(MAX_REPEATS) {
        return Err(format!("its shape {shape:?} has {count} elements, far more than the file holds"));
    }
    // One past the last element, from the start of the storage.
    let span = if empty {
        Some(0)
    } else {
        shape.iter().zip(strides).try_fold(1u64, |end, (&n, &stride)| end.checked_add((n - 1).checked_mul(stride)?))
    };
    let span = span.ok_or_else(overflow)?;
    let first = storage.view.start.checked_add(tensor.offset).ok_or_else(overflow)?;
    if first.checked_add(span).is_none_or(|end| end > storage.view.end) {
        return Err(format!(
            "its shape {shape:?}, strides {strides:?} and offset {} lead out of storage {}, which has {} elements",
            tensor.offset,
            storage.key,
            storage.view.end - storage.view.start
        ));
    }
    let begin = bytes.start + first * width;
    let size = |extents: &[u64]| -> Result<Vec<usize>, String> {
        extents.iter().map(|&n| usize::try_from(n).map_err(|_| overflow())).collect()
    };
    let row_major = empty || count == span && is_row_major(shape, strides);
    Ok(TensorInfo {
        shape: size(shape)?,
        dtype: storage.element.name.to_string(),
        stored: storage.element.stored,
        begin,
        end: begin + span * width,
        strides: if row_major { None } else { Some(size(strides)?) },
        big_endian: places.big_endian,
    })
}

/// Whether the elements follow each other; `shape` has no 0 and as many elements as the strides span.
fn is_row_major(shape: &[u64], strides: &[u64]) -> bool {
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(&n, &stride)| {
        let fits = n == 1 || stride == expected;
        expected *= n;
        fits
    })
}
