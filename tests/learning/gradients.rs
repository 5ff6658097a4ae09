//! The gradient of every adapter matrix at step 0 against PEFT, and the layer loop against itself.

use std::collections::BTreeMap;

use crate::common::{golden, number, relative_difference, tensors};
use tune::adapter::lora::{DropoutStep, LoraSet};
use tune::adapter::peft::Adapter;
use tune::adapter::spec::Spec;
use tune::adapter::target;
use tune::assets::ModelDir;
use tune::data::batch::MicroBatch;
use tune::device::Cpu;
use tune::model::{Decoder, DecoderSpec, FloatDtype, family, load};
use tune::objective::{Comparison, Objective};
use tune::quant;
use tune::train::backward::{Gradients, Pass, evaluate, forward_backward};

struct Setup {
    decoder: Decoder<Cpu>,
    adapters: LoraSet<Cpu>,
}

fn setup(dtype: FloatDtype, dropout: f64) -> Setup {
    let folder = ModelDir::open(&golden("trajectory/base")).unwrap();
    let spec: DecoderSpec = family::decoder_spec(folder.config()).unwrap();
    let adapter_spec = Spec { rank: 8, alpha: 16.0, dropout, ..Spec::default() };
    let targets = target::resolve(&adapter_spec, &spec.modules()).unwrap();
    let adapter = Adapter::open(&golden("trajectory/adapter")).unwrap();
    let values = adapter.values(&targets).unwrap();
    let device = Default::default();
    let nf4 = quant::spec::Spec::Nf4 { block_size: 64, double_quant: true };
    let decoder = load::load(folder.weights(), &spec, Some(nf4), dtype, &device, &mut |_| {}).unwrap();
    Setup { decoder, adapters: LoraSet::from_values(targets, dropout, values, &device).unwrap() }
}

/// Rows of a golden token file as one micro-batch.
pub(crate) fn micro_batch(file: &str, rows: usize) -> MicroBatch {
    let text = std::fs::read_to_string(golden(&format!("trajectory/{file}"))).unwrap();
    let mut batch = MicroBatch { document_offsets: vec![0], ..MicroBatch::default() };
    for line in text.lines().take(rows) {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let ids: Vec<u32> = serde_json::from_value(row["input_ids"].clone()).unwrap();
        let labels: Vec<i32> = match row.get("labels") {
            Some(labels) => serde_json::from_value(labels.clone()).unwrap(),
            None => ids.iter().map(|&id| id as i32).collect(),
        };
        let targets: Vec<i32> = labels[1..].iter().copied().chain([-100]).collect();
        batch.supervised_tokens += targets.iter().filter(|&&target| target != -100).count() as u64;
        batch.position_ids.extend(0..ids.len() as u32);
        batch.targets.extend(targets);
        batch.input_ids.extend(ids);
        batch.document_offsets.push(batch.input_ids.len() as u32);
    }
    batch
}

fn gradients(setup: &Setup, batch: &MicroBatch, keep: usize) -> (f64, BTreeMap<String, Vec<f32>>) {
    gradients_of(&Objective::Sft, setup, batch, keep)
}

fn gradients_of(
    objective: &Objective,
    setup: &Setup,
    batch: &MicroBatch,
    keep: usize,
) -> (f64, BTreeMap<String, Vec<f32>>) {
    let mut gradients = Gradients::new(setup.decoder.layers().len());
    let pass =
        Pass { dropout: DropoutStep { seed: 1, step: 1, micro_batch: 0 }, keep, balance: 0.0, parks: false };
    let sum = number(
        forward_backward(
            &setup.decoder,
            &setup.adapters.until_update(),
            objective,
            &Comparison::default(),
            batch,
            pass,
            &mut gradients,
        )
        .unwrap()
        .value,
    );
    let mean = 1.0 / batch.supervised_tokens as f32;
    let values = gradients.by_parameter(&setup.adapters).into_iter().map(|tensor| {
        let values: Vec<f32> = tensor.unwrap().into_data().into_vec().unwrap();
        values.into_iter().map(|value| value * mean).collect()
    });
    let names = setup.adapters.parameters().iter().map(|parameter| parameter.name.clone());
    (sum, names.zip(values).collect())
}

#[test]
fn step_zero_gradients_are_those_of_the_reference() {
    let setup = setup(FloatDtype::F32, 0.0);
    for (case, file, rows) in [
        ("plain", "tokens.jsonl", 4),
        ("clipped", "tokens_nolabels.jsonl", 1),
        ("repeated", "tokens_repeated.jsonl", 2),
    ] {
        let (_, ours) = gradients(&setup, &micro_batch(file, rows), 0);
        let theirs = tensors(&golden(&format!("trajectory/step0_gradients_{case}.safetensors")));
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
        let worst =
            theirs.iter().map(|(name, theirs)| relative_difference(&ours[name], theirs)).fold(0.0, f64::max);
        println!("{case}: gradients within {worst:.1e}");
        assert!(worst < 1e-4, "{case}: a gradient differs by {worst:e}");
    }
}

#[test]
fn keeping_activations_changes_no_bit() {
    for dtype in [FloatDtype::F32, FloatDtype::Bf16] {
        let setup = setup(dtype, 0.2);
        let batch = micro_batch("tokens.jsonl", 3);
        let recomputed = gradients(&setup, &batch, 0);
        for keep in [1, 2, 3] {
            assert_eq!(gradients(&setup, &batch, keep), recomputed, "{dtype:?}, {keep} layers kept");
        }
    }
}

#[test]
fn bf16_stays_near_f32() {
    let batch = micro_batch("tokens.jsonl", 8);
    let [exact, rounded] =
        [FloatDtype::F32, FloatDtype::Bf16].map(|dtype| gradients(&setup(dtype, 0.0), &batch, 0));
    let loss = |sum: f64| sum / batch.supervised_tokens as f64;
    assert!((loss(exact.0) - loss(rounded.0)).abs() < 0.05, "{} {}", loss(exact.0), loss(rounded.0));
    for (name, gradient) in &exact.1 {
        let difference = relative_difference(&rounded.1[name], gradient);
        assert!(difference < 0.1, "{name}: {difference:e}");
    }
}

#[test]
fn evaluation_sees_the_loss_that_training_sees() {
    let setup = setup(FloatDtype::F32, 0.0);
    let batch = micro_batch("tokens.jsonl", 5);
    let (sum, _) = gradients(&setup, &batch, 0);
    assert_eq!(
        number(
            evaluate(
                &setup.decoder,
                &setup.adapters.until_update(),
                &Objective::Sft,
                &Comparison::default(),
                &batch
            )
            .unwrap()
            .value
        ),
        sum
    );
}

/// Each token's gradient times its probability, one token at a time.
#[test]
fn dft_weighs_the_gradient_of_each_token_by_its_probability() {
    let setup = setup(FloatDtype::F32, 0.0);
    let batch = micro_batch("tokens.jsonl", 2);
    let (value, ours) = gradients_of(&Objective::Dft, &setup, &batch, 3);
    let tokens = batch.supervised_tokens as f32;
    let mut expected_value = 0.0;
    let mut expected: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for at in (0..batch.targets.len()).filter(|at| batch.targets[*at] != -100) {
        let mut targets = vec![-100; batch.targets.len()];
        targets[at] = batch.targets[at];
        let one = MicroBatch { targets, supervised_tokens: 1, ..batch.clone() };
        let (loss, gradient) = gradients(&setup, &one, 3);
        let probability = (-loss).exp();
        expected_value += probability * loss;
        for (name, values) in gradient {
            let sum = expected.entry(name).or_insert_with(|| vec![0.0; values.len()]);
            for (sum, value) in sum.iter_mut().zip(values) {
                *sum += probability as f32 * value / tokens;
            }
        }
    }
    assert!((value / expected_value - 1.0).abs() < 1e-5, "{value} for {expected_value}");
    for (name, ours) in &ours {
        let difference = relative_difference(ours, &expected[name]);
        assert!(difference < 1e-4, "{name}: {difference:e}");
    }
}
