//! What the rows of a column take in memory when they are decoded, measured: reads its pages, one at a time, and of each value
//! its length alone. For columns of which the heads of the pages (`pages`) leave it open: values that stand in a
//! dictionary once, and in the rows as often as it pleases whoever made the file.

use std::fs::File;
use std::sync::Arc;

use parquet::basic::{Encoding, Type};
use parquet::column::page::{Page, PageReader};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::page_index::offset_index::OffsetIndexMetaData;
use parquet::file::serialized_reader::SerializedPageReader;

use super::super::fault::Fault;
use super::delta::Delta;
use super::runs::Runs;
use super::takes::Takes;

/// Bytes that a value takes beside itself: its levels, its place and whether it is there.
const BESIDE: u64 = 16;
/// And in each list around it.
const IN_LIST: u64 = 8;

/// A column chunk.
pub(super) struct Column<'a> {
    pub(super) chunk: &'a ColumnChunkMetaData,
    /// As errors name it.
    pub(super) name: String,
    /// Of its row group.
    pub(super) rows: u64,
}

impl Column<'_> {
    pub(super) fn new(chunk: &ColumnChunkMetaData, rows: u64) -> Column<'_> {
        Column { chunk, name: chunk.column_path().string(), rows }
    }

    /// Whether a row has a list of values.
    pub(super) fn repeats(&self) -> bool {
        self.max_repetition() > 0
    }

    /// Whether its values have lengths of their own.
    pub(super) fn is_text(&self) -> bool {
        self.chunk.column_type() == Type::BYTE_ARRAY
    }

    /// What a value takes, there or not, beside its text.
    pub(super) fn each(&self) -> u64 {
        BESIDE + IN_LIST * u64::from(self.max_repetition()) + if self.is_text() { 0 } else { self.width() }
    }

    /// Bytes that a value takes in a dictionary at least.
    pub(super) fn least(&self) -> u64 {
        if self.is_text() { size_of::<u32>() as u64 } else { self.width().max(1) }
    }

    fn width(&self) -> u64 {
        match self.chunk.column_type() {
            Type::BOOLEAN | Type::BYTE_ARRAY => 1,
            Type::INT32 | Type::FLOAT => 4,
            Type::INT64 | Type::DOUBLE => 8,
            Type::INT96 => 12,
            Type::FIXED_LEN_BYTE_ARRAY => u64::try_from(self.chunk.column_descr().type_length()).unwrap_or(0),
        }
    }

    fn max_repetition(&self) -> u16 {
        u16::try_from(self.chunk.column_descr().max_rep_level()).unwrap_or(0)
    }

    fn max_definition(&self) -> u16 {
        u16::try_from(self.chunk.column_descr().max_def_level()).unwrap_or(0)
    }

    /// Where pages begin, by an index that errs.
    pub(super) fn wrong_index(&self, said: i64, found: u64) -> Fault {
        corrupt(&format!(
            "its index says that a page of column `{}` begins with row {said} of its group; it is row {found}",
            self.name
        ))
    }

    fn pages(&self, input: &File, index: Option<&OffsetIndexMetaData>) -> Result<Pages, Fault> {
        let locations = index.map(|index| index.page_locations().clone());
        let rows = usize::try_from(self.rows).unwrap_or(usize::MAX);
        Ok(SerializedPageReader::new(Arc::new(input.try_clone()?), self.chunk, rows, locations)?)
    }

    /// The longest value of the dictionary.
    pub(super) fn longest(&self, input: &File, index: Option<&OffsetIndexMetaData>) -> Result<u64, Fault> {
        match self.pages(input, index)?.get_next_page()? {
            Some(Page::DictionaryPage { buf, .. }) => Ok(Plain(&buf).map(u64::from).max().unwrap_or(0)),
            _ => Err(corrupt(&format!("column `{}` does not begin with its dictionary", self.name))),
        }
    }

    /// Counts what each of its values takes. Its heads were found good.
    ///
    /// # Errors
    /// A page does not hold what its head says, or a unit takes more than it may.
    pub(super) fn measure(
        &self,
        input: &File,
        index: Option<&OffsetIndexMetaData>,
        takes: &mut Takes,
    ) -> Result<(), Fault> {
        let mut pages = self.pages(input, index)?;
        let mut firsts =
            index.into_iter().flat_map(|index| index.page_locations()).map(|page| page.first_row_index);
        let mut dictionary = None;
        // Rows begun.
        let mut rows = 0;
        while self.repeats() || rows < self.rows {
            let Some(page) = pages.get_next_page()? else { break };
            if let Page::DictionaryPage { buf, .. } = &page {
                let lengths = || Plain(buf).collect::<Vec<u32>>();
                dictionary = Some(if self.is_text() { lengths() } else { Vec::new() });
                continue;
            }
            if let Some(said) = firsts.next()
                && u64::try_from(said).ok() != Some(rows)
            {
                return Err(self.wrong_index(said, rows));
            }
            let begun = rows;
            self.measure_page(&page, dictionary.as_deref(), &mut rows, takes)?;
            if let Page::DataPageV2 { num_rows, .. } = page
                && u64::from(num_rows) != rows - begun
            {
                return Err(self.wrong());
            }
        }
        if rows == self.rows { Ok(()) } else { Err(self.wrong()) }
    }

    fn measure_page(
        &self,
        page: &Page,
        dictionary: Option<&[u32]>,
        rows: &mut u64,
        takes: &mut Takes,
    ) -> Result<(), Fault> {
        let parts = Parts::of(page, self).ok_or_else(|| self.wrong())?;
        let (max_repetition, max_definition) = (self.max_repetition(), self.max_definition());
        let mut repetitions = Runs::new(parts.repetitions, Runs::width_of(max_repetition));
        let mut definitions = Runs::new(parts.definitions, Runs::width_of(max_definition));
        let values = u64::from(page.num_values());
        let mut lengths = self.lengths(parts.values, page.encoding(), values, dictionary, takes.most())?;
        for _ in 0..values {
            let level = |runs: &mut Runs<'_>, most: u16| match most {
                0 => Some(0),
                _ => runs.next(),
            };
            let repetition = level(&mut repetitions, max_repetition).ok_or_else(|| self.wrong())?;
            let definition = level(&mut definitions, max_definition).ok_or_else(|| self.wrong())?;
            *rows += u64::from(repetition == 0);
            let is_there = definition == u32::from(max_definition);
            let length = if is_there { lengths.next().ok_or_else(|| self.wrong())? } else { 0 };
            let row = rows.checked_sub(1).filter(|row| *row < self.rows).ok_or_else(|| self.wrong())?;
            takes.add(row, self.each() + u64::from(length), &self.name)?;
        }
        Ok(())
    }

    fn lengths<'p>(
        &self,
        values: &'p [u8],
        encoding: Encoding,
        count: u64,
        dictionary: Option<&'p [u32]>,
        most: u64,
    ) -> Result<Lengths<'p>, Fault> {
        let lengths_apart = |bytes| {
            let lengths = Delta::new(bytes).ok_or_else(|| self.wrong())?;
            // The decoder takes memory for all of them at once, twice.
            let takes = count.saturating_mul(2 * size_of::<i32>() as u64);
            if lengths.left() <= count && takes <= most { Ok(lengths) } else { Err(self.wrong()) }
        };
        Ok(match encoding {
            Encoding::DELTA_LENGTH_BYTE_ARRAY => Lengths::Apart(lengths_apart(values)?),
            Encoding::DELTA_BYTE_ARRAY => {
                let prefixes = lengths_apart(values)?;
                let behind = prefixes.clone().behind().ok_or_else(|| self.wrong())?;
                Lengths::Shared { prefixes, suffixes: lengths_apart(behind)?, last: 0 }
            }
            _ if !self.is_text() => Lengths::None,
            Encoding::PLAIN => Lengths::Plain(Plain(values)),
            Encoding::RLE_DICTIONARY | Encoding::PLAIN_DICTIONARY => {
                let dictionary = dictionary.ok_or_else(|| self.wrong())?;
                // Where no value is there, nothing need say how many bits one takes.
                let (width, indices) = values.split_first().unwrap_or((&0, &[]));
                Lengths::Dictionary(Runs::new(indices, u32::from(*width)), dictionary)
            }
            other => return Err(corrupt(&format!("column `{}` has texts encoded as {other}", self.name))),
        })
    }

    fn wrong(&self) -> Fault {
        corrupt(&format!("a page of column `{}` does not hold what its head says", self.name))
    }
}

type Pages = SerializedPageReader<File>;

/// The three parts of a data page.
struct Parts<'a> {
    repetitions: &'a [u8],
    definitions: &'a [u8],
    values: &'a [u8],
}

impl<'a> Parts<'a> {
    fn of(page: &'a Page, column: &Column<'_>) -> Option<Parts<'a>> {
        match page {
            Page::DataPage { buf, def_level_encoding, rep_level_encoding, .. } => {
                let mut rest: &[u8] = buf;
                let mut levels = |encoding: Encoding, most: u16| -> Option<&'a [u8]> {
                    if most == 0 {
                        return Some(&[]);
                    }
                    if encoding != Encoding::RLE {
                        return None;
                    }
                    let (len, behind) = rest.split_first_chunk::<4>()?;
                    let (levels, values) = behind.split_at_checked(u32::from_le_bytes(*len) as usize)?;
                    rest = values;
                    Some(levels)
                };
                let repetitions = levels(*rep_level_encoding, column.max_repetition())?;
                let definitions = levels(*def_level_encoding, column.max_definition())?;
                Some(Parts { repetitions, definitions, values: rest })
            }
            Page::DataPageV2 { buf, def_levels_byte_len, rep_levels_byte_len, .. } => {
                let (repetitions, rest) = buf.split_at_checked(*rep_levels_byte_len as usize)?;
                let (definitions, values) = rest.split_at_checked(*def_levels_byte_len as usize)?;
                Some(Parts { repetitions, definitions, values })
            }
            Page::DictionaryPage { .. } => None,
        }
    }
}

/// The lengths of texts that lie one behind the other, each behind its own.
struct Plain<'a>(&'a [u8]);

impl Iterator for Plain<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let (len, rest) = self.0.split_first_chunk::<4>()?;
        let len = u32::from_le_bytes(*len);
        self.0 = rest.get(len as usize..)?;
        Some(len)
    }
}

/// How long the values of a page are, one after the other. `None`: there are no more.
enum Lengths<'a> {
    /// They have no lengths of their own.
    None,
    Plain(Plain<'a>),
    Dictionary(Runs<'a>, &'a [u32]),
    Apart(Delta<'a>),
    /// Each begins as the one before it.
    Shared {
        prefixes: Delta<'a>,
        suffixes: Delta<'a>,
        last: u32,
    },
}

impl Lengths<'_> {
    fn next(&mut self) -> Option<u32> {
        match self {
            Lengths::None => Some(0),
            Lengths::Plain(lengths) => lengths.next(),
            Lengths::Dictionary(indices, lengths) => lengths.get(indices.next()? as usize).copied(),
            Lengths::Apart(lengths) => lengths.next(),
            Lengths::Shared { prefixes, suffixes, last } => {
                // More than the one before it had, it has not in common with it.
                *last = prefixes.next()?.min(*last).checked_add(suffixes.next()?)?;
                Some(*last)
            }
        }
    }
}

pub(super) fn corrupt(problem: &str) -> Fault {
    Fault::new(format!("corrupt Parquet data: {problem}"))
}
