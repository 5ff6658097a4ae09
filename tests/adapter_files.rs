//! Adapter folders: PEFT's own are read, ours are read back and written alike twice, and what does not fit is
//! named.

#![expect(clippy::unwrap_used, reason = "helpers of tests stop where they fail")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use burn_flex::Flex;
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;
use tune::adapter::lora::LoraSet;
use tune::adapter::peft::{self, Adapter, CARD_FILE, CONFIG_FILE, Config, TENSORS_FILE};
use tune::adapter::projection::{Module, Projection};
use tune::adapter::spec::{Spec, TargetModules};
use tune::adapter::target::{Target, resolve};
use tune::adapter::whole::{self, Whole, WholeKind};
use tune::assets::{ModelDir, SafetensorsFile};
use tune::files::Existing;
use tune::files::safetensors::{Dtype, Layout, TensorHeader};
use tune::model::{Decoder, FloatDtype, family, load};

/// The projections of `tests/golden/peft/base`.
fn modules() -> Vec<Module> {
    let mut modules = Vec::new();
    for layer in 0..2 {
        for projection in Projection::ALL {
            let (block, out_features, in_features) = match projection {
                Projection::Query | Projection::Output => ("self_attn", 32, 32),
                Projection::Key | Projection::Value => ("self_attn", 16, 32),
                Projection::Gate | Projection::Up => ("mlp", 48, 32),
                Projection::Down => ("mlp", 32, 48),
            };
            let path = format!("model.layers.{layer}.{block}.{projection}");
            modules.push(Module { path, layer, projection, out_features, in_features });
        }
    }
    modules
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/peft").join(name)
}

fn names(names: &[&str]) -> TargetModules {
    TargetModules::Names(names.iter().map(|&name| name.to_owned()).collect())
}

fn saved() -> Vec<String> {
    vec!["embed_tokens".into(), "lm_head".into()]
}

/// What `tests/golden/peft/base` has that can be trained as a whole.
fn wholes() -> Vec<Whole> {
    let whole = |kind, path: &str| Whole { kind, path: path.into(), shape: [64, 32] };
    vec![whole(WholeKind::Embedding, "model.embed_tokens"), whole(WholeKind::Head, "lm_head")]
}

fn spec(rank: usize, alpha: f64, target_modules: TargetModules) -> Spec {
    Spec { rank, alpha, target_modules, ..Spec::default() }
}

/// The recipes that would train PEFT's golden adapters.
fn golden_specs() -> [(&'static str, Spec); 7] {
    [
        ("plain_qv", spec(4, 8.0, names(&["q_proj", "v_proj"]))),
        ("all_linear", spec(4, 16.0, TargetModules::AllLinear)),
        (
            "regex",
            spec(3, 6.0, TargetModules::Pattern(r".*\.layers\.1\.(self_attn|mlp)\.(k|down)_proj".into())),
        ),
        (
            "rslora_patterns",
            Spec {
                use_rslora: true,
                rank_pattern: vec![
                    ("layers.0.mlp.down_proj".into(), 8),
                    (r"layers\.\d+\.self_attn\.o_proj".into(), 2),
                ],
                alpha_pattern: vec![("down_proj".into(), 32.0)],
                ..spec(4, 8.0, names(&["q_proj", "o_proj", "down_proj"]))
            },
        ),
        ("bf16", spec(4, 8.0, names(&["q_proj", "k_proj", "v_proj", "o_proj"]))),
        ("wholes", Spec { modules_to_save: saved(), ..spec(4, 8.0, names(&["q_proj", "v_proj"])) }),
        ("dora", Spec { use_dora: true, ..spec(4, 8.0, TargetModules::AllLinear) }),
    ]
}

fn resolved(spec: &Spec) -> Vec<Target> {
    resolve(spec, &modules()).unwrap()
}

/// Values that differ everywhere, B not zero.
fn filled(targets: &[Target]) -> LoraSet<Flex> {
    let fresh: LoraSet<Flex> = LoraSet::init(targets.to_vec(), 0.0, 5, &Default::default());
    let values = fresh.parameters().iter().enumerate().map(|(number, parameter)| {
        let elements = parameter.shape[0] * parameter.shape[1];
        (0..elements).map(|element| (number as f32 + 0.1) / (element as f32 - 7.3)).collect()
    });
    LoraSet::from_values(targets.to_vec(), 0.0, values.collect(), &Default::default()).unwrap()
}

fn provenance() -> BTreeMap<String, String> {
    BTreeMap::from([
        ("tune.seed".to_owned(), "42".to_owned()),
        ("tune.recipe".to_owned(), "ab\"cd".to_owned()),
    ])
}

/// Writes a folder of ours and returns it.
fn written(spec: &Spec, into: &TempDir, name: &str) -> PathBuf {
    let targets = resolved(spec);
    let config = Config::new(spec, &targets, &modules(), "org/base", Some("main"));
    let folder = into.path().join(name);
    let own = whole::resolve(&spec.modules_to_save, &wholes()).unwrap();
    let set = filled(&targets).with_wholes(own, |whole| Tensor::full(whole.shape, 0.25, &Default::default()));
    peft::write(&folder, Existing::Refuse, &set, &config, &provenance(), &[], None).unwrap();
    folder
}

/// A copy of a golden folder with its configuration changed.
fn with_config(name: &str, change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(golden(name).join(TENSORS_FILE), folder.path().join(TENSORS_FILE)).unwrap();
    let mut config: Value =
        serde_json::from_slice(&fs::read(golden(name).join(CONFIG_FILE)).unwrap()).unwrap();
    change(config.as_object_mut().unwrap());
    fs::write(folder.path().join(CONFIG_FILE), config.to_string()).unwrap();
    folder
}

/// Name, dtype and shape.
type Described<'a> = (&'a str, Dtype, &'a [usize]);

/// A folder whose file holds the given tensors, of arbitrary values.
fn with_tensors(config: Value, tensors: &[Described<'_>]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(CONFIG_FILE), config.to_string()).unwrap();
    let header = |(name, dtype, shape): &Described<'_>| TensorHeader {
        name: (*name).to_owned(),
        dtype: *dtype,
        shape: shape.to_vec(),
    };
    let layout = Layout::new(&BTreeMap::new(), tensors.iter().map(header).collect()).unwrap();
    let mut file = Vec::new();
    let ones = |tensor: &TensorHeader, out: &mut dyn std::io::Write| {
        let bytes = tensor.shape.iter().product::<usize>() * tensor.dtype.bitsize() / 8;
        out.write_all(&vec![0x3c; bytes])
    };
    layout.write(&mut file, ones).unwrap();
    fs::write(folder.path().join(TENSORS_FILE), file).unwrap();
    folder
}

fn plain_config() -> Value {
    json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "layers_to_transform": [0]})
}

fn open_error(folder: &TempDir) -> String {
    Adapter::open(folder.path()).unwrap_err().to_string()
}

#[test]
fn adapters_of_peft_equal_the_recipes_that_would_train_them() {
    for (name, spec) in golden_specs() {
        let adapter = Adapter::open_with_wholes(&golden(name)).unwrap();
        assert_eq!(adapter.config().base_model.as_deref(), Some("tune-golden/peft-base"));
        let targets = resolved(&spec);
        adapter.require_equal(&spec, &targets, &modules()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(adapter.targets(&modules()).unwrap(), targets, "{name}");

        let values = adapter.values(&targets).unwrap();
        let bytes = fs::read(golden(name).join(TENSORS_FILE)).unwrap();
        let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let set: LoraSet<Flex> = LoraSet::from_values(targets, 0.0, values, &Default::default()).unwrap();
        let own = adapter.wholes(&wholes()).unwrap();
        assert_eq!(own, adapter.own_wholes());
        let set = adapter.with_own_wholes(set, own, &Default::default()).unwrap();
        assert_eq!(set.parameters().len(), reference.len(), "{name}");
        for (number, parameter) in set.parameters().iter().enumerate() {
            let view = reference.tensor(&parameter.name).unwrap();
            assert_eq!(view.shape(), parameter.part.file_shape(parameter.shape));
            let expected: Vec<f32> = match view.dtype() {
                Dtype::F32 => {
                    view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
                }
                // The upper half of an f32.
                Dtype::BF16 => view
                    .data()
                    .as_chunks()
                    .0
                    .iter()
                    .map(|[a, b]| f32::from_le_bytes([0, 0, *a, *b]))
                    .collect(),
                other => panic!("{other}"),
            };
            assert_eq!(set.values(number).unwrap(), expected, "{name} {}", parameter.name);
        }
    }
}

#[test]
fn base_and_adapter_of_peft_give_its_logits() {
    let model = ModelDir::open(&golden("base")).unwrap();
    let decoder_spec = family::decoder_spec(model.config()).unwrap();
    assert_eq!(decoder_spec.modules(), modules());
    let decoder: Decoder<Flex> =
        load::load(model.weights(), &decoder_spec, None, FloatDtype::F32, &Default::default(), &mut |_| {})
            .unwrap();
    for (name, _) in golden_specs() {
        let adapter = Adapter::open_with_wholes(&golden(name)).unwrap();
        let targets = adapter.targets(&modules()).unwrap();
        let values = adapter.values(&targets).unwrap();
        let set = LoraSet::from_values(targets, 0.0, values, decoder.device()).unwrap();
        let own = adapter.wholes(&decoder_spec.wholes()).unwrap();
        let set = adapter.with_own_wholes(set, own, decoder.device()).unwrap();
        let decoder = decoder.adopting(&set);
        let layers: Vec<_> = (0..2).map(|layer| set.layer(layer, None)).collect();

        let file = SafetensorsFile::open(&golden(name).join("golden.safetensors")).unwrap();
        let ids = file.read("input_ids").unwrap();
        let ids: Vec<u32> = ids.as_chunks().0.iter().map(|id| i64::from_le_bytes(*id) as u32).collect();
        let expected = file.read_floats::<f32>("logits").unwrap();
        let logits: Vec<f32> = decoder.logits(&ids, Some(&layers)).unwrap().into_data().into_vec().unwrap();
        let difference =
            logits.iter().zip(&expected).map(|(ours, theirs)| (ours - theirs).abs()).fold(0.0, f32::max);
        println!("{name}: {difference:.1e}");
        assert_eq!(logits.len(), expected.len());
        assert!(difference <= 1e-4, "{name}: logits differ by {difference}");
    }
}

#[test]
fn what_is_written_is_read_back_and_written_alike_twice() {
    let out = tempfile::tempdir().unwrap();
    for (name, spec) in golden_specs() {
        let folder = written(&spec, &out, name);
        let again = written(&spec, &out, &format!("{name}-again"));
        for file in [CONFIG_FILE, TENSORS_FILE, CARD_FILE] {
            assert_eq!(
                fs::read(folder.join(file)).unwrap(),
                fs::read(again.join(file)).unwrap(),
                "{name} {file}"
            );
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 3);

        let adapter = Adapter::open_with_wholes(&folder).unwrap();
        for whole in adapter.wholes(&wholes()).unwrap() {
            assert!(adapter.whole_values(&whole).unwrap().iter().all(|value| *value == 0.25));
        }
        let refused = Adapter::open(&folder).is_err_and(|error| error.to_string().contains("tune merge"));
        assert_eq!(refused, !spec.modules_to_save.is_empty());
        let targets = resolved(&spec);
        adapter.require_equal(&spec, &targets, &modules()).unwrap();
        let set = filled(&targets);
        for (number, values) in adapter.values(&targets).unwrap().iter().enumerate() {
            assert_eq!(*values, set.values(number).unwrap());
        }
        let mut metadata = provenance();
        metadata.insert("format".into(), "pt".into());
        assert_eq!(*adapter.metadata(), metadata);
        assert_eq!(adapter.config().revision.as_deref(), Some("main"));
    }
}

#[test]
fn the_file_is_laid_out_as_peft_lays_it_out() {
    let out = tempfile::tempdir().unwrap();
    let (name, spec) = &golden_specs()[1];
    let folder = written(spec, &out, name);
    let header = |path: &Path| -> (Vec<String>, usize) {
        let bytes = fs::read(path).unwrap();
        let (length, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        (metadata.offset_keys(), length % 8)
    };
    let (keys, misalignment) = header(&folder.join(TENSORS_FILE));
    assert_eq!(keys, header(&golden(name).join(TENSORS_FILE)).0);
    assert!(keys.is_sorted());
    assert_eq!(misalignment, 0);
}

#[test]
fn the_configuration_is_that_of_peft_with_sorted_keys() {
    let spec = Spec {
        dropout: 0.05,
        rank_pattern: vec![("layers.0.mlp.down_proj".into(), 8)],
        ..spec(4, 8.5, names(&["v_proj", "q_proj", "down_proj"]))
    };
    let targets = resolved(&spec);
    let text = Config::new(&spec, &targets, &modules(), "org/base", None).to_json();
    let ours: Value = serde_json::from_str(&text).unwrap();
    let ours = ours.as_object().unwrap();
    assert!(ours.keys().is_sorted());
    let peft: Value =
        serde_json::from_slice(&fs::read(golden("plain_qv").join(CONFIG_FILE)).unwrap()).unwrap();
    let mut differing = Vec::new();
    for (key, value) in ours {
        let theirs = peft.get(key).unwrap_or_else(|| panic!("PEFT has no `{key}`"));
        if value != theirs {
            differing.push(key.as_str());
        }
    }
    let expected =
        ["base_model_name_or_path", "lora_alpha", "lora_dropout", "rank_pattern", "target_modules"];
    assert_eq!(differing, expected);
    assert_eq!(ours["target_modules"], json!(["down_proj", "q_proj", "v_proj"]));
    assert_eq!(ours["rank_pattern"], json!({"layers.0.mlp.down_proj": 8}));
    assert_eq!(ours["lora_alpha"], json!(8.5));
}

#[test]
fn targets_are_written_as_names_that_mean_the_same() {
    let written = |target_modules: TargetModules| {
        let spec = spec(4, 8.0, target_modules);
        let config = Config::new(&spec, &resolved(&spec), &modules(), "org/base", None);
        serde_json::from_str::<Value>(&config.to_json()).unwrap()["target_modules"].clone()
    };
    let all = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"];
    assert_eq!(written(TargetModules::AllLinear), json!(all));
    assert_eq!(written(TargetModules::Pattern(r".*\.[qv]_proj".into())), json!(["q_proj", "v_proj"]));
    assert_eq!(written(names(&["self_attn.q_proj"])), json!(["q_proj"]));
    assert_eq!(
        written(TargetModules::Pattern(r".*1.*\.[qv]_proj".into())),
        json!(["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"])
    );
}

#[test]
fn patterns_whose_order_matters_are_written_out() {
    let written = |rank_pattern: &[(&str, usize)]| {
        let rank_pattern = rank_pattern.iter().map(|(text, rank)| ((*text).to_owned(), *rank)).collect();
        let spec = Spec { rank_pattern, ..spec(4, 8.0, names(&["q_proj", "down_proj"])) };
        let config = Config::new(&spec, &resolved(&spec), &modules(), "org/base", None);
        let fields = serde_json::from_str::<Value>(&config.to_json()).unwrap();
        (fields["r"].clone(), fields["rank_pattern"].clone())
    };
    // Sorted, the wider pattern would come first and win.
    assert_eq!(
        written(&[("layers.0.mlp.down_proj", 8), ("down_proj", 2)]),
        (json!(4), json!({"layers.0.mlp.down_proj": 8, "layers.1.mlp.down_proj": 2}))
    );
    assert_eq!(
        written(&[("0.mlp.down_proj", 8), ("down_proj", 2)]),
        (json!(4), json!({"0.mlp.down_proj": 8, "down_proj": 2}))
    );
    assert_eq!(
        written(&[(r".*\.1\..*", 8)]).1,
        json!({"layers.1.mlp.down_proj": 8, "layers.1.self_attn.q_proj": 8})
    );
    assert_eq!(written(&[(".*_proj", 8)]), (json!(8), json!({})));
}

#[test]
fn every_difference_from_the_recipe_is_reported_at_once() {
    let adapter = Adapter::open(&golden("plain_qv")).unwrap();
    let recipe = Spec { use_rslora: true, ..spec(8, 16.0, names(&["q_proj", "o_proj"])) };
    let error = adapter.require_equal(&recipe, &resolved(&recipe), &modules()).unwrap_err().to_string();
    for part in [
        "differs from the recipe",
        "use_rslora is false in the folder, true in the recipe",
        "rank 4 in the folder, 8 in the recipe",
        "alpha 8 in the folder, 16 in the recipe",
        "2 modules, `model.layers.0.self_attn.o_proj` to `model.layers.1.self_attn.o_proj`: adapted by the recipe's",
        "`model.layers.0.self_attn.v_proj` to `model.layers.1.self_attn.v_proj`: adapted in the folder, but not",
    ] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
}

#[test]
fn kinds_that_cannot_be_used_are_named_together() {
    let folder = with_config("plain_qv", |config| {
        config.insert("layer_replication".into(), json!([[0, 1]]));
        config.insert("bias".into(), json!("lora_only"));
        config.insert("trainable_token_indices".into(), json!([3]));
        config.insert("init_lora_weights".into(), json!("pissa"));
        config.insert("fan_in_fan_out".into(), json!(true));
        config.insert("brand_new".into(), json!({"x": 1}));
        config.insert("brand_new_but_off".into(), json!(null));
        config.insert("task_type".into(), json!("SEQ_CLS"));
    });
    let error = open_error(&folder);
    for part in ["replicated", "biases", "token embeddings", "pissa", "transposed", "`brand_new`", "SEQ_CLS"]
    {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
    assert!(!error.contains("brand_new_but_off"), "{error}");
    let other = with_config("plain_qv", |config| _ = config.insert("peft_type".into(), json!("IA3")));
    assert!(open_error(&other).contains("peft_type is IA3"));
}

#[test]
fn broken_configurations_name_the_field() {
    for (key, value) in [
        ("r", json!(0)),
        ("r", json!(-4)),
        ("r", json!("4")),
        ("r", json!(null)),
        ("lora_alpha", json!("8")),
        ("target_modules", json!(null)),
        ("target_modules", json!([1])),
        ("rank_pattern", json!([])),
        ("rank_pattern", json!({"q_proj": 0})),
        ("rank_pattern", json!({"(": 4})),
        ("alpha_pattern", json!({"q_proj": "x"})),
        ("use_rslora", json!("yes")),
    ] {
        let folder = with_config("plain_qv", |config| _ = config.insert(key.into(), value.clone()));
        let error = open_error(&folder);
        assert!(error.contains(key), "{key} = {value}: {error}");
    }
}

#[test]
fn tensors_that_do_not_belong_are_named() {
    const LAYER: &str = "base_model.model.model.layers.0.self_attn.q_proj";
    let (a, b) = (format!("{LAYER}.lora_A.weight"), format!("{LAYER}.lora_B.weight"));
    let magnitude = format!("{LAYER}.lora_magnitude_vector");
    let good: [Described<'_>; 2] = [(&a, Dtype::F32, &[2, 32]), (&b, Dtype::F16, &[32, 2])];
    let open = |tensors: &[Described<'_>]| {
        let folder = with_tensors(plain_config(), tensors);
        Adapter::open(folder.path()).and_then(|adapter| adapter.targets(&modules()))
    };
    assert_eq!(open(&good).unwrap().len(), 1);

    let cases: [(&[Described<'_>], &str); 10] = [
        (&[good[0], good[1], (&magnitude, Dtype::F32, &[32])], "belongs to DoRA, and use_dora is false"),
        (&[good[0], good[1], ("model.x.lora_A.weight", Dtype::F32, &[2, 32])], "`model.x.lora_A.weight`"),
        (&[good[0]], "lora_B is missing"),
        (&[good[1]], "lora_A is missing"),
        (&[], "holds no tensors"),
        (&[(&a, Dtype::F32, &[3, 32]), good[1]], "shape [3, 32]"),
        (&[(&a, Dtype::F32, &[2, 31]), good[1]], "shape [2, 31]"),
        (&[(&a, Dtype::F32, &[64]), good[1]], "not that of a matrix"),
        (&[(&a, Dtype::U8, &[2, 32]), good[1]], "U8"),
        (&[good[0], good[1], (&format!("{LAYER}.bias"), Dtype::F32, &[32])], "trained bias"),
    ];
    for (tensors, part) in cases {
        let error = open(tensors).unwrap_err().to_string();
        assert!(error.contains(part), "{part} is not in: {error}");
    }

    let mut dora = plain_config();
    dora["use_dora"] = json!(true);
    let open = |tensors: &[Described<'_>]| {
        let folder = with_tensors(dora.clone(), tensors);
        Adapter::open(folder.path()).and_then(|adapter| adapter.targets(&modules()))
    };
    let with = |shape| [good[0], good[1], (magnitude.as_str(), Dtype::BF16, shape)];
    assert!(open(&with(&[32])).unwrap()[0].use_dora);
    for (tensors, part) in [
        (good.as_slice(), "lora_magnitude_vector is missing"),
        (&with(&[31]), "shape [31]"),
        (&with(&[32, 1]), "not that of a vector"),
    ] {
        let error = open(tensors).unwrap_err().to_string();
        assert!(error.contains(part), "{part} is not in: {error}");
    }
}

#[test]
fn an_adapter_for_another_architecture_is_not_passed_over() {
    let path = "base_model.model.model.language_model.layers.0.self_attn.q_proj";
    let folder = with_tensors(
        plain_config(),
        &[
            (&format!("{path}.lora_A.weight"), Dtype::F32, &[2, 32]),
            (&format!("{path}.lora_B.weight"), Dtype::F32, &[32, 2]),
        ],
    );
    let adapter = Adapter::open(folder.path()).unwrap();
    let recipe = spec(2, 4.0, names(&["q_proj"]));
    let error = adapter.require_equal(&recipe, &resolved(&recipe), &modules()).unwrap_err().to_string();
    assert!(
        error.contains("`model.language_model.layers.0.self_attn.q_proj`: this model has no such"),
        "{error}"
    );
    assert!(error.contains("adapted by the recipe's target_modules, but not in the folder"), "{error}");
}

#[test]
fn named_targets_without_tensors_are_reported() {
    let folder =
        with_config("plain_qv", |config| _ = config.insert("target_modules".into(), json!("all-linear")));
    let error = Adapter::open(folder.path()).unwrap().targets(&modules()).unwrap_err().to_string();
    assert!(error.contains("10 modules") && error.contains("no tensors for it"), "{error}");
}

#[test]
fn folders_that_are_no_adapters_say_what_is_missing() {
    let out = tempfile::tempdir().unwrap();
    assert!(Adapter::open(&out.path().join("none")).unwrap_err().to_string().contains("no such folder"));
    assert!(open_error(&out).contains("no adapter_config.json and no adapter_model.safetensors"));
    fs::write(out.path().join(CONFIG_FILE), "{}").unwrap();
    fs::write(out.path().join("adapter_model.bin"), "").unwrap();
    assert!(open_error(&out).contains("pickle"));
    let run = tempfile::tempdir().unwrap();
    written(&golden_specs()[0].1, &run, "adapter");
    assert!(open_error(&run).contains("did you mean"));
}

#[test]
fn values_that_are_not_finite_are_not_written() {
    let (_, spec) = &golden_specs()[0];
    let targets = resolved(spec);
    let mut set = filled(&targets);
    let mut tensors = set.tensors().to_vec();
    tensors[3] = tensors[3].clone() / 0.0;
    set.update(|_| tensors).unwrap();
    let out = tempfile::tempdir().unwrap();
    let config = Config::new(spec, &targets, &modules(), "org/base", None);
    let folder = out.path().join("adapter");
    let error = peft::write(&folder, Existing::Refuse, &set, &config, &provenance(), &[], None).unwrap_err();
    assert!(error.to_string().contains("nothing was written"), "{error}");
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
}

#[test]
fn files_beside_are_copied_and_old_folders_replaced_when_asked() {
    let out = tempfile::tempdir().unwrap();
    let (_, spec) = &golden_specs()[0];
    let folder = written(spec, &out, "adapter");
    let tokenizer = out.path().join("tokenizer.json");
    fs::write(&tokenizer, "{}").unwrap();
    let targets = resolved(spec);
    let config = Config::new(spec, &targets, &modules(), "my \"base\"", None);
    let write = |existing| {
        let beside = [tokenizer.clone()];
        peft::write(&folder, existing, &filled(&targets), &config, &BTreeMap::new(), &beside, None)
    };
    assert!(write(Existing::Refuse).is_err());
    write(Existing::Replace).unwrap();
    assert_eq!(fs::read(folder.join("tokenizer.json")).unwrap(), b"{}");
    let card = fs::read_to_string(folder.join(CARD_FILE)).unwrap();
    assert!(card.starts_with("---\nbase_model: \"my \\\"base\\\"\"\nlibrary_name: peft\n"), "{card}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn damaged_files_are_errors_and_never_panics(
        position in 0_usize..4000,
        byte in any::<u8>(),
        cut in 0_usize..8000,
        in_config in any::<bool>(),
    ) {
        let folder = with_config("plain_qv", |_| {});
        let path = folder.path().join(if in_config { CONFIG_FILE } else { TENSORS_FILE });
        let mut bytes = fs::read(&path).unwrap();
        let at = position % bytes.len();
        bytes[at] = byte;
        // About every other file also ends early.
        bytes.truncate(cut);
        fs::write(&path, &bytes).unwrap();
        if let Ok(adapter) = Adapter::open(folder.path()) && let Ok(targets) = adapter.targets(&modules()) {
            _ = adapter.values(&targets);
        }
    }

    #[test]
    fn any_configuration_is_read_or_refused(
        key in prop_oneof![Just("r"), Just("lora_alpha"), Just("target_modules"), Just("rank_pattern"), Just("x")],
        value in prop_oneof![
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
            proptest::collection::vec(".{0,8}", 0..3).prop_map(Value::from),
            (".{0,8}", any::<u32>()).prop_map(|(key, rank)| json!({key: rank})),
        ],
    ) {
        let folder = with_config("plain_qv", |config| _ = config.insert(key.to_owned(), value));
        if let Ok(adapter) = Adapter::open(folder.path()) {
            _ = adapter.targets(&modules());
        }
    }

    #[test]
    fn written_patterns_give_every_target_its_own_rank_and_alpha(
        ranks in proptest::collection::vec(("(layers\\.[01]\\.)?(mlp|self_attn)?.{0,2}(q|v|down|.*)_proj", 1_usize..9), 0..4),
        alphas in proptest::collection::vec(("[01.]{0,2}(mlp|self_attn)\\.(q|down|gate)_proj", 1_u32..9), 0..4),
        rslora in any::<bool>(),
    ) {
        let spec = Spec {
            rank_pattern: ranks,
            alpha_pattern: alphas.into_iter().map(|(text, alpha)| (text, f64::from(alpha) / 2.0)).collect(),
            use_rslora: rslora,
            ..spec(4, 8.0, TargetModules::AllLinear)
        };
        let Ok(targets) = resolve(&spec, &modules()) else { return Ok(()) };
        let out = tempfile::tempdir().unwrap();
        let adapter = Adapter::open(&written(&spec, &out, "adapter")).unwrap();
        prop_assert_eq!(adapter.targets(&modules()).unwrap(), targets);
    }
}
