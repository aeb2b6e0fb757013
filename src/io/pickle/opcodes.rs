//! The instructions of a pickle, protocols 0 to 5, decoded from bytes.

use std::io::Read;
use std::rc::Rc;

use super::PickleError;

/// One instruction with its operand.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Opcode {
    /// Nothing happens: the protocol's number, the length of a frame.
    Nothing,
    Stop,
    Mark,
    Pop,
    PopMark,
    Duplicate,
    None,
    Bool(bool),
    Int(i64),
    Text(Rc<str>),
    /// A value that no tensor needs: a float, bytes, an integer of more than 64 bits.
    Opaque,
    /// A tuple of so many values from the stack.
    Tuple(usize),
    /// A tuple of everything above the mark.
    MarkedTuple,
    EmptyList,
    MarkedList,
    Append,
    Appends,
    EmptyDict,
    MarkedDict,
    SetItem,
    SetItems,
    EmptySet,
    AddItems,
    FrozenSet,
    Put(u64),
    Get(u64),
    Memoize,
    Global {
        module: String,
        name: String,
    },
    StackGlobal,
    Reduce,
    Build,
    PersistentId,
    /// An instruction that makes objects of any class, under the name that Python's documentation gives it.
    Forbidden(&'static str),
}

/// A pickle's bytes, with the position for messages.
pub(super) struct Bytes<R> {
    source: R,
    /// Where the next byte lies.
    position: u64,
    /// One past the last byte that may be read.
    end: u64,
}

impl<R: Read> Bytes<R> {
    /// `source` yields the bytes from `position` to `end` of a file.
    pub fn new(source: R, position: u64, end: u64) -> Self {
        Self { source, position, end }
    }

    pub fn position(&self) -> u64 {
        self.position
    }

    fn error(&self, problem: impl Into<String>) -> PickleError {
        PickleError::Malformed { offset: self.position, problem: problem.into() }
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), PickleError> {
        if bytes.len() as u64 > self.end - self.position {
            return Err(self.error("the pickle ends in the middle of an instruction"));
        }
        self.source.read_exact(bytes).map_err(PickleError::Read)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// `length` bytes; a length beyond the end is refused before memory is asked for.
    fn take(&mut self, length: u64) -> Result<Vec<u8>, PickleError> {
        if length > self.end - self.position {
            return Err(self.error(format!("an operand of {length} bytes goes beyond the end of the pickle")));
        }
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u64, PickleError> {
        Ok(u64::from(self.array::<1>()?[0]))
    }

    fn u32(&mut self) -> Result<u64, PickleError> {
        Ok(u64::from(u32::from_le_bytes(self.array()?)))
    }

    fn u64(&mut self) -> Result<u64, PickleError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Up to the next newline, which is not part of it.
    fn line(&mut self) -> Result<String, PickleError> {
        let mut bytes = Vec::new();
        loop {
            match self.array::<1>()? {
                [b'\n'] => break,
                [byte] => bytes.push(byte),
            }
        }
        String::from_utf8(bytes).map_err(|_| self.error("a line of text is not UTF-8"))
    }

    fn number<T: std::str::FromStr>(&mut self) -> Result<T, PickleError> {
        let line = self.line()?;
        line.trim_end_matches('L').parse().map_err(|_| self.error(format!("{line:?} is no number of this kind")))
    }

    fn utf8(&mut self, length: u64) -> Result<Opcode, PickleError> {
        let text = String::from_utf8(self.take(length)?).map_err(|_| self.error("a string is not UTF-8"))?;
        Ok(Opcode::Text(text.into()))
    }

    /// A byte string of Python 2, which it used for text, too.
    fn old_string(&mut self, length: u64) -> Result<Opcode, PickleError> {
        let bytes = self.take(length)?;
        Ok(String::from_utf8(bytes).map_or(Opcode::Opaque, |text| Opcode::Text(text.into())))
    }

    fn opaque(&mut self, length: u64) -> Result<Opcode, PickleError> {
        self.take(length).map(|_| Opcode::Opaque)
    }

    /// A little-endian integer in two's complement.
    fn long(&mut self, length: u64) -> Result<Opcode, PickleError> {
        let bytes = self.take(length)?;
        let negative = bytes.last().is_some_and(|last| last & 0x80 != 0);
        let mut extended = [if negative { 0xff } else { 0 }; 8];
        match extended.get_mut(..bytes.len()) {
            None => Ok(Opcode::Opaque),
            Some(low) => {
                low.copy_from_slice(&bytes);
                Ok(Opcode::Int(i64::from_le_bytes(extended)))
            }
        }
    }

    /// Decodes the next instruction.
    pub fn next(&mut self) -> Result<Opcode, PickleError> {
        let [code] = self.array()?;
        Ok(match code {
            0x80 => {
                let version = self.byte()?;
                if version > 5 {
                    return Err(self.error(format!("protocol {version} is unknown; 0 to 5 are read")));
                }
                Opcode::Nothing
            }
            0x95 => self.u64().map(|_| Opcode::Nothing)?,
            b'.' => Opcode::Stop,
            b'(' => Opcode::Mark,
            b'0' => Opcode::Pop,
            b'1' => Opcode::PopMark,
            b'2' => Opcode::Duplicate,
            b'N' => Opcode::None,
            0x88 => Opcode::Bool(true),
            0x89 => Opcode::Bool(false),
            b'I' => match self.line()?.as_str() {
                "00" => Opcode::Bool(false),
                "01" => Opcode::Bool(true),
                line => line
                    .parse()
                    .map(Opcode::Int)
                    .map_err(|_| self.error(format!("{line:?} is no integer of 64 bits")))?,
            },
            b'L' => Opcode::Int(self.number()?),
            b'J' => Opcode::Int(i64::from(i32::from_le_bytes(self.array()?))),
            b'K' => Opcode::Int(self.byte()? as i64),
            b'M' => Opcode::Int(i64::from(u16::from_le_bytes(self.array()?))),
            0x8a => {
                let length = self.byte()?;
                self.long(length)?
            }
            0x8b => {
                let length = self.u32()?;
                self.long(length)?
            }
            b'F' => self.line().map(|_| Opcode::Opaque)?,
            b'G' => self.opaque(8)?,
            b'V' => Opcode::Text(self.line()?.into()),
            b'S' => {
                let line = self.line()?;
                let quoted = |quote| line.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
                let Some(text) = quoted('\'').or(quoted('"')) else {
                    return Err(self.error("a string is not in quotes"));
                };
                // Escapes occur in no name of a tensor.
                if text.contains('\\') { Opcode::Opaque } else { Opcode::Text(text.into()) }
            }
            b'X' => {
                let length = self.u32()?;
                self.utf8(length)?
            }
            0x8c => {
                let length = self.byte()?;
                self.utf8(length)?
            }
            0x8d => {
                let length = self.u64()?;
                self.utf8(length)?
            }
            b'U' => {
                let length = self.byte()?;
                self.old_string(length)?
            }
            b'T' => {
                let length = self.u32()?;
                self.old_string(length)?
            }
            b'C' => {
                let length = self.byte()?;
                self.opaque(length)?
            }
            b'B' => {
                let length = self.u32()?;
                self.opaque(length)?
            }
            0x8e | 0x96 => {
                let length = self.u64()?;
                self.opaque(length)?
            }
            b')' => Opcode::Tuple(0),
            0x85 => Opcode::Tuple(1),
            0x86 => Opcode::Tuple(2),
            0x87 => Opcode::Tuple(3),
            b't' => Opcode::MarkedTuple,
            b']' => Opcode::EmptyList,
            b'l' => Opcode::MarkedList,
            b'a' => Opcode::Append,
            b'e' => Opcode::Appends,
            b'}' => Opcode::EmptyDict,
            b'd' => Opcode::MarkedDict,
            b's' => Opcode::SetItem,
            b'u' => Opcode::SetItems,
            0x8f => Opcode::EmptySet,
            0x90 => Opcode::AddItems,
            0x91 => Opcode::FrozenSet,
            b'p' => Opcode::Put(self.number()?),
            b'q' => Opcode::Put(self.byte()?),
            b'r' => Opcode::Put(self.u32()?),
            b'g' => Opcode::Get(self.number()?),
            b'h' => Opcode::Get(self.byte()?),
            b'j' => Opcode::Get(self.u32()?),
            0x94 => Opcode::Memoize,
            b'c' => Opcode::Global { module: self.line()?, name: self.line()? },
            0x93 => Opcode::StackGlobal,
            b'R' => Opcode::Reduce,
            b'b' => Opcode::Build,
            b'Q' => Opcode::PersistentId,
            b'P' => Opcode::Forbidden("PERSID"),
            b'i' => Opcode::Forbidden("INST"),
            b'o' => Opcode::Forbidden("OBJ"),
            0x81 => Opcode::Forbidden("NEWOBJ"),
            0x92 => Opcode::Forbidden("NEWOBJ_EX"),
            0x82..=0x84 => Opcode::Forbidden("EXT"),
            0x97 => Opcode::Forbidden("NEXT_BUFFER"),
            0x98 => Opcode::Forbidden("READONLY_BUFFER"),
            other => {
                return Err(PickleError::Malformed {
                    offset: self.position - 1,
                    problem: format!("{other:#04x} is no instruction of a pickle"),
                });
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> Result<Vec<Opcode>, PickleError> {
        let mut source = Bytes::new(bytes, 0, bytes.len() as u64);
        let mut all = Vec::new();
        while source.position() < bytes.len() as u64 {
            all.push(source.next()?);
        }
        Ok(all)
    }

    #[test]
    fn numbers_of_every_encoding() {
        let int = |bytes: &[u8]| decode(bytes).unwrap();
        assert_eq!(int(b"K\xff"), [Opcode::Int(255)]);
        assert_eq!(int(b"M\x01\x80"), [Opcode::Int(0x8001)]);
        assert_eq!(int(b"J\xfe\xff\xff\xff"), [Opcode::Int(-2)]);
        assert_eq!(int(b"\x8a\x00"), [Opcode::Int(0)]);
        assert_eq!(int(b"\x8a\x02\xff\x7f"), [Opcode::Int(32767)]);
        assert_eq!(int(b"\x8a\x01\xff"), [Opcode::Int(-1)]);
        assert_eq!(int(b"\x8b\x09\0\0\0\0\0\0\0\0\0\0\0\x01"), [Opcode::Opaque]);
        assert_eq!(int(b"I-17\nI01\nI00\nL42L\n"), {
            [Opcode::Int(-17), Opcode::Bool(true), Opcode::Bool(false), Opcode::Int(42)]
        });
        assert_eq!(int(b"G\x3f\xf0\0\0\0\0\0\0F1.5\n"), [Opcode::Opaque, Opcode::Opaque]);
    }

    #[test]
    fn text_of_every_encoding() {
        let text = |text: &str| Opcode::Text(text.into());
        assert_eq!(
            decode(b"X\x01\0\0\0a\x8c\x02bc\x8d\x01\0\0\0\0\0\0\0dU\x01eT\x01\0\0\0fS'g'\nS\"h\"\nVi\n").unwrap(),
            ["a", "bc", "d", "e", "f", "g", "h", "i"].map(text)
        );
        assert_eq!(decode(b"U\x01\xffC\x01xB\x01\0\0\0y").unwrap(), vec![Opcode::Opaque; 3]);
    }

    #[test]
    fn what_is_cut_off_or_unknown_is_an_error_with_its_place() {
        for bytes in [&b"X\xff\xff\xff\xffa"[..], b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffa", b"K", b"cos\n", b"I12"] {
            assert!(matches!(decode(bytes), Err(PickleError::Malformed { offset: 1.., .. })), "{bytes:02x?}");
        }
        assert!(matches!(decode(b"N\xfe"), Err(PickleError::Malformed { offset: 1, .. })));
        assert!(decode(b"\x80\x06").is_err() && decode(b"\x80\x05").is_ok());
        assert!(decode(b"X\x01\0\0\0\xff").is_err() && decode(b"Ia\n").is_err() && decode(b"Sa\n").is_err());
    }
}
