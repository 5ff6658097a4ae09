//! What the CPU's products of a linear layer read and how they end: the frozen weight, the adapter, and the rounding of a
//! row with bias and residual.

use burn_flex::{Flex, FlexTensor};

use super::{FrozenWeight, Linear, Lora};
use crate::cpu::disjoint::Disjoint;
use crate::cpu::matmul::{
    Columns, PackedRows, Place, Product, RowSource, Side, Stored, Term, Tile, multiply,
};
use crate::cpu::pool::{self, Buffer};
use crate::cpu::scalar::{Scalar, narrow, widen};
use crate::cpu::{parallel, tensor, vectorized};
use crate::dropout::Mask;
use crate::nf4::cpu::{Nf4Rows, Nf4Tensors};

/// A frozen weight's storage, held so that its values can be borrowed.
pub(crate) struct WeightTensors<'a> {
    shape: [usize; 2],
    held: Held<'a>,
}

enum Held<'a> {
    Dense(FlexTensor),
    Nf4 { weight: &'a crate::nf4::Nf4Weight<Flex>, tensors: Box<Nf4Tensors>, scales: Option<Buffer<f32>> },
}

impl<'a> WeightTensors<'a> {
    /// Holds a weight; packed scales of double quantization are unpacked for the length of the call.
    pub(crate) fn new(weight: &'a FrozenWeight<Flex>) -> Self {
        let mut tensors = Self::packed(weight);
        if let Held::Nf4 { weight, tensors, scales } = &mut tensors.held {
            *scales = tensors.rows(weight).expand();
        }
        tensors
    }

    /// Holds a weight as it is, packed scales included.
    pub(super) fn packed(weight: &'a FrozenWeight<Flex>) -> Self {
        let shape = weight.shape();
        let held = match weight {
            FrozenWeight::Dense(dense) => Held::Dense(tensor::primitive(dense.clone())),
            FrozenWeight::Nf4(weight) => {
                Held::Nf4 { weight, tensors: Box::new(Nf4Tensors::new(weight)), scales: None }
            }
        };
        Self { shape, held }
    }

    /// The weight as the right operand of a product.
    pub(crate) fn columns(&self, side: Side) -> Columns<'_> {
        use burn_tensor::DType;
        let stored = match &self.held {
            Held::Dense(dense) => match dense.dtype() {
                DType::BF16 => Stored::Bf16(dense.storage()),
                DType::F16 => Stored::F16(dense.storage()),
                _ => Stored::F32(dense.storage()),
            },
            Held::Nf4 { weight, tensors, scales } => {
                let rows: Nf4Rows<'_> = tensors.rows(weight);
                Stored::Nf4(rows.with_scales(scales.as_deref()))
            }
        };
        Columns::new(stored, self.shape, side)
    }

    /// One row in f32, rounded as the product sees it.
    pub(crate) fn row<T: Scalar>(&self, row: usize, out: &mut [f32]) {
        let width = self.shape[1];
        match self.columns(Side::Plain).stored {
            Stored::F32(values) => out.copy_from_slice(&values[row * width..][..width]),
            Stored::Bf16(values) => widen(&values[row * width..][..width], out),
            Stored::F16(values) => widen(&values[row * width..][..width], out),
            Stored::Nf4(rows) => rows.fill(row..row + 1, 0..width, out),
        }
        if !T::IS_F32 {
            crate::cpu::scalar::round_as::<T>(out);
        }
    }
}

/// An adapter's values, and where its rank stands among those of all layers of the call.
pub(super) struct Adapter<'a> {
    pub(super) a: FlexTensor,
    pub(super) b: FlexTensor,
    pub(super) rank: usize,
    pub(super) first: usize,
    pub(super) lora: &'a Lora<Flex>,
    pub(super) mask: Option<Mask>,
}

impl<'a> Adapter<'a> {
    /// The adapters of all layers.
    pub(super) fn all(layers: &[Linear<'a, Flex>]) -> Vec<Option<Self>> {
        let mut first = 0;
        let mut adapter = |lora: &'a Lora<Flex>| {
            let rank = lora.a.dims()[0];
            let start = first;
            first += rank;
            let dropout = lora.dropout.filter(|dropout| dropout.probability > 0.0);
            Self {
                a: tensor::primitive(lora.a.clone()),
                b: tensor::primitive(lora.b.clone()),
                rank,
                first: start,
                lora,
                mask: dropout.map(|dropout| Mask::new(&dropout)),
            }
        };
        layers.iter().map(|layer| layer.lora.map(&mut adapter)).collect()
    }

    /// A `[rank, in]`.
    pub(super) fn a(&self, side: Side) -> Columns<'_> {
        let values = self.a.storage::<f32>();
        Columns::new(Stored::F32(values), [self.rank, values.len() / self.rank.max(1)], side)
    }

    /// scaling · B `[out, rank]`.
    pub(super) fn b(&self, side: Side) -> Columns<'_> {
        let values = self.b.storage::<f32>();
        let shape = [values.len() / self.rank.max(1), self.rank];
        Columns::new(Stored::F32(values), shape, side).times(self.lora.scaling)
    }

    /// The adapter's input where that is not `x` itself: `x` after dropout.
    pub(super) fn dropped<T: Scalar>(&self, x: &[T], width: usize) -> Option<Buffer<T>> {
        let mask = self.mask?;
        let mut dropped = pool::take::<T>(x.len());
        let rows = parallel::rows_per_task(width);
        let chunk = (rows * width).max(1);
        let tasks = x.chunks(chunk).zip(dropped.chunks_mut(chunk)).enumerate().collect();
        parallel::for_each(tasks, 8 * x.len(), |(task, (x, dropped))| {
            let mut wide = pool::take::<f32>(x.len());
            widen(x, &mut wide);
            mask.apply(task * chunk, &mut wide);
            narrow(&wide, dropped);
        });
        Some(dropped)
    }
}

/// Rounds `values` into `out`, after adding what is given. All of one length.
pub(super) fn finish<T: Scalar>(
    values: &mut [f32],
    out: &mut [T],
    bias: Option<&[f32]>,
    residual: Option<&[T]>,
) {
    #[cfg(target_arch = "x86_64")]
    if crate::cpu::fast::available() {
        // SAFETY: asked just before.
        return unsafe { crate::cpu::fast::store(values, out, bias, residual) };
    }
    if let Some(bias) = bias {
        add(values, bias);
    }
    if let Some(residual) = residual {
        add(values, residual);
    }
    narrow(values, out);
}

/// [`finish`] of all rows of a tile as wide as its kernel at once, into the columns from `first` on of `out`, whose rows are
/// `stride` values apart; false if it is narrower, or of a width for which there is no faster way.
pub(super) fn finish_rows<T: Scalar>(
    tile: &mut Tile<'_>,
    out: &Disjoint<'_, T>,
    stride: usize,
    first: usize,
    bias: Option<&[f32]>,
    residual: Option<&[T]>,
) -> bool {
    let (rows, columns) = (tile.rows.clone(), tile.columns.clone());
    let Some(values) = tile.whole() else { return false };
    if !columns.len().is_multiple_of(TOGETHER) {
        return false;
    }
    let start = rows.start * stride + first + columns.start;
    #[cfg(target_arch = "x86_64")]
    if crate::cpu::fast::available() {
        let end = (rows.end - 1) * stride + first + columns.end;
        let residual = residual.map(|residual| residual[start..end].as_ptr());
        let out = out.place(start, end - start);
        // SAFETY: asked just before; first and last value of the tile are within `out` and `residual`, and tiles do not
        // overlap.
        unsafe { crate::cpu::fast::store_rows(values, columns.len(), out, stride, bias, residual) };
        return true;
    }
    finish_wide(values, columns.len(), out, start, stride, bias, residual);
    true
}

/// Values that plain loops round together.
const TOGETHER: usize = 16;

vectorized! {
    /// Rounds rows of `width` values, a multiple of [`TOGETHER`], into `out` from `first` on, whose rows are `stride` values
    /// apart: a tile's, which no other tile shares.
    fn finish_wide<T: Scalar>(
        values: &[f32],
        width: usize,
        out: &Disjoint<'_, T>,
        first: usize,
        stride: usize,
        bias: Option<&[f32]>,
        residual: Option<&[T]>
    ) {
        for (row, values) in values.chunks_exact(width).enumerate() {
            let start = first + row * stride;
            let residual = residual.map(|residual| &residual[start..start + width]);
            // SAFETY: tiles do not overlap, nor do the rows of one.
            let out = unsafe { out.slice(start, width) };
            for (number, (values, out)) in
                values.chunks_exact(TOGETHER).zip(out.chunks_exact_mut(TOGETHER)).enumerate()
            {
                let place = number * TOGETHER..(number + 1) * TOGETHER;
                let mut sums = [0.0f32; TOGETHER];
                sums.copy_from_slice(values);
                if let Some(bias) = bias {
                    for (sum, bias) in sums.iter_mut().zip(&bias[place.clone()]) {
                        *sum += bias;
                    }
                }
                if let Some(residual) = residual {
                    for (sum, residual) in sums.iter_mut().zip(&residual[place]) {
                        *sum += residual.to_f32();
                    }
                }
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = T::from_f32(sum);
                }
            }
        }
    }

    pub(super) fn add<T: Scalar>(values: &mut [f32], other: &[T]) {
        for (value, other) in values.iter_mut().zip(other) {
            *value += other.to_f32();
        }
    }
}

/// Packs `x` `[tokens, width]` as a left operand.
pub(super) fn pack<T: Scalar>(x: &[T], tokens: usize, width: usize) -> PackedRows {
    PackedRows::pack::<T, T>(tokens, width, RowSource::RowMajor { values: x, stride: width })
}

/// Packs the ranks of one adapter out of `[tokens, total]`.
pub(super) fn pack_ranks<T: Scalar>(
    t: &[T],
    tokens: usize,
    total: usize,
    adapter: &Adapter<'_>,
) -> PackedRows {
    let source = RowSource::RowMajor { values: &t[adapter.first..], stride: total };
    PackedRows::pack::<T, T>(tokens, adapter.rank, source)
}

/// A product, and what holds its terms and its end while it runs.
pub(super) struct Planned<'a> {
    pub(super) terms: Vec<Term<'a>>,
    pub(super) finish: Box<dyn Fn(Tile<'_>) + Sync + 'a>,
    pub(super) place: Option<Place>,
}

/// Computes products in one fork.
pub(super) fn run<T: Scalar>(planned: &[Planned<'_>]) {
    let mut products = Vec::with_capacity(planned.len());
    for Planned { terms, finish, place } in planned {
        products.push(Product { terms, begin: None, finish, place: *place });
    }
    multiply::<T>(&products);
}
