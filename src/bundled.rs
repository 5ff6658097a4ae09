//! Files embedded in the binary: the recipes of `recipes/`, and model and data of the quickstart.
//!
//! `tune cp` copies them into a folder; the contents of a recipe are opaque here.

use std::path::{Path, PathBuf};

use crate::files;

/// One bundled recipe.
#[derive(Clone, Copy, Debug)]
pub struct Bundle {
    /// Its name for `tune cp`.
    pub name: &'static str,
    /// The recipe's text.
    pub recipe: &'static str,
    /// Files it needs, as paths relative to the folder that it runs in.
    pub files: &'static [(&'static str, &'static [u8])],
    /// What its user has to bring; `None` if it runs as it is.
    pub needs: Option<Needs>,
}

/// What a recipe needs that is not in the binary.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// The hub id of its base, to be downloaded.
    pub base: Option<&'static str>,
    /// The file of rows, of which three samples are copied.
    pub rows: &'static str,
}

/// A recipe for conversations of one's own: its base, and the file of them.
macro_rules! bundle {
    ($name:literal, $base:literal) => {
        Bundle {
            name: $name,
            recipe: include_str!(concat!("../recipes/", $name, ".toml")),
            files: &[("chats.jsonl", include_bytes!("../data/samples/chats.jsonl"))],
            needs: Some(Needs { base: Some($base), rows: "chats.jsonl" }),
        }
    };
}

macro_rules! files {
    ($($path:literal),+ $(,)?) => {
        &[$(($path, include_bytes!(concat!("../", $path)))),+]
    };
}

/// Every bundled recipe, the quickstart first.
pub const BUNDLES: &[Bundle] = &[
    Bundle {
        name: "quickstart",
        recipe: include_str!("../recipes/quickstart.toml"),
        files: files![
            "data/quickstart/base/config.json",
            "data/quickstart/base/generation_config.json",
            "data/quickstart/base/model.safetensors",
            "data/quickstart/base/tokenizer.json",
            "data/quickstart/base/tokenizer_config.json",
            "data/quickstart/train.arrow",
            "data/quickstart/heldout.arrow",
        ],
        needs: None,
    },
    Bundle {
        name: "preference",
        recipe: include_str!("../recipes/preference.toml"),
        files: files![
            "data/quickstart/base/config.json",
            "data/quickstart/base/generation_config.json",
            "data/quickstart/base/model.safetensors",
            "data/quickstart/base/tokenizer.json",
            "data/quickstart/base/tokenizer_config.json",
            "data/brevity/train.jsonl",
            "data/brevity/heldout.jsonl",
        ],
        needs: None,
    },
    Bundle {
        name: "gsm8k",
        recipe: include_str!("../recipes/gsm8k.toml"),
        files: &[
            ("data/quickstart/base/config.json", include_bytes!("../data/quickstart/base/config.json")),
            (
                "data/quickstart/base/generation_config.json",
                include_bytes!("../data/quickstart/base/generation_config.json"),
            ),
            (
                "data/quickstart/base/model.safetensors",
                include_bytes!("../data/quickstart/base/model.safetensors"),
            ),
            ("data/quickstart/base/tokenizer.json", include_bytes!("../data/quickstart/base/tokenizer.json")),
            (
                "data/quickstart/base/tokenizer_config.json",
                include_bytes!("../data/quickstart/base/tokenizer_config.json"),
            ),
            ("gsm8k/train.jsonl", include_bytes!("../data/samples/gsm8k.jsonl")),
        ],
        needs: Some(Needs { base: None, rows: "gsm8k/train.jsonl" }),
    },
    bundle!("smollm2-135m-cpu", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    bundle!("qwen3-0.6b", "Qwen/Qwen3-0.6B"),
    bundle!("llama-3.2-1b", "meta-llama/Llama-3.2-1B-Instruct"),
    bundle!("smollm3-3b", "HuggingFaceTB/SmolLM3-3B"),
    bundle!("gemma-3-4b", "google/gemma-3-4b-it"),
    bundle!("ministral-3-3b", "mistralai/Ministral-3-3B-Instruct-2512"),
    bundle!("mistral-small-24b", "mistralai/Mistral-Small-3.1-24B-Instruct-2503"),
    bundle!("phi-4-mini", "microsoft/Phi-4-mini-instruct"),
    bundle!("llama-3.1-8b-12gb", "meta-llama/Llama-3.1-8B-Instruct"),
    bundle!("llama-3.1-8b-24gb", "meta-llama/Llama-3.1-8B-Instruct"),
];

impl Bundle {
    /// The first sentence of the recipe's opening comment, after the command that runs it.
    pub fn summary(&self) -> String {
        let comment = self.recipe.lines().map_while(|line| line.strip_prefix('#')).map(str::trim);
        let paragraph: Vec<&str> = comment
            .skip_while(|line| line.is_empty() || line.starts_with("tune "))
            .take_while(|line| !line.is_empty())
            .collect();
        let paragraph = paragraph.join(" ");
        let end = paragraph.find(". ").map_or(paragraph.len(), |position| position + 1);
        paragraph[..end].to_owned()
    }

    /// File name of the recipe.
    pub fn file_name(&self) -> String {
        format!("{}.toml", self.name)
    }
}

/// Finds a bundle by name, with or without `.toml`.
pub fn find(name: &str) -> Option<&'static Bundle> {
    let name = name.strip_suffix(".toml").unwrap_or(name);
    BUNDLES.iter().find(|bundle| bundle.name == name)
}

/// Why a bundle could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A file exists; nothing was written.
    #[error("{} exists; nothing was written. Choose an empty folder", .0.display())]
    Exists(PathBuf),
    /// Writing failed.
    #[error(transparent)]
    File(#[from] files::Error),
}

/// Writes a bundle's recipe and files into `folder`, which is created. Returns the paths written.
///
/// # Errors
/// [`CopyError::Exists`], before anything is written, if any of the files exists.
pub fn copy(bundle: &Bundle, folder: &Path) -> Result<Vec<PathBuf>, CopyError> {
    let name = bundle.file_name();
    let files: Vec<(PathBuf, &[u8])> = std::iter::once((name.as_str(), bundle.recipe.as_bytes()))
        .chain(bundle.files.iter().copied())
        .map(|(path, bytes)| (folder.join(path), bytes))
        .collect();
    if let Some((path, _)) = files.iter().find(|(path, _)| path.exists()) {
        return Err(CopyError::Exists(path.clone()));
    }
    for (path, bytes) in &files {
        if let Some(parent) = path.parent() {
            files::create_folder(parent)?;
        }
        files::write_bytes(path, bytes)?;
    }
    Ok(files.into_iter().map(|(path, _)| path).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn every_recipe_of_the_folder_is_bundled() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
        let mut found: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
            .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        found.sort();
        let mut bundled: Vec<&str> = BUNDLES.iter().map(|bundle| bundle.name).collect();
        bundled.sort_unstable();
        assert_eq!(bundled, found);
    }

    #[test]
    fn what_a_recipe_needs_is_what_it_names() {
        for bundle in BUNDLES {
            let Some(Needs { base, rows }) = bundle.needs else { continue };
            assert!(bundle.recipe.contains(&format!("path = \"{rows}\"")), "{}", bundle.name);
            assert!(bundle.files.iter().any(|(path, _)| *path == rows), "{}", bundle.name);
            if let Some(base) = base {
                assert!(bundle.recipe.contains(&format!("base = \"{base}\"")), "{}", bundle.name);
            }
        }
    }

    #[test]
    fn a_copy_overwrites_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let bundle = find("quickstart.toml").unwrap();
        let written = copy(bundle, folder.path()).unwrap();
        assert_eq!(written.len(), 1 + bundle.files.len());
        assert!(matches!(copy(bundle, folder.path()), Err(CopyError::Exists(_))));
    }
}
