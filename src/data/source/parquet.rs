//! Parquet: row groups, cut into units small enough to hold in memory; a unit is decoded as one. Reads the
//! footer when opened (and the heads of pages, where the footer does not say how long texts are that stand in the file once
//! and in many rows, as a system prompt does), and of the rest only the columns that are asked for.

mod delta;
mod measure;
mod nesting;
mod numbers;
mod pages;
mod runs;
mod takes;
mod thrift;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::ops::Range;
use std::sync::OnceLock;

use arrow::array::{RecordBatch, RecordBatchReader};
use arrow::compute::concat_batches;
use arrow::datatypes::Schema;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection, RowSelector,
};
use parquet::file::metadata::{ColumnChunkMetaData, PageIndexPolicy, RowGroupMetaData};

use super::fault::Fault;
use super::read_at::Location;
use measure::Column;
use takes::Takes;

/// Decoded size that a unit should not exceed, by what the file says of its sizes.
const UNIT: u64 = 16 << 20;
/// Rows of a unit at most.
const UNIT_ROWS: u64 = 1 << 16;

/// A Parquet file and its units.
#[derive(Debug)]
pub(super) struct ParquetFile {
    location: Location,
    metadata: ArrowReaderMetadata,
    /// Of each row group, what was found of the sizes of its pages.
    checked: Vec<OnceLock<Result<(), Fault>>>,
    units: Vec<Unit>,
    /// First row of each unit, ending with the number of rows.
    starts: Vec<u64>,
    /// Indices of the columns that are read.
    projection: Vec<usize>,
}

/// Consecutive rows of a row group.
#[derive(Clone, Copy, Debug)]
struct Unit {
    row_group: usize,
    /// Rows of the group before it.
    skip: u64,
    rows: u64,
}

impl ParquetFile {
    /// Reads the footer and checks what it says against the length of the file. Has no units until columns are chosen.
    pub(super) fn open(location: Location) -> Result<ParquetFile, Fault> {
        let input = location.open()?;
        check_nesting(&location, &input)?;
        // Offsets of pages, where the file has them, let a unit be reached without reading those before it.
        let options = ArrowReaderOptions::new().with_offset_index_policy(PageIndexPolicy::Optional);
        let metadata = ArrowReaderMetadata::load(&input, options)?;
        let mut rows = 0_u64;
        for group in metadata.metadata().row_groups() {
            check_ranges(group, location.len())?;
            rows = rows.saturating_add(u64::try_from(group.num_rows()).unwrap_or(0));
        }
        location.require_rows(rows)?;
        let checked = metadata.metadata().row_groups().iter().map(|_| OnceLock::new()).collect();
        Ok(ParquetFile {
            location,
            metadata,
            checked,
            units: Vec::new(),
            starts: vec![0, rows],
            projection: Vec::new(),
        })
    }

    pub(super) fn location(&self) -> &Location {
        &self.location
    }

    pub(super) fn schema(&self) -> &Schema {
        self.metadata.schema()
    }

    pub(super) fn rows(&self) -> u64 {
        self.starts[self.starts.len() - 1]
    }

    /// Which columns are read: units are cut by their sizes.
    pub(super) fn project(&mut self, columns: Vec<usize>) -> Result<(), Fault> {
        (self.units, self.starts) = (Vec::new(), vec![0]);
        let metadata = self.metadata.metadata().clone();
        for (row_group, group) in metadata.row_groups().iter().enumerate() {
            let rows = u64::try_from(group.num_rows()).ok().ok_or_else(|| {
                Fault::new(format!("corrupt Parquet data: a group of {} rows", group.num_rows()))
            })?;
            let size = match decoded_size(group, &columns) {
                Some(size) => size,
                None => self.at_most(row_group, rows, &columns)?,
            };
            let pieces = (size / UNIT + 1).max(rows.div_ceil(UNIT_ROWS)).min(rows);
            for piece in 0..pieces {
                let bound = |piece: u64| (u128::from(rows) * u128::from(piece) / u128::from(pieces)) as u64;
                let (skip, end) = (bound(piece), bound(piece + 1));
                self.starts.push(self.rows() + (end - skip));
                self.units.push(Unit { row_group, skip, rows: end - skip });
            }
        }
        self.projection = columns;
        Ok(())
    }

    /// First row of each unit.
    pub(super) fn units(&self) -> &[u64] {
        &self.starts[..self.units.len()]
    }

    /// The unit that holds `row`.
    pub(super) fn block_of(&self, row: u64) -> Range<u64> {
        let at = self.starts.partition_point(|&start| start <= row).saturating_sub(1);
        self.starts[at]..self.starts.get(at + 1).copied().unwrap_or(self.rows())
    }

    /// Decodes a unit, as given by [`block_of`](Self::block_of).
    pub(super) fn load(&self, rows: Range<u64>) -> Result<RecordBatch, Fault> {
        let at = self.starts.partition_point(|&start| start < rows.start);
        let Some(unit) = self.units.get(at) else { return Err(Fault::new("no such row")) };
        // A file of its own: the reader moves the cursor of the file that it is given.
        let input = self.location.open()?;
        self.check_pages(unit.row_group, &input)?;
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(input, self.metadata.clone());
        let mask = ProjectionMask::roots(builder.parquet_schema(), self.projection.iter().copied());
        let selection = RowSelection::from(vec![
            RowSelector::skip(unit.skip as usize),
            RowSelector::select(unit.rows as usize),
        ]);
        let reader = builder
            .with_projection(mask)
            .with_row_groups(vec![unit.row_group])
            .with_row_selection(selection)
            .with_batch_size(unit.rows as usize)
            .build()?;
        let schema = reader.schema();
        let batches = reader.collect::<Result<Vec<_>, _>>()?;
        let batch = match <[RecordBatch; 1]>::try_from(batches) {
            Ok([batch]) => batch,
            Err(batches) => concat_batches(&schema, &batches)?,
        };
        if batch.num_rows() as u64 == unit.rows {
            Ok(batch)
        } else {
            Err(Fault::new(format!(
                "corrupt Parquet data: {} rows where its footer says {}",
                batch.num_rows(),
                unit.rows
            )))
        }
    }

    /// Checks, once, what the columns of a row group that are read will take, unit by unit.
    fn check_pages(&self, row_group: usize, input: &File) -> Result<(), Fault> {
        let group = self.metadata.metadata().row_group(row_group);
        let index = self.metadata.metadata().page_index_for_row_group(row_group);
        let check = || {
            let mut takes = self.takes(row_group);
            let rows = u64::try_from(group.num_rows()).unwrap_or(0);
            self.bound(row_group, rows, &self.projection, input, &mut takes)?;
            if takes.all_fit() {
                return Ok(());
            }
            let mut takes = self.takes(row_group);
            projected(group, &self.projection).try_for_each(|(leaf, chunk)| {
                Column::new(chunk, rows).measure(input, index.offset_index(leaf), &mut takes)
            })
        };
        self.checked.get(row_group).map_or(Ok(()), |checked| checked.get_or_init(check).clone())
    }

    /// What some columns of a row group take at most when decoded.
    fn at_most(&self, row_group: usize, rows: u64, columns: &[usize]) -> Result<u64, Fault> {
        let mut takes = Takes::new(0, vec![0, rows], UNIT);
        self.bound(row_group, rows, columns, &self.location.open()?, &mut takes)?;
        Ok(takes.bytes().iter().sum())
    }

    /// Counts what some columns of a row group take at most, by the heads of their pages.
    fn bound(
        &self,
        row_group: usize,
        rows: u64,
        columns: &[usize],
        input: &File,
        takes: &mut Takes,
    ) -> Result<(), Fault> {
        let metadata = self.metadata.metadata();
        let index = metadata.page_index_for_row_group(row_group);
        projected(metadata.row_group(row_group), columns).try_for_each(|(leaf, chunk)| {
            let (column, index) = (Column::new(chunk, rows), index.offset_index(leaf));
            let heads = pages::heads(&self.location, input, &column, index)?;
            pages::bound(&heads, &column, takes, || column.longest(input, index))
        })
    }

    /// Nothing yet, for each unit of a row group.
    fn takes(&self, row_group: usize) -> Takes {
        let first = self.units.partition_point(|unit| unit.row_group < row_group);
        let units = self.units[first..].iter().take_while(|unit| unit.row_group == row_group);
        let mut starts = vec![0];
        starts.extend(units.map(|unit| unit.skip + unit.rows));
        Takes::new(self.starts[first], starts, self.location.largest_block())
    }
}

/// Looks at the footer before the decoder does. What is no footer at all is left for the decoder to say.
fn check_nesting(location: &Location, input: &File) -> Result<(), Fault> {
    const TRAILER: u64 = 8;
    let Some(end) = location.len().checked_sub(TRAILER) else { return Ok(()) };
    let trailer = location.read(input, end, TRAILER)?;
    let Some(len) = trailer.strip_suffix(b"PAR1").and_then(|len| len.first_chunk::<4>()) else {
        return Ok(());
    };
    let len = u64::from(u32::from_le_bytes(*len));
    match end.checked_sub(len) {
        Some(start) => nesting::check(&location.read(input, start, len)?),
        None => Ok(()),
    }
}

/// Every column chunk must lie in the file: the reader takes memory by what the footer says.
fn check_ranges(group: &RowGroupMetaData, file_len: u64) -> Result<(), Fault> {
    for column in group.columns() {
        let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
        let range = u64::try_from(start).ok().zip(u64::try_from(column.compressed_size()).ok());
        let end = range.and_then(|(start, len)| start.checked_add(len));
        if end.is_none_or(|end| end > file_len) || column.data_page_offset() < 0 {
            return Err(Fault::new(format!(
                "truncated or corrupt: column `{}` lies outside of the file, which has {file_len} bytes",
                column.column_path().string()
            )));
        }
    }
    Ok(())
}

/// The columns of a row group that are read, with their numbers.
fn projected<'a>(
    group: &'a RowGroupMetaData,
    projection: &'a [usize],
) -> impl Iterator<Item = (usize, &'a ColumnChunkMetaData)> {
    let schema = group.schema_descr();
    let leaves = group.columns().iter().enumerate();
    leaves.filter(move |(leaf, _)| projection.contains(&schema.get_column_root_idx(*leaf)))
}

/// What the columns of a row group take when decoded, as the footer says. `None`: it does not say of all texts how long they
/// are, however often each stands in the file.
fn decoded_size(group: &RowGroupMetaData, projection: &[usize]) -> Option<u64> {
    let rows = u64::try_from(group.num_rows()).unwrap_or(0);
    let size = |(_, chunk): (usize, &ColumnChunkMetaData)| {
        let column = Column::new(chunk, rows);
        let encoded = u64::try_from(chunk.uncompressed_size()).unwrap_or(0);
        let values = u64::try_from(chunk.num_values()).unwrap_or(0).saturating_mul(column.least());
        let texts = match column.is_text() {
            true => u64::try_from(chunk.unencoded_byte_array_data_bytes()?).unwrap_or(0),
            false => 0,
        };
        Some(encoded.max(texts).max(values))
    };
    projected(group, projection).map(size).try_fold(0_u64, |sum, size| Some(sum.saturating_add(size?)))
}
