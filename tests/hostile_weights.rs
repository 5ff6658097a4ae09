//! Model folders that are damaged, cut short or made to harm: an error that says what is wrong, never a panic.

#![expect(clippy::unwrap_used, reason = "a helper outside the test functions may fail the test")]

use std::fs;
use std::path::{Path, PathBuf};

use burn_flex::Flex;
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;
use tune::assets::{ModelDir, SafetensorsFile, WeightFiles, resolve_base};
use tune::model::{FloatDtype, family, load};

mod support;
use support::{Tensor, read_tensors, safetensors, write_safetensors};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families").join(name)
}

#[track_caller]
fn says(error: impl std::fmt::Display, parts: &[&str]) {
    let error = error.to_string();
    for part in parts {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
}

fn open(bytes: &[u8]) -> Result<SafetensorsFile, tune::assets::Error> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, bytes).unwrap();
    SafetensorsFile::open(&path)
}

#[test]
fn headers_that_do_not_describe_the_file_are_refused() {
    let refused = |header: &str, data: usize, parts: &[&str]| {
        says(open(&safetensors(header, &vec![0; data])).unwrap_err(), parts);
    };
    refused(r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 4, &["`w`", "truncated"]);
    refused(r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 12, &["cover 8 of 12 bytes"]);
    refused(r#"{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, 8, &["`w`", "F32 [3]", "8 bytes"]);
    refused(r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, 8, &["`w`"]);
    refused(r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, 8, &["`w`", "gap"]);
    refused(
        r#"{"v":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
        12,
        &["`w`", "overlaps"],
    );
    refused(
        r#"{"w":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
        4,
        &["`w`", "twice"],
    );
    refused(r#"{"w":{"dtype":"F9","shape":[1],"data_offsets":[0,4]}}"#, 4, &["`w`", "F9"]);
    refused(r#"{"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4, &["`w`"]);
    refused(
        r#"{"w":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#,
        0,
        &["`w`", "overflow"],
    );
    refused(
        r#"{"w":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,8]}}"#,
        8,
        &["overflow"],
    );
    refused(
        r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[18446744073709551614,18446744073709551615]}}"#,
        1,
        &["`w`"],
    );
    refused("[1,2]", 0, &["header"]);
    refused(&"[".repeat(200_000), 0, &["header"]);
    refused(&r#"{"a":"#.repeat(100_000), 0, &["header"]);
}

#[test]
fn the_header_length_is_not_trusted() {
    says(open(&[]).unwrap_err(), &["0 bytes"]);
    says(open(&[1, 2, 3]).unwrap_err(), &["3 bytes"]);
    for length in [9u64, 1 << 40, u64::MAX] {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend([b'{', b'}']);
        says(open(&bytes).unwrap_err(), &[&length.to_string(), "2 follow"]);
    }
}

#[test]
fn a_file_cut_while_it_is_open_is_an_error_that_names_it() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.safetensors");
    let data = vec![0; 4096];
    write_safetensors(&path, &[Tensor { name: "w".into(), dtype: "F32", shape: vec![1024], data }]);
    let file = SafetensorsFile::open(&path).unwrap();
    let length = fs::metadata(&path).unwrap().len();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 100).unwrap();
    says(file.read_floats::<f32>("w").unwrap_err(), &["model.safetensors", "`w`", "100 bytes too early"]);
    says(file.read("w").unwrap_err(), &["model.safetensors", "`w`"]);
}

#[test]
fn numbers_that_no_weight_can_be_are_refused() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.safetensors");
    let data = [1.0f32, f32::INFINITY].iter().flat_map(|value| value.to_le_bytes()).collect();
    let large = [1.0f32, 1e6].iter().flat_map(|value| value.to_le_bytes()).collect();
    write_safetensors(
        &path,
        &[
            Tensor { name: "infinite".into(), dtype: "F32", shape: vec![2], data },
            Tensor { name: "large".into(), dtype: "F32", shape: vec![2], data: large },
            Tensor { name: "small".into(), dtype: "F8_E5M2", shape: vec![2], data: vec![0; 2] },
        ],
    );
    let file = SafetensorsFile::open(&path).unwrap();
    says(file.read_floats::<f32>("infinite").unwrap_err(), &["`infinite`", "element 1", "inf"]);
    says(
        file.read_floats::<half::f16>("large").unwrap_err(),
        &["`large`", "element 1", "1000000", "compute_dtype"],
    );
    says(file.read_floats::<f32>("small").unwrap_err(), &["`small`", "F8_E5M2", "BF16"]);
    assert_eq!(file.read_floats::<f32>("large").unwrap(), [1.0, 1e6]);
}

#[test]
fn tensors_longer_than_one_piece_are_read_whole() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.safetensors");
    let values: Vec<f32> =
        (0..700_001).map(|element| half::bf16::from_f32(element as f32).to_f32()).collect();
    let wide = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let narrow = values.iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes()).collect();
    write_safetensors(
        &path,
        &[
            Tensor { name: "wide".into(), dtype: "F32", shape: vec![values.len()], data: wide },
            Tensor { name: "narrow".into(), dtype: "BF16", shape: vec![values.len()], data: narrow },
        ],
    );
    let file = SafetensorsFile::open(&path).unwrap();
    assert!(file.read_floats::<f32>("wide").unwrap() == values);
    assert!(file.read_floats::<f32>("narrow").unwrap() == values);
    assert!(file.same_tensor("wide", &file, "wide").unwrap());
    assert!(!file.same_tensor("wide", &file, "narrow").unwrap());
}

/// A model folder with these tensors (of `llama2`, changed) and this config.
fn folder_with(change: impl FnOnce(&mut Vec<Tensor>), config: impl FnOnce(&mut Value)) -> TempDir {
    let source = golden("llama2");
    let folder = TempDir::new().unwrap();
    let mut value: Value = serde_json::from_slice(&fs::read(source.join("config.json")).unwrap()).unwrap();
    config(&mut value);
    fs::write(folder.path().join("config.json"), value.to_string()).unwrap();
    let mut tensors = read_tensors(&source.join("model.safetensors"));
    change(&mut tensors);
    write_safetensors(&folder.path().join("model.safetensors"), &tensors);
    folder
}

fn load_error(folder: &Path) -> Option<String> {
    let attempt = || -> Result<(), tune::model::Error> {
        let model = ModelDir::open(folder)?;
        let spec = family::decoder_spec(model.config())?;
        load::load::<Flex>(model.weights(), &spec, None, FloatDtype::F32, &Default::default(), &mut |_| {})?;
        Ok(())
    };
    attempt().err().map(|error| error.to_string())
}

fn find<'a>(tensors: &'a mut [Tensor], name: &str) -> &'a mut Tensor {
    tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
}

#[test]
fn tensors_that_do_not_fit_the_config_are_named() {
    let name = "model.layers.1.mlp.up_proj.weight";
    let missing = folder_with(|tensors| tensors.retain(|tensor| tensor.name != name), |_| {});
    says(load_error(missing.path()).unwrap(), &[name, "missing", "[48, 32]"]);
    let turned = folder_with(|tensors| find(tensors, name).shape = vec![32, 48], |_| {});
    says(load_error(turned.path()).unwrap(), &[name, "[32, 48]", "[48, 32]"]);
    let extra = folder_with(
        |tensors| tensors.push(Tensor { name: "model.layers.7.x".into(), ..tensors[0].clone() }),
        |_| {},
    );
    says(load_error(extra.path()).unwrap(), &["`model.layers.7.x`", "belongs to nothing"]);
    let narrow = folder_with(
        |tensors| {
            let tensor = find(tensors, name);
            (tensor.dtype, tensor.data) = ("F8_E5M2", vec![0; 48 * 32]);
        },
        |_| {},
    );
    says(load_error(narrow.path()).unwrap(), &[name, "F8_E5M2"]);
    let deeper = folder_with(|_| {}, |config| config["num_hidden_layers"] = json!(10_000));
    says(load_error(deeper.path()).unwrap(), &["model.layers.2.", "more"]);
    let wider = folder_with(|_| {}, |config| config["vocab_size"] = json!(1 << 27));
    says(load_error(wider.path()).unwrap(), &["model.embed_tokens.weight", "134217728"]);
}

#[test]
fn what_carries_nothing_is_passed_over() {
    let frequencies = folder_with(
        |tensors| {
            let name = "model.layers.0.self_attn.rotary_emb.inv_freq".into();
            tensors.push(Tensor { name, dtype: "F32", shape: vec![4], data: vec![0; 16] });
        },
        |_| {},
    );
    assert_eq!(load_error(frequencies.path()), None);
    let tie = |config: &mut Value| config["tie_word_embeddings"] = json!(true);
    let copy = folder_with(
        |tensors| {
            let data = find(tensors, "model.embed_tokens.weight").data.clone();
            find(tensors, "lm_head.weight").data = data;
        },
        tie,
    );
    assert_eq!(load_error(copy.path()), None);
    let different = folder_with(|_| {}, tie);
    says(load_error(different.path()).unwrap(), &["lm_head.weight", "differs", "tie_word_embeddings"]);
    let headless = folder_with(|tensors| tensors.retain(|tensor| tensor.name != "lm_head.weight"), |_| {});
    says(load_error(headless.path()).unwrap(), &["lm_head.weight", "missing"]);
}

/// A copy of the sharded model.
fn sharded() -> TempDir {
    let folder = TempDir::new().unwrap();
    for entry in fs::read_dir(golden("llama_sharded")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

fn change_index(folder: &Path, change: impl FnOnce(&mut Value)) {
    let path = folder.join("model.safetensors.index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut index);
    fs::write(path, index.to_string()).unwrap();
}

#[test]
fn an_index_is_held_against_its_shards() {
    let norm = "model.norm.weight";
    let folder = sharded();
    assert_eq!(load_error(folder.path()), None);
    let shard = WeightFiles::open(folder.path()).unwrap().path_of(norm).unwrap().to_path_buf();
    let shard_name = shard.file_name().unwrap().to_str().unwrap().to_owned();
    fs::remove_file(&shard).unwrap();
    says(load_error(folder.path()).unwrap(), &[&shard_name, "missing", "download"]);

    let folder = sharded();
    change_index(folder.path(), |index| index["weight_map"]["model.extra"] = json!(shard_name));
    says(load_error(folder.path()).unwrap(), &["`model.extra`", &shard_name]);

    for path in ["../model.safetensors", "/etc/hostname", "a\\b", "C:x", "", ".."] {
        let folder = sharded();
        change_index(folder.path(), |index| index["weight_map"][norm] = json!(path));
        says(load_error(folder.path()).unwrap(), &[norm, "plain file name"]);
    }
    let folder = sharded();
    change_index(folder.path(), |index| index["weight_map"][norm] = json!(7));
    says(load_error(folder.path()).unwrap(), &[norm, "a number"]);
    let folder = sharded();
    change_index(folder.path(), |index| index["weight_map"] = json!([]));
    says(load_error(folder.path()).unwrap(), &["weight_map"]);

    // In no map, but in a shard: not hidden from the model.
    let folder = sharded();
    change_index(folder.path(), |index| {
        index["weight_map"].as_object_mut().unwrap().remove(norm);
    });
    assert_eq!(load_error(folder.path()), None);
}

#[test]
fn folders_without_weights_say_what_is_needed() {
    let with = |files: &[&str]| {
        let folder = TempDir::new().unwrap();
        fs::copy(golden("llama2").join("config.json"), folder.path().join("config.json")).unwrap();
        for file in files {
            fs::write(folder.path().join(file), b"x").unwrap();
        }
        load_error(folder.path()).unwrap()
    };
    says(with(&[]), &["safetensors weights", "model.safetensors.index.json"]);
    says(with(&["pytorch_model.bin"]), &["pickle", "save_pretrained"]);
    says(with(&["model-q4.gguf"]), &["GGUF"]);
    says(with(&["adapter_config.json", "adapter_model.safetensors"]), &["adapter", "init_from"]);
    let empty = TempDir::new().unwrap();
    says(load_error(empty.path()).unwrap(), &["config.json"]);
    says(load_error(&empty.path().join("nowhere")).unwrap(), &["nowhere"]);
}

#[test]
fn hostile_json_is_refused() {
    let with = |name: &str, text: &[u8]| {
        let folder = folder_with(|_| {}, |_| {});
        fs::write(folder.path().join(name), text).unwrap();
        load_error(folder.path()).unwrap()
    };
    says(with("config.json", b"{"), &["config.json", "not valid JSON"]);
    says(with("config.json", b"[]"), &["config.json", "an array"]);
    says(with("config.json", "{\"a\":".repeat(100_000).as_bytes()), &["config.json"]);
    says(with("config.json", &[0xff, 0xfe]), &["config.json"]);
    says(with("tokenizer_config.json", b"nope"), &["tokenizer_config.json"]);
    let huge = vec![b' '; (32 << 20) + 1];
    says(with("generation_config.json", &huge), &["generation_config.json", "33554433"]);
}

#[test]
fn chat_templates_are_found_where_transformers_looks() {
    let folder = folder_with(|_| {}, |_| {});
    let template = |folder: &Path| ModelDir::open(folder).unwrap().chat_template();
    assert_eq!(template(folder.path()).unwrap(), None);
    let config = folder.path().join("tokenizer_config.json");
    fs::write(&config, r#"{"chat_template": "own"}"#).unwrap();
    assert_eq!(template(folder.path()).unwrap().as_deref(), Some("own"));
    let named =
        r#"{"chat_template": [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]}"#;
    fs::write(&config, named).unwrap();
    assert_eq!(template(folder.path()).unwrap().as_deref(), Some("d"));
    fs::write(&config, r#"{"chat_template": [{"name": "tools", "template": "t"}]}"#).unwrap();
    says(template(folder.path()).unwrap_err(), &["default"]);
    fs::write(folder.path().join("chat_template.jinja"), "file").unwrap();
    assert_eq!(template(folder.path()).unwrap().as_deref(), Some("file"));
    let model = ModelDir::open(folder.path()).unwrap();
    let names: Vec<_> = model.tokenizer_files().unwrap();
    assert_eq!(names, ["chat_template.jinja", "tokenizer_config.json"].map(|name| folder.path().join(name)));
    // Templates beside the default one are copied with it, to the folder where they are looked for.
    let additional = folder.path().join("additional_chat_templates");
    fs::create_dir(&additional).unwrap();
    fs::write(additional.join("tool_use.jinja"), "with tools").unwrap();
    fs::write(additional.join("notes.txt"), "no template").unwrap();
    let files = model.tokenizer_files().unwrap();
    assert_eq!(files.len(), 3);
    let copy = TempDir::new().unwrap();
    for file in &files {
        tune::assets::folder::copy_tokenizer_file(file, copy.path()).unwrap();
    }
    assert_eq!(fs::read_to_string(copy.path().join("chat_template.jinja")).unwrap(), "file");
    let copied = copy.path().join("additional_chat_templates/tool_use.jinja");
    assert_eq!(fs::read_to_string(copied).unwrap(), "with tools");
    assert!(!copy.path().join("additional_chat_templates/notes.txt").exists());
}

#[test]
fn files_are_identified_by_content() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    write_safetensors(&folder.path().join("model.safetensors"), &[]);
    let digests = ModelDir::open(folder.path()).unwrap().files_sha256().unwrap();
    assert_eq!(digests.len(), 2);
    assert_eq!((digests[0].name.as_str(), digests[0].bytes), ("config.json", 2));
    assert_eq!(digests[0].sha256, "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a");
}

#[test]
fn hub_ids_are_found_in_the_cache() {
    let cache = TempDir::new().unwrap();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let repository = cache.path().join("models--org--name");
    let snapshot = repository.join("snapshots").join(commit);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repository.join("refs/pr")).unwrap();
    fs::write(repository.join("refs/main"), format!("{commit}\n")).unwrap();
    fs::write(repository.join("refs/pr/1"), commit).unwrap();
    fs::write(repository.join("refs/broken"), "../../..").unwrap();
    fs::write(repository.join("refs/gone"), "f".repeat(40)).unwrap();
    for revision in [None, Some("main"), Some("pr/1"), Some(commit)] {
        let base = resolve_base("org/name", revision, cache.path()).unwrap();
        assert_eq!(base.folder, snapshot);
        let hub = base.hub.unwrap();
        assert_eq!((hub.id.as_str(), hub.commit.as_str()), ("org/name", commit));
    }
    let refused = |base: &str, revision: Option<&str>, parts: &[&str]| {
        says(resolve_base(base, revision, cache.path()).unwrap_err(), parts);
    };
    refused("org/other", None, &["models--org--other", "download org/other"]);
    refused("org/name", Some("v2"), &["v2", "download org/name@v2"]);
    refused("org/name", Some("gone"), &["snapshots", "gone"]);
    refused("org/name", Some("broken"), &["broken", "does not contain a commit"]);
    refused("org/name", Some("../main"), &["not a branch"]);
    refused("./org/name", None, &["neither an existing folder"]);
    refused("a/b/c", None, &["neither an existing folder"]);
    refused("../x", None, &["neither an existing folder"]);
    let folder = snapshot.to_str().unwrap();
    assert_eq!(resolve_base(folder, None, cache.path()).unwrap().hub, None);
    refused(folder, Some("main"), &["no revisions"]);
}

/// A small valid file to be damaged.
fn specimen() -> Vec<u8> {
    fs::read(golden("bnb_nf4").join("model.safetensors")).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn damaged_files_never_panic(
        edits in proptest::collection::vec((0usize..6000, any::<u8>()), 1..8),
        cut in proptest::option::of(0usize..80_000),
    ) {
        let mut bytes = specimen();
        for (position, value) in edits {
            let position = position.min(bytes.len() - 1);
            bytes[position] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut);
        }
        let folder = TempDir::new().unwrap();
        fs::copy(golden("bnb_nf4").join("config.json"), folder.path().join("config.json")).unwrap();
        fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        // Most are refused; an edit of the numbers alone may load.
        let _ = load_error(folder.path());
    }

    #[test]
    fn truncated_files_are_refused(cut in 0usize..1_000_000) {
        let bytes = specimen();
        let cut = cut % bytes.len();
        prop_assert!(open(&bytes[..cut]).is_err());
    }

    #[test]
    fn hostile_configs_never_panic(key in 0usize..64, value in json_value(), drop in any::<bool>()) {
        let text = fs::read(golden("qwen2_sliding").join("config.json")).unwrap();
        let mut config: Value = serde_json::from_slice(&text).unwrap();
        let entries = config.as_object_mut().unwrap();
        let key = entries.keys().nth(key % entries.len()).unwrap().clone();
        match drop {
            true => { entries.remove(&key); }
            false => { entries.insert(key, value); }
        }
        if let Ok(spec) = family::decoder_spec(&config) {
            // Whatever is accepted has sizes that can be computed with.
            let _ = spec.parameters();
            let _ = spec.rotaries[0].inverse_frequencies(1 << 20);
            let weights = WeightFiles::open(&golden("qwen2_sliding")).unwrap();
            let _ = tune::model::tensors::check(&spec, &weights, None);
        }
    }
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0u64..200).prop_map(Value::from),
        "[a-z_]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::hash_map("(rope_type|rope_theta|factor|type|[a-z]{1,8})", inner, 0..4)
                .prop_map(|entries| entries.into_iter().collect::<serde_json::Map<_, _>>().into()),
        ]
    })
}
