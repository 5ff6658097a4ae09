//! A checkpoint on disk: named tensors, a JSON of counters, and a manifest of their hashes. Complete or absent.
//!
//! ```text
//! state.safetensors   the tensors
//! counters.json       everything that is not a tensor
//! manifest.json       layout version, and size and SHA-256 of the two
//! ```
//!
//! Knows no optimizer, no adapter and no data: the training loop gives tensors and counters their meaning.

pub mod exact;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::files::safetensors::{Dtype, Layout, TensorHeader, write_f32};
use crate::files::{self, Action, Existing};

/// The layout version; other versions are refused.
const VERSION: u32 = 2;
const TENSORS: &str = "state.safetensors";
const COUNTERS: &str = "counters.json";
const MANIFEST: &str = "manifest.json";

/// Why a checkpoint cannot be written or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing a file failed.
    #[error(transparent)]
    File(#[from] files::Error),
    /// A file differs from the manifest, or is not part of a checkpoint.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// The problem.
        reason: String,
    },
    /// Another release wrote it.
    #[error(
        "{} has checkpoint layout {found}, and this release of tune reads layout {VERSION}; resume with the release that \
         wrote it",
        path.display()
    )]
    OtherLayout {
        /// Its manifest.
        path: PathBuf,
        /// Its layout version.
        found: u32,
    },
    /// It is complete, but belongs to another run.
    #[error("{} does not fit this run: {reason}", path.display())]
    DoesNotFit {
        /// Its folder.
        path: PathBuf,
        /// The problem.
        reason: String,
    },
    /// The tensors cannot be read from the device.
    #[error("cannot read back from the device: {0}")]
    Device(String),
}

/// A tensor of a checkpoint, f32.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub values: Vec<f32>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    version: u32,
    files: BTreeMap<String, FileRecord>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct FileRecord {
    bytes: u64,
    sha256: String,
}

impl FileRecord {
    fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, sha256: hex(&Sha256::digest(bytes)) }
    }
}

/// A tensor to write.
pub trait Source {
    /// Its name.
    fn name(&self) -> String;
    /// Its shape.
    fn shape(&self) -> Vec<usize>;
    /// Its values, row-major; called once, when it is written.
    ///
    /// # Errors
    /// They cannot be read from the device.
    fn values(&self) -> Result<Cow<'_, [f32]>, Error>;
}

impl Source for NamedTensor {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn shape(&self) -> Vec<usize> {
        self.shape.clone()
    }

    fn values(&self) -> Result<Cow<'_, [f32]>, Error> {
        Ok(Cow::Borrowed(&self.values))
    }
}

/// Writes a checkpoint folder, replacing an earlier one of that name. Holds one tensor at a time.
///
/// # Errors
/// [`Error::File`] if it cannot be written; an earlier folder is then untouched.
pub fn write(folder: &Path, tensors: &[impl Source], counters: &impl Serialize) -> Result<(), Error> {
    if let Some(parent) = folder.parent() {
        files::create_folder(parent)?;
    }
    files::write_folder_atomically(folder, Existing::Replace, |temporary| {
        let tensor_record = write_tensors(&temporary.join(TENSORS), tensors)?;
        let counter_bytes = pretty(counters, COUNTERS)?;
        files::write_inside(&temporary.join(COUNTERS), &counter_bytes)?;
        let manifest = Manifest {
            version: VERSION,
            files: BTreeMap::from([
                (TENSORS.to_owned(), tensor_record),
                (COUNTERS.to_owned(), FileRecord::of(&counter_bytes)),
            ]),
        };
        files::write_inside(&temporary.join(MANIFEST), &pretty(&manifest, MANIFEST)?)?;
        Ok(())
    })
}

/// Writes the tensors as one safetensors file, and returns its size and hash.
fn write_tensors(path: &Path, tensors: &[impl Source]) -> Result<FileRecord, Error> {
    let headers = tensors
        .iter()
        .map(|tensor| TensorHeader { name: tensor.name(), dtype: Dtype::F32, shape: tensor.shape() })
        .collect();
    let by_name: BTreeMap<String, _> = tensors.iter().map(|tensor| (tensor.name(), tensor)).collect();
    let layout = Layout::new(&BTreeMap::new(), headers)?;
    let mut out = Hashing { out: BufWriter::new(files::create_inside(path)?), digest: Sha256::new() };
    let mut refused = None;
    let written = layout.write(&mut out, |header, out| {
        let Some(tensor) = by_name.get(&header.name) else {
            return Err(io::Error::other("a tensor is missing"));
        };
        match tensor.values() {
            Ok(values) => write_f32(out, &values),
            Err(error) => {
                refused = Some(error);
                Err(io::Error::other("cannot read a tensor from the device"))
            }
        }
    });
    if let Some(error) = refused {
        return Err(error);
    }
    written.and_then(|()| out.flush()).map_err(files::Error::io(Action::Write, path))?;
    Ok(FileRecord { bytes: layout.bytes(), sha256: hex(&out.digest.finalize()) })
}

/// A writer that hashes its bytes.
struct Hashing<W> {
    out: W,
    digest: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.digest.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Reads a checkpoint back and checks it against its manifest.
///
/// # Errors
/// [`Error::File`] for a missing file, [`Error::Damaged`] for changed content, [`Error::OtherLayout`] for a checkpoint
/// of another release.
pub fn read(folder: &Path) -> Result<(Vec<NamedTensor>, Value), Error> {
    let manifest_path = folder.join(MANIFEST);
    let damaged = |path: &Path, reason: String| Error::Damaged { path: path.to_path_buf(), reason };
    let manifest: Manifest = serde_json::from_slice(&read_file(&manifest_path)?)
        .map_err(|error| damaged(&manifest_path, error.to_string()))?;
    if manifest.version != VERSION {
        return Err(Error::OtherLayout { path: manifest_path, found: manifest.version });
    }
    let verified = |name: &str| -> Result<(PathBuf, Vec<u8>), Error> {
        let path = folder.join(name);
        let bytes = read_file(&path)?;
        match manifest.files.get(name) {
            Some(record) if *record == FileRecord::of(&bytes) => Ok((path, bytes)),
            Some(_) => Err(damaged(&path, "its size or hash differs from the manifest".into())),
            None => Err(damaged(&manifest_path, format!("it does not list {name}"))),
        }
    };
    let (path, bytes) = verified(COUNTERS)?;
    let counters = serde_json::from_slice(&bytes).map_err(|error| damaged(&path, error.to_string()))?;
    let (path, bytes) = verified(TENSORS)?;
    let tensors = parse_tensors(&bytes).map_err(|reason| damaged(&path, reason))?;
    Ok((tensors, counters))
}

fn parse_tensors(bytes: &[u8]) -> Result<Vec<NamedTensor>, String> {
    let parsed = ::safetensors::SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    let mut tensors = Vec::with_capacity(parsed.len());
    for (name, view) in parsed.iter() {
        if view.dtype() != ::safetensors::Dtype::F32 {
            return Err(format!("tensor `{name}` is {:?}, not F32", view.dtype()));
        }
        let values =
            view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        tensors.push(NamedTensor { name: name.to_owned(), shape: view.shape().to_vec(), values });
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}

fn read_file(path: &Path) -> Result<Vec<u8>, Error> {
    Ok(fs::read(path).map_err(files::Error::io(Action::Read, path))?)
}

/// Indented JSON that ends with a newline.
fn pretty(value: &impl Serialize, name: &str) -> Result<Vec<u8>, Error> {
    let fail = |error: serde_json::Error| files::Error::io(Action::Write, Path::new(name))(error.into());
    let mut bytes = serde_json::to_vec_pretty(value).map_err(fail)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Vec<NamedTensor>, Value) {
        let tensors = vec![
            NamedTensor {
                name: "a".into(),
                shape: vec![2, 2],
                values: vec![1.0, -0.0, f32::MIN_POSITIVE, 3.5],
            },
            NamedTensor { name: "b".into(), shape: vec![0], values: vec![] },
        ];
        (tensors, serde_json::json!({"step": 7, "cursor": {"epoch": 1}}))
    }

    #[test]
    fn what_is_written_is_read_back() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("checkpoints/step-7");
        let (tensors, counters) = sample();
        write(&folder, &tensors, &counters).unwrap();
        write(&folder, &tensors, &counters).unwrap();
        assert_eq!(read(&folder).unwrap(), (tensors, counters));
        assert_eq!(fs::read_dir(folder.parent().unwrap()).unwrap().count(), 1, "nothing left beside it");
    }

    #[test]
    fn any_changed_byte_is_noticed() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("step-1");
        let (tensors, counters) = sample();
        write(&folder, &tensors, &counters).unwrap();
        for name in [TENSORS, COUNTERS] {
            let path = folder.join(name);
            let original = fs::read(&path).unwrap();
            for position in 0..original.len() {
                let mut bytes = original.clone();
                bytes[position] ^= 1;
                fs::write(&path, &bytes).unwrap();
                assert!(matches!(read(&folder), Err(Error::Damaged { .. })), "{name} byte {position}");
            }
            fs::write(&path, &original[..original.len() - 1]).unwrap();
            assert!(matches!(read(&folder), Err(Error::Damaged { .. })));
            fs::write(&path, &original).unwrap();
        }
        let manifest = fs::read_to_string(folder.join(MANIFEST)).unwrap();
        let other = manifest.replace(&format!("\"version\": {VERSION}"), "\"version\": 999");
        fs::write(folder.join(MANIFEST), other).unwrap();
        assert!(matches!(read(&folder), Err(Error::OtherLayout { found: 999, .. })));
        fs::write(folder.join(MANIFEST), "{}").unwrap();
        assert!(matches!(read(&folder), Err(Error::Damaged { .. })));
        fs::remove_file(folder.join(MANIFEST)).unwrap();
        assert!(matches!(read(&folder), Err(Error::File(_))));
    }
}
