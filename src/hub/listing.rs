//! The hub's listing of a repository, and the files of it that a model needs: safetensors weights and text, but no
//! pickles or code, which could execute when read.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::Error;
use crate::assets::dataset::{Choice, choose, is_data_file};
use crate::assets::folder::ADDITIONAL_TEMPLATES;

/// A repository at one commit.
#[derive(Debug, Deserialize)]
pub(super) struct Listing {
    /// The commit.
    #[serde(rename = "sha")]
    pub(super) commit: String,
    /// Its files.
    #[serde(default, rename = "siblings")]
    pub(super) files: Vec<Listed>,
}

/// One file.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Listed {
    /// Its path in the repository.
    #[serde(rename = "rfilename")]
    pub(super) path: String,
}

/// Extensions of a model's text files.
const TEXT: [&str; 5] = [".json", ".jinja", ".txt", ".md", ".tiktoken"];
/// Further files to download: licences, and SentencePiece tokenizers.
const NAMES: [&str; 4] = ["LICENSE", "NOTICE", "tokenizer.model", "USE_POLICY"];
/// The index that names a model's shards.
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// The weights of an unsharded model.
const SINGLE: &str = "model.safetensors";

impl Listing {
    /// Checks the commit, and that every path stays inside the folder that it will be written to.
    ///
    /// # Errors
    /// A path leads out of the folder; nothing is downloaded from such a repository.
    pub(super) fn check(&self, url: &str) -> Result<(), Error> {
        let fail = |reason: String| Err(Error::Answer { url: url.to_owned(), reason });
        if self.commit.len() < 7 || !self.commit.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return fail("the hub's listing contains no commit".into());
        }
        match self.files.iter().find(|file| !is_inside(&file.path)) {
            Some(file) => fail(format!(
                "the path of the file `{}` leads out of the model's folder; nothing was downloaded",
                file.path.escape_debug()
            )),
            None => Ok(()),
        }
    }

    /// Whether the repository has this file at its top level.
    pub(super) fn has(&self, name: &str) -> bool {
        self.files.iter().any(|file| file.path == name)
    }

    /// The text files, in order, and chat templates beside the default one.
    pub(super) fn texts(&self) -> Vec<String> {
        let wanted = |path: &str| {
            let name = NAMES.iter().any(|name| path == *name || path.strip_suffix(".md") == Some(name));
            name || TEXT.iter().any(|ending| path.ends_with(ending))
        };
        let is_template = |path: &&str| {
            let inside = path.strip_prefix(ADDITIONAL_TEMPLATES).and_then(|rest| rest.strip_prefix('/'));
            inside.is_some_and(|name| name.ends_with(".jinja") && !name.contains('/'))
        };
        let additional = self.files.iter().map(|file| file.path.as_str()).filter(is_template);
        self.top().filter(|path| wanted(path)).chain(additional).map(str::to_owned).collect()
    }

    /// The weight files; of a sharded model those that its index names, without copies in other layouts.
    ///
    /// # Errors
    /// There are none.
    pub(super) fn weights(&self, id: &str, index: Option<&[u8]>, url: &str) -> Result<Vec<String>, Error> {
        let mut weights: Vec<String> = match index {
            _ if self.has(SINGLE) => vec![SINGLE.to_owned()],
            Some(index) => shards(index).map_err(|reason| Error::Answer { url: url.to_owned(), reason })?,
            None => Vec::new(),
        };
        if let Some(missing) = weights.iter().find(|name| !self.has(name)) {
            let reason = format!("{INDEX} names `{missing}`, which is missing from the repository");
            return Err(Error::Answer { url: url.to_owned(), reason });
        }
        // An adapter, or safetensors under other names.
        let all = self.top().filter(|path| path.ends_with(".safetensors"));
        if weights.is_empty() {
            weights = all.map(str::to_owned).collect();
        } else {
            weights.extend(all.filter(|path| *path == "adapter_model.safetensors").map(str::to_owned));
        }
        if weights.is_empty() {
            let pickled = self
                .top()
                .any(|path| path.ends_with(".bin") || path.ends_with(".pt") || path.ends_with(".pth"));
            let reason = match pickled {
                true => {
                    "its weights are PyTorch pickles, which can execute code when read; look for a safetensors version of \
                         the model"
                }
                false => "it has no safetensors weights",
            };
            return Err(Error::Nothing { id: id.to_owned(), reason: reason.into() });
        }
        Ok(weights)
    }

    /// The description of a dataset: its README and licence.
    pub(super) fn about(&self) -> Vec<String> {
        let wanted = |path: &&str| ["README.md", "LICENSE", "LICENSE.md", "LICENSE.txt"].contains(path);
        self.top().filter(wanted).map(str::to_owned).collect()
    }

    /// The files of rows of a dataset, those of a configuration and split if one is named.
    ///
    /// # Errors
    /// There are none; the message lists what there is.
    pub(super) fn data(
        &self,
        readme: Option<&str>,
        config: Option<&str>,
        split: Option<&str>,
        is_converted: bool,
    ) -> Result<Vec<String>, String> {
        let paths: Vec<String> = self.files.iter().map(|file| file.path.clone()).collect();
        if config.is_some() || split.is_some() {
            let choice = Choice { config: config.map(str::to_owned), split: split.map(str::to_owned) };
            return choose(&paths, readme, &choice, is_converted);
        }
        let data: Vec<String> = paths.into_iter().filter(|path| is_data_file(path)).collect();
        if data.is_empty() { Err("it has no files of rows".to_owned()) } else { Ok(data) }
    }

    /// Files at the top level.
    fn top(&self) -> impl Iterator<Item = &str> {
        self.files
            .iter()
            .map(|file| file.path.as_str())
            .filter(|path| !path.contains('/') && !path.starts_with('.'))
    }
}

/// The shard names of an index, each once.
fn shards(index: &[u8]) -> Result<Vec<String>, String> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let index: Index =
        serde_json::from_slice(index).map_err(|error| format!("{INDEX} is not valid: {error}"))?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    match names.iter().find(|name| !name.ends_with(".safetensors") || name.contains('/')) {
        Some(name) => {
            Err(format!("{INDEX} names `{}`, which is not a safetensors file", name.escape_debug()))
        }
        None => Ok(names.into_iter().collect()),
    }
}

/// Whether a path is relative and made of plain names, on any operating system.
pub(super) fn is_inside(path: &str) -> bool {
    !path.is_empty()
        && !path.contains(['\\', ':', '\0'])
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(paths: &[&str]) -> Listing {
        let files = paths.iter().map(|path| Listed { path: (*path).to_owned() }).collect();
        Listing { commit: "0123456789abcdef".into(), files }
    }

    #[test]
    fn paths_that_lead_out_are_refused() {
        for path in ["../x", "/etc/passwd", "a/../../x", "C:\\x", "a\\..\\x", "", "a//b", "./x", "nul\0"] {
            assert!(listing(&["config.json", path]).check("u").is_err(), "{path}");
        }
        listing(&["config.json", "onnx/model.onnx", ".gitattributes"]).check("u").unwrap();
    }

    #[test]
    fn text_and_safetensors_and_nothing_that_runs() {
        let listing = listing(&[
            "config.json",
            "model.safetensors",
            "consolidated.safetensors",
            "pytorch_model.bin",
            "modeling.py",
            "original/params.json",
            "additional_chat_templates/tool_use.jinja",
            "tokenizer.model",
            "LICENSE",
            "x.gguf",
            ".gitattributes",
            "merges.txt",
        ]);
        let texts = ["config.json", "tokenizer.model", "LICENSE", "merges.txt"];
        let additional = "additional_chat_templates/tool_use.jinja";
        assert_eq!(listing.texts(), [&texts[..], &[additional]].concat());
        assert_eq!(listing.weights("a/b", None, "u").unwrap(), ["model.safetensors"]);
    }

    #[test]
    fn shards_are_those_of_the_index() {
        let listing = listing(&["m-1.safetensors", "m-2.safetensors", "consolidated.safetensors", INDEX]);
        let index =
            br#"{"weight_map": {"a": "m-2.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"}}"#;
        assert_eq!(listing.weights("a/b", Some(index), "u").unwrap(), ["m-1.safetensors", "m-2.safetensors"]);
        for bad in [
            r#"{"weight_map": {"a": "m-3.safetensors"}}"#,
            r#"{"weight_map": {"a": "../x.safetensors"}}"#,
            "{",
        ] {
            assert!(listing.weights("a/b", Some(bad.as_bytes()), "u").is_err(), "{bad}");
        }
    }

    #[test]
    fn pickles_are_explained() {
        let error = listing(&["config.json", "pytorch_model.bin"]).weights("a/b", None, "u").unwrap_err();
        assert!(error.to_string().contains("pickles"), "{error}");
    }
}
