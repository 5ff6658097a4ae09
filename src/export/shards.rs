//! Weights streamed into a folder: the header first, then one tensor at a time; `model.safetensors`, or shards and
//! their index as transformers names them.
//!
//! Knows names, shapes and sizes; where the numbers come from is the caller's.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use serde_json::{Map, json};

use super::Error;
use crate::files;
use crate::files::safetensors::{Layout, TensorHeader};

/// Bytes of tensors a shard may hold by default, as in transformers.
pub const SHARD_BYTES: u64 = 5_000_000_000;

/// How far writing has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Tensors written.
    pub done: usize,
    /// Tensors in all.
    pub total: usize,
}

/// Tensors that stay in one file.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The tensors.
    pub tensors: Vec<TensorHeader>,
    /// Numbers of the model that they stand for.
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

/// A model's tensors, on their way to a folder.
pub struct Shards<'a> {
    /// What is written, in the order in which it is spread over files.
    pub entries: Vec<Entry>,
    /// Bytes of tensors that a file may hold; a larger entry has a file of its own.
    pub limit: u64,
    /// Metadata of the files; `format` is added.
    pub metadata: &'a BTreeMap<String, String>,
}

impl Shards<'_> {
    /// Writes the files; `bytes` gives the little-endian bytes of each tensor, once.
    ///
    /// # Errors
    /// `bytes` fails, the disk refuses, or `stop` says so.
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
            // The writer speaks of I/O alone: what else goes wrong is kept here.
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

    /// Runs of entries that fit a file each.
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
