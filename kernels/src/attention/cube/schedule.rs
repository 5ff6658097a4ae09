//! The work list of a launch, made on the host from the document offsets: which keys each block of queries visits, and
//! which queries each block of keys. No unit searches, nothing invisible is visited, and no block lies in two documents.

use std::cmp::Reverse;

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubecl::server::Handle;

use crate::attention::AttentionOptions;
use crate::cube::uploads;

/// Whose rows a cube owns; the columns are the other's.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(super) enum Side {
    /// Rows are queries, columns keys: the output and dq.
    Queries,
    /// Rows are keys, columns queries: dk and dv.
    Keys,
}

/// Numbers of a block in the buffer that a kernel reads.
const FIELDS: usize = 5;

/// Rows of one document, and the columns that at least one of them meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Work {
    first: usize,
    count: usize,
    from: usize,
    to: usize,
    /// Query r stands at key `r + shift`.
    shift: usize,
}

/// Blocks of at most `rows` rows that cover all rows of `side`, those with the most columns first: the last cubes to
/// run are short ones.
fn blocks(options: &AttentionOptions, side: Side, rows: usize) -> Vec<Work> {
    let window = options.sliding_window.unwrap_or(usize::MAX);
    let mut blocks = Vec::new();
    for (queries, keys) in options.documents.documents() {
        // Not negative: no document has more queries than keys.
        let shift = keys.end - queries.end;
        let (own, other) = match side {
            Side::Queries => (queries, keys),
            Side::Keys => (keys, queries),
        };
        for first in own.clone().step_by(rows) {
            let count = rows.min(own.end - first);
            let last = first + count - 1;
            let (from, to) = match side {
                Side::Queries => ((first + shift + 1).saturating_sub(window), last + shift + 1),
                Side::Keys => {
                    (first.saturating_sub(shift), last.saturating_add(window).saturating_sub(shift))
                }
            };
            let from = from.max(other.start);
            let to = to.min(other.end).max(from);
            blocks.push(Work { first, count, from, to, shift });
        }
    }
    blocks.sort_by_key(|block| Reverse(block.to - block.from));
    blocks
}

/// The work list of a launch; launches of all layers share it.
pub(super) struct Schedule((Handle, usize));

impl Schedule {
    /// The blocks of `rows` rows of `side`, for tensors beside `like`.
    pub(super) fn new<R: CubeRuntime>(
        like: &CubeTensor<R>,
        options: &AttentionOptions,
        side: Side,
        rows: usize,
    ) -> Self {
        let name = match side {
            Side::Queries => "blocks of queries",
            Side::Keys => "blocks of keys",
        };
        let about = (name, [rows, options.sliding_window.unwrap_or(0), 0]);
        let words = || {
            let numbers = |Work { first, count, from, to, shift }| [first, count, from, to, shift];
            blocks(options, side, rows).into_iter().flat_map(numbers).map(|number| number as u32).collect()
        };
        Self(options.documents.uploads.list(like, about, words))
    }

    /// How many blocks.
    pub(super) fn blocks(&self) -> u32 {
        (self.0.1 / FIELDS) as u32
    }

    /// For [`block`].
    pub(super) fn array<R: CubeRuntime>(&self) -> ArrayArg<R> {
        uploads::argument(&self.0)
    }
}

/// Rows of one document, and the columns that at least one of them meets.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Block {
    /// The first row.
    pub(super) first: u32,
    /// How many rows.
    pub(super) count: u32,
    /// The first column.
    pub(super) from: u32,
    /// After the last column.
    pub(super) to: u32,
    /// Query r stands at key `r + shift`.
    pub(super) shift: u32,
}

/// Block `index` of the list.
#[cube]
pub(super) fn block(schedule: &Array<u32>, index: u32) -> Block {
    let at = (index * 5) as usize;
    Block {
        first: schedule[at],
        count: schedule[at + 1],
        from: schedule[at + 2],
        to: schedule[at + 3],
        shift: schedule[at + 4],
    }
}

/// Whether the query or key of a row meets that of a column, if both are of the block.
#[cube]
pub(super) fn meets(row: u32, column: u32, block: &Block, window: u32, #[comptime] side: Side) -> bool {
    let (query, key) = match comptime!(side) {
        Side::Queries => (row, column),
        Side::Keys => (column, row),
    };
    let diagonal = query + block.shift;
    column < block.to && key <= diagonal && key + window > diagonal
}

/// The window as kernels take it: no larger than all keys, so that sums with it stay in range.
pub(super) fn window(options: &AttentionOptions) -> u32 {
    let keys = options.documents.keys();
    options.sliding_window.map_or(keys, |window| window.min(keys)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::DocumentOffsets;

    /// Every visible pair lies in the block of its row, each row in one block, and the ends of a block's columns are
    /// met by one of its rows.
    #[test]
    fn blocks_hold_what_is_visible_and_no_more() {
        let documents = [
            DocumentOffsets::packed(&[0, 1, 4, 4, 70, 203]),
            DocumentOffsets::with_cache(&[0, 1, 4, 4, 30], &[0, 100, 130, 140, 170]),
        ];
        for documents in documents {
            for sliding_window in [None, Some(1), Some(20), Some(1000)] {
                let options = AttentionOptions {
                    documents: documents.clone(),
                    scaling: 1.0,
                    sliding_window,
                    soft_cap: None,
                };
                for (side, rows) in
                    [(Side::Queries, 16), (Side::Keys, 16), (Side::Queries, 64), (Side::Keys, 1)]
                {
                    check(&options, side, rows);
                }
            }
        }
    }

    fn check(options: &AttentionOptions, side: Side, rows: usize) {
        let (queries, keys) = (options.documents.queries(), options.documents.keys());
        let mut visible = vec![false; queries * keys];
        for (q, k) in options.documents.documents() {
            for query in q.clone() {
                for key in options.visible(query - q.start, q.len(), k.len()) {
                    visible[query * keys + k.start + key] = true;
                }
            }
        }
        let sees = |row: usize, column: usize| match side {
            Side::Queries => visible[row * keys + column],
            Side::Keys => visible[column * keys + row],
        };
        let (height, width) = if side == Side::Queries { (queries, keys) } else { (keys, queries) };
        let mut seen = vec![0; height];
        for Work { first, count, from, to, .. } in blocks(options, side, rows) {
            assert!((1..=rows).contains(&count));
            let block = first..first + count;
            block.clone().for_each(|row| seen[row] += 1);
            for row in block.clone() {
                assert!((0..width).all(|column| !sees(row, column) || (from..to).contains(&column)));
            }
            if from < to {
                assert!(block.clone().any(|row| sees(row, from)), "{block:?} of {side:?}: {from}");
                assert!(block.clone().any(|row| sees(row, to - 1)), "{block:?} of {side:?}: {to}");
            }
        }
        assert!(seen.iter().all(|count| *count == 1));
    }
}
