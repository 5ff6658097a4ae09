//! How deep the columns of a Parquet file are nested, found out before its decoder looks: the decoder descends
//! by recursion, and a file that claims to be some ten thousand levels deep would exhaust the stack, which no
//! process survives. Reads just enough of the footer (Thrift's compact protocol) to count levels.

use super::super::fault::Fault;

/// Levels of columns within columns. Real files have a handful.
const DEEPEST: usize = 100;
/// Levels of Thrift values within one field that is skipped.
const DEEPEST_FIELD: usize = 32;

/// Field numbers of the format's `FileMetaData` and `SchemaElement`.
const SCHEMA: i64 = 2;
const NUM_CHILDREN: i64 = 5;

/// Checks the metadata of a file, without the length and the magic that follow it.
pub(super) fn check(metadata: &[u8]) -> Result<(), Fault> {
    let mut thrift = Thrift { rest: metadata };
    match thrift.schema_depth() {
        Some(depth) if depth > DEEPEST => Err(Fault::new(format!(
            "corrupt Parquet data: columns nested {depth} levels deep; {DEEPEST} are read"
        ))),
        Some(_) => Ok(()),
        None => Err(Fault::new("corrupt Parquet data: the footer cannot be parsed")),
    }
}

/// A type of the compact protocol, as its nibble says.
type Kind = u8;
const TRUE: Kind = 1;
const FALSE: Kind = 2;
const BYTE: Kind = 3;
const INTEGERS: std::ops::RangeInclusive<Kind> = 4..=6;
const DOUBLE: Kind = 7;
const BINARY: Kind = 8;
const LIST: Kind = 9;
const SET: Kind = 10;
const MAP: Kind = 11;
const STRUCT: Kind = 12;
const UUID: Kind = 13;

/// The bytes not yet read. `None` everywhere: they end too early, or mean nothing.
struct Thrift<'a> {
    rest: &'a [u8],
}

impl Thrift<'_> {
    /// The depth of the schema, a tree laid out depth first by each element's number of children.
    fn schema_depth(&mut self) -> Option<usize> {
        let mut id = 0;
        while let Some(kind) = self.field(&mut id)? {
            if id != SCHEMA || kind != LIST {
                self.skip(kind, 0)?;
                continue;
            }
            let (elements, STRUCT) = self.list()? else { return None };
            // Children still to come, of each element that is open.
            let mut open: Vec<u64> = Vec::new();
            let mut deepest = 0;
            for _ in 0..elements {
                while open.last() == Some(&0) {
                    open.pop();
                }
                if let Some(children) = open.last_mut() {
                    *children -= 1;
                }
                match self.children()? {
                    0 => {}
                    children => open.push(children),
                }
                deepest = deepest.max(open.len());
            }
            return Some(deepest);
        }
        Some(0)
    }

    /// One schema element: its number of children.
    fn children(&mut self) -> Option<u64> {
        let (mut id, mut children) = (0, 0);
        while let Some(kind) = self.field(&mut id)? {
            if id == NUM_CHILDREN && INTEGERS.contains(&kind) {
                children = u64::try_from(self.integer()?).ok()?;
            } else {
                self.skip(kind, 0)?;
            }
        }
        Some(children)
    }

    /// The head of the next field of a struct; `None` inside: there is none.
    fn field(&mut self, id: &mut i64) -> Option<Option<Kind>> {
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

    fn list(&mut self) -> Option<(u64, Kind)> {
        let byte = self.byte()?;
        let len = match byte >> 4 {
            15 => self.varint()?,
            len => len.into(),
        };
        // Every element takes a byte at least.
        (len <= self.rest.len() as u64).then_some((len, byte & 0xf))
    }

    fn skip(&mut self, kind: Kind, depth: usize) -> Option<()> {
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

    /// Zigzag: the sign in the lowest bit.
    fn integer(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1) as i64 ^ -((value & 1) as i64))
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::read_at::Location;
    use super::super::ParquetFile;
    use super::*;

    /// The metadata of a file without rows whose only column lies `levels` groups deep.
    fn nested(levels: u64) -> Vec<u8> {
        let varint = |mut value: u64| {
            let mut bytes = Vec::new();
            while value >= 0x80 {
                bytes.push(value as u8 | 0x80);
                value >>= 7;
            }
            bytes.push(value as u8);
            bytes
        };
        // Repetition, name, one child; and for the leaf a type in their place.
        let group = [0x35, 2, 0x18, 1, b'g', 0x15, 2, 0];
        let leaf = [0x15, 12, 0x25, 2, 0x18, 1, b'g', 0];
        let mut bytes = vec![0x15, 2, 0x19, 0xfc];
        bytes.extend(varint(levels + 1));
        (0..levels).for_each(|_| bytes.extend(group));
        bytes.extend(leaf);
        // No rows, no row groups, the end.
        bytes.extend([0x16, 0, 0x19, 0x0c, 0]);
        bytes
    }

    fn file(metadata: &[u8]) -> Vec<u8> {
        [b"PAR1", metadata, &(metadata.len() as u32).to_le_bytes(), b"PAR1"].concat()
    }

    #[test]
    fn levels_are_counted() {
        for levels in [0, 1, 5, 100, 20_000] {
            assert_eq!(Thrift { rest: &nested(levels) }.schema_depth(), Some(levels as usize));
        }
        assert!(check(&nested(100)).is_ok());
        assert!(check(&nested(101)).unwrap_err().to_string().contains("nested 101 levels deep"));
        for cut in 0..nested(3).len() - 6 {
            assert!(check(&nested(3)[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn a_file_of_too_many_levels_is_refused_and_one_of_few_is_understood() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        let open = |levels| {
            std::fs::write(&path, file(&nested(levels))).unwrap();
            ParquetFile::open(Location::new(path.as_path().into()).unwrap())
        };
        assert_eq!(open(5).unwrap().rows(), 0);
        assert_eq!(open(100).unwrap().rows(), 0);
        assert!(open(200_000).unwrap_err().to_string().contains("levels deep"));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = check(&bytes);
        }
    }
}
