//! Every GPU kernel, at the shapes of a real model, through CubeCL's CUDA compiler without a GPU.
//!
//! `TUNE_CUDA_SOURCES=folder` keeps the CUDA C++; `.ci/cuda.py` makes machine code of it and says what each kernel takes and
//! what its loops do.

use std::sync::Arc;

use burn_tensor::{DType, Tensor, TensorData};
use tune_kernels::activation::{Function, activation, activation_backward};
use tune_kernels::adamw::{AdamWConfig, Guard, Moments, Update, adamw, norm};
use tune_kernels::attention::{
    AttentionBackward, AttentionOptions, DocumentOffsets, attention, attention_backward,
};
use tune_kernels::causal_conv::{CausalConv, causal_conv, causal_conv_backward};
use tune_kernels::delta_rule::{DeltaHeads, DeltaRule, delta_rule, delta_rule_backward};
use tune_kernels::device::DeviceOps;
use tune_kernels::dropout::{Dropout, DropoutKey};
use tune_kernels::gated::{Activation, gated, gated_backward};
use tune_kernels::layer_norm::{layer_norm, layer_norm_backward};
use tune_kernels::linear::{FrozenWeight, Linear, LinearBackward, Lora, linear, linear_backward};
use tune_kernels::linear_cross_entropy::{
    Logits, OutputHead, linear_cross_entropy, weighted_linear_cross_entropy,
};
use tune_kernels::nf4::{self, Nf4Weight};
use tune_kernels::rms_norm::{NormWeight, RmsNorm, Rounding, rms_norm, rms_norm_backward, rms_norm_onto};
use tune_kernels::rope::{Direction, Pairs, Positions, RotaryTable, rope};
use tune_kernels::router::{Router, Score, route, route_backward};
use tune_kernels::row_scale::{row_scale, row_scale_backward};
use tune_kernels::row_sum::{RowLists, row_sum};
use tune_kernels::segment_sum::segment_sum;

use crate::card::architecture;
use crate::runtime::{Compiled, Kernel, LAUNCHED, alone, begin};

fn zeros<const D: usize>(shape: [usize; D], dtype: DType) -> Tensor<Compiled, D> {
    let count = shape.iter().product();
    Tensor::from_data(TensorData::new(vec![0.0f32; count], shape), (&Default::default(), dtype))
}

fn packed(out: usize, input: usize) -> FrozenWeight<Compiled> {
    let quantized = nf4::quantize(&vec![0.5; out * input], [out, input], 64, true);
    FrozenWeight::Nf4(Nf4Weight::new(quantized, &Default::default()))
}

/// Forward and backward of one group of layers over NF4, with an adapter each.
fn projections(tokens: usize, input: usize, outs: &[usize], dropout: Option<Dropout>, dtype: DType) {
    const RANK: usize = 16;
    let x = zeros([tokens, input], dtype);
    let weights: Vec<_> = outs.iter().map(|out| packed(*out, input)).collect();
    let lora = |out: &usize| Lora {
        a: zeros([RANK, input], DType::F32),
        b: zeros([*out, RANK], DType::F32),
        scaling: 2.0,
        dropout,
    };
    let loras: Vec<_> = outs.iter().map(lora).collect();
    let layer = |(weight, lora)| Linear { weight, bias: None, lora: Some(lora) };
    let layers: Vec<_> = weights.iter().zip(&loras).map(layer).collect();
    let residual = (outs.len() == 1).then(|| zeros([tokens, outs[0]], dtype));
    let projected = linear(&x, &layers, residual.as_ref());
    let dy: Vec<_> = outs.iter().map(|out| zeros([tokens, *out], dtype)).collect();
    linear_backward(LinearBackward {
        x: Some(&x),
        layers: &layers,
        down: projected.down.as_ref(),
        dy: &dy,
        wants_x: true,
        sums: outs.iter().map(|_| None).collect(),
    });
}

/// What a decoder layer launches, at the proportions of a model, not its size: that changes no kernel.
fn decoder_layer(dtype: DType) {
    let tokens = 512;
    let (hidden, intermediate, heads, kv_heads) = (512, 1024, 8, 2);
    let x = zeros([tokens, hidden], dtype);
    let weight = zeros([hidden], dtype);
    begin("norms");
    rms_norm(&x, &weight, 1e-5);
    rms_norm_backward(&x, &weight, 1e-5, x.clone(), Some(&x));
    let gemma = RmsNorm { rounding: Rounding::Last, weight: NormWeight::OnePlus, ..RmsNorm::from(1e-5) };
    rms_norm_onto(&x, &weight, gemma, &x);
    rms_norm_backward(&x, &weight, gemma, x.clone(), None);
    layer_norm(&x, &weight, Some(&weight), 1e-5, Some(&x));
    layer_norm_backward(&x, &weight, 1e-5, x.clone(), None);
    begin("layers over NF4");
    projections(tokens, hidden, &[hidden, 128, 128], None, dtype);
    projections(tokens, hidden, &[hidden], None, dtype);
    projections(tokens, hidden, &[intermediate, intermediate], None, dtype);
    projections(tokens, intermediate, &[hidden], None, dtype);
    begin("layers over NF4, dequantized as it is read");
    // So few tokens that it is.
    projections(96, hidden, &[hidden], None, dtype);
    begin("layers with dropout");
    let key = DropoutKey { seed: 1, step: 1, micro_batch: 0, layer: 0, projection: 0 };
    projections(tokens, hidden, &[hidden], Some(Dropout { probability: 0.1, key }), dtype);
    begin("activations");
    let gate = zeros([tokens, intermediate], dtype);
    for activation in [Activation::Silu, Activation::GeluTanh, Activation::Sigmoid, Activation::Clamped] {
        gated(activation, &gate, &gate);
        gated_backward(activation, gate.clone(), gate.clone(), gate.clone());
    }
    for function in Function::ALL {
        activation(function, &gate);
        activation_backward(function, gate.clone(), gate.clone());
    }
    for head_dim in [64, 96, 128, 192, 256] {
        begin(&format!("attention, heads of {head_dim}"));
        let table = RotaryTable {
            cos: zeros([tokens, head_dim / 2], DType::F32),
            sin: zeros([tokens, head_dim / 2], DType::F32),
            pairs: Pairs::Neighbours,
        };
        let positions = Positions::new(&vec![0; tokens], &Default::default());
        let q = rope(zeros([tokens, heads, head_dim], dtype), &table, &positions, Direction::Forward);
        let k = zeros([tokens, kv_heads, head_dim], dtype);
        for (sliding_window, soft_cap) in [(None, None), (Some(64), None), (None, Some(50.0))] {
            let documents = DocumentOffsets::packed(&[0, tokens as u32 / 3, tokens as u32]);
            let options = AttentionOptions { documents, scaling: 0.125, sliding_window, soft_cap };
            let (output, log_sum_exp) = attention(&q, &k, &k, &options);
            attention_backward(AttentionBackward {
                q: &q,
                k: &k,
                v: &k,
                output: &output,
                log_sum_exp: &log_sum_exp,
                options: &options,
                dy: &q,
            });
        }
    }
}

/// The layers that hold a recurrent state.
fn recurrent_layer(dtype: DType) {
    let (tokens, heads) = (96, DeltaHeads { keys: 2, values: 4, key_dim: 128, value_dim: 128 });
    let width = heads.widths().iter().sum();
    let documents = DocumentOffsets::packed(&[0, 33, tokens as u32]);
    let (x, weight) = (zeros([tokens, width], dtype), zeros([width, 4], dtype));
    let conv = CausalConv { weight: &weight, silu: true, documents: &documents };
    let mixed = causal_conv(&x, conv);
    causal_conv_backward(&x, conv, &mixed);
    let gate = zeros([tokens, heads.values], dtype);
    let each = zeros([heads.values], DType::F32);
    let rule = DeltaRule {
        mixed: &mixed,
        decay: &gate,
        write: &gate,
        log_rate: &each,
        bias: &each,
        heads,
        documents: &documents,
    };
    let y = delta_rule(rule);
    delta_rule_backward(rule, &y);
}

#[test]
fn every_kernel_becomes_cuda() {
    let _alone = alone();
    let architecture = architecture();
    // Cards before Ampere have no bf16.
    let half = if architecture < 80 { DType::F16 } else { DType::BF16 };
    for dtype in [half, DType::F32] {
        if dtype == DType::F32 {
            begin("layers in f32");
            projections(96, 512, &[512], None, dtype);
        } else {
            decoder_layer(dtype);
            begin("recurrent states");
            recurrent_layer(dtype);
        }
        begin("the loss");
        let hidden = zeros([80, 512], dtype);
        let head = FrozenWeight::Dense(zeros([1024, 512], dtype));
        let found = linear_cross_entropy(&hidden, &head, &[3; 80], true);
        weighted_linear_cross_entropy(&hidden, &head, &[3; 80], &found.rows);
        let bias = Some(zeros([1024], dtype));
        let logits = Logits { scale: 0.5, soft_cap: Some(30.0) };
        let bounded = OutputHead { weight: head, bias, logits };
        linear_cross_entropy(&hidden, &bounded, &[3; 80], true);
        segment_sum(&found.rows, &[0, 30, 80]);
        row_sum(&hidden, &RowLists::copies([0..80, 3..9], 80));
        let (_, weights) = row_scale_backward(&hidden, &found.rows, hidden.clone());
        row_scale(hidden.clone(), &found.rows);
        let router = Router { used: 8, score: Score::Softmax, normalised: true, factor: 1.0 };
        let routes = route(&hidden, None, router);
        let weights = Tensor::cat(vec![weights; 8], 0).reshape([80, 8]);
        route_backward(&hidden, &routes.chosen, router, &weights);
    }
    begin("the update");
    let parameter = zeros([16, 512], DType::F32);
    let moments = Moments::zeros_like(&parameter);
    let update = Update { gradient: Some(parameter.clone()), parameter, moments };
    let norm = norm(&[&zeros([16, 512], DType::F32)], &Default::default());
    let guard = Guard { numbers: norm.clone(), scale: 1.0, max_norm: 1.0 };
    adamw(vec![update], &guard, &AdamWConfig::default(), 1e-4, 1);

    // Everything before it has been launched. This runtime computes nothing.
    let _nothing = Compiled::read_later(norm).wait();
    let launched = LAUNCHED.lock().expect("nothing panicked while it was held").take();
    let launched = launched.expect("kernels were launched");
    assert!(launched.refused.is_empty(), "refused: {:#?}", launched.refused);
    for name in [
        "matmul",
        "nf4_dequantize",
        "rms_norm_backward",
        "rope",
        "attention_backward",
        "gated_backward",
        "causal_conv_backward",
        "back_by_columns",
        "queries_and_keys",
        "cross_entropy",
        "segment_sum",
        "row_scale",
        "row_products",
        "route_kernel",
        "route_backward",
        "row_sum",
        "adamw",
        "factor",
        "sum_of_squares",
        "root",
    ] {
        let found = launched.kernels.iter().any(|kernel| kernel.entry_point.contains(name));
        assert!(found, "no kernel of {name}");
    }
    let product = if architecture < 80 { "wmma::mma_sync" } else { "mma.sync" };
    let has_product =
        |kernel: &Arc<Kernel>| kernel.entry_point.contains("matmul") && kernel.text.contains(product);
    assert!(launched.kernels.iter().any(has_product), "no product on tensor cores");
    let has_stores = launched.kernels.iter().any(|kernel| kernel.text.contains("stmatrix"));
    assert_eq!(has_stores, architecture >= 90, "whether results in 16 bits leave by stmatrix");
    if let Ok(folder) = std::env::var("TUNE_CUDA_SOURCES") {
        std::fs::create_dir_all(&folder).expect("the folder can be made");
        for (number, kernel) in launched.kernels.iter().enumerate() {
            let Kernel { entry_point, text, launch, .. } = &**kernel;
            let path = std::path::Path::new(&folder).join(format!("{number:03}_{entry_point}.cu"));
            let text = format!("// {launch}\n{text}");
            std::fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
}
