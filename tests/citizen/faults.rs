//! Kinds of fault that others met, as `tune validate` and a run meet them.

use std::fs;

use super::fixture::{expect, small, text};

/// Replaces a part of the recipe.
fn change(folder: &std::path::Path, from: &str, to: &str) {
    let file = folder.join("small.toml");
    let recipe = fs::read_to_string(&file).unwrap();
    assert!(recipe.contains(from));
    fs::write(file, recipe.replace(from, to)).unwrap();
}

/// Changes config.json of the base.
fn configure(folder: &std::path::Path, changes: &str) {
    let file = folder.join("data/quickstart/base/config.json");
    let config = fs::read_to_string(&file).unwrap();
    fs::write(file, config.replacen('{', &format!("{{{changes},"), 1)).unwrap();
}

#[test]
fn d6_rows_beyond_the_positions_of_the_model_have_their_rule_and_count() {
    let folder = small();
    let path = folder.path();
    let file = path.join("data/quickstart/base/config.json");
    let config: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let mut config = config.as_object().unwrap().clone();
    config.insert("max_position_embeddings".into(), 8.into());
    fs::write(&file, serde_json::to_vec(&config).unwrap()).unwrap();
    let refused = text(&expect(3, path, &["validate", "small.toml"]).stderr);
    assert!(refused.contains("more than the 8 positions that the model was made for"), "{refused}");
    assert!(refused.contains("on_beyond_positions"), "{refused}");
    change(path, "max_seq_len = 128", "max_seq_len = 128\non_beyond_positions = \"learn\"");
    let learned = expect(0, path, &["validate", "small.toml"]);
    let said = text(&learned.stdout) + &text(&learned.stderr);
    assert!(said.contains("14 rows are longer than the model's 8 positions"), "{said}");
}

#[test]
fn m6_keys_of_the_base_are_named_or_left_out_by_the_recipe() {
    let folder = small();
    let path = folder.path();
    configure(path, "\"license\": \"mit\", \"logits_scaling\": 8.0");
    let refused = text(&expect(2, path, &["validate", "small.toml"]).stderr);
    let plain: String = refused.split_whitespace().filter(|word| *word != "|").collect::<Vec<_>>().join(" ");
    assert!(plain.contains("`ignore_config_keys = [\"logits_scaling\"]` in `[model]`"), "{refused}");
    let base = "base = \"data/quickstart/base\"";
    change(path, base, &format!("{base}\nignore_config_keys = [\"logits_scaling\"]"));
    let run = expect(0, path, &["run", "small.toml"]);
    assert!(
        text(&run.stderr).contains("config.json of the base: not used: `license`"),
        "{}",
        text(&run.stderr)
    );
    let tensors = fs::read(path.join("run/adapter/adapter_model.safetensors")).unwrap();
    let recorded = String::from_utf8_lossy(&tensors);
    assert!(recorded.contains("tune.ignored_config_keys"));
    // The adapter brings them along.
    let base = "data/quickstart/base";
    expect(0, path, &["generate", "--adapter", "run/adapter", "--base", base, "Hi", "--max-new-tokens", "1"]);
    expect(1, path, &["generate", "--base", base, "Hi", "--max-new-tokens", "1"]);
}
