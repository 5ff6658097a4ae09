//! The backward pass of DoRA against PEFT's gradients and against differences of the loss.

use std::path::Path;

use burn_tensor::{Tensor, TensorData};
use tune::adapter::dora::row_norms;
use tune::adapter::lora::{DropoutStep, LoraSet};
use tune::adapter::parameter::Part;
use tune::adapter::peft::Adapter;
use tune::adapter::spec::Spec;
use tune::adapter::target;
use tune::assets::ModelDir;
use tune::data::batch::MicroBatch;
use tune::device::Cpu;
use tune::model::layers::Order;
use tune::model::{Decoder, FloatDtype, family, load};
use tune::objective::{Comparison, Objective};
use tune::quant;
use tune::train::backward::{Gradients, Pass, evaluate, forward_backward};

use crate::common::{golden, number, relative_difference, tensors};
use crate::gradients::micro_batch;

fn decoder(folder: &Path, quantization: Option<quant::spec::Spec>) -> Decoder<Cpu> {
    let folder = ModelDir::open(folder).unwrap();
    let spec = family::decoder_spec(folder.config()).unwrap();
    let device = Default::default();
    load::load(folder.weights(), &spec, quantization, FloatDtype::F32, &device, &mut |_| {}).unwrap()
}

/// Σ nll and its gradient by parameter; `keep` layers keep their activations.
fn gradients(
    decoder: &Decoder<Cpu>,
    adapters: &LoraSet<Cpu>,
    batch: &MicroBatch,
    keep: usize,
) -> (f64, Vec<Vec<f32>>) {
    let mut gradients = Gradients::new(decoder.layers().len());
    let pass =
        Pass { dropout: DropoutStep { seed: 1, step: 1, micro_batch: 0 }, keep, balance: 0.0, parks: false };
    let sum = number(
        forward_backward(
            decoder,
            &adapters.until_update(),
            &Objective::Sft,
            &Comparison::default(),
            batch,
            pass,
            &mut gradients,
        )
        .unwrap()
        .value,
    );
    let host = |tensor: Option<Tensor<Cpu, 2>>| tensor.unwrap().into_data().into_vec().unwrap();
    (sum, gradients.by_parameter(adapters).into_iter().map(host).collect())
}

#[test]
fn step_zero_gradients_are_those_of_peft() {
    let decoder = decoder(
        &golden("trajectory/base"),
        Some(quant::spec::Spec::Nf4 { block_size: 64, double_quant: true }),
    );
    let adapter = Adapter::open(&golden("kinds/adapter_dora")).unwrap();
    let targets = adapter.targets(&decoder.spec().modules()).unwrap();
    let values = adapter.values(&targets).unwrap();
    let set = LoraSet::<Cpu>::from_values(targets, 0.0, values, &Default::default()).unwrap();
    let batch = micro_batch("tokens.jsonl", 4);
    let (sum, ours) = gradients(&decoder, &set, &batch, 0);
    let theirs = tensors(&golden("kinds/step0_gradients_dora.safetensors"));
    assert_eq!(ours.len(), theirs.len());
    let mut worst = 0.0_f64;
    for (parameter, ours) in set.parameters().iter().zip(&ours) {
        let ours: Vec<f32> = ours.iter().map(|value| value / batch.supervised_tokens as f32).collect();
        worst = worst.max(relative_difference(&ours, &theirs[&parameter.name]));
    }
    println!("gradients within {worst:.1e}");
    assert!(worst < 1e-4, "a gradient differs by {worst:e}");
    // What is kept and what is made again are the same, bit for bit.
    for keep in [1, 2, 3] {
        assert_eq!(gradients(&decoder, &set, &batch, keep), (sum, gradients(&decoder, &set, &batch, 0).1));
    }
    let evaluated = evaluate(&decoder, &set.until_update(), &Objective::Sft, &Comparison::default(), &batch);
    assert_eq!(number(evaluated.unwrap().value), sum);
}

/// A set with other values.
fn with_values(set: &LoraSet<Cpu>, values: Vec<Vec<f32>>) -> LoraSet<Cpu> {
    LoraSet::from_values(set.targets().to_vec(), 0.0, values, &Default::default()).unwrap()
}

fn values(set: &LoraSet<Cpu>) -> Vec<Vec<f32>> {
    (0..set.parameters().len()).map(|index| set.values(index).unwrap()).collect()
}

/// Moves the magnitudes so that m / ‖W + scaling · B·A‖ is what it was in `before`: the norm as a constant.
fn with_factors_of(decoder: &Decoder<Cpu>, set: &mut LoraSet<Cpu>, before: &LoraSet<Cpu>) {
    let mut factors = Vec::new();
    let norm = |target: &target::Target, lora: &_| {
        let at = target.module.layer;
        let (_, layer) = decoder.layers().walk(Order::Up(at..at + 1)).next().unwrap().unwrap();
        let projection = layer.projection(target.module.slot);
        row_norms(&projection.weight, projection.row_squares().clone(), lora)
    };
    let mut magnitudes = before.tensors().iter().skip(2).step_by(3);
    for layer in 0..decoder.layers().len() {
        before.clone().set_magnitudes(layer, |target, lora| {
            let magnitude = magnitudes.next().unwrap().clone();
            factors.push(magnitude.clone() / norm(target, lora));
            magnitude
        });
    }
    let mut factors = factors.into_iter();
    for layer in 0..decoder.layers().len() {
        set.set_magnitudes(layer, |target, lora| factors.next().unwrap() * norm(target, lora));
    }
}

/// Each gradient is the slope of the loss along itself; biases (qwen2) and norms of heads (qwen3) stand between.
#[test]
fn gradients_are_slopes_of_the_loss() {
    let ids: Vec<u32> = (0..24_u32).map(|at| (at * 29 + at * at * 3) % 64).collect();
    let targets: Vec<i32> = ids[1..].iter().map(|&id| id as i32).chain([-100]).collect();
    let batch = MicroBatch {
        document_offsets: vec![0, 24],
        supervised_tokens: 23,
        position_ids: (0..24).collect(),
        targets,
        input_ids: ids,
        ..MicroBatch::default()
    };
    for family in ["qwen2", "qwen3", "llama_bias"] {
        let decoder = decoder(&golden("families").join(family), None);
        let spec = Spec { rank: 4, alpha: 8.0, use_dora: true, ..Spec::default() };
        let targets = target::resolve(&spec, &decoder.spec().modules()).unwrap();
        let mut set: LoraSet<Cpu> = LoraSet::init(targets, 0.0, 3, &Default::default());
        decoder.init_magnitudes(&mut set).unwrap();
        let mut start = values(&set);
        for (index, (parameter, values)) in set.parameters().iter().zip(&mut start).enumerate() {
            for (at, value) in values.iter_mut().enumerate() {
                let wave = (((at * 37 + index * 11) % 101) as f32 / 50.0) - 1.0;
                match parameter.part {
                    Part::A | Part::Saved => {}
                    Part::B => *value = 0.1 * wave,
                    Part::Magnitude => *value *= 1.0 + 0.2 * wave,
                }
            }
        }
        let set = with_values(&set, start.clone());
        let (_, gradients) = gradients(&decoder, &set, &batch, 0);
        for (index, gradient) in gradients.iter().enumerate() {
            let norm = gradient.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
            let loss = |step: f64| {
                let mut moved = start.clone();
                for (value, slope) in moved[index].iter_mut().zip(gradient) {
                    *value += (step * f64::from(*slope) / norm) as f32;
                }
                let mut moved = with_values(&set, moved);
                if set.parameters()[index].part != Part::Magnitude {
                    with_factors_of(&decoder, &mut moved, &set);
                }
                let none = Comparison::default();
                number(
                    evaluate(&decoder, &moved.until_update(), &Objective::Sft, &none, &batch).unwrap().value,
                )
            };
            let step = 0.02 / norm.max(1.0);
            let slope = (loss(step) - loss(-step)) / (2.0 * step);
            let name = &set.parameters()[index].name;
            assert!((slope / norm - 1.0).abs() < 2e-2, "{family} {name}: slope {slope}, gradient {norm}");
        }
    }
}

#[test]
fn a_new_adapter_changes_nothing() {
    let decoder = decoder(&golden("families/qwen2"), None);
    let spec = Spec { rank: 4, use_dora: true, ..Spec::default() };
    let targets = target::resolve(&spec, &decoder.spec().modules()).unwrap();
    let mut set: LoraSet<Cpu> = LoraSet::init(targets, 0.0, 3, &Default::default());
    decoder.init_magnitudes(&mut set).unwrap();
    let layers: Vec<_> = (0..decoder.layers().len()).map(|layer| set.layer(layer, None)).collect();
    let ids: Vec<u32> = (0..20).collect();
    let host = |logits: Tensor<Cpu, 2>| -> TensorData { logits.into_data() };
    let with = host(decoder.logits(&ids, Some(&layers)).unwrap());
    assert_eq!(with, host(decoder.logits(&ids, None).unwrap()));
}
