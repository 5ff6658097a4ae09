//! Provenance keys of a GGUF file: its name, its base, the adapter's hash, and the training metadata of the adapter or
//! the merged weights.

use std::collections::BTreeMap;

use super::super::Error;
use super::super::base::OpenedBase;
use super::container::{Keys, Value};
use crate::adapter::peft::{self, TENSORS_FILE};
use crate::assets::folder::digest;

/// Prefix of our own keys, in safetensors metadata and here.
const PREFIX: &str = "tune.";

/// Keys of a model without an adapter.
pub fn of_model(model: &OpenedBase) -> Keys {
    let mut keys = vec![("general.name".to_owned(), last_part(&model.name()).into())];
    if let Some(hub) = &model.base.hub {
        keys.push(("general.repo_url".into(), url(&hub.id).into()));
    }
    if let Some(metadata) = model.folder.weights().metadata() {
        keys.extend(own(metadata));
    }
    keys
}

/// Keys of an adapter, alone or merged; `onto` names the weights it was merged onto.
///
/// # Errors
/// The adapter's file cannot be read.
pub fn of_adapter(base: &OpenedBase, adapter: &peft::Adapter, onto: Option<&str>) -> Result<Keys, Error> {
    let named = adapter.config().base_model.as_deref().filter(|name| !name.is_empty());
    let own_name = base.name();
    // The adapter's name for its base is the well-known one, unless it is a path of another machine.
    let name = match (&base.base.hub, named) {
        (Some(hub), _) => hub.id.as_str(),
        (None, Some(named)) if is_hub_id(named) => named,
        (None, _) => own_name.as_str(),
    };
    let mut keys: Keys = vec![
        ("general.name".into(), last_part(name).into()),
        ("general.finetune".into(), "lora".into()),
        ("general.base_model.count".into(), Value::U32(1)),
        ("general.base_model.0.name".into(), last_part(name).into()),
    ];
    if is_hub_id(name) {
        keys.push(("general.base_model.0.repo_url".into(), url(name).into()));
    }
    keys.extend(own(adapter.metadata()));
    let hash = digest(&adapter.folder().join(TENSORS_FILE))?.sha256;
    keys.push((format!("{PREFIX}adapter_sha256"), hash.into()));
    if let Some(onto) = onto {
        keys.push((format!("{PREFIX}merged_onto"), onto.into()));
    }
    Ok(keys)
}

fn own(metadata: &BTreeMap<String, String>) -> impl Iterator<Item = (String, Value)> + '_ {
    let own = metadata.iter().filter(|(key, _)| key.starts_with(PREFIX));
    own.map(|(key, text)| (key.clone(), text.as_str().into()))
}

fn last_part(name: &str) -> &str {
    let name = name.trim_end_matches(['/', '\\']);
    name.rsplit(['/', '\\']).next().unwrap_or(name)
}

fn is_hub_id(name: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    name.split_once('/').is_some_and(|(organization, name)| part(organization) && part(name))
}

fn url(id: &str) -> String {
    format!("https://huggingface.co/{id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        for (name, hub) in [
            ("org/model-1.5", true),
            ("runs/a/b", false),
            ("./model", false),
            ("/model", false),
            ("model", false),
        ] {
            assert_eq!(is_hub_id(name), hub, "{name}");
        }
        assert_eq!((last_part("a/b/"), last_part("c")), ("b", "c"));
    }
}
