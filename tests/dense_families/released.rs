//! The configurations of released models, sizes and keys: `released.json` names the source of each, and how many billions
//! of parameters it has. Every key is understood; the sizes give the published count; a folder with every key and small
//! sizes passes `tune validate`.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tune::model::{DecoderSpec, family, tensors};
use tune::recipe::RecipeFile;
use tune::run;

use crate::dense;
use crate::trajectory::{Silent, environment};

fn released() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dense_families/released.json");
    serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap().as_array().unwrap().clone()
}

#[test]
fn released_sizes_give_the_published_number_of_parameters() {
    for model in released() {
        let name = model["name"].as_str().unwrap();
        let spec = family::decoder_spec(&model["config"]).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (found, published) = (spec.parameters() as f64 / 1e9, model["billions"].as_f64().unwrap());
        assert!((found / published - 1.0).abs() < 0.005, "{name}: {found} billion instead of {published}");
    }
}

/// A file without keys is the model that transformers makes of it.
#[test]
fn absent_keys_have_the_defaults_of_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dense_families/defaults.json");
    let defaults: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    for (name, all) in defaults.as_object().unwrap() {
        let mut all = all.clone();
        all["model_type"] = json!(name);
        let read =
            |config: &Value| family::decoder_spec(config).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (absent, given) = (read(&json!({"model_type": name})), read(&all));
        assert_eq!(absent, given, "{name}");
    }
}

/// The same keys with small widths, few layers and a small vocabulary.
fn shrunk(config: &Value) -> Value {
    const LAYERS: usize = 4;
    let mut small = config.clone();
    if let Some(text) = config.get("text_config") {
        small["text_config"] = shrunk(text);
        return small;
    }
    let shares_keys = config["num_key_value_heads"] != config["num_attention_heads"];
    // A share of a head that has to be even.
    let hidden = if config["partial_rotary_factor"] == json!(0.4) { 80 } else { 32 };
    for (key, value) in [
        ("hidden_size", hidden),
        ("n_embd", 32),
        ("n_layer", LAYERS),
        ("n_head", 4),
        ("rotary_dim", 4),
        ("global_head_dim", 16),
        ("num_global_key_value_heads", 1),
        ("intermediate_size", 48),
        ("block_ff_dim", 48),
        ("shared_intermediate_size", 48),
        ("moe_intermediate_size", 24),
        ("shared_expert_intermediate_size", 40),
        ("num_experts", 8),
        ("num_local_experts", 8),
        ("num_hidden_layers", LAYERS),
        ("num_attention_heads", 4),
        ("num_key_value_heads", if shares_keys { 2 } else { 4 }),
        ("head_dim", 8),
        ("vocab_size", 64),
    ] {
        if config.get(key).is_some_and(|value| *value != json!(0)) {
            small[key] = json!(value);
        }
    }
    for key in ["layer_types", "no_rope_layers", "layer_rope_theta"] {
        if let Some(Value::Array(list)) = small.get_mut(key) {
            list.truncate(LAYERS);
        }
    }
    let rotated = (8.0 * config.get("partial_rotary_factor").and_then(Value::as_f64).unwrap_or(1.0)) as usize;
    for key in ["short_factor", "long_factor"] {
        if let Some(Value::Array(list)) =
            small.get_mut("rope_scaling").and_then(|scaling| scaling.get_mut(key))
        {
            list.truncate(rotated / 2);
        }
    }
    small
}

/// A folder with weights of ones.
fn write_folder(folder: &Path, config: &Value, spec: &DecoderSpec) {
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for tensor in tensors::expected(spec) {
        let start = end;
        end += 2 * tensor.shape.iter().product::<usize>();
        let entry = json!({"dtype": "BF16", "shape": tensor.shape, "data_offsets": [start, end]});
        header.insert(tensor.name, entry);
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.into_bytes());
    bytes.extend([0x80, 0x3f].repeat(end / 2));
    fs::write(folder.join("model.safetensors"), bytes).unwrap();
}

#[test]
fn every_released_key_passes_validate() {
    for model in released() {
        let name = model["name"].as_str().unwrap();
        let config = shrunk(&model["config"]);
        let spec = family::decoder_spec(&config).unwrap_or_else(|error| panic!("{name}: {error}"));
        let folder = tempfile::tempdir().unwrap();
        write_folder(folder.path(), &config, &spec);
        let recipe = format!(
            r#"
            version = 1
            output_dir = {:?}
            model = {{ base = {:?} }}
            adapter.lora = {{ rank = 4 }}
            quantization.nf4 = {{}}
            data = {{ max_seq_len = 64 }}
            dataset = [{{ path = {:?}, format = "tokens" }}]
            train = {{ max_steps = 1, learning_rate = 1e-4 }}
            "#,
            folder.path().join("run"),
            folder.path(),
            dense("tokens.jsonl"),
        );
        let file = RecipeFile::parse("test.toml", recipe.as_bytes(), &[]);
        let found = run::validate::validate(file, &environment(), false, &mut Silent)
            .unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert_eq!(found.model, (spec.family, spec.parameters()), "{name}");
        assert!(!found.targets.is_empty());
    }
}
