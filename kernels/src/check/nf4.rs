//! NF4: a quantized matrix, moved to the device and dequantized there.

use super::measure::{Deviation, On, random, values};
use crate::KernelBackend;
use crate::nf4::{self, Nf4Weight, reference};

pub(super) fn all<B: KernelBackend>(on: On<'_, B>) -> Vec<Deviation> {
    let cases = [([1, 64], 64, true), ([13, 77], 64, false), ([65, 96], 128, true), ([300, 128], 64, true)];
    cases
        .into_iter()
        .map(|(shape, block_size, double_quant)| check(on, shape, block_size, double_quant))
        .collect()
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
