//! The slow oracle of grouped linear layers: that of `linear` for each range of rows.

use std::ops::Range;

use crate::linear::reference::{self, LoraSlices, Sizes};

/// One range of rows and the layer over them.
#[derive(Clone, Debug)]
pub struct GroupSlices<'a> {
    /// The rows.
    pub rows: Range<usize>,
    /// `[out, in]`.
    pub weight: &'a [f32],
    /// The adapter, its mask over the rows of this range.
    pub lora: Option<LoraSlices<'a>>,
}

/// y of all ranges, one behind the other; `sizes.tokens` is not read.
pub fn forward(x: &[f32], groups: &[GroupSlices<'_>], sizes: Sizes) -> Vec<f32> {
    let of = |group: &GroupSlices<'_>| {
        let sizes = Sizes { tokens: group.rows.len(), ..sizes };
        let x = &x[group.rows.start * sizes.input..group.rows.end * sizes.input];
        reference::forward(x, group.weight, None, group.lora, sizes)
    };
    groups.iter().flat_map(of).collect()
}

/// The gradient of x, and those of A and B of each range.
pub fn backward(
    x: &[f32],
    groups: &[GroupSlices<'_>],
    dy: &[f32],
    sizes: Sizes,
) -> (Vec<f32>, Vec<[Vec<f32>; 2]>) {
    let (mut dx, mut adapters) = (Vec::with_capacity(x.len()), Vec::with_capacity(groups.len()));
    for group in groups {
        let sizes = Sizes { tokens: group.rows.len(), ..sizes };
        let x = &x[group.rows.start * sizes.input..group.rows.end * sizes.input];
        let dy = &dy[group.rows.start * sizes.out..group.rows.end * sizes.out];
        let (part, a, b) = reference::backward(x, group.weight, group.lora, dy, sizes);
        dx.extend(part);
        adapters.push([a, b]);
    }
    (dx, adapters)
}
