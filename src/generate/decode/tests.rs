//! Decoding with the cache against whole forward passes, on the small golden models.

use std::path::{Path, PathBuf};

use burn_flex::Flex;

use super::*;
use crate::adapter::peft::Adapter;
use crate::assets::ModelDir;
use crate::model::{FloatDtype, family, load};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn decoder(name: &str) -> Decoder<Flex> {
    let folder = ModelDir::open(&golden(name)).unwrap();
    let spec = family::decoder_spec(folder.config()).unwrap();
    load::load(folder.weights(), &spec, None, FloatDtype::F32, &Default::default(), &mut |_| {}).unwrap()
}

fn adapter(name: &str, decoder: &Decoder<Flex>) -> LoraSet<Flex> {
    let adapter = Adapter::open(&golden(name)).unwrap();
    let targets = adapter.targets(&decoder.spec().modules()).unwrap();
    let values = adapter.values(&targets).unwrap();
    LoraSet::from_values(targets, 0.0, values, decoder.device()).unwrap()
}

fn prompt() -> Vec<u32> {
    vec![3, 17, 40, 8, 25]
}

/// The likeliest next tokens, each from a whole forward pass without a cache.
fn whole_passes(decoder: &Decoder<Flex>, adapter: Option<&LoraSet<Flex>>, count: usize) -> Vec<u32> {
    let adapters: Option<Vec<_>> =
        adapter.map(|adapter| (0..decoder.layers().len()).map(|layer| adapter.layer(layer, None)).collect());
    let mut ids = prompt();
    for _ in 0..count {
        let logits = decoder.logits(&ids, adapters.as_deref()).unwrap();
        let values: Vec<f32> = logits.into_data().into_vec().unwrap();
        let last = &values[values.len() - decoder.spec().vocab_size..];
        let best = (0..last.len()).max_by(|&left, &right| last[left].total_cmp(&last[right])).unwrap();
        ids.push(best as u32);
    }
    ids.split_off(prompt().len())
}

fn greedy(decoder: &Decoder<Flex>, adapter: Option<&LoraSet<Flex>>, sampling: &Sampling) -> Generation {
    generate(decoder, adapter, &prompt(), sampling, |_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn the_cache_changes_nothing() {
    for name in ["families/llama3", "families/mistral", "families/qwen3"] {
        let decoder = decoder(name);
        let answer = greedy(&decoder, None, &Sampling::greedy(20, Vec::new()));
        assert_eq!(answer.tokens, whole_passes(&decoder, None, 20), "{name}");
        assert_eq!(answer.finish, Finish::Length);
    }
}

#[test]
fn an_adapter_takes_part() {
    let decoder = decoder("peft/base");
    let adapter = adapter("peft/all_linear", &decoder);
    let sampling = Sampling::greedy(12, Vec::new());
    let adapted = greedy(&decoder, Some(&adapter), &sampling).tokens;
    assert_eq!(adapted, whole_passes(&decoder, Some(&adapter), 12));
    assert_ne!(adapted, greedy(&decoder, None, &sampling).tokens);
}

#[test]
fn an_answer_ends_for_a_reason() {
    let decoder = decoder("peft/base");
    let free = greedy(&decoder, None, &Sampling::greedy(10, Vec::new())).tokens;
    let stop = free[4];
    let first = free.iter().position(|&id| id == stop).unwrap();
    let answer = greedy(&decoder, None, &Sampling::greedy(10, vec![stop]));
    assert_eq!(answer, Generation { tokens: free[..first].to_vec(), finish: Finish::StopToken(stop) });

    let none = greedy(&decoder, None, &Sampling::greedy(0, Vec::new()));
    assert_eq!(none, Generation { tokens: Vec::new(), finish: Finish::Length });

    let mut heard = Vec::new();
    let interrupted = generate(&decoder, None, &prompt(), &Sampling::greedy(10, Vec::new()), |id| {
        heard.push(id);
        if heard.len() == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!(interrupted.unwrap(), Generation { tokens: free[..3].to_vec(), finish: Finish::Interrupted });
    assert_eq!(heard, free[..3]);

    // 64 positions, 5 of them the prompt's.
    let full = greedy(&decoder, None, &Sampling::greedy(1000, Vec::new()));
    assert_eq!((full.tokens.len(), full.finish), (59, Finish::ContextFull));
}

#[test]
fn samples_repeat_with_their_seed() {
    let decoder = decoder("peft/base");
    let sample = |seed| {
        let sampling = Sampling { temperature: 1.5, top_p: 0.9, seed, ..Sampling::greedy(20, Vec::new()) };
        greedy(&decoder, None, &sampling).tokens
    };
    assert_eq!(sample(1), sample(1));
    assert_ne!(sample(1), sample(2));
}

#[test]
fn prompts_that_cannot_be_answered_say_why() {
    let decoder = decoder("peft/base");
    let ask = |prompt: &[u32]| {
        generate(&decoder, None, prompt, &Sampling::greedy(1, Vec::new()), |_| ControlFlow::Continue(()))
            .unwrap_err()
            .to_string()
    };
    assert!(ask(&[]).contains("no tokens"));
    assert!(ask(&[1; 64]).contains("64 tokens"));
    assert!(ask(&[64]).contains("outside the vocabulary"));
}

#[test]
fn a_damaged_adapter_is_an_error() {
    let decoder = decoder("peft/base");
    let mut adapter = adapter("peft/all_linear", &decoder);
    adapter.update(|tensors| tensors.into_iter().map(|tensor| tensor / 0.0).collect()).unwrap();
    let error = generate(&decoder, Some(&adapter), &prompt(), &Sampling::greedy(1, Vec::new()), |_| {
        ControlFlow::Continue(())
    });
    assert!(matches!(error, Err(Error::NotFinite { tokens: 5 })), "{error:?}");
}
