//! Thrift's compact protocol, in which a Parquet file says what it holds: just enough to walk through it before its decoder
//! does. Knows no structure by name.

/// Levels of values within one field that is skipped.
const DEEPEST_FIELD: usize = 32;

/// A type of the compact protocol, as its nibble says.
pub(super) type Kind = u8;
const TRUE: Kind = 1;
const FALSE: Kind = 2;
const BYTE: Kind = 3;
pub(super) const INTEGERS: std::ops::RangeInclusive<Kind> = 4..=6;
const DOUBLE: Kind = 7;
const BINARY: Kind = 8;
pub(super) const LIST: Kind = 9;
const SET: Kind = 10;
const MAP: Kind = 11;
pub(super) const STRUCT: Kind = 12;
const UUID: Kind = 13;

/// The bytes not yet read. `None` everywhere: they end too early, or mean nothing.
pub(super) struct Thrift<'a> {
    pub(super) rest: &'a [u8],
}

impl Thrift<'_> {
    /// The head of the next field of a struct; `None` inside: there is none.
    pub(super) fn field(&mut self, id: &mut i64) -> Option<Option<Kind>> {
        let byte = self.byte()?;
        if byte == 0 {
            return Some(None);
        }
        *id = match byte >> 4 {
            0 => self.integer()?,
            delta => id.checked_add(delta.into())?,
        };
        Some(Some(byte & 0xf))
    }

    pub(super) fn list(&mut self) -> Option<(u64, Kind)> {
        let byte = self.byte()?;
        let len = match byte >> 4 {
            15 => self.varint()?,
            len => len.into(),
        };
        // Every element takes a byte at least.
        (len <= self.rest.len() as u64).then_some((len, byte & 0xf))
    }

    pub(super) fn skip(&mut self, kind: Kind, depth: usize) -> Option<()> {
        if depth > DEEPEST_FIELD {
            return None;
        }
        match kind {
            TRUE | FALSE => {}
            BYTE => _ = self.byte()?,
            kind if INTEGERS.contains(&kind) => _ = self.varint()?,
            DOUBLE => self.take(8)?,
            UUID => self.take(16)?,
            BINARY => {
                let len = self.varint()?;
                self.take(len)?;
            }
            LIST | SET => {
                let (len, kind) = self.list()?;
                for _ in 0..len {
                    self.skip_element(kind, depth + 1)?;
                }
            }
            MAP => {
                let len = self.varint()?;
                let kinds = if len == 0 { 0 } else { self.byte()? };
                for _ in 0..len {
                    self.skip_element(kinds >> 4, depth + 1)?;
                    self.skip_element(kinds & 0xf, depth + 1)?;
                }
            }
            STRUCT => {
                let mut id = 0;
                while let Some(kind) = self.field(&mut id)? {
                    self.skip(kind, depth + 1)?;
                }
            }
            _ => return None,
        }
        Some(())
    }

    /// An element of a collection, where a boolean takes a byte (as a field, its type is its value).
    fn skip_element(&mut self, kind: Kind, depth: usize) -> Option<()> {
        match kind {
            TRUE | FALSE => self.take(1),
            kind => self.skip(kind, depth),
        }
    }

    fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*byte)
    }

    fn take(&mut self, len: u64) -> Option<()> {
        self.rest = self.rest.get(usize::try_from(len).ok()?..)?;
        Some(())
    }

    /// A number in groups of seven bits, the lowest first.
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    /// A number whose lowest bit is its sign.
    pub(super) fn integer(&mut self) -> Option<i64> {
        self.varint().map(|value| (value >> 1) as i64 ^ -((value & 1) as i64))
    }
}
