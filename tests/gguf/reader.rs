//! A GGUF file read for a test, by a few lines that share nothing with what writes it.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tune_kernels::ggml::BlockType;

/// A tensor of a file.
pub(crate) struct Tensor {
    pub(crate) kind: BlockType,
    /// Rows first.
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Tensor {
    pub(crate) fn values(&self) -> Vec<f32> {
        self.kind.decode(&self.bytes)
    }
}

pub(crate) struct File {
    pub(crate) keys: BTreeMap<String, Value>,
    pub(crate) tensors: BTreeMap<String, Tensor>,
}

struct Cursor<'a>(&'a [u8], usize);

impl Cursor<'_> {
    fn take(&mut self, count: usize) -> &[u8] {
        self.1 += count;
        &self.0[self.1 - count..self.1]
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> usize {
        u64::from_le_bytes(self.take(8).try_into().unwrap()) as usize
    }

    fn text(&mut self) -> String {
        let length = self.u64();
        String::from_utf8(self.take(length).to_vec()).unwrap()
    }

    fn value(&mut self, kind: u32) -> Value {
        match kind {
            4 => json!(self.u32()),
            5 => json!(self.u32() as i32),
            6 => json!(f32::from_bits(self.u32())),
            7 => json!(self.take(1)[0] == 1),
            8 => json!(self.text()),
            9 => {
                let (inner, count) = (self.u32(), self.u64());
                (0..count).map(|_| self.value(inner)).collect()
            }
            other => panic!("value type {other}"),
        }
    }
}

pub(crate) fn read(path: &Path) -> File {
    let bytes = std::fs::read(path).unwrap();
    let mut cursor = Cursor(&bytes, 0);
    assert_eq!(cursor.take(4), b"GGUF");
    assert_eq!(cursor.u32(), 3);
    let (tensors, keys) = (cursor.u64(), cursor.u64());
    let keys: BTreeMap<String, Value> = (0..keys)
        .map(|_| {
            let (key, kind) = (cursor.text(), cursor.u32());
            (key, cursor.value(kind))
        })
        .collect();
    let headers: Vec<(String, Vec<usize>, BlockType, usize)> = (0..tensors)
        .map(|_| {
            let (name, dimensions) = (cursor.text(), cursor.u32());
            let mut shape: Vec<usize> = (0..dimensions).map(|_| cursor.u64()).collect();
            shape.reverse();
            (name, shape, BlockType::of_id(cursor.u32()).unwrap(), cursor.u64())
        })
        .collect();
    let start = cursor.1.next_multiple_of(32);
    let mut end = start;
    let tensors = headers
        .into_iter()
        .map(|(name, shape, kind, offset)| {
            assert_eq!(start + offset, end, "{name} lies where the one before it ends");
            let length = kind.bytes(shape.iter().product());
            end = (start + offset + length).next_multiple_of(32);
            let bytes = bytes[start + offset..][..length].to_vec();
            (name, Tensor { kind, shape, bytes })
        })
        .collect();
    assert_eq!(end, bytes.len());
    File { keys, tensors }
}

/// A list as the golden files have it: itself, or (long ones) its length and the hash of its JSON as Python spells it.
pub(crate) fn summary(value: &Value) -> Value {
    match value.as_array() {
        Some(items) if items.len() > 16 => {
            let items: Vec<String> = items.iter().map(Value::to_string).collect();
            let hash = hash(format!("[{}]", items.join(", ")).as_bytes());
            json!(format!("{} items, sha256 {hash}", items.len()))
        }
        _ => value.clone(),
    }
}

pub(crate) fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
