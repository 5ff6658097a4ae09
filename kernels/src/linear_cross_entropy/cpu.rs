//! Head and loss on the CPU, a chunk of supervised rows at a time.
//!
//! The tiles of `hidden · headᵀ` turn into exponentials while they are in a register tile's memory, and are packed at
//! once as the left operand of the gradient's product: neither logits nor probabilities exist as a matrix in f32.
//!
//! The exponentials of row i are taken relative to its target's logit, `e[j] = exp(z[j] − z[t])`, so the loss is
//! `ln(1 + S)` with `S` the sum over all others, and the gradient `(Σ e[j] head[j] − S head[t]) / (1 + S)`: exact where
//! the model is certain, and known without a second pass. Where a logit exceeds the target's by so much that this
//! could overflow, the chunk is done again relative to the largest.

use std::sync::atomic::{AtomicU32, Ordering};

use burn_flex::Flex;
use burn_tensor::Tensor;

use super::{HiddenGradient, LossAndGradient, LossOps, OutputHead, Supervised};
use crate::cpu::disjoint::Disjoint;
use crate::cpu::matmul::{Kernels, PackedRows, Product, RowSource, Side, Term, Tile, multiply};
use crate::cpu::pool::{self, Buffer};
use crate::cpu::scalar::{Scalar, narrow, widen, with_float};
use crate::cpu::{math, parallel, tensor, vectorized};
use crate::linear::operands::WeightTensors;

/// Exponentials held at once, unless that is fewer than [`FEWEST_ROWS`] rows.
const CHUNK_BYTES: usize = 96 << 20;
/// With fewer rows the head would be unpacked too often.
const FEWEST_ROWS: usize = 64;
/// A logit may exceed the reference by this much: e⁶⁰ times any vocabulary is far from overflow.
const HEADROOM: f32 = 60.0;

/// Rows of the chunks that `supervised` rows are cut into.
pub(super) fn chunk_rows(supervised: usize, vocabulary: usize, bytes_per_logit: usize) -> usize {
    let most = (CHUNK_BYTES / (vocabulary * bytes_per_logit).max(1)).max(FEWEST_ROWS);
    supervised.div_ceil(supervised.div_ceil(most).max(1)).max(1)
}

impl LossOps for Flex {
    fn linear_cross_entropy(
        hidden: &Tensor<Flex, 2>,
        head: &OutputHead<Flex>,
        supervised: &[Supervised],
        gradient: HiddenGradient<'_, Flex>,
    ) -> LossAndGradient<Flex> {
        let [tokens, width] = hidden.dims();
        let [vocabulary, _] = head.weight.shape();
        let hidden = tensor::primitive(hidden.clone());
        let bias = head.bias.clone().map(tensor::primitive);
        let bias = bias.as_ref().map(tensor::floats);
        let rule = Rule { bias: bias.as_deref(), scale: head.logits.scale, soft_cap: head.logits.soft_cap };
        let head = WeightTensors::new(&head.weight);
        let weights = match gradient {
            HiddenGradient::Weighted(weights) => Some(tensor::primitive(weights.clone())),
            HiddenGradient::None | HiddenGradient::OfSum => None,
        };
        let mut weights = weights.as_ref().map(|weights| weights.storage::<f32>());
        with_float!(hidden.dtype(), T => {
            let hidden = hidden.storage::<T>();
            let wanted = !matches!(gradient, HiddenGradient::None);
            let mut gradient = wanted.then(|| pool::zeros::<T>(tokens * width));
            let bytes = 4 / Kernels::of::<T>().element().indices();
            let chunk_rows = chunk_rows(supervised.len(), vocabulary, bytes);
            let (mut loss, mut rows) = (0.0, Vec::with_capacity(supervised.len()));
            for supervised in supervised.chunks(chunk_rows) {
                let weights = weights.as_mut().map(|weights| take(weights, supervised.len()));
                let chunk = Chunk::<T>::new(hidden, &head, rule, supervised, weights, [width, vocabulary]);
                let losses = chunk.run(&head, gradient.as_deref_mut());
                loss += losses.iter().sum::<f64>();
                rows.extend(losses.iter().map(|loss| *loss as f32));
            }
            LossAndGradient {
                loss: tensor::from_vec(vec![loss as f32], [1]),
                rows: tensor::from_vec(rows, [supervised.len()]),
                gradient: gradient.map(|gradient| tensor::from_buffer(gradient, [tokens, width])),
            }
        })
    }
}

/// The first `count` values, which are left behind.
fn take<'a>(values: &mut &'a [f32], count: usize) -> &'a [f32] {
    let (taken, rest) = values.split_at(count);
    *values = rest;
    taken
}

/// What is made of products.
#[derive(Clone, Copy)]
struct Rule<'a> {
    bias: Option<&'a [f32]>,
    scale: f32,
    soft_cap: Option<f32>,
}

impl Rule<'_> {
    /// Whether the logits are the products.
    fn is_plain(&self) -> bool {
        self.bias.is_none() && self.scale == 1.0 && self.soft_cap.is_none()
    }

    /// One logit.
    fn logit(&self, product: f32, token: usize) -> f32 {
        let value = product * self.scale + self.bias.map_or(0.0, |bias| bias[token]);
        self.soft_cap.map_or(value, |cap| cap * math::tanh(value / cap))
    }

    /// The slope of a logit in what was capped.
    fn slope(&self, logit: f32) -> f64 {
        self.soft_cap.map_or(1.0, |cap| 1.0 - f64::from(logit / cap).powi(2))
    }
}

/// Some supervised rows, and what is known of them before the products.
struct Chunk<'a, T: Scalar> {
    rule: Rule<'a>,
    /// (row of the batch, target).
    supervised: &'a [Supervised],
    /// What each row's gradient is multiplied by; `None`: by nothing.
    weights: Option<&'a [f32]>,
    width: usize,
    vocabulary: usize,
    /// The rows' hidden states.
    hidden: PackedRows,
    /// The head's row of each target, f32 `[rows, width]`.
    target_rows: Buffer<f32>,
    /// The logit of each target.
    target_logits: Vec<f32>,
    dtype: std::marker::PhantomData<T>,
}

/// Sums over the vocabulary but for the target, relative to a reference logit.
struct Sums {
    /// The reference of each row.
    references: Vec<f32>,
    /// Σ exp(z − reference) over all but the target.
    others: Vec<f64>,
}

impl<'a, T: Scalar> Chunk<'a, T> {
    fn new(
        hidden: &[T],
        head: &WeightTensors<'_>,
        rule: Rule<'a>,
        supervised: &'a [Supervised],
        weights: Option<&'a [f32]>,
        [width, vocabulary]: [usize; 2],
    ) -> Self {
        let rows = supervised.len();
        let mut gathered = pool::take::<T>(rows * width);
        let mut target_rows = pool::take::<f32>(rows * width);
        let mut target_logits = vec![0.0f32; rows];
        let outs = gathered.chunks_mut(width.max(1)).zip(target_rows.chunks_mut(width.max(1)));
        let tasks = outs.zip(&mut target_logits).zip(supervised).collect();
        parallel::for_each(tasks, 4 * rows * width, |(((gathered, weights), logit), at)| {
            gathered.copy_from_slice(&hidden[at.row * width..][..width]);
            head.row::<T>(at.target, weights);
            let mut wide = pool::take::<f32>(width);
            widen(gathered, &mut wide);
            *logit = rule.logit(dot(&wide, weights), at.target);
        });
        let source = RowSource::RowMajor { values: &gathered, stride: width };
        let hidden = PackedRows::pack::<T, T>(rows, width, source);
        Self {
            rule,
            supervised,
            weights,
            width,
            vocabulary,
            hidden,
            target_rows,
            target_logits,
            dtype: Default::default(),
        }
    }

    /// The loss of each row; the gradient is written to the rows of `gradient`.
    fn run(&self, head: &WeightTensors<'_>, gradient: Option<&mut [T]>) -> Vec<f64> {
        let rows = self.supervised.len();
        let mut exponentials = gradient.as_ref().map(|_| PackedRows::reserve::<T>(rows, self.vocabulary));
        let sums = self.exponentials(head, exponentials.as_mut());
        if let (Some(gradient), Some(exponentials)) = (gradient, &exponentials) {
            self.gradient(head, &sums, exponentials, gradient);
        }
        let loss = |row: usize| {
            let (reference, target) = (f64::from(sums.references[row]), f64::from(self.target_logits[row]));
            if reference == target {
                sums.others[row].ln_1p()
            } else {
                (sums.others[row] + (target - reference).exp()).ln() + reference - target
            }
        };
        (0..rows).map(loss).collect()
    }

    /// Exponentials of all logits but the targets', packed into `out`, and their sums.
    fn exponentials(&self, head: &WeightTensors<'_>, mut out: Option<&mut PackedRows>) -> Sums {
        let rows = self.supervised.len();
        let panel = self.hidden.kernels().for_columns(self.vocabulary).columns;
        let panels = self.vocabulary.div_ceil(panel);
        let mut references = self.target_logits.clone();
        let mut parts = pool::take::<f32>(rows * panels);
        loop {
            // The largest logit of each row, above its reference, as the bits of a positive number: those compare
            // like the numbers.
            let excess: Vec<AtomicU32> = (0..rows).map(|_| AtomicU32::new(0)).collect();
            {
                let parts = Disjoint::new(&mut parts);
                let writer = out.as_deref_mut().map(PackedRows::writer);
                let finish = |mut tile: Tile<'_>| {
                    let columns = tile.columns.clone();
                    for (row, values) in tile.iter_mut() {
                        let target = self.supervised[row].target;
                        let target = columns.contains(&target).then(|| target - columns.start);
                        let target = target.unwrap_or(usize::MAX);
                        let (sum, most) = match self.rule.is_plain() {
                            true => exponentiate(values, references[row], target),
                            false => {
                                let bias = self.rule.bias.map_or(&[][..], |bias| &bias[columns.clone()]);
                                let rule = (bias, self.rule.scale, self.rule.soft_cap);
                                ruled_exponentiate(values, rule, references[row], target)
                            }
                        };
                        if most > 0.0 {
                            excess[row].fetch_max(most.to_bits(), Ordering::Relaxed);
                        }
                        // SAFETY: one number for each row and panel.
                        let part = unsafe { parts.slice(row * panels + columns.start / panel, 1) };
                        part[0] = sum;
                    }
                    if let Some(writer) = &writer {
                        // SAFETY: the tiles of a product do not overlap.
                        unsafe { writer.put(&mut tile) };
                    }
                };
                let terms = [Term { rows: &self.hidden, columns: head.columns(Side::Transposed) }];
                multiply::<T>(&[Product { terms: &terms, finish: &finish, place: None }]);
            }
            let mut again = false;
            for (reference, excess) in references.iter_mut().zip(excess) {
                let excess = f32::from_bits(excess.into_inner());
                if excess > HEADROOM && excess.is_finite() {
                    *reference += excess;
                    again = true;
                }
            }
            if !again {
                break;
            }
        }
        let sum = |parts: &[f32]| parts.iter().map(|part| f64::from(*part)).sum();
        Sums { references, others: parts.chunks_exact(panels).map(sum).collect() }
    }

    /// Writes `weight · (Σ e[j] head[j] − S head[t]) / (e[t] + S)` to the rows' places in `gradient`.
    fn gradient(&self, head: &WeightTensors<'_>, sums: &Sums, exponentials: &PackedRows, gradient: &mut [T]) {
        let factors: Vec<(f32, f32)> = (0..self.supervised.len())
            .map(|row| {
                let reference = f64::from(sums.references[row]);
                let at_target = (f64::from(self.target_logits[row]) - reference).exp();
                let whole = at_target + sums.others[row];
                let weight = self.weights.map_or(1.0, |weights| f64::from(weights[row]));
                let weight = weight * f64::from(self.rule.scale);
                let bend = self.rule.slope(self.target_logits[row]);
                ((weight / whole) as f32, (-weight * bend * sums.others[row] / whole) as f32)
            })
            .collect();
        let out = Disjoint::new(gradient);
        let finish = |mut tile: Tile<'_>| {
            let columns = tile.columns.clone();
            for (row, values) in tile.iter_mut() {
                let (others, target) = factors[row];
                let weights = &self.target_rows[row * self.width..][columns.clone()];
                combine(values, others, weights, target);
                let start = self.supervised[row].row * self.width + columns.start;
                // SAFETY: tiles do not overlap, and no row of the batch is supervised twice.
                narrow(values, unsafe { out.slice(start, values.len()) });
            }
        };
        let terms = [Term { rows: exponentials, columns: head.columns(Side::Plain) }];
        multiply::<T>(&[Product { terms: &terms, finish: &finish, place: None }]);
    }
}

/// Turns logits into exp(z − reference), that of the target into 0. Returns the sum of the others, and by how much the
/// largest exceeds the reference.
fn exponentiate(values: &mut [f32], reference: f32, target: usize) -> (f32, f32) {
    #[cfg(target_arch = "x86_64")]
    if target >= values.len() && crate::cpu::fast::available() {
        // SAFETY: asked just before.
        return unsafe { crate::cpu::fast::exponentiate(values, 1.0, reference) };
    }
    plain_exponentiate(values, reference, target)
}

vectorized! {
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        math::dot(a, b)
    }

    fn plain_exponentiate(values: &mut [f32], reference: f32, target: usize) -> (f32, f32) {
        for value in values.iter_mut() {
            *value -= reference;
        }
        let most = math::max(values);
        for value in values.iter_mut() {
            *value = math::exp(*value);
        }
        if let Some(value) = values.get_mut(target) {
            *value = 0.0;
        }
        (math::sum(values), most)
    }

    /// [`plain_exponentiate`] of the logits that (bias or nothing, scale, cap) make of products; under a cap the exponentials
    /// come out times the slopes of their logits, and the sum is without them.
    fn ruled_exponentiate(
        values: &mut [f32],
        rule: (&[f32], f32, Option<f32>),
        reference: f32,
        target: usize,
    ) -> (f32, f32) {
        const PIECE: usize = 64;
        let (bias, scale, soft_cap) = rule;
        let (mut sum, mut most) = (0.0, f32::NEG_INFINITY);
        let mut bends = [1.0f32; PIECE];
        for (piece, values) in values.chunks_mut(PIECE).enumerate() {
            let start = piece * PIECE;
            for value in values.iter_mut() {
                *value *= scale;
            }
            for (value, bias) in values.iter_mut().zip(bias.get(start..).unwrap_or(&[])) {
                *value += bias;
            }
            if let Some(cap) = soft_cap {
                for (value, bend) in values.iter_mut().zip(&mut bends) {
                    let t = math::tanh(*value / cap);
                    (*value, *bend) = (cap * t, 1.0 - t * t);
                }
            }
            for value in values.iter_mut() {
                *value -= reference;
            }
            let largest = math::max(values);
            most = if largest > most { largest } else { most };
            for value in values.iter_mut() {
                *value = math::exp(*value);
            }
            if let Some(value) = values.get_mut(target.wrapping_sub(start)) {
                *value = 0.0;
            }
            sum += math::sum(values);
            if soft_cap.is_some() {
                for (value, bend) in values.iter_mut().zip(&bends) {
                    *value *= bend;
                }
            }
        }
        (sum, most)
    }

    /// values · factor + weights · weight.
    fn combine(values: &mut [f32], factor: f32, weights: &[f32], weight: f32) {
        for (value, weights) in values.iter_mut().zip(weights) {
            *value = *value * factor + weights * weight;
        }
    }
}
