//! Every op of the kernels crate on this machine, beside what the machine could do at best.
//!
//! ```text
//! cargo bench --bench ops                      # all of it, in a minute or two
//! cargo bench --bench ops -- linear bf16 L     # lines that hold each of these words
//! cargo bench --bench ops -- --on=avx2 linear  # as on a processor with no more than that: portable, avx2 or avx512
//! ```
//!
//! Two ceilings are measured first: multiply-adds of the microkernel on operands that stay in the first-level cache
//! ([`tune_kernels::ceiling`]), and a copy of a large buffer on all threads, its reads and writes both counted. From
//! them follows a floor for each op: its operations at the one rate or its bytes at the other, whichever takes longer.
//! The bytes are those of operands and results, each counted once. `gap` is the best time over that floor.
//!
//! Shapes are those of a decoder at work on four documents of 256 tokens, one call for the projections that share an
//! input (queries, keys and values; gate and up), NF4 weights with double quantization, and S, M and L as in [`MODELS`].
//! Ops that the floor says are bound by memory find their operands in memory, not in a cache; ops that overwrite an
//! operand spare the read of a result's cache lines that a copy pays for, and may therefore fall below the floor.
//!
//! The ceilings are measured again at the end: they show whether the machine was quiet.
//!
//! Without `--bench`, as `cargo test --bench ops` calls it, every op runs once and nothing is measured.
#![expect(clippy::print_stdout, clippy::expect_used, reason = "a bench")]

#[path = "ops/decode.rs"]
mod decode;
#[path = "ops/grouped.rs"]
mod grouped;
#[path = "ops/recurrent.rs"]
mod recurrent;

use std::fmt::{self, Display, Formatter};
use std::hint::black_box;
use std::time::{Duration, Instant};

use burn_tensor::{DType, Tensor, TensorData};
use rayon::prelude::*;
use tune::device::Cpu;
use tune_kernels::adamw::{AdamWConfig, Guard, Moments, Update, adamw, norm};
use tune_kernels::attention::{
    AttentionBackward, AttentionOptions, DocumentOffsets, attention, attention_backward,
};
use tune_kernels::ceiling;
use tune_kernels::gated::{Activation, gated, gated_backward};
use tune_kernels::isa::InstructionSet;
use tune_kernels::linear::{FrozenWeight, Linear, LinearBackward, Lora, linear, linear_backward};
use tune_kernels::linear_cross_entropy::linear_cross_entropy;
use tune_kernels::nf4::{Nf4Weight, quantize};
use tune_kernels::rms_norm::{rms_norm, rms_norm_backward};
use tune_kernels::rope::{Direction, Pairs, Positions, RotaryTable, rope};

/// Tokens of a call, and the documents they belong to.
const TOKENS: usize = 1024;
const DOCUMENT: usize = 256;
const RANK: usize = 16;
/// How long a line is measured, and how many calls at least and at most.
const TIME: Duration = Duration::from_millis(150);
const CALLS: (usize, usize) = (3, 1000);
/// Operands of ops bound by memory are drawn in turn from so many bytes, more than caches hold.
const COLD: f64 = (128 << 20) as f64;

/// The shape of a model, as far as ops see it.
struct Model {
    name: &'static str,
    layers: usize,
    hidden: usize,
    intermediate: usize,
    vocabulary: usize,
    heads: usize,
    kv_heads: usize,
}

/// 15 million, 135 million and half a billion parameters.
const MODELS: [Model; 3] = [
    Model { name: "S", layers: 6, hidden: 288, intermediate: 768, vocabulary: 32_000, heads: 6, kv_heads: 6 },
    Model {
        name: "M",
        layers: 30,
        hidden: 576,
        intermediate: 1536,
        vocabulary: 49_152,
        heads: 9,
        kv_heads: 3,
    },
    Model {
        name: "L",
        layers: 24,
        hidden: 896,
        intermediate: 4864,
        vocabulary: 151_936,
        heads: 14,
        kv_heads: 2,
    },
];

impl Model {
    fn head_dim(&self) -> usize {
        self.hidden / self.heads
    }

    /// Name, input and outputs of the projections that are one call.
    fn projections(&self) -> [(&'static str, usize, Vec<usize>); 4] {
        let kv = self.kv_heads * self.head_dim();
        [
            ("qkv", self.hidden, vec![self.hidden, kv, kv]),
            ("o", self.hidden, vec![self.hidden]),
            ("gate_up", self.hidden, vec![self.intermediate; 2]),
            ("down", self.intermediate, vec![self.hidden]),
        ]
    }

    /// Shapes of all adapters' matrices.
    fn adapter_shapes(&self) -> Vec<[usize; 2]> {
        let of_one = |(_, input, outputs): (_, usize, Vec<usize>)| {
            outputs.into_iter().flat_map(move |output| [[RANK, input], [output, RANK]])
        };
        (0..self.layers).flat_map(|_| self.projections().into_iter().flat_map(of_one)).collect()
    }
}

/// The operations and bytes that an op needs at least.
#[derive(Clone, Copy)]
struct Work {
    /// Floating-point operations of its products; a multiply-add is two.
    operations: f64,
    /// Of operands and results.
    bytes: f64,
}

/// The bench: what is asked for, and the machine's ceilings.
struct Bench {
    words: Vec<String>,
    ceilings: Option<Ceilings>,
}

/// Operations per second in bf16 and f32, and bytes per second.
struct Ceilings {
    bf16: f64,
    f32: f64,
    copy: f64,
}

impl Ceilings {
    fn measure() -> Self {
        let time = Duration::from_millis(400);
        Self {
            bf16: ceiling::matmul_flops(DType::BF16, time),
            f32: ceiling::matmul_flops(DType::F32, time),
            copy: copied_bytes_per_second(),
        }
    }

    fn matmul(&self, dtype: DType) -> f64 {
        if dtype == DType::BF16 { self.bf16 } else { self.f32 }
    }

    /// Whether any of `later` is more than a twentieth away.
    fn moved(&self, later: &Self) -> bool {
        [(self.bf16, later.bf16), (self.f32, later.f32), (self.copy, later.copy)]
            .into_iter()
            .any(|(one, other)| (one - other).abs() > 0.05 * one.min(other))
    }
}

impl Display for Ceilings {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let [bf16, f32, copy] = [self.bf16, self.f32, self.copy].map(|rate| rate / 1e9);
        write!(formatter, "bf16 {bf16:.0} GFLOP/s, f32 {f32:.0} GFLOP/s, copy {copy:.1} GB/s")
    }
}

/// Bytes read and written per second by a copy on all threads, each of one long stretch: the best of several.
fn copied_bytes_per_second() -> f64 {
    let bytes = 256 << 20;
    let (from, mut to) = (vec![1u8; bytes], vec![0u8; bytes]);
    let part = bytes.div_ceil(rayon::current_num_threads());
    let copy = |_| {
        let begin = Instant::now();
        to.par_chunks_mut(part).zip(from.par_chunks(part)).for_each(|(to, from)| to.copy_from_slice(from));
        black_box(&to);
        2.0 * bytes as f64 / begin.elapsed().as_secs_f64()
    };
    (0..6).map(copy).fold(0.0, f64::max)
}

impl Bench {
    fn heading(&self) {
        let Some(ceilings) = &self.ceilings else { return };
        let (set, threads) = (InstructionSet::current(), rayon::current_num_threads());
        println!("{set}, {threads} threads, {TOKENS} tokens in documents of {DOCUMENT}");
        println!("ceilings: {ceilings}\n");
        println!(
            "{:<36} {:>10} {:>10} {:>10} {:>5} {:>6} {:>15} {:>6}",
            "", "floor µs", "best µs", "median µs", "of", "gap", "rate", "share"
        );
    }

    /// One line: measures the call that `prepare` makes, if the line is asked for. Calls are numbered, so that one can
    /// take operands that the last ones did not touch.
    fn line<F: FnMut(usize)>(
        &self,
        [op, model, shape]: [&str; 3],
        dtype: DType,
        work: Work,
        prepare: impl FnOnce() -> F,
    ) {
        let dtype_name = if dtype == DType::BF16 { "bf16" } else { "f32" };
        let name = format!("{op:<21} {model} {shape:<7} {dtype_name}");
        if !self.words.iter().all(|word| name.contains(word.as_str())) {
            return;
        }
        let mut call = prepare();
        call(0);
        let Some(ceilings) = &self.ceilings else { return println!("{name}") };
        let begin = Instant::now();
        let mut times = Vec::new();
        while times.len() < CALLS.0 || (begin.elapsed() < TIME && times.len() < CALLS.1) {
            let start = Instant::now();
            call(times.len() + 1);
            times.push(start.elapsed().as_secs_f64());
        }
        times.sort_unstable_by(f64::total_cmp);
        let (best, median) = (times[0], times[times.len() / 2]);
        let (by_operations, by_bytes) =
            (work.operations / ceilings.matmul(dtype), work.bytes / ceilings.copy);
        let floor = by_operations.max(by_bytes);
        let rate = if by_operations >= by_bytes {
            format!("{:.1} GFLOP/s", work.operations / best / 1e9)
        } else {
            format!("{:.1} GB/s   ", work.bytes / best / 1e9)
        };
        println!(
            "{name:<36} {:>10.1} {:>10.1} {:>10.1} {:>5} {:>5.2}× {rate:>15} {:>5.0}%",
            1e6 * floor,
            1e6 * best,
            1e6 * median,
            times.len(),
            best / floor,
            100.0 * floor / best
        );
    }
}

/// Random numbers in [−1, 1), the same in each run, as `dtype`.
fn data<const D: usize>(shape: [usize; D], dtype: DType) -> TensorData {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
    TensorData::new(values, shape).convert_dtype(dtype)
}

fn place<const D: usize>(data: TensorData) -> Tensor<Cpu, D> {
    let dtype = data.dtype;
    Tensor::from_data(data, (&Default::default(), dtype))
}

fn tensor<const D: usize>(shape: [usize; D], dtype: DType) -> Tensor<Cpu, D> {
    place(data(shape, dtype))
}

/// So many tensors, each in memory of its own.
fn tensors<const D: usize>(count: usize, shape: [usize; D], dtype: DType) -> Vec<Tensor<Cpu, D>> {
    let data = data(shape, dtype);
    (0..count).map(|_| place(data.clone())).collect()
}

fn packed(shape: [usize; 2]) -> Nf4Weight<Cpu> {
    let weights = data(shape, DType::F32).into_vec::<f32>().expect("f32, as asked for");
    Nf4Weight::new(quantize(&weights, shape, 64, true), &Default::default())
}

/// Operand sets that keep caches cold at so many bytes a call.
fn slots(bytes: f64) -> usize {
    (COLD / bytes).ceil().max(1.0) as usize
}

fn linears(bench: &Bench, model: &Model, dtype: DType) {
    for (shape, input, outputs) in model.projections() {
        let total: usize = outputs.iter().sum();
        let ranks = RANK * outputs.len();
        let product = 2.0 * (TOKENS * input * total) as f64;
        // Down and up, once each.
        let adapter_products = 2.0 * (TOKENS * (ranks * input + RANK * total)) as f64;
        // Codes and 8-bit scales.
        let weights = (input * total) as f64 * (0.5 + 1.0 / 64.0);
        let adapters = 4.0 * (ranks * input + RANK * total) as f64;
        let activations = (TOKENS * (input + total) * dtype.size()) as f64;
        let layers = || -> Vec<(FrozenWeight<Cpu>, Lora<Cpu>)> {
            let one = |output: &usize| {
                let a = tensor([RANK, input], DType::F32);
                let b = tensor([*output, RANK], DType::F32);
                let lora = Lora { a, b, scaling: 2.0, dropout: None };
                (FrozenWeight::Nf4(packed([*output, input])), lora)
            };
            outputs.iter().map(one).collect()
        };
        for adapted in [false, true] {
            let work = |products: f64, bytes: f64| Work {
                operations: product + if adapted { products * adapter_products } else { 0.0 },
                bytes: weights + activations + if adapted { bytes } else { 0.0 },
            };
            let op = if adapted { "linear forward+lora" } else { "linear forward" };
            bench.line([op, model.name, shape], dtype, work(1.0, adapters), || {
                let (x, layers) = (tensor([TOKENS, input], dtype), layers());
                move |_| {
                    black_box(linear(&x, &borrowed(&layers, adapted), None));
                }
            });
            let op = if adapted { "linear backward+lora" } else { "linear backward" };
            // The adapter's input is read as well, and its gradients are read and written.
            let more = 3.0 * adapters + (TOKENS * input * dtype.size()) as f64;
            bench.line([op, model.name, shape], dtype, work(2.0, more), || {
                let (x, layers) = (tensor([TOKENS, input], dtype), layers());
                let dy: Vec<_> = outputs.iter().map(|output| tensor([TOKENS, *output], dtype)).collect();
                let down = linear(&x, &borrowed(&layers, adapted), None).down;
                let mut sums = vec![None; layers.len()];
                move |_| {
                    let gradients = linear_backward(LinearBackward {
                        x: Some(&x),
                        layers: &borrowed(&layers, adapted),
                        down: down.as_ref(),
                        dy: &dy,
                        wants_x: true,
                        sums: std::mem::take(&mut sums),
                    });
                    sums = gradients.adapters;
                    black_box(gradients.x);
                }
            });
        }
    }
}

fn borrowed(layers: &[(FrozenWeight<Cpu>, Lora<Cpu>)], adapted: bool) -> Vec<Linear<'_, Cpu>> {
    let one = |(weight, lora)| Linear { weight, bias: None, lora: Some(lora).filter(|_| adapted) };
    layers.iter().map(|(weight, lora)| one((weight, lora))).collect()
}

fn attentions(bench: &Bench, model: &Model, dtype: DType) {
    let (heads, kv_heads, head_dim) = (model.heads, model.kv_heads, model.head_dim());
    let offsets: Vec<u32> = (0..=TOKENS / DOCUMENT).map(|document| (document * DOCUMENT) as u32).collect();
    let options = AttentionOptions {
        documents: DocumentOffsets::packed(&offsets),
        scaling: 1.0 / (head_dim as f32).sqrt(),
        sliding_window: None,
        soft_cap: None,
    };
    let operands = || {
        let kv = || tensor([TOKENS, kv_heads, head_dim], dtype);
        (tensor([TOKENS, heads, head_dim], dtype), kv(), kv())
    };
    // A query sees itself and what stands before it.
    let pairs = TOKENS / DOCUMENT * DOCUMENT * (DOCUMENT + 1) / 2;
    let product = 2.0 * (heads * head_dim * pairs) as f64;
    let (query, key) =
        (TOKENS * heads * head_dim * dtype.size(), TOKENS * kv_heads * head_dim * dtype.size());
    let work = Work { operations: 2.0 * product, bytes: (2 * query + 2 * key) as f64 };
    bench.line(["attention forward", model.name, ""], dtype, work, || {
        let (q, k, v) = operands();
        let options = &options;
        move |_| {
            black_box(attention(&q, &k, &v, options));
        }
    });
    // Scores again, and the gradients of scores, queries, keys and values.
    let work = Work { operations: 5.0 * product, bytes: (4 * query + 4 * key) as f64 };
    bench.line(["attention backward", model.name, ""], dtype, work, || {
        let (q, k, v) = operands();
        let (output, log_sum_exp) = attention(&q, &k, &v, &options);
        let dy = tensor([TOKENS, heads, head_dim], dtype);
        let options = &options;
        move |_| {
            black_box(attention_backward(AttentionBackward {
                q: &q,
                k: &k,
                v: &v,
                output: &output,
                log_sum_exp: &log_sum_exp,
                options,
                dy: &dy,
            }));
        }
    });
}

fn losses(bench: &Bench, model: &Model, dtype: DType) {
    let (hidden, vocabulary) = (model.hidden, model.vocabulary);
    // Logits, and the gradient of the hidden states.
    let work = Work {
        operations: 4.0 * (TOKENS * hidden * vocabulary) as f64,
        bytes: ((vocabulary + 2 * TOKENS) * hidden * dtype.size()) as f64,
    };
    bench.line(["linear_cross_entropy", model.name, ""], dtype, work, || {
        let head = FrozenWeight::Dense(tensor([vocabulary, hidden], dtype));
        // Logits of a model that has learned something are small.
        let x = tensor::<2>([TOKENS, hidden], dtype) * 0.1;
        let targets: Vec<_> = (0..TOKENS).map(|token| (token * 7919 % vocabulary) as i32).collect();
        move |_| {
            black_box(linear_cross_entropy(&x, &head, &targets, true));
        }
    });
}

fn elementwise(bench: &Bench, model: &Model, dtype: DType) {
    let moved = |tensors: usize, width: usize| Work {
        operations: 0.0,
        bytes: (tensors * TOKENS * width * dtype.size()) as f64,
    };
    let shape = [TOKENS, model.hidden];
    let work = moved(2, model.hidden);
    bench.line(["rms_norm forward", model.name, ""], dtype, work, || {
        let count = slots(work.bytes);
        let (weight, x) = (tensor([model.hidden], dtype), tensors(count, shape, dtype));
        let mut y = vec![None; count];
        move |call| y[call % count] = Some(rms_norm(&x[call % count], &weight, 1e-5))
    });
    let work = moved(4, model.hidden);
    bench.line(["rms_norm backward", model.name, ""], dtype, work, || {
        let count = slots(work.bytes);
        let weight = tensor([model.hidden], dtype);
        let (x, residual) = (tensors(count, shape, dtype), tensors(count, shape, dtype));
        let mut dy: Vec<_> = tensors(count, shape, dtype).into_iter().map(Some).collect();
        move |call| {
            let slot = call % count;
            let upstream = dy[slot].take().expect("put back by the call before");
            dy[slot] = Some(rms_norm_backward(&x[slot], &weight, 1e-5, upstream, Some(&residual[slot])));
        }
    });
    let work = moved(2, model.hidden);
    bench.line(["rope", model.name, ""], dtype, work, || {
        let (count, head_dim) = (slots(work.bytes), model.head_dim());
        let angles = || tensor([DOCUMENT, head_dim / 2], DType::F32);
        let table = RotaryTable { cos: angles().cos(), sin: angles().sin(), pairs: Pairs::Halves };
        let positions: Vec<_> = (0..TOKENS).map(|token| (token % DOCUMENT) as u32).collect();
        let positions = Positions::new(&positions, &Default::default());
        let x = tensors(count, [TOKENS, model.heads, head_dim], dtype);
        let mut x: Vec<_> = x.into_iter().map(Some).collect();
        move |call| {
            let before = x[call % count].take().expect("put back by the call before");
            x[call % count] = Some(rope(before, &table, &positions, Direction::Forward));
        }
    });
    let shape = [TOKENS, model.intermediate];
    let work = moved(3, model.intermediate);
    bench.line(["swiglu forward", model.name, ""], dtype, work, || {
        let count = slots(work.bytes);
        let (gate, up) = (tensors(count, shape, dtype), tensors(count, shape, dtype));
        let mut y = vec![None; count];
        move |call| y[call % count] = Some(gated(Activation::Silu, &gate[call % count], &up[call % count]))
    });
    let work = moved(5, model.intermediate);
    bench.line(["swiglu backward", model.name, ""], dtype, work, || {
        let count = slots(work.bytes);
        let (gate, up) = (tensors(count, shape, dtype), tensors(count, shape, dtype));
        // Twice the identity, so that gradients that serve as the next operands neither vanish nor grow much.
        let dy: Vec<_> =
            (0..count).map(|_| place(TensorData::full(shape, 2.0f32).convert_dtype(dtype))).collect();
        let mut operands: Vec<_> = gate.into_iter().zip(up).map(Some).collect();
        move |call| {
            let slot = call % count;
            let (gate, up) = operands[slot].take().expect("put back by the call before");
            operands[slot] = Some(gated_backward(Activation::Silu, gate, up, dy[slot].clone()));
        }
    });
}

fn optimizers(bench: &Bench, model: &Model) {
    let shapes = model.adapter_shapes();
    let parameters: usize = shapes.iter().map(|[rows, columns]| rows * columns).sum();
    // Parameter and two moments are read and written, the gradient is read.
    let work = Work { operations: 0.0, bytes: (7 * 4 * parameters) as f64 };
    bench.line(["adamw", model.name, ""], DType::F32, work, || {
        let count = slots(work.bytes);
        let one = |shape: &[usize; 2]| {
            let parameter = tensor(*shape, DType::F32);
            let moments =
                Moments { first: tensor(*shape, DType::F32), second: tensor(*shape, DType::F32).abs() };
            (tensor(*shape, DType::F32), (parameter, moments))
        };
        let (gradients, mut states): (Vec<Vec<_>>, Vec<Vec<_>>) =
            (0..count).map(|_| shapes.iter().map(one).unzip()).unzip();
        let guard = Guard::open(1.0, &Default::default());
        move |call| {
            let slot = call % count;
            let states = &mut states[slot];
            let updates = std::mem::take(states).into_iter().zip(&gradients[slot]);
            let updates = updates.map(|((parameter, moments), gradient)| Update {
                parameter,
                gradient: Some(gradient.clone()),
                moments,
            });
            *states = adamw(updates.collect(), &guard, &AdamWConfig::default(), 1e-4, 1 + call as u64);
        }
    });
    let work = Work { operations: 0.0, bytes: (4 * parameters) as f64 };
    bench.line(["norm", model.name, ""], DType::F32, work, || {
        let count = slots(work.bytes);
        let one = |shape: &[usize; 2]| tensor(*shape, DType::F32);
        let gradients: Vec<Vec<_>> = (0..count).map(|_| shapes.iter().map(one).collect()).collect();
        move |call| {
            black_box(norm(&gradients[call % count].iter().collect::<Vec<_>>(), &Default::default()));
        }
    });
}

fn quantizers(bench: &Bench, model: &Model) {
    let shape = [model.hidden, model.intermediate];
    let work = Work { operations: 0.0, bytes: (shape[0] * shape[1]) as f64 * (4.0 + 0.5 + 1.0 / 64.0) };
    bench.line(["nf4 quantize", model.name, "down"], DType::F32, work, || {
        let weights = data(shape, DType::F32).into_vec::<f32>().expect("f32, as asked for");
        let weights = vec![weights; slots(work.bytes)];
        move |call| {
            black_box(quantize(&weights[call % weights.len()], shape, 64, true));
        }
    });
    bench.line(["nf4 dequantize", model.name, "down"], DType::F32, work, || {
        let weights: Vec<_> = (0..slots(work.bytes)).map(|_| packed(shape)).collect();
        let mut dense = vec![None; weights.len()];
        move |call| {
            let slot = call % weights.len();
            dense[slot] = Some(weights[slot].dequantize());
        }
    });
}

fn main() -> Result<(), String> {
    let (options, words): (Vec<_>, Vec<_>) = std::env::args().skip(1).partition(|word| word.starts_with('-'));
    let measures = options.iter().any(|option| option == "--bench");
    let mut set = InstructionSet::best();
    for option in options.iter().filter(|option| *option != "--bench") {
        let names = ["--on=portable", "--on=avx2", "--on=avx512"];
        let place = names.iter().position(|name| name == option);
        let place = place.ok_or(format!("beside {names:?} the bench takes words alone: linear bf16 L"))?;
        set = [InstructionSet::Portable, InstructionSet::Avx2, InstructionSet::Avx512][place];
    }
    set.run(|| table(words, measures)).map_err(|unavailable| unavailable.to_string())
}

/// Measures all lines that hold each of some words, on the instruction set in use.
fn table(words: Vec<String>, measures: bool) {
    let bench = Bench { words, ceilings: measures.then(Ceilings::measure) };
    bench.heading();
    let dtypes = [DType::BF16, DType::F32];
    for (model, dtype) in MODELS.iter().flat_map(|model| dtypes.map(|dtype| (model, dtype))) {
        linears(&bench, model, dtype);
        decode::all(&bench, model, dtype);
        attentions(&bench, model, dtype);
        losses(&bench, model, dtype);
        elementwise(&bench, model, dtype);
    }
    for dtype in dtypes {
        recurrent::mixers(&bench, dtype);
        grouped::experts(&bench, dtype);
    }
    for model in &MODELS {
        optimizers(&bench, model);
        quantizers(&bench, model);
    }
    let later = measures.then(Ceilings::measure);
    if let Some((before, later)) =
        bench.ceilings.as_ref().zip(later).filter(|(before, later)| before.moved(later))
    {
        println!(
            "\nceilings now: {later}. They were {before}: the machine does other work, the table is not its own."
        );
    }
}
