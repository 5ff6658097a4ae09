//! NF4: the fast quantizer and the device weight against the oracle, and the error bound of the format.

use proptest::prelude::*;
use tune_kernels::KernelBackend;
use tune_kernels::nf4::{self, Absmax, CODEBOOK, Nf4Weight, Quantized, reference};

use crate::support::{Site, everywhere, random, values};

#[test]
fn quantizer_and_oracle_give_the_same_bits() {
    everywhere!(check_bits);
}

fn check_bits<B: KernelBackend>(_: &Site) {
    for shape in [[1, 1], [1, 64], [7, 5], [13, 77], [65, 96], [300, 1024], [3, 50_001]] {
        for block_size in [64, 128, 4096] {
            for double_quant in [false, true] {
                let mut weights = random(shape[0] * shape[1], 5, 0.1);
                // A block of zeros, if there is room.
                weights.iter_mut().skip(64).take(64).for_each(|weight| *weight = 0.0);
                let found = nf4::quantize(&weights, shape, block_size, double_quant);
                let expected = reference::quantize(&weights, shape, block_size, double_quant);
                assert!(found == expected, "{shape:?} {block_size} {double_quant}");
                found.validate().expect("what is quantized here fits");
                assert_eq!(bits(&found.dequantize()), bits(&reference::dequantize(&expected)));
                let weight = Nf4Weight::<B>::new(found, &Default::default());
                assert_eq!(bits(&values(&weight.dequantize())), bits(&reference::dequantize(&expected)));
            }
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let good = nf4::quantize(&random(300, 1, 1.0), [3, 100], 64, true);
    let broken: [fn(&mut Quantized); 6] = [
        |q| q.codes.truncate(149),
        |q| q.shape = [3, 101],
        |q| q.shape = [usize::MAX, 2],
        |q| q.block_size = 0,
        |q| q.absmax = Absmax::F32(vec![0.0; 4]),
        |q| {
            if let Absmax::Double { nested_absmax, .. } = &mut q.absmax {
                nested_absmax.clear();
            }
        },
    ];
    for (index, change) in broken.into_iter().enumerate() {
        let mut quantized = good.clone();
        change(&mut quantized);
        assert!(
            Nf4Weight::<burn_flex::Flex>::try_new(quantized, &Default::default()).is_err(),
            "change {index}"
        );
    }
}

proptest! {
    /// No weight moves by more than half the widest gap between levels, times its block's absmax.
    #[test]
    fn the_round_trip_error_is_bounded(
        weights in prop::collection::vec(-10.0f32..10.0, 1..700),
        block_size in prop::sample::select(vec![64usize, 128, 256]),
    ) {
        let widest = CODEBOOK.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f32::max);
        let back = nf4::quantize(&weights, [1, weights.len()], block_size, false).dequantize();
        for (block, back) in weights.chunks(block_size).zip(back.chunks(block_size)) {
            let absmax = block.iter().fold(0.0f32, |largest, weight| largest.max(weight.abs()));
            for (weight, back) in block.iter().zip(back) {
                prop_assert!((weight - back).abs() <= absmax * (widest / 2.0) * 1.0001);
            }
        }
    }
}
