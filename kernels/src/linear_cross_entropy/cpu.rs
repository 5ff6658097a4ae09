//! Head and loss on the CPU, a chunk of supervised rows and a slice of the vocabulary at a time.
//!
//! The tiles of `hidden · headᵀ` turn into exponentials while they are in a register tile's memory, and are packed at
//! once as the left operand of the gradient's product, which follows while they are in a cache: neither logits nor
//! probabilities exist as a matrix, and each panel of the head is unpacked for a chunk at once.
//!
//! The exponentials of row i are taken relative to its target's logit, `e[j] = exp(z[j] − z[t])`, so the loss is
//! `ln(1 + S)` with `S` the sum over all others, and the gradient `(Σ e[j] head[j] − S head[t]) / (1 + S)`: exact where
//! the model is certain, and known without a second pass. Where a logit exceeds the target's by so much that this
//! could overflow, the chunk is done again relative to the largest.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use burn_flex::Flex;
use burn_tensor::Tensor;

use super::{HiddenGradient, LossAndGradient, LossOps, OutputHead, Supervised};
use crate::cpu::disjoint::Disjoint;
#[cfg(target_arch = "x86_64")]
use crate::cpu::fast;
use crate::cpu::matmul::{PackedRows, Place, Product, RowSource, Side, Term, Tile, multiply};
use crate::cpu::pool::{self, Buffer};
use crate::cpu::scalar::{Scalar, narrow, widen, with_float};
use crate::cpu::{math, parallel, tensor, vectorized};
use crate::linear::operands::WeightTensors;

/// Rows of a chunk, whose gradient is summed in f32.
const MOST_ROWS: usize = 1024;
/// Vocabulary of a slice: one block of the gradient's reduction, and a whole number of panels.
const SLICE: usize = 640;
/// A logit may exceed the reference by this much: e⁶⁰ times any vocabulary is far from overflow.
const HEADROOM: f32 = 60.0;

/// Rows of the chunks that `supervised` rows are cut into.
fn chunk_rows(supervised: usize) -> usize {
    supervised.div_ceil(supervised.div_ceil(MOST_ROWS).max(1)).max(1)
}

/// Bytes of a chunk of `supervised` rows beside the gradient of all, where packed values take `packed` bytes and others
/// `value`: exponentials, their sums for each panel of 8 columns or more, and hidden states, rows of the head and the
/// gradient's sums.
pub(crate) fn chunk_bytes(
    supervised: usize,
    width: usize,
    vocabulary: usize,
    packed: usize,
    value: usize,
) -> usize {
    let (rows, slice) = (chunk_rows(supervised), SLICE.min(vocabulary));
    rows * (slice * packed + 4 * slice.div_ceil(8) + width * (value + packed + 4 + 4))
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
            let chunk_rows = chunk_rows(supervised.len());
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
    /// By how much the largest logit exceeds the reference, as the bits of a number that is not negative: those compare
    /// like the numbers.
    excess: Vec<AtomicU32>,
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
        let mut sums = Sums {
            references: self.target_logits.clone(),
            others: Vec::new(),
            excess: (0..rows).map(|_| AtomicU32::new(0)).collect(),
        };
        let mut gathered = gradient.as_ref().map(|_| pool::take::<f32>(rows * self.width));
        loop {
            self.slices(head, &mut sums, gathered.as_deref_mut());
            let mut again = false;
            for (reference, excess) in sums.references.iter_mut().zip(&mut sums.excess) {
                let excess = f32::from_bits(std::mem::take(excess.get_mut()));
                if excess > HEADROOM && excess.is_finite() {
                    *reference += excess;
                    again = true;
                }
            }
            if !again {
                break;
            }
        }
        if let (Some(gradient), Some(gathered)) = (gradient, &gathered) {
            self.gradient(&sums, gathered, gradient);
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

    /// The sums over the whole vocabulary, and Σ e[j] head[j] of each row, if there is room for it.
    fn slices(&self, head: &WeightTensors<'_>, sums: &mut Sums, mut gathered: Option<&mut [f32]>) {
        let rows = self.supervised.len();
        let panel = self.hidden.kernels().for_columns(self.vocabulary).columns;
        let mut parts = pool::take::<f32>(rows * SLICE.min(self.vocabulary).div_ceil(panel));
        let mut exponentials: Option<PackedRows> = None;
        sums.others.clear();
        sums.others.resize(rows, 0.0);
        for start in (0..self.vocabulary).step_by(SLICE) {
            let slice = start..(start + SLICE).min(self.vocabulary);
            if gathered.is_some() && exponentials.as_ref().is_none_or(|held| held.depth() != slice.len()) {
                exponentials = Some(PackedRows::reserve::<T>(rows, slice.len()));
            }
            self.exponentials(head, sums, slice.clone(), &mut parts, exponentials.as_mut());
            for part in parts.chunks_exact(rows).take(slice.len().div_ceil(panel)) {
                for (sum, part) in sums.others.iter_mut().zip(part) {
                    *sum += f64::from(*part);
                }
            }
            if let (Some(gathered), Some(exponentials)) = (gathered.as_deref_mut(), &exponentials) {
                self.gather(head, slice, exponentials, gathered);
            }
        }
    }

    /// Exponentials of a slice of all logits but the targets', packed into `out`, and their sums, `[panel][row]`.
    fn exponentials(
        &self,
        head: &WeightTensors<'_>,
        sums: &Sums,
        slice: Range<usize>,
        parts: &mut [f32],
        out: Option<&mut PackedRows>,
    ) {
        let rows = self.supervised.len();
        let parts = Disjoint::new(parts);
        let writer = out.map(PackedRows::writer);
        let panel = self.hidden.kernels().for_columns(slice.len()).columns;
        let finish = |mut tile: Tile<'_>| {
            let start = tile.columns.start / panel * rows + tile.rows.start;
            // SAFETY: one number for each row and panel.
            let parts = unsafe { parts.slice(start, tile.rows.len()) };
            self.exponentiate(&mut tile, slice.start, sums, parts);
            if let Some(writer) = &writer {
                // SAFETY: the tiles of a product do not overlap.
                unsafe { writer.put(&mut tile) };
            }
        };
        let columns = head.columns(Side::Transposed).rows(slice.clone());
        let terms = [Term { rows: &self.hidden, columns }];
        multiply::<T>(&[Product { terms: &terms, begin: None, finish: &finish, place: None }]);
    }

    /// Turns a tile of products, whose columns are tokens from `first` on, into exponentials, and writes the sum of each row.
    fn exponentiate(&self, tile: &mut Tile<'_>, first: usize, sums: &Sums, parts: &mut [f32]) {
        let columns = first + tile.columns.start..first + tile.columns.end;
        let target = |row: usize| {
            let target = self.supervised[row].target;
            columns.contains(&target).then(|| target - columns.start)
        };
        let exceeds = |row: usize, most: f32| {
            if most > 0.0 {
                sums.excess[row].fetch_max(most.to_bits(), Ordering::Relaxed);
            }
        };
        #[cfg(target_arch = "x86_64")]
        if columns.len() == 32
            && self.rule.is_plain()
            && fast::available()
            && let (rows, Some(values)) = (tile.rows.clone(), tile.whole())
        {
            for (row, values) in rows.clone().zip(values.chunks_exact_mut(32)) {
                if let Some(target) = target(row) {
                    values[target] = f32::NEG_INFINITY;
                }
            }
            let references = &sums.references[rows.clone()];
            // SAFETY: asked just before.
            if unsafe { fast::largest_excess(values, references) } > HEADROOM {
                for (row, values) in rows.clone().zip(values.chunks_exact(32)) {
                    exceeds(row, largest(values) - sums.references[row]);
                }
            }
            let mut sums_of_rows = [0.0; 16];
            // SAFETY: as above.
            unsafe { fast::exponentiate_rows(values, references, &mut sums_of_rows) };
            parts.copy_from_slice(&sums_of_rows[..rows.len()]);
            return;
        }
        for ((row, values), part) in tile.iter_mut().zip(parts) {
            let (reference, target) = (sums.references[row], target(row).unwrap_or(usize::MAX));
            let (sum, most) = match self.rule.is_plain() {
                true => plain_exponentiate(values, reference, target),
                false => {
                    let bias = self.rule.bias.map_or(&[][..], |bias| &bias[columns.clone()]);
                    let rule = (bias, self.rule.scale, self.rule.soft_cap);
                    ruled_exponentiate(values, rule, reference, target)
                }
            };
            exceeds(row, most);
            *part = sum;
        }
    }

    /// Adds the slice's Σ e[j] head[j] onto those of the slices before it; the first begins.
    fn gather(
        &self,
        head: &WeightTensors<'_>,
        slice: Range<usize>,
        exponentials: &PackedRows,
        gathered: &mut [f32],
    ) {
        let width = self.width;
        let place = Some(Place::of(gathered, width));
        let sums = Disjoint::new(gathered);
        // SAFETY: tiles do not overlap, nor do the rows of one.
        let row = |row: usize, columns: &Range<usize>| unsafe {
            sums.slice(row * width + columns.start, columns.len())
        };
        let begin = |mut tile: Tile<'_>| {
            let columns = tile.columns.clone();
            tile.iter_mut().for_each(|(number, values)| copy(row(number, &columns), values));
        };
        let finish = |mut tile: Tile<'_>| {
            let columns = tile.columns.clone();
            tile.iter_mut().for_each(|(number, values)| copy(values, row(number, &columns)));
        };
        let terms = [Term { rows: exponentials, columns: head.columns(Side::Plain).rows(slice.clone()) }];
        let begin: Option<&(dyn Fn(Tile<'_>) + Sync)> = if slice.start > 0 { Some(&begin) } else { None };
        multiply::<T>(&[Product { terms: &terms, begin, finish: &finish, place }]);
    }

    /// Writes `weight · (Σ e[j] head[j] − S head[t]) / (e[t] + S)` to the rows' places in `gradient`.
    fn gradient(&self, sums: &Sums, gathered: &[f32], gradient: &mut [T]) {
        let out = Disjoint::new(gradient);
        let rows = self.supervised.len();
        let per_task = parallel::rows_per_task(self.width);
        parallel::for_range(rows.div_ceil(per_task), 4 * rows * self.width, |task| {
            let mut wide = pool::take::<f32>(self.width);
            for row in task * per_task..((task + 1) * per_task).min(rows) {
                let reference = f64::from(sums.references[row]);
                let at_target = (f64::from(self.target_logits[row]) - reference).exp();
                let whole = at_target + sums.others[row];
                let weight = self.weights.map_or(1.0, |weights| f64::from(weights[row]));
                let weight = weight * f64::from(self.rule.scale);
                let bend = self.rule.slope(self.target_logits[row]);
                let (others, target) =
                    ((weight / whole) as f32, (-weight * bend * sums.others[row] / whole) as f32);
                let here = row * self.width..(row + 1) * self.width;
                wide.copy_from_slice(&gathered[here.clone()]);
                combine(&mut wide, others, &self.target_rows[here], target);
                // SAFETY: no row of the batch is supervised twice.
                narrow(&wide, unsafe { out.slice(self.supervised[row].row * self.width, self.width) });
            }
        });
    }
}

/// Copies; a panel's width without a call.
fn copy(from: &[f32], to: &mut [f32]) {
    match (<&[f32; 32]>::try_from(from), <&mut [f32; 32]>::try_from(&mut *to)) {
        (Ok(from), Ok(to)) => *to = *from,
        _ => to.copy_from_slice(from),
    }
}

vectorized! {
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        math::dot(a, b)
    }

    #[cfg(target_arch = "x86_64")]
    fn largest(values: &[f32]) -> f32 {
        math::max(values)
    }

    /// Turns logits into exp(z − reference), that of the target into 0. Returns the sum of the others, and by how much the
    /// largest exceeds the reference.
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
