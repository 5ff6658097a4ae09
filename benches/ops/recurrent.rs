//! The recurrent mixer's ops at the shapes of Qwen3.5 0.8B: 16 heads of 128 behind a convolution over four tokens.

use std::hint::black_box;

use burn_tensor::{DType, Tensor};
use tune::device::Cpu;
use tune_kernels::attention::DocumentOffsets;
use tune_kernels::causal_conv::{CausalConv, causal_conv, causal_conv_backward};
use tune_kernels::delta_rule::{CHUNK, DeltaHeads, DeltaRule, delta_rule, delta_rule_backward};

use super::{Bench, DOCUMENT, TOKENS, Work, tensor};

const HEADS: DeltaHeads = DeltaHeads { keys: 16, values: 16, key_dim: 128, value_dim: 128 };
const SIZE: usize = 4;
const MODEL: &str = "Q";

/// Multiply-adds, twice, for each token and value head: with the state `states` times, and with the chunk `key` times in
/// the keys' width and `value` times in the values'.
fn operations(states: usize, key: usize, value: usize) -> f64 {
    let DeltaHeads { values, key_dim, value_dim, .. } = HEADS;
    // A product of a chunk with itself has one triangle.
    let chunk = CHUNK * (key * key_dim + value * value_dim) / 2;
    2.0 * (TOKENS * values * (states * key_dim * value_dim + chunk)) as f64
}

pub(super) fn mixers(bench: &Bench, dtype: DType) {
    let offsets: Vec<u32> = (0..=TOKENS / DOCUMENT).map(|document| (document * DOCUMENT) as u32).collect();
    let documents = &DocumentOffsets::packed(&offsets);
    let [keys, _, values] = HEADS.widths();
    let channels = 2 * keys + values;
    let rows = |width: usize| (TOKENS * width * dtype.size()) as f64;

    let work = Work { operations: 0.0, bytes: 2.0 * rows(channels) };
    let conv = || (tensor::<2>([TOKENS, channels], dtype), tensor::<2>([channels, SIZE], dtype));
    bench.line(["causal_conv forward", MODEL, ""], dtype, work, || {
        let (x, weight) = conv();
        move |_| _ = black_box(causal_conv(&x, CausalConv { weight: &weight, silu: true, documents }))
    });
    let work = Work { operations: 0.0, bytes: 3.0 * rows(channels) };
    bench.line(["causal_conv backward", MODEL, ""], dtype, work, || {
        let (x, weight) = conv();
        move |_| {
            let conv = CausalConv { weight: &weight, silu: true, documents };
            black_box(causal_conv_backward(&x, conv, &x));
        }
    });

    let operands = || Operands {
        mixed: tensor([TOKENS, channels], dtype),
        decay: tensor([TOKENS, HEADS.values], dtype),
        write: tensor([TOKENS, HEADS.values], dtype),
        each: Tensor::zeros([HEADS.values], (&Default::default(), DType::F32)),
    };
    // Keys and queries read the state, the keys write it; scores of keys and queries, the solve and the outputs.
    let work = Work { operations: operations(3, 2, 2), bytes: rows(channels + values) };
    bench.line(["delta_rule forward", MODEL, ""], dtype, work, || {
        let operands = operands();
        move |_| _ = black_box(delta_rule(operands.rule(documents)))
    });
    // The states again (keys read and write them); on the way back five products with a state or its gradient.
    let work = Work { operations: operations(8, 6, 5), bytes: rows(2 * channels + values) };
    bench.line(["delta_rule backward", MODEL, ""], dtype, work, || {
        let operands = operands();
        let dy = tensor::<2>([TOKENS, values], dtype);
        move |_| _ = black_box(delta_rule_backward(operands.rule(documents), &dy))
    });
}

struct Operands {
    mixed: Tensor<Cpu, 2>,
    decay: Tensor<Cpu, 2>,
    write: Tensor<Cpu, 2>,
    each: Tensor<Cpu, 1>,
}

impl Operands {
    fn rule<'a>(&'a self, documents: &'a DocumentOffsets) -> DeltaRule<'a, Cpu> {
        let Self { mixed, decay, write, each } = self;
        DeltaRule { mixed, decay, write, log_rate: each, bias: each, heads: HEADS, documents }
    }
}
