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

use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor, TensorData, backend::Backend};

use super::{chunk_rows, supervised};

/// Bytes that a logit takes while its rows are worked on: itself, its probability, and one in between.
pub(crate) const BYTES_PER_LOGIT: u64 = 12;

/// What [`trained_linear_cross_entropy`] computes.
#[derive(Clone, Debug)]
pub struct TrainedLoss<B: Backend> {
    /// f32 `[1]`: a sum, never a mean.
    pub loss: Tensor<B, 1>,
    /// The gradient of `hidden`, in its dtype; zero in rows without supervision.
    pub hidden: Tensor<B, 2>,
    /// The gradient of the head `[vocabulary, hidden]`, f32, added to the sum that came with the request.
    pub head: Tensor<B, 2>,
}

/// Σ over supervised rows of −ln softmax(hidden · headᵀ)\[target\], and the gradients of both.
///
/// # Shapes
/// `hidden` `[tokens, hidden]`, `head` and `sum` `[vocabulary, hidden]` in f32, `targets` `[tokens]` (a token id or
/// [`IGNORED`](super::IGNORED)).
///
/// # Panics
/// If shapes do not fit, a target is neither a token id nor that, or the head is not f32.
pub fn trained_linear_cross_entropy<B: Backend>(
    hidden: &Tensor<B, 2>,
    head: &Tensor<B, 2>,
    targets: &[i32],
    sum: Option<Tensor<B, 2>>,
) -> TrainedLoss<B> {
    let ([tokens, width], [vocabulary, columns]) = (hidden.dims(), head.dims());
    assert_eq!(columns, width, "linear_cross_entropy: hidden states of {width} do not fit the head");
    assert_eq!(targets.len(), tokens, "linear_cross_entropy: one target per token");
    assert_eq!(head.dtype(), DType::F32, "linear_cross_entropy: a trained head is f32");
    let device = hidden.device();
    let rows = supervised(targets, vocabulary);
    let integers = |values: Vec<usize>| -> Tensor<B, 1, Int> {
        let (values, length): (Vec<i32>, _) =
            (values.iter().map(|value| *value as i32).collect(), values.len());
        Tensor::from_data(TensorData::new(values, [length]), &device)
    };
    let zeros = |shape: [usize; 2]| Tensor::<B, 2>::zeros(shape, (&device, DType::F32));
    let mut loss = Tensor::<B, 1>::zeros([1], (&device, DType::F32));
    let mut dhidden = zeros([tokens, width]);
    let mut dhead = sum.unwrap_or_else(|| zeros([vocabulary, width]));
    let chunk = chunk_rows(rows.len() as u64, vocabulary as u64, BYTES_PER_LOGIT) as usize;
    for rows in rows.chunks(chunk.max(1)) {
        let places = integers(rows.iter().map(|supervised| supervised.row).collect());
        let targets = integers(rows.iter().map(|supervised| supervised.target).collect()).unsqueeze_dim(1);
        let x = hidden.clone().select(0, places.clone()).cast(DType::F32);
        let logits = x.clone().matmul(head.clone().transpose());
        // Relative to the largest: nothing overflows.
        let logits = logits.clone() - logits.max_dim(1);
        let at_target = logits.clone().gather(1, targets.clone());
        let exponentials = logits.exp();
        let whole = exponentials.clone().sum_dim(1);
        loss = loss + (whole.clone().log() - at_target).sum();
        let minus_one = -Tensor::<B, 2>::ones([rows.len(), 1], (&device, DType::F32));
        let slopes = (exponentials / whole).scatter(1, targets, minus_one, IndexingUpdateOp::Add);
        dhidden =
            dhidden.select_assign(0, places, slopes.clone().matmul(head.clone()), IndexingUpdateOp::Add);
        dhead = dhead + slopes.transpose().matmul(x);
    }
    TrainedLoss { loss, hidden: dhidden.cast(hidden.dtype()), head: dhead }
}
