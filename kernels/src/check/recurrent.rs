//! What runs along a document: the causal convolution and the gated delta rule.

use burn_tensor::DType;

use super::measure::{Deviation, On, values};
use crate::KernelBackend;
use crate::attention::DocumentOffsets;
use crate::causal_conv::{self, CausalConv, causal_conv, causal_conv_backward};
use crate::delta_rule::reference::Rule;
use crate::delta_rule::{self, DeltaHeads, DeltaRule, delta_rule_backward, delta_rule_onwards};

pub(super) fn all_causal_conv<B: KernelBackend>(on: On<'_, B>) -> Vec<Deviation> {
    let documents = DocumentOffsets::packed(&[0, 1, 3, 3, 70]);
    [(5, 3, false), (300, 4, true)]
        .into_iter()
        .flat_map(|(channels, size, silu)| check_causal_conv(on, &documents, channels, size, silu))
        .collect()
}

pub(super) fn all_delta_rule<B: KernelBackend>(on: On<'_, B>) -> Vec<Deviation> {
    let heads = DeltaHeads { keys: 2, values: 4, key_dim: 16, value_dim: 24 };
    check_delta_rule(on, &DocumentOffsets::packed(&[0, 1, 3, 3, 133]), heads)
}

/// [`causal_conv()`] and its backward.
pub fn check_causal_conv<B: KernelBackend>(
    on: On<'_, B>,
    documents: &DocumentOffsets,
    channels: usize,
    size: usize,
    silu: bool,
) -> Vec<Deviation> {
    use causal_conv::reference::{Conv, backward, forward};
    let tokens = documents.queries();
    let case = format!("[{tokens}, {channels}] by {size}, silu {silu}");
    let x = on.random(tokens * channels, 1, 2.0);
    let weight = on.random(channels * size, 2, 1.0);
    let dy = on.random(x.len(), 3, 1.0);
    let oracle = Conv { weight: &weight, size, silu, documents };
    let (expected, slope) = (forward(&x, oracle), backward(&x, oracle, &dy));
    let [x, dy] = [&x, &dy].map(|numbers| on.tensor::<2>(numbers, [tokens, channels]));
    let weight = on.tensor::<2>(&weight, [channels, size]);
    let conv = CausalConv { weight: &weight, silu, documents };
    let y = values(&causal_conv(&x, conv));
    let dx = values(&causal_conv_backward(&x, conv, &dy));
    vec![
        Deviation::new("y", &case, &y, &expected, on.tolerance()),
        Deviation::new("dx", &case, &dx, &slope, on.tolerance()),
    ]
}

/// [`delta_rule()`](delta_rule::delta_rule) and its backward; with a single document the state too, from a state and from
/// its first half to its second.
pub fn check_delta_rule<B: KernelBackend>(
    on: On<'_, B>,
    documents: &DocumentOffsets,
    heads: DeltaHeads,
) -> Vec<Deviation> {
    use delta_rule::reference::{backward, forward};
    let tokens = documents.queries();
    let case = format!("{tokens} tokens, {} documents, {heads:?}", documents.documents().len());
    let DeltaHeads { values: count, key_dim, value_dim, .. } = heads;
    let width: usize = heads.widths().iter().sum();
    let mixed = on.random(tokens * width, 1, 2.0);
    let [decay, write] = [2, 3].map(|seed| on.random(tokens * count, seed, 2.0));
    let log_rate = super::random(count, 4, 2.0);
    let bias = super::random(count, 5, 1.0);
    let dy = on.random(tokens * count * value_dim, 6, 1.0);
    let rule = Rule {
        mixed: &mixed,
        decay: &decay,
        write: &write,
        log_rate: &log_rate,
        bias: &bias,
        heads,
        documents,
    };
    let (expected, _) = forward(rule, None);
    let slopes = backward(rule, &dy);
    let tensors = [(&mixed, width), (&decay, count), (&write, count), (&dy, count * value_dim)];
    let [mixed, decay, write, dy] = tensors.map(|(numbers, width)| on.tensor::<2>(numbers, [tokens, width]));
    let [log_rate, bias] = [&log_rate, &bias].map(|numbers| on.single::<1>(numbers, [count]));
    let call = DeltaRule {
        mixed: &mixed,
        decay: &decay,
        write: &write,
        log_rate: &log_rate,
        bias: &bias,
        heads,
        documents,
    };
    // Sums of differences, of which some cancel; that of a decay runs over all later tokens of a chunk.
    let loose = 4.0 * on.tolerance();
    let y = values(&delta_rule::delta_rule(call));
    let found = delta_rule_backward(call, &dy);
    let mut deviations = vec![
        Deviation::new("y", &case, &y, &expected, on.tolerance()),
        Deviation::new("dmixed", &case, &values(&found.mixed), &slopes.mixed, loose),
        Deviation::new("ddecay", &case, &values(&found.decay), &slopes.decay, 2.0 * loose),
        Deviation::new("dwrite", &case, &values(&found.write), &slopes.write, loose),
    ];
    if documents.documents().len() == 1 && tokens > 1 {
        let state = super::random(count * key_dim * value_dim, 7, 1.0);
        let (expected, last) = forward(rule, Some(&state));
        let state = on.single::<3>(&state, [count, key_dim, value_dim]);
        let half = tokens / 2;
        let part = |start: usize, length: usize, state| {
            let [mixed, decay, write] = [&mixed, &decay, &write].map(|x| x.clone().narrow(0, start, length));
            let documents = DocumentOffsets::packed(&[0, length as u32]);
            let (mixed, decay, write) = (&mixed, &decay, &write);
            delta_rule_onwards(DeltaRule { mixed, decay, write, documents: &documents, ..call }, state)
        };
        let (first, between) = part(0, half, state);
        let (second, found) = part(half, tokens - half, between);
        let mut y = values(&first);
        y.extend(values(&second));
        deviations.push(Deviation::new("y from a state", &case, &y, &expected, on.tolerance()));
        deviations.push(Deviation::new(
            "state",
            &case,
            &values(&found),
            &last,
            2.0 * super::tolerance(DType::F32),
        ));
    }
    deviations
}
