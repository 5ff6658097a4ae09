//! A written file as the weights of its model: what a program that loads it computes with.
//!
//! Tensors have the names, shapes and order of rows of the checkpoint again. Reads one tensor at a time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use tune_kernels::ggml::BlockType;

use super::names::{Change, Tensor};
use crate::assets::weights::Decode;
use crate::assets::{Error, WeightFiles};

/// The part of a tensor of the file that is one of the checkpoint, or some of its rows.
#[derive(Debug)]
struct Part {
    /// Which row of the checkpoint's tensor each row is.
    rows: Vec<usize>,
    /// Which number of a row of the checkpoint's tensor each number is.
    columns: Vec<usize>,
    /// What became of every number.
    change: Change,
    kind: BlockType,
    /// Where it begins in the file.
    offset: u64,
}

#[derive(Debug)]
struct Written {
    path: PathBuf,
    /// By the name in the checkpoint: the number of elements, and the parts.
    tensors: BTreeMap<String, (usize, Vec<Part>)>,
}

/// The weights of `file` in `folder`, whose tensors are these, each with its type and its place.
pub(super) fn weights(folder: &Path, file: &str, written: Vec<(Tensor, BlockType, u64)>) -> WeightFiles {
    let mut tensors: BTreeMap<String, (usize, Vec<Part>)> = BTreeMap::new();
    let mut shapes = BTreeMap::new();
    for (tensor, kind, mut offset) in written {
        for source in tensor.sources() {
            let (rows, columns, change) = (tensor.source_rows(), tensor.source_columns(), tensor.change);
            let bytes = kind.bytes(rows.len() * columns.len()) as u64;
            let elements = source.shape.iter().product();
            let known = tensors.entry(source.name.clone()).or_insert_with(|| (elements, Vec::new()));
            known.1.push(Part { rows, columns, change, kind, offset });
            shapes.insert(source.name.clone(), source.shape.clone());
            offset += bytes;
        }
    }
    WeightFiles::decoded(folder, shapes, Box::new(Written { path: folder.join(file), tensors }))
}

impl Decode for Written {
    fn values(&self, name: &str) -> Result<Vec<f32>, Error> {
        let missing = || Error::MissingTensor { path: self.path.clone(), tensor: name.to_owned() };
        let (elements, parts) = self.tensors.get(name).ok_or_else(missing)?;
        let mut values = vec![0.0; *elements];
        for part in parts {
            let stored = self.stored(part).map_err(Error::io(&self.path))?;
            let length = part.columns.len();
            for (row, stored) in part.rows.iter().zip(stored.chunks_exact(length)) {
                let row = &mut values[row * length..][..length];
                part.columns.iter().zip(stored).for_each(|(at, stored)| row[*at] = part.change.back(*stored));
            }
        }
        Ok(values)
    }
}

impl Written {
    /// The numbers of a part as they are in the file.
    fn stored(&self, part: &Part) -> std::io::Result<Vec<f32>> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(part.offset))?;
        let mut bytes = vec![0; part.kind.bytes(part.rows.len() * part.columns.len())];
        file.read_exact(&mut bytes)?;
        Ok(part.kind.decode(&bytes))
    }
}
