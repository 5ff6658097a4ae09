//! Adapters that do not fit what they are to be used for, or are none: what is wrong is named.

use std::fs;

use proptest::prelude::*;
use serde_json::{Value, json};
use tune::adapter::peft::{Adapter, CONFIG_FILE, TENSORS_FILE};
use tune::adapter::spec::Spec;
use tune::files::safetensors::Dtype;

use crate::common::{
    Described, golden, golden_specs, modules, names, open_error, plain_config, resolved, spec, with_config,
    with_tensors, written,
};

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
    let path = "base_model.model.model.encoder.layers.0.self_attn.q_proj";
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
    assert!(error.contains("`model.encoder.layers.0.self_attn.q_proj`: this model has no such"), "{error}");
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
}
