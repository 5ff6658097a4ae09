//! What it saves that the two answers of a pair share the tokens of their prompt.
//!
//! ```text
//! cargo bench --bench sharing
//! ```
//!
//! One step of DPO at the shape of SmolLM2-135M in NF4, a prompt of 600 tokens and answers of 200: the reference's forward
//! pass, forward and backward. It is measured in turn with the prompt kept once and with a copy of it for each answer, whose
//! loss is the same. The shortest time of each counts: other work on the machine only adds to it.
//!
//! Without `--bench`, as `cargo test --bench sharing` calls it, nothing is measured.
#![expect(clippy::print_stdout, clippy::expect_used, reason = "a bench")]

use std::time::Instant;

use tune::adapter::lora::{DropoutStep, LoraSet};
use tune::adapter::spec::Spec as AdapterSpec;
use tune::adapter::target;
use tune::data::batch::MicroBatch;
use tune::data::example::RowId;
use tune::data::sequence::{Group, Sequence, Side};
use tune::data::tokenize::IGNORED;
use tune::device::Cpu;
use tune::model::{FloatDtype, random, shapes};
use tune::objective::Objective;
use tune::objective::preference::{Dpo, Preference};
use tune::quant::spec::Spec as Quantization;
use tune::train::backward::{Gradients, Pass, forward_backward};
use tune::train::compare::compare;
use tune_kernels::device::DeviceOps;
use tune_kernels::isa::InstructionSet;

const PROMPT: u32 = 600;
const ANSWER: u32 = 200;
const ROUNDS: usize = 4;

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let dtype =
        if InstructionSet::best().name().contains("bf16") { FloatDtype::Bf16 } else { FloatDtype::F32 };
    let device = Default::default();
    let spec = shapes::spec("smollm2-135m").expect("the shape is known").expect("it makes a decoder");
    let decoder = random::decoder::<Cpu>(&spec, Some(Quantization::USUAL), dtype, &device, false);
    let targets = target::resolve(&AdapterSpec::default(), &spec.modules()).expect("it has linear layers");
    let adapters = LoraSet::<Cpu>::init(targets, 0.0, 0, &device);
    let base = LoraSet::<Cpu>::init(Vec::new(), 0.0, 0, &device);
    let (adapters, base) = (adapters.until_update(), base.until_update());
    let objective = Objective::Preference(Preference::Dpo(Dpo::default()));
    let step = |batch: &MicroBatch| {
        let began = Instant::now();
        let comparison = compare(&decoder, &adapters, Some(&base), &objective, batch).expect("ids are known");
        let dropout = DropoutStep { seed: 0, step: 1, micro_batch: 0 };
        let pass = Pass { dropout, keep: spec.layers.len(), balance: 0.0, parks: false };
        let mut gradients = Gradients::new(spec.layers.len());
        let loss =
            forward_backward(&decoder, &adapters, &objective, &comparison, batch, pass, &mut gradients);
        let loss =
            Cpu::read_later(loss.expect("ids are known").value).wait().expect("the processor works")[0];
        (loss, began.elapsed().as_secs_f64())
    };
    let batches = [true, false].map(batch);
    let mut best = [f64::INFINITY; 2];
    for round in 0..=ROUNDS {
        for (batch, best) in batches.iter().zip(&mut best) {
            let (loss, seconds) = step(batch);
            // The first round fills the pool of buffers.
            *best = if round == 0 { *best } else { best.min(seconds) };
            println!("{} tokens: {seconds:.3} s, loss {loss}", batch.tokens());
        }
    }
    let [shared, apart] = best;
    println!(
        "{:.3} pairs/s, {:.3} with a prompt for each answer: {:.2} times",
        1.0 / shared,
        1.0 / apart,
        apart / shared
    );
}

/// One pair, its prompt kept once or twice.
fn batch(is_shared: bool) -> MicroBatch {
    let sequence = |side: Side| {
        let id = |at: u32| if at < PROMPT { at * 7 + 5 } else { at * 11 + u32::from(side == Side::Rejected) };
        let ids: Vec<u32> = (0..PROMPT + ANSWER).map(id).collect();
        let labels = (0..).zip(&ids).map(|(at, id)| if at < PROMPT { IGNORED } else { *id as i32 }).collect();
        Sequence::new(RowId { dataset: 0, row: 0 }, side, ids, labels)
    };
    let both = vec![sequence(Side::Chosen), sequence(Side::Rejected)];
    let mut batch = MicroBatch::default();
    batch.push(if is_shared { Group::new(both) } else { Group(both) });
    batch
}
