//! Head and loss where the head is trained too.
//!
//! The loss and dhidden of [`linear_cross_entropy`](super::linear_cross_entropy()), and with `p = softmax(z)`
//!
//! ```text
//! dhead[j] = Σᵢ (p[i, j] − [j = tᵢ]) · hidden[i]
//! ```
//!
//! over the supervised rows, some of them at a time, so that the logits never exist all at once. The head is its f32
//! master, and everything is computed in f32.

use burn_tensor::{DType, IndexingUpdateOp, Int, Tensor, TensorData, backend::Backend};

use super::{Logits, check_logits, check_weights, supervised};
use crate::sum::sum_rows;

/// Bytes that a logit takes while its rows are worked on: itself, its probability, and one in between.
pub(crate) const BYTES_PER_LOGIT: u64 = 12;
/// Bytes of the logits that are worked on at once, unless that is fewer than [`FEWEST_ROWS`] rows.
const CHUNK_BYTES: u64 = 96 << 20;
/// With fewer rows the head would be read too often.
const FEWEST_ROWS: u64 = 64;

/// Rows of the chunks that `supervised` rows are cut into.
pub(crate) fn chunk_rows(supervised: u64, vocabulary: u64) -> u64 {
    let most = (CHUNK_BYTES / (vocabulary * BYTES_PER_LOGIT).max(1)).max(FEWEST_ROWS);
    supervised.div_ceil(supervised.div_ceil(most).max(1)).max(1)
}

/// The losses and gradients of [`trained_linear_cross_entropy`].
#[derive(Clone, Debug)]
pub struct TrainedLoss<B: Backend> {
    /// f32 `[1]`: a sum, never a mean.
    pub loss: Tensor<B, 1>,
    /// The losses of the supervised rows, a chunk after the other.
    chunks: Vec<Tensor<B, 1>>,
    /// The gradient of `hidden`, in its dtype; zero in rows without supervision.
    pub hidden: Tensor<B, 2>,
    /// The gradient of the head `[vocabulary, hidden]`, f32, added to `sum`.
    pub head: Tensor<B, 2>,
}

impl<B: Backend> TrainedLoss<B> {
    /// The loss of each supervised row, in the rows' order: f32 `[supervised]`.
    pub fn rows(&self) -> Tensor<B, 1> {
        match self.chunks.as_slice() {
            [] => Tensor::zeros([0], (&self.loss.device(), DType::F32)),
            [all] => all.clone(),
            chunks => Tensor::cat(chunks.to_vec(), 0),
        }
    }
}

/// Σ over supervised rows of −ln softmax(z)\[target\], and the gradients of both; `logits` says what z is of the products. A
/// head with a bias is not trained.
///
/// With `weights` the gradients are those of the weighted losses, `Σᵢ weights[i] · lossᵢ`; the loss stays the unweighted
/// sum. Weights that follow from the losses take a call without gradients before.
///
/// # Shapes
/// `hidden` `[tokens, hidden]`, `head` and `sum` `[vocabulary, hidden]` in f32, `targets` `[tokens]` (a token id or
/// [`IGNORED`](super::IGNORED)), `weights` f32 `[supervised]`, in the rows' order.
///
/// # Panics
/// If shapes do not fit, a target is neither a token id nor that, or head or weights are not f32.
pub fn trained_linear_cross_entropy<B: Backend>(
    hidden: &Tensor<B, 2>,
    head: &Tensor<B, 2>,
    logits: Logits,
    targets: &[i32],
    weights: Option<&Tensor<B, 1>>,
    sum: Option<Tensor<B, 2>>,
) -> TrainedLoss<B> {
    let ([tokens, width], [vocabulary, columns]) = (hidden.dims(), head.dims());
    assert_eq!(columns, width, "linear_cross_entropy: hidden states of {width} do not fit the head");
    assert_eq!(targets.len(), tokens, "linear_cross_entropy: one target per token");
    assert_eq!(head.dtype(), DType::F32, "linear_cross_entropy: a trained head is f32");
    let device = hidden.device();
    check_logits::<B>(None, logits, vocabulary);
    let rule = logits;
    let rows = supervised(targets, vocabulary);
    if let Some(weights) = weights {
        check_weights(weights, rows.len());
    }
    let integers = |values: Vec<usize>| -> Tensor<B, 1, Int> {
        let (values, length): (Vec<i32>, _) =
            (values.iter().map(|value| *value as i32).collect(), values.len());
        Tensor::from_data(TensorData::new(values, [length]), &device)
    };
    let zeros = |shape: [usize; 2]| Tensor::<B, 2>::zeros(shape, (&device, DType::F32));
    let mut loss = Tensor::<B, 1>::zeros([1], (&device, DType::F32));
    let mut dhidden = zeros([tokens, width]);
    let mut dhead = sum.unwrap_or_else(|| zeros([vocabulary, width]));
    let chunk = chunk_rows(rows.len() as u64, vocabulary as u64) as usize;
    let mut chunks = Vec::new();
    for (index, rows) in rows.chunks(chunk.max(1)).enumerate() {
        let places = integers(rows.iter().map(|supervised| supervised.row).collect());
        let targets = integers(rows.iter().map(|supervised| supervised.target).collect()).unsqueeze_dim(1);
        let x = hidden.clone().select(0, places.clone()).cast(DType::F32);
        let products = x.clone().matmul(head.clone().transpose());
        let (logits, bends) = finished(products, rule);
        // Relative to the largest: nothing overflows.
        let logits = logits.clone() - logits.max_dim(1);
        let at_target = logits.clone().gather(1, targets.clone());
        let exponentials = logits.exp();
        let whole = sum_rows(exponentials.clone());
        let losses = whole.clone().log() - at_target;
        loss = loss + losses.clone().sum();
        chunks.push(losses.reshape([rows.len()]));
        let minus_one = -Tensor::<B, 2>::ones([rows.len(), 1], (&device, DType::F32));
        let slopes = (exponentials / whole).scatter(1, targets, minus_one, IndexingUpdateOp::Add);
        let slopes = match weights {
            Some(weights) => {
                let first = index * chunk;
                slopes * weights.clone().narrow(0, first, rows.len()).unsqueeze_dim(1)
            }
            None => slopes,
        };
        let slopes = if rule.scale == 1.0 { slopes } else { slopes * rule.scale };
        let slopes = match bends {
            Some(bends) => slopes * bends,
            None => slopes,
        };
        dhidden =
            dhidden.select_assign(0, places, slopes.clone().matmul(head.clone()), IndexingUpdateOp::Add);
        dhead = dhead + slopes.transpose().matmul(x);
    }
    TrainedLoss { loss, chunks, hidden: dhidden.cast(hidden.dtype()), head: dhead }
}

/// Logits of products, and under a cap their slopes.
fn finished<B: Backend>(products: Tensor<B, 2>, rule: Logits) -> (Tensor<B, 2>, Option<Tensor<B, 2>>) {
    let scaled = if rule.scale == 1.0 { products } else { products * rule.scale };
    match rule.soft_cap {
        Some(cap) => {
            let tanh = (scaled / cap).tanh();
            (tanh.clone() * cap, Some(tanh.powi_scalar(2).neg() + 1.0))
        }
        None => (scaled, None),
    }
}
