//! Rows of a projection, or numbers of a row, in the file's order: which of them, and where llama.cpp expects others beside
//! one another.

use std::ops::Range;

use rayon::iter::ParallelIterator;
use rayon::slice::ParallelSliceMut;

use super::names::is_separated;
use crate::adapter::projection::Role;
use crate::model::DecoderSpec;
use crate::model::gguf_spec::RotaryPairs;
use crate::model::parts::{DeltaNetSpec, Inner};
use tune_kernels::rope::Pairs;

/// The rows that a tensor of the file holds of one of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rows {
    /// All, as they are.
    All,
    /// Some of them.
    Part(Range<usize>),
    /// Rows i and i + half of every head, which are rotated together, become neighbours.
    Neighbours {
        /// Rows of a head.
        dim: usize,
    },
    /// Queries, keys and values of each head become the queries, then the keys, then the values of all heads.
    ByKind {
        /// Rows of a head's queries.
        dim: usize,
    },
    /// Value heads that share a key head become neighbours of those that share the others: the first of each key head, then
    /// the second of each, and so on.
    InTurn {
        /// Rows in front of them, which stay.
        skipped: usize,
        /// Key heads.
        keys: usize,
        /// Value heads of each.
        each: usize,
        /// Rows of a head.
        dim: usize,
    },
}

impl Rows {
    /// Those of a projection.
    pub fn of(spec: &DecoderSpec, layer: usize, role: Role) -> Self {
        let layer = spec.layers.get(layer);
        if let Some(delta_net) = layer.and_then(|layer| layer.delta_net()) {
            let heads = delta_net.heads;
            return match role {
                Role::Mixed => Self::mixed(delta_net),
                Role::MixerGate => Self::in_turn(delta_net, 0, heads.value_dim),
                Role::Write | Role::Decay => Self::in_turn(delta_net, 0, 1),
                _ => Self::All,
            };
        }
        let attention = layer.and_then(|layer| layer.attention());
        let (Some(attention), Some(gguf)) = (attention, spec.gguf) else { return Self::All };
        let dim = attention.heads.dim;
        let halves = spec.rotaries.first().is_some_and(|rotary| rotary.pairs == Pairs::Halves);
        match role {
            Role::Query | Role::Key if gguf.pairs == RotaryPairs::Neighbours && halves => {
                Self::Neighbours { dim }
            }
            Role::QueryKeyValue if matches!(attention.inner, Inner::ByHead(_)) => Self::ByKind { dim },
            _ => Self::All,
        }
    }

    /// Those of the numbers in a row of a projection.
    pub fn of_columns(spec: &DecoderSpec, layer: usize, role: Role) -> Self {
        match spec.layers.get(layer).and_then(|layer| layer.delta_net()) {
            Some(delta_net) if role == Role::MixerOutput => {
                Self::in_turn(delta_net, 0, delta_net.heads.value_dim)
            }
            _ => Self::All,
        }
    }

    /// Those of queries, keys and values together, of a delta net.
    pub(super) fn mixed(delta_net: &DeltaNetSpec) -> Self {
        let heads = delta_net.heads;
        Self::in_turn(delta_net, 2 * heads.keys * heads.key_dim, heads.value_dim)
    }

    /// Those of a delta net's value heads of `dim` rows, behind `skipped` others.
    pub(super) fn in_turn(delta_net: &DeltaNetSpec, skipped: usize, dim: usize) -> Self {
        let heads = delta_net.heads;
        match heads.values / heads.keys {
            0 | 1 => Self::All,
            each => Self::InTurn { skipped, keys: heads.keys, each, dim },
        }
    }

    /// The two halves of a projection to gate and up, where the file has them apart.
    pub fn apart(spec: &DecoderSpec, role: Role, rows: usize) -> Option<[(&'static str, Self); 2]> {
        let half = rows / 2;
        is_separated(spec, role)
            .then(|| [("ffn_gate", Self::Part(0..half)), ("ffn_up", Self::Part(half..2 * half))])
    }

    /// The rows in order; `columns` is the length of one: 1 for a bias.
    pub fn arranged(&self, mut values: Vec<f32>, columns: usize) -> Vec<f32> {
        match self {
            Self::All => values,
            Self::Part(rows) => values[rows.start * columns..rows.end * columns].to_vec(),
            Self::Neighbours { dim } => {
                values.par_chunks_mut(dim * columns).for_each(|head| {
                    let old = head.to_vec();
                    for (row, new) in head.chunks_exact_mut(columns).enumerate() {
                        let from = row % 2 * (dim / 2) + row / 2;
                        new.copy_from_slice(&old[from * columns..][..columns]);
                    }
                });
                values
            }
            Self::ByKind { dim } => {
                let size = dim * columns;
                let of_kind =
                    |kind: usize| values.chunks_exact(3 * size).map(move |head| &head[kind * size..][..size]);
                (0..3).flat_map(of_kind).flatten().copied().collect()
            }
            Self::InTurn { skipped, keys, each, dim } => {
                let (first, rest) = values.split_at(skipped * columns);
                let size = dim * columns;
                let turns = (0..*each).flat_map(|turn| (0..*keys).map(move |key| key * each + turn));
                let heads = turns.flat_map(|head| &rest[head * size..][..size]);
                first.iter().chain(heads).copied().collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize) -> Vec<f32> {
        (0..count).map(|number| number as f32).collect()
    }

    #[test]
    fn rows_that_rotate_together_become_neighbours() {
        let found = Rows::Neighbours { dim: 4 }.arranged(numbers(16), 2);
        assert_eq!(found, [0., 1., 4., 5., 2., 3., 6., 7., 8., 9., 12., 13., 10., 11., 14., 15.]);
        assert_eq!(Rows::Neighbours { dim: 6 }.arranged(numbers(6), 1), [0., 3., 1., 4., 2., 5.]);
    }

    #[test]
    fn heads_are_sorted_by_kind() {
        // Two heads of two rows each to queries, keys and values.
        let found = Rows::ByKind { dim: 2 }.arranged(numbers(12), 1);
        assert_eq!(found, [0., 1., 6., 7., 2., 3., 8., 9., 4., 5., 10., 11.]);
        assert_eq!(Rows::ByKind { dim: 1 }.arranged(numbers(6), 2), [0., 1., 2., 3., 4., 5.]);
        assert_eq!(Rows::Part(1..2).arranged(numbers(6), 2), [2., 3.]);
    }

    #[test]
    fn value_heads_take_turns() {
        // One row stays; two key heads with three value heads each.
        let rows = Rows::InTurn { skipped: 1, keys: 2, each: 3, dim: 1 };
        assert_eq!(rows.arranged(numbers(7), 1), [0., 1., 4., 2., 5., 3., 6.]);
        let rows = Rows::InTurn { skipped: 0, keys: 2, each: 2, dim: 2 };
        assert_eq!(rows.arranged(numbers(8), 1), [0., 1., 4., 5., 2., 3., 6., 7.]);
    }
}
