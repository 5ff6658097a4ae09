//! `tune import`: a realistic configuration of each tool as the recipe it becomes, and what is refused.
//!
//! The configurations are written for these tests in the manner of each tool's own examples.
#![expect(clippy::unwrap_used, reason = "helpers of tests stop where they fail")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tune::import::{Kind, Tool, import};
use tune::recipe::RecipeFile;

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/import"))
}

/// The recipe of a configuration, which is one.
fn recipe(file: &str, tool: Tool) -> String {
    let text = fs::read_to_string(folder().join(file)).unwrap();
    let imported = import(&text, file, None).unwrap();
    assert_eq!(imported.tool, tool);
    // Whoever names the tool gets the same.
    assert_eq!(import(&text, file, Some(tool)).unwrap().recipe, imported.recipe);
    RecipeFile::parse(file, imported.recipe.as_bytes(), &[]).finish().unwrap();
    imported.recipe
}

#[test]
fn axolotl() {
    insta::assert_snapshot!(recipe("axolotl.yml", Tool::Axolotl));
}

#[test]
fn llama_factory() {
    insta::assert_snapshot!(recipe("llama_factory.yaml", Tool::LlamaFactory));
}

#[test]
fn trl() {
    insta::assert_snapshot!(recipe("trl.json", Tool::Trl));
}

#[test]
fn unsloth() {
    insta::assert_snapshot!(recipe("unsloth.yaml", Tool::Trl));
}

#[test]
fn torchtune() {
    insta::assert_snapshot!(recipe("torchtune.yaml", Tool::Torchtune));
}

/// Every key of a configuration that sets something stands in the recipe under a name of ours, or in a note.
#[test]
fn nothing_is_dropped_in_silence() {
    let base = "base_model: org/name\nadapter: lora\noutput_dir: out\nlearning_rate: 1e-4\n\
                datasets:\n  - {path: a.jsonl, type: completion}\n";
    for line in [
        "no_such_key: 1",
        "relora_steps: 5",
        "lora_r: many",
        "val_set_size: 200",
        "num_epochs: soon",
        "lora_modules_to_save: [norm]",
        "fp8: {a: 1}",
        "eval_steps: 0.1",
        "hub_model_id: me/it",
    ] {
        let key = line.split(':').next().unwrap();
        let imported = import(&format!("{base}{line}\n"), "c.yml", Some(Tool::Axolotl)).unwrap();
        let note = imported.notes.iter().find(|note| note.key == key);
        let note = note.unwrap_or_else(|| panic!("`{line}` went without a word:\n{}", imported.recipe));
        assert_eq!((note.kind, note.line), (Kind::Left, 7), "{note}");
        assert!(imported.recipe.contains(&format!("#   {note}")), "{}", imported.recipe);
    }
    // What sets nothing needs no word.
    let quiet = import(&format!("{base}wandb_project:\nspecial_tokens: {{}}\n"), "c.yml", None).unwrap();
    assert!(quiet.notes.iter().all(|note| note.kind != Kind::Left), "{:?}", quiet.notes);
}

#[test]
fn what_cannot_be_a_recipe_is_refused() {
    let said = |text: &str, from| import(text, "c.yml", from).unwrap_err().to_string();
    assert!(said("epochs: 1\n", None).contains("no key of it tells"), "{}", said("epochs: 1\n", None));
    let both = said("base_model: a\ncutoff_len: 5\n", None);
    assert!(
        both.contains("axolotl (`base_model`)") && both.contains("--from axolotl|llama-factory"),
        "{both}"
    );
    assert!(said("base_model: a\n", None).contains("trains all weights"));
    assert!(said("base_model: a\nadapter: lora\nrl: dpo\n", None).contains("line 3: `rl` is `dpo`"));
    assert!(said("stage: dpo\nfinetuning_type: lora\n", None).contains("only supervised fine-tuning"));
    assert!(said("use_peft: false\n", None).contains("`use_peft` is false"));
    let full = "model: {_component_: torchtune.models.llama3.llama3_8b}\n";
    assert!(said(full, None).contains("trains all weights"), "{}", said(full, None));
    // Without data there is nothing to train on, and values that cannot be are the recipe reader's to refuse.
    assert!(said("base_model: a\nadapter: lora\noutput_dir: o\n", None).contains("nothing to train on"));
    let rank =
        "base_model: a\nadapter: lora\noutput_dir: o\nlora_r: 0\ndatasets: [{path: a.csv, type: alpaca}]\n";
    assert!(said(rank, None).contains("does not make a recipe"), "{}", said(rank, None));
}

fn tune(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tune"))
        .args(arguments)
        .current_dir(folder)
        .env("NO_COLOR", "1")
        .output()
        .unwrap()
}

#[test]
fn the_command_writes_a_recipe_and_tells_what_is_different() {
    let here = tempfile::tempdir().unwrap();
    fs::copy(folder().join("axolotl.yml"), here.path().join("old.yml")).unwrap();
    let shown = tune(here.path(), &["import", "old.yml"]);
    assert_eq!(shown.status.code(), Some(0));
    let text = String::from_utf8(shown.stdout).unwrap();
    let told = String::from_utf8(shown.stderr).unwrap();
    assert!(told.contains("Did not carry over:\n  - ") && told.contains("loss_watchdog_threshold"), "{told}");
    let written = tune(here.path(), &["import", "old.yml", "--from", "axolotl", "--out", "new.toml"]);
    assert_eq!(written.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&written.stdout).contains("Next: tune validate new.toml"));
    assert_eq!(fs::read_to_string(here.path().join("new.toml")).unwrap(), text);
    // Nothing is overwritten, and nothing half-written.
    for (arguments, word) in [
        (&["import", "old.yml", "--out", "new.toml"][..], "exists"),
        (&["import", "none.yml"], "cannot read none.yml"),
        (&["import", ".", "--out", "other.toml"], "it is a folder"),
        (&["import", "old.yml", "--from", "torchtune", "--out", "other.toml"], "it has no `model`"),
    ] {
        let refused = tune(here.path(), arguments);
        let error = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(2) && error.contains(word), "{arguments:?}: {error}");
    }
    assert!(!here.path().join("other.toml").exists());
}
