//! Adapters of other tools with LoRA on the output head or on the embeddings.

use std::fs;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize_to_file};
use serde_json::{Value, json};
use tune::adapter::peft::Adapter;
use tune::assets::{ModelDir, SafetensorsFile};
use tune::export::gguf::FileType;
use tune::export::merge::Options;
use tune::files::Existing;
use tune::run::adapters::BaseChoice;
use tune::run::gguf;

use super::support::{environment, f32_options, golden, merge};

/// The golden adapter `plain_qv` with `more` tensors.
fn with_tensors(folder: &Path, more: &[(&str, [usize; 2], Vec<f32>)]) {
    fs::create_dir_all(folder).unwrap();
    let own = golden("peft/plain_qv");
    fs::copy(own.join("adapter_config.json"), folder.join("adapter_config.json")).unwrap();
    let bytes = fs::read(own.join("adapter_model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let more: Vec<(String, Vec<usize>, Vec<u8>)> = more
        .iter()
        .map(|(name, shape, values)| {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            (format!("base_model.model.{name}"), shape.to_vec(), bytes)
        })
        .collect();
    let mut views: Vec<(String, TensorView<'_>)> = file.tensors();
    for (name, shape, bytes) in &more {
        views.push((name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    }
    serialize_to_file(views, None, &folder.join("adapter_model.safetensors")).unwrap();
}

fn values(count: usize, step: f32) -> Vec<f32> {
    (0..count).map(|at| ((at * 37 % 101) as f32 / 50.0 - 1.0) * step).collect()
}

fn table(folder: &Path, name: &str) -> (Vec<usize>, Vec<f32>) {
    let file = SafetensorsFile::open(&folder.join("model.safetensors")).unwrap();
    (file.info(name).unwrap().shape.clone(), file.read_floats(name).unwrap())
}

#[test]
fn lora_on_head_and_embeddings_is_folded_into_the_tables_of_an_untied_base() {
    let outer = tempfile::tempdir().unwrap();
    let (adapter, out, base) = (outer.path().join("adapter"), outer.path().join("out"), golden("peft/base"));
    let (shape, head) = table(&base, "lm_head.weight");
    let (vocab, hidden) = (shape[0], shape[1]);
    let config = Adapter::open(&golden("peft/plain_qv")).unwrap().config().clone();
    let (rank, scaling) = (config.rank, (config.alpha / config.rank as f64) as f32);
    let (head_a, head_b) = (values(rank * hidden, 0.02), values(vocab * rank, 0.03));
    let (table_a, table_b) = (values(rank * vocab, 0.05), values(hidden * rank, 0.01));
    with_tensors(
        &adapter,
        &[
            ("lm_head.lora_A.weight", [rank, hidden], head_a.clone()),
            ("lm_head.lora_B.weight", [vocab, rank], head_b.clone()),
            ("lm_head.base_layer.weight", [vocab, hidden], head.clone()),
            ("model.embed_tokens.lora_embedding_A", [rank, vocab], table_a.clone()),
            ("model.embed_tokens.lora_embedding_B", [hidden, rank], table_b.clone()),
        ],
    );
    merge(&adapter, &base, f32_options(), &out).unwrap();
    let (_, embeddings) = table(&base, "model.embed_tokens.weight");
    let (_, merged_head) = table(&out, "lm_head.weight");
    let (_, merged_embeddings) = table(&out, "model.embed_tokens.weight");
    for row in 0..vocab {
        for column in 0..hidden {
            let at = row * hidden + column;
            let delta = |product: &dyn Fn(usize) -> f32| scaling * (0..rank).map(product).sum::<f32>();
            let expected = head[at] + delta(&|r| head_b[row * rank + r] * head_a[r * hidden + column]);
            assert!((merged_head[at] - expected).abs() < 1e-6, "head {row} {column}");
            let expected = embeddings[at] + delta(&|r| table_a[r * vocab + row] * table_b[column * rank + r]);
            assert!((merged_embeddings[at] - expected).abs() < 1e-6, "embeddings {row} {column}");
        }
    }
}

#[test]
fn m4_lora_on_the_head_is_folded_into_a_gguf_file_as_into_a_merged_model() {
    let outer = tempfile::tempdir().unwrap();
    let path = |name: &str| outer.path().join(name);
    let staged = |from: &Path, to: &Path| {
        fs::create_dir_all(to).unwrap();
        for folder in [from, &golden("gguf/tokenizer")] {
            for entry in fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            }
        }
    };
    staged(&golden("peft/base"), &path("base"));
    let (shape, _) = table(&path("base"), "lm_head.weight");
    let rank = Adapter::open(&golden("peft/plain_qv")).unwrap().config().rank;
    let (head_a, head_b) = (values(rank * shape[1], 0.2), values(shape[0] * rank, 0.3));
    with_tensors(
        &path("adapter"),
        &[
            ("lm_head.lora_A.weight", [rank, shape[1]], head_a),
            ("lm_head.lora_B.weight", [shape[0], rank], head_b),
        ],
    );
    merge(&path("adapter"), &path("base"), f32_options(), &path("merged")).unwrap();
    let base = path("base");
    let choice = BaseChoice { base: base.to_str(), revision: None };
    let source = gguf::Source::open(&path("adapter"), choice, Options::default(), &environment()).unwrap();
    source.export(FileType::F32, &path("gguf"), Existing::Refuse, &mut |_| {}, &environment()).unwrap();
    let mut entries = fs::read_dir(path("gguf")).unwrap().map(|entry| entry.unwrap().path());
    let file = entries.find(|file| file.extension().is_some_and(|end| end == "gguf")).unwrap();
    let bytes = fs::read(file).unwrap();
    let (_, head) = table(&path("merged"), "lm_head.weight");
    let head: Vec<u8> = head.iter().flat_map(|value| value.to_le_bytes()).collect();
    assert!(bytes.windows(head.len()).any(|part| part == head));
}

#[test]
fn lora_on_tables_is_refused_with_its_reason_where_it_is_not_used() {
    let outer = tempfile::tempdir().unwrap();
    let (adapter, out) = (outer.path().join("adapter"), outer.path().join("out"));
    let base = golden("peft/base");
    let (shape, _) = table(&base, "lm_head.weight");
    let rank = Adapter::open(&golden("peft/plain_qv")).unwrap().config().rank;
    let head_a = ("lm_head.lora_A.weight", [rank, shape[1]], values(rank * shape[1], 0.1));
    with_tensors(
        &adapter,
        &[head_a.clone(), ("lm_head.lora_B.weight", [shape[0], rank], vec![0.0; shape[0] * rank])],
    );
    let error = Adapter::open(&adapter).unwrap_err().to_string();
    assert!(error.contains("LoRA on lm_head") && error.contains("`tune merge`"), "{error}");
    with_tensors(&outer.path().join("half"), &[head_a]);
    let error = merge(&outer.path().join("half"), &base, f32_options(), &out).unwrap_err().to_string();
    assert!(error.contains("lm_head.lora_B.weight` is missing"), "{error}");
}

/// The golden base, its head tied to its embeddings.
fn tied_base(folder: &Path) {
    let base = golden("peft/base");
    fs::create_dir_all(folder).unwrap();
    let config = fs::read_to_string(base.join("config.json")).unwrap();
    let config = config.replace("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
    fs::write(folder.join("config.json"), config).unwrap();
    let bytes = fs::read(base.join("model.safetensors")).unwrap();
    let mut views = SafeTensors::deserialize(&bytes).unwrap().tensors();
    views.retain(|(name, _)| name != "lm_head.weight");
    serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
}

/// Changes fields of an adapter's configuration.
fn configure(adapter: &Path, changes: &[(&str, Value)]) {
    let file = adapter.join("adapter_config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    for (key, value) in changes {
        config[*key] = value.clone();
    }
    fs::write(file, config.to_string()).unwrap();
}

fn is_tied(folder: &Path) -> bool {
    let config: Value = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
    let file = SafetensorsFile::open(&folder.join("model.safetensors")).unwrap();
    assert_eq!(file.info("lm_head.weight").is_none(), config["tie_word_embeddings"] == true);
    config["tie_word_embeddings"] == true
}

#[test]
fn m5_a_tied_base_is_untied_where_an_adapter_makes_head_and_embeddings_differ() {
    let outer = tempfile::tempdir().unwrap();
    let path = |name: &str| outer.path().join(name);
    tied_base(&path("base"));
    let (shape, embeddings) = table(&path("base"), "model.embed_tokens.weight");
    let (vocab, hidden) = (shape[0], shape[1]);
    let rank = Adapter::open(&golden("peft/plain_qv")).unwrap().config().rank;
    let (head_a, head_b) = (values(rank * hidden, 0.02), values(vocab * rank, 0.03));
    with_tensors(
        &path("lora"),
        &[
            ("lm_head.lora_A.weight", [rank, hidden], head_a),
            ("lm_head.lora_B.weight", [vocab, rank], head_b),
        ],
    );
    // PEFT leaves the head at the base's table where the embeddings alone are saved.
    let saved = values(vocab * hidden, 0.1);
    with_tensors(&path("embeddings"), &[("model.embed_tokens.weight", [vocab, hidden], saved.clone())]);
    configure(&path("embeddings"), &[("modules_to_save", json!(["embed_tokens"]))]);
    for name in ["lora", "embeddings"] {
        let out = path(&format!("merged-{name}"));
        merge(&path(name), &path("base"), f32_options(), &out).unwrap();
        assert!(!is_tied(&out), "{name}");
        let (head, own) = (table(&out, "lm_head.weight").1, table(&out, "model.embed_tokens.weight").1);
        match name {
            "lora" => assert!(own == embeddings && head != embeddings),
            _ => assert!(own == saved && head == embeddings),
        }
    }
}

#[test]
fn m5_a_tied_base_stays_tied_where_both_tables_are_one() {
    let outer = tempfile::tempdir().unwrap();
    let path = |name: &str| outer.path().join(name);
    tied_base(&path("base"));
    let (shape, _) = table(&path("base"), "model.embed_tokens.weight");
    let saved = values(shape[0] * shape[1], 0.1);
    let both = [
        ("model.embed_tokens.weight", [shape[0], shape[1]], saved.clone()),
        ("lm_head.weight", [shape[0], shape[1]], saved.clone()),
    ];
    // As PEFT writes it with `ensure_weight_tying`, and without.
    let cases = [
        ("tying", &both[..], json!(["model.embed_tokens"]), true),
        ("one", &both[..1], json!(["embed_tokens"]), true),
        ("equal", &both[..], json!(["embed_tokens", "lm_head"]), false),
    ];
    for (name, tensors, modules, ties) in cases {
        with_tensors(&path(name), tensors);
        configure(&path(name), &[("modules_to_save", modules), ("ensure_weight_tying", json!(ties))]);
        let out = path(&format!("merged-{name}"));
        merge(&path(name), &path("base"), f32_options(), &out).unwrap();
        assert!(is_tied(&out), "{name}");
        assert_eq!(table(&out, "model.embed_tokens.weight").1, saved, "{name}");
    }
}

#[test]
fn m9_a_folder_with_a_model_and_an_adapter_is_refused_as_either() {
    let outer = tempfile::tempdir().unwrap();
    let both = outer.path().join("both");
    with_tensors(&both, &[]);
    for name in ["config.json", "model.safetensors"] {
        fs::copy(golden("peft/base").join(name), both.join(name)).unwrap();
    }
    let sentence = "holds the weights of a model and an adapter";
    for error in [
        Adapter::open(&both).unwrap_err().to_string(),
        ModelDir::open(&both).unwrap_err().to_string(),
        merge(&both, &golden("peft/base"), f32_options(), &outer.path().join("out")).unwrap_err().to_string(),
        merge(&golden("peft/plain_qv"), &both, f32_options(), &outer.path().join("out"))
            .unwrap_err()
            .to_string(),
    ] {
        assert!(error.contains(sentence) && error.contains("folder of their own"), "{error}");
    }
}

#[test]
fn m10_names_with_a_prefix_or_without_theirs_are_recognised() {
    let outer = tempfile::tempdir().unwrap();
    let bytes = fs::read(golden("peft/base").join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    let opened = |folder: &str, rename: &dyn Fn(&str) -> Option<String>| {
        let folder = outer.path().join(folder);
        fs::create_dir(&folder).unwrap();
        fs::copy(golden("peft/base/config.json"), folder.join("config.json")).unwrap();
        let renamed = tensors.iter().filter_map(|(name, view)| Some((rename(name)?, view.clone())));
        serialize_to_file(renamed, None, &folder.join("model.safetensors")).unwrap();
        let model = ModelDir::open(&folder).unwrap();
        let spec = tune::model::family::decoder_spec(model.config()).unwrap();
        tune::model::tensors::check(&spec, model.weights(), None).unwrap_err().to_string()
    };
    let wrapped = opened("wrapped", &|name| Some(format!("_orig_mod.{name}")));
    assert!(wrapped.contains("`_orig_mod.` in front of its name"), "{wrapped}");
    let bare = opened("bare", &|name| name.strip_prefix("model.").map(str::to_owned));
    assert!(bare.contains("lack `model.`") && bare.contains("`lm_head.weight` is missing"), "{bare}");
}

#[test]
fn m11_a_value_head_is_left_out_and_a_head_in_4_bits_is_named() {
    let outer = tempfile::tempdir().unwrap();
    let bytes = fs::read(golden("peft/base").join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    let checked = |folder: &str, extra: &str| {
        let folder = outer.path().join(folder);
        fs::create_dir(&folder).unwrap();
        fs::copy(golden("peft/base/config.json"), folder.join("config.json")).unwrap();
        let (_, view) = tensors.iter().find(|(name, _)| name == "model.norm.weight").unwrap();
        let with = tensors.iter().cloned().chain([(extra.to_owned(), view.clone())]);
        serialize_to_file(with, None, &folder.join("model.safetensors")).unwrap();
        let model = ModelDir::open(&folder).unwrap();
        let spec = tune::model::family::decoder_spec(model.config()).unwrap();
        tune::model::tensors::check(&spec, model.weights(), None)
    };
    assert!(checked("value-head", "v_head.summary.weight").is_ok());
    let error = checked("four-bits", "lm_head.weight.absmax").unwrap_err().to_string();
    assert!(
        error.contains("`lm_head.weight` is stored in 4 bits") && error.contains("tune quantize"),
        "{error}"
    );
    assert!(!error.contains("belongs to nothing"), "{error}");
}
