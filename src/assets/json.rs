//! JSON files of a model folder, read under a size limit.
//!
//! Nesting is limited by serde_json (128 levels), so a hostile file cannot exhaust the stack.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};

use super::Error;
use crate::files::Disguise;

/// Largest config.json and tokenizer_config.json read: real ones stay below one MiB.
pub const CONFIG_LIMIT: u64 = 32 << 20;
/// Largest weight index read; about a hundred bytes a tensor, so this is a million tensors.
pub const INDEX_LIMIT: u64 = 128 << 20;

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// The file is missing, is not regular, is larger than `limit`, cannot be read, or is something else than a text.
pub fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    // Checked before opening: opening a named pipe would wait for a writer.
    let metadata = fs::metadata(path).map_err(Error::io(path))?;
    if !metadata.is_file() {
        return Err(Error::NotAFile { path: path.to_path_buf() });
    }
    let too_large = |bytes| Error::TooLarge { path: path.to_path_buf(), bytes, limit };
    if metadata.len() > limit {
        return Err(too_large(metadata.len()));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(Error::io(path))?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io(path))?;
    if bytes.len() as u64 > limit {
        return Err(too_large(bytes.len() as u64));
    }
    match Disguise::of(&bytes) {
        Some(disguise) => Err(Error::Disguised { path: path.to_path_buf(), disguise }),
        None => Ok(bytes),
    }
}

/// Reads a JSON object.
///
/// # Errors
/// As [`read_limited`]; also when the content is not a JSON object.
pub fn read_object(path: &Path, limit: u64) -> Result<Value, Error> {
    let bytes = read_limited(path, limit)?;
    let fail = |message: String| Error::Json { path: path.to_path_buf(), message };
    let value: Value =
        serde_json::from_slice(&bytes).map_err(|error| fail(format!("not valid JSON: {error}")))?;
    match value.is_object() {
        true => Ok(value),
        false => Err(fail(format!("expected a JSON object, found {}", kind(&value)))),
    }
}

/// The entries of a value that [`read_object`] returned.
pub(super) fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

/// The kind of a JSON value, in words.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
