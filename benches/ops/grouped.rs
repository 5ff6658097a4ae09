//! The products of a mixture at a quarter of the experts of Qwen3-30B-A3B: 32 of width 768, of which a token passes 8; and
//! its router.

use std::hint::black_box;
use std::ops::Range;

use burn_tensor::{DType, TensorData};
use tune_kernels::grouped_linear::{Group, GroupedBackward, grouped_linear, grouped_linear_backward};
use tune_kernels::linear::{FrozenWeight, Linear};
use tune_kernels::router::{Router, Score, route, route_backward};

use super::{Bench, TOKENS, Work, packed, place, tensor};

const EXPERTS: usize = 32;
const USED: usize = 8;
const HIDDEN: usize = 2048;
const WIDTH: usize = 768;
const MODEL: &str = "E";

pub(super) fn experts(bench: &Bench, dtype: DType) {
    let rows = TOKENS * USED;
    // As uneven as routers are: twice the mean for some, half of it for others.
    let mut ends = vec![0];
    for expert in 0..EXPERTS {
        let share = [2, 1, 4, 1][expert % 4] * rows / (2 * EXPERTS);
        ends.push(ends[expert] + share);
    }
    let ranges: Vec<Range<usize>> = ends.windows(2).map(|ends| ends[0]..ends[1]).collect();
    for (shape, input, outputs) in [("gate_up", HIDDEN, vec![WIDTH; 2]), ("down", WIDTH, vec![HIDDEN])] {
        let total: usize = outputs.iter().sum();
        // Codes and 8-bit scales of all experts, and the rows.
        let weights = (EXPERTS * input * total) as f64 * (0.5 + 1.0 / 64.0);
        let bytes = weights + (rows * (input + total) * dtype.size()) as f64;
        let work = Work { operations: 2.0 * (rows * input * total) as f64, bytes };
        let weights = || -> Vec<Vec<FrozenWeight<_>>> {
            let expert = |_| outputs.iter().map(|out| FrozenWeight::Nf4(packed([*out, input]))).collect();
            (0..EXPERTS).map(expert).collect()
        };
        bench.line(["grouped forward", MODEL, shape], dtype, work, || {
            let (x, weights) = (tensor([rows, input], dtype), weights());
            let ranges = ranges.clone();
            move |_| _ = black_box(grouped_linear(&x, &groups(&ranges, &weights)))
        });
        bench.line(["grouped backward", MODEL, shape], dtype, work, || {
            let (dy, weights): (Vec<_>, _) =
                (outputs.iter().map(|out| tensor([rows, *out], dtype)).collect(), weights());
            let ranges = ranges.clone();
            move |_| {
                let request = GroupedBackward {
                    x: None,
                    groups: &groups(&ranges, &weights),
                    down: &vec![None; EXPERTS],
                    dy: &dy,
                    wants_x: true,
                    sums: vec![vec![None; dy.len()]; EXPERTS],
                };
                black_box(grouped_linear_backward(request));
            }
        });
    }
    let router = Router { used: USED, score: Score::Softmax, normalised: true, factor: 1.0 };
    let logits = (TOKENS * EXPERTS * dtype.size()) as f64;
    let weights = (TOKENS * USED * 4) as f64;
    let work = |factor: f64| Work { operations: 0.0, bytes: factor * logits + 2.0 * weights };
    bench.line(["router forward", MODEL, ""], dtype, work(1.0), || {
        let logits = tensor::<2>([TOKENS, EXPERTS], dtype);
        move |_| _ = black_box(route(&logits, None, router))
    });
    bench.line(["router backward", MODEL, ""], dtype, work(2.0), || {
        let logits = tensor::<2>([TOKENS, EXPERTS], dtype);
        let chosen = route(&logits, None, router).chosen;
        let dweights = place::<2>(TensorData::new(vec![0.1_f32; TOKENS * USED], [TOKENS, USED]));
        move |_| _ = black_box(route_backward(&logits, &chosen, router, &dweights))
    });
}

fn groups<'a>(
    ranges: &[Range<usize>],
    weights: &'a [Vec<FrozenWeight<tune::device::Cpu>>],
) -> Vec<Group<'a, tune::device::Cpu>> {
    let layer = |weight| Linear { weight, bias: None, lora: None };
    let group = |(rows, weights): (&Range<usize>, &'a Vec<_>)| Group {
        rows: rows.clone(),
        layers: weights.iter().map(layer).collect(),
    };
    ranges.iter().zip(weights).map(group).collect()
}
