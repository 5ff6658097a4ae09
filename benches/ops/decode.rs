//! The ops of one decoded token: its products, which read all weights, and what lies between them.

use std::hint::black_box;

use burn_tensor::DType;
use tune_kernels::attention::{AttentionOptions, DocumentOffsets, attention};
use tune_kernels::gated::{Activation, gated};
use tune_kernels::linear::{FrozenWeight, Linear, Lora, linear};
use tune_kernels::rms_norm::rms_norm;
use tune_kernels::rope::{Direction, Pairs, Positions, RotaryTable, rope};

use super::{Bench, Model, RANK, Work, borrowed, packed, slots, tensor};

/// A token's worth of products, as decoding has them: bound by reading the weights once.
pub(super) fn all(bench: &Bench, model: &Model, dtype: DType) {
    for (shape, input, outputs) in model.projections() {
        let total: usize = outputs.iter().sum();
        let adapters = 4 * RANK * (outputs.len() * input + total);
        for adapted in [false, true] {
            let bytes =
                (input * total) as f64 * (0.5 + 1.0 / 64.0) + if adapted { adapters as f64 } else { 0.0 };
            let work = Work { operations: 0.0, bytes };
            let op = if adapted { "decode linear+lora" } else { "decode linear" };
            bench.line([op, model.name, shape], dtype, work, || {
                let one = |output: &usize| {
                    let (a, b) = (tensor([RANK, input], DType::F32), tensor([*output, RANK], DType::F32));
                    let lora = Lora { a, b, scaling: 2.0, dropout: None };
                    (FrozenWeight::Nf4(packed([*output, input])), lora)
                };
                let layer = |_| outputs.iter().map(one).collect();
                let layers: Vec<Vec<_>> = (0..slots(bytes).min(8)).map(layer).collect();
                let x = tensor([1, input], dtype);
                move |call| _ = black_box(linear(&x, &borrowed(&layers[call % layers.len()], adapted), None))
            });
        }
    }
    let work = Work { operations: 0.0, bytes: (model.vocabulary * model.hidden * dtype.size()) as f64 };
    bench.line(["decode head", model.name, ""], dtype, work, || {
        let head = FrozenWeight::Dense(tensor([model.vocabulary, model.hidden], dtype));
        let x = tensor([1, model.hidden], dtype);
        move |_| _ = black_box(linear(&x, &[Linear { weight: &head, bias: None, lora: None }], None))
    });
    between(bench, model, dtype);
}

/// What a token needs between its products: the time of a call, for their bytes are few.
fn between(bench: &Bench, model: &Model, dtype: DType) {
    const KEYS: usize = 300;
    let (heads, kv_heads, head_dim) = (model.heads, model.kv_heads, model.head_dim());
    let bytes = |values: usize| Work { operations: 0.0, bytes: (values * dtype.size()) as f64 };
    bench.line(
        ["decode attention", model.name, "300 keys"],
        dtype,
        bytes(2 * KEYS * kv_heads * head_dim),
        || {
            let options = AttentionOptions {
                documents: DocumentOffsets::with_cache(&[0, 1], &[0, KEYS as u32]),
                scaling: 1.0 / (head_dim as f32).sqrt(),
                sliding_window: None,
                soft_cap: None,
            };
            let [k, v] = [(); 2].map(|()| tensor([KEYS, kv_heads, head_dim], dtype));
            let q = tensor([1, heads, head_dim], dtype);
            move |_| _ = black_box(attention(&q, &k, &v, &options))
        },
    );
    bench.line(["decode rms_norm", model.name, ""], dtype, bytes(2 * model.hidden), || {
        let (x, weight) = (tensor([1, model.hidden], dtype), tensor([model.hidden], dtype));
        move |_| _ = black_box(rms_norm(&x, &weight, 1e-5))
    });
    bench.line(["decode gated", model.name, ""], dtype, bytes(3 * model.intermediate), || {
        let [gate, up] = [(); 2].map(|()| tensor([1, model.intermediate], dtype));
        move |_| _ = black_box(gated(Activation::Silu, &gate, &up))
    });
    bench.line(["decode rope", model.name, "q"], dtype, bytes(2 * heads * head_dim), || {
        let [cos, sin] = [(); 2].map(|()| tensor([KEYS, head_dim / 2], DType::F32));
        let table = RotaryTable { cos, sin, pairs: Pairs::Halves };
        let positions = Positions::new(&[KEYS as u32 - 1], &Default::default());
        let mut x = Some(tensor([1, heads, head_dim], dtype));
        move |_| x = x.take().map(|x| rope(x, &table, &positions, Direction::Forward))
    });
}
