//! Sizes of the gated delta rule that every backend shares.

/// Tokens of a chunk.
pub const CHUNK: usize = 64;
/// Added to the sum of squares of queries and keys.
pub(super) const EPSILON: f32 = 1e-6;

/// Numbers and widths of heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaHeads {
    /// Heads of queries and keys; divides `values`.
    pub keys: usize,
    /// Heads of values.
    pub values: usize,
    /// Width of a query and a key.
    pub key_dim: usize,
    /// Width of a value.
    pub value_dim: usize,
}

impl DeltaHeads {
    /// Numbers in a token's queries, keys and values.
    pub fn widths(&self) -> [usize; 3] {
        let keys = self.keys * self.key_dim;
        [keys, keys, self.values * self.value_dim]
    }

    /// Where queries, keys and values of a value head begin in a token's row.
    pub(crate) fn places(&self, value_head: usize) -> [usize; 3] {
        let key = value_head / (self.values / self.keys) * self.key_dim;
        let [queries, keys, _] = self.widths();
        [key, queries + key, queries + keys + value_head * self.value_dim]
    }
}
