//! Weights in 8-bit floats (E4M3) with scales in a tensor beside them, as DeepSeek, Mistral and others publish them.
//!
//! `w[i, j] = f8[i, j] · scale`, where the tensor of scales has one number for the whole weight, one for each row, or one
//! for each block of 128 × 128. It is called `<module>.weight_scale_inv` (which multiplies, whatever its name says) or
//! `<module>.weight_scale`. Scales of activations are of no use here.

use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

/// Rows and columns of a block.
const BLOCK: usize = 128;

/// The tensors of scales that a weight may have.
pub(super) fn scale_names(weight: &str) -> Option<[String; 2]> {
    let module = weight.strip_suffix(".weight")?;
    Some(["weight_scale_inv", "weight_scale"].map(|name| format!("{module}.{name}")))
}

/// How scales are spread over a weight `[rows, columns]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spread {
    Whole,
    Rows,
    Blocks,
}

impl Spread {
    /// By the shapes of weight and scales; `None` if they fit in no way.
    pub(super) fn of(weight: &[usize], scales: &[usize]) -> Option<Self> {
        let &[rows, columns] = weight else { return None };
        match scales {
            [] | [1] | [1, 1] => Some(Self::Whole),
            [count] | [count, 1] if *count == rows => Some(Self::Rows),
            [down, across] if [*down, *across] == [rows, columns].map(|side| side.div_ceil(BLOCK)) => {
                Some(Self::Blocks)
            }
            _ => None,
        }
    }

    /// Multiplies row-major `values` of `columns` numbers a row by their scales.
    pub(super) fn apply(self, values: &mut [f32], scales: &[f32], columns: usize) {
        values.par_chunks_mut(columns.max(1)).enumerate().for_each(|(row, values)| match self {
            Self::Whole => values.iter_mut().for_each(|value| *value *= scales[0]),
            Self::Rows => values.iter_mut().for_each(|value| *value *= scales[row]),
            Self::Blocks => {
                let scales = &scales[row / BLOCK * columns.div_ceil(BLOCK)..];
                for (block, scale) in values.chunks_mut(BLOCK).zip(scales) {
                    block.iter_mut().for_each(|value| *value *= scale);
                }
            }
        });
    }
}

/// The number of an E4M3 code: no infinities, 0x7f and 0xff are not numbers.
pub(super) fn decode(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let size = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if code < 0x80 { size } else { -size }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_numbers_of_the_format() {
        let expected = [
            (0x00, 0.0),
            (0x01, 1.0 / 512.0),
            (0x07, 7.0 / 512.0),
            (0x08, 1.0 / 64.0),
            (0x38, 1.0),
            (0x3c, 1.5),
            (0x7e, 448.0),
            (0xb8, -1.0),
            (0xfe, -448.0),
        ];
        for (code, number) in expected {
            assert_eq!(decode(code), number, "{code:#x}");
        }
        assert!(decode(0x7f).is_nan() && decode(0xff).is_nan());
        assert!((0..=u8::MAX).all(|code| decode(code ^ 0x80) == -decode(code) || decode(code).is_nan()));
    }

    #[test]
    fn scales_are_spread_as_their_shape_says() {
        assert_eq!(Spread::of(&[130, 256], &[]), Some(Spread::Whole));
        assert_eq!(Spread::of(&[130, 256], &[130, 1]), Some(Spread::Rows));
        assert_eq!(Spread::of(&[130, 256], &[2, 2]), Some(Spread::Blocks));
        assert_eq!(Spread::of(&[130, 256], &[2, 3]), None);
        assert_eq!(Spread::of(&[4], &[4]), None);
        let mut values = vec![1.0; 130 * 129];
        Spread::Blocks.apply(&mut values, &[2.0, 3.0, 5.0, 7.0], 129);
        let at = |row: usize, column: usize| values[row * 129 + column];
        assert_eq!([at(0, 0), at(127, 127), at(0, 128), at(128, 0), at(129, 128)], [2.0, 2.0, 3.0, 5.0, 7.0]);
        let mut values = vec![1.0; 6];
        Spread::Rows.apply(&mut values, &[2.0, 3.0], 3);
        assert_eq!(values, [2.0, 2.0, 2.0, 3.0, 3.0, 3.0]);
    }
}
