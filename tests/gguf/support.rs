//! Golden models with a tokenizer beside them, exported.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tune::export::gguf::model::Outcome;
use tune::export::gguf::{FileType, lora};
use tune::export::merge::Options;
use tune::files::Existing;
use tune::model::FloatDtype;
use tune::run::adapters::BaseChoice;
use tune::run::gguf::{Source, export_lora};
use tune::run::{Environment, Error};

pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

pub(crate) fn golden_json(name: &str) -> serde_json::Map<String, Value> {
    let bytes = fs::read(golden("gguf").join(name)).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

/// The folder of a model that the golden files name.
pub(crate) fn source(name: &str) -> PathBuf {
    golden(if name.contains('/') { "" } else { "families" }).join(name)
}

/// A copy of a model's folder, with the tiny tokenizer.
pub(crate) fn staged(model: &Path, into: &Path) -> PathBuf {
    let folder = into.join(model.file_name().unwrap());
    fs::create_dir(&folder).unwrap();
    for from in [model, &golden("gguf/tokenizer")] {
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            if entry.path().is_dir() {
                continue;
            }
            fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
        }
    }
    folder
}

/// The same with other keys in its config.json, as a golden file lists them: `outer.inner` is within an object.
pub(crate) fn staged_with(model: &Path, changes: &Value, into: &Path) -> PathBuf {
    let folder = staged(model, into);
    let Some(changes) = changes.as_object().filter(|changes| !changes.is_empty()) else { return folder };
    let config = folder.join("config.json");
    let mut value: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    for (key, change) in changes {
        let place = match key.split_once('.') {
            Some((outer, inner)) => &mut value[outer][inner],
            None => &mut value[key],
        };
        *place = change.clone();
    }
    fs::write(&config, value.to_string()).unwrap();
    folder
}

pub(crate) fn environment() -> Environment<'static> {
    Environment { hub_cache: Path::new("no-cache"), stop: &|| false, save: &|| false }
}

pub(crate) fn export(model: &Path, file: FileType, out: &Path) -> Result<Outcome, Error> {
    let source = Source::open(model, BaseChoice::default(), Options::default(), &environment())?;
    source.export(file, out, Existing::Refuse, &mut |_| {}, &environment())
}

pub(crate) fn choice(base: &Path) -> BaseChoice<'_> {
    BaseChoice { base: base.to_str(), revision: None }
}

pub(crate) fn export_merged(
    adapter: &Path,
    base: &Path,
    file: FileType,
    out: &Path,
) -> Result<Outcome, Error> {
    let source = Source::open(adapter, choice(base), Options::default(), &environment())?;
    source.export(file, out, Existing::Refuse, &mut |_| {}, &environment())
}

pub(crate) fn export_adapter(adapter: &Path, base: &Path, out: &Path) -> Result<lora::Outcome, Error> {
    export_lora(adapter, choice(base), false, FloatDtype::F32, out, Existing::Refuse, &environment())
}

/// The adapters that PEFT made.
pub(crate) const ADAPTERS: [&str; 5] = ["plain_qv", "all_linear", "regex", "rslora_patterns", "bf16"];
