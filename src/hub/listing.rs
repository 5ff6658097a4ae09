//! A repository's files as the hub lists them, and which of them a model needs: safetensors weights, and text. Never
//! pickles or code, which could run when they are read.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::Error;

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

/// Endings of text files that models come with.
const TEXT: [&str; 5] = [".json", ".jinja", ".txt", ".md", ".tiktoken"];
/// Files that are wanted by their name: licences, and a tokenizer that is data without code.
const NAMES: [&str; 4] = ["LICENSE", "NOTICE", "tokenizer.model", "USE_POLICY"];
/// The index that names a model's shards.
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// The weights of a model that has one file of them.
const SINGLE: &str = "model.safetensors";

impl Listing {
    /// Checks that every path stays inside the folder it will be written to, and that the commit is one.
    ///
    /// # Errors
    /// A path that escapes: such a repository is not touched at all.
    pub(super) fn check(&self, url: &str) -> Result<(), Error> {
        let fail = |reason: String| Err(Error::Answer { url: url.to_owned(), reason });
        if self.commit.len() < 7 || !self.commit.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return fail("the hub's listing names no commit".into());
        }
        match self.files.iter().find(|file| !is_inside(&file.path)) {
            Some(file) => fail(format!(
                "the hub lists a file `{}`, whose path leads out of the folder; nothing was fetched",
                file.path.escape_debug()
            )),
            None => Ok(()),
        }
    }

    /// Whether a file of this name lies at the top.
    pub(super) fn has(&self, name: &str) -> bool {
        self.files.iter().any(|file| file.path == name)
    }

    /// The text files, in order.
    pub(super) fn texts(&self) -> Vec<String> {
        let wanted = |path: &str| {
            let name = NAMES.iter().any(|name| path == *name || path.strip_suffix(".md") == Some(name));
            name || TEXT.iter().any(|ending| path.ends_with(ending))
        };
        self.top().filter(|path| wanted(path)).map(str::to_owned).collect()
    }

    /// The weight files. Of a sharded model those that its index names; copies in other layouts are left out.
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
            let reason = format!("{INDEX} names `{missing}`, which the repository does not have");
            return Err(Error::Answer { url: url.to_owned(), reason });
        }
        // An adapter's, or whatever a repository that is no model calls its tensors.
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
                    "its weights are PyTorch pickles, which can run code when they are read; look for a safetensors \
                         version of the model"
                }
                false => "it has no safetensors weights",
            };
            return Err(Error::Nothing { id: id.to_owned(), reason: reason.into() });
        }
        Ok(weights)
    }

    /// Files that lie in no folder.
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
        serde_json::from_slice(index).map_err(|error| format!("{INDEX} cannot be understood: {error}"))?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    match names.iter().find(|name| !name.ends_with(".safetensors") || name.contains('/')) {
        Some(name) => Err(format!("{INDEX} names `{}`, which is no safetensors file", name.escape_debug())),
        None => Ok(names.into_iter().collect()),
    }
}

/// A relative path of plain components, on any operating system.
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
            "tokenizer.model",
            "LICENSE",
            "x.gguf",
            ".gitattributes",
            "merges.txt",
        ]);
        assert_eq!(listing.texts(), ["config.json", "tokenizer.model", "LICENSE", "merges.txt"]);
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
