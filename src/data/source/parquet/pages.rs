//! What the heads of a column's pages say of their size in memory, found out before the decoder takes that much: a page of
//! some bytes may say that it becomes gibibytes, and so may a page whose values stand in a dictionary or share their
//! beginnings. Reads the heads, and of the pages at most the dictionary; what heads leave open is `measure`'s.

use std::fs::File;
use std::ops::Range;

use parquet::file::page_index::offset_index::OffsetIndexMetaData;

use super::super::fault::Fault;
use super::super::read_at::Location;
use super::measure::{Column, corrupt};
use super::takes::Takes;
use super::thrift::{INTEGERS, STRUCT, Thrift};
use crate::units::Bytes;

/// Field numbers of the format's `PageHeader`; of the data pages of both versions, and of a dictionary.
const TYPE: i64 = 1;
const UNCOMPRESSED_SIZE: i64 = 2;
const COMPRESSED_SIZE: i64 = 3;
const DATA_PAGE: i64 = 5;
const DICTIONARY_PAGE: i64 = 7;
const DATA_PAGE_V2: i64 = 8;
/// Of all three: the number of values.
const NUM_VALUES: i64 = 1;
const NUM_ROWS_V2: i64 = 3;
const ENCODING: i64 = 2;
const ENCODING_V2: i64 = 4;

/// Numbers of encodings.
const IN_DICTIONARY: [i64; 2] = [2, 8];
const WITH_LENGTHS_APART: [i64; 2] = [6, 7];

/// So much is read for the head of a page at first. One with long least and greatest values takes more.
const PIECE: u64 = 1 << 10;

/// What the head of a page says, and how long it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    len: u64,
    compressed: u64,
    uncompressed: u64,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Dictionary {
        values: u64,
    },
    Data {
        values: u64,
        /// Said by version 2.
        rows: Option<u64>,
        encoding: i64,
    },
    /// One that the decoder passes over.
    Other,
}

/// The heads of the pages of a column chunk that the decoder will read, in its order; `index` is what the file says of where
/// they lie, if it does, which the decoder believes.
///
/// # Errors
/// A page is larger than a block of this file may be, its head cannot be read, there are more values than a file of this
/// length has, or the index is wrong.
pub(super) fn heads(
    location: &Location,
    input: &File,
    column: &Column<'_>,
    index: Option<&OffsetIndexMetaData>,
) -> Result<Vec<Head>, Fault> {
    let mut found = Found { location, input, column, heads: Vec::new(), values: 0 };
    let (start, len) = column.chunk.byte_range();
    let Some(index) = index else {
        let (mut at, end) = (start, start + len);
        // What follows the last row, nobody reads; where rows have many values, the decoder looks for more.
        while at < end && (column.repeats() || found.values < column.rows) {
            at = found.add(at..end)?;
        }
        return Ok(found.heads);
    };
    let listed = index.page_locations();
    if let Some(first) = listed.first().and_then(|first| u64::try_from(first.offset).ok())
        && start < first
    {
        found.add(start..first.min(location.len()))?;
    }
    for listed in listed {
        let place = u64::try_from(listed.offset).ok().zip(u64::try_from(listed.compressed_page_size).ok());
        let end = place.and_then(|(at, len)| at.checked_add(len)).filter(|end| *end <= location.len());
        let (Some((at, _)), Some(end)) = (place, end) else {
            return Err(Fault::new("corrupt Parquet data: its index names a page outside of the file"));
        };
        if !column.repeats() && u64::try_from(listed.first_row_index).ok() != Some(found.values) {
            return Err(column.wrong_index(listed.first_row_index, found.values));
        }
        found.add(at..end)?;
    }
    Ok(found.heads)
}

struct Found<'a> {
    location: &'a Location,
    input: &'a File,
    column: &'a Column<'a>,
    heads: Vec<Head>,
    /// In the data pages so far.
    values: u64,
}

impl Found<'_> {
    /// Reads the head of the page that lies in some bytes of the file, at their beginning. Where the next one may lie.
    fn add(&mut self, place: Range<u64>) -> Result<u64, Fault> {
        let head = head(self.location, self.input, place.start, place.end)?;
        let most = self.location.largest_block();
        if head.uncompressed > most {
            return Err(Fault::new(format!(
                "a page of column `{}` of {}, more than the {} that one of this file may take in memory; write it anew with \
                 smaller pages",
                self.column.name,
                Bytes(head.uncompressed),
                Bytes(most)
            )));
        }
        match head.kind {
            // The decoder takes memory for each before it reads the first.
            Kind::Dictionary { values } if values.saturating_mul(self.column.least()) > head.uncompressed => {
                return Err(corrupt(&format!(
                    "a dictionary of {values} values in {} bytes, in column `{}`",
                    head.uncompressed, self.column.name
                )));
            }
            Kind::Dictionary { .. } | Kind::Other => {}
            Kind::Data { values, rows, .. } => {
                if !self.column.repeats() && rows.is_some_and(|rows| rows != values) {
                    return Err(corrupt(&format!(
                        "a page of column `{}` with more or fewer values than rows",
                        self.column.name
                    )));
                }
                self.values = self.values.saturating_add(values);
                self.location.require_values(self.values, &self.column.name)?;
            }
        }
        self.heads.push(head);
        Ok(place.start.saturating_add(head.len).saturating_add(head.compressed))
    }
}

/// Counts what the rows of a column take at most, by the heads of its pages; what those do not tell is left open. `longest`: of
/// the values of its dictionary; not asked for where it does not matter.
pub(super) fn bound(
    heads: &[Head],
    column: &Column<'_>,
    takes: &mut Takes,
    longest: impl FnOnce() -> Result<u64, Fault>,
) -> Result<(), Fault> {
    let in_dictionary = |head: &Head| match head.kind {
        Kind::Data { values, encoding, .. } if IN_DICTIONARY.contains(&encoding) => values,
        _ => 0,
    };
    let repeated = heads.iter().map(in_dictionary).fold(0, u64::saturating_add);
    let dictionary = heads.iter().find(|head| matches!(head.kind, Kind::Dictionary { .. }));
    // No value is longer than the page of all.
    let mut most = if column.is_text() { dictionary.map_or(0, |head| head.uncompressed) } else { 0 };
    if repeated.saturating_mul(most) > takes.most() {
        most = longest()?;
    }
    let mut row = 0_u64;
    for head in heads {
        let Kind::Data { values, encoding, .. } = head.kind else { continue };
        let (each, whole) = match encoding {
            encoding if IN_DICTIONARY.contains(&encoding) => (most, 0),
            encoding if WITH_LENGTHS_APART.contains(&encoding) => {
                takes.leave_open();
                (0, head.uncompressed)
            }
            _ => (0, head.uncompressed),
        };
        let each = each.saturating_add(column.each());
        if column.repeats() {
            takes.add_anywhere(values.saturating_mul(each).saturating_add(whole));
        } else {
            takes.add_rows(row..row.saturating_add(values), each, whole);
        }
        row = row.saturating_add(values);
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
    let (mut id, mut compressed, mut uncompressed, mut page_type) = (0, None, None, None);
    let (mut data, mut data_v2, mut dictionary) = (None, None, None);
    while let Some(kind) = thrift.field(&mut id)? {
        match id {
            TYPE if INTEGERS.contains(&kind) => page_type = Some(thrift.integer()?),
            UNCOMPRESSED_SIZE if INTEGERS.contains(&kind) => {
                uncompressed = Some(u64::try_from(thrift.integer()?).ok()?);
            }
            COMPRESSED_SIZE if INTEGERS.contains(&kind) => {
                compressed = Some(u64::try_from(thrift.integer()?).ok()?);
            }
            DATA_PAGE if kind == STRUCT => data = Some(integers(&mut thrift)?),
            DICTIONARY_PAGE if kind == STRUCT => dictionary = Some(integers(&mut thrift)?),
            DATA_PAGE_V2 if kind == STRUCT => data_v2 = Some(integers(&mut thrift)?),
            _ => thrift.skip(kind, 0)?,
        }
    }
    let count = |fields: Fields, id: i64| u64::try_from(fields[id as usize]?).ok();
    let kind = match page_type? {
        0 => {
            let fields = data?;
            let encoding = fields[ENCODING as usize]?;
            Kind::Data { values: count(fields, NUM_VALUES)?, rows: None, encoding }
        }
        2 => Kind::Dictionary { values: count(dictionary?, NUM_VALUES)? },
        3 => {
            let fields = data_v2?;
            let (rows, encoding) = (Some(count(fields, NUM_ROWS_V2)?), fields[ENCODING_V2 as usize]?);
            Kind::Data { values: count(fields, NUM_VALUES)?, rows, encoding }
        }
        _ => Kind::Other,
    };
    let len = (bytes.len() - thrift.rest.len()) as u64;
    Some(Head { len, compressed: compressed?, uncompressed: uncompressed?, kind })
}

/// The first fields of a struct that are integers, by their numbers.
type Fields = [Option<i64>; 5];

fn integers(thrift: &mut Thrift<'_>) -> Option<Fields> {
    let (mut id, mut fields) = (0, Fields::default());
    while let Some(kind) = thrift.field(&mut id)? {
        match usize::try_from(id).ok().and_then(|id| fields.get_mut(id)) {
            Some(field) if INTEGERS.contains(&kind) => *field = Some(thrift.integer()?),
            _ => thrift.skip(kind, 0)?,
        }
    }
    Some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Type 0, sizes 3 and 2, the head of a data page of four values as they are, the end, and what follows.
    const PAGE: [u8; 14] = [0x15, 0, 0x15, 6, 0x15, 4, 0x2c, 0x15, 8, 0x15, 0, 0, 0, 0xaa];

    #[test]
    fn a_head_says_its_sizes_and_ends_where_it_ends() {
        let kind = Kind::Data { values: 4, rows: None, encoding: 0 };
        assert_eq!(parse(&PAGE), Some(Head { len: 13, compressed: 2, uncompressed: 3, kind }));
        for cut in 0..13 {
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
