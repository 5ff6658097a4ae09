//! What a check measures: where it runs, the numbers it runs on, and how far a result is from the oracle's.

use std::any::Any;

use burn_tensor::backend::Backend;
use burn_tensor::{DType, Tensor, TensorData};

/// Where a check runs, and what it computes in.
#[derive(Debug)]
pub struct On<'a, B: Backend> {
    /// The device.
    pub device: &'a B::Device,
    /// The compute dtype.
    pub dtype: DType,
}

impl<B: Backend> Clone for On<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for On<'_, B> {}

/// How far one result is from what it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Deviation {
    /// Which result of the op.
    pub part: &'static str,
    /// Shapes and options it was computed with.
    pub case: String,
    /// The norm of the difference over the norm of what is expected, or, if larger, a quarter of the largest difference
    /// over the largest number expected. Infinite where a result is not finite.
    pub error: f64,
    /// What rounding explains.
    pub tolerance: f64,
}

impl Deviation {
    /// Of `found` from `expected`.
    pub fn new(part: &'static str, case: &str, found: &[f32], expected: &[f32], tolerance: f64) -> Self {
        let largest = expected.iter().fold(0.0f64, |largest, x| largest.max(f64::from(x.abs())));
        let difference = |(a, b): (&f32, &f32)| f64::from(*a) - f64::from(*b);
        let differences = || found.iter().zip(expected).map(difference);
        let error = if found.len() != expected.len() || found.iter().any(|x| !x.is_finite()) {
            f64::INFINITY
        } else if largest == 0.0 {
            // Nothing to be relative to.
            differences().fold(0.0f64, |largest, x| largest.max(x.abs()))
        } else {
            let norm = expected.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
            let square = differences().map(|x| x * x).sum::<f64>().sqrt();
            let worst = differences().fold(0.0f64, |worst, x| worst.max(x.abs()));
            (square / norm).max(worst / (4.0 * largest))
        };
        Self { part, case: case.to_owned(), error, tolerance }
    }

    /// Whether rounding alone explains it.
    pub fn is_within_tolerance(&self) -> bool {
        self.error <= self.tolerance
    }
}

impl std::fmt::Display for Deviation {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { part, case, error, tolerance } = self;
        write!(formatter, "{part} of {case}: relative error {error:.1e}, at most {tolerance:.1e} by rounding")
    }
}

/// The message of a caught panic.
pub fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text =
        text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked without a message");
    text.trim().to_owned()
}

/// Relative error that `dtype` may cost: rounding of the result, with some room for sums.
pub fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 2e-6,
        DType::F16 => 1e-3,
        _ => 6e-3,
    }
}

/// Deterministic numbers in [−1, 1) · `size` (xorshift).
pub fn random(count: usize, seed: u64, size: f32) -> Vec<f32> {
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
pub fn rounded(values: &[f32], dtype: DType) -> Vec<f32> {
    let data = TensorData::new(values.to_vec(), [values.len()]).convert_dtype(dtype);
    data.iter::<f32>().collect()
}

/// Random numbers that `dtype` can hold.
pub fn random_in(count: usize, seed: u64, size: f32, dtype: DType) -> Vec<f32> {
    rounded(&random(count, seed, size), dtype)
}

/// All values in f32.
pub fn values<B: Backend, const D: usize>(tensor: &Tensor<B, D>) -> Vec<f32> {
    tensor.to_data().iter::<f32>().collect()
}

impl<B: Backend> On<'_, B> {
    /// A tensor in the compute dtype.
    pub fn tensor<const D: usize>(&self, values: &[f32], shape: [usize; D]) -> Tensor<B, D> {
        self.tensor_in(self.dtype, values, shape)
    }

    /// A tensor in f32.
    pub fn single<const D: usize>(&self, values: &[f32], shape: [usize; D]) -> Tensor<B, D> {
        self.tensor_in(DType::F32, values, shape)
    }

    fn tensor_in<const D: usize>(&self, dtype: DType, values: &[f32], shape: [usize; D]) -> Tensor<B, D> {
        Tensor::from_data(TensorData::new(values.to_vec(), shape), (self.device, dtype))
    }

    /// Random numbers that the compute dtype can hold.
    pub(super) fn random(&self, count: usize, seed: u64, size: f32) -> Vec<f32> {
        random_in(count, seed, size, self.dtype)
    }

    pub(super) fn tolerance(&self) -> f64 {
        tolerance(self.dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviations_are_relative_and_what_is_no_number_is_infinitely_wrong() {
        let of = |found: &[f32], expected: &[f32]| Deviation::new("y", "case", found, expected, 0.1).error;
        assert_eq!(of(&[3.0, 4.0], &[3.0, 4.0]), 0.0);
        assert!((of(&[3.0, 4.5], &[3.0, 4.0]) - 0.1).abs() < 1e-12);
        assert_eq!(of(&[1.0, f32::NAN], &[1.0, 2.0]), f64::INFINITY);
        assert_eq!(of(&[1.0], &[1.0, 2.0]), f64::INFINITY);
        assert_eq!(of(&[0.25, 0.0], &[0.0, 0.0]), 0.25);
    }
}
