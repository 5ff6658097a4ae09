//! What the pages of a column say of their size in memory, found out before the decoder takes that much: a page of some
//! bytes may say that it becomes gibibytes. Reads the heads of the pages, no page.

use std::fs::File;

use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::page_index::offset_index::OffsetIndexMetaData;

use super::super::fault::Fault;
use super::super::read_at::Location;
use super::thrift::{INTEGERS, STRUCT, Thrift};
use crate::units::Bytes;

/// Field numbers of the format's `PageHeader`, and of the number of values in both of its data pages.
const UNCOMPRESSED_SIZE: i64 = 2;
const COMPRESSED_SIZE: i64 = 3;
const DATA_PAGES: [i64; 2] = [5, 8];
const NUM_VALUES: i64 = 1;

/// So much is read for the head of a page at first. One with long least and greatest values takes more.
const PIECE: u64 = 1 << 10;

/// What the head of a page says, and how long it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    len: u64,
    compressed: u64,
    uncompressed: u64,
    /// None in a dictionary.
    values: u64,
}

/// Walks through the pages of a column chunk, which lies in the file; `index` is what the file says of where they lie, if it
/// does, which the decoder believes.
///
/// # Errors
/// A page is larger than a block of this file may be, or its head cannot be read.
pub(super) fn check(
    location: &Location,
    input: &File,
    column: &ColumnChunkMetaData,
    index: Option<&OffsetIndexMetaData>,
) -> Result<(), Fault> {
    let page = |at: u64, end: u64| {
        let head = head(location, input, at, end)?;
        let most = location.largest_block();
        if head.uncompressed > most {
            return Err(Fault::new(format!(
                "a page of column `{}` of {}, more than the {} that one of this file may take in memory; write it anew with \
                 smaller pages",
                column.column_path().string(),
                Bytes(head.uncompressed),
                Bytes(most)
            )));
        }
        Ok(head)
    };
    let (start, len) = column.byte_range();
    let (mut at, end) = (start, start + len);
    // What follows the last value, nobody reads.
    let mut values = u64::try_from(column.num_values()).unwrap_or(0);
    while at < end && values > 0 {
        let head = page(at, end)?;
        values = values.saturating_sub(head.values);
        at = at.saturating_add(head.len).saturating_add(head.compressed);
    }
    for listed in index.into_iter().flat_map(OffsetIndexMetaData::page_locations) {
        let place = u64::try_from(listed.offset).ok().zip(u64::try_from(listed.compressed_page_size).ok());
        let end = place.and_then(|(at, len)| at.checked_add(len)).filter(|end| *end <= location.len());
        let (Some((at, _)), Some(end)) = (place, end) else {
            return Err(Fault::new("corrupt Parquet data: its index names a page outside of the file"));
        };
        page(at, end)?;
    }
    Ok(())
}

/// The head of the page at `at`, in a chunk that ends at `end`.
fn head(location: &Location, input: &File, at: u64, end: u64) -> Result<Head, Fault> {
    let mut piece = PIECE;
    loop {
        let read = piece.min(end - at);
        let bytes = location.read(input, at, read)?;
        match parse(&bytes) {
            Some(head) => return Ok(head),
            None if read == end - at => {
                return Err(Fault::new(format!(
                    "corrupt Parquet data: no page where one must stand, at {at}"
                )));
            }
            None => piece *= 8,
        }
    }
}

/// `None`: the bytes end too early, or are no head.
fn parse(bytes: &[u8]) -> Option<Head> {
    let mut thrift = Thrift { rest: bytes };
    let (mut id, mut compressed, mut uncompressed, mut values) = (0, None, None, 0);
    while let Some(kind) = thrift.field(&mut id)? {
        match id {
            UNCOMPRESSED_SIZE if INTEGERS.contains(&kind) => {
                uncompressed = Some(u64::try_from(thrift.integer()?).ok()?);
            }
            COMPRESSED_SIZE if INTEGERS.contains(&kind) => {
                compressed = Some(u64::try_from(thrift.integer()?).ok()?);
            }
            id if DATA_PAGES.contains(&id) && kind == STRUCT => values = num_values(&mut thrift)?,
            _ => thrift.skip(kind, 0)?,
        }
    }
    Some(Head {
        len: (bytes.len() - thrift.rest.len()) as u64,
        compressed: compressed?,
        values,
        uncompressed: uncompressed?,
    })
}

/// The number of values that the head of a data page says.
fn num_values(thrift: &mut Thrift<'_>) -> Option<u64> {
    let (mut id, mut values) = (0, 0);
    while let Some(kind) = thrift.field(&mut id)? {
        match id {
            NUM_VALUES if INTEGERS.contains(&kind) => values = u64::try_from(thrift.integer()?).ok()?,
            _ => thrift.skip(kind, 0)?,
        }
    }
    Some(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Type 0, sizes 3 and 2, the head of a data page of four values, the end, and what follows.
    const PAGE: [u8; 12] = [0x15, 0, 0x15, 6, 0x15, 4, 0x2c, 0x15, 8, 0, 0, 0xaa];

    #[test]
    fn a_head_says_its_sizes_and_ends_where_it_ends() {
        assert_eq!(parse(&PAGE), Some(Head { len: 11, compressed: 2, uncompressed: 3, values: 4 }));
        for cut in 0..11 {
            assert_eq!(parse(&PAGE[..cut]), None, "{cut}");
        }
        let mut negative = PAGE;
        negative[3] = 5;
        assert_eq!(parse(&negative), None);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..100)) {
            let _ = parse(&bytes);
        }
    }
}
