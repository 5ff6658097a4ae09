//! The decode path of the linear op on the CPU, for a few rows of `x`: every row of the weights is read once.

use std::cell::RefCell;
use std::ops::Range;

use burn_flex::Flex;
use burn_tensor::Tensor;

use super::operands::{Adapter, WeightTensors, finish};
use super::{Down, Linear};
use crate::cpu::disjoint::Disjoint;
use crate::cpu::gemv::{self, LANES, MOST, Vectors};
use crate::cpu::matmul::{Side, Stored};
use crate::cpu::pool::{self, Buffer};
use crate::cpu::scalar::{Scalar, widen, with_float};
use crate::cpu::{parallel, tensor};

/// Weights of one task.
const TASK: usize = 1 << 17;
/// Sums of a block of rows.
const SUMS: usize = 64;
const _: () = assert!(SUMS >= MOST, "every token has a row in a block");

/// Whether a call takes the decode path: with more rows, unpacking the weights pays, and dropout belongs to training.
pub(super) fn applies(tokens: usize, layers: &[Linear<'_, Flex>]) -> bool {
    let drops = |layer: &Linear<'_, Flex>| {
        layer.lora.and_then(|lora| lora.dropout).is_some_and(|dropout| dropout.probability > 0.0)
    };
    (1..=MOST).contains(&tokens) && !layers.iter().any(drops)
}

/// The rows of [`super::cpu::forward`], where this [`applies`].
pub(super) fn forward<T: Scalar>(
    x: &[T],
    layers: &[Linear<'_, Flex>],
    residual: Option<&[T]>,
    outputs: &mut [&mut [T]],
) -> Option<Buffer<T>> {
    let width = layers.first()?.weight.shape()[1];
    let tokens = x.len() / width;
    let weights: Vec<_> = layers.iter().map(|layer| WeightTensors::packed(layer.weight)).collect();
    let biases: Vec<_> =
        layers.iter().map(|layer| layer.bias.map(|bias| tensor::primitive(bias.clone()))).collect();
    let biases: Vec<_> = biases.iter().map(|bias| bias.as_ref().map(tensor::floats)).collect();
    let adapters = Adapter::all(layers);
    let ranks: usize = layers.iter().map(Linear::rank).sum();
    let outs: Vec<usize> = layers.iter().map(|layer| layer.weight.shape()[0]).collect();
    let stored: Vec<Stored<'_>> =
        weights.iter().map(|weight| weight.columns(Side::Transposed).stored).collect();
    let vectors =
        Vectors::new(x, tokens, width, stored.iter().any(|stored| matches!(stored, Stored::Nf4(_))));
    let down = down(&vectors, &adapters, [tokens, width, ranks]);
    // t as the product sees it, in f32, the ranks of each adapter by themselves.
    let ts: Vec<_> =
        adapters.iter().map(|adapter| Some(adapter.as_ref()?.ranks_of(&down, tokens, ranks))).collect();
    let places: Vec<_> = outputs.iter_mut().map(|out| Disjoint::new(out)).collect();
    let tasks: Vec<(usize, Range<usize>)> = outs
        .iter()
        .enumerate()
        .flat_map(|(layer, out)| ranges(*out, width).map(move |rows| (layer, rows)))
        .collect();
    let work = outs.iter().sum::<usize>() * (width + ranks) * (1 + tokens) / 4;
    parallel::share(tasks.len(), work, |task| {
        let (layer, rows) = tasks[task].clone();
        blocks(rows, tokens, |rows, lanes, sums| {
            vectors.times(&stored[layer], rows.clone(), lanes);
            if let (Some(adapter), Some(t)) = (&adapters[layer], &ts[layer]) {
                let b = &adapter.b_values()[rows.start * adapter.rank..rows.end * adapter.rank];
                gemv::add_dots::<T>(b, adapter.lora.scaling, t, adapter.rank, lanes);
            }
            gemv::join(lanes, tokens, sums);
            let bias = biases[layer].as_deref().map(|bias| &bias[rows.clone()]);
            for (token, sums) in sums.chunks_exact_mut(rows.len()).enumerate() {
                let start = token * outs[layer] + rows.start;
                let residual = residual.map(|residual| &residual[start..][..rows.len()]);
                // SAFETY: these rows of this layer belong to this task alone.
                finish(sums, unsafe { places[layer].slice(start, rows.len()) }, bias, residual);
            }
        });
    });
    (ranks > 0).then_some(down)
}

/// `linear_down` of the CPU backend, where the decode path [`applies`].
pub(super) fn down_alone(x: &Tensor<Flex, 2>, layers: &[Linear<'_, Flex>]) -> Option<Down<Flex>> {
    let [tokens, width] = x.dims();
    let adapters = Adapter::all(layers);
    let ranks: usize = layers.iter().map(Linear::rank).sum();
    let x = tensor::primitive(x.clone());
    with_float!(x.dtype(), T => {
        let vectors = Vectors::new(x.storage::<T>(), tokens, width, false);
        let t = (ranks > 0).then(|| down(&vectors, &adapters, [tokens, width, ranks]));
        t.map(|t| Down { t: tensor::from_buffer(t, [tokens, ranks]), operands: None })
    })
}

/// t of all adapters side by side, `[tokens, Σ rank]`.
fn down<T: Scalar>(
    vectors: &Vectors<'_, T>,
    adapters: &[Option<Adapter<'_>>],
    [tokens, width, ranks]: [usize; 3],
) -> Buffer<T> {
    let mut down = pool::take::<T>(tokens * ranks);
    {
        let out = Disjoint::new(&mut down);
        let tasks: Vec<(&Adapter<'_>, Range<usize>)> = adapters
            .iter()
            .flatten()
            .flat_map(|adapter| ranges(adapter.rank, width).map(move |rows| (adapter, rows)))
            .collect();
        parallel::share(tasks.len(), ranks * width * (1 + tokens) / 4, |task| {
            let (adapter, rows) = tasks[task].clone();
            blocks(rows, tokens, |rows, lanes, sums| {
                vectors.times(&Stored::F32(adapter.a_values()), rows.clone(), lanes);
                gemv::join(lanes, tokens, sums);
                for (token, sums) in sums.chunks_exact_mut(rows.len()).enumerate() {
                    let start = token * ranks + adapter.first + rows.start;
                    // SAFETY: these ranks belong to this task alone.
                    finish(sums, unsafe { out.slice(start, rows.len()) }, None, None);
                }
            });
        });
    }
    down
}

/// The rows of a task, a block at a time, with room for their running sums `[rows, tokens, LANES]` and for their sums
/// `[tokens, rows]`: a few KiB that stay in the first-level cache.
fn blocks(rows: Range<usize>, tokens: usize, mut each: impl FnMut(Range<usize>, &mut [f32], &mut [f32])) {
    // Kept by each thread: zeroed for every task, it would cost a good part of a short one.
    thread_local!(static ROOM: RefCell<Vec<f32>> = RefCell::new(vec![0.0; SUMS * (LANES + 1)]));
    ROOM.with_borrow_mut(|room| {
        let (lanes, sums) = room.split_at_mut(SUMS * LANES);
        let step = SUMS / tokens;
        for start in rows.clone().step_by(step) {
            let block = start..rows.end.min(start + step);
            let count = block.len() * tokens;
            each(block, &mut lanes[..count * LANES], &mut sums[..count]);
        }
    });
}

/// The rows of a matrix, about a task's worth at a time, as many for each thread. A sum does not depend on its task.
fn ranges(rows: usize, width: usize) -> impl Iterator<Item = Range<usize>> {
    let tasks = match (rows * width).div_ceil(TASK) {
        0 | 1 => 1,
        tasks => tasks.next_multiple_of(parallel::threads()),
    };
    let step = rows.div_ceil(tasks).max(8);
    (0..rows).step_by(step).map(move |start| start..(start + step).min(rows))
}

impl Adapter<'_> {
    /// A, row after row.
    fn a_values(&self) -> &[f32] {
        self.a.storage::<f32>()
    }

    /// B, row after row.
    fn b_values(&self) -> &[f32] {
        self.b.storage::<f32>()
    }

    /// This adapter's part of `down` `[tokens, total]`, in f32.
    fn ranks_of<T: Scalar>(&self, down: &[T], tokens: usize, total: usize) -> Buffer<f32> {
        let mut part = pool::take::<f32>(tokens * self.rank);
        for (token, part) in part.chunks_exact_mut(self.rank.max(1)).enumerate() {
            widen(&down[token * total + self.first..][..self.rank], part);
        }
        part
    }
}
