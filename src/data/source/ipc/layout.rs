//! The messages of an IPC file or stream: where each begins, how long its parts are, all of it checked against
//! the length of the file before a byte of a body is read.

use std::fs::File;

use arrow_buffer::Buffer;
use arrow_ipc as ipc;
use arrow_ipc::convert::try_fb_to_schema;
use arrow_schema::Schema;

use super::super::fault::Fault;
use super::super::read_at::Location;

const MAGIC: &[u8] = b"ARROW1";
/// The magic, padded to eight bytes, opens a file; its length, the magic and nothing close it.
const MAGIC_LEN: u64 = 8;
const TRAILER_LEN: u64 = 10;
const CONTINUATION: [u8; 4] = [0xff; 4];
/// Longest header of one message. Real ones take some hundred bytes for each column.
const LONGEST_HEADER: u64 = 256 << 20;

/// Where one message lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message {
    /// First byte of its header (a flatbuffer).
    pub(super) header: u64,
    pub(super) header_len: u64,
    /// First byte of its body (the buffers).
    pub(super) body: u64,
    pub(super) body_len: u64,
}

impl Message {
    /// The bytes of the header.
    pub(super) fn metadata(&self, location: &Location, input: &File) -> Result<Buffer, Fault> {
        location.read(input, self.header, self.header_len)
    }
}

/// The header's flatbuffer, verified.
pub(super) fn parse(header: &Buffer) -> Result<ipc::Message<'_>, Fault> {
    ipc::root_as_message(header).map_err(|error| Fault::new(format!("corrupt Arrow message header: {error}")))
}

/// All messages of a file.
pub(super) struct Messages {
    pub(super) schema: Schema,
    /// Dictionaries and batches, in the order in which they take effect.
    pub(super) rest: Vec<Message>,
}

impl Messages {
    pub(super) fn read(location: &Location) -> Result<Messages, Fault> {
        let input = location.open()?;
        let head = location.read(&input, 0, MAGIC_LEN.min(location.len()))?;
        if head.starts_with(MAGIC) { from_footer(location, &input) } else { from_stream(location, &input) }
    }
}

fn from_footer(location: &Location, input: &File) -> Result<Messages, Fault> {
    let truncated =
        || Fault::new("truncated: the end of the Arrow file, where its footer stands, is missing");
    let trailer_start = location.len().checked_sub(TRAILER_LEN).ok_or_else(truncated)?;
    let trailer = location.read(input, trailer_start, TRAILER_LEN)?;
    let (len, magic) = trailer.split_at(4);
    if magic != MAGIC {
        return Err(truncated());
    }
    let len = u64::from(u32::from_le_bytes([len[0], len[1], len[2], len[3]]));
    let start = trailer_start.checked_sub(len).filter(|&start| start >= MAGIC_LEN && len <= LONGEST_HEADER);
    let start = start.ok_or_else(|| Fault::new(format!("corrupt Arrow data: a footer of {len} bytes")))?;
    let footer = location.read(input, start, len)?;
    let footer = ipc::root_as_footer(&footer)
        .map_err(|error| Fault::new(format!("corrupt Arrow file footer: {error}")))?;
    let schema = schema(footer.schema())?;
    let blocks =
        footer.dictionaries().into_iter().flatten().chain(footer.recordBatches().into_iter().flatten());
    let mut rest = Vec::new();
    for block in blocks {
        let corrupt =
            || Fault::new(format!("corrupt Arrow data: the footer names a block at {}", block.offset()));
        let offset = u64::try_from(block.offset()).map_err(|_| corrupt())?;
        let prefixed_len = u64::try_from(block.metaDataLength()).map_err(|_| corrupt())?;
        let body_len = u64::try_from(block.bodyLength()).map_err(|_| corrupt())?;
        let body = offset.checked_add(prefixed_len).ok_or_else(corrupt)?;
        check_range(location, body, body_len)?;
        // The footer counts the prefix and the padding into the header's length; the prefix says its own.
        let (header, header_len) = prefix(location, input, offset)?.ok_or_else(corrupt)?;
        if header + header_len > body {
            return Err(corrupt());
        }
        rest.push(Message { header, header_len, body, body_len });
    }
    Ok(Messages { schema, rest })
}

/// What is wrong with the first bytes is wrong with the file as a whole.
fn not_arrow(at: u64) -> impl Fn(Fault) -> Fault {
    move |fault| match at {
        0 => Fault::new(format!(
            "neither an Arrow file (it would begin with ARROW1) nor an Arrow stream; as a stream: {fault}"
        )),
        _ => fault,
    }
}

fn from_stream(location: &Location, input: &File) -> Result<Messages, Fault> {
    let mut found = None;
    let mut rest = Vec::new();
    let mut at = 0;
    // A stream may end with a marker, or just end.
    while at < location.len() {
        let Some((header, header_len)) = prefix(location, input, at).map_err(not_arrow(at))? else { break };
        let metadata = location.read(input, header, header_len)?;
        let message = parse(&metadata).map_err(not_arrow(at))?;
        let body = header + header_len;
        let body_len = u64::try_from(message.bodyLength()).map_err(|_| {
            Fault::new(format!("corrupt Arrow data: a body of {} bytes", message.bodyLength()))
        })?;
        check_range(location, body, body_len)?;
        if found.is_none() {
            found = Some(schema(message.header_as_schema())?);
        } else {
            rest.push(Message { header, header_len, body, body_len });
        }
        at = body + body_len;
    }
    match found {
        Some(schema) => Ok(Messages { schema, rest }),
        None => Err(not_arrow(0)(Fault::new("it ends before it begins"))),
    }
}

/// Where the header of the message at `at` begins, and its length; `None` at the marker that ends a stream.
fn prefix(location: &Location, input: &File, at: u64) -> Result<Option<(u64, u64)>, Fault> {
    let word = |at: u64| -> Result<[u8; 4], Fault> {
        let bytes = location.read(input, at, 4)?;
        Ok([bytes[0], bytes[1], bytes[2], bytes[3]])
    };
    // Before version 0.15 of the format no continuation marker stood before the length.
    let (len, header) = match word(at)? {
        CONTINUATION => (word(at + 4)?, at + 8),
        len => (len, at + 4),
    };
    let len = u64::from(u32::from_le_bytes(len));
    if len == 0 {
        return Ok(None);
    }
    if len > LONGEST_HEADER {
        return Err(Fault::new(format!(
            "corrupt Arrow data: a message header of {len} bytes at offset {at}"
        )));
    }
    check_range(location, header, len)?;
    Ok(Some((header, len)))
}

fn check_range(location: &Location, start: u64, len: u64) -> Result<(), Fault> {
    match start.checked_add(len) {
        Some(end) if end <= location.len() => Ok(()),
        _ => Err(Fault::new(format!(
            "truncated: {len} bytes expected at offset {start}, but the file ends at {}",
            location.len()
        ))),
    }
}

fn schema(flat: Option<ipc::Schema<'_>>) -> Result<Schema, Fault> {
    let flat = flat.ok_or_else(|| Fault::new("corrupt Arrow data: no schema where one must stand"))?;
    if !flat.endianness().equals_to_target_endianness() {
        return Err(Fault::new("holds big-endian Arrow data, which is not supported"));
    }
    Ok(try_fb_to_schema(flat)?)
}

/// Checks what the compressed buffers of a batch say of their sizes, before a decoder takes memory for them.
pub(super) fn check_sizes(
    batch: ipc::RecordBatch<'_>,
    body: &Buffer,
    location: &Location,
) -> Result<(), Fault> {
    if batch.compression().is_none() {
        return Ok(());
    }
    let mut total = 0_u64;
    for buffer in batch.buffers().into_iter().flatten() {
        let (Ok(offset), Ok(len)) = (usize::try_from(buffer.offset()), usize::try_from(buffer.length()))
        else {
            return Err(Fault::new("corrupt Arrow data: a buffer at a negative offset"));
        };
        let bytes = offset.checked_add(len).and_then(|end| body.get(offset..end));
        let bytes = bytes.ok_or_else(|| Fault::new("corrupt Arrow data: a buffer outside of its message"))?;
        if let Some(prefix) = bytes.first_chunk::<8>() {
            // -1: stored as it is.
            total = total.saturating_add(i64::from_le_bytes(*prefix).max(0).unsigned_abs());
        }
    }
    let most = location.largest_block();
    if total > most { Err(super::too_large(total, most)) } else { Ok(()) }
}
