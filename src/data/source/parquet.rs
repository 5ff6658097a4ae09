//! Parquet: row groups, cut into units small enough to hold in memory; a unit is decoded as one, a few rows at a time.
//! Reads the footer when opened, and of the rest only the columns that are asked for.
//!
//! Texts are read as views: a value that stands in a dictionary once, and in thousands of rows (a system prompt), is held
//! once. What grows all the same (values that share their beginnings, pages that become gibibytes) meets a cap.

mod nesting;
mod thrift;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use arrow_array::{Array, StructArray};
use arrow_buffer::Buffer;
use arrow_data::ArrayData;
use arrow_schema::{DataType, FieldRef, Schema};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection, RowSelector,
};
use parquet::basic::{ConvertedType, Type};
use parquet::file::metadata::{ColumnChunkMetaData, PageIndexPolicy, RowGroupMetaData};

use super::fault::Fault;
use super::read_at::Location;
use crate::units::Bytes;

/// Decoded size that a unit should not exceed, by the sizes in the footer.
const UNIT: u64 = 16 << 20;
/// Rows of a unit at most.
const UNIT_ROWS: u64 = 1 << 16;
/// Rows decoded at a time: what they take is known before the next are decoded.
const BATCH_ROWS: usize = 64;

/// A Parquet file and its units.
#[derive(Debug)]
pub(super) struct ParquetFile {
    location: Location,
    metadata: ArrowReaderMetadata,
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
        let metadata = ArrowReaderMetadata::load(&input, options.clone())?;
        let views: Vec<FieldRef> = metadata.schema().fields().iter().map(with_views).collect();
        let schema = Schema::new_with_metadata(views, metadata.schema().metadata().clone());
        let options = options.with_schema(Arc::new(schema));
        let metadata = ArrowReaderMetadata::try_new(metadata.metadata().clone(), options)?;
        let mut rows = 0_u64;
        for group in metadata.metadata().row_groups() {
            check_ranges(group, location.len())?;
            rows = rows.saturating_add(u64::try_from(group.num_rows()).unwrap_or(0));
        }
        location.require_rows(rows)?;
        Ok(ParquetFile {
            location,
            metadata,
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
            for chunk in projected(group, &columns) {
                let values = u64::try_from(chunk.num_values()).unwrap_or(0);
                self.location.require_values(values, &chunk.column_path().string())?;
            }
            let pieces = (decoded_size(group, &columns) / UNIT + 1).max(rows.div_ceil(UNIT_ROWS)).min(rows);
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

    /// Decodes a unit, as given by [`block_of`](Self::block_of). Returns its rows in order, and the bytes that they hold.
    ///
    /// # Errors
    /// The file is corrupt, or the rows take more memory than a block of this file may.
    pub(super) fn load(&self, rows: Range<u64>) -> Result<(Vec<StructArray>, usize), Fault> {
        let at = self.starts.partition_point(|&start| start < rows.start);
        let Some(unit) = self.units.get(at) else { return Err(Fault::new("no such row")) };
        // Opened again: the reader moves the file's cursor.
        let input = self.location.open()?;
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
            .with_batch_size(BATCH_ROWS)
            .build()?;
        let is_checked = self.texts_are_checked(unit.row_group);
        let most = self.location.largest_block();
        let (mut batches, mut held, mut read) = (Vec::new(), Held::default(), 0_u64);
        for batch in reader {
            let batch = StructArray::from(batch?);
            let data = batch.to_data();
            if !is_checked {
                data.validate_full()?;
            }
            held.add(&data);
            read += batch.len() as u64;
            if held.bytes as u64 > most {
                return Err(Fault::new(format!(
                    "rows {} to {} take more than {} in memory, the most that a file of {} may; write the file again with \
                     fewer rows in a row group (`row_group_size` in pyarrow), or as JSON lines",
                    rows.start,
                    (rows.start + read).saturating_sub(1),
                    Bytes(most),
                    Bytes(self.location.len())
                )));
            }
            batches.push(batch);
        }
        if read == unit.rows {
            Ok((batches, held.bytes))
        } else {
            let said = unit.rows;
            Err(Fault::new(format!("corrupt Parquet data: {read} rows where its footer says {said}")))
        }
    }

    /// Whether the decoder checks that the texts are UTF-8. It does not for columns of JSON.
    fn texts_are_checked(&self, row_group: usize) -> bool {
        let group = self.metadata.metadata().row_group(row_group);
        projected(group, &self.projection)
            .all(|chunk| chunk.column_descr().converted_type() != ConvertedType::JSON)
    }
}

/// The field with its texts as views.
fn with_views(field: &FieldRef) -> FieldRef {
    let data_type = match field.data_type() {
        DataType::Utf8 | DataType::LargeUtf8 => DataType::Utf8View,
        DataType::Dictionary(_, values) if values.is_string() => DataType::Utf8View,
        DataType::List(item) => DataType::List(with_views(item)),
        DataType::LargeList(item) => DataType::LargeList(with_views(item)),
        DataType::ListView(item) => DataType::ListView(with_views(item)),
        DataType::LargeListView(item) => DataType::LargeListView(with_views(item)),
        DataType::FixedSizeList(item, len) => DataType::FixedSizeList(with_views(item), *len),
        DataType::Map(entries, sorted) => DataType::Map(with_views(entries), *sorted),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(with_views).collect()),
        _ => return field.clone(),
    };
    Arc::new(field.as_ref().clone().with_data_type(data_type))
}

/// Bytes that some arrays hold. A buffer that several of them share counts once.
#[derive(Default)]
struct Held {
    buffers: HashSet<usize>,
    bytes: usize,
}

impl Held {
    fn add(&mut self, data: &ArrayData) {
        let nulls = data.nulls().map(|nulls| nulls.buffer());
        for buffer in data.buffers().iter().chain(nulls) {
            self.add_buffer(buffer);
        }
        data.child_data().iter().for_each(|child| self.add(child));
    }

    fn add_buffer(&mut self, buffer: &Buffer) {
        if self.buffers.insert(buffer.data_ptr().as_ptr() as usize) {
            self.bytes += buffer.capacity();
        }
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

/// The columns of a row group that are read.
fn projected<'a>(
    group: &'a RowGroupMetaData,
    projection: &'a [usize],
) -> impl Iterator<Item = &'a ColumnChunkMetaData> {
    let schema = group.schema_descr();
    let leaves = group.columns().iter().enumerate();
    leaves
        .filter(move |(leaf, _)| projection.contains(&schema.get_column_root_idx(*leaf)))
        .map(|(_, chunk)| chunk)
}

/// Bytes that the columns of a row group take when each row has values of its own, as far as the footer says.
fn decoded_size(group: &RowGroupMetaData, projection: &[usize]) -> u64 {
    let size = |chunk: &ColumnChunkMetaData| {
        let width = match chunk.column_type() {
            Type::BOOLEAN => 1,
            Type::INT32 | Type::FLOAT | Type::BYTE_ARRAY => 4,
            Type::INT64 | Type::DOUBLE => 8,
            Type::INT96 => 12,
            Type::FIXED_LEN_BYTE_ARRAY => chunk.column_descr().type_length().max(1).unsigned_abs().into(),
        };
        let values = u64::try_from(chunk.num_values()).unwrap_or(0).saturating_mul(width);
        let encoded = u64::try_from(chunk.uncompressed_size()).unwrap_or(0);
        let texts = u64::try_from(chunk.unencoded_byte_array_data_bytes().unwrap_or(0)).unwrap_or(0);
        encoded.max(texts).max(values)
    };
    projected(group, projection).map(size).fold(0, u64::saturating_add)
}
