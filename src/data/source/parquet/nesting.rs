//! How deep the columns of a Parquet file are nested, found out before its decoder looks: the decoder descends
//! by recursion, and a file that claims to be some ten thousand levels deep would exhaust the stack, which no
//! process survives. Reads just enough of the footer to count levels.

use super::super::fault::Fault;
use super::thrift::{INTEGERS, LIST, STRUCT, Thrift};

/// Levels of columns within columns. Real files have a handful.
const DEEPEST: usize = 100;

/// Field numbers of the format's `FileMetaData` and `SchemaElement`.
const SCHEMA: i64 = 2;
const NUM_CHILDREN: i64 = 5;

/// Checks the metadata of a file, without the length and the magic that follow it.
pub(super) fn check(metadata: &[u8]) -> Result<(), Fault> {
    let mut thrift = Thrift { rest: metadata };
    match schema_depth(&mut thrift) {
        Some(depth) if depth > DEEPEST => Err(Fault::new(format!(
            "corrupt Parquet data: columns nested {depth} levels deep; {DEEPEST} are read"
        ))),
        Some(_) => Ok(()),
        None => Err(Fault::new("corrupt Parquet data: the footer cannot be parsed")),
    }
}

/// The depth of the schema, a tree laid out depth first by each element's number of children.
fn schema_depth(thrift: &mut Thrift<'_>) -> Option<usize> {
    let mut id = 0;
    while let Some(kind) = thrift.field(&mut id)? {
        if id != SCHEMA || kind != LIST {
            thrift.skip(kind, 0)?;
            continue;
        }
        let (elements, STRUCT) = thrift.list()? else { return None };
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
            match children(thrift)? {
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
fn children(thrift: &mut Thrift<'_>) -> Option<u64> {
    let (mut id, mut children) = (0, 0);
    while let Some(kind) = thrift.field(&mut id)? {
        if id == NUM_CHILDREN && INTEGERS.contains(&kind) {
            children = u64::try_from(thrift.integer()?).ok()?;
        } else {
            thrift.skip(kind, 0)?;
        }
    }
    Some(children)
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
            assert_eq!(schema_depth(&mut Thrift { rest: &nested(levels) }), Some(levels as usize));
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
