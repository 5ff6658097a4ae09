//! Output head and loss: dense and NF4 heads, rows without a target, rows with weights.

use burn_tensor::DType;

use super::measure::{Deviation, On, random, rounded, tolerance, values};
use crate::KernelBackend;
use crate::linear::FrozenWeight;
use crate::linear_cross_entropy::{
    IGNORED, Logits, OutputHead, linear_cross_entropy, reference, weighted_linear_cross_entropy,
};
use crate::nf4::{self, Nf4Weight};

pub(super) fn all<B: KernelBackend>(on: On<'_, B>) -> Vec<Deviation> {
    let cases = [
        ((5, 33, 101), false, Rule::Plain),
        ((70, 64, 300), true, Rule::Plain),
        ((9, 40, 150), false, Rule::Bent),
    ];
    cases.into_iter().flat_map(|(shape, packed, rule)| check(on, shape, packed, rule)).collect()
}

/// What logits are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Of products alone.
    Plain,
    /// Of products, a scale and a bias.
    Biased,
    /// Of these, under a cap that bends many of them.
    Bent,
}

/// [`linear_cross_entropy`] without a gradient, with it, and with that of weighted rows: (tokens, width, vocabulary), the head in NF4 or dense.
pub fn check<B: KernelBackend>(
    on: On<'_, B>,
    (tokens, width, vocabulary): (usize, usize, usize),
    packed: bool,
    rule: Rule,
) -> Vec<Deviation> {
    let storage = if packed { "NF4" } else { "dense" };
    let case = format!("[{tokens}, {width}] x {vocabulary}, {storage} head, {rule:?}");
    let logits = match rule {
        Rule::Plain => Logits::PLAIN,
        Rule::Biased => Logits { scale: 0.5, soft_cap: None },
        Rule::Bent => Logits { scale: 0.75, soft_cap: Some(3.0) },
    };
    let original = random(vocabulary * width, 2, 1.0);
    let shape = [vocabulary, width];
    let (head, dense) = if packed {
        let quantized = nf4::quantize(&original, shape, 64, true);
        let dense = rounded(&quantized.dequantize(), on.dtype);
        (FrozenWeight::Nf4(Nf4Weight::new(quantized, on.device)), dense)
    } else {
        (FrozenWeight::Dense(on.tensor::<2>(&original, shape)), rounded(&original, on.dtype))
    };
    let bias = (rule != Rule::Plain).then(|| on.random(vocabulary, 4, 1.0));
    let weight = head;
    let hidden = on.random(tokens * width, 1, 1.0);
    let targets: Vec<Option<usize>> =
        (0..tokens).map(|i| (i % 5 != 3).then_some(i * 31 % vocabulary)).collect();
    let supervised = targets.iter().flatten().count();
    let weights = random(supervised, 3, 2.0);
    let rows = reference::Rows { bias: bias.as_deref(), logits, ..reference::Rows::plain(&dense, &targets) };
    let losses = reference::row_losses(&hidden, rows, width);
    let (loss, slope, _) = reference::loss_and_gradients(&hidden, rows, width);
    let weighed = reference::Rows { weights: Some(&weights), ..rows };
    let (_, weighed, _) = reference::loss_and_gradients(&hidden, weighed, width);
    let on_device: Vec<i32> = targets.iter().map(|t| t.map_or(IGNORED, |t| t as i32)).collect();
    let hidden = on.tensor::<2>(&hidden, [tokens, width]);
    let bias = bias.map(|bias| on.tensor::<1>(&bias, [vocabulary]));
    let head = OutputHead { weight, bias, logits };
    let found = linear_cross_entropy(&hidden, &head, &on_device, true);
    let alone = linear_cross_entropy(&hidden, &head, &on_device, false);
    let weights = on.single::<1>(&weights, [supervised]);
    let weighted = weighted_linear_cross_entropy(&hidden, &head, &on_device, &weights);
    let sum = values(&found.loss);
    let gradient = found.gradient.as_ref().map(values).unwrap_or_default();
    let weighted_gradient = weighted.gradient.as_ref().map(values).unwrap_or_default();
    vec![
        Deviation::new("loss", &case, &sum, &[loss as f32], tolerance(DType::F32)),
        Deviation::new("dhidden", &case, &gradient, &slope, on.tolerance()),
        Deviation::new("losses of rows", &case, &values(&found.rows), &losses, 2.0 * tolerance(DType::F32)),
        Deviation::new("weighted dhidden", &case, &weighted_gradient, &weighed, on.tolerance()),
        // The same bits with a gradient of any kind or without.
        Deviation::new("loss alone", &case, &values(&alone.loss), &sum, 0.0),
        Deviation::new("loss with weights", &case, &values(&weighted.loss), &sum, 0.0),
    ]
}
