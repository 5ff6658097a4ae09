//! Adapters that we write: read back, alike twice, laid out as PEFT lays them out, whole or absent.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};
use tune::adapter::peft::{self, Adapter, CARD_FILE, CONFIG_FILE, Config, TENSORS_FILE};
use tune::adapter::spec::{Spec, TargetModules};
use tune::adapter::target::resolve;
use tune::files::Existing;

use crate::common::{
    filled, golden, golden_specs, modules, names, provenance, resolved, saved_modules, spec, written,
};

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

        let adapter = Adapter::open_with_saved_modules(&folder).unwrap();
        for saved in adapter.saved_modules(&saved_modules()).unwrap() {
            assert!(adapter.saved_values(&saved).unwrap().iter().all(|value| *value == 0.25));
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
    // A template for tools goes where it is looked for, unless the recipe chose another template for everything.
    let additional = out.path().join("additional_chat_templates/tool_use.jinja");
    fs::create_dir(additional.parent().unwrap()).unwrap();
    fs::write(&additional, "with tools").unwrap();
    for chosen in [None, Some("chosen")] {
        let beside = [tokenizer.clone(), additional.clone()];
        let (set, none) = (filled(&targets), BTreeMap::new());
        peft::write(&folder, Existing::Replace, &set, &config, &none, &beside, chosen).unwrap();
        let copied = fs::read_to_string(folder.join("additional_chat_templates/tool_use.jinja")).ok();
        assert_eq!(copied.as_deref(), if chosen.is_some() { None } else { Some("with tools") });
        assert_eq!(folder.join("chat_template.jinja").exists(), chosen.is_some());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

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
