//! Random inputs, tensors from and to f32, and the comparison all parity tests share.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_flex::Flex;
use tune_kernels::isa::InstructionSet;

/// Every compute dtype.
pub(crate) const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// Deterministic numbers in [−1, 1) · `size` (xorshift).
pub(crate) fn random(count: usize, seed: u64, size: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * size
        })
        .collect()
}

/// What `values` become when stored in `dtype`.
pub(crate) fn rounded(values: &[f32], dtype: DType) -> Vec<f32> {
    let data = TensorData::new(values.to_vec(), [values.len()]).convert_dtype(dtype);
    data.iter::<f32>().collect()
}

/// Random numbers that `dtype` can hold.
pub(crate) fn random_in(count: usize, seed: u64, size: f32, dtype: DType) -> Vec<f32> {
    rounded(&random(count, seed, size), dtype)
}

/// A tensor of `dtype`.
pub(crate) fn tensor<B: Backend, const D: usize>(
    values: &[f32],
    shape: [usize; D],
    dtype: DType,
) -> Tensor<B, D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), (&B::Device::default(), dtype))
}

/// An integer tensor, as the data room makes them.
pub(crate) fn ids(values: &[i32]) -> Tensor<Flex, 1, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), (&Default::default(), DType::I32))
}

/// All values in f32.
pub(crate) fn values<B: Backend, const D: usize>(tensor: &Tensor<B, D>) -> Vec<f32> {
    tensor.to_data().iter::<f32>().collect()
}

/// Runs `body` on every instruction set that this machine has, and says which.
pub(crate) fn on_every_set(body: impl Fn(&str)) {
    let sets: Vec<_> = InstructionSet::ALL.into_iter().filter(|set| set.is_available()).collect();
    assert!(sets.contains(&InstructionSet::Portable) && sets.contains(&InstructionSet::best()));
    for set in sets {
        set.run(|| body(set.name())).expect("the set is available");
    }
}

/// Relative error that `dtype` may cost: rounding of the result, with some room for sums.
pub(crate) fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 2e-6,
        DType::F16 => 1e-3,
        _ => 6e-3,
    }
}

/// Compares by the norm of the difference, relative to the norm of what is expected, and each element by the
/// largest one.
#[track_caller]
pub(crate) fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    let square = |x: f32| f64::from(x) * f64::from(x);
    let norm = expected.iter().map(|x| square(*x)).sum::<f64>().sqrt();
    let largest = expected.iter().fold(0.0f64, |largest, x| largest.max(f64::from(x.abs())));
    let difference = found.iter().zip(expected).map(|(a, b)| square(a - b)).sum::<f64>().sqrt();
    assert!(difference <= tolerance * norm + 1e-30, "{what}: relative error {:.2e}", difference / norm);
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = f64::from((found - expected).abs());
        assert!(error <= 4.0 * tolerance * largest + 1e-30, "{what}[{index}]: {found} instead of {expected}");
    }
}
