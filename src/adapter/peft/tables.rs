//! LoRA on the output head or on the embeddings, as other tools train it. It is folded into the base's table, which then
//! takes part like a module to save.
//!
//! | table | keys below its path | shapes | adds |
//! |---|---|---|---|
//! | head | `.lora_A.weight`, `.lora_B.weight` | `[rank, hidden]`, `[vocab, rank]` | `scaling · B·A` |
//! | embeddings | `.lora_embedding_A`, `.lora_embedding_B` | `[rank, vocab]`, `[hidden, rank]` | `scaling · (B·A)ᵀ` |
//!
//! PEFT may save a copy of the base's table beside them (`.base_layer.weight`). It equals the base's and is not read.

use std::collections::BTreeSet;

use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use super::read::Adapter;
use crate::adapter::error::Error;
use crate::adapter::parameter::PREFIX;
use crate::adapter::saved::{SavedKind, SavedModule};

/// Endings of the keys of A, B and the copy, for the head and for the embeddings.
const HEAD: [&str; 3] = [".lora_A.weight", ".lora_B.weight", ".base_layer.weight"];
const EMBEDDING: [&str; 3] = [".lora_embedding_A", ".lora_embedding_B", ".base_layer.weight"];

/// The kind and the path of the table that a key belongs to, if it is part of LoRA on a table.
pub(super) fn table_of(key: &str) -> Option<(SavedKind, &str)> {
    let rest = key.strip_prefix(PREFIX)?;
    SavedKind::ALL.into_iter().find_map(|kind| {
        let path = endings(kind).into_iter().find_map(|ending| rest.strip_suffix(ending))?;
        (path.rsplit('.').next() == Some(kind.hf_name())).then_some((kind, path))
    })
}

fn endings(kind: SavedKind) -> [&'static str; 3] {
    match kind {
        SavedKind::Head => HEAD,
        SavedKind::Embedding => EMBEDDING,
    }
}

/// One table with its LoRA, as factors `left [vocab, rank]` and `right [rank, hidden]`.
struct Table {
    saved: SavedModule,
    left: Vec<f32>,
    right: Vec<f32>,
    rank: usize,
    scaling: f32,
}

impl Adapter {
    /// The names of the tables that the adapter has LoRA on.
    pub fn adapted_tables(&self) -> Vec<&'static str> {
        let kinds: BTreeSet<SavedKind> =
            self.file.names().filter_map(table_of).map(|(kind, _)| kind).collect();
        kinds.into_iter().map(SavedKind::hf_name).collect()
    }

    /// Folds LoRA on tables into those of the base: `candidates` are its tables, `read` returns the values of a tensor.
    /// They are then among [`Self::saved_modules`]. Of a base that ties them, `read` returns the one table for both.
    ///
    /// # Errors
    /// The base has no such table of its own, or a pair is incomplete or does not fit it (all problems together).
    pub fn fold_tables<E: From<Error>>(
        mut self,
        candidates: &[SavedModule],
        read: &mut dyn FnMut(&str) -> Result<Vec<f32>, E>,
    ) -> Result<Self, E> {
        let paths: BTreeSet<(SavedKind, &str)> = self.file.names().filter_map(table_of).collect();
        let (mut tables, mut problems) = (Vec::new(), Vec::new());
        for (kind, path) in paths {
            match self.table(kind, path, candidates) {
                Ok(table) => tables.push(table),
                Err(reason) => problems.push(format!("LoRA on `{path}`: {reason}")),
            }
        }
        if !problems.is_empty() {
            return Err(Error::unusable(&self.folder, problems).into());
        }
        for table in tables {
            let mut values = read(&format!("{}.weight", table.saved.path))?;
            table.add_to(&mut values);
            self.folded.push((table.saved, values));
        }
        Ok(self)
    }

    fn table(&self, kind: SavedKind, path: &str, candidates: &[SavedModule]) -> Result<Table, String> {
        if self.config.use_dora {
            return Err("DoRA on a table is not supported; merge it with PEFT (`merge_and_unload`)".into());
        }
        let Some(saved) = candidates.iter().find(|saved| saved.kind == kind && saved.path == path) else {
            return Err("the base has no such table".into());
        };
        let (rank, _, scaling) = self.config.strength(path);
        let ([vocab, hidden], [a, b, copy]) = (saved.shape, endings(kind));
        let (a_shape, b_shape) = match kind {
            SavedKind::Head => ([rank, hidden], [vocab, rank]),
            SavedKind::Embedding => ([rank, vocab], [hidden, rank]),
        };
        let key = |ending: &str| format!("{PREFIX}{path}{ending}");
        for (ending, shape) in [(a, a_shape), (b, b_shape), (copy, saved.shape)] {
            match self.file.info(&key(ending)) {
                None if ending == copy => {}
                None => return Err(format!("`{}` is missing", key(ending))),
                Some(info) if info.shape == shape => {}
                Some(info) => {
                    return Err(format!(
                        "`{}` has shape {:?}, where r and the base ask for {shape:?}",
                        key(ending),
                        info.shape
                    ));
                }
            }
        }
        let read = |ending| self.file.read(&key(ending), false).map_err(|error| error.to_string());
        let (a, b) = (read(a)?, read(b)?);
        let (left, right) = match kind {
            SavedKind::Head => (b, a),
            SavedKind::Embedding => (transposed(&a, vocab), transposed(&b, rank)),
        };
        Ok(Table { saved: saved.clone(), left, right, rank, scaling: scaling as f32 })
    }
}

impl Table {
    /// Adds `scaling · left·right` to the values of the base's table.
    fn add_to(&self, values: &mut [f32]) {
        let hidden = self.saved.shape[1];
        values.par_chunks_exact_mut(hidden).enumerate().for_each(|(row, values)| {
            let factors = &self.left[row * self.rank..][..self.rank];
            for (column, value) in values.iter_mut().enumerate() {
                let products = factors.iter().enumerate().map(|(r, f)| f * self.right[r * hidden + column]);
                *value += self.scaling * products.sum::<f32>();
            }
        });
    }
}

/// The transpose of a matrix with `columns` columns.
fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| values.iter().skip(column).step_by(columns).copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_tables_are_recognised() {
        let of = |key: &str| table_of(&format!("{PREFIX}{key}")).map(|(kind, path)| (kind, path.to_owned()));
        let head = Some((SavedKind::Head, "lm_head".to_owned()));
        assert_eq!(of("lm_head.lora_A.weight"), head);
        assert_eq!(of("lm_head.base_layer.weight"), head);
        let embedding = Some((SavedKind::Embedding, "model.embed_tokens".to_owned()));
        assert_eq!(of("model.embed_tokens.lora_embedding_B"), embedding);
        for other in
            ["lm_head.weight", "model.layers.0.mlp.up_proj.lora_A.weight", "lm_head.lora_embedding_A"]
        {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn a_transpose_swaps_rows_and_columns() {
        assert_eq!(transposed(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }
}
