//! The adapters of a linear layer on the CPU: t, their gradients, and what they add to the gradient of the input.

use burn_flex::{Flex, FlexTensor};

use super::LoraGradient;
use super::operands::{Adapter, Planned, add, finish_rows, pack, pack_ranks, run};
use crate::cpu::disjoint::Disjoint;
use crate::cpu::matmul::{Columns, PackedRows, Product, RowSource, Side, Stored, Term, Tile, multiply};
use crate::cpu::pool::{self, Buffer};
use crate::cpu::scalar::{Scalar, narrow};
use crate::cpu::tensor;

/// What the backward of a call's adapters gives.
pub(super) struct AdaptersBackward {
    pub(super) gradients: Vec<Option<LoraGradient<Flex>>>,
    /// dt of each, packed; none where dx is not wanted.
    pub(super) dts: Vec<Option<PackedRows>>,
    /// What inputs that were dropped add to dx.
    pub(super) masked: Option<Buffer<f32>>,
}

/// The backward of a call's adapters but for their term of dx. `packed` is `dy`.
pub(super) fn backward<T: Scalar>(
    adapters: &[Option<Adapter<'_>>],
    saved: Option<(&[T], &[T])>,
    dy: &[&[T]],
    packed: &[PackedRows],
    width: usize,
    wants_x: bool,
    sums: Vec<Option<LoraGradient<Flex>>>,
) -> AdaptersBackward {
    let ranks: usize = adapters.iter().flatten().map(|adapter| adapter.rank).sum();
    if ranks == 0 {
        return AdaptersBackward {
            gradients: sums,
            dts: adapters.iter().map(|_| None).collect(),
            masked: None,
        };
    }
    let tokens = packed[0].rows();
    let mut slopes = pool::take::<T>(tokens * ranks);
    {
        let out = Disjoint::new(&mut slopes);
        let planned = adapters.iter().zip(packed).filter_map(|(adapter, rows)| {
            let (adapter, out) = (adapter.as_ref()?, &out);
            let first = adapter.first;
            let finish = Box::new(move |tile: Tile<'_>| store_at(tile, out, ranks, first));
            Some(Planned { terms: vec![Term { rows, columns: adapter.b(Side::Plain) }], finish, place: None })
        });
        run::<T>(&planned.collect::<Vec<_>>());
    }
    let gradients = match saved {
        Some((x, down)) => {
            let outs: Vec<usize> = packed.iter().map(PackedRows::depth).collect();
            let operands = Operands { x, down, slopes: &slopes, dy };
            adapter_gradients(adapters, operands, [tokens, width, ranks], &outs, sums)
        }
        None => sums,
    };
    if !wants_x {
        return AdaptersBackward { gradients, dts: Vec::new(), masked: None };
    }
    let dt = |adapter: &Option<Adapter<'_>>| Some(pack_ranks(&slopes, tokens, ranks, adapter.as_ref()?));
    let dts: Vec<_> = adapters.iter().map(dt).collect();
    let masked = masked_input_gradient::<T>(adapters, &dts, tokens, width);
    AdaptersBackward { gradients, dts, masked }
}

/// t of all adapters side by side, `[tokens, ranks]`, of `x` and the same packed.
pub(super) fn down<T: Scalar>(
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
            let finish = Box::new(move |tile: Tile<'_>| {
                for (column, values) in tile.by_column() {
                    // SAFETY: tiles do not overlap, nor do the columns of one.
                    let db = unsafe { db.slice(column * rank + tile.rows.start, tile.rows.len()) };
                    for (db, value) in db.iter_mut().zip(values) {
                        *db = scaling * value + if onto { *db } else { 0.0 };
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
