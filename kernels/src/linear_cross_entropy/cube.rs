//! Head and loss on a GPU, a chunk of supervised rows at a time.
//!
//! A chunk's logits are one product, in f32; one cube for each row turns them into the slopes of the logits in the
//! compute dtype; a second product makes the gradient of the hidden states of them. At most [`CHUNK_BYTES`] of logits
//! and slopes exist at once.
//!
//! With `m` the largest logit, `A = Σ exp(z[j] − m)` over all but the target and `e = exp(z[t] − m)`, the target's slope
//! is `−A / (A + e)` and the loss `m − z[t] + ln(A + e)`, or `ln(1 + A)` where the target is the largest: exact where
//! the model is certain.

use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_tensor::{DType, Tensor};
use cubecl::prelude::*;

use super::{HiddenGradient, Logits, LossAndGradient, LossOps, OutputHead, Supervised};
use crate::cube::product::{Finish, Operand, Rows, product};
use crate::cube::reduce::{cube_max, cube_sum};
use crate::cube::special::tanh;
use crate::cube::tensor::{array, cubes, dims, empty, float, into_float, units, wrap};
use crate::linear::cube::dense;

/// Bytes of logits and their slopes held at once, unless that is fewer than [`FEWEST_ROWS`] rows.
const CHUNK_BYTES: usize = 256 << 20;
/// With fewer rows the head would be read too often.
const FEWEST_ROWS: usize = 64;
/// Units that share a row.
const UNITS: u32 = 256;

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
        let rows = chunk_rows(supervised.len(), vocabulary, dtype.size());
        let (rule, bias) = (head.logits, head.bias.clone());
        let bias = bias.map(|bias| into_float(bias.cast(DType::F32)));
        let head = dense(&head.weight, dtype);
        let losses = empty(&hidden, &[supervised.len()], DType::F32);
        for (index, chunk) in supervised.chunks(rows).enumerate() {
            let numbers = |of: fn(&Supervised) -> usize| {
                let numbers: Vec<u32> = chunk.iter().map(|at| of(at) as u32).collect();
                hidden.client.create_from_slice(bytemuck::cast_slice(&numbers))
            };
            let (at, targets) = (numbers(|at| at.row), numbers(|at| at.target));
            let gathered = Rows::all(gather(&hidden, &at, chunk.len()));
            let rhs = Operand::transposed(&head);
            let logits = product(&hidden, Operand::dense(&gathered), rhs, Finish::default(), DType::F32);
            let rows = ChunkRows {
                bias: bias.as_ref(),
                rule,
                targets: &targets,
                losses: &losses,
                weights: weights.as_ref(),
                first: index * rows,
            };
            let slopes = slopes(&logits, &rows, gradient.is_some().then_some(dtype));
            if let (Some(gradient), Some(slopes)) = (&gradient, slopes) {
                let slopes = Rows::all(slopes);
                let rhs = Operand::dense(&head);
                let part = product(&hidden, Operand::dense(&slopes), rhs, Finish::default(), dtype);
                scatter(&part, &at, gradient);
            }
        }
        LossAndGradient { loss: wrap(sum(&losses)), rows: wrap(losses), gradient: gradient.map(wrap) }
    }
}

/// Rows of the chunks that `supervised` rows are cut into.
pub(crate) fn chunk_rows(supervised: usize, vocabulary: usize, size: usize) -> usize {
    let most = (CHUNK_BYTES / (vocabulary * (4 + size)).max(1)).max(FEWEST_ROWS);
    supervised.div_ceil(supervised.div_ceil(most).max(1)).max(1)
}

/// The rows of `hidden` that `at` names.
fn gather<R: CubeRuntime>(hidden: &CubeTensor<R>, at: &cubecl::server::Handle, rows: usize) -> CubeTensor<R> {
    let width = dims(hidden)[1];
    let gathered = empty(hidden, &[rows, width], hidden.dtype);
    move_rows(hidden, &gathered, at, [rows, width], true);
    gathered
}

/// Writes `part` to the rows of `whole` that `at` names.
fn scatter<R: CubeRuntime>(part: &CubeTensor<R>, at: &cubecl::server::Handle, whole: &CubeTensor<R>) {
    let shape = dims(part);
    move_rows(part, whole, at, [shape[0], shape[1]], false);
}

fn move_rows<R: CubeRuntime>(
    source: &CubeTensor<R>,
    target: &CubeTensor<R>,
    at: &cubecl::server::Handle,
    [rows, width]: [usize; 2],
    gathers: bool,
) {
    let (cubes, dim) = units(rows * width);
    // SAFETY: units beyond the rows do nothing; `at` holds one row of the larger tensor for each of them.
    unsafe {
        move_rows_kernel::launch_unchecked::<R>(
            &source.client,
            cubes,
            dim,
            array(source),
            ArrayArg::from_raw_parts(at.clone(), rows),
            array(target),
            (rows * width) as u32,
            width as u32,
            gathers,
            source.dtype.into(),
        );
    }
}

#[cube(launch_unchecked)]
fn move_rows_kernel<F: Float>(
    source: &Array<F>,
    at: &Array<u32>,
    target: &mut Array<F>,
    count: u32,
    width: u32,
    #[comptime] gathers: bool,
    #[define(F)] _dtype: StorageType,
) {
    if ABSOLUTE_POS < count as usize {
        let row = ABSOLUTE_POS as u32 / width;
        let far = at[row as usize] as usize * width as usize + (ABSOLUTE_POS as u32 % width) as usize;
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
    targets: &'a cubecl::server::Handle,
    /// Where the losses of all chunks go.
    losses: &'a CubeTensor<R>,
    /// What the slopes of all chunks are multiplied by.
    weights: Option<&'a CubeTensor<R>>,
    /// The chunk's first row among those of all chunks.
    first: usize,
}

/// The slopes of `logits` in `dtype`, if asked for, times the rows' weights; the rows' losses are written.
fn slopes<R: CubeRuntime>(
    logits: &CubeTensor<R>,
    rows: &ChunkRows<'_, R>,
    dtype: Option<DType>,
) -> Option<CubeTensor<R>> {
    let shape = dims(logits);
    let slopes = dtype.map(|dtype| empty(logits, &shape, dtype));
    let target = slopes.as_ref().unwrap_or(rows.losses);
    // SAFETY: every unit stays in its row, and cubes beyond the rows do nothing; without weights or a bias their
    // places are taken by a tensor that is not read.
    unsafe {
        cross_entropy_kernel::launch_unchecked::<R>(
            &logits.client,
            cubes(shape[0] as u32),
            CubeDim::new_1d(UNITS),
            array(logits),
            ArrayArg::from_raw_parts(rows.targets.clone(), shape[0]),
            array(rows.weights.unwrap_or(logits)),
            array(rows.bias.unwrap_or(logits)),
            array(rows.losses),
            array(target),
            shape[0] as u32,
            shape[1] as u32,
            rows.first as u32,
            rows.rule.scale,
            rows.rule.soft_cap.unwrap_or(1.0),
            slopes.is_some(),
            rows.weights.is_some(),
            rows.bias.is_some(),
            rows.rule.scale != 1.0,
            rows.rule.soft_cap.is_some(),
            target.dtype.into(),
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
    logits: &Array<f32>,
    targets: &Array<u32>,
    weights: &Array<f32>,
    bias: &Array<f32>,
    losses: &mut Array<f32>,
    slopes: &mut Array<F>,
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
    let target = targets[CUBE_POS];

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
        let mut token = UNIT_POS;
        while token < vocabulary {
            let at = start + token as usize;
            let z = logit(logits[at], bias, token, scale, cap, has_bias, is_scaled, is_capped);
            let mut slope = (z - largest).exp() * factor;
            if token == target {
                slope = -others * factor;
            }
            if comptime!(is_capped) {
                let share = z / cap;
                slope *= 1.0f32 - share * share;
            }
            slopes[at] = F::cast_from(slope);
            token += UNITS;
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
