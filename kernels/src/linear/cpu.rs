//! The linear op on the CPU: weight and adapter as terms of one product, several layers, and parts, in one fork.

use std::mem;

use burn_flex::{Flex, FlexTensor};
use burn_tensor::Tensor;

use super::adapters::{self, down};
use super::operands::{Adapter, Planned, WeightTensors, add, finish, finish_rows, pack, pack_ranks, run};
use super::{Down, Linear, LinearBackward, LinearGradients, LinearOps, LoraGradient, Projected, decode};
use crate::cpu::disjoint::Disjoint;
use crate::cpu::matmul::{PackedRows, Place, Side, Term, Tile};
use crate::cpu::pool::{self, Buffer};
use crate::cpu::scalar::{Scalar, narrow, with_float};
use crate::cpu::{parallel, tensor};

/// Rounds a tile into `out`, whose rows are `stride` values apart, after adding what is given.
fn store<T: Scalar>(
    mut tile: Tile<'_>,
    out: &Disjoint<'_, T>,
    stride: usize,
    bias: Option<&[f32]>,
    residual: Option<&[T]>,
) {
    let columns = tile.columns.clone();
    let bias = bias.map(|bias| &bias[columns.clone()]);
    if finish_rows(&mut tile, out, stride, 0, bias, residual) {
        return;
    }
    for (row, values) in tile.iter_mut() {
        let start = row * stride + columns.start;
        let residual = residual.map(|residual| &residual[start..][..values.len()]);
        // SAFETY: tiles do not overlap, nor do the rows of one.
        finish(values, unsafe { out.slice(start, values.len()) }, bias, residual);
    }
}

impl LinearOps for Flex {
    fn frozen_linear(
        x: &Tensor<Flex, 2>,
        layers: &[Linear<'_, Flex>],
        residual: Option<&Tensor<Flex, 2>>,
    ) -> Projected<Flex> {
        let [tokens, _] = x.dims();
        let x = tensor::primitive(x.clone());
        let residual = residual.map(|residual| tensor::primitive(residual.clone()));
        let outs: Vec<usize> = layers.iter().map(|layer| layer.weight.shape()[0]).collect();
        let ranks: usize = layers.iter().map(Linear::rank).sum();
        with_float!(x.dtype(), T => {
            let residual = residual.as_ref().map(|residual| residual.storage::<T>());
            let mut written: Vec<Buffer<T>> = outs.iter().map(|out| pool::take::<T>(tokens * out)).collect();
            let outputs = written.iter_mut().map(|out| &mut **out).collect();
            let down = forward(vec![Forward { x: x.storage::<T>(), layers, residual, outputs }]).remove(0);
            let outputs = written.into_iter().zip(outs);
            let outputs = outputs.map(|(out, width)| tensor::from_buffer(out, [tokens, width])).collect();
            let down = down.map(|t| Down { t: tensor::from_buffer(t, [tokens, ranks]), operands: None });
            Projected { outputs, down }
        })
    }

    fn frozen_linear_down(x: &Tensor<Flex, 2>, layers: &[Linear<'_, Flex>]) -> Option<Down<Flex>> {
        let [tokens, width] = x.dims();
        if decode::applies(tokens, layers) {
            return decode::down_alone(x, layers);
        }
        let adapters = Adapter::all(layers);
        let ranks: usize = layers.iter().map(Linear::rank).sum();
        let x = tensor::primitive(x.clone());
        with_float!(x.dtype(), T => {
            let x = x.storage::<T>();
            let t = (ranks > 0).then(|| down::<T>(x, &pack(x, tokens, width), &adapters, ranks));
            t.map(|t| Down { t: tensor::from_buffer(t, [tokens, ranks]), operands: None })
        })
    }

    fn frozen_linear_backward(request: LinearBackward<'_, Flex>) -> LinearGradients<Flex> {
        let LinearBackward { x, layers, down, dy, wants_x, sums } = request;
        let tokens = dy[0].dims()[0];
        let width = layers[0].weight.shape()[1];
        let dy: Vec<_> = dy.iter().map(|dy| tensor::primitive(dy.clone())).collect();
        let is_adapted = layers.iter().any(|layer| layer.lora.is_some());
        let adapted = x.zip(down).filter(|_| is_adapted);
        let adapted =
            adapted.map(|(x, down)| (tensor::primitive(x.clone()), tensor::primitive(down.t.clone())));
        with_float!(dy[0].dtype(), T => {
            let dy = dy.iter().map(|dy| dy.storage::<T>()).collect();
            let saved = adapted.as_ref().map(|(x, down)| (x.storage::<T>(), down.storage::<T>()));
            let mut dx = wants_x.then(|| pool::take::<T>(tokens * width));
            let part = Backward { layers, saved, dy, dx: dx.as_deref_mut(), sums };
            let adapters = backward(vec![part]).remove(0);
            LinearGradients { x: dx.map(|dx| tensor::from_buffer(dx, [tokens, width])), adapters }
        })
    }
}

/// The arguments of [`linear`](super::linear) of rows that lie one behind the other.
pub(crate) struct Forward<'a, T> {
    /// `[tokens, in]`.
    pub(crate) x: &'a [T],
    pub(crate) layers: &'a [Linear<'a, Flex>],
    pub(crate) residual: Option<&'a [T]>,
    /// `[tokens, out]` of each layer, to be written.
    pub(crate) outputs: Vec<&'a mut [T]>,
}

/// What the products of a [`Forward`] are made of.
struct ForwardOperands<'a, T: Scalar> {
    weights: Vec<WeightTensors<'a>>,
    biases: Vec<Option<FlexTensor>>,
    adapters: Vec<Option<Adapter<'a>>>,
    packed: PackedRows,
    ts: Vec<Option<PackedRows>>,
    down: Option<Buffer<T>>,
}

impl<'a, T: Scalar> ForwardOperands<'a, T> {
    fn new(part: &Forward<'a, T>) -> Self {
        let (tokens, width) = (part.tokens(), part.width());
        let layers = part.layers;
        let adapters = Adapter::all(layers);
        let ranks: usize = layers.iter().map(Linear::rank).sum();
        let packed = pack(part.x, tokens, width);
        let down = (ranks > 0).then(|| down::<T>(part.x, &packed, &adapters, ranks));
        let t = |adapter: &Option<Adapter<'_>>| {
            Some(pack_ranks(down.as_ref()?, tokens, ranks, adapter.as_ref()?))
        };
        let bias = |layer: &Linear<'_, Flex>| layer.bias.map(|bias| tensor::primitive(bias.clone()));
        Self {
            weights: layers.iter().map(|layer| WeightTensors::new(layer.weight)).collect(),
            biases: layers.iter().map(bias).collect(),
            ts: adapters.iter().map(t).collect(),
            adapters,
            packed,
            down,
        }
    }
}

impl<T> Forward<'_, T> {
    fn width(&self) -> usize {
        self.layers[0].weight.shape()[1]
    }

    fn tokens(&self) -> usize {
        self.x.len().checked_div(self.width()).unwrap_or(0)
    }
}

/// Computes parts side by side: their operands in one fork, their products in another. Returns t of each one's adapters,
/// `[tokens, ranks]`, if there are any.
pub(crate) fn forward<T: Scalar>(parts: Vec<Forward<'_, T>>) -> Vec<Option<Buffer<T>>> {
    let mut downs: Vec<Option<Buffer<T>>> = parts.iter().map(|_| None).collect();
    let mut blocked = Vec::with_capacity(parts.len());
    for (mut part, down) in parts.into_iter().zip(&mut downs) {
        if decode::applies(part.tokens(), part.layers) {
            *down = decode::forward(part.x, part.layers, part.residual, &mut part.outputs);
        } else {
            blocked.push((part, down));
        }
    }
    let work = blocked.iter().map(|(part, _)| part.x.len() / 4).sum();
    let operands = parallel::map(blocked.iter().collect(), work, |(part, _)| ForwardOperands::new(part));
    let mut planned = Vec::new();
    for ((part, _), operands) in blocked.iter_mut().zip(&operands) {
        for (index, out) in part.outputs.iter_mut().enumerate() {
            let ForwardOperands { weights, biases, adapters, packed, ts, .. } = operands;
            let mut terms = vec![Term { rows: packed, columns: weights[index].columns(Side::Transposed) }];
            if let (Some(t), Some(adapter)) = (&ts[index], &adapters[index]) {
                terms.push(Term { rows: t, columns: adapter.b(Side::Transposed) });
            }
            let stride = part.layers[index].weight.shape()[0];
            let (bias, residual) = (biases[index].as_ref().map(tensor::floats), part.residual);
            let place = Some(Place::of(out, stride));
            let out = Disjoint::new(out);
            let finish = Box::new(move |tile: Tile<'_>| store(tile, &out, stride, bias.as_deref(), residual));
            planned.push(Planned { terms, finish, place });
        }
    }
    run::<T>(&planned);
    drop(planned);
    for ((_, down), operands) in blocked.into_iter().zip(operands) {
        *down = operands.down;
    }
    downs
}

/// The arguments of [`linear_backward`](super::linear_backward) of rows that lie one behind the other.
pub(crate) struct Backward<'a, T> {
    pub(crate) layers: &'a [Linear<'a, Flex>],
    /// x and t, which adapters need.
    pub(crate) saved: Option<(&'a [T], &'a [T])>,
    /// `[tokens, out]` of each layer.
    pub(crate) dy: Vec<&'a [T]>,
    /// `[tokens, in]`, to be written where it is wanted.
    pub(crate) dx: Option<&'a mut [T]>,
    pub(crate) sums: Vec<Option<LoraGradient<Flex>>>,
}

/// What the product that gives a part's dx is made of.
struct BackwardOperands<'a> {
    weights: Vec<WeightTensors<'a>>,
    adapters: Vec<Option<Adapter<'a>>>,
    packed: Vec<PackedRows>,
    dts: Vec<Option<PackedRows>>,
    masked: Option<Buffer<f32>>,
}

/// Computes parts side by side, as [`forward`]. Returns the gradients of each one's adapters.
pub(crate) fn backward<T: Scalar>(mut parts: Vec<Backward<'_, T>>) -> Vec<Vec<Option<LoraGradient<Flex>>>> {
    let work = parts.iter().flat_map(|part| &part.dy).map(|dy| dy.len() / 4).sum();
    let packed = parallel::map(parts.iter().collect(), work, |part| {
        let outs = part.layers.iter().map(|layer| layer.weight.shape()[0]);
        let packed = part.dy.iter().zip(outs).map(|(dy, out)| pack(dy, dy.len() / out.max(1), out));
        (
            packed.collect::<Vec<_>>(),
            part.layers.iter().map(|layer| WeightTensors::new(layer.weight)).collect(),
        )
    });
    let mut gradients = Vec::with_capacity(parts.len());
    let mut operands = Vec::with_capacity(parts.len());
    for (part, (packed, weights)) in parts.iter_mut().zip(packed) {
        let adapters = Adapter::all(part.layers);
        let (sums, width) = (mem::take(&mut part.sums), part.layers[0].weight.shape()[1]);
        let wants_x = part.dx.is_some();
        let found = adapters::backward(&adapters, part.saved, &part.dy, &packed, width, wants_x, sums);
        gradients.push(found.gradients);
        operands.push(BackwardOperands { weights, adapters, packed, dts: found.dts, masked: found.masked });
    }
    let mut planned = Vec::with_capacity(parts.len());
    for (part, operands) in parts.iter_mut().zip(&operands) {
        let Some(dx) = part.dx.as_deref_mut() else { continue };
        let width = part.layers[0].weight.shape()[1];
        let mut terms = Vec::with_capacity(2 * part.layers.len());
        for (index, weight) in operands.weights.iter().enumerate() {
            terms.push(Term { rows: &operands.packed[index], columns: weight.columns(Side::Plain) });
            if let (Some(dt), Some(adapter)) = (&operands.dts[index], &operands.adapters[index])
                && adapter.mask.is_none()
            {
                terms.push(Term { rows: dt, columns: adapter.a(Side::Plain) });
            }
        }
        let place = Some(Place::of(dx, width));
        let (out, masked) = (Disjoint::new(dx), operands.masked.as_deref());
        let finish = Box::new(move |tile: Tile<'_>| store_gradient(tile, &out, width, masked));
        planned.push(Planned { terms, finish, place });
    }
    run::<T>(&planned);
    gradients
}

/// Rounds a tile of dx, after adding what came through dropped inputs.
fn store_gradient<T: Scalar>(
    mut tile: Tile<'_>,
    out: &Disjoint<'_, T>,
    width: usize,
    masked: Option<&[f32]>,
) {
    if masked.is_none() && finish_rows(&mut tile, out, width, 0, None, None) {
        return;
    }
    let columns = tile.columns.clone();
    for (row, values) in tile.iter_mut() {
        let start = row * width + columns.start;
        if let Some(masked) = masked {
            add(values, &masked[start..][..values.len()]);
        }
        // SAFETY: tiles do not overlap, nor do the rows of one.
        narrow(values, unsafe { out.slice(start, values.len()) });
    }
}
