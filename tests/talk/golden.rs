//! Greedy tokens and losses against those of transformers and PEFT (`tests/golden/generation.py`).

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn_flex::Flex;
use serde_json::Value;
use tune::adapter::lora::LoraSet;
use tune::adapter::peft::Adapter;
use tune::assets::ModelDir;
use tune::data::spec::Format;
use tune::generate::{Finish, Sampling, generate};
use tune::model::spec::ComputeDtype;
use tune::model::{Decoder, FloatDtype, family, load};
use tune::run::Environment;
use tune::run::evaluate::{Evaluation, Options, Subject, dataset};
use tune::run::inference::{ModelChoice, Quantize};
use tune::train::event::{Event, Observer};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn read(name: &str) -> Vec<Value> {
    serde_json::from_slice(&fs::read(golden("generation").join(name)).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn greedy_tokens_are_those_of_transformers() {
    let cases = read("greedy.json");
    assert_eq!(cases.len(), 30);
    assert!(cases.iter().any(|case| case["stopped"].as_bool().unwrap()));
    for case in &cases {
        let folder = ModelDir::open(&golden(case["base"].as_str().unwrap())).unwrap();
        let spec = family::decoder_spec(folder.config()).unwrap();
        let decoder: Decoder<Flex> =
            load::load(folder.weights(), &spec, None, FloatDtype::F32, &Default::default(), &mut |_| {})
                .unwrap();
        let adapter = case["adapter"].as_str().map(|name| {
            let adapter = Adapter::open(&golden(name)).unwrap();
            let targets = adapter.targets(&spec.modules()).unwrap();
            let values = adapter.values(&targets).unwrap();
            LoraSet::<Flex>::from_values(targets, 0.0, values, decoder.device()).unwrap()
        });
        let eos: Vec<u32> = case["eos"].as_u64().map(|id| id as u32).into_iter().collect();
        let penalty = case["repetition_penalty"].as_f64().unwrap();
        let sampling = Sampling { repetition_penalty: penalty, ..Sampling::greedy(24, eos.clone()) };
        let prompt = ids(&case["prompt"]);
        let found =
            generate(&decoder, adapter.as_ref(), &prompt, &sampling, |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(found.tokens, ids(&case["tokens"]), "{case}");
        let expected = match case["stopped"].as_bool().unwrap() {
            true => Finish::StopToken(eos[0]),
            false => Finish::Length,
        };
        assert_eq!(found.finish, expected, "{case}");
    }
}

struct Silent;

impl Observer for Silent {
    fn observe(&mut self, _: &Event<'_>) {}
}

#[test]
fn losses_are_those_of_transformers() {
    let cases = read("loss.json");
    let environment = Environment { hub_cache: Path::new("no-such-cache"), stop: &|| false, save: &|| false };
    let base = golden("trajectory/base").display().to_string();
    let adapter = golden("trajectory/adapter");
    let rows = golden("trajectory/tokens.jsonl").display().to_string();
    for nf4 in [false, true] {
        let expected = |adapter: bool| {
            cases.iter().find(|case| case["nf4"] == nf4 && case["adapter"] == adapter).unwrap()
        };
        let choice = ModelChoice {
            base: Some(&base),
            adapter: Some(&adapter),
            quantize: if nf4 { Quantize::Nf4 } else { Quantize::No },
            compute_dtype: Some(ComputeDtype::F32),
            ..ModelChoice::default()
        };
        let data = dataset(&rows, Format::Tokens, &[]);
        let evaluation =
            Evaluation::open(Subject::Choice, choice, Some(data), Options::default(), &environment).unwrap();
        let report = evaluation.run(&mut Silent, &environment).unwrap();
        assert_eq!(report.rows, 8);
        for (measured, key) in [(&report.base, "base"), (report.adapter.as_ref().unwrap(), "adapter")] {
            let expected = expected(key == "adapter");
            let tokens: Vec<u64> =
                expected["tokens"].as_array().unwrap().iter().map(|count| count.as_u64().unwrap()).collect();
            let loss = expected["loss"].as_f64().unwrap();
            assert!((measured.loss.loss - loss).abs() < 1e-5, "{key}: {} {loss}", measured.loss.loss);
            assert!((measured.loss.perplexity.ln() - loss).abs() < 1e-5);
            for (row, line) in report.lines.iter().enumerate() {
                let sum = line[key]["loss"].as_f64().unwrap() * tokens[row] as f64;
                let expected = expected["sums"][row].as_f64().unwrap();
                assert!((sum - expected).abs() < 2e-6 * expected, "{key}, row {row}: {sum} {expected}");
                assert_eq!(line["supervised_tokens"], tokens[row]);
            }
        }
    }
}
