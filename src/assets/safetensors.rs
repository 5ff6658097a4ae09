//! One safetensors file: its header is checked against the file's length, its tensors are read one at a time.
//!
//! The header is untrusted: every length, offset and shape is checked before anything of that size is allocated, and
//! each message names the tensor. Reads are positional instead of memory-mapped, so that truncation during a read is an
//! error and not a fault.
//!
//! Layout: `u64` little-endian header length, that many bytes of JSON
//! (`{"name": {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {..}}`), then the data, to
//! which the offsets are relative and which they cover without gap or overlap.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;
pub use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::Error;
use crate::files::Disguise;

/// Longest header accepted, as in the format's own reader.
const HEADER_LIMIT: u64 = 100_000_000;
/// Bytes read at a time while a tensor is converted or compared.
const CHUNK: usize = 1 << 20;

/// The place, dtype and shape of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type.
    pub dtype: Dtype,
    /// Extent of each dimension, outermost first.
    pub shape: Vec<usize>,
    /// Bytes from the start of the file; checked to lie inside it.
    range: Range<u64>,
}

impl TensorInfo {
    /// Of a tensor that is read as f32 from a file of another format.
    pub fn of_f32(shape: Vec<usize>) -> Self {
        Self { dtype: Dtype::F32, shape, range: 0..0 }
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        // Checked not to overflow when the header was read.
        self.shape.iter().product()
    }

    /// Length of the data in bytes.
    pub fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// One of the parts that the first dimension counts; `None` if it has no such part, or they are no whole bytes.
    pub(super) fn slice(&self, index: usize) -> Option<Self> {
        let (count, shape) = self.shape.split_first()?;
        let bits = self.dtype.bitsize() * shape.iter().product::<usize>();
        if index >= *count || !bits.is_multiple_of(8) {
            return None;
        }
        let bytes = (bits / 8) as u64;
        let start = self.range.start + index as u64 * bytes;
        Some(Self { dtype: self.dtype, shape: shape.to_vec(), range: start..start + bytes })
    }

    /// Some rows of a matrix, in the same way.
    pub(super) fn rows(&self, rows: Range<usize>) -> Option<Self> {
        let (first, last) = (self.slice(rows.start)?, self.slice(rows.end.checked_sub(1)?)?);
        let shape = [vec![rows.len()], first.shape].concat();
        Some(Self { dtype: self.dtype, shape, range: first.range.start..last.range.end })
    }

    /// The same bytes in another shape.
    pub(super) fn reshaped(&self, shape: Vec<usize>) -> Self {
        Self { shape, ..self.clone() }
    }
}

/// A float type that weights can be read as.
pub trait Float: Copy + Send + Sync {
    /// The nearest value of this type.
    fn from_f32(value: f32) -> Self;
    /// Whether the value is neither infinite nor NaN.
    fn is_finite(self) -> bool;
}

macro_rules! half_float {
    ($type:ty) => {
        impl Float for $type {
            fn from_f32(value: f32) -> Self {
                <$type>::from_f32(value)
            }
            fn is_finite(self) -> bool {
                <$type>::is_finite(self)
            }
        }
    };
}
half_float!(bf16);
half_float!(f16);
impl Float for f32 {
    fn from_f32(value: f32) -> Self {
        value
    }
    fn is_finite(self) -> bool {
        f32::is_finite(self)
    }
}

/// An open safetensors file with a valid header.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    file: File,
    length: u64,
    tensors: BTreeMap<String, TensorInfo>,
    metadata: BTreeMap<String, String>,
}

impl SafetensorsFile {
    /// Opens a file and checks its header; reads no tensor.
    ///
    /// # Errors
    /// The file cannot be read, or its header is invalid.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let metadata = fs::metadata(path).map_err(Error::io(path))?;
        if !metadata.is_file() {
            return Err(Error::NotAFile { path: path.to_path_buf() });
        }
        let file = File::open(path).map_err(Error::io(path))?;
        let length = file.metadata().map_err(Error::io(path))?.len();
        let invalid = |message: String| match Disguise::of_file(path) {
            Some(disguise) => Error::Disguised { path: path.to_path_buf(), disguise },
            None => Error::Safetensors { path: path.to_path_buf(), message },
        };

        let mut prefix = [0; 8];
        if length < 8 {
            return Err(invalid(format!("{length} bytes are too few for a header")));
        }
        read_at(&file, &mut prefix, 0).map_err(Error::io(path))?;
        let header_length = u64::from_le_bytes(prefix);
        if header_length > length - 8 {
            return Err(invalid(format!(
                "its header should have {header_length} bytes, but {} follow; the file is truncated or has another format",
                length - 8
            )));
        }
        if header_length > HEADER_LIMIT {
            return Err(invalid(format!(
                "its header has {header_length} bytes; the limit is {HEADER_LIMIT}"
            )));
        }
        let mut header = vec![0; header_length as usize];
        read_at(&file, &mut header, 8).map_err(Error::io(path))?;
        let header: Header = serde_json::from_slice(&header)
            .map_err(|error| invalid(format!("its header is not valid: {error}")))?;
        let tensors = check(header.tensors, 8 + header_length, length).map_err(invalid)?;
        Ok(Self { path: path.to_path_buf(), file, length, tensors, metadata: header.metadata })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length of the whole file in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Free-form strings of the header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Tensor names in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The header's entry for a tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// The bytes of one tensor, little-endian.
    ///
    /// # Errors
    /// The tensor does not exist, or the file cannot be read.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, Error> {
        self.read_part(name, self.require(name)?)
    }

    /// The bytes of a part of a tensor.
    pub(super) fn read_part(&self, name: &str, part: &TensorInfo) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; part.bytes() as usize];
        self.read_range(name, &mut bytes, part.range.start)?;
        Ok(bytes)
    }

    /// One float tensor, converted piece by piece on all cores; holds the result and a small buffer per core.
    ///
    /// # Errors
    /// The tensor does not exist, its dtype is not F32, F16 or BF16, the file cannot be read, or a value is not finite
    /// or outside the range of `T`.
    pub fn read_floats<T: Float>(&self, name: &str) -> Result<Vec<T>, Error> {
        self.read_floats_of_part(name, self.require(name)?)
    }

    /// [`Self::read_floats`] of a part of a tensor.
    pub(super) fn read_floats_of_part<T: Float>(
        &self,
        name: &str,
        info: &TensorInfo,
    ) -> Result<Vec<T>, Error> {
        match info.dtype {
            Dtype::F32 => self.decode(name, info, f32::from_le_bytes),
            Dtype::BF16 => self.decode(name, info, |pair| bf16::from_le_bytes(pair).to_f32()),
            Dtype::F16 => self.decode(name, info, |pair| f16::from_le_bytes(pair).to_f32()),
            Dtype::F8_E4M3 => self.decode(name, info, |[code]| super::fp8::decode(code)),
            other => Err(Error::UnsupportedDtype {
                path: self.path.clone(),
                tensor: name.to_owned(),
                dtype: format!("{other:?}"),
            }),
        }
    }

    /// Reads a tensor whose elements take `W` bytes, in pieces, on all cores.
    fn decode<T: Float, const W: usize>(
        &self,
        name: &str,
        info: &TensorInfo,
        decode: impl Fn([u8; W]) -> f32 + Sync,
    ) -> Result<Vec<T>, Error> {
        let mut values = vec![T::from_f32(0.0); info.elements()];
        let chunks = values.par_chunks_mut(CHUNK / W).enumerate();
        chunks.try_for_each_init(Vec::new, |buffer, (chunk, values)| {
            buffer.resize(values.len() * W, 0);
            self.read_range(name, buffer, info.range.start + (chunk * CHUNK) as u64)?;
            let (elements, _) = buffer.as_chunks::<W>();
            for (value, &element) in values.iter_mut().zip(elements) {
                *value = T::from_f32(decode(element));
            }
            let Some(bad) = values.iter().position(|value| !value.is_finite()) else { return Ok(()) };
            let value = decode(elements[bad]);
            Err(Error::BadNumber {
                path: self.path.clone(),
                tensor: name.to_owned(),
                element: chunk * (CHUNK / W) + bad,
                value,
                reason: match value.is_finite() {
                    true => "is outside the range of the compute dtype; set `compute_dtype = \"f32\"`",
                    false => "is not a valid weight; the checkpoint is damaged",
                },
            })
        })?;
        Ok(values)
    }

    /// Some rows of a float matrix, one after the other.
    ///
    /// # Errors
    /// As [`Self::read_floats`]; the tensor is no matrix with such rows.
    pub fn read_rows<T: Float>(&self, name: &str, rows: &[u32]) -> Result<Vec<T>, Error> {
        let info = self.require(name)?;
        match info.dtype {
            Dtype::F32 => self.decode_rows(name, info, rows, f32::from_le_bytes),
            Dtype::BF16 => self.decode_rows(name, info, rows, |pair| bf16::from_le_bytes(pair).to_f32()),
            Dtype::F16 => self.decode_rows(name, info, rows, |pair| f16::from_le_bytes(pair).to_f32()),
            other => Err(Error::UnsupportedDtype {
                path: self.path.clone(),
                tensor: name.to_owned(),
                dtype: format!("{other:?}"),
            }),
        }
    }

    fn decode_rows<T: Float, const W: usize>(
        &self,
        name: &str,
        info: &TensorInfo,
        rows: &[u32],
        decode: impl Fn([u8; W]) -> f32,
    ) -> Result<Vec<T>, Error> {
        let [count, width] = info.shape[..] else {
            let message = format!("tensor `{name}` has shape {:?}, and rows of it are read", info.shape);
            return Err(Error::Safetensors { path: self.path.clone(), message });
        };
        let mut buffer = vec![0; width * W];
        let mut values = Vec::with_capacity(rows.len() * width);
        for row in rows.iter().map(|row| *row as usize) {
            if row >= count {
                let message = format!("tensor `{name}` has {count} rows, and row {row} is read");
                return Err(Error::Safetensors { path: self.path.clone(), message });
            }
            self.read_range(name, &mut buffer, info.range.start + (row * width * W) as u64)?;
            values.extend(buffer.as_chunks::<W>().0.iter().map(|element| T::from_f32(decode(*element))));
        }
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(element) => Err(Error::BadNumber {
                path: self.path.clone(),
                tensor: name.to_owned(),
                element,
                value: f32::NAN,
                reason: "is not a valid weight, or outside the range of the compute dtype",
            }),
        }
    }

    /// Whether two tensors (perhaps of different files) have the same dtype, shape and bytes.
    ///
    /// # Errors
    /// A tensor does not exist, or a file cannot be read.
    pub fn same_tensor(&self, name: &str, other: &Self, other_name: &str) -> Result<bool, Error> {
        let (left, right) = (self.require(name)?, other.require(other_name)?);
        if left.dtype != right.dtype || left.shape != right.shape {
            return Ok(false);
        }
        let mut buffers = [vec![0; CHUNK], vec![0; CHUNK]];
        let mut done = 0;
        while done < left.bytes() {
            let wanted = CHUNK.min((left.bytes() - done) as usize);
            let [ours, theirs] = &mut buffers;
            self.read_range(name, &mut ours[..wanted], left.range.start + done)?;
            other.read_range(other_name, &mut theirs[..wanted], right.range.start + done)?;
            if ours[..wanted] != theirs[..wanted] {
                return Ok(false);
            }
            done += wanted as u64;
        }
        Ok(true)
    }

    fn require(&self, name: &str) -> Result<&TensorInfo, Error> {
        self.info(name)
            .ok_or_else(|| Error::MissingTensor { path: self.path.clone(), tensor: name.to_owned() })
    }

    fn read_range(&self, tensor: &str, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        read_at(&self.file, buffer, offset).map_err(|source| match source.kind() {
            ErrorKind::UnexpectedEof => {
                let length = self.file.metadata().map_or(0, |metadata| metadata.len());
                let missing = (offset + buffer.len() as u64).saturating_sub(length);
                Error::Truncated { path: self.path.clone(), tensor: tensor.to_owned(), missing }
            }
            _ => Error::Io { path: self.path.clone(), source },
        })
    }
}

/// Fills `buffer` from `offset`, without a shared cursor.
#[cfg(unix)]
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

/// Fills `buffer` from `offset`, without relying on a shared cursor.
#[cfg(windows)]
fn read_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !buffer.is_empty() {
        match file.seek_read(buffer, offset) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                buffer = &mut buffer[count..];
                offset += count as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The unchecked header: names may repeat, numbers may have any value.
struct Header {
    tensors: Vec<(String, Entry)>,
    metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Entry {
    dtype: Dtype,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = Header;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut header = Header { tensors: Vec::new(), metadata: BTreeMap::new() };
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        header.metadata = map.next_value::<Option<_>>()?.unwrap_or_default();
                        continue;
                    }
                    let entry = map
                        .next_value::<Entry>()
                        .map_err(|error| A::Error::custom(format!("tensor `{name}`: {error}")))?;
                    header.tensors.push((name, entry));
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// Checks that the tensors cover every byte of the data, `data_start..file_length`, exactly once.
fn check(
    mut entries: Vec<(String, Entry)>,
    data_start: u64,
    file_length: u64,
) -> Result<BTreeMap<String, TensorInfo>, String> {
    let data_length = file_length - data_start;
    // Empty tensors first where several begin at one offset.
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut tensors = BTreeMap::new();
    let mut covered = 0;
    for (name, Entry { dtype, shape, data_offsets: [begin, end] }) in entries {
        if end < begin || end > data_length {
            return Err(format!(
                "tensor `{name}` should be at bytes {begin} to {end} of {data_length}; the file is truncated or damaged"
            ));
        }
        if begin != covered {
            let fault =
                if begin > covered { "leaves a gap before" } else { "overlaps the previous tensor at" };
            return Err(format!("tensor `{name}` {fault} its first byte, {begin} (expected {covered})"));
        }
        let extents: Option<Vec<usize>> = shape.iter().map(|&extent| usize::try_from(extent).ok()).collect();
        let bits = shape
            .iter()
            .try_fold(1_u64, |product, &extent| product.checked_mul(extent))
            .and_then(|elements| elements.checked_mul(dtype.bitsize() as u64));
        let (Some(extents), Some(bits)) = (extents, bits) else {
            return Err(format!("the shape {shape:?} of tensor `{name}` overflows"));
        };
        if bits % 8 != 0 || bits / 8 != end - begin {
            return Err(format!("tensor `{name}` is {dtype:?} {shape:?} but has {} bytes", end - begin));
        }
        covered = end;
        let info = TensorInfo { dtype, shape: extents, range: data_start + begin..data_start + end };
        if tensors.insert(name.clone(), info).is_some() {
            return Err(format!("tensor `{name}` occurs twice"));
        }
    }
    match covered == data_length {
        true => Ok(tensors),
        false => Err(format!("its tensors cover {covered} of {data_length} bytes of data")),
    }
}
