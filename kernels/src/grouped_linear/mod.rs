//! Frozen linear layers over ranges of rows, each range with layers of its own: the experts of a mixture.
//!
//! ```text
//! rows:     0 ─────── 5 ── 5 ──────────── 17      sorted by expert; a range may be empty
//! layers:   expert 0  (1)  expert 2
//! ```
//!
//! Each range is [`linear`](crate::linear) of its rows, in the same bits; no row is padded, and a range without rows costs
//! nothing. Sums are those of `linear`: of an adapter's gradient over the rows of its range, in their order.
//!
//! Each range is multiplied where its rows lie. A GPU is given the products of `linear` range by range, a launch or two for
//! each layer of a range that has rows; with adapters the parts are joined.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub mod reference;

use std::ops::Range;

use burn_tensor::{Tensor, backend::Backend};

use crate::linear::{Down, Linear, LinearOps, LoraGradient, linear_down};
#[cfg(feature = "cube")]
use crate::linear::{LinearBackward, linear, linear_backward};

/// Grouped linear layers on a backend.
pub trait GroupedLinearOps: LinearOps {
    /// [`grouped_linear`].
    fn grouped_linear(x: &Tensor<Self, 2>, groups: &[Group<'_, Self>]) -> Grouped<Self>;

    /// [`grouped_linear_backward`].
    fn grouped_linear_backward(request: GroupedBackward<'_, Self>) -> GroupedGradients<Self>;
}

/// Some rows, and the layers that are over them.
#[derive(Clone, Debug)]
pub struct Group<'a, B: Backend> {
    /// The rows, which follow those of the group before.
    pub rows: Range<usize>,
    /// The layers, of the same shapes in every group.
    pub layers: Vec<Linear<'a, B>>,
}

/// The outputs of [`grouped_linear`], and what its backward needs.
#[derive(Clone, Debug)]
pub struct Grouped<B: Backend> {
    /// `[rows, out]` of each layer.
    pub outputs: Vec<Tensor<B, 2>>,
    /// For each group what [`crate::linear::Projected::down`] is.
    pub down: Vec<Option<Down<B>>>,
}

/// The arguments of [`grouped_linear_backward`].
#[derive(Debug)]
pub struct GroupedBackward<'a, B: Backend> {
    /// The input of the forward; needed where a layer has an adapter.
    pub x: Option<&'a Tensor<B, 2>>,
    /// As in the forward.
    pub groups: &'a [Group<'a, B>],
    /// [`Grouped::down`] of the forward.
    pub down: &'a [Option<Down<B>>],
    /// Upstream gradients, `[rows, out]` for each layer of a group.
    pub dy: &'a [Tensor<B, 2>],
    /// Whether to compute the gradient of `x`.
    pub wants_x: bool,
    /// For each group and layer, the adapter gradients so far, which the new ones are added to.
    pub sums: Vec<Vec<Option<LoraGradient<B>>>>,
}

/// The gradients of [`grouped_linear`].
#[derive(Clone, Debug)]
pub struct GroupedGradients<B: Backend> {
    /// `[rows, in]`, compute dtype. `None` unless it is wanted.
    pub x: Option<Tensor<B, 2>>,
    /// For each group and layer; those of a group without rows are the sums that came with the request.
    pub adapters: Vec<Vec<Option<LoraGradient<B>>>>,
}

/// [`linear`](crate::linear::linear) of each range of rows: see the module's page.
///
/// # Shapes
/// `x` `[rows, in]`, the groups' ranges one behind the other from 0 to `rows`; each output `[rows, out]`.
///
/// # Panics
/// If there is no group, ranges leave rows out, groups differ in their layers, or as `linear`.
pub fn grouped_linear<B: GroupedLinearOps>(x: &Tensor<B, 2>, groups: &[Group<'_, B>]) -> Grouped<B> {
    check(x.dims(), groups);
    B::grouped_linear(x, groups)
}

/// [`Grouped::down`] of [`grouped_linear`] alone, in the same bits.
///
/// # Panics
/// As [`grouped_linear`].
pub fn grouped_linear_down<B: GroupedLinearOps>(
    x: &Tensor<B, 2>,
    groups: &[Group<'_, B>],
) -> Vec<Option<Down<B>>> {
    check(x.dims(), groups);
    let down = |group: &Group<'_, B>| {
        let is_adapted = group.layers.iter().any(|layer| layer.lora.is_some());
        (is_adapted && !group.rows.is_empty())
            .then(|| linear_down(&part(x, &group.rows), &group.layers))
            .flatten()
    };
    groups.iter().map(down).collect()
}

/// The backward of [`grouped_linear`].
///
/// # Panics
/// As [`grouped_linear`], and if gradients do not fit or an adapter comes without `x` and `down`.
pub fn grouped_linear_backward<B: GroupedLinearOps>(request: GroupedBackward<'_, B>) -> GroupedGradients<B> {
    let GroupedBackward { x, groups, down, dy, sums, .. } = &request;
    assert!(
        groups.len() == down.len() && groups.len() == sums.len() && !dy.is_empty(),
        "grouped_linear_backward: groups, inner activations and sums differ in number"
    );
    let rows = dy[0].dims()[0];
    let width =
        groups.first().and_then(|group| group.layers.first()).map_or(0, |layer| layer.weight.shape()[1]);
    check([rows, width], groups);
    for group in *groups {
        assert_eq!(group.layers.len(), dy.len(), "grouped_linear_backward: one gradient for each layer");
        for (layer, dy) in group.layers.iter().zip(*dy) {
            let out = layer.weight.shape()[0];
            assert_eq!(dy.dims(), [rows, out], "grouped_linear_backward: dy does not fit the output");
        }
        let is_adapted = group.layers.iter().any(|layer| layer.lora.is_some());
        assert!(
            !is_adapted || x.is_some_and(|x| x.dims() == [rows, width]),
            "grouped_linear_backward: an adapter needs x [{rows}, {width}]"
        );
    }
    B::grouped_linear_backward(request)
}

fn check<B: Backend>([rows, width]: [usize; 2], groups: &[Group<'_, B>]) {
    let mut end = 0;
    for Group { rows, layers } in groups {
        assert_eq!(rows.start, end, "grouped_linear: ranges follow one another");
        end = rows.end;
        assert_eq!(layers.len(), groups[0].layers.len(), "grouped_linear: groups differ in their layers");
        for (layer, first) in layers.iter().zip(&groups[0].layers) {
            layer.check(width);
            assert_eq!(layer.weight.shape(), first.weight.shape(), "grouped_linear: groups differ in shape");
        }
    }
    assert!(end == rows && !groups.is_empty(), "grouped_linear: ranges of {end} rows for {rows}");
}

fn part<B: Backend>(x: &Tensor<B, 2>, rows: &Range<usize>) -> Tensor<B, 2> {
    x.clone().narrow(0, rows.start, rows.len())
}

/// One behind the other.
#[cfg(feature = "cube")]
fn joined<B: Backend>(mut parts: Vec<Tensor<B, 2>>, like: &Tensor<B, 2>, width: usize) -> Tensor<B, 2> {
    match parts.len() {
        0 => Tensor::zeros([0, width], (&like.device(), like.dtype())),
        1 => parts.remove(0),
        _ => Tensor::cat(parts, 0),
    }
}

/// [`grouped_linear`] by [`linear`].
#[cfg(feature = "cube")]
fn composed<B: LinearOps>(x: &Tensor<B, 2>, groups: &[Group<'_, B>]) -> Grouped<B> {
    let widths: Vec<usize> = groups[0].layers.iter().map(|layer| layer.weight.shape()[0]).collect();
    let mut parts: Vec<Vec<Tensor<B, 2>>> = vec![Vec::new(); widths.len()];
    let mut down = Vec::with_capacity(groups.len());
    for Group { rows, layers } in groups {
        if rows.is_empty() {
            down.push(None);
            continue;
        }
        let projected = linear(&part(x, rows), layers, None);
        parts.iter_mut().zip(projected.outputs).for_each(|(parts, output)| parts.push(output));
        down.push(projected.down);
    }
    let outputs = parts.into_iter().zip(widths).map(|(parts, width)| joined(parts, x, width)).collect();
    Grouped { outputs, down }
}

/// [`grouped_linear_backward`] by [`linear_backward`].
#[cfg(feature = "cube")]
fn composed_backward<B: LinearOps>(request: GroupedBackward<'_, B>) -> GroupedGradients<B> {
    let GroupedBackward { x, groups, down, dy, wants_x, sums } = request;
    let (mut parts, mut adapters) = (Vec::new(), Vec::with_capacity(groups.len()));
    for ((Group { rows, layers }, down), sums) in groups.iter().zip(down).zip(sums) {
        if rows.is_empty() {
            adapters.push(sums);
            continue;
        }
        let x = x.filter(|_| down.is_some()).map(|x| part(x, rows));
        let dy: Vec<_> = dy.iter().map(|dy| part(dy, rows)).collect();
        let found = linear_backward(LinearBackward {
            x: x.as_ref(),
            layers,
            down: down.as_ref(),
            dy: &dy,
            wants_x,
            sums,
        });
        parts.extend(found.x);
        adapters.push(found.adapters);
    }
    let width = groups[0].layers[0].weight.shape()[1];
    GroupedGradients { x: wants_x.then(|| joined(parts, &dy[0], width)), adapters }
}
