//! Some rows of an uncompressed record batch, read without the others: the same depth-first walk over the
//! batch's nodes and buffers that a full decoder makes, but of each buffer only the stretch that belongs to the
//! rows. Every array is built by arrow's checking constructors.

use std::fs::File;
use std::sync::Arc;

use arrow_array::types::{ByteArrayType, GenericBinaryType, GenericStringType};
use arrow_array::{
    Array, ArrayRef, BinaryViewArray, FixedSizeListArray, GenericByteArray, GenericListArray,
    GenericListViewArray, MapArray, NullArray, OffsetSizeTrait, RecordBatch, RecordBatchOptions,
    StringViewArray, StructArray, make_array,
};
use arrow_buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_data::ArrayData;
use arrow_ipc as ipc;
use arrow_schema::{DataType, Field, FieldRef, UnionMode};

use super::super::fault::Fault;
use super::super::read_at::{LARGEST_READ, Location};
use super::{Batch, Dictionaries, IpcFile, too_large};

/// Rows `first..first + len` of a batch, projected.
pub(super) fn read(
    file: &IpcFile,
    batch: &Batch,
    input: &File,
    flat: ipc::RecordBatch<'_>,
    version: ipc::MetadataVersion,
    first: u64,
    len: u64,
) -> Result<RecordBatch, Fault> {
    let (Some(nodes), Some(buffers)) = (flat.nodes(), flat.buffers()) else {
        return Err(Fault::new("corrupt Arrow data: a batch without nodes or buffers"));
    };
    let mut walk = Walk {
        location: &file.location,
        input,
        body: batch.message.body,
        body_len: batch.message.body_len,
        nodes: nodes.iter().map(|node| (node.length(), node.null_count())).collect::<Vec<_>>().into_iter(),
        buffers: buffers
            .iter()
            .map(|buffer| (buffer.offset(), buffer.length()))
            .collect::<Vec<_>>()
            .into_iter(),
        variadic_counts: flat.variadicBufferCounts().into_iter().flatten().collect::<Vec<_>>().into_iter(),
        dictionaries: &file.dictionaries[batch.dictionaries],
        has_union_validity: version < ipc::MetadataVersion::V5,
    };
    let mut columns = vec![None; file.projection.len()];
    for (index, field) in file.schema.fields().iter().enumerate() {
        match file.projection.iter().position(|&projected| projected == index) {
            Some(at) => columns[at] = Some(walk.read(field, Rows { first, len })?),
            None => walk.skip(field)?,
        }
    }
    let options = RecordBatchOptions::new().with_row_count(Some(len as usize));
    let columns = columns.into_iter().flatten().collect();
    let schema = Arc::new(file.schema.project(&file.projection)?);
    Ok(RecordBatch::try_new_with_options(schema, columns, &options)?)
}

/// A stretch of the rows of one array.
#[derive(Clone, Copy)]
struct Rows {
    first: u64,
    len: u64,
}

/// Where a buffer lies in the body.
#[derive(Clone, Copy)]
struct Stretch {
    offset: u64,
    len: u64,
}

struct Walk<'a> {
    location: &'a Location,
    input: &'a File,
    body: u64,
    body_len: u64,
    /// Length and null count of each array, depth first.
    nodes: std::vec::IntoIter<(i64, i64)>,
    /// Offset and length of each buffer, depth first.
    buffers: std::vec::IntoIter<(i64, i64)>,
    /// Data buffers of each view array.
    variadic_counts: std::vec::IntoIter<i64>,
    dictionaries: &'a Dictionaries,
    /// Old batches have a validity buffer for unions.
    has_union_validity: bool,
}

impl Walk<'_> {
    fn read(&mut self, field: &Field, rows: Rows) -> Result<ArrayRef, Fault> {
        let (length, null_count) = self.node()?;
        let fits = rows.first.checked_add(rows.len).zip(u64::try_from(length).ok());
        if fits.is_none_or(|(end, length)| end > length) {
            return Err(corrupt(&format!(
                "column `{}` has {length} values, fewer than it needs",
                field.name()
            )));
        }
        let data_type = field.data_type();
        if let DataType::Null = data_type {
            return Ok(Arc::new(NullArray::new(rows.len as usize)));
        }
        let nulls = match data_type {
            DataType::Union(..) | DataType::RunEndEncoded(..) => None,
            _ => self.nulls(rows, null_count)?,
        };
        Ok(match data_type {
            DataType::Boolean => {
                let values = self.stretch()?;
                let values = self.bits(values, rows)?.sliced();
                build(data_type, rows, nulls, |data| data.add_buffer(values))?
            }
            DataType::Utf8 => self.bytes::<GenericStringType<i32>>(rows, nulls)?,
            DataType::LargeUtf8 => self.bytes::<GenericStringType<i64>>(rows, nulls)?,
            DataType::Binary => self.bytes::<GenericBinaryType<i32>>(rows, nulls)?,
            DataType::LargeBinary => self.bytes::<GenericBinaryType<i64>>(rows, nulls)?,
            DataType::Utf8View => {
                let texts = self.views(rows, nulls)?.into_iter().map(|bytes| {
                    bytes.map(String::from_utf8).transpose().map_err(|_| corrupt("a string is not UTF-8"))
                });
                Arc::new(StringViewArray::from_iter(texts.collect::<Result<Vec<_>, _>>()?))
            }
            DataType::BinaryView => Arc::new(BinaryViewArray::from_iter(self.views(rows, nulls)?)),
            DataType::List(item) => self.list::<i32>(item, rows, nulls)?,
            DataType::LargeList(item) => self.list::<i64>(item, rows, nulls)?,
            DataType::ListView(item) => self.list_view::<i32>(item, rows, nulls)?,
            DataType::LargeListView(item) => self.list_view::<i64>(item, rows, nulls)?,
            DataType::FixedSizeList(item, size) => {
                let width = u64::try_from(*size).map_err(|_| corrupt("a list of negative size"))?;
                let (first, len) = (rows.first.checked_mul(width), rows.len.checked_mul(width));
                let (Some(first), Some(len)) = (first, len) else { return Err(corrupt("a list too long")) };
                let values = self.read(item, Rows { first, len })?;
                let len = rows.len as usize;
                Arc::new(FixedSizeListArray::try_new_with_length(item.clone(), *size, values, nulls, len)?)
            }
            DataType::Struct(fields) => {
                let columns = fields.iter().map(|field| self.read(field, rows)).collect::<Result<_, _>>()?;
                Arc::new(StructArray::try_new_with_length(fields.clone(), columns, nulls, rows.len as usize)?)
            }
            DataType::Map(entries, ordered) => {
                let (offsets, inner) = self.offsets::<i32>(rows)?;
                let values = self.read(entries, inner)?;
                let Some(values) = values.as_any().downcast_ref::<StructArray>().cloned() else {
                    return Err(corrupt("a map whose entries are no struct"));
                };
                Arc::new(MapArray::try_new(entries.clone(), offsets, values, nulls, *ordered)?)
            }
            DataType::Dictionary(key, _) => {
                let width = width(key).ok_or_else(|| corrupt("a dictionary whose keys are no integers"))?;
                let keys = self.fixed(rows, width)?;
                #[expect(deprecated, reason = "the schema of arrow-rs has no other way to name a dictionary")]
                let id = field.dict_id();
                let values = id.and_then(|id| self.dictionaries.get(&id));
                let values =
                    values.ok_or_else(|| corrupt("a dictionary that does not come before its use"))?;
                let values = values.to_data();
                build(data_type, rows, nulls, |data| data.add_buffer(keys).add_child_data(values))?
            }
            other => {
                let Some(width) = width(other) else {
                    return Err(Fault::new(format!(
                        "column `{}` is of type {other}, which is not read",
                        field.name()
                    )));
                };
                let values = self.fixed(rows, width)?;
                build(data_type, rows, nulls, |data| data.add_buffer(values))?
            }
        })
    }

    fn skip(&mut self, field: &Field) -> Result<(), Fault> {
        self.node()?;
        let (buffers, children): (usize, Vec<&FieldRef>) = match field.data_type() {
            DataType::Null => (0, vec![]),
            DataType::RunEndEncoded(run_ends, values) => (0, vec![run_ends, values]),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Binary | DataType::LargeBinary => (3, vec![]),
            DataType::Utf8View | DataType::BinaryView => (2 + self.variadic_count()?, vec![]),
            DataType::List(item) | DataType::LargeList(item) | DataType::Map(item, _) => (2, vec![item]),
            DataType::ListView(item) | DataType::LargeListView(item) => (3, vec![item]),
            DataType::FixedSizeList(item, _) => (1, vec![item]),
            DataType::Struct(fields) => (1, fields.iter().collect()),
            DataType::Union(fields, mode) => {
                let offsets = usize::from(*mode == UnionMode::Dense);
                let validity = usize::from(self.has_union_validity);
                (1 + offsets + validity, fields.iter().map(|(_, field)| field).collect())
            }
            _ => (2, vec![]),
        };
        for _ in 0..buffers {
            self.stretch()?;
        }
        children.into_iter().try_for_each(|child| self.skip(child))
    }

    fn node(&mut self) -> Result<(i64, i64), Fault> {
        self.nodes.next().ok_or_else(|| corrupt("fewer arrays than the schema needs"))
    }

    fn stretch(&mut self) -> Result<Stretch, Fault> {
        let (offset, len) =
            self.buffers.next().ok_or_else(|| corrupt("fewer buffers than the schema needs"))?;
        let stretch = u64::try_from(offset).ok().zip(u64::try_from(len).ok());
        stretch
            .filter(|(offset, len)| offset.checked_add(*len).is_some_and(|end| end <= self.body_len))
            .map(|(offset, len)| Stretch { offset, len })
            .ok_or_else(|| corrupt("a buffer outside of its message"))
    }

    fn variadic_count(&mut self) -> Result<usize, Fault> {
        let count = self.variadic_counts.next().and_then(|count| usize::try_from(count).ok());
        count
            .filter(|count| *count <= self.buffers.len())
            .ok_or_else(|| corrupt("a view array without buffers"))
    }

    /// Bytes `start..start + len` of a buffer.
    fn part(&self, stretch: Stretch, start: u64, len: u64) -> Result<Buffer, Fault> {
        if start.checked_add(len).is_none_or(|end| end > stretch.len) {
            return Err(corrupt("a buffer shorter than its values need"));
        }
        if len > LARGEST_READ {
            return Err(too_large(len, LARGEST_READ));
        }
        self.location.read(self.input, self.body + stretch.offset + start, len)
    }

    fn bits(&self, stretch: Stretch, rows: Rows) -> Result<BooleanBuffer, Fault> {
        let (start, shift) = (rows.first / 8, rows.first % 8);
        let bytes = self.part(stretch, start, (shift + rows.len).div_ceil(8))?;
        Ok(BooleanBuffer::new(bytes, shift as usize, rows.len as usize))
    }

    fn nulls(&mut self, rows: Rows, null_count: i64) -> Result<Option<NullBuffer>, Fault> {
        let validity = self.stretch()?;
        // Without nulls the buffer may be left out.
        if null_count == 0 || validity.len == 0 {
            return Ok(None);
        }
        Ok(Some(NullBuffer::new(self.bits(validity, rows)?)))
    }

    fn fixed(&mut self, rows: Rows, width: u64) -> Result<Buffer, Fault> {
        let stretch = self.stretch()?;
        match (rows.first.checked_mul(width), rows.len.checked_mul(width)) {
            (Some(start), Some(len)) => self.part(stretch, start, len),
            _ => Err(corrupt("an array too long")),
        }
    }

    /// Offsets of the rows, made to begin at 0, and the values between them.
    fn offsets<O: OffsetSizeTrait>(&mut self, rows: Rows) -> Result<(OffsetBuffer<O>, Rows), Fault> {
        let stretch = self.stretch()?;
        // An array without values may come without its one offset.
        if rows.len == 0 {
            return Ok((OffsetBuffer::new_empty(), Rows { first: 0, len: 0 }));
        }
        let width = size_of::<O>() as u64;
        let range = rows.first.checked_mul(width).zip((rows.len + 1).checked_mul(width));
        let (start, len) = range.ok_or_else(|| corrupt("an array too long"))?;
        let offsets = ScalarBuffer::<O>::from(self.part(stretch, start, len)?);
        let first = offsets[0];
        if first < O::zero() || offsets.windows(2).any(|pair| pair[0] > pair[1]) {
            return Err(corrupt("offsets that go backwards"));
        }
        let len = (offsets[offsets.len() - 1] - first).as_usize() as u64;
        let offsets = offsets.iter().map(|&offset| offset - first).collect::<Vec<O>>();
        Ok((OffsetBuffer::new(offsets.into()), Rows { first: first.as_usize() as u64, len }))
    }

    fn bytes<T: ByteArrayType>(&mut self, rows: Rows, nulls: Option<NullBuffer>) -> Result<ArrayRef, Fault> {
        let (offsets, inner) = self.offsets::<T::Offset>(rows)?;
        let stretch = self.stretch()?;
        let values = self.part(stretch, inner.first, inner.len)?;
        Ok(Arc::new(GenericByteArray::<T>::try_new(offsets, values, nulls)?))
    }

    /// The values of a view array. A view of up to twelve bytes holds them itself; a longer one names a data
    /// buffer and an offset in it.
    fn views(&mut self, rows: Rows, nulls: Option<NullBuffer>) -> Result<Vec<Option<Vec<u8>>>, Fault> {
        let views = self.fixed(rows, 16)?;
        let count = self.variadic_count()?;
        let data = (0..count).map(|_| self.stretch()).collect::<Result<Vec<_>, _>>()?;
        // Each view is copied, even if several views share their bytes in the file.
        let (mut total, most) = (0_u64, self.location.largest_block());
        let (views, _) = views.as_chunks::<16>();
        let value = |(row, view): (usize, &[u8; 16])| {
            if nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
                return Ok(None);
            }
            let word = |at: usize| u32::from_le_bytes([view[at], view[at + 1], view[at + 2], view[at + 3]]);
            let len = word(0);
            if len <= 12 {
                return Ok(Some(view[4..4 + len as usize].to_vec()));
            }
            total += u64::from(len);
            if total > most {
                return Err(too_large(total, most));
            }
            let buffer = data.get(word(8) as usize).ok_or_else(|| corrupt("a view of no buffer"))?;
            Ok(Some(self.part(*buffer, word(12).into(), len.into())?.to_vec()))
        };
        views.iter().enumerate().map(value).collect()
    }

    fn list<O: OffsetSizeTrait>(
        &mut self,
        item: &FieldRef,
        rows: Rows,
        nulls: Option<NullBuffer>,
    ) -> Result<ArrayRef, Fault> {
        let (offsets, inner) = self.offsets::<O>(rows)?;
        let values = self.read(item, inner)?;
        Ok(Arc::new(GenericListArray::<O>::try_new(item.clone(), offsets, values, nulls)?))
    }

    fn list_view<O: OffsetSizeTrait>(
        &mut self,
        item: &FieldRef,
        rows: Rows,
        nulls: Option<NullBuffer>,
    ) -> Result<ArrayRef, Fault> {
        let width = size_of::<O>() as u64;
        let offsets = ScalarBuffer::<O>::from(self.fixed(rows, width)?);
        let sizes = ScalarBuffer::<O>::from(self.fixed(rows, width)?);
        // Lists may lie in any order: read from the first to the last that any row uses.
        let (mut first, mut end) = (u64::MAX, 0);
        for (offset, size) in offsets.iter().zip(&*sizes) {
            let (Some(offset), Some(size)) = (offset.to_usize(), size.to_usize()) else {
                return Err(corrupt("a list at a negative offset"));
            };
            if size > 0 {
                first = first.min(offset as u64);
                end = end.max((offset as u64).saturating_add(size as u64));
            }
        }
        let first = first.min(end);
        let values = self.read(item, Rows { first, len: end - first })?;
        let shift = O::usize_as(first as usize);
        let rebased = offsets
            .iter()
            .zip(&*sizes)
            .map(|(&offset, &size)| if size == O::zero() { O::zero() } else { offset - shift });
        let offsets = rebased.collect::<Vec<O>>().into();
        Ok(Arc::new(GenericListViewArray::<O>::try_new(item.clone(), offsets, sizes, values, nulls)?))
    }
}

/// Bytes of one value of a type of fixed width.
fn width(data_type: &DataType) -> Option<u64> {
    match data_type {
        DataType::FixedSizeBinary(width) => u64::try_from(*width).ok(),
        _ => data_type.primitive_width().map(|width| width as u64),
    }
}

fn build(
    data_type: &DataType,
    rows: Rows,
    nulls: Option<NullBuffer>,
    add: impl FnOnce(arrow_data::ArrayDataBuilder) -> arrow_data::ArrayDataBuilder,
) -> Result<ArrayRef, Fault> {
    let data = ArrayData::builder(data_type.clone()).len(rows.len as usize).nulls(nulls);
    Ok(make_array(add(data).align_buffers(true).build()?))
}

fn corrupt(problem: &str) -> Fault {
    Fault::new(format!("corrupt Arrow data: {problem}"))
}
