//! How many kernels a GPU is given for a training step. Each costs the host some time, and at one document a micro-batch a
//! fast card waits for the host: the counts here may fall, and rise only with a reason. One test, for launches are
//! counted by the whole process.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests stop where they fail, and show what they saw"
)]

use std::collections::BTreeMap;

use burn_tensor::backend::Backend;
use burn_tensor::{Distribution, Tensor};
use tune::adapter::lora::{DropoutStep, LoraSet};
use tune::adapter::projection::LayerGradients;
use tune::adapter::spec::Spec as AdapterSpec;
use tune::adapter::target;
use tune::data::batch::MicroBatch;
use tune::model::dtype::burn_dtype;
use tune::model::layers::Order;
use tune::model::{FloatDtype, random, shapes};
use tune::objective::{Comparison, Objective};
use tune::quant;
use tune::train::backward::{Gradients, Pass, forward_backward};
use tune::train::optimizer::{Gradient, Optimizer};
use tune_kernels::attention::DocumentOffsets;
use tune_kernels::gpu::{self, Profile, Wgpu, WgpuDevice};

#[path = "support/vulkan.rs"]
mod vulkan;

/// Tokens of the micro-batch: fewer than a weight is dequantized for beforehand.
const TOKENS: u32 = 24;

/// Launches at most of a layer's forward: two norms; for each of four inputs the adapters in the compute dtype and one
/// product with A; seven products with weights; one rotation, attention, activation.
const FORWARD: u64 = 20;

/// Of its backward: seven products with weights, and for each of four inputs one with B and one for the gradients of A and
/// B; norms and activation once more, and their gradients; three of attention and one rotation. In 16 bits also two sums of
/// gradients that are rounded.
const BACKWARD: u64 = 27;

/// Of the update of two layers, on a device that binds 31 buffers at once; where more are bound it is fewer.
const UPDATE: u64 = 10;

/// Of embeddings, head and loss, less what the lowest layer need not do: no gradient of its input is wanted.
const AROUND: u64 = 8;

/// Launches by kernel.
type Counts = BTreeMap<String, u64>;

struct Counter {
    profile: Profile,
    device: WgpuDevice,
}

impl Counter {
    /// What `work` launches.
    fn count<T>(&mut self, work: impl FnOnce() -> T) -> (T, Counts) {
        Wgpu::sync(&self.device).unwrap();
        let _ = self.profile.take();
        let done = work();
        Wgpu::sync(&self.device).unwrap();
        let kernels = self.profile.take().unwrap();
        (done, kernels.into_iter().map(|kernel| (kernel.name, kernel.launches)).collect())
    }
}

#[test]
fn a_step_is_few_launches() {
    let Some(devices) = vulkan::devices() else { return };
    let device = devices[0].device.clone();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("launches");
    gpu::configure(None, Some(&file));
    let started = gpu::start_wgpu(&device).unwrap();
    let mut counter = Counter { profile: Profile::new(&file), device };
    // In 16 bits there are more launches; every dtype by night.
    let mut dtypes = vec![FloatDtype::F16, FloatDtype::Bf16, FloatDtype::F32];
    dtypes.retain(|dtype| started.dtypes.contains(&burn_dtype(*dtype)));
    if std::env::var_os("TUNE_EVERY_VARIANT").is_none() {
        dtypes.truncate(1);
    }
    for dtype in dtypes {
        check(&mut counter, dtype);
    }
}

fn check(counter: &mut Counter, dtype: FloatDtype) {
    let mut spec = shapes::spec("smollm2-135m").unwrap().unwrap();
    spec.layers.truncate(2);
    spec.vocab_size = 64;
    let device = counter.device.clone();
    let nf4 = quant::spec::Spec::Nf4 { block_size: 64, double_quant: true };
    let decoder = random::decoder::<Wgpu>(&spec, Some(nf4), dtype, &device, false);
    let targets =
        target::resolve(&AdapterSpec { rank: 8, ..AdapterSpec::default() }, &spec.modules()).unwrap();
    let mut adapters = LoraSet::<Wgpu>::init(targets, 0.0, 0, &device);
    let mut optimizer = Optimizer::new(&adapters, 0.0, 1.0);
    let batch = MicroBatch {
        input_ids: (0..TOKENS).collect(),
        targets: (1..=TOKENS as i32).collect(),
        position_ids: (0..TOKENS).collect(),
        document_offsets: vec![0, TOKENS],
        supervised_tokens: u64::from(TOKENS),
        ..MicroBatch::default()
    };

    // One layer.
    let documents = DocumentOffsets::packed(&batch.document_offsets);
    let inputs = decoder.inputs(&batch.position_ids, documents).unwrap();
    let hidden = || {
        let shape = [TOKENS as usize, spec.hidden_size];
        let x = Tensor::<Wgpu, 2>::random(shape, Distribution::Normal(0.0, 1.0), &device);
        x.cast(burn_dtype(dtype))
    };
    let (x, dy) = (hidden(), hidden());
    let (_, layer) = decoder.layers().walk(Order::Up(1..2)).next().unwrap().unwrap();
    let dropout = DropoutStep { seed: 0, step: 1, micro_batch: 0 };
    let own = adapters.layer(1, Some(dropout));
    let mut sums = LayerGradients::default();
    let ((_, tape), forward) = counter.count(|| layer.forward_with_tape(x.clone(), &own, &inputs));
    let (_, backward) = counter.count(|| layer.backward(tape, &own, &inputs, dy, true, &mut sums));
    drop((own, sums));

    // A whole step: the other launches are of embeddings, loss and update.
    let pass = Pass { dropout, keep: spec.layers.len(), balance: 0.0, parks: false };
    let mut gradients = Gradients::new(spec.layers.len());
    let (loss, step) = counter.count(|| {
        forward_backward(
            &decoder,
            &adapters.until_update(),
            &Objective::Sft,
            &Comparison::default(),
            &batch,
            pass,
            &mut gradients,
        )
        .unwrap()
    });
    let pass = Pass { keep: 0, ..pass };
    let mut gradients = Gradients::new(spec.layers.len());
    let (_, again) = counter.count(|| {
        forward_backward(
            &decoder,
            &adapters.until_update(),
            &Objective::Sft,
            &Comparison::default(),
            &batch,
            pass,
            &mut gradients,
        )
        .unwrap()
    });
    let (_, update) = counter.count(|| {
        let values = gradients.by_parameter(&adapters);
        drop(gradients);
        let gradient = Gradient::new(vec![loss], values, 1.0, &device);
        optimizer.step(&mut adapters, gradient, 1, &[], 1e-4, 1.0).unwrap();
    });

    let total = |counts: &Counts| counts.values().sum::<u64>();
    let phases = [("forward", &forward), ("backward", &backward), ("update", &update)];
    println!("{dtype:?}, launches:");
    for (name, counts) in phases.into_iter().chain([("step", &step), ("step, layers run again", &again)]) {
        println!("{:>5} {name}: {counts:?}", total(counts));
    }
    for (name, counts, most) in
        [("forward", &forward, FORWARD), ("backward", &backward, BACKWARD), ("update", &update, UPDATE)]
    {
        assert!(total(counts) <= most, "{name} in {dtype:?}: {} launches, {most} at most", total(counts));
    }
    let layers = spec.layers.len() as u64;
    let around = total(&step) - layers * (total(&forward) + total(&backward));
    assert!(around <= AROUND, "embeddings and loss: {around} launches, {AROUND} at most");
    // A layer that is run again stops before its last product, and leaves its activation for the backward pass.
    assert_eq!(total(&again), total(&step) + layers * (total(&forward) - 2));
}
