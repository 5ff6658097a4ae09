//! NF4: a quantized matrix, moved to the device and dequantized there.

use super::measure::{Deviation, On, random, values};
use crate::KernelBackend;
use crate::nf4::{self, Absmax, FP4_CODEBOOK, Nf4Weight, Quantized, reference};

pub(super) fn all<B: KernelBackend>(on: On<'_, B>) -> Vec<Deviation> {
    let cases = [([1, 64], 64, true), ([13, 77], 64, false), ([65, 96], 128, true), ([300, 128], 64, true)];
    cases
        .into_iter()
        .map(|(shape, block_size, double_quant)| check(on, shape, block_size, double_quant))
        .chain([check_powers(on)])
        .collect()
}

/// Blocks as MXFP4 has them: of 32, with scales that are powers of two, by their exponents.
fn check_powers<B: KernelBackend>(on: On<'_, B>) -> Deviation {
    let shape = [13usize, 96];
    let blocks = shape[0] * shape[1] / 32;
    let codes = (0..shape[0] * shape[1] / 2).map(|at| (at * 37 % 256) as u8).collect();
    let mut powers = Box::new([0.0; 256]);
    powers.iter_mut().zip(-127..).for_each(|(power, exponent)| *power = f32::powi(2.0, exponent));
    let absmax = Absmax::Double {
        codes: (0..blocks).map(|block| 120 + (block % 14) as u8).collect(),
        nested_map: powers,
        nested_absmax: vec![1.0; blocks.div_ceil(16)],
        offset: 0.0,
        nested_block_size: 16,
    };
    let quantized = Quantized { shape, block_size: 32, codebook: FP4_CODEBOOK, codes, absmax };
    let expected = reference::dequantize(&quantized);
    let weight = Nf4Weight::<B>::new(quantized, on.device);
    let case = format!("{shape:?}, blocks of 32, scales powers of two");
    Deviation::new("weight", &case, &values(&weight.dequantize()), &expected, 0.0)
}

/// [`Nf4Weight::dequantize`], which is exact to the last bits but one.
pub fn check<B: KernelBackend>(
    on: On<'_, B>,
    shape: [usize; 2],
    block_size: usize,
    double_quant: bool,
) -> Deviation {
    let double = if double_quant { ", scales quantized too" } else { "" };
    let case = format!("{shape:?}, blocks of {block_size}{double}");
    let quantized = nf4::quantize(&random(shape[0] * shape[1], 1, 0.1), shape, block_size, double_quant);
    let expected = reference::dequantize(&quantized);
    let weight = Nf4Weight::<B>::new(quantized, on.device);
    Deviation::new("weight", &case, &values(&weight.dequantize()), &expected, 2e-7)
}
