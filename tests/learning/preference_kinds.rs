//! Preference tuning beside everything else a run has: prompts that are computed once, quantized bases, other adapters,
//! packs, tables of other formats, the memory plan, reproduction.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray};
use arrow_ipc::writer::FileWriter;
use parquet::arrow::ArrowWriter;
use serde_json::Value;
use tune::adapter::lora::{DropoutStep, LoraSet};
use tune::adapter::spec::Spec as AdapterSpec;
use tune::adapter::target;
use tune::assets::ModelDir;
use tune::data::batch::MicroBatch;
use tune::data::tokenize::IGNORED;
use tune::device::Cpu;
use tune::model::{FloatDtype, family, load};
use tune::quant::spec::Spec as Quantization;
use tune::recipe::RecipeFile;
use tune::run::Environment;
use tune::run::bench::{Options as BenchOptions, Subject, bench};
use tune::run::reproduce::reproduce;
use tune::train::backward::{Gradients, Pass, forward_backward};
use tune::train::compare::compare;
use tune::train::event::{Event, Observer};

use crate::common::{golden, number, relative_difference, run, series, tensors};
use crate::preference::{Settings, base, case, first_step, golden_recipe, recipe};

/// The same documents, each with a copy of its prompt.
fn apart(batch: &MicroBatch) -> MicroBatch {
    let mut apart = MicroBatch {
        document_offsets: vec![0],
        rows: batch.rows.clone(),
        group_offsets: batch.group_offsets.clone(),
        sides: batch.sides.clone(),
        supervised_tokens: batch.supervised_tokens,
        ..MicroBatch::default()
    };
    for (document, own) in batch.documents().enumerate() {
        let ids = batch.ids(document);
        apart.targets.extend(std::iter::repeat_n(IGNORED, ids.len() - own.len()));
        apart.targets.extend(&batch.targets[own]);
        apart.position_ids.extend(0..ids.len() as u32);
        apart.input_ids.extend(ids);
        apart.document_offsets.push(apart.input_ids.len() as u32);
    }
    apart
}

/// With and without NF4, LoRA and DoRA, all layers recomputed and none.
#[test]
fn a_prompt_that_is_computed_once_changes_neither_losses_nor_gradients() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    let device = Default::default();
    let model = ModelDir::open(&base).unwrap();
    let spec = family::decoder_spec(model.config()).unwrap();
    for (quantization, use_dora) in [(None, false), (Some(Quantization::USUAL), true)] {
        let decoder =
            load::load::<Cpu>(model.weights(), &spec, quantization, FloatDtype::F32, &device, &mut |_| {});
        let decoder = decoder.unwrap();
        let adapter = AdapterSpec { rank: 4, use_dora, ..AdapterSpec::default() };
        let targets = target::resolve(&adapter, &spec.modules()).unwrap();
        let mut set = LoraSet::<Cpu>::init(targets, 0.0, 5, &device);
        decoder.init_magnitudes(&mut set).unwrap();
        let start = LoraSet::<Cpu>::init(Vec::new(), 0.0, 0, &device);
        let (adapters, reference) = (set.until_update(), start.until_update());
        for name in ["sigmoid", "rpo", "orpo", "simpo"] {
            let settings = Settings { adapter: "", data: "", train: "max_steps = 1\nmicro_batch_size = 2" };
            let recipe = recipe(&case(name), &base, &folder.path().join("unused"), &settings);
            let objective =
                RecipeFile::parse("test.toml", recipe.as_bytes(), &[]).finish().unwrap().objective;
            let step = first_step(&recipe, &base);
            let [shared] = step.micro_batches.as_slice() else { panic!("one micro-batch was asked for") };
            let apart = apart(shared);
            let saved = apart.tokens() - shared.tokens();
            assert!(saved * 8 > apart.tokens(), "{saved} of {} tokens", apart.tokens());
            let all = |batch: &MicroBatch, keep: usize| {
                let mut gradients = Gradients::new(spec.layers.len());
                let comparison = compare(&decoder, &adapters, Some(&reference), &objective, batch).unwrap();
                let pass = Pass {
                    dropout: DropoutStep { seed: 1, step: 1, micro_batch: 0 },
                    keep,
                    balance: 0.0,
                    parks: false,
                };
                let loss = forward_backward(
                    &decoder,
                    &adapters,
                    &objective,
                    &comparison,
                    batch,
                    pass,
                    &mut gradients,
                );
                let divisor = objective.divisor(&batch.counts()) as f64;
                let gradients: BTreeMap<String, Vec<f32>> = set
                    .parameters()
                    .iter()
                    .zip(gradients.by_parameter(&set))
                    .map(|(parameter, gradient)| {
                        (parameter.name.clone(), gradient.unwrap().into_data().into_vec().unwrap())
                    })
                    .collect();
                (number(loss.unwrap().value) / divisor, gradients)
            };
            let (loss, gradients) = all(shared, 0);
            let (loss_apart, gradients_apart) = all(&apart, spec.layers.len());
            assert!((loss - loss_apart).abs() < 1e-6, "{name}: {loss} and {loss_apart}");
            for (key, values) in &gradients {
                // A fresh B is zero, and with it the gradient of A.
                let difference = relative_difference(values, &gradients_apart[key]);
                let is_zero = gradients_apart[key].iter().all(|value| *value == 0.0);
                assert!(difference < 1e-4 || is_zero, "{name}, {key}: {difference:e}");
            }
        }
    }
}

/// Every adapter and base that supervised fine-tuning has learns pairs and answers, and its packs accumulate alike.
#[test]
fn quantized_bases_and_every_kind_of_adapter_learn_preferences() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    for (name, adapter) in [
        ("sigmoid", ", use_dora = true"),
        ("orpo", ", learning_rate_ratio = 4"),
        ("kto", ", use_dora = true"),
    ] {
        let run_with = |kind: &str, train: &str| {
            let output_dir = folder.path().join(format!("{name}-{kind}"));
            let settings = Settings { adapter, data: "", train };
            let recipe = recipe(&case(name), &base, &output_dir, &settings);
            run(&format!("quantization.nf4 = {{}}\n{}", recipe.trim_start()));
            output_dir
        };
        let learned = run_with("learned", "max_steps = 12\nmicro_batch_size = 2");
        let losses = series(&learned, "loss");
        assert!(losses[losses.len() - 1] < 0.9 * losses[0], "{name}: {losses:?}");
        if name == "kto" {
            continue;
        }
        let packs = "max_steps = 2\nmicro_batch_size = 1\ngradient_accumulation_steps = 2";
        let (two, one) = (run_with("two", packs), run_with("one", "max_steps = 2\nmicro_batch_size = 2"));
        for (a, b) in series(&two, "loss").iter().zip(series(&one, "loss")) {
            assert!((a - b).abs() < 1e-5, "{name}: {a} {b}");
        }
    }
}

struct Silent;

impl Observer for Silent {
    fn observe(&mut self, _: &Event<'_>) {}
}

fn environment() -> Environment<'static> {
    Environment { hub_cache: Path::new("no-such-cache"), stop: &|| false, save: &|| false }
}

#[test]
fn a_preference_run_is_reproduced_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    for name in ["rpo", "kto"] {
        let output_dir = folder.path().join(name);
        let train = "max_steps = 3\nmicro_batch_size = 2";
        let settings = Settings { adapter: ", dropout = 0.1", data: ", val_split = 0.2", train };
        run(&recipe(&case(name), &base, &output_dir, &settings));
        let again = folder.path().join(format!("{name}-again"));
        let found = reproduce(&output_dir, &again, &environment(), &mut Silent).unwrap();
        assert!(found.identical(), "{name}: {} for {:?}", found.expected, found.found);
    }
}

/// The golden rows as a table of texts.
fn table(file: &str, columns: &[&str; 3]) -> RecordBatch {
    let text = fs::read_to_string(golden("preference").join(file)).unwrap();
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    RecordBatch::try_from_iter(columns.map(|column| {
        let cells: StringArray = rows.iter().map(|row| row[column].as_str().map(str::to_owned)).collect();
        (column, Arc::new(cells) as ArrayRef)
    }))
    .unwrap()
}

#[test]
fn parquet_and_arrow_files_train_as_json_does() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    let case = case("sigmoid");
    let file = case["data"].as_str().unwrap();
    let rows = table(file, &["prompt", "chosen", "rejected"]);
    let written = |name: &str, bytes: Vec<u8>| -> PathBuf {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let mut parquet = ArrowWriter::try_new(Vec::new(), rows.schema(), None).unwrap();
    parquet.write(&rows).unwrap();
    let mut arrow = FileWriter::try_new(Vec::new(), &rows.schema()).unwrap();
    arrow.write(&rows).unwrap();
    let files = [
        golden("preference").join(file),
        written("pairs.parquet", parquet.into_inner().unwrap()),
        written("pairs.arrow", arrow.into_inner().unwrap()),
    ];
    let losses = files.map(|path| {
        let output_dir = folder.path().join(path.extension().unwrap());
        let recipe = golden_recipe(&case, &base, &output_dir);
        let from = golden("preference").join(file);
        run(&recipe.replace(from.to_str().unwrap(), path.to_str().unwrap()));
        (series(&output_dir, "loss"), tensors(&output_dir.join("adapter/adapter_model.safetensors")))
    });
    assert!(losses[0] == losses[1] && losses[0] == losses[2]);
}

/// `tune bench` takes the objective of its recipe, with pairs at their longest, and reports pairs.
#[test]
fn a_bench_of_pairs_counts_them_and_fits_its_plan() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    for (name, tokens) in
        [("sigmoid", 2 * (96 + 2 * 32 + 1)), ("orpo", 2 * (96 + 2 * 32 + 1)), ("kto", 2 * 128)]
    {
        let settings = Settings { adapter: "", data: "", train: "max_steps = 1\nmicro_batch_size = 2" };
        let recipe = recipe(&case(name), &base, &folder.path().join("unused"), &settings);
        let file = RecipeFile::parse("test.toml", recipe.as_bytes(), &[]);
        let options = BenchOptions { steps: 1, ..BenchOptions::default() };
        let report = bench(Subject::Recipe(Box::new(file)), options, &environment(), &mut Silent).unwrap();
        assert_eq!(report.tokens_per_step, tokens, "{name}");
        assert_eq!(report.pairs_per_second.is_some(), name != "kto", "{name}");
        assert!(report.loss.is_finite());
    }
}
