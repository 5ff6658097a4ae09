//! Bases that `tune quantize` wrote: as transformers saves them to the byte, trained on as the original quantized
//! while loading, and told to belong to it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tune::adapter::peft::Adapter;
use tune::assets::{Base, ModelDir, SafetensorsFile};
use tune::export::Error;
use tune::export::base::OpenedBase;
use tune::export::merge::{Options as MergeOptions, Wanted};
use tune::export::quantize::{Options, Outcome, Progress, quantize};
use tune::export::shards::SHARD_BYTES;
use tune::files::Existing;
use tune::model::spec::ComputeDtype;
use tune::quant::spec::{Quantization, Spec};
use tune::recipe::RecipeFile;
use tune::run::evaluate::{Evaluation, Options as EvaluationOptions, Subject, dataset};
use tune::run::inference::ModelChoice;
use tune::run::quantize::Comparison;
use tune::run::{Error as RunError, Options as RunOptions, fine_tune};
use tune::train::event::{Event, Observer};

use super::support::{entries, environment, f32_options, golden, merge};

const DOUBLE: Spec = Spec::Nf4 { block_size: 64, double_quant: true };
const SINGLE: Spec = Spec::Nf4 { block_size: 64, double_quant: false };

fn options(spec: Spec) -> Options {
    Options { quantization: spec.into(), shard_bytes: SHARD_BYTES, existing: Existing::Refuse }
}

fn opened(folder: &Path) -> OpenedBase {
    OpenedBase::open(Base { folder: folder.to_path_buf(), hub: None }).unwrap()
}

fn write(base: &Path, out: &Path, options: Options) -> Result<Outcome, Error> {
    quantize(&opened(base), out, options, &mut |_| {}, &|| false)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn files_are_those_that_transformers_saves() {
    let out = tempfile::tempdir().unwrap();
    for (name, base, spec) in [
        ("llama_bf16_double", "llama_bf16", DOUBLE),
        ("llama_bf16_single", "llama_bf16", SINGLE),
        ("smollm2_single", "smollm2", SINGLE),
        ("gemma3_single", "../dense/gemma3", SINGLE),
    ] {
        let base = golden("families").join(base);
        let (ours, theirs) = (out.path().join(name), golden("quantized").join(name));
        let outcome = write(&base, &ours, options(spec)).unwrap();
        let file = |folder: &Path| SafetensorsFile::open(&folder.join("model.safetensors")).unwrap();
        let (found, expected) = (file(&ours), file(&theirs));
        assert_eq!(found.names().collect::<Vec<_>>(), expected.names().collect::<Vec<_>>(), "{name}");
        for tensor in expected.names() {
            let (info, same) = (found.info(tensor).unwrap(), expected.info(tensor).unwrap());
            assert_eq!((info.dtype, &info.shape), (same.dtype, &same.shape), "{name}: {tensor}");
            assert_eq!(found.read(tensor).unwrap(), expected.read(tensor).unwrap(), "{name}: {tensor}");
        }
        assert_eq!(outcome.quantized, 14, "{name}");
        let (mut found, mut expected) = (json(&ours.join("config.json")), json(&theirs.join("config.json")));
        for config in [&mut found, &mut expected] {
            config["transformers_version"] = Value::Null;
        }
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn shards_hold_the_same_and_parts_of_a_weight_stay_together() {
    let out = tempfile::tempdir().unwrap();
    let base = golden("families/llama_bf16");
    let (whole, parts) = (out.path().join("whole"), out.path().join("parts"));
    write(&base, &whole, options(DOUBLE)).unwrap();
    write(&base, &parts, Options { shard_bytes: 8000, ..options(DOUBLE) }).unwrap();
    let index = json(&parts.join("model.safetensors.index.json"));
    let map = index["weight_map"].as_object().unwrap();
    let (whole, parts) = (ModelDir::open(&whole).unwrap(), ModelDir::open(&parts).unwrap());
    assert!(parts.weights().paths().count() > 4);
    assert_eq!(map.len(), whole.weights().names().count());
    for name in whole.weights().names() {
        assert_eq!(parts.weights().read(name).unwrap(), whole.weights().read(name).unwrap(), "{name}");
        if let Some((weight, _)) = name.split_once(".weight.") {
            assert_eq!(map[name], map[&format!("{weight}.weight")], "{name}");
        }
    }
    // As transformers counts: the numbers that the model has, not the bytes that hold them.
    let parameters: usize = {
        let dense = ModelDir::open(&base).unwrap();
        dense.weights().names().map(|name| dense.weights().info(name).unwrap().elements()).sum()
    };
    assert_eq!(index["metadata"]["total_parameters"], parameters);
}

struct Silent;

impl Observer for Silent {
    fn observe(&mut self, _: &Event<'_>) {}
}

/// Trains on a base and returns the adapter's folder.
fn train(base: &Path, folder: &Path, changes: &[&str]) -> Result<PathBuf, RunError> {
    fs::create_dir_all(folder).unwrap();
    let recipe = folder.join("recipe.toml");
    let rows = folder.join("rows.jsonl");
    let row = |row: usize| {
        let ids: Vec<String> = (0..12).map(|at| ((row * 13 + at * 7) % 60).to_string()).collect();
        format!("{{\"input_ids\": [{}]}}\n", ids.join(", "))
    };
    fs::write(&rows, (0..8).map(row).collect::<String>()).unwrap();
    let (base, out, rows) = (base.display(), folder.join("run").display().to_string(), rows.display());
    let text = format!(
        "version = 1\noutput_dir = \"{out}\"\n[model]\nbase = \"{base}\"\n[adapter.lora]\nrank = 4\nalpha = 8\n\
         target_modules = \"all-linear\"\n[data]\nmax_seq_len = 16\n[[dataset]]\npath = \"{rows}\"\n\
         format = \"tokens\"\n[train]\nmax_steps = 3\nmicro_batch_size = 2\nlearning_rate = 1e-3\n"
    );
    fs::write(&recipe, text).unwrap();
    let changes: Vec<String> = changes.iter().map(|change| (*change).to_owned()).collect();
    let file = RecipeFile::open(&recipe, &changes).unwrap();
    fine_tune(file, &environment(), RunOptions::default(), &mut Silent)?;
    Ok(folder.join("run/adapter"))
}

#[test]
fn training_on_it_is_training_on_the_original_quantized_while_loading() {
    let out = tempfile::tempdir().unwrap();
    let base = golden("families/llama_bf16");
    for (name, spec, table) in [
        ("double", DOUBLE, "quantization.nf4.double_quant=true"),
        ("single", SINGLE, "quantization.nf4.double_quant=false"),
        ("wide", Spec::Nf4 { block_size: 256, double_quant: true }, "quantization.nf4.block_size=256"),
    ] {
        let small = out.path().join(format!("{name}-base"));
        write(&base, &small, options(spec)).unwrap();
        let original = train(&base, &out.path().join(format!("{name}-original")), &[table]).unwrap();
        let file = |folder: &Path| SafetensorsFile::open(&folder.join("adapter_model.safetensors")).unwrap();
        let expected = file(&original);
        // With the quantization stated, and with nothing said of it.
        for (number, changes) in [&[table][..], &[]].into_iter().enumerate() {
            let folder = out.path().join(format!("{name}-{number}"));
            let adapter = train(&small, &folder, changes).unwrap();
            let found = file(&adapter);
            assert_eq!(found.names().collect::<Vec<_>>(), expected.names().collect::<Vec<_>>());
            for tensor in expected.names() {
                assert_eq!(found.read(tensor).unwrap(), expected.read(tensor).unwrap(), "{name}: {tensor}");
            }
            // The plan is that of the original in 4 bits, not that of a dense model.
            let plan = |run: &Path| json(&run.join("../memory_plan.json"))["terms"][0].clone();
            assert_eq!(plan(&adapter), plan(&original));

            // The adapter knows both: the base it was trained on, and what that was made from.
            let onto = |base: &Path, out: PathBuf| merge(&adapter, base, f32_options(), &out);
            let merged = onto(&small, folder.join("onto-4-bit")).unwrap();
            assert!(merged.onto.contains("4-bit checkpoint"), "{}", merged.onto);
            let merged = onto(&base, folder.join("onto-original")).unwrap();
            assert!(merged.comparison.from_training.is_some());
            let other = golden("peft/base");
            assert!(onto(&other, folder.join("onto-other")).is_err());
        }
    }
}

#[test]
fn a_recipe_that_says_otherwise_is_refused_with_the_difference() {
    let out = tempfile::tempdir().unwrap();
    let small = out.path().join("base");
    write(&golden("families/llama_bf16"), &small, options(SINGLE)).unwrap();
    let changes = ["quantization.nf4.double_quant=true"];
    let error = train(&small, &out.path().join("run"), &changes).unwrap_err();
    let RunError::Recipe(error) = error else { panic!("{error}") };
    let told = format!("{error:?}");
    assert!(told.contains("double_quant = true") && told.contains("double_quant = false"), "{told}");
}

#[test]
fn the_rest_of_the_folder_comes_along_and_the_licence_with_it() {
    let out = tempfile::tempdir().unwrap();
    let base = out.path().join("base");
    fs::create_dir(&base).unwrap();
    let quickstart = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/quickstart/base");
    for entry in fs::read_dir(&quickstart).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, base.join(path.file_name().unwrap())).unwrap();
    }
    fs::write(base.join("LICENSE.txt"), "Its terms.").unwrap();
    fs::write(base.join("README.md"), "---\nlicense: mit\n---\nA model.\n").unwrap();
    let small = out.path().join("small");
    let outcome = write(&base, &small, options(DOUBLE)).unwrap();
    assert!(outcome.bytes * 2 < outcome.bytes_before, "{outcome:?}");
    assert!(outcome.error > 0.01 && outcome.error < 0.2, "{outcome:?}");
    let expected = [
        "LICENSE.txt",
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(entries(&small), expected);
    for name in ["LICENSE.txt", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        assert_eq!(fs::read(small.join(name)).unwrap(), fs::read(base.join(name)).unwrap(), "{name}");
    }
    assert!(fs::read_to_string(small.join("README.md")).unwrap().contains("\nlicense: mit\n"));

    // What is in 4 bits already is not quantized twice, and a taken folder stays as it is.
    let error = write(&small, &out.path().join("again"), options(DOUBLE)).unwrap_err().to_string();
    assert!(error.contains("in 4 bits already"), "{error}");
    let error = write(&base, &small, options(DOUBLE)).unwrap_err().to_string();
    assert!(error.contains("small"), "{error}");
}

#[test]
fn a_stop_or_a_number_that_is_not_finite_leaves_nothing() {
    let out = tempfile::tempdir().unwrap();
    let base = golden("families/llama_bf16");
    let folder = out.path().join("small");
    for last in [5, 30] {
        let (mut steps, stopped) = (0, std::cell::Cell::new(false));
        let mut count = |_: Progress| {
            steps += 1;
            stopped.set(steps >= last);
        };
        let stop = || stopped.get();
        let error = quantize(&opened(&base), &folder, options(DOUBLE), &mut count, &stop).unwrap_err();
        assert!(matches!(error, Error::Stopped), "{error}");
        assert!(entries(out.path()).is_empty());
    }
    let broken = out.path().join("broken");
    fs::create_dir(&broken).unwrap();
    fs::copy(base.join("config.json"), broken.join("config.json")).unwrap();
    let mut tensors = super::tensors::read_tensors(&base.join("model.safetensors"));
    let name = "model.layers.1.mlp.up_proj.weight";
    let tensor = tensors.iter_mut().find(|tensor| tensor.name == name).unwrap();
    tensor.data[..2].copy_from_slice(&[0x80, 0x7f]);
    super::tensors::write_safetensors(&broken.join("model.safetensors"), &tensors);
    for spec in [DOUBLE, SINGLE] {
        let error = write(&broken, &folder, options(spec)).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
        assert_eq!(entries(out.path()), ["broken"]);
    }
}

fn assert_same_tensors(found: &Path, expected: &Path) {
    let [found, expected] = [found, expected].map(|path| SafetensorsFile::open(path).unwrap());
    assert_eq!(found.names().collect::<Vec<_>>(), expected.names().collect::<Vec<_>>());
    for tensor in expected.names() {
        assert_eq!(found.read(tensor).unwrap(), expected.read(tensor).unwrap(), "{tensor}");
    }
}

#[test]
fn modules_that_are_kept_stay_dense_everywhere() {
    let out = tempfile::tempdir().unwrap();
    let path = |name: &str| out.path().join(name);
    let base = golden("families/llama_bf16");
    let keep = ["down_proj", r"layers\.0\.self_attn\..*"];
    let table = format!("quantization.nf4.keep={keep:?}");
    let keep = keep.map(str::to_owned).to_vec();
    let quantization = Quantization { blocks: DOUBLE, keep };
    let small = path("small");
    let outcome = write(&base, &small, Options { quantization, ..options(DOUBLE) }).unwrap();
    assert_eq!(outcome.quantized, 8);
    let name = "model.layers.0.self_attn.q_proj.weight";
    let [packed, dense] = [&small, &base].map(|folder| ModelDir::open(folder).unwrap());
    assert_eq!(packed.weights().read(name).unwrap(), dense.weights().read(name).unwrap());
    let skipped = json(&small.join("config.json"))["quantization_config"]["llm_int8_skip_modules"].clone();
    assert_eq!(skipped.as_array().unwrap().len(), 7);
    assert_eq!([&skipped[0], &skipped[1]], ["lm_head", name.strip_suffix(".weight").unwrap()]);

    // A run on the original, and on the folder with the table and without it.
    let weights = |adapter: &Path| adapter.join("adapter_model.safetensors");
    let plan = |adapter: &Path| json(&adapter.join("../memory_plan.json"))["terms"].clone();
    let original = train(&base, &path("original"), &[&table]).unwrap();
    for (name, changes) in [("stated", &[table.as_str()][..]), ("silent", &[])] {
        let adapter = train(&small, &path(name), changes).unwrap();
        assert_same_tensors(&weights(&adapter), &weights(&original));
        for term in 0..3 {
            assert_eq!(plan(&adapter)[term], plan(&original)[term], "{name}");
        }
    }
    let all = train(&base, &path("all"), &["quantization.nf4={}"]).unwrap();
    assert_ne!(fs::read(weights(&all)).unwrap(), fs::read(weights(&original)).unwrap());
    assert!(plan(&all)[0]["bytes"].as_u64() > plan(&original)[0]["bytes"].as_u64());
    let opened = Adapter::open(&original).unwrap();
    let text = &opened.metadata()["tune.quantization"];
    assert!(text.ends_with(r#" keep=["down_proj","layers\\.0\\.self_attn\\..*"]"#), "{text}");

    // Merged into what it was trained on, from the original and from the folder.
    let onto_nf4 = MergeOptions { onto: Some(Wanted::Nf4), ..f32_options() };
    merge(&original, &base, onto_nf4, &path("merged")).unwrap();
    merge(&path("silent/run/adapter"), &small, f32_options(), &path("merged-small")).unwrap();
    let file = |name: &str| path(name).join("model.safetensors");
    assert_same_tensors(&file("merged-small"), &file("merged"));

    for (base, change, words) in [
        (&small, "quantization.nf4.keep=[\"gate_proj\"]", "the base stores in 4 bits"),
        (&base, "quantization.nf4.keep=[\"downproj\"]", "did you mean `down_proj`?"),
        (&base, "quantization.nf4.keep=[\".*\"]", "nothing would be quantized"),
    ] {
        let error = train(base, &path("refused"), &[change]).unwrap_err();
        let RunError::Recipe(error) = error else { panic!("{error}") };
        assert!(format!("{error:?}").contains(words), "{error:?}");
    }
}

/// Each model by itself has the losses that the report compares.
#[test]
fn the_report_compares_what_evaluations_measure() {
    let out = tempfile::tempdir().unwrap();
    let base = golden("families/llama_bf16");
    let (small, rows) = (out.path().join("small"), out.path().join("rows.jsonl"));
    let row = |row: usize| {
        let ids: Vec<String> = (0..8 + row).map(|at| ((row * 13 + at * 7) % 60).to_string()).collect();
        format!("{{\"input_ids\": [{}]}}\n", ids.join(", "))
    };
    fs::write(&rows, (0..8).map(row).collect::<String>()).unwrap();
    let outcome = write(&base, &small, options(DOUBLE)).unwrap();
    let rows = rows.to_str().unwrap();
    fn choice(base: &Path) -> ModelChoice<'_> {
        ModelChoice { base: base.to_str(), compute_dtype: Some(ComputeDtype::F32), ..ModelChoice::default() }
    }
    let loss = |base: &Path| {
        let options = EvaluationOptions { limit: Some(6), matching: None };
        let data = Some(dataset(rows, tune::data::spec::Format::Tokens, &[]));
        let evaluation =
            Evaluation::open(Subject::Choice, choice(base), data, options, &environment()).unwrap();
        evaluation.run(&mut Silent, &environment()).unwrap().base.loss.loss
    };
    let quantization = Quantization::USUAL;
    let comparison = Comparison::open(choice(&base), &quantization, (rows, None), 6, &environment()).unwrap();
    let report = comparison.report(&mut |_, _| {}, &environment()).unwrap();
    assert_eq!((report.tensors.len(), &report.tensors), (14, &outcome.tensors));
    assert!((report.error - outcome.error).abs() < 1e-12 && report.error > 0.01, "{}", report.error);
    let held_out = report.held_out.unwrap();
    println!("{held_out:?}");
    assert_eq!((held_out.rows, held_out.supervised_tokens), (6, (7..13).sum::<u64>()));
    assert!((held_out.dense_loss - loss(&base)).abs() < 1e-5);
    assert!((held_out.quantized_loss - loss(&small)).abs() < 1e-5);
    let difference = held_out.quantized_loss - held_out.dense_loss;
    assert!((held_out.difference - difference).abs() < 1e-9 && difference != 0.0);
    assert!(held_out.margin.is_some_and(|margin| margin < 0.5));
    // There is no dense base beside one in 4 bits.
    let refused = Comparison::open(choice(&small), &quantization, (rows, None), 6, &environment());
    assert!(refused.is_err_and(|error| error.to_string().contains("stored in 4 bits")));
}
