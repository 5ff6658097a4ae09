//! Decoding with the cache against whole forward passes, on the small golden models.

use std::path::{Path, PathBuf};

use burn_flex::Flex;

use super::*;
use crate::adapter::peft::Adapter;
use crate::assets::ModelDir;
use crate::generate::together::{Ask, Listener, MOST_TOGETHER};
use crate::model::{FloatDtype, family, load};
use crate::quant;

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

/// What a listener heard of answers side by side.
#[derive(Default)]
struct Ended {
    heard: Vec<Vec<u32>>,
    answers: Vec<Option<Generation>>,
    /// The answer that is stopped at its third token, and the number of ended answers that ends all.
    stops: (Option<usize>, Option<usize>),
}

impl Listener for Ended {
    fn hear(&mut self, number: usize, event: GenerationEvent) -> ControlFlow<()> {
        self.heard.resize(self.heard.len().max(number + 1), Vec::new());
        if let GenerationEvent::Token(id) = event {
            self.heard[number].push(id);
        }
        match self.stops.0 == Some(number) && self.heard[number].len() == 3 {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    fn end(&mut self, number: usize, generation: Generation) -> Result<ControlFlow<()>, Error> {
        self.answers.resize(self.answers.len().max(number + 1), None);
        self.answers[number] = Some(generation);
        let ended = self.answers.iter().flatten().count();
        Ok(if self.stops.1 == Some(ended) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }
}

fn together(
    decoder: &Decoder<Flex>,
    adapter: Option<&LoraSet<Flex>>,
    lanes: usize,
    asked: &[(Vec<u32>, Sampling)],
) -> Vec<Generation> {
    let asks: Vec<Ask<'_>> = asked.iter().map(|(prompt, sampling)| Ask { prompt, sampling }).collect();
    let mut ended = Ended::default();
    Session::new(decoder, adapter).generate_together(lanes, &asks, &mut ended).unwrap();
    let answers: Vec<Generation> = ended.answers.into_iter().map(Option::unwrap).collect();
    assert_eq!(ended.heard, answers.iter().map(|answer| answer.tokens.clone()).collect::<Vec<_>>());
    answers
}

/// Prompts of 1 to 21 tokens, and answers of other lengths; every other one is sampled, each by its own number.
fn asked(count: usize) -> Vec<(Vec<u32>, Sampling)> {
    let one = |row: usize| {
        let prompt = (0..1 + row * 13 % 21).map(|at| ((at * 7 + row * 3) % 60) as u32).collect();
        let temperature = if row.is_multiple_of(2) { 0.0 } else { 1.3 };
        let greedy = Sampling::greedy(3 + row * 5 % 17, vec![11]);
        (prompt, Sampling { temperature, answer: row as u64, seed: 5, top_p: 0.95, ..greedy })
    };
    (0..count).map(one).collect()
}

#[test]
fn answers_side_by_side_are_those_alone() {
    // Dense, windows, frequencies by length, shared keys and values, recurrent states, experts.
    for name in [
        "families/llama3",
        "families/mistral",
        "families/llama_dynamic",
        "dense/gemma4_small",
        "recurrent/qwen3_5/base",
        "recurrent/lfm2/base",
        "mixtures/qwen3_moe",
    ] {
        let decoder = decoder(name);
        let asked = asked(11);
        let alone = |(prompt, sampling): &(Vec<u32>, Sampling)| {
            generate(&decoder, None, prompt, sampling, |_| ControlFlow::Continue(())).unwrap()
        };
        let alone: Vec<Generation> = asked.iter().map(alone).collect();
        for lanes in [1, 3, MOST_TOGETHER] {
            let beside = together(&decoder, None, lanes, &asked);
            for (row, (beside, alone)) in beside.iter().zip(&alone).enumerate() {
                let (beside, alone) = ((&beside.tokens, beside.finish), (&alone.tokens, alone.finish));
                assert_eq!(beside, alone, "{name}, {lanes} side by side, row {row}");
            }
        }
    }
}

/// In the dtypes and storage of real models, with an adapter; every product, norm and sum of a row is the same to the bit.
#[test]
fn logits_side_by_side_are_those_alone_to_the_bit() {
    let folder = ModelDir::open(&golden("trajectory/base")).unwrap();
    let spec = family::decoder_spec(folder.config()).unwrap();
    for (dtype, blocks) in [
        (FloatDtype::F32, None),
        (FloatDtype::Bf16, None),
        (FloatDtype::Bf16, Some(quant::spec::Spec::USUAL)),
    ] {
        let decoder: Decoder<Flex> =
            load::load(folder.weights(), &spec, blocks, dtype, &Default::default(), &mut |_| {}).unwrap();
        let adapter = adapter("trajectory/adapter", &decoder);
        let adapters: Vec<_> = (0..decoder.layers().len()).map(|layer| adapter.layer(layer, None)).collect();
        let prompts: Vec<Vec<u32>> = asked(MOST_TOGETHER).into_iter().map(|(prompt, _)| prompt).collect();
        let caches: Vec<KeyValueCache<Flex>> = prompts
            .iter()
            .map(|prompt| {
                let mut cache = decoder.new_cache();
                decoder.hidden(prompt, Some(&adapters), Some(&mut cache)).unwrap();
                cache
            })
            .collect();
        let alone = caches.iter().zip(&prompts).flat_map(|(cache, prompt)| {
            let hidden = decoder.hidden(&prompt[..1], Some(&adapters), Some(&mut cache.clone())).unwrap();
            logits_of(&decoder, hidden).unwrap()
        });
        let alone: Vec<u32> = alone.map(f32::to_bits).collect();
        let mut copies = caches.clone();
        let sequences =
            prompts.iter().zip(&mut copies).map(|(prompt, cache)| (&prompt[..1], cache)).collect();
        let hidden = decoder.continued(sequences, Some(&adapters)).unwrap();
        let beside = logits_of(&decoder, hidden).unwrap();
        assert!(beside.iter().map(|value| value.to_bits()).eq(alone), "{dtype:?} {blocks:?}");
    }
}

#[test]
fn a_long_beginning_is_read_once_for_all_that_share_it() {
    let folder = ModelDir::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("data/quickstart/base")).unwrap();
    let spec = family::decoder_spec(folder.config()).unwrap();
    let decoder: Decoder<Flex> =
        load::load(folder.weights(), &spec, None, FloatDtype::Bf16, &Default::default(), &mut |_| {})
            .unwrap();
    let beginning: Vec<u32> = (0..PROMPT_CHUNK as u32 + 9).map(|at| at * 31 % 2000).collect();
    // The last parts from the others within the first chunk.
    let asked: Vec<(Vec<u32>, Sampling)> = [1, 2, 3, 4]
        .map(|row| {
            let mut prompt = [&beginning[..], &[row; 7]].concat();
            prompt[100] = if row == 4 { 5 } else { prompt[100] };
            (prompt, Sampling::greedy(4, Vec::new()))
        })
        .into();
    let answers = together(&decoder, None, 2, &asked);
    for (answer, (prompt, sampling)) in answers.iter().zip(&asked) {
        let alone = generate(&decoder, None, prompt, sampling, |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(answer.tokens, alone.tokens);
    }
    let read: Vec<usize> = answers.iter().map(|answer| answer.timing.prompt_tokens).collect();
    assert_eq!(read, [PROMPT_CHUNK + 16, 16, 16, PROMPT_CHUNK + 16]);
}

#[test]
fn one_of_several_may_be_stopped_and_one_may_be_refused() {
    let decoder = decoder("peft/base");
    let greedy = Sampling::greedy(9, Vec::new());
    let prompts: Vec<Vec<u32>> = (1..6).map(|first| vec![first, 17, 40]).collect();
    let asks: Vec<Ask<'_>> = prompts.iter().map(|prompt| Ask { prompt, sampling: &greedy }).collect();
    let session = Session::new(&decoder, None);
    let mut ended = Ended { stops: (Some(1), None), ..Ended::default() };
    session.generate_together(2, &asks, &mut ended).unwrap();
    let lengths: Vec<_> = ended.answers.iter().flatten().map(|one| (one.tokens.len(), one.finish)).collect();
    let mut expected = [(9, Finish::Length); 5];
    expected[1] = (3, Finish::Interrupted);
    assert_eq!(lengths, expected);
    // None begins after the end of all.
    let mut ended = Ended { stops: (Some(1), Some(1)), ..Ended::default() };
    session.generate_together(2, &asks, &mut ended).unwrap();
    assert_eq!((ended.heard.len(), ended.answers.iter().flatten().count()), (2, 1));
    let asks = [asks[0], Ask { prompt: &[], sampling: &greedy }];
    let failed = session.generate_together(2, &asks, &mut Ended::default()).unwrap_err();
    assert_eq!((failed.number, matches!(failed.error, Error::EmptyPrompt)), (1, true));
}
