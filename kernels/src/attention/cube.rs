//! Attention on a GPU: FlashAttention-2 without a matrix of scores.
//!
//! A cube owns a block of rows of one head and walks over the tiles of columns that a row of it meets (`schedule`): the
//! forward and dq own queries, dk and dv own keys and sum over the query heads that share them. No two cubes write to the
//! same place, so nothing is atomic, and bits depend on shapes alone. Two ways through one interface: fragments of
//! tensor cores (`tensor_cores`) for f16 and bf16 where the device has them and the head dimension is a multiple of 8
//! up to 256, and the units' own arithmetic (`simt`) for all else.
//!
//! # The floor
//! For n visible pairs of query and key a head takes 4·n·head_dim operations in the forward (two products) and
//! 10·n·head_dim in the backward (five); for one causal document of t tokens n = t²/2. Bytes are q, k, v and y once each
//! (in the backward eight such tensors), so beyond some hundred tokens it is operations that count. What this tiling
//! costs on top:
//!
//! - Diagonal tiles are half empty: with 64 rows a document of t tokens visits 1 + 64/t times the pairs, so a perfect
//!   kernel reaches t / (t + 64) of the floor (97 % at 2048, 80 % at 256); a document shorter than its block idles the rest.
//! - The backward recomputes the scores and dp for dq and again for dk and dv, for the want of atomics: seven products
//!   instead of five, 71 %. Above 128 dimensions dk and dv are two launches, as their sums fill the registers: eight
//!   products, 62 %.
//! - On tensor cores each fragment of columns is read from shared memory once for each 16 rows: a tile of 16 × 32 at 128
//!   dimensions reads 34 fragments of 512 bytes and moves 5 KiB of scores and weights for 262144 operations, 12 per byte.
//!   At 128 bytes a clock that is 1500 operations a clock: 73 % of an A100's 2048, all of the 1024 that a consumer Ada or
//!   Ampere card does at f32 sums; Hopper's 4096 need instructions that CubeCL does not have.
//! - Without them, each four fused multiply-adds of a unit read one half of a 16-byte word of shared memory: 2 such words
//!   for 16 of them. That bounds it at about half of the arithmetic peak.

mod rows;
mod schedule;
mod simt;
mod tensor_cores;
mod tensor_cores_backward;
mod tensor_cores_forward;

use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_tensor::{DType, Tensor};
use cubecl::prelude::*;

use super::{AttentionBackward, AttentionOps, AttentionOptions};
use crate::cube::tensor::{array, cubes, dims, elements, empty, empty_like, float, wrap};
use schedule::{Schedule, Side, window};
use tensor_cores::{Tile, tile};

impl<R, F, I, T> AttentionOps for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn document_attention(
        q: &Tensor<Self, 3>,
        k: &Tensor<Self, 3>,
        v: &Tensor<Self, 3>,
        options: &AttentionOptions,
    ) -> (Tensor<Self, 3>, Tensor<Self, 2>) {
        let (output, log_sum_exp) = forward(&float(q), &float(k), &float(v), options);
        (wrap(output), wrap(log_sum_exp))
    }

    fn document_attention_backward(request: AttentionBackward<'_, Self>) -> [Tensor<Self, 3>; 3] {
        let AttentionBackward { q, k, v, output, log_sum_exp, options, dy } = request;
        let saved = Saved {
            q: float(q),
            k: float(k),
            v: float(v),
            output: float(output),
            log_sum_exp: float(log_sum_exp),
            dy: float(dy),
        };
        backward(&saved, options).map(wrap)
    }
}

/// What the forward left, and the upstream gradient.
struct Saved<R: CubeRuntime> {
    q: CubeTensor<R>,
    k: CubeTensor<R>,
    v: CubeTensor<R>,
    output: CubeTensor<R>,
    log_sum_exp: CubeTensor<R>,
    dy: CubeTensor<R>,
}

fn forward<R: CubeRuntime>(
    q: &CubeTensor<R>,
    k: &CubeTensor<R>,
    v: &CubeTensor<R>,
    options: &AttentionOptions,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let [tokens, heads, head_dim] = shape(q);
    let kv_heads = shape(k)[1];
    let y = empty_like(q);
    let log_sum_exp = empty(q, &[heads, tokens], DType::F32);
    if elements(q) == 0 {
        return (y, log_sum_exp);
    }
    let tile = tile(&q.client, q.dtype, head_dim, Tile::forward_rows);
    let schedule = Schedule::new(q, options, Side::Queries, block_rows(tile));
    let grid = cubes(schedule.blocks() * heads as u32);
    // SAFETY: the schedule names rows of the tensors, and units read and write only rows that it names; a head of so many
    // dimensions is made of whole vectors.
    unsafe {
        if let Some(tile) = tile {
            tensor_cores_forward::attention_kernel::launch_unchecked::<R>(
                &q.client,
                grid,
                CubeDim::new_2d(tile.lanes, tile.planes),
                tile.vector as usize,
                vectors(q, tile),
                vectors(k, tile),
                vectors(v, tile),
                schedule.array(),
                array(&y),
                array(&log_sum_exp),
                schedule.blocks(),
                tokens as u32,
                heads as u32,
                kv_heads as u32,
                window(options),
                options.scaling,
                cap(options),
                options.soft_cap.is_some(),
                tile,
                q.dtype.into(),
            );
        } else {
            simt::attention_kernel::launch_unchecked::<R>(
                &q.client,
                grid,
                CubeDim::new_1d(simt::UNITS),
                array(q),
                array(k),
                array(v),
                schedule.array(),
                array(&y),
                array(&log_sum_exp),
                schedule.blocks(),
                tokens as u32,
                heads as u32,
                kv_heads as u32,
                window(options),
                options.scaling,
                cap(options),
                options.soft_cap.is_some(),
                head_dim as u32,
                q.dtype.into(),
            );
        }
    }
    (y, log_sum_exp)
}

fn backward<R: CubeRuntime>(saved: &Saved<R>, options: &AttentionOptions) -> [CubeTensor<R>; 3] {
    let Saved { q, k, v, output, log_sum_exp, dy } = saved;
    let gradients = [empty_like(q), empty_like(k), empty_like(v)];
    let [dq, dk, dv] = &gradients;
    let delta = rows::delta(output, dy);
    let pass = |rows, columns, side, gradients, wants| {
        let statistics = [log_sum_exp, &delta];
        Pass { rows, columns, statistics, side, gradients, wants }.launch(options);
    };
    pass([q, dy], [k, v], Side::Queries, [dq, dq], [true, false]);
    if shape(q)[2] <= 128 {
        pass([k, v], [q, dy], Side::Keys, [dk, dv], [true, true]);
    } else {
        // The sums of both do not fit into registers.
        pass([k, v], [q, dy], Side::Keys, [dk, dv], [true, false]);
        pass([k, v], [q, dy], Side::Keys, [dk, dv], [false, true]);
    }
    gradients
}

/// One launch of a backward kernel; see [`simt::attention_backward_kernel`].
struct Pass<'a, R: CubeRuntime> {
    rows: [&'a CubeTensor<R>; 2],
    columns: [&'a CubeTensor<R>; 2],
    /// ln Σ exp, and δ.
    statistics: [&'a CubeTensor<R>; 2],
    side: Side,
    gradients: [&'a CubeTensor<R>; 2],
    wants: [bool; 2],
}

impl<R: CubeRuntime> Pass<'_, R> {
    fn launch(&self, options: &AttentionOptions) {
        let Self { rows: [x1, x2], columns: [y1, y2], statistics, side, gradients: [d1, d2], wants } = *self;
        let [_, row_heads, head_dim] = shape(x1);
        let column_heads = shape(y1)[1];
        if elements(x1) == 0 {
            return;
        }
        let tile =
            tile(&x1.client, x1.dtype, head_dim, |tile| tensor_cores_backward::staged_rows(tile, wants[0]));
        let schedule = Schedule::new(x1, options, side, block_rows(tile));
        let grid = cubes(schedule.blocks() * row_heads as u32);
        let tokens = options.documents.queries() as u32;
        // SAFETY: as in the forward; a gradient that is not wanted is not written.
        unsafe {
            if let Some(tile) = tile {
                tensor_cores_backward::attention_backward_kernel::launch_unchecked::<R>(
                    &x1.client,
                    grid,
                    CubeDim::new_2d(tile.lanes, tile.planes),
                    tile.vector as usize,
                    vectors(x1, tile),
                    vectors(x2, tile),
                    vectors(y1, tile),
                    vectors(y2, tile),
                    array(statistics[0]),
                    array(statistics[1]),
                    schedule.array(),
                    array(d1),
                    array(d2),
                    schedule.blocks(),
                    tokens,
                    row_heads as u32,
                    column_heads as u32,
                    window(options),
                    options.scaling,
                    cap(options),
                    options.soft_cap.is_some(),
                    side,
                    wants,
                    tile,
                    x1.dtype.into(),
                );
            } else {
                simt::attention_backward_kernel::launch_unchecked::<R>(
                    &x1.client,
                    grid,
                    CubeDim::new_1d(simt::UNITS),
                    array(x1),
                    array(x2),
                    array(y1),
                    array(y2),
                    array(statistics[0]),
                    array(statistics[1]),
                    schedule.array(),
                    array(d1),
                    array(d2),
                    schedule.blocks(),
                    tokens,
                    row_heads as u32,
                    column_heads as u32,
                    window(options),
                    options.scaling,
                    cap(options),
                    options.soft_cap.is_some(),
                    side,
                    wants,
                    head_dim as u32,
                    x1.dtype.into(),
                );
            }
        }
    }
}

/// The cap as kernels take it; without one it is not read.
fn cap(options: &AttentionOptions) -> f32 {
    options.soft_cap.unwrap_or(1.0)
}

/// Rows of a cube.
fn block_rows(tile: Option<Tile>) -> usize {
    tile.map_or(simt::TILE, |tile| tile.rows()) as usize
}

/// A tensor as an argument that is read by vectors.
fn vectors<R: CubeRuntime>(x: &CubeTensor<R>, tile: Tile) -> ArrayArg<R> {
    // SAFETY: the tensor is contiguous and made of whole vectors.
    unsafe { ArrayArg::from_raw_parts(x.handle.clone(), elements(x) / tile.vector as usize) }
}

fn shape<R: CubeRuntime>(x: &CubeTensor<R>) -> [usize; 3] {
    let dims = dims(x);
    [dims[0], dims[1], dims[2]]
}
