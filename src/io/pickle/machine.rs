//! A machine that runs a pickle's instructions and can build nothing but plain values, containers and descriptions of tensors.
//!
//! Python's own machine calls any function that a pickle names. This one knows the dozen names that a saved state dict needs and
//! refuses every other where it is named, before anything is done with it. Values refer to objects by number, so that neither depth nor
//! cycles of a hostile file reach the call stack.

use std::collections::HashMap;
use std::io::Read;
use std::rc::Rc;

use super::PickleError;
use super::opcodes::{Bytes, Opcode};
use crate::io::tensor_file::ElementType;

/// Values that a pickle may make: a state dict needs about 30 a tensor.
const MAX_VALUES: usize = 1 << 22;
const MAX_DIMENSIONS: usize = 64;

/// A value on the machine's stack.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Text(Rc<str>),
    /// Something that no tensor needs.
    Opaque,
    Known(Known),
    /// An entry of [`Machine::objects`].
    Object(usize),
}

/// The globals that are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Size,
    Storage(Element),
    /// Constructors and constants whose results no tensor needs.
    Harmless,
}

/// Element type of a storage: its name in messages, its width in bytes and how it is read, if it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Element {
    pub name: &'static str,
    pub width: u64,
    pub stored: Option<ElementType>,
}

/// A container or a description.
#[derive(Debug)]
pub(super) enum Object {
    Tuple(Vec<Value>),
    List(Vec<Value>),
    Dict(Vec<(Value, Value)>),
    Storage(Storage),
    Tensor(Tensor),
}

/// A storage as a pickle refers to it, or a view of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Storage {
    pub key: Rc<str>,
    pub element: Element,
    /// Elements of the whole storage.
    pub len: u64,
    /// The part that this is a view of, in elements.
    pub view: std::ops::Range<u64>,
}

/// A tensor: a strided view of a storage.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    pub storage: Storage,
    /// First element, from the start of the storage's view.
    pub offset: u64,
    pub shape: Vec<u64>,
    pub strides: Vec<u64>,
}

/// The state while a pickle is run, and the objects that it made.
#[derive(Debug, Default)]
pub(super) struct Machine {
    pub objects: Vec<Object>,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: HashMap<u64, Value>,
    values: usize,
}

/// What went wrong in an instruction; the place is added by [`Machine::run`].
enum Fault {
    Malformed(String),
    Forbidden(String),
}

fn malformed<T>(problem: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Malformed(problem.into()))
}

/// The meaning of a global, if it has one here.
fn known(module: &str, name: &str) -> Option<Known> {
    Some(match (module, name) {
        ("collections", "OrderedDict") => Known::OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2") => Known::RebuildTensor,
        ("torch._utils", "_rebuild_parameter") => Known::RebuildParameter,
        ("torch", "Size") => Known::Size,
        ("builtins" | "__builtin__", "set") | ("_codecs", "encode") => Known::Harmless,
        ("torch", name) => match name.strip_suffix("Storage") {
            Some(element) => Known::Storage(storage_element(element)?),
            None => DTYPES.contains(&name).then_some(Known::Harmless)?,
        },
        _ => return None,
    })
}

const DTYPES: [&str; 17] = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
    "complex64",
    "complex128",
    "complex32",
    "double",
    "float",
    "half",
    "long",
];

fn storage_element(name: &str) -> Option<Element> {
    let (name, width, stored) = match name {
        "Double" => ("F64", 8, Some(ElementType::F64)),
        "Float" => ("F32", 4, Some(ElementType::F32)),
        "Half" => ("F16", 2, Some(ElementType::F16)),
        "BFloat16" => ("BF16", 2, Some(ElementType::Bf16)),
        "Long" => ("I64", 8, Some(ElementType::I64)),
        "Int" => ("I32", 4, Some(ElementType::I32)),
        "Short" => ("I16", 2, Some(ElementType::I16)),
        "Char" => ("I8", 1, Some(ElementType::I8)),
        "Byte" => ("U8", 1, Some(ElementType::U8)),
        "Bool" => ("BOOL", 1, None),
        "ComplexFloat" => ("C64", 8, None),
        "ComplexDouble" => ("C128", 16, None),
        _ => return None,
    };
    Some(Element { name, width, stored })
}

impl Machine {
    /// Runs one pickle up to its end and returns the value that it leaves.
    pub fn run<R: Read>(&mut self, bytes: &mut Bytes<R>) -> Result<Value, PickleError> {
        self.stack.clear();
        self.marks.clear();
        self.memo.clear();
        loop {
            let offset = bytes.position();
            let opcode = bytes.next()?;
            let result = match opcode {
                Opcode::Stop => return self.pop().map_err(|fault| fault.at(offset)),
                opcode => self.step(opcode),
            };
            result.map_err(|fault| fault.at(offset))?;
        }
    }

    fn step(&mut self, opcode: Opcode) -> Result<(), Fault> {
        match opcode {
            Opcode::Nothing | Opcode::Stop => Ok(()),
            Opcode::Mark => {
                self.count()?;
                self.marks.push(self.stack.len());
                Ok(())
            }
            Opcode::Pop => {
                // Python takes a mark away where one is on top.
                if self.marks.last() == Some(&self.stack.len()) {
                    self.marks.pop();
                    return Ok(());
                }
                self.pop().map(|_| ())
            }
            Opcode::PopMark => self.marked().map(|_| ()),
            Opcode::Duplicate => {
                let top = self.top()?.clone();
                self.push(top)
            }
            Opcode::None => self.push(Value::None),
            Opcode::Bool(value) => self.push(Value::Bool(value)),
            Opcode::Int(value) => self.push(Value::Int(value)),
            Opcode::Text(value) => self.push(Value::Text(value)),
            Opcode::Opaque | Opcode::EmptySet => self.push(Value::Opaque),
            Opcode::Tuple(length) => {
                let values = self.pop_many(length)?;
                self.push_object(Object::Tuple(values))
            }
            Opcode::MarkedTuple => {
                let values = self.marked()?;
                self.push_object(Object::Tuple(values))
            }
            Opcode::EmptyList => self.push_object(Object::List(Vec::new())),
            Opcode::MarkedList => {
                let values = self.marked()?;
                self.push_object(Object::List(values))
            }
            Opcode::Append => {
                let values = self.pop_many(1)?;
                self.append(values)
            }
            Opcode::Appends => {
                let values = self.marked()?;
                self.append(values)
            }
            Opcode::EmptyDict => self.push_object(Object::Dict(Vec::new())),
            Opcode::MarkedDict => {
                let values = self.marked()?;
                let pairs = pairs(values)?;
                self.push_object(Object::Dict(pairs))
            }
            Opcode::SetItem => {
                let values = self.pop_many(2)?;
                self.set_items(values)
            }
            Opcode::SetItems => {
                let values = self.marked()?;
                self.set_items(values)
            }
            Opcode::AddItems => {
                self.marked()?;
                self.top().map(|_| ())
            }
            Opcode::FrozenSet => {
                self.marked()?;
                self.push(Value::Opaque)
            }
            Opcode::Put(index) => self.remember(index),
            Opcode::Memoize => self.remember(self.memo.len() as u64),
            Opcode::Get(index) => match self.memo.get(&index).cloned() {
                Some(value) => self.push(value),
                None => malformed(format!("the memo has no entry {index}")),
            },
            Opcode::Global { module, name } => self.global(&module, &name),
            Opcode::StackGlobal => match self.pop_many(2)?.as_slice() {
                [Value::Text(module), Value::Text(name)] => self.global(module, name),
                _ => malformed("the name of a global is not text"),
            },
            Opcode::Reduce => self.reduce(),
            Opcode::Build => self.build(),
            Opcode::PersistentId => self.persistent_id(),
            Opcode::Forbidden(name) => Err(Fault::Forbidden(format!("uses the instruction {name}"))),
        }
    }

    fn count(&mut self) -> Result<(), Fault> {
        self.values += 1;
        if self.values > MAX_VALUES {
            return malformed(format!("the pickle makes more than {MAX_VALUES} values, far more than a model has"));
        }
        Ok(())
    }

    fn push(&mut self, value: Value) -> Result<(), Fault> {
        self.count()?;
        self.stack.push(value);
        Ok(())
    }

    fn push_object(&mut self, object: Object) -> Result<(), Fault> {
        self.objects.push(object);
        self.push(Value::Object(self.objects.len() - 1))
    }

    /// Where the stack begins for instructions that must leave the values below the mark alone.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<&Value, Fault> {
        match self.stack.get(self.floor()..).and_then(<[Value]>::last) {
            Some(value) => Ok(value),
            None => malformed("an instruction needs a value, but the stack is empty"),
        }
    }

    fn pop(&mut self) -> Result<Value, Fault> {
        self.top()?;
        self.stack.pop().map_or_else(|| malformed("the stack is empty"), Ok)
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Value>, Fault> {
        match self.stack.len().checked_sub(count).filter(|first| *first >= self.floor()) {
            Some(first) => Ok(self.stack.split_off(first)),
            None => malformed(format!("an instruction needs {count} values, the stack has fewer")),
        }
    }

    /// Everything above the last mark, which goes too.
    fn marked(&mut self) -> Result<Vec<Value>, Fault> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark.min(self.stack.len()))),
            None => malformed("an instruction needs a mark, and there is none"),
        }
    }

    fn remember(&mut self, index: u64) -> Result<(), Fault> {
        self.count()?;
        let top = self.top()?.clone();
        self.memo.insert(index, top);
        Ok(())
    }

    fn top_object(&mut self) -> Result<Option<&mut Object>, Fault> {
        let top = self.top()?.clone();
        Ok(match top {
            Value::Object(index) => self.objects.get_mut(index),
            _ => None,
        })
    }

    fn append(&mut self, values: Vec<Value>) -> Result<(), Fault> {
        match self.top_object()? {
            Some(Object::List(list)) => {
                list.extend(values);
                Ok(())
            }
            _ => malformed("a value is appended to something that is no list"),
        }
    }

    fn set_items(&mut self, values: Vec<Value>) -> Result<(), Fault> {
        match self.top_object()? {
            Some(Object::Dict(dict)) => {
                dict.extend(pairs(values)?);
                Ok(())
            }
            _ => malformed("an entry is set in something that is no dict"),
        }
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), Fault> {
        match known(module, name) {
            Some(known) => self.push(Value::Known(known)),
            None => Err(Fault::Forbidden(format!("names {module}.{name}"))),
        }
    }

    pub fn object(&self, value: &Value) -> Option<&Object> {
        match value {
            Value::Object(index) => self.objects.get(*index),
            _ => None,
        }
    }

    /// The elements of a tuple or a list.
    pub fn sequence(&self, value: &Value) -> Option<&[Value]> {
        match self.object(value)? {
            Object::Tuple(values) | Object::List(values) => Some(values),
            _ => None,
        }
    }

    fn reduce(&mut self) -> Result<(), Fault> {
        let operands = self.pop_many(2)?;
        let [Value::Known(function), arguments] = operands.as_slice() else {
            return malformed("something is called that is no function");
        };
        let Some(Object::Tuple(arguments)) = self.object(arguments) else {
            return malformed("a function is called with something that is no tuple");
        };
        match (function, arguments.as_slice()) {
            (Known::OrderedDict, []) => self.push_object(Object::Dict(Vec::new())),
            (Known::OrderedDict, [items]) => {
                let items = self.sequence(items).map(|items| items.iter().map(|item| self.sequence(item)));
                let pairs = items.and_then(|items| {
                    items.map(|item| Some((item?.first()?.clone(), item?.get(1)?.clone()))).collect::<Option<Vec<_>>>()
                });
                match pairs {
                    Some(pairs) => {
                        // A short instruction may repeat a long list.
                        self.values += pairs.len();
                        self.push_object(Object::Dict(pairs))
                    }
                    None => malformed("an OrderedDict is made of something that is no list of pairs"),
                }
            }
            (Known::RebuildTensor, [storage, offset, shape, strides, ..]) => {
                let tensor = self.tensor(storage, offset, shape, strides)?;
                self.push_object(Object::Tensor(tensor))
            }
            (Known::RebuildParameter, [tensor, ..]) => match self.object(tensor) {
                Some(Object::Tensor(_)) => {
                    let tensor = tensor.clone();
                    self.push(tensor)
                }
                _ => malformed("a parameter is made of something that is no tensor"),
            },
            (Known::Size, [extents]) if self.sequence(extents).is_some() => {
                let extents = extents.clone();
                self.push(extents)
            }
            (Known::Harmless, _) => self.push(Value::Opaque),
            (function, arguments) => {
                malformed(format!("{function:?} cannot be called with {} arguments of these types", arguments.len()))
            }
        }
    }

    fn tensor(&self, storage: &Value, offset: &Value, shape: &Value, strides: &Value) -> Result<Tensor, Fault> {
        let (Some(Object::Storage(storage)), Some(offset)) = (self.object(storage), natural(offset)) else {
            return malformed("a tensor needs a storage and an offset of 0 or more");
        };
        // A short instruction may repeat a long list; no tensor of PyTorch has more dimensions.
        let extents = |value| {
            let values = self.sequence(value).filter(|values| values.len() <= MAX_DIMENSIONS)?;
            values.iter().map(natural).collect::<Option<Vec<u64>>>()
        };
        match (extents(shape), extents(strides)) {
            (Some(shape), Some(strides)) if shape.len() == strides.len() => {
                Ok(Tensor { storage: storage.clone(), offset, shape, strides })
            }
            _ => malformed("a tensor's shape and strides are not two equally long tuples of integers of 0 or more"),
        }
    }

    /// Attributes of a dict, such as the `_metadata` of a state dict, change no tensor.
    fn build(&mut self) -> Result<(), Fault> {
        let state = self.pop()?;
        let plain = matches!(self.object(&state), Some(Object::Dict(_)));
        match self.top_object()? {
            Some(Object::Dict(_)) if plain => Ok(()),
            _ => Err(Fault::Forbidden("sets the state of an object (BUILD)".into())),
        }
    }

    /// `("storage", type, key, device, elements[, view])`; a view is None or (key, offset, elements).
    fn persistent_id(&mut self) -> Result<(), Fault> {
        let id = self.pop()?;
        let Some(
            [
                Value::Text(what),
                Value::Known(Known::Storage(element)),
                Value::Text(key),
                Value::Text(_),
                len,
                view @ ..,
            ],
        ) = self.sequence(&id)
        else {
            return malformed("a persistent id is not that of a storage of a known type");
        };
        let Some(len) = natural(len).filter(|_| &**what == "storage") else {
            return malformed("a persistent id is not that of a storage");
        };
        let view = match view {
            [] | [Value::None] => Some(0..len),
            [view] => match self.sequence(view) {
                Some([_, offset, count]) => natural(offset).zip(natural(count)).and_then(|(offset, count)| {
                    let end = offset.checked_add(count).filter(|end| *end <= len)?;
                    Some(offset..end)
                }),
                _ => None,
            },
            _ => None,
        };
        let Some(view) = view else {
            return malformed(format!("storage {key}: the view is not within its {len} elements"));
        };
        let storage = Storage { key: key.clone(), element: *element, len, view };
        self.push_object(Object::Storage(storage))
    }
}

fn natural(value: &Value) -> Option<u64> {
    match value {
        Value::Int(value) => u64::try_from(*value).ok(),
        _ => None,
    }
}

fn pairs(values: Vec<Value>) -> Result<Vec<(Value, Value)>, Fault> {
    if !values.len().is_multiple_of(2) {
        return malformed("a dict has a key without a value");
    }
    let mut values = values.into_iter();
    Ok(std::iter::from_fn(|| values.next().zip(values.next())).collect())
}

impl Fault {
    fn at(self, offset: u64) -> PickleError {
        match self {
            Fault::Malformed(problem) => PickleError::Malformed { offset, problem },
            Fault::Forbidden(what) => PickleError::Forbidden { what },
        }
    }
}
