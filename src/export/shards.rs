//! Streams weights into a folder: the header first, then one tensor at a time; `model.safetensors`, or shards and
//! their index under transformers' names.
//!
//! Knows names, shapes and sizes; the caller provides the values.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use serde_json::{Map, json};

use super::Error;
use crate::files;
use crate::files::safetensors::{Layout, TensorHeader};

/// Default shard size in bytes of tensors, as in transformers.
pub const SHARD_BYTES: u64 = 5_000_000_000;

/// Progress of writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Tensors written.
    pub done: usize,
    /// Total number of tensors.
    pub total: usize,
}

/// Tensors that must be in one file.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The tensors.
    pub tensors: Vec<TensorHeader>,
    /// Number of model parameters that they represent.
    pub parameters: u64,
}

impl Entry {
    fn bytes(&self) -> u64 {
        let size = |tensor: &TensorHeader| {
            tensor.shape.iter().product::<usize>() as u64 * tensor.dtype.bitsize() as u64 / 8
        };
        self.tensors.iter().map(size).sum()
    }
}

/// A model's tensors to write into a folder.
pub struct Shards<'a> {
    /// The entries, in file order.
    pub entries: Vec<Entry>,
    /// Largest file in bytes of tensors; a larger entry gets its own file.
    pub limit: u64,
    /// Metadata of the files; `format` is added to it.
    pub metadata: &'a BTreeMap<String, String>,
}

impl Shards<'_> {
    /// Writes the files; `bytes` returns the little-endian bytes of each tensor and is called once per tensor.
    ///
    /// # Errors
    /// `bytes` failed, a file cannot be written, or `stop` returned true.
    pub fn write(
        &self,
        folder: &Path,
        bytes: &mut dyn FnMut(&TensorHeader) -> Result<Vec<u8>, Error>,
        progress: &mut dyn FnMut(Written),
        stop: &dyn Fn() -> bool,
    ) -> Result<(), Error> {
        let files = self.files();
        let mut weight_map = Map::new();
        let total = self.entries.iter().map(|entry| entry.tensors.len()).sum();
        let mut done = 0;
        for (number, entries) in files.iter().enumerate() {
            let name = match files.len() {
                1 => "model.safetensors".to_owned(),
                count => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
            };
            let headers: Vec<TensorHeader> =
                entries.iter().flat_map(|entry| entry.tensors.iter().cloned()).collect();
            weight_map.extend(headers.iter().map(|header| (header.name.clone(), json!(name))));
            let mut metadata = self.metadata.clone();
            metadata.insert("format".into(), "pt".into());
            let layout = Layout::new(&metadata, headers)?;
            // The writer returns only I/O errors: others are stored here.
            let mut fault = None;
            let written = files::write_atomically(&folder.join(&name), |out: &mut dyn Write| {
                layout.write(out, |header, out| {
                    let outcome = if stop() { Err(Error::Stopped) } else { bytes(header) };
                    let bytes = outcome.map_err(|error| {
                        fault = Some(error);
                        io::Error::other("the tensor cannot be written")
                    })?;
                    out.write_all(&bytes)?;
                    done += 1;
                    progress(Written { done, total });
                    Ok(())
                })
            });
            match fault {
                Some(error) => return Err(error),
                None => written?,
            }
        }
        if files.len() > 1 {
            let parameters: u64 = self.entries.iter().map(|entry| entry.parameters).sum();
            let bytes: u64 = self.entries.iter().map(Entry::bytes).sum();
            weight_map.sort_keys();
            let index = json!({
                "metadata": {"total_parameters": parameters, "total_size": bytes},
                "weight_map": weight_map,
            });
            let text = format!("{index:#}\n");
            files::write_bytes(&folder.join("model.safetensors.index.json"), text.as_bytes())?;
        }
        Ok(())
    }

    /// Ranges of entries that fit into one file each.
    fn files(&self) -> Vec<&[Entry]> {
        let mut files = Vec::new();
        let (mut start, mut bytes) = (0, 0);
        for (index, entry) in self.entries.iter().enumerate() {
            let size = entry.bytes();
            if index > start && bytes + size > self.limit {
                files.push(&self.entries[start..index]);
                (start, bytes) = (index, 0);
            }
            bytes += size;
        }
        files.push(&self.entries[start..]);
        files
    }
}
