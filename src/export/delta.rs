//! What an adapter adds to a weight: `scaling · B·A`, in f32, computed one row at a time. With DoRA every row of the
//! sum is then rescaled to its magnitude: `m · (W + scaling · B·A) / ‖W + scaling · B·A‖`.
//!
//! Sums of squares are accumulated in f64 in a fixed order, so that printed figures do not depend on the number of
//! threads.

use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use crate::adapter;
use crate::adapter::peft::Adapter;
use crate::adapter::target::Target;

/// The tensors of one target, in host memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// `[rank, in]`.
    pub a: Vec<f32>,
    /// `[out, rank]`.
    pub b: Vec<f32>,
    /// Columns of A (input features).
    pub in_features: usize,
    /// Rows of A.
    pub rank: usize,
    /// Factor on B·A.
    pub scaling: f32,
    /// `[out]`: DoRA's magnitudes, if the adapter uses DoRA.
    pub magnitude: Option<Vec<f32>>,
}

impl Pair {
    /// Reads the tensors of one target.
    ///
    /// # Errors
    /// As [`Adapter::values`].
    pub fn read(adapter: &Adapter, target: &Target) -> Result<Self, adapter::Error> {
        let mut values = adapter.values(std::slice::from_ref(target))?.into_iter();
        let mut next = || values.next().unwrap_or_default();
        Ok(Self {
            a: next(),
            b: next(),
            in_features: target.module.in_features,
            rank: target.rank,
            scaling: target.scaling as f32,
            magnitude: target.use_dora.then(next),
        })
    }

    /// One row of `scaling · B·A`.
    fn row(&self, row: usize, delta: &mut [f32]) {
        delta.fill(0.0);
        for (factor, a) in
            self.b[row * self.rank..][..self.rank].iter().zip(self.a.chunks_exact(self.in_features))
        {
            for (sum, a) in delta.iter_mut().zip(a) {
                *sum += factor * a;
            }
        }
        for sum in delta {
            *sum *= self.scaling;
        }
    }

    /// Merges the adapter into a weight `[out, in]` in place. Returns the squared Frobenius norm of the change.
    pub fn add_to(&self, weight: &mut [f32]) -> f64 {
        let squares: Vec<f64> = weight
            .par_chunks_exact_mut(self.in_features)
            .enumerate()
            .map_init(
                || vec![0.0; self.in_features],
                |delta, (row, weight)| {
                    self.row(row, delta);
                    if let Some(magnitude) = &self.magnitude {
                        return scale_row(weight, delta, magnitude[row]);
                    }
                    for (weight, delta) in weight.iter_mut().zip(delta.iter()) {
                        *weight += delta;
                    }
                    square(delta)
                },
            )
            .collect();
        squares.iter().sum()
    }

    /// Frobenius norm of `scaling · B·A`, through the small products `Bᵀ·B` and `A·Aᵀ`.
    pub fn norm(&self) -> f64 {
        let rank = self.rank;
        let mut b_gram = vec![0.0_f64; rank * rank];
        for row in self.b.chunks_exact(rank) {
            for (sums, left) in b_gram.chunks_exact_mut(rank).zip(row) {
                for (sum, right) in sums.iter_mut().zip(row) {
                    *sum += f64::from(*left) * f64::from(*right);
                }
            }
        }
        let dot = |left: &[f32], right: &[f32]| -> f64 {
            left.iter().zip(right).map(|(left, right)| f64::from(*left) * f64::from(*right)).sum()
        };
        let rows: Vec<&[f32]> = self.a.chunks_exact(self.in_features).collect();
        let a_gram: Vec<f64> = (0..rank * rank)
            .into_par_iter()
            .map(|index| dot(rows[index / rank], rows[index % rank]))
            .collect();
        let trace: f64 = b_gram.iter().zip(&a_gram).map(|(b, a)| b * a).sum();
        let diagonal = |gram: &[f64]| -> f64 { gram.iter().step_by(rank + 1).sum() };
        // A result this small is the rounding error of a zero product.
        match trace > 1e-14 * diagonal(&a_gram) * diagonal(&b_gram) {
            true => f64::from(self.scaling).abs() * trace.sqrt(),
            false => 0.0,
        }
    }
}

/// Adds `delta` to a row and rescales the sum to `magnitude`. Returns the squared norm of the change. A zero sum stays
/// zero.
fn scale_row(weight: &mut [f32], delta: &[f32], magnitude: f32) -> f64 {
    let sum = |weight: f32, delta: f32| f64::from(weight) + f64::from(delta);
    let square: f64 = weight.iter().zip(delta).map(|(weight, delta)| sum(*weight, *delta).powi(2)).sum();
    let factor = if square > 0.0 { f64::from(magnitude) / square.sqrt() } else { 0.0 };
    let mut change = 0.0;
    for (weight, delta) in weight.iter_mut().zip(delta) {
        let merged = factor * sum(*weight, *delta);
        change += (merged - f64::from(*weight)).powi(2);
        *weight = merged as f32;
    }
    change
}

/// Sum of squares, in f64.
pub fn square(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value) * f64::from(*value)).sum()
}

/// Sum of squares of a large slice, on all cores in chunks of fixed size.
pub fn square_of(values: &[f32]) -> f64 {
    pieces(values.len()).into_par_iter().map(|piece| square(&values[piece])).collect::<Vec<_>>().iter().sum()
}

/// Sum of squares of a difference.
pub fn square_of_difference(left: &[f32], right: &[f32]) -> f64 {
    let piece = |piece: std::ops::Range<usize>| -> f64 {
        let pairs = left[piece.clone()].iter().zip(&right[piece]);
        pairs.map(|(left, right)| (f64::from(*left) - f64::from(*right)).powi(2)).sum()
    };
    pieces(left.len()).into_par_iter().map(piece).collect::<Vec<_>>().iter().sum()
}

fn pieces(length: usize) -> Vec<std::ops::Range<usize>> {
    const PIECE: usize = 1 << 16;
    (0..length).step_by(PIECE).map(|start| start..(start + PIECE).min(length)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_product_is_added_and_its_norm_agrees() {
        let pair = Pair {
            a: vec![1.0, 2.0, 3.0, -1.0, 0.5, 0.0],
            b: vec![1.0, 0.0, 0.0, 2.0],
            in_features: 3,
            rank: 2,
            scaling: 0.5,
            magnitude: None,
        };
        let mut weight = vec![10.0; 6];
        let square = pair.add_to(&mut weight);
        assert_eq!(weight, [10.5, 11.0, 11.5, 9.0, 10.5, 10.0]);
        assert!((square.sqrt() - pair.norm()).abs() < 1e-12);
        assert_eq!(square_of(&[3.0, 4.0]), 25.0);
        assert_eq!(square_of_difference(&[3.0, 4.0], &[0.0, 0.0]), 25.0);
    }

    #[test]
    fn a_product_that_vanishes_has_norm_zero() {
        let pair =
            Pair { a: vec![1.0; 4], b: vec![0.0; 4], in_features: 2, rank: 2, scaling: 2.0, magnitude: None };
        assert_eq!(pair.norm(), 0.0);
        // Neither half is zero, but their product is.
        let pair = Pair {
            a: vec![1.0, 1.0, 0.0, 0.0],
            b: vec![0.0, 3.0],
            in_features: 2,
            rank: 2,
            scaling: 2.0,
            magnitude: None,
        };
        assert_eq!(pair.norm(), 0.0);
    }

    #[test]
    fn rows_are_brought_to_their_magnitudes() {
        let magnitude = Some(vec![10.0, 1.0]);
        let (a, b) = (vec![1.0, 0.0], vec![1.0, 0.0]);
        let pair = Pair { a, b, in_features: 2, rank: 1, scaling: 2.0, magnitude };
        let mut weight = vec![1.0, 4.0, 0.0, 0.0];
        let square = pair.add_to(&mut weight);
        // (1, 4) + (2, 0) has length 5; a row of zeros has no direction.
        assert_eq!(weight, [6.0, 8.0, 0.0, 0.0]);
        assert_eq!(square, 25.0 + 16.0);
    }
}
