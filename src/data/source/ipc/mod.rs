//! Arrow IPC, file and stream: where the record batches lie, and any rows of them. Opening reads the messages'
//! headers alone. Of an uncompressed batch only the bytes of the asked rows are read (`rows.rs`), so that a
//! file of one huge batch costs no more than one of many; a compressed batch is decoded as a whole, and is a
//! unit in which rows are best read together.

mod layout;
mod rows;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch};
use arrow_buffer::Buffer;
use arrow_ipc as ipc;
use arrow_ipc::reader::{RecordBatchDecoder, read_dictionary};
use arrow_schema::{Schema, SchemaRef};

use super::fault::Fault;
use super::read_at::Location;
use crate::units::Bytes;
use layout::{Message, Messages};

/// Bytes of an uncompressed batch that are read at a time, about.
const BLOCK: u64 = 16 << 10;

/// Dictionaries by their id, as they stand for a batch.
type Dictionaries = HashMap<i64, ArrayRef>;

/// An IPC file or stream and where its batches lie.
#[derive(Debug)]
pub(super) struct IpcFile {
    location: Location,
    schema: SchemaRef,
    /// Batches that hold rows.
    batches: Vec<Batch>,
    /// First row of each batch, ending with the number of rows.
    starts: Vec<u64>,
    /// A stream may replace its dictionaries: one version for each time it does. Additions to a dictionary
    /// leave the earlier part as it is, and make no version.
    dictionaries: Vec<Dictionaries>,
    /// Indices of the columns that are read.
    projection: Vec<usize>,
}

#[derive(Clone, Copy, Debug)]
struct Batch {
    message: Message,
    compressed: bool,
    dictionaries: usize,
}

impl IpcFile {
    /// Reads the headers of all messages, and the schema; no batch.
    pub(super) fn open(location: Location) -> Result<IpcFile, Fault> {
        let messages = Messages::read(&location)?;
        let schema = Arc::new(messages.schema);
        let mut file = IpcFile {
            location,
            schema,
            batches: Vec::new(),
            starts: vec![0],
            dictionaries: vec![Dictionaries::new()],
            projection: Vec::new(),
        };
        let input = file.location.open()?;
        for message in messages.rest {
            let metadata = message.metadata(&file.location, &input)?;
            let flat = layout::parse(&metadata)?;
            match flat.header_type() {
                ipc::MessageHeader::DictionaryBatch => {
                    let body = file.location.read(&input, message.body, message.body_len)?;
                    file.add_dictionary(flat, &body)?;
                }
                ipc::MessageHeader::RecordBatch => file.add_batch(message, flat)?,
                // Nothing else belongs here, but what is not understood is only skipped if it has no rows.
                other => {
                    return Err(Fault::new(format!("expected a record batch, found a {other:?} message")));
                }
            }
        }
        Ok(file)
    }

    fn add_dictionary(&mut self, message: ipc::Message<'_>, body: &Buffer) -> Result<(), Fault> {
        let dictionary = message
            .header_as_dictionary_batch()
            .ok_or_else(|| Fault::new("corrupt Arrow data: a dictionary message without a dictionary"))?;
        if let Some(data) = dictionary.data() {
            layout::check_sizes(data, body, &self.location)?;
        }
        let last = self.dictionaries.len() - 1;
        let replaces = !dictionary.isDelta() && self.dictionaries[last].contains_key(&dictionary.id());
        if replaces {
            self.dictionaries.push(self.dictionaries[last].clone());
        }
        let version = self.dictionaries.len() - 1;
        let dictionaries = &mut self.dictionaries[version];
        Ok(read_dictionary(body, dictionary, &self.schema, dictionaries, &message.version())?)
    }

    fn add_batch(&mut self, message: Message, flat: ipc::Message<'_>) -> Result<(), Fault> {
        let batch = flat
            .header_as_record_batch()
            .ok_or_else(|| Fault::new("corrupt Arrow data: a batch message without a batch"))?;
        let rows = u64::try_from(batch.length())
            .map_err(|_| Fault::new(format!("corrupt Arrow data: a batch of {} rows", batch.length())))?;
        if rows == 0 {
            return Ok(());
        }
        let end = self.rows().saturating_add(rows);
        self.location.require_rows(end)?;
        self.starts.push(end);
        let compressed = batch.compression().is_some();
        self.batches.push(Batch { message, compressed, dictionaries: self.dictionaries.len() - 1 });
        Ok(())
    }

    pub(super) fn location(&self) -> &Location {
        &self.location
    }

    pub(super) fn schema(&self) -> &Schema {
        &self.schema
    }

    pub(super) fn rows(&self) -> u64 {
        self.starts[self.starts.len() - 1]
    }

    /// From now on, only these columns are read.
    pub(super) fn project(&mut self, columns: Vec<usize>) {
        self.projection = columns;
    }

    /// First row of each run of rows that is decoded as one, if any batch is.
    pub(super) fn units(&self) -> Option<&[u64]> {
        self.batches.iter().any(|batch| batch.compressed).then_some(&self.starts[..self.batches.len()])
    }

    /// The rows that are loaded together with `row`.
    pub(super) fn block_of(&self, row: u64) -> Range<u64> {
        let at = self.starts.partition_point(|&start| start <= row).saturating_sub(1);
        let (Some(batch), Some(&end)) = (self.batches.get(at), self.starts.get(at + 1)) else {
            return row..row;
        };
        let start = self.starts[at];
        if batch.compressed {
            return start..end;
        }
        let rows = end - start;
        let step = u128::from(rows) * u128::from(BLOCK) / u128::from(batch.message.body_len.max(BLOCK));
        let step = (step as u64).max(1);
        let first = start + (row - start) / step * step;
        first..(first + step).min(end)
    }

    /// The rows of a block, as given by [`block_of`](Self::block_of).
    pub(super) fn load(&self, rows: Range<u64>) -> Result<RecordBatch, Fault> {
        let at = self.starts.partition_point(|&start| start <= rows.start).saturating_sub(1);
        let Some(batch) = self.batches.get(at) else { return Err(Fault::new("no such row")) };
        let input = self.location.open()?;
        let metadata = batch.message.metadata(&self.location, &input)?;
        let message = layout::parse(&metadata)?;
        let flat =
            message.header_as_record_batch().ok_or_else(|| Fault::new("has changed since it was opened"))?;
        let dictionaries = &self.dictionaries[batch.dictionaries];
        let first = rows.start - self.starts[at];
        if !batch.compressed {
            let len = rows.end - rows.start;
            return rows::read(self, batch, &input, flat, message.version(), first, len);
        }
        let Message { body, body_len, .. } = batch.message;
        let body = self.location.read(&input, body, body_len)?;
        layout::check_sizes(flat, &body, &self.location)?;
        let version = message.version();
        let decoder = RecordBatchDecoder::try_new(&body, flat, self.schema.clone(), dictionaries, &version)?;
        Ok(decoder.with_projection(Some(&self.projection)).read_record_batch()?)
    }
}

/// A batch, a dictionary or a row range that would take more memory than one block may.
fn too_large(bytes: u64, most: u64) -> Fault {
    Fault::new(format!(
        "a record batch of {}, more than the {} that one of this file may take in memory; write it again with smaller \
         batches",
        Bytes(bytes),
        Bytes(most)
    ))
}
