//! DoRA: a magnitude for every row of an adapted weight, apart from its direction.
//!
//! `y = f · (W·x + scaling · B·A·x) + bias` with `f = m / ‖W + scaling · B·A‖`, norms over each row (Liu et al. 2024,
//! <https://arxiv.org/abs/2402.09353>, equation 5). The norm is a constant in the backward pass (section 4.3), so
//! `dm = df / ‖W + scaling · B·A‖`. Dropout acts on the input of A alone, as in LoRA; PEFT also drops the input of
//! `(f − 1) · W`, at the price of a second product with W.
//!
//! Neither `W + scaling · B·A` nor `B·A` is ever formed:
//!
//! ```text
//! ‖W + s·B·A‖²ₒ = ‖W‖²ₒ + 2s · Σᵣ B[o, r] · (W·Aᵀ)[o, r] + s² · (B·(A·Aᵀ)·Bᵀ)ₒₒ
//! ```
//!
//! `‖W‖²` never changes, and `W·Aᵀ` is the frozen projection of the `rank` rows of A. All in f32, whatever
//! the compute dtype.

use std::sync::{Arc, OnceLock};

use burn_tensor::{DType, Tensor};
use tune_kernels::KernelBackend;
use tune_kernels::linear::{FrozenWeight, Linear, Lora, linear};
use tune_kernels::sum::sum_rows;

/// Elements of a dense weight that are squared at a time.
const PIECE: usize = 1 << 22;

/// The magnitudes of one projection.
///
/// Clones share the norms of the weight that the first of them was used with, so they belong to one model.
#[derive(Clone, Debug)]
pub struct Dora<B: KernelBackend> {
    /// m, f32 `[1, out]`.
    pub magnitude: Tensor<B, 2>,
    scale: Arc<OnceLock<Scale<B>>>,
}

/// What a projection's output is multiplied by.
#[derive(Clone, Debug)]
pub struct Scale<B: KernelBackend> {
    /// ‖W + scaling · B·A‖ of every row, f32 `[1, out]`.
    pub norm: Tensor<B, 2>,
    /// m over it.
    pub factors: Tensor<B, 2>,
}

impl<B: KernelBackend> Dora<B> {
    /// Of magnitudes `[1, out]`.
    pub fn new(magnitude: Tensor<B, 2>) -> Self {
        Self { magnitude, scale: Arc::default() }
    }

    /// Norms and factors on a weight, whose rows have the squares `squares`.
    pub fn scale(
        &self,
        weight: &FrozenWeight<B>,
        squares: impl FnOnce() -> Tensor<B, 2>,
        lora: &Lora<B>,
    ) -> &Scale<B> {
        self.scale.get_or_init(|| {
            let norm = row_norms(weight, squares(), lora);
            Scale { factors: self.magnitude.clone() / norm.clone(), norm }
        })
    }
}

/// ‖W + scaling · B·A‖ of every row, f32 `[1, out]`, for a weight whose rows have the squares `squares`.
///
/// A row of zeros has a norm just above zero: its factor is then zero, not a quotient of zeros.
pub fn row_norms<B: KernelBackend>(
    weight: &FrozenWeight<B>,
    squares: Tensor<B, 2>,
    lora: &Lora<B>,
) -> Tensor<B, 2> {
    let scaling = lora.scaling;
    let frozen = Linear { weight, bias: None, lora: None };
    let projected = linear(&lora.a, &[frozen], None).outputs.remove(0);
    let b = lora.b.clone().transpose();
    let cross = (projected * b.clone()).sum_dim(0);
    let gram = lora.a.clone().matmul(lora.a.clone().transpose());
    let own = (gram.matmul(b.clone()) * b).sum_dim(0);
    let square = squares + cross * (2.0 * scaling) + own * (scaling * scaling);
    square.clamp_min(f32::MIN_POSITIVE).sqrt()
}

/// ‖W‖² of every row of a frozen weight, f32 `[1, out]`.
pub fn row_squares<B: KernelBackend>(weight: &FrozenWeight<B>) -> Tensor<B, 2> {
    let [out, input] = weight.shape();
    let dense = match weight {
        FrozenWeight::Dense(weight) => weight.clone(),
        FrozenWeight::Nf4(weight) => weight.dequantize(),
    };
    let rows = (PIECE / input.max(1)).max(1);
    let piece = |start: usize| {
        let rows = dense.clone().narrow(0, start, rows.min(out - start)).cast(DType::F32);
        sum_rows(rows.clone() * rows)
    };
    let squares = Tensor::cat((0..out).step_by(rows).map(piece).collect(), 0);
    squares.reshape([1, out])
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;
    use burn_tensor::TensorData;
    use tune_kernels::nf4::{Nf4Weight, quantize};

    use super::*;

    /// Deterministic numbers in [−1, 1).
    fn random(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    fn tensor(values: &[f32], shape: [usize; 2], dtype: DType) -> Tensor<Flex, 2> {
        Tensor::from_data(TensorData::new(values.to_vec(), shape), (&Default::default(), dtype))
    }

    fn host(tensor: Tensor<Flex, 2>) -> Vec<f32> {
        tensor.cast(DType::F32).into_data().into_vec().unwrap()
    }

    /// The norms as they are defined: the sum written out, in f64.
    fn oracle(
        weight: &[f32],
        a: &[f32],
        b: &[f32],
        scaling: f32,
        [out, input, rank]: [usize; 3],
    ) -> Vec<f64> {
        let row = |row: usize| -> f64 {
            let element = |column: usize| -> f64 {
                let product = |r: usize| f64::from(b[row * rank + r]) * f64::from(a[r * input + column]);
                let delta: f64 = (0..rank).map(product).sum();
                f64::from(weight[row * input + column]) + f64::from(scaling) * delta
            };
            (0..input).map(|column| element(column).powi(2)).sum::<f64>().sqrt()
        };
        (0..out).map(row).collect()
    }

    #[test]
    fn norms_agree_with_the_oracle_whatever_the_weight_is_stored_in() {
        let [out, input, rank] = [70, 1536, 8];
        let (weight, scaling) = (random(out * input, 1), 2.0);
        let a: Vec<f32> = random(rank * input, 2).iter().map(|value| value / (input as f32).sqrt()).collect();
        // From no change at all to one as large as the weight.
        for size in [0.0, 0.01, 1.0, 20.0] {
            let b: Vec<f32> = random(out * rank, 3).iter().map(|value| value * size).collect();
            let lora = Lora {
                a: tensor(&a, [rank, input], DType::F32),
                b: tensor(&b, [out, rank], DType::F32),
                scaling,
                dropout: None,
            };
            let nf4 = Nf4Weight::new(quantize(&weight, [out, input], 64, true), &Default::default());
            let stored = [
                FrozenWeight::Dense(tensor(&weight, [out, input], DType::F32)),
                FrozenWeight::Dense(tensor(&weight, [out, input], DType::BF16)),
                FrozenWeight::Nf4(nf4),
            ];
            for frozen in stored {
                let dense = match &frozen {
                    FrozenWeight::Dense(dense) => host(dense.clone()),
                    FrozenWeight::Nf4(nf4) => host(nf4.dequantize()),
                };
                let expected = oracle(&dense, &a, &b, scaling, [out, input, rank]);
                let found = host(row_norms(&frozen, row_squares(&frozen), &lora));
                let worst = found
                    .iter()
                    .zip(&expected)
                    .map(|(found, expected)| (f64::from(*found) / expected - 1.0).abs());
                let worst = worst.fold(0.0, f64::max);
                assert!(worst < 2e-6, "B of size {size}: a norm is off by {worst:e}");
            }
        }
    }

    #[test]
    fn a_row_of_zeros_stays_one() {
        let zeros = FrozenWeight::<Flex>::Dense(tensor(&[0.0; 6], [2, 3], DType::F32));
        let lora = Lora {
            a: tensor(&[1.0; 3], [1, 3], DType::F32),
            b: tensor(&[0.0; 2], [2, 1], DType::F32),
            scaling: 1.0,
            dropout: None,
        };
        let dora = Dora::new(tensor(&[0.0; 2], [1, 2], DType::F32));
        let scale = dora.scale(&zeros, || row_squares(&zeros), &lora);
        assert_eq!(host(scale.factors.clone()), [0.0, 0.0]);
    }
}
