//! Writes safetensors files whose bytes depend only on their content.
//!
//! The format's own writer keeps `__metadata__` in a hash map, so that two runs write different files. Here the
//! metadata comes first, with sorted keys. Tensors follow in the order of the format's own writer: widest dtype first
//! (which keeps every tensor aligned), then by name. The header is padded with spaces to a multiple of 8 bytes. Tensors
//! are streamed one at a time. Reading is in `assets::safetensors`.
//!
//! Layout: `u64` little-endian header length, the JSON header, the data.

use std::collections::BTreeMap;
use std::io::{self, Write};

pub use safetensors::Dtype;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::Error;

/// Longest header that the format's readers accept.
const HEADER_LIMIT: usize = 100_000_000;

/// One tensor of a file to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorHeader {
    /// Its key.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Extent of each dimension, outermost first.
    pub shape: Vec<usize>,
}

/// The layout of a safetensors file: its header, and the order of its tensors.
#[derive(Clone, Debug)]
pub struct Layout {
    header: Vec<u8>,
    tensors: Vec<(TensorHeader, u64)>,
}

impl Layout {
    /// Plans a file.
    ///
    /// # Errors
    /// Two tensors have the same name, a name is reserved, or a size exceeds the format's limits.
    pub fn new(metadata: &BTreeMap<String, String>, mut tensors: Vec<TensorHeader>) -> Result<Self, Error> {
        tensors.sort_by(|left, right| right.dtype.cmp(&left.dtype).then_with(|| left.name.cmp(&right.name)));
        let refuse = |tensor: &TensorHeader, reason: &str| Error::Tensor {
            tensor: tensor.name.clone(),
            reason: reason.into(),
        };
        let mut seen = std::collections::BTreeSet::new();
        let mut entries = Vec::with_capacity(tensors.len());
        let mut offset = 0_u64;
        for tensor in &tensors {
            if tensor.name == "__metadata__" {
                return Err(refuse(tensor, "the format reserves this name"));
            }
            if !seen.insert(tensor.name.as_str()) {
                return Err(refuse(tensor, "two tensors have this name"));
            }
            let bytes = data_bytes(tensor)
                .ok_or_else(|| refuse(tensor, "its size is not a whole number of bytes"))?;
            let end =
                offset.checked_add(bytes).ok_or_else(|| refuse(tensor, "the file would be too large"))?;
            entries.push(Entry { tensor, data_offsets: [offset, end] });
            offset = end;
        }
        let json = serde_json::to_vec(&Header { metadata, entries: &entries });
        let mut header =
            json.map_err(|error| Error::Tensor { tensor: "__metadata__".into(), reason: error.to_string() })?;
        header.resize(header.len().next_multiple_of(8), b' ');
        if header.len() > HEADER_LIMIT {
            return Err(Error::Tensor {
                tensor: "__metadata__".into(),
                reason: format!(
                    "the header would have {} bytes, over the limit {HEADER_LIMIT}",
                    header.len()
                ),
            });
        }
        let lengths: Vec<u64> =
            entries.iter().map(|entry| entry.data_offsets[1] - entry.data_offsets[0]).collect();
        Ok(Self { header, tensors: tensors.into_iter().zip(lengths).collect() })
    }

    /// The tensors in file order.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorHeader> {
        self.tensors.iter().map(|(tensor, _)| tensor)
    }

    /// Length of the whole file in bytes.
    pub fn bytes(&self) -> u64 {
        8 + self.header.len() as u64 + self.tensors.iter().map(|(_, bytes)| bytes).sum::<u64>()
    }

    /// Writes the file; `data` is called once for each tensor, in order, and writes its little-endian bytes.
    ///
    /// # Errors
    /// Writing fails, or `data` writes another number of bytes than dtype and shape require.
    pub fn write(
        &self,
        out: &mut dyn Write,
        mut data: impl FnMut(&TensorHeader, &mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        out.write_all(&(self.header.len() as u64).to_le_bytes())?;
        out.write_all(&self.header)?;
        for (tensor, expected) in &self.tensors {
            let mut counted = Counted { out: &mut *out, bytes: 0 };
            data(tensor, &mut counted)?;
            if counted.bytes != *expected {
                return Err(io::Error::other(format!(
                    "tensor `{}` is {} {:?} and takes {expected} bytes, but {} were given",
                    tensor.name, tensor.dtype, tensor.shape, counted.bytes
                )));
            }
        }
        Ok(())
    }
}

/// Writes floats as little-endian F32.
///
/// # Errors
/// Writing fails.
pub fn write_f32(out: &mut dyn Write, values: &[f32]) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(4 * values.len().min(1 << 16));
    for chunk in values.chunks(1 << 16) {
        buffer.clear();
        buffer.extend(chunk.iter().flat_map(|value| value.to_le_bytes()));
        out.write_all(&buffer)?;
    }
    Ok(())
}

/// Size of a tensor's data in bytes; `None` if it overflows or is not a whole number.
fn data_bytes(tensor: &TensorHeader) -> Option<u64> {
    let elements = tensor
        .shape
        .iter()
        .try_fold(1_u64, |product, &extent| product.checked_mul(u64::try_from(extent).ok()?))?;
    let bits = elements.checked_mul(u64::try_from(tensor.dtype.bitsize()).ok()?)?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// The header as it is serialized.
struct Header<'a> {
    metadata: &'a BTreeMap<String, String>,
    entries: &'a [Entry<'a>],
}

struct Entry<'a> {
    tensor: &'a TensorHeader,
    data_offsets: [u64; 2],
}

impl Serialize for Header<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry("__metadata__", self.metadata)?;
        }
        for entry in self.entries {
            map.serialize_entry(&entry.tensor.name, entry)?;
        }
        map.end()
    }
}

impl Serialize for Entry<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("dtype", &self.tensor.dtype)?;
        map.serialize_entry("shape", &self.tensor.shape)?;
        map.serialize_entry("data_offsets", &self.data_offsets)?;
        map.end()
    }
}

/// A writer that counts its bytes.
struct Counted<'a> {
    out: &'a mut dyn Write,
    bytes: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.out.write(buffer)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
