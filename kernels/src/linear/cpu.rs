//! The linear op on the CPU: weight and adapter as terms of one product, several layers in one fork.

use burn_flex::{Flex, FlexTensor};
use burn_tensor::Tensor;

use super::operands::{Adapter, WeightTensors, add, finish, finish_rows};
use super::{Down, Linear, LinearBackward, LinearGradients, LinearOps, LoraGradient, Projected, decode};
use crate::cpu::disjoint::Disjoint;
use crate::cpu::matmul::{
    Columns, PackedRows, Place, Product, RowSource, Side, Stored, Term, Tile, multiply,
};
use crate::cpu::pool::{self, Buffer};
use crate::cpu::scalar::{Scalar, narrow, with_float};
use crate::cpu::tensor;

/// Packs `x` `[tokens, width]` as a left operand.
fn pack<T: Scalar>(x: &[T], tokens: usize, width: usize) -> PackedRows {
    PackedRows::pack::<T, T>(tokens, width, RowSource::RowMajor { values: x, stride: width })
}

/// Packs the ranks of one adapter out of `[tokens, total]`.
fn pack_ranks<T: Scalar>(t: &[T], tokens: usize, total: usize, adapter: &Adapter<'_>) -> PackedRows {
    let source = RowSource::RowMajor { values: &t[adapter.first..], stride: total };
    PackedRows::pack::<T, T>(tokens, adapter.rank, source)
}

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

/// A product, and what holds its terms and its end while it runs.
struct Planned<'a> {
    terms: Vec<Term<'a>>,
    finish: Box<dyn Fn(Tile<'_>) + Sync + 'a>,
    place: Option<Place>,
}

fn run<T: Scalar>(planned: &[Planned<'_>]) {
    let mut products = Vec::with_capacity(planned.len());
    for Planned { terms, finish, place } in planned {
        products.push(Product { terms, begin: None, finish, place: *place });
    }
    multiply::<T>(&products);
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
            let mut outputs: Vec<Buffer<T>> = outs.iter().map(|out| pool::take::<T>(tokens * out)).collect();
            let mut places: Vec<&mut [T]> = outputs.iter_mut().map(|out| &mut **out).collect();
            let down = forward(x.storage::<T>(), layers, residual, &mut places);
            let outputs = outputs.into_iter().zip(outs);
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
            let dy: Vec<&[T]> = dy.iter().map(|dy| dy.storage::<T>()).collect();
            let saved = adapted.as_ref().map(|(x, down)| (x.storage::<T>(), down.storage::<T>()));
            let mut dx = wants_x.then(|| pool::take::<T>(tokens * width));
            let adapters = backward(layers, saved, &dy, dx.as_deref_mut(), sums);
            LinearGradients { x: dx.map(|dx| tensor::from_buffer(dx, [tokens, width])), adapters }
        })
    }
}

/// [`linear`](super::linear) of rows that lie one behind the other, written to the output of each layer. Returns t of all
/// adapters, `[tokens, ranks]`, if there are any.
pub(crate) fn forward<T: Scalar>(
    x: &[T],
    layers: &[Linear<'_, Flex>],
    residual: Option<&[T]>,
    outputs: &mut [&mut [T]],
) -> Option<Buffer<T>> {
    let width = layers.first()?.weight.shape()[1];
    let tokens = x.len().checked_div(width).unwrap_or(0);
    if decode::applies(tokens, layers) {
        return decode::forward(x, layers, residual, outputs);
    }
    let weights: Vec<_> = layers.iter().map(|layer| WeightTensors::new(layer.weight)).collect();
    let biases: Vec<_> =
        layers.iter().map(|layer| layer.bias.map(|bias| tensor::primitive(bias.clone()))).collect();
    let biases: Vec<_> = biases.iter().map(|bias| bias.as_ref().map(tensor::floats)).collect();
    let adapters = Adapter::all(layers);
    let ranks: usize = layers.iter().map(Linear::rank).sum();
    let packed = pack(x, tokens, width);
    let down = down::<T>(x, &packed, &adapters, ranks);
    let ts: Vec<_> = adapters
        .iter()
        .map(|adapter| adapter.as_ref().map(|adapter| pack_ranks(&down, tokens, ranks, adapter)))
        .collect();
    let places = outputs.iter().zip(layers);
    let places: Vec<_> = places.map(|(out, layer)| Place::of(out, layer.weight.shape()[0])).collect();
    let outs: Vec<_> = outputs.iter_mut().map(|out| Disjoint::new(out)).collect();
    let mut planned = Vec::with_capacity(layers.len());
    for (index, weight) in weights.iter().enumerate() {
        let mut terms = vec![Term { rows: &packed, columns: weight.columns(Side::Transposed) }];
        if let (Some(t), Some(adapter)) = (&ts[index], &adapters[index]) {
            terms.push(Term { rows: t, columns: adapter.b(Side::Transposed) });
        }
        let (out, bias, stride) = (&outs[index], biases[index].as_deref(), layers[index].weight.shape()[0]);
        let finish = Box::new(move |tile: Tile<'_>| store(tile, out, stride, bias, residual));
        planned.push(Planned { terms, finish, place: Some(places[index]) });
    }
    run::<T>(&planned);
    (ranks > 0).then_some(down)
}

/// [`linear_backward`](super::linear_backward) of rows that lie one behind the other: writes the gradient of x, where it is
/// wanted, and returns those of the adapters. `saved` are x and t, which adapters need.
pub(crate) fn backward<T: Scalar>(
    layers: &[Linear<'_, Flex>],
    saved: Option<(&[T], &[T])>,
    dy: &[&[T]],
    dx: Option<&mut [T]>,
    sums: Vec<Option<LoraGradient<Flex>>>,
) -> Vec<Option<LoraGradient<Flex>>> {
    let outs: Vec<usize> = layers.iter().map(|layer| layer.weight.shape()[0]).collect();
    let width = layers[0].weight.shape()[1];
    let tokens = dy[0].len().checked_div(outs[0]).unwrap_or(0);
    let adapters = Adapter::all(layers);
    let ranks: usize = layers.iter().map(Linear::rank).sum();
    let packed: Vec<_> = dy.iter().zip(&outs).map(|(dy, out)| pack(dy, tokens, *out)).collect();
    let mut slopes = pool::take::<T>(tokens * ranks);
    {
        let out = Disjoint::new(&mut slopes);
        let planned = adapters.iter().zip(&packed).filter_map(|(adapter, rows)| {
            let (adapter, out) = (adapter.as_ref()?, &out);
            let first = adapter.first;
            let finish = Box::new(move |tile: Tile<'_>| store_at(tile, out, ranks, first));
            Some(Planned { terms: vec![Term { rows, columns: adapter.b(Side::Plain) }], finish, place: None })
        });
        run::<T>(&planned.collect::<Vec<_>>());
    }
    let gradients = match saved {
        Some((x, down)) => {
            let operands = Operands { x, down, slopes: &slopes, dy };
            adapter_gradients(&adapters, operands, [tokens, width, ranks], &outs, sums)
        }
        None => sums,
    };
    let Some(dx) = dx else { return gradients };
    let dts: Vec<_> = adapters
        .iter()
        .map(|adapter| adapter.as_ref().map(|adapter| pack_ranks(&slopes, tokens, ranks, adapter)))
        .collect();
    let weights: Vec<_> = layers.iter().map(|layer| WeightTensors::new(layer.weight)).collect();
    let masked = masked_input_gradient::<T>(&adapters, &dts, tokens, width);
    let place = Some(Place::of(dx, width));
    let out = Disjoint::new(dx);
    let mut terms = Vec::with_capacity(2 * layers.len());
    for (index, weight) in weights.iter().enumerate() {
        terms.push(Term { rows: &packed[index], columns: weight.columns(Side::Plain) });
        if let (Some(dt), Some(adapter)) = (&dts[index], &adapters[index])
            && adapter.mask.is_none()
        {
            terms.push(Term { rows: dt, columns: adapter.a(Side::Plain) });
        }
    }
    let masked = masked.as_deref();
    let finish = |mut tile: Tile<'_>| {
        if masked.is_none() && finish_rows(&mut tile, &out, width, 0, None, None) {
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
    };
    multiply::<T>(&[Product { terms: &terms, begin: None, finish: &finish, place }]);
    gradients
}

/// t of all adapters side by side, `[tokens, ranks]`, of `x` and the same packed.
fn down<T: Scalar>(
    x: &[T],
    packed: &PackedRows,
    adapters: &[Option<Adapter<'_>>],
    ranks: usize,
) -> Buffer<T> {
    let (tokens, width) = (packed.rows(), packed.depth());
    let mut down = pool::take::<T>(tokens * ranks);
    let dropped: Vec<_> = adapters
        .iter()
        .map(|adapter| adapter.as_ref()?.dropped(x, width).map(|dropped| pack(&dropped, tokens, width)))
        .collect();
    let out = Disjoint::new(&mut down);
    let planned = adapters.iter().zip(&dropped).filter_map(|(adapter, dropped)| {
        let (adapter, out) = (adapter.as_ref()?, &out);
        let rows = dropped.as_ref().unwrap_or(packed);
        let first = adapter.first;
        let finish = Box::new(move |tile: Tile<'_>| store_at(tile, out, ranks, first));
        let terms = vec![Term { rows, columns: adapter.a(Side::Transposed) }];
        Some(Planned { terms, finish, place: None })
    });
    run::<T>(&planned.collect::<Vec<_>>());
    down
}

/// Rounds a tile into columns `first..` of `out`.
fn store_at<T: Scalar>(mut tile: Tile<'_>, out: &Disjoint<'_, T>, stride: usize, first: usize) {
    let start = first + tile.columns.start;
    if finish_rows(&mut tile, out, stride, first, None, None) {
        return;
    }
    for (row, values) in tile.iter_mut() {
        // SAFETY: tiles do not overlap, nor do the rows of one.
        narrow(values, unsafe { out.slice(row * stride + start, values.len()) });
    }
}

/// Σ dropout′(dt A) in f32 over the adapters that drop; `None` where none does.
fn masked_input_gradient<T: Scalar>(
    adapters: &[Option<Adapter<'_>>],
    dts: &[Option<PackedRows>],
    tokens: usize,
    width: usize,
) -> Option<Buffer<f32>> {
    let mut sum: Option<Buffer<f32>> = None;
    for (adapter, dt) in adapters.iter().zip(dts) {
        let (Some(adapter), Some(dt)) = (adapter, dt) else { continue };
        let Some(mask) = adapter.mask else { continue };
        let sum = sum.get_or_insert_with(|| pool::zeros(tokens * width));
        let out = Disjoint::new(sum);
        let finish = |mut tile: Tile<'_>| {
            let column = tile.columns.start;
            for (row, values) in tile.iter_mut() {
                let start = row * width + column;
                mask.apply(start, values);
                // SAFETY: tiles do not overlap, nor do the rows of one.
                add(unsafe { out.slice(start, values.len()) }, values);
            }
        };
        let terms = [Term { rows: dt, columns: adapter.a(Side::Plain) }];
        multiply::<T>(&[Product { terms: &terms, begin: None, finish: &finish, place: None }]);
    }
    sum
}

/// What the gradients of the adapters are products of.
struct Operands<'a, T> {
    /// `[tokens, width]`.
    x: &'a [T],
    /// t, `[tokens, ranks]`.
    down: &'a [T],
    /// dt, `[tokens, ranks]`.
    slopes: &'a [T],
    /// `[tokens, out]` of each layer.
    dy: &'a [&'a [T]],
}

/// One adapter's gradient while it is written.
struct Sum {
    a: FlexTensor,
    b: FlexTensor,
    /// Whether the values there are added to.
    onto: bool,
}

impl Sum {
    fn new(sum: Option<LoraGradient<Flex>>, rank: usize, width: usize, out: usize) -> Self {
        let fresh = |shape: [usize; 2]| {
            tensor::owned(tensor::from_buffer(pool::take::<f32>(shape[0] * shape[1]), shape))
        };
        match sum {
            Some(sum) => Self { a: tensor::owned(sum.a), b: tensor::owned(sum.b), onto: true },
            None => Self { a: fresh([rank, width]), b: fresh([out, rank]), onto: false },
        }
    }
}

/// dA = dtᵀ x̃ and dB = scaling · dyᵀ t of every adapter, added to the sums so far.
fn adapter_gradients<T: Scalar>(
    adapters: &[Option<Adapter<'_>>],
    operands: Operands<'_, T>,
    [tokens, width, ranks]: [usize; 3],
    outs: &[usize],
    sums: Vec<Option<LoraGradient<Flex>>>,
) -> Vec<Option<LoraGradient<Flex>>> {
    let pack = |values: &[T], first: usize, count: usize| {
        let source = RowSource::Transposed { values: &values[first..], stride: ranks };
        PackedRows::pack::<T, T>(count, tokens, source)
    };
    let mut sums: Vec<_> = adapters
        .iter()
        .zip(sums)
        .zip(outs)
        .map(|((adapter, sum), out)| Some(Sum::new(sum, adapter.as_ref()?.rank, width, *out)))
        .collect();
    let dropped: Vec<_> =
        adapters.iter().map(|adapter| adapter.as_ref()?.dropped(operands.x, width)).collect();
    let downs: Vec<_> = adapters
        .iter()
        .map(|adapter| adapter.as_ref().map(|adapter| pack(operands.down, adapter.first, adapter.rank)))
        .collect();
    // Adapters whose input is `x` itself are rows of one product with it; the others have a product each.
    let mut groups: Vec<(PackedRows, &[T], usize)> = Vec::new();
    if dropped.iter().all(Option::is_none) {
        groups.push((pack(operands.slopes, 0, ranks), operands.x, 0));
    } else {
        for (adapter, dropped) in adapters.iter().zip(&dropped) {
            if let Some(adapter) = adapter {
                let rows = pack(operands.slopes, adapter.first, adapter.rank);
                groups.push((rows, dropped.as_deref().unwrap_or(operands.x), adapter.first));
            }
        }
    }
    {
        let parts = adapters.iter().zip(&mut sums);
        let parts = parts.filter_map(|(adapter, sum)| Some((adapter.as_ref()?, sum.as_mut()?)));
        let (mut das, mut dbs) = (Vec::new(), Vec::new());
        for (adapter, Sum { a, b, onto }) in parts {
            let (da, db) = (Disjoint::new(a.storage_mut::<f32>()), Disjoint::new(b.storage_mut::<f32>()));
            das.push((adapter.first..adapter.first + adapter.rank, da, *onto));
            dbs.push((db, *onto));
        }
        let das = &das;
        let mut planned = Vec::with_capacity(groups.len() + adapters.len());
        for (rows, x, first) in &groups {
            let columns = Columns::new(Stored::of::<T>(x), [tokens, width], Side::Plain);
            let finish = Box::new(move |mut tile: Tile<'_>| {
                let column = tile.columns.start;
                for (row, values) in tile.iter_mut() {
                    let row = first + row;
                    let Some((range, da, onto)) = das.iter().find(|(range, ..)| range.contains(&row)) else {
                        continue;
                    };
                    // SAFETY: tiles do not overlap, nor do the rows of one.
                    let da = unsafe { da.slice((row - range.start) * width + column, values.len()) };
                    if *onto {
                        add(da, values);
                    } else {
                        da.copy_from_slice(values);
                    }
                }
            });
            planned.push(Planned { terms: vec![Term { rows, columns }], finish, place: None });
        }
        let parts = adapters.iter().zip(&downs).zip(operands.dy).zip(outs);
        let parts = parts
            .filter_map(|(((adapter, rows), dy), out)| Some((adapter.as_ref()?, rows.as_ref()?, *dy, *out)));
        for ((adapter, rows, dy, out), (db, onto)) in parts.zip(&dbs) {
            let (rank, scaling, onto) = (adapter.rank, adapter.lora.scaling, *onto);
            let columns = Columns::new(Stored::of::<T>(dy), [tokens, out], Side::Plain);
            let finish = Box::new(move |mut tile: Tile<'_>| {
                let column = tile.columns.start;
                for (row, values) in tile.iter_mut() {
                    for (index, value) in values.iter().enumerate() {
                        // SAFETY: each element of the product has one place in dB.
                        let db = unsafe { db.slice((column + index) * rank + row, 1) };
                        db[0] = scaling * value + if onto { db[0] } else { 0.0 };
                    }
                }
            });
            planned.push(Planned { terms: vec![Term { rows, columns }], finish, place: None });
        }
        run::<T>(&planned);
    }
    let finished = |sum: Sum| LoraGradient { a: tensor::from_flex(sum.a), b: tensor::from_flex(sum.b) };
    sums.into_iter().map(|sum| sum.map(finished)).collect()
}
