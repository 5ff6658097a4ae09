//! The file format: typed keys, a table of tensors, and their data, each aligned.
//!
//! Layout: `GGUF`, version 3, counts, keys, tensor table, padding, data (ggml's `docs/gguf.md`; little-endian). As with
//! safetensors, sizes follow from types and shapes, so the header is written first and the data streamed after it.
//! Knows no key and no model.

use std::io::{self, Write};

use tune_kernels::ggml::BlockType;

/// Alignment of every tensor from the start of the data, in bytes.
const ALIGNMENT: usize = 32;
/// Version of the container.
const VERSION: u32 = 3;

/// The value of a key.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// An unsigned number.
    U32(u32),
    /// A float.
    F32(f32),
    /// Yes or no.
    Bool(bool),
    /// Text.
    Text(String),
    /// A list of texts.
    Texts(Vec<String>),
    /// A list of signed numbers.
    I32s(Vec<i32>),
    /// A list of floats.
    F32s(Vec<f32>),
    /// A list of yes and no.
    Bools(Vec<bool>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// Keys and their values in the order in which they are written.
pub type Keys = Vec<(String, Value)>;

/// A tensor as its table names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorHeader {
    /// Its name.
    pub name: String,
    /// Rows first, as in safetensors; the file stores dimensions in reverse order.
    pub shape: Vec<usize>,
    /// Its block format.
    pub kind: BlockType,
}

impl TensorHeader {
    /// Size of its data, in bytes.
    pub fn bytes(&self) -> usize {
        self.kind.bytes(self.shape.iter().product())
    }
}

/// The layout of a file: header, and the place of every tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    header: Vec<u8>,
    tensors: Vec<TensorHeader>,
}

impl Layout {
    /// Computes the layout; tensor data follows in the order of `tensors`.
    pub fn new(keys: &Keys, tensors: Vec<TensorHeader>) -> Self {
        let mut header = b"GGUF".to_vec();
        header.extend_from_slice(&VERSION.to_le_bytes());
        put_count(&mut header, tensors.len());
        put_count(&mut header, keys.len());
        for (key, value) in keys {
            put_text(&mut header, key);
            put_value(&mut header, value);
        }
        let mut offset = 0;
        for tensor in &tensors {
            put_text(&mut header, &tensor.name);
            header.extend_from_slice(&(tensor.shape.len() as u32).to_le_bytes());
            for size in tensor.shape.iter().rev() {
                put_count(&mut header, *size);
            }
            header.extend_from_slice(&tensor.kind.id().to_le_bytes());
            put_count(&mut header, offset);
            offset += tensor.bytes().next_multiple_of(ALIGNMENT);
        }
        header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
        Self { header, tensors }
    }

    /// The tensors, in file order.
    pub fn tensors(&self) -> &[TensorHeader] {
        &self.tensors
    }

    /// Where the data of each tensor begins in the file, in file order.
    pub fn offsets(&self) -> impl Iterator<Item = u64> {
        self.tensors.iter().scan(self.header.len() as u64, |next, tensor| {
            let offset = *next;
            *next += tensor.bytes().next_multiple_of(ALIGNMENT) as u64;
            Some(offset)
        })
    }

    /// Size of the file, in bytes.
    pub fn bytes(&self) -> u64 {
        let data: usize = self.tensors.iter().map(|tensor| tensor.bytes().next_multiple_of(ALIGNMENT)).sum();
        (self.header.len() + data) as u64
    }

    /// Writes the file; `data` returns the bytes of each tensor.
    ///
    /// # Errors
    /// Errors of the writer and of `data`; data whose length differs from the table.
    pub fn write(
        &self,
        out: &mut dyn Write,
        mut data: impl FnMut(usize) -> io::Result<Vec<u8>>,
    ) -> io::Result<()> {
        out.write_all(&self.header)?;
        for (index, tensor) in self.tensors.iter().enumerate() {
            let bytes = data(index)?;
            if bytes.len() != tensor.bytes() {
                let (name, expected, found) = (&tensor.name, tensor.bytes(), bytes.len());
                return Err(io::Error::other(format!("tensor `{name}` has {found} bytes, not {expected}")));
            }
            out.write_all(&bytes)?;
            let padding = bytes.len().next_multiple_of(ALIGNMENT) - bytes.len();
            out.write_all(&[0; ALIGNMENT][..padding])?;
        }
        Ok(())
    }
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend_from_slice(&(count as u64).to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_count(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

/// Ids of the value types.
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const TEXT: u32 = 8;
const LIST: u32 = 9;

fn put_value(out: &mut Vec<u8>, value: &Value) {
    let put_type = |out: &mut Vec<u8>, kind: u32| out.extend_from_slice(&kind.to_le_bytes());
    let put_list = |out: &mut Vec<u8>, kind: u32, length: usize| {
        put_type(out, LIST);
        put_type(out, kind);
        put_count(out, length);
    };
    match value {
        Value::U32(number) => {
            put_type(out, U32);
            out.extend_from_slice(&number.to_le_bytes());
        }
        Value::F32(number) => {
            put_type(out, F32);
            out.extend_from_slice(&number.to_le_bytes());
        }
        Value::Bool(yes) => {
            put_type(out, BOOL);
            out.push(u8::from(*yes));
        }
        Value::Text(text) => {
            put_type(out, TEXT);
            put_text(out, text);
        }
        Value::Texts(texts) => {
            put_list(out, TEXT, texts.len());
            for text in texts {
                put_text(out, text);
            }
        }
        Value::I32s(numbers) => {
            put_list(out, I32, numbers.len());
            for number in numbers {
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
        Value::F32s(numbers) => {
            put_list(out, F32, numbers.len());
            for number in numbers {
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
        Value::Bools(answers) => {
            put_list(out, BOOL, answers.len());
            out.extend(answers.iter().map(|yes| u8::from(*yes)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_file_byte_for_byte() {
        let keys = vec![("a".to_owned(), Value::from("b")), ("n".to_owned(), Value::I32s(vec![-1]))];
        let tensor = |name: &str, shape: &[usize]| TensorHeader {
            name: name.into(),
            shape: shape.to_vec(),
            kind: BlockType::F16,
        };
        let layout = Layout::new(&keys, vec![tensor("x", &[2, 1]), tensor("y", &[3])]);
        let mut file = Vec::new();
        layout.write(&mut file, |index| Ok(vec![index as u8 + 1; if index == 0 { 4 } else { 6 }])).unwrap();
        assert_eq!(file.len() as u64, layout.bytes());
        let data: Vec<u8> = layout.offsets().map(|offset| file[offset as usize]).collect();
        assert_eq!(data, [1, 2], "each tensor begins where it is said to");
        let mut expected = b"GGUF\x03\0\0\0".to_vec();
        for count in [2_u64, 2] {
            expected.extend(count.to_le_bytes());
        }
        expected.extend(b"\x01\0\0\0\0\0\0\0a\x08\0\0\0\x01\0\0\0\0\0\0\0b");
        expected.extend(b"\x01\0\0\0\0\0\0\0n\x09\0\0\0\x05\0\0\0\x01\0\0\0\0\0\0\0\xff\xff\xff\xff");
        expected.extend(b"\x01\0\0\0\0\0\0\0x\x02\0\0\0");
        expected.extend([1_u64, 2].into_iter().flat_map(u64::to_le_bytes));
        expected.extend(b"\x01\0\0\0\0\0\0\0\0\0\0\0");
        expected.extend(b"\x01\0\0\0\0\0\0\0y\x01\0\0\0\x03\0\0\0\0\0\0\0\x01\0\0\0\x20\0\0\0\0\0\0\0");
        expected.resize(expected.len().next_multiple_of(32), 0);
        let start = expected.len();
        expected.extend([1; 4]);
        expected.resize(start + 32, 0);
        expected.extend([2; 6]);
        expected.resize(start + 64, 0);
        assert_eq!(file, expected);
        let error = layout.write(&mut Vec::new(), |_| Ok(vec![0; 5])).unwrap_err();
        assert_eq!(error.to_string(), "tensor `x` has 5 bytes, not 4");
    }
}
