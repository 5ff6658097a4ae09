//! The mask of a dropout in kernels: the bits of [`crate::dropout`], drawn where an element is read.

use burn_cubecl::CubeRuntime;
use cubecl::prelude::*;

use crate::dropout::{Dropout, Mask};

/// A mask in a kernel.
#[derive(CubeType, CubeLaunch)]
pub(super) struct MaskData {
    key_0: u32,
    key_1: u32,
    tail_0: u32,
    tail_1: u32,
    /// Elements whose word is no larger are dropped, if any are.
    dropped_up_to: u32,
    /// Whether any are, as 0 or 1.
    drops: u32,
    factor: f32,
}

/// The mask of `dropout` as an argument; without one nothing is dropped.
pub(super) fn argument<R: CubeRuntime>(dropout: Option<&Dropout>) -> MaskDataLaunch<R> {
    let Some(mask) = dropout.map(Mask::new) else {
        return MaskDataLaunch::new(0, 0, 0, 0, 0, 0, 1.0);
    };
    // A probability that rounds to 0 or to 1 of 2³² drops nothing or everything.
    let below = mask.threshold.clamp(1, 1 << 32) - 1;
    let ([key_0, key_1], [tail_0, tail_1]) = (mask.key, mask.tail);
    let drops = u32::from(mask.threshold > 0);
    MaskDataLaunch::new(key_0, key_1, tail_0, tail_1, below as u32, drops, mask.factor)
}

/// The random words of elements `4 · block ..` of the flattened tensor: `dropout::philox`, as the CPU counts blocks. A tensor
/// has fewer than 2³⁴ elements, so a block's number fits in a word.
#[cube]
pub(super) fn words(block: u32, mask: &MaskData) -> Array<u32> {
    let mut c0 = block;
    let mut c1 = 0u32;
    let mut c2 = mask.tail_0;
    let mut c3 = mask.tail_1;
    let mut k0 = mask.key_0;
    let mut k1 = mask.key_1;
    for _ in 0..10u32 {
        let left_high = u32::mul_hi(c0, 0xd251_1f53u32);
        let left_low = c0 * 0xd251_1f53u32;
        let right_high = u32::mul_hi(c2, 0xcd9e_8d57u32);
        let right_low = c2 * 0xcd9e_8d57u32;
        c0 = right_high ^ c1 ^ k0;
        c1 = right_low;
        c2 = left_high ^ c3 ^ k1;
        c3 = left_low;
        k0 += 0x9e37_79b9u32;
        k1 += 0xbb67_ae85u32;
    }
    let mut words = Array::<u32>::new(4usize);
    words[0] = c0;
    words[1] = c1;
    words[2] = c2;
    words[3] = c3;
    words
}

/// What an element of this word is multiplied by.
#[cube]
pub(super) fn kept(word: u32, mask: &MaskData) -> f32 {
    select(mask.drops == 1 && word <= mask.dropped_up_to, 0.0f32, mask.factor)
}

/// A vector of at most four elements, so many, through the mask; `at`, its first element's place in the flattened tensor, is a
/// multiple of its size.
#[cube]
pub(super) fn masked<N: Size>(
    values: Vector<f32, N>,
    at: u32,
    mask: &MaskData,
    #[comptime] vector: u32,
) -> Vector<f32, N> {
    let mut masked = values;
    if mask.drops == 1 {
        let words = words(at / 4, mask);
        #[unroll]
        for lane in 0..vector {
            let mut word = lane.runtime();
            if comptime!(vector < 4) {
                word += at % 4;
            }
            masked[lane as usize] = values[lane as usize] * kept(words[word as usize], mask);
        }
    }
    masked
}
