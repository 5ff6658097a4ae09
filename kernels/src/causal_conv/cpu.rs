//! The causal convolution on the CPU: one task for some tokens of a document and some channels.

use std::ops::Range;

use burn_flex::Flex;
use burn_tensor::Tensor;

use super::{CausalConv, CausalConvOps};
use crate::cpu::disjoint::Disjoint;
use crate::cpu::scalar::{Scalar, with_float};
use crate::cpu::{math, parallel, pool, tensor, vectorized};

/// Tokens and channels of a task.
const TOKENS: usize = 64;
const CHANNELS: usize = 256;

/// Some tokens of a document, and some channels.
#[derive(Clone, Debug)]
struct Part {
    document: Range<usize>,
    tokens: Range<usize>,
    channels: Range<usize>,
}

/// `[size, channels]`: a channel's factors, one row for each place.
struct Weight {
    values: Vec<f32>,
    size: usize,
    channels: usize,
}

impl Weight {
    fn new(weight: &Tensor<Flex, 2>) -> Self {
        let [channels, size] = weight.dims();
        let weight = tensor::primitive(weight.clone());
        let weight = tensor::floats(&weight);
        let values = (0..size).flat_map(|j| weight.iter().skip(j).step_by(size)).copied().collect();
        Self { values, size, channels }
    }

    /// The factors on the token `back` before.
    fn row(&self, back: usize, channels: &Range<usize>) -> &[f32] {
        &self.values[(self.size - 1 - back) * self.channels..][channels.clone()]
    }

    /// u of some tokens, `[tokens, channels of the part]`.
    fn sums<T: Scalar>(&self, x: &[T], part: &Part, tokens: Range<usize>, u: &mut [f32]) {
        for (token, u) in tokens.zip(u.chunks_exact_mut(part.channels.len())) {
            u.fill(0.0);
            for back in (0..self.size).filter(|back| token >= part.document.start + back) {
                let x = &x[(token - back) * self.channels..][part.channels.clone()];
                add_product(u, self.row(back, &part.channels), x);
            }
        }
    }
}

fn parts(conv: CausalConv<'_, Flex>) -> Vec<Part> {
    let [channels, _] = conv.weight.dims();
    let mut parts = Vec::new();
    for (document, _) in conv.documents.documents() {
        for start in document.clone().step_by(TOKENS) {
            let tokens = start..(start + TOKENS).min(document.end);
            parts.extend((0..channels).step_by(CHANNELS).map(|first| Part {
                document: document.clone(),
                tokens: tokens.clone(),
                channels: first..(first + CHANNELS).min(channels),
            }));
        }
    }
    parts
}

impl CausalConvOps for Flex {
    fn causal_conv(x: &Tensor<Flex, 2>, conv: CausalConv<'_, Flex>) -> Tensor<Flex, 2> {
        let shape = x.dims();
        let weight = Weight::new(conv.weight);
        let x = tensor::primitive(x.clone());
        with_float!(x.dtype(), T => {
            let x = x.storage::<T>();
            let mut y = pool::take::<T>(x.len());
            let out = Disjoint::new(&mut y);
            parallel::for_each(parts(conv), 2 * weight.size * x.len(), |part| {
                let width = part.channels.len();
                let mut u = pool::take::<f32>(part.tokens.len() * width);
                weight.sums::<T>(x, &part, part.tokens.clone(), &mut u);
                for (token, u) in part.tokens.clone().zip(u.chunks_exact(width)) {
                    // SAFETY: these channels of this token belong to this task alone.
                    let y = unsafe { out.slice(token * weight.channels + part.channels.start, width) };
                    finish::<T>(u, conv.silu, y);
                }
            });
            tensor::from_buffer(y, shape)
        })
    }

    fn causal_conv_backward(
        x: &Tensor<Flex, 2>,
        conv: CausalConv<'_, Flex>,
        dy: &Tensor<Flex, 2>,
    ) -> Tensor<Flex, 2> {
        let shape = x.dims();
        let weight = Weight::new(conv.weight);
        let (x, dy) = (tensor::primitive(x.clone()), tensor::primitive(dy.clone()));
        with_float!(x.dtype(), T => {
            let (x, dy) = (x.storage::<T>(), dy.storage::<T>());
            let mut dx = pool::take::<T>(x.len());
            let out = Disjoint::new(&mut dx);
            parallel::for_each(parts(conv), 4 * weight.size * x.len(), |part| {
                let width = part.channels.len();
                // The tokens whose sums these tokens are part of.
                let end = (part.tokens.end + weight.size - 1).min(part.document.end);
                let tokens = part.tokens.start..end;
                let mut du = pool::take::<f32>(tokens.len() * width);
                let mut sum = pool::take::<f32>(width);
                if conv.silu {
                    weight.sums::<T>(x, &part, tokens.clone(), &mut du);
                }
                for (token, du) in tokens.zip(du.chunks_exact_mut(width)) {
                    let dy = &dy[token * weight.channels..][part.channels.clone()];
                    slopes::<T>(du, conv.silu, dy);
                }
                for token in part.tokens.clone() {
                    sum.fill(0.0);
                    for ahead in (0..weight.size).filter(|ahead| token + ahead < end) {
                        let du = &du[(token - part.tokens.start + ahead) * width..][..width];
                        add_product::<f32>(&mut sum, weight.row(ahead, &part.channels), du);
                    }
                    // SAFETY: these channels of this token belong to this task alone.
                    let dx = unsafe { out.slice(token * weight.channels + part.channels.start, width) };
                    finish::<T>(&sum, false, dx);
                }
            });
            tensor::from_buffer(dx, shape)
        })
    }
}

vectorized! {
    fn add_product<T: Scalar>(sum: &mut [f32], weight: &[f32], x: &[T]) {
        for ((sum, weight), x) in sum.iter_mut().zip(weight).zip(x) {
            *sum += weight * x.to_f32();
        }
    }

    fn finish<T: Scalar>(u: &[f32], silu: bool, y: &mut [T]) {
        match silu {
            true => {
                for (y, u) in y.iter_mut().zip(u) {
                    *y = T::from_f32(u * math::sigmoid(*u));
                }
            }
            false => {
                for (y, u) in y.iter_mut().zip(u) {
                    *y = T::from_f32(*u);
                }
            }
        }
    }

    /// Turns u into du.
    fn slopes<T: Scalar>(u: &mut [f32], silu: bool, dy: &[T]) {
        match silu {
            true => {
                for (u, dy) in u.iter_mut().zip(dy) {
                    let s = math::sigmoid(*u);
                    *u = dy.to_f32() * s * (1.0 + *u * (1.0 - s));
                }
            }
            false => {
                for (u, dy) in u.iter_mut().zip(dy) {
                    *u = dy.to_f32();
                }
            }
        }
    }
}
