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
    assert_eq!((&answer.tokens[..], answer.finish), (&free[..first], Finish::StopToken(stop)));

    let none = greedy(&decoder, None, &Sampling::greedy(0, Vec::new()));
    assert_eq!((none.tokens.len(), none.finish), (0, Finish::Length));

    let mut heard = Vec::new();
    let interrupted = generate(&decoder, None, &prompt(), &Sampling::greedy(10, Vec::new()), |id| {
        heard.push(id);
        if heard.len() == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let interrupted = interrupted.unwrap();
    assert_eq!((&interrupted.tokens[..], interrupted.finish), (&free[..3], Finish::Interrupted));
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

#[test]
fn what_prompts_have_in_common_is_read_once() {
    let decoder = decoder("families/llama3");
    let sampling = Sampling::greedy(6, Vec::new());
    let mut session = Session::new(&decoder, None);
    let mut ask =
        |prompt: &[u32]| session.generate(prompt, &sampling, &mut |_| ControlFlow::Continue(())).unwrap();
    let alone = |prompt: &[u32]| {
        generate(&decoder, None, prompt, &sampling, |_| ControlFlow::Continue(())).unwrap().tokens
    };
    let first = ask(&prompt());
    assert_eq!(first.timing.prompt_tokens, 5);
    // The next turn: prompt, answer, and more. The last token of an answer was never read.
    let longer = [&prompt()[..], &first.tokens, &[9, 11]].concat();
    let second = ask(&longer);
    assert_eq!((second.timing.prompt_tokens, &second.tokens), (3, &alone(&longer)));
    // The same prompt again, and one that parts after two tokens.
    let again = ask(&longer);
    assert_eq!((again.timing.prompt_tokens, &again.tokens), (1, &second.tokens));
    let parted = [3, 17, 1, 2];
    let last = ask(&parted);
    assert_eq!((last.timing.prompt_tokens, &last.tokens), (2, &alone(&parted)));
}

#[test]
fn a_long_prompt_is_read_in_parts_that_change_nothing() {
    let decoder = decoder("families/smollm2");
    let ids: Vec<u32> = (0..40).map(|at| at * 7 % 64).collect();
    let whole =
        generate(&decoder, None, &ids, &Sampling::greedy(4, Vec::new()), |_| ControlFlow::Continue(()));
    let mut session = Session::new(&decoder, None);
    for end in [13, 14, 39] {
        let mut nothing = |_| ControlFlow::Continue(());
        session.generate(&ids[..end], &Sampling::greedy(1, Vec::new()), &mut nothing).unwrap();
    }
    let parts = session.generate(&ids, &Sampling::greedy(4, Vec::new()), &mut |_| ControlFlow::Continue(()));
    assert_eq!(parts.unwrap().tokens, whole.unwrap().tokens);
}
