//! The causal convolution on a GPU: one unit for each element.

use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_tensor::Tensor;
use cubecl::prelude::*;

use super::{CausalConv, CausalConvOps};
use crate::attention::DocumentOffsets;
use crate::cube::tensor::{array, elements, empty_like, float, units, wrap};
use crate::cube::uploads;

impl<R, F, I, T> CausalConvOps for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn causal_conv(x: &Tensor<Self, 2>, conv: CausalConv<'_, Self>) -> Tensor<Self, 2> {
        let [channels, size] = conv.weight.dims();
        let (x, weight) = (float(x), float(conv.weight));
        let y = empty_like(&x);
        let count = elements(&x);
        let (cubes, dim) = units(count);
        // SAFETY: units from `count` on do nothing, and bounds are inside `x`.
        unsafe {
            causal_conv_kernel::launch_unchecked::<R>(
                &x.client,
                cubes,
                dim,
                array(&x),
                array(&weight),
                bounds(&x, conv.documents),
                array(&y),
                count as u32,
                channels as u32,
                size as u32,
                conv.silu,
                [x.dtype.into(), weight.dtype.into()],
            );
        }
        wrap(y)
    }

    fn causal_conv_backward(
        x: &Tensor<Self, 2>,
        conv: CausalConv<'_, Self>,
        dy: &Tensor<Self, 2>,
    ) -> Tensor<Self, 2> {
        let [channels, size] = conv.weight.dims();
        let (x, weight, dy) = (float(x), float(conv.weight), float(dy));
        let dx = empty_like(&x);
        let count = elements(&x);
        let (cubes, dim) = units(count);
        // SAFETY: as above.
        unsafe {
            causal_conv_backward_kernel::launch_unchecked::<R>(
                &x.client,
                cubes,
                dim,
                array(&x),
                array(&weight),
                array(&dy),
                bounds(&x, conv.documents),
                array(&dx),
                count as u32,
                channels as u32,
                size as u32,
                conv.silu,
                [x.dtype.into(), weight.dtype.into()],
            );
        }
        wrap(dx)
    }
}

/// Where the document of each token begins and ends.
fn bounds<R: CubeRuntime>(like: &CubeTensor<R>, documents: &DocumentOffsets) -> ArrayArg<R> {
    let of = |document: std::ops::Range<usize>| {
        let bounds = [document.start as u32, document.end as u32];
        document.flat_map(move |_| bounds)
    };
    let bounds = || documents.documents().flat_map(|(document, _)| of(document)).collect();
    uploads::argument(&documents.uploads.list(like, ("bounds of each token", [0; 3]), bounds))
}

/// u of one token and channel.
#[cube]
fn sum_at<F: Float, W: Float>(
    x: &Array<F>,
    weight: &Array<W>,
    start: u32,
    token: u32,
    channel: u32,
    channels: u32,
    #[comptime] size: u32,
) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for back in 0..size {
        if token >= start + back {
            let factor = f32::cast_from(weight[(channel * size + (size - 1 - back)) as usize]);
            sum += factor * f32::cast_from(x[((token - back) * channels + channel) as usize]);
        }
    }
    sum
}

#[cube(launch_unchecked)]
fn causal_conv_kernel<F: Float, W: Float>(
    x: &Array<F>,
    weight: &Array<W>,
    bounds: &Array<u32>,
    y: &mut Array<F>,
    count: u32,
    channels: u32,
    #[comptime] size: u32,
    #[comptime] silu: bool,
    #[define(F, W)] _dtypes: [StorageType; 2],
) {
    if ABSOLUTE_POS >= count as usize {
        terminate!();
    }
    let at = ABSOLUTE_POS as u32;
    let (token, channel) = (at / channels, at % channels);
    let mut value = sum_at::<F, W>(x, weight, bounds[(2 * token) as usize], token, channel, channels, size);
    if comptime!(silu) {
        value /= 1.0f32 + (-value).exp();
    }
    y[ABSOLUTE_POS] = F::cast_from(value);
}

#[cube(launch_unchecked)]
fn causal_conv_backward_kernel<F: Float, W: Float>(
    x: &Array<F>,
    weight: &Array<W>,
    dy: &Array<F>,
    bounds: &Array<u32>,
    dx: &mut Array<F>,
    count: u32,
    channels: u32,
    #[comptime] size: u32,
    #[comptime] silu: bool,
    #[define(F, W)] _dtypes: [StorageType; 2],
) {
    if ABSOLUTE_POS >= count as usize {
        terminate!();
    }
    let at = ABSOLUTE_POS as u32;
    let (own, channel) = (at / channels, at % channels);
    let (start, end) = (bounds[(2 * own) as usize], bounds[(2 * own + 1) as usize]);
    let mut sum = 0.0f32;
    #[unroll]
    for ahead in 0..size {
        let token = own + ahead;
        if token < end {
            let mut du = f32::cast_from(dy[(token * channels + channel) as usize]);
            if comptime!(silu) {
                let u = sum_at::<F, W>(x, weight, start, token, channel, channels, size);
                let s = 1.0f32 / (1.0f32 + (-u).exp());
                du *= s * (1.0f32 + u * (1.0f32 - s));
            }
            sum += f32::cast_from(weight[(channel * size + (size - 1 - ahead)) as usize]) * du;
        }
    }
    dx[ABSOLUTE_POS] = F::cast_from(sum);
}
