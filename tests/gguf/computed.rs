//! The tokens that llama.cpp gave for these files, beside those of our own decoder for the folders they were made from.

use std::fs;
use std::path::Path;

use burn_flex::Flex;
use tune::adapter::lora::LoraSet;
use tune::adapter::peft::Adapter;
use tune::assets::ModelDir;
use tune::model::{Decoder, FloatDtype, family, load};

use super::support::{golden, golden_json, source, staged_with};

fn decoder(folder: &Path) -> Decoder<Flex> {
    let model = ModelDir::open(folder).unwrap();
    let spec = family::decoder_spec(model.config()).unwrap();
    load::load(model.weights(), &spec, None, FloatDtype::F32, &Default::default(), &mut |_| {}).unwrap()
}

/// The likeliest token, again and again.
fn greedy(decoder: &Decoder<Flex>, adapter: Option<&Path>, prompt: &[u32], count: usize) -> Vec<u32> {
    let set: Option<LoraSet<Flex>> = adapter.map(|folder| {
        let adapter = Adapter::open(folder).unwrap();
        let targets = adapter.targets(&decoder.spec().modules()).unwrap();
        let values = adapter.values(&targets).unwrap();
        LoraSet::from_values(targets, 0.0, values, decoder.device()).unwrap()
    });
    let layers: Option<Vec<_>> =
        set.as_ref().map(|set| (0..decoder.layers().len()).map(|layer| set.layer(layer, None)).collect());
    let mut ids = prompt.to_vec();
    for _ in 0..count {
        let logits: Vec<f32> =
            decoder.logits(&ids, layers.as_deref()).unwrap().into_data().into_vec().unwrap();
        let last = &logits[logits.len() - decoder.spec().vocab_size..];
        let best = (0..last.len()).max_by(|left, right| last[*left].total_cmp(&last[*right])).unwrap();
        ids.push(best as u32);
    }
    ids[prompt.len()..].to_vec()
}

#[test]
fn our_decoder_gives_the_tokens_that_llama_cpp_gave() {
    let ids = |value: &serde_json::Value| -> Vec<u32> {
        value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    };
    let (llamas, others) = (golden_json("greedy.json"), golden_json("dense_greedy.json"));
    assert_eq!((llamas.len(), others.len()), (30, 34));
    let folder = tempfile::tempdir().unwrap();
    for (name, case) in llamas.into_iter().chain(others) {
        let (prompt, expected) = (ids(&case["prompt"]), ids(&case["tokens"]));
        let (model, adapter) = match name.split_once(' ') {
            Some((adapter, _)) => (golden("peft/base"), Some(golden(adapter))),
            None => {
                let into = folder.path().join(name.replace('/', "-"));
                fs::create_dir(&into).unwrap();
                (staged_with(&source(&name), &case["config"], &into), None)
            }
        };
        let found = greedy(&decoder(&model), adapter.as_deref(), &prompt, expected.len());
        assert_eq!(found, expected, "{name}, smallest lead {}", case["lead"]);
    }
}
