//! Sums of rows in an order of their own: many numbers are added in columns first, so that the error of a long row is that of
//! a short one.

use burn_tensor::{Tensor, backend::Backend};

/// Columns that a row is added up in first.
const COLUMNS: usize = 64;

/// Σ of each row of `x`, `[rows, width]`: `[rows, 1]`.
pub fn sum_rows<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let [rows, width] = x.dims();
    let whole = width / COLUMNS * COLUMNS;
    if whole <= COLUMNS {
        return x.sum_dim(1);
    }
    let columns = x.clone().narrow(1, 0, whole).reshape([rows, whole / COLUMNS, COLUMNS]).sum_dim(1);
    let sums = columns.reshape([rows, COLUMNS]).sum_dim(1);
    if whole == width { sums } else { sums + x.narrow(1, whole, width - whole).sum_dim(1) }
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;
    use burn_tensor::TensorData;

    use super::*;

    #[test]
    fn long_rows_are_summed_as_in_f64() {
        for width in [1, 63, 64, 65, 128, 1000, 49_153] {
            let values: Vec<f32> =
                (0..2 * width).map(|at| 1.0 + (at * 7919 % 1009) as f32 / 1009.0).collect();
            let x = Tensor::<Flex, 2>::from_data(
                TensorData::new(values.clone(), [2, width]),
                &Default::default(),
            );
            let found = sum_rows(x).into_data().into_vec::<f32>();
            let expected =
                values.chunks(width).map(|row| row.iter().map(|value| f64::from(*value)).sum::<f64>());
            for (found, expected) in found.into_iter().flatten().zip(expected) {
                assert!((f64::from(found) / expected - 1.0).abs() < 1e-6, "{width}: {found} for {expected}");
            }
        }
    }
}
