//! What a task of the gated delta rule works on: its inputs, its document and head, and the chunks of that document.

use std::ops::Range;

use crate::cpu::pool::{self, Buffer};
use crate::delta_rule::sizes::{CHUNK, DeltaHeads};

/// Everything that a task reads.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a, T> {
    pub(super) mixed: &'a [T],
    pub(super) decay: &'a [T],
    pub(super) write: &'a [T],
    pub(super) log_rate: &'a [f32],
    pub(super) bias: &'a [f32],
    pub(super) heads: DeltaHeads,
    /// Values of a row of `mixed`.
    pub(super) width: usize,
}

/// A document and one of its heads.
pub(super) struct Task {
    pub(super) tokens: Range<usize>,
    pub(super) head: usize,
}

/// The chunks of a document.
pub(super) fn chunks(
    tokens: &Range<usize>,
) -> impl DoubleEndedIterator<Item = Range<usize>> + ExactSizeIterator + use<> {
    let (start, end) = (tokens.start, tokens.end);
    (0..tokens.len().div_ceil(CHUNK)).map(move |index| {
        let first = start + index * CHUNK;
        first..(first + CHUNK).min(end)
    })
}

/// Room for `count` numbers.
pub(super) fn numbers(count: usize) -> Buffer<f32> {
    pool::take::<f32>(count)
}
