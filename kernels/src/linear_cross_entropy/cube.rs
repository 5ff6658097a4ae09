//! Head and loss on a GPU, a chunk of supervised rows at a time.
//!
//! A chunk's logits are one product, in f32; one cube for each row turns them into the slopes of the logits in the
//! compute dtype, which take the logits' place; a second product makes the gradient of the hidden states of them. At most
//! [`CHUNK_BYTES`] of logits exist at once.
//!
//! With `m` the largest logit, `A = Σ exp(z[j] − m)` over all but the target and `e = exp(z[t] − m)`, the target's slope
//! is `−A / (A + e)` and the loss `m − z[t] + ln(A + e)`, or `ln(1 + A)` where the target is the largest: exact where
//! the model is certain.

use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_tensor::{DType, Shape, Tensor};
use cubecl::prelude::*;

use super::{HiddenGradient, Logits, LossAndGradient, LossOps, OutputHead, Supervised};
use crate::cube::product::{Finish, Operand, Rows, product};
use crate::cube::reduce::{cube_max, cube_sum};
use crate::cube::special::tanh;
use crate::cube::tensor::{array, array_of, cubes, dims, empty, float, into_float, units, vector_size, wrap};
use crate::linear::cube::dense;

/// Bytes of logits held at once, unless that is fewer than [`FEWEST_ROWS`] rows: 512 rows of the vocabularies that models
/// of some 8 billion weights have, for with fewer the head is read from memory rather than multiplied.
const CHUNK_BYTES: usize = 300 << 20;
/// With fewer rows the head would be read too often.
const FEWEST_ROWS: usize = 128;
/// Rows of a tile of the products: a chunk of a multiple computes no row in vain.
const TILE_ROWS: usize = 128;
/// Units that share a row.
const UNITS: u32 = 256;
/// Words of slopes that a unit makes before they take the place of logits.
const HELD: u32 = 4;

impl<R, F, I, T> LossOps for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn linear_cross_entropy(
        hidden: &Tensor<Self, 2>,
        head: &OutputHead<Self>,
        supervised: &[Supervised],
        gradient: HiddenGradient<'_, Self>,
    ) -> LossAndGradient<Self> {
        let device = hidden.device();
        let weights = match gradient {
            HiddenGradient::Weighted(weights) => Some(float(weights)),
            HiddenGradient::None | HiddenGradient::OfSum => None,
        };
        let gradient = (!matches!(gradient, HiddenGradient::None))
            .then(|| into_float(Tensor::<Self, 2>::zeros(hidden.dims(), (&device, hidden.dtype()))));
        if supervised.is_empty() {
            let zeros = |count: usize| Tensor::zeros([count], (&device, DType::F32));
            return LossAndGradient { loss: zeros(1), rows: zeros(0), gradient: gradient.map(wrap) };
        }
        let hidden = float(hidden);
        let dtype = hidden.dtype;
        let vocabulary = head.weight.shape()[0];
        let rows = chunk_rows(supervised.len(), vocabulary);
        let (rule, bias) = (head.logits, head.bias.clone());
        let bias = bias.map(|bias| into_float(bias.cast(DType::F32)));
        let head = dense(&head.weight, dtype);
        let losses = empty(&hidden, &[supervised.len()], DType::F32);
        // Sent once for all chunks.
        let numbers = supervised.iter().flat_map(|at| [at.row as u32, at.target as u32]);
        let list = hidden.client.create_from_slice(bytemuck::cast_slice(&numbers.collect::<Vec<_>>()));
        for first in (0..supervised.len()).step_by(rows) {
            let chunk = Chunk { list: &list, all: supervised.len(), first };
            let gathered = Rows::all(gather(&hidden, &chunk, rows.min(supervised.len() - first)));
            let rhs = Operand::transposed(&head);
            let logits = product(&hidden, Operand::dense(&gathered), rhs, Finish::default(), DType::F32);
            let rows = ChunkRows {
                bias: bias.as_ref(),
                rule,
                chunk: &chunk,
                losses: &losses,
                weights: weights.as_ref(),
            };
            let slopes = slopes(logits, &rows, gradient.is_some().then_some(dtype));
            if let (Some(gradient), Some(slopes)) = (&gradient, slopes) {
                let rhs = Operand::dense(&head);
                let part = product(&hidden, Operand::dense(&slopes), rhs, Finish::default(), dtype);
                scatter(&part, &chunk, gradient);
            }
        }
        LossAndGradient { loss: wrap(sum(&losses)), rows: wrap(losses), gradient: gradient.map(wrap) }
    }
}

/// Rows of the chunks that `supervised` rows are cut into, but for the last one: whole tiles of the products.
pub(crate) fn chunk_rows(supervised: usize, vocabulary: usize) -> usize {
    let most = (CHUNK_BYTES / (4 * vocabulary).max(1)).max(FEWEST_ROWS);
    let rows = supervised.div_ceil(supervised.div_ceil(most).max(1)).max(1);
    if rows == supervised { rows } else { rows.next_multiple_of(TILE_ROWS).min(most / TILE_ROWS * TILE_ROWS) }
}

/// Some of the supervised rows.
struct Chunk<'a> {
    /// Row and target of each of them all.
    list: &'a cubecl::server::Handle,
    all: usize,
    /// The chunk's first.
    first: usize,
}

impl Chunk<'_> {
    fn list<R: CubeRuntime>(&self) -> ArrayArg<R> {
        // SAFETY: the list was made of two numbers for each row.
        unsafe { ArrayArg::from_raw_parts(self.list.clone(), 2 * self.all) }
    }
}

/// The chunk's rows of `hidden`.
fn gather<R: CubeRuntime>(hidden: &CubeTensor<R>, chunk: &Chunk<'_>, rows: usize) -> CubeTensor<R> {
    let width = dims(hidden)[1];
    let gathered = empty(hidden, &[rows, width], hidden.dtype);
    move_rows(hidden, &gathered, chunk, [rows, width], true);
    gathered
}

/// Writes `part` to the chunk's rows of `whole`.
fn scatter<R: CubeRuntime>(part: &CubeTensor<R>, chunk: &Chunk<'_>, whole: &CubeTensor<R>) {
    let shape = dims(part);
    move_rows(part, whole, chunk, [shape[0], shape[1]], false);
}

fn move_rows<R: CubeRuntime>(
    source: &CubeTensor<R>,
    target: &CubeTensor<R>,
    chunk: &Chunk<'_>,
    [rows, width]: [usize; 2],
    gathers: bool,
) {
    let vector = vector_size(&source.client, source.dtype, &[width]);
    let (vectors, count) = (width / vector, rows * width / vector);
    let (cubes, dim) = units(count);
    // SAFETY: units beyond the rows do nothing; the list names rows of the larger tensor.
    unsafe {
        move_rows_kernel::launch_unchecked::<R>(
            &source.client,
            cubes,
            dim,
            vector,
            array_of(source, vector),
            chunk.list(),
            array_of(target, vector),
            count as u32,
            vectors as u32,
            chunk.first as u32,
            gathers,
            source.dtype.into(),
        );
    }
}

#[cube(launch_unchecked)]
fn move_rows_kernel<F: Float, N: Size>(
    source: &Array<Vector<F, N>>,
    list: &Array<u32>,
    target: &mut Array<Vector<F, N>>,
    count: u32,
    vectors: u32,
    first: u32,
    #[comptime] gathers: bool,
    #[define(F)] _dtype: StorageType,
) {
    if ABSOLUTE_POS < count as usize {
        let row = ABSOLUTE_POS as u32 / vectors;
        let within = (ABSOLUTE_POS as u32 % vectors) as usize;
        let far = list[(2 * (first + row)) as usize] as usize * vectors as usize + within;
        if comptime!(gathers) {
            target[ABSOLUTE_POS] = source[far];
        } else {
            target[far] = source[ABSOLUTE_POS];
        }
    }
}

/// What the rows of a chunk have beside their logits.
struct ChunkRows<'a, R: CubeRuntime> {
    /// f32 `[vocabulary]`.
    bias: Option<&'a CubeTensor<R>>,
    rule: Logits,
    chunk: &'a Chunk<'a>,
    /// Where the losses of all chunks go.
    losses: &'a CubeTensor<R>,
    /// What the slopes of all chunks are multiplied by.
    weights: Option<&'a CubeTensor<R>>,
}

/// The slopes of `logits` in `dtype`, if asked for, times the rows' weights, in the memory of the logits; the rows' losses
/// are written.
fn slopes<R: CubeRuntime>(
    logits: CubeTensor<R>,
    rows: &ChunkRows<'_, R>,
    dtype: Option<DType>,
) -> Option<Rows<R>> {
    let shape = dims(&logits);
    let slopes = dtype.map(|dtype| {
        // As many bytes a row as its logits take: the slopes are the first of them.
        let wide = Shape::from(vec![shape[0], shape[1] * (4 / dtype.size())]);
        let CubeTensor { client, handle, device, .. } = logits.clone();
        Rows::part(CubeTensor::new_contiguous(client, device, wide, handle, dtype), 0, shape[1])
    });
    // SAFETY: every unit stays in its row, and cubes beyond the rows do nothing; without weights or a bias their
    // places are taken by a tensor that is not read. Slopes are written where all units have read what stood there.
    unsafe {
        cross_entropy_kernel::launch_unchecked::<R>(
            &logits.client,
            cubes(shape[0] as u32),
            CubeDim::new_1d(UNITS),
            array(&logits),
            rows.chunk.list(),
            array(rows.weights.unwrap_or(rows.losses)),
            array(rows.bias.unwrap_or(rows.losses)),
            array(rows.losses),
            shape[0] as u32,
            shape[1] as u32,
            rows.chunk.first as u32,
            rows.rule.scale,
            rows.rule.soft_cap.unwrap_or(1.0),
            slopes.is_some(),
            rows.weights.is_some(),
            rows.bias.is_some(),
            rows.rule.scale != 1.0,
            rows.rule.soft_cap.is_some(),
            dtype.unwrap_or(DType::F32).into(),
        );
    }
    slopes
}

/// The logit of a product with row `token` of the head.
#[cube]
fn logit(
    product: f32,
    bias: &Array<f32>,
    token: u32,
    scale: f32,
    cap: f32,
    #[comptime] has_bias: bool,
    #[comptime] is_scaled: bool,
    #[comptime] is_capped: bool,
) -> f32 {
    let mut value = product;
    if comptime!(is_scaled) {
        value *= scale;
    }
    if comptime!(has_bias) {
        value += bias[token as usize];
    }
    if comptime!(is_capped) {
        value = cap * tanh(value / cap);
    }
    value
}

#[cube(launch_unchecked)]
fn cross_entropy_kernel<F: Float>(
    logits: &mut Array<f32>,
    list: &Array<u32>,
    weights: &Array<f32>,
    bias: &Array<f32>,
    losses: &mut Array<f32>,
    rows: u32,
    vocabulary: u32,
    first: u32,
    scale: f32,
    cap: f32,
    #[comptime] wants_slopes: bool,
    #[comptime] has_weights: bool,
    #[comptime] has_bias: bool,
    #[comptime] is_scaled: bool,
    #[comptime] is_capped: bool,
    #[define(F)] _dtype: StorageType,
) {
    if CUBE_POS >= rows as usize {
        terminate!();
    }
    let mut shared = SharedMemory::<f32>::new(256usize);
    let start = CUBE_POS * vocabulary as usize;
    let target = list[2 * (first as usize + CUBE_POS) + 1];

    let mut largest = f32::min_value();
    let mut token = UNIT_POS;
    while token < vocabulary {
        let product = logits[start + token as usize];
        let z = logit(product, bias, token, scale, cap, has_bias, is_scaled, is_capped);
        largest = max(largest, z);
        token += UNITS;
    }
    let largest = cube_max(largest, &mut shared, UNITS);

    let mut others = 0.0f32;
    let mut token = UNIT_POS;
    while token < vocabulary {
        if token != target {
            let product = logits[start + token as usize];
            let z = logit(product, bias, token, scale, cap, has_bias, is_scaled, is_capped);
            others += (z - largest).exp();
        }
        token += UNITS;
    }
    let others = cube_sum(others, &mut shared, UNITS);

    let product = logits[start + target as usize];
    let reached = logit(product, bias, target, scale, cap, has_bias, is_scaled, is_capped);
    let own = (reached - largest).exp();
    if UNIT_POS == 0 {
        let mut loss = (others + own).ln() + largest - reached;
        if reached == largest {
            loss = others.log1p();
        }
        losses[first as usize + CUBE_POS] = loss;
    }
    if comptime!(wants_slopes) {
        let mut factor = 1.0f32 / (others + own);
        if comptime!(has_weights) {
            factor *= weights[first as usize + CUBE_POS];
        }
        if comptime!(is_scaled) {
            factor *= scale;
        }
        // Slopes in words, as they take the place of logits: in 16 bits two to a word.
        let size = F::type_size().comptime();
        let lanes = comptime!(4 / size as u32);
        let size!(L) = comptime!(lanes as usize);
        let words = vocabulary.div_ceil(lanes);
        let mut held = Array::<f32>::new(comptime!(HELD as usize));
        for round in 0..words.div_ceil(UNITS * HELD) {
            let begin = round * (UNITS * HELD) + UNIT_POS;
            #[unroll]
            for step in 0..HELD {
                let first = (begin + step * UNITS) * lanes;
                let mut values = Vector::<F, L>::empty();
                #[unroll]
                for lane in 0..lanes {
                    let token = first + lane;
                    let mut slope = 0.0f32;
                    if token < vocabulary {
                        let product = logits[start + token as usize];
                        let z = logit(product, bias, token, scale, cap, has_bias, is_scaled, is_capped);
                        slope = (z - largest).exp() * factor;
                        if token == target {
                            slope = -others * factor;
                        }
                        if comptime!(is_capped) {
                            let share = z / cap;
                            slope *= 1.0f32 - share * share;
                        }
                    }
                    values[lane as usize] = F::cast_from(slope);
                }
                if comptime!(lanes == 1) {
                    held[step as usize] = f32::cast_from(values[0]);
                } else {
                    held[step as usize] = f32::reinterpret(values);
                }
            }
            // The logits in whose place they go are of this round or of one before.
            sync_cube();
            #[unroll]
            for step in 0..HELD {
                let word = begin + step * UNITS;
                if word < words {
                    logits[start + word as usize] = held[step as usize];
                }
            }
        }
    }
}

/// Σ of all elements, f32 `[1]`.
fn sum<R: CubeRuntime>(values: &CubeTensor<R>) -> CubeTensor<R> {
    let total = empty(values, &[1], DType::F32);
    // SAFETY: one cube, which reads the elements there are.
    unsafe {
        sum_kernel::launch_unchecked::<R>(
            &values.client,
            CubeCount::Static(1, 1, 1),
            CubeDim::new_1d(UNITS),
            array(values),
            array(&total),
            dims(values)[0] as u32,
        );
    }
    total
}

#[cube(launch_unchecked)]
fn sum_kernel(values: &Array<f32>, total: &mut Array<f32>, count: u32) {
    let mut shared = SharedMemory::<f32>::new(256usize);
    let mut sum = 0.0f32;
    let mut at = UNIT_POS;
    while at < count {
        sum += values[at as usize];
        at += UNITS;
    }
    let sum = cube_sum(sum, &mut shared, UNITS);
    if UNIT_POS == 0 {
        total[0] = sum;
    }
}
