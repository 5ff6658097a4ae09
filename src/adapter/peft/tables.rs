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
use crate::adapter::whole::{Whole, WholeKind};

/// Endings of the keys of A, B and the copy, for the head and for the embeddings.
const HEAD: [&str; 3] = [".lora_A.weight", ".lora_B.weight", ".base_layer.weight"];
const EMBEDDING: [&str; 3] = [".lora_embedding_A", ".lora_embedding_B", ".base_layer.weight"];

/// The kind and the path of the table that a key belongs to, if it is part of LoRA on a table.
pub(super) fn table_of(key: &str) -> Option<(WholeKind, &str)> {
    let rest = key.strip_prefix(PREFIX)?;
    WholeKind::ALL.into_iter().find_map(|kind| {
        let path = endings(kind).into_iter().find_map(|ending| rest.strip_suffix(ending))?;
        (path.rsplit('.').next() == Some(kind.hf_name())).then_some((kind, path))
    })
}

fn endings(kind: WholeKind) -> [&'static str; 3] {
    match kind {
        WholeKind::Head => HEAD,
        WholeKind::Embedding => EMBEDDING,
    }
}

/// One table with its LoRA, as factors `left [vocab, rank]` and `right [rank, hidden]`.
struct Table {
    whole: Whole,
    left: Vec<f32>,
    right: Vec<f32>,
    rank: usize,
    scaling: f32,
}

impl Adapter {
    /// The names of the tables that the adapter has LoRA on.
    pub fn adapted_tables(&self) -> Vec<&'static str> {
        let kinds: BTreeSet<WholeKind> =
            self.file.names().filter_map(table_of).map(|(kind, _)| kind).collect();
        kinds.into_iter().map(WholeKind::hf_name).collect()
    }

    /// Folds LoRA on tables into those of the base: `candidates` are its tables, `read` returns the values of a tensor.
    /// They are then among [`Self::wholes`].
    ///
    /// # Errors
    /// The base has no such table of its own, or a pair is incomplete or does not fit it (all problems together).
    pub fn fold_tables<E: From<Error>>(
        mut self,
        candidates: &[Whole],
        read: &mut dyn FnMut(&str) -> Result<Vec<f32>, E>,
    ) -> Result<Self, E> {
        let paths: BTreeSet<(WholeKind, &str)> = self.file.names().filter_map(table_of).collect();
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
            let mut values = read(&format!("{}.weight", table.whole.path))?;
            table.add_to(&mut values);
            self.folded.push((table.whole, values));
        }
        Ok(self)
    }

    fn table(&self, kind: WholeKind, path: &str, candidates: &[Whole]) -> Result<Table, String> {
        if self.config.use_dora {
            return Err("DoRA on a table is not supported; merge it with PEFT (`merge_and_unload`)".into());
        }
        let Some(whole) = candidates.iter().find(|whole| whole.kind == kind && whole.path == path) else {
            return Err(match candidates.is_empty() {
                true => "the base ties its output head to its embeddings, so they cannot differ; merge it with PEFT \
                         (`merge_and_unload`)"
                    .into(),
                false => "the base has no such table".into(),
            });
        };
        let (rank, _, scaling) = self.config.strength(path);
        let ([vocab, hidden], [a, b, copy]) = (whole.shape, endings(kind));
        let (a_shape, b_shape) = match kind {
            WholeKind::Head => ([rank, hidden], [vocab, rank]),
            WholeKind::Embedding => ([rank, vocab], [hidden, rank]),
        };
        let key = |ending: &str| format!("{PREFIX}{path}{ending}");
        for (ending, shape) in [(a, a_shape), (b, b_shape), (copy, whole.shape)] {
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
        let read = |ending| self.file.read_floats::<f32>(&key(ending)).map_err(|error| error.to_string());
        let (a, b) = (read(a)?, read(b)?);
        let (left, right) = match kind {
            WholeKind::Head => (b, a),
            WholeKind::Embedding => (transposed(&a, vocab), transposed(&b, rank)),
        };
        Ok(Table { whole: whole.clone(), left, right, rank, scaling: scaling as f32 })
    }
}

impl Table {
    /// Adds `scaling · left·right` to the values of the base's table.
    fn add_to(&self, values: &mut [f32]) {
        let hidden = self.whole.shape[1];
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
        let head = Some((WholeKind::Head, "lm_head".to_owned()));
        assert_eq!(of("lm_head.lora_A.weight"), head);
        assert_eq!(of("lm_head.base_layer.weight"), head);
        let embedding = Some((WholeKind::Embedding, "model.embed_tokens".to_owned()));
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
