//! Sizes of the GPU kernels of the gated delta rule.

use crate::delta_rule::sizes::{CHUNK, DeltaHeads};

/// Units of a cube: so many columns or rows of a head's state.
pub(super) const UNITS: u32 = 32;

/// Tokens from the beginning of a chunk to that of the next.
pub(super) const SPAN: u32 = CHUNK as u32;

/// Sizes that kernels are compiled for.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) keys: u32,
    pub(super) values: u32,
    pub(super) key_dim: u32,
    pub(super) value_dim: u32,
}

impl From<DeltaHeads> for Sizes {
    fn from(heads: DeltaHeads) -> Self {
        let [keys, values, key_dim, value_dim] =
            [heads.keys, heads.values, heads.key_dim, heads.value_dim].map(|size| size as u32);
        Self { keys, values, key_dim, value_dim }
    }
}
