//! The linear op on the CPU: the blocked product with the adapter added to each output tile while it is in cache.

use burn::tensor::{DType, Tensor};
use burn_flex::{Flex, FlexTensor};

use super::{FrozenWeight, LinearBackward, LinearGradients, Lora};
use crate::cpu::gemm::{Destination, Matrix, gemm};
use crate::cpu::product::{Side, WeightRows, product};
use crate::cpu::scalar::{Scalar, round_as, with_float};
use crate::cpu::{parallel, scratch, tensor};
use crate::dropout::Mask;
use crate::nf4::Nf4Weight;
use crate::nf4::cpu::Nf4Tensors;

/// The tensors of a frozen weight, held so that their values can be borrowed.
pub(crate) enum WeightTensors<'w> {
    Dense(FlexTensor),
    Nf4(Box<Nf4Tensors>, &'w Nf4Weight<Flex>),
}

impl<'w> WeightTensors<'w> {
    pub(crate) fn new(weight: &'w FrozenWeight<Flex>) -> Self {
        match weight {
            FrozenWeight::Dense(weight) => Self::Dense(tensor::primitive(weight.clone())),
            FrozenWeight::Nf4(weight) => Self::Nf4(Box::new(Nf4Tensors::new(weight)), weight),
        }
    }

    /// Tile by tile, for products in compute dtype `T`.
    pub(crate) fn rows<T: Scalar>(&self) -> WeightRows<'_> {
        match self {
            Self::Dense(weight) => dense_rows(weight),
            Self::Nf4(tensors, weight) => WeightRows::nf4::<T>(tensors.rows(weight)),
        }
    }
}

fn dense_rows(matrix: &FlexTensor) -> WeightRows<'_> {
    let shape = matrix.layout().shape();
    let shape = [shape[0], shape[1]];
    assert!(
        matches!(matrix.dtype(), DType::F32 | DType::BF16 | DType::F16),
        "frozen weights are f32, bf16 or f16, not {:?}",
        matrix.dtype()
    );
    match matrix.dtype() {
        DType::BF16 => WeightRows::Bf16(matrix.storage(), shape),
        DType::F16 => WeightRows::F16(matrix.storage(), shape),
        _ => WeightRows::F32(matrix.storage(), shape),
    }
}

/// An adapter in f32, rounded to what the compute dtype can hold.
struct LoraValues {
    a: Vec<f32>,
    b: Vec<f32>,
    rank: usize,
    scaling: f32,
    mask: Option<Mask>,
}

impl LoraValues {
    fn new<T: Scalar>(lora: &Lora<Flex>) -> Self {
        let rounded = |matrix: &Tensor<Flex, 2>| {
            let mut values = tensor::floats(&tensor::primitive(matrix.clone())).into_owned();
            if T::as_f32(&[]).is_none() {
                round_as::<T>(&mut values);
            }
            values
        };
        let mask =
            lora.dropout.filter(|dropout| dropout.probability > 0.0).map(|dropout| Mask::new(&dropout));
        Self { a: rounded(&lora.a), b: rounded(&lora.b), rank: lora.a.dims()[0], scaling: lora.scaling, mask }
    }

    /// The adapter's input: `x` after dropout, or `None` where that is `x` itself.
    fn dropped(&self, x: &[f32], input: usize) -> Option<Vec<f32>> {
        let mask = self.mask?;
        let mut dropped = x.to_vec();
        let rows = parallel::rows_per_task(input);
        let tasks = dropped.chunks_mut((rows * input).max(1)).enumerate().collect();
        parallel::for_each(tasks, 8 * x.len(), |(task, values)| mask.apply(task * rows * input, values));
        Some(dropped)
    }

    /// `t = x̃ Aᵀ`, `[tokens, rank]`.
    fn down(&self, dropped: &[f32], tokens: usize, input: usize) -> Vec<f32> {
        let mut t = vec![0.0f32; tokens * self.rank];
        let a = WeightRows::F32(&self.a, [self.rank, input]);
        product(dropped, tokens, &a, Side::Transposed, &mut t, |_, _, _| {});
        t
    }
}

/// `linear` of the CPU backend.
pub(crate) fn forward(
    x: Tensor<Flex, 2>,
    weight: &FrozenWeight<Flex>,
    bias: Option<&Tensor<Flex, 1>>,
    lora: Option<&Lora<Flex>>,
) -> Tensor<Flex, 2> {
    let [tokens, input] = x.dims();
    let [out, _] = weight.shape();
    let x = tensor::primitive(x);
    let weight = WeightTensors::new(weight);
    let bias = bias.map(|bias| tensor::primitive(bias.clone()));
    let bias = bias.as_ref().map(tensor::floats);
    with_float!(x.dtype(), T => {
        let x = tensor::floats(&x);
        let lora = lora.map(|lora| {
            let lora = LoraValues::new::<T>(lora);
            let dropped = lora.dropped(&x, input);
            let t = lora.down(dropped.as_deref().unwrap_or(&x), tokens, input);
            (lora, t)
        });
        let mut y = vec![<T as Scalar>::from_f32(0.0); tokens * out];
        product(&x, tokens, &weight.rows::<T>(), Side::Transposed, &mut y, |rows, columns, tile| {
            let width = columns.len();
            if let Some(bias) = &bias {
                for row in tile.chunks_exact_mut(width) {
                    row.iter_mut().zip(&bias[columns.clone()]).for_each(|(y, bias)| *y += bias);
                }
            }
            if let Some((lora, t)) = &lora {
                let rank = lora.rank;
                let left = Matrix::rows(&t[rows.start * rank..], rank);
                let right = Matrix::rows(&lora.b[columns.start * rank..], rank).transposed();
                gemm([rows.len(), rank, width], tile, width, Destination::Add, lora.scaling, left, right);
            }
        });
        tensor::from_vec(y, [tokens, out])
    })
}

/// `linear_backward` of the CPU backend.
pub(crate) fn backward(request: LinearBackward<Flex>, dy: Tensor<Flex, 2>) -> LinearGradients<Flex> {
    let LinearBackward { x, weight, lora, wants } = request;
    let [tokens, out] = dy.dims();
    let [_, input] = weight.shape();
    let dy = tensor::primitive(dy);
    let x = x.map(tensor::primitive);
    let weight = WeightTensors::new(&weight);
    let mut gradients = LinearGradients { x: None, a: None, b: None };
    with_float!(dy.dtype(), T => {
        let dy = tensor::floats(&dy);
        let lora = lora.as_ref().map(|lora| {
            let lora = LoraValues::new::<T>(lora);
            let mut dt = vec![0.0f32; tokens * lora.rank];
            let b = WeightRows::F32(&lora.b, [out, lora.rank]);
            product(&dy, tokens, &b, Side::Plain, &mut dt, |_, _, tile| {
                tile.iter_mut().for_each(|value| *value *= lora.scaling);
            });
            (lora, dt)
        });
        if let (Some((lora, dt)), Some(x)) = (&lora, &x) {
            let x = tensor::floats(x);
            let dropped = lora.dropped(&x, input);
            let dropped = dropped.as_deref().unwrap_or(&x);
            if wants.a {
                let mut da = vec![0.0f32; lora.rank * input];
                let dropped = WeightRows::F32(dropped, [tokens, input]);
                let dt = transpose(dt, tokens, lora.rank);
                product(&dt, lora.rank, &dropped, Side::Plain, &mut da, |_, _, _| {});
                gradients.a = Some(tensor::from_vec(da, [lora.rank, input]));
            }
            if wants.b {
                let t = transpose(&lora.down(dropped, tokens, input), tokens, lora.rank);
                let mut db = vec![0.0f32; lora.rank * out];
                let dy = WeightRows::F32(&dy, [tokens, out]);
                product(&t, lora.rank, &dy, Side::Plain, &mut db, |_, _, tile| {
                    tile.iter_mut().for_each(|value| *value *= lora.scaling);
                });
                gradients.b = Some(tensor::from_vec(transpose(&db, lora.rank, out), [out, lora.rank]));
            }
        }
        if wants.x {
            let mut dx = vec![<T as Scalar>::from_f32(0.0); tokens * input];
            product(&dy, tokens, &weight.rows::<T>(), Side::Plain, &mut dx, |rows, columns, tile| {
                let Some((lora, dt)) = &lora else { return };
                let (rank, width) = (lora.rank, columns.len());
                let shape = [rows.len(), rank, width];
                let left = Matrix::rows(&dt[rows.start * rank..], rank);
                let right = Matrix::rows(&lora.a[columns.start..], input);
                let Some(mask) = &lora.mask else {
                    gemm(shape, tile, width, Destination::Add, 1.0, left, right);
                    return;
                };
                let mut adapter = scratch::take(tile.len());
                gemm(shape, &mut adapter, width, Destination::Replace, 1.0, left, right);
                for (row, adapter) in rows.zip(adapter.chunks_exact_mut(width)) {
                    mask.apply(row * input + columns.start, adapter);
                }
                tile.iter_mut().zip(adapter.iter()).for_each(|(dx, adapter)| *dx += adapter);
            });
            gradients.x = Some(tensor::from_vec(dx, [tokens, input]));
        }
    });
    gradients
}

/// `[rows, columns]` to `[columns, rows]`.
fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = vec![0.0f32; values.len()];
    for row in 0..rows {
        for column in 0..columns {
            out[column * rows + row] = values[row * columns + column];
        }
    }
    out
}
