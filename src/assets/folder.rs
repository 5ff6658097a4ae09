//! A Hugging Face model folder, checked for completeness: config.json, weights, and its tokenizer files.
//!
//! `model::family` interprets the configuration, `data` the tokenizer.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use rayon::iter::{IntoParallelIterator, ParallelIterator};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::weights::exists;
use super::{Error, WeightFiles, json};
use crate::files;

/// Tokenizer files to copy beside an adapter, if the base has them.
const TOKENIZER_FILES: [&str; 9] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];

/// Where transformers saves chat templates beside the default one.
pub const ADDITIONAL_TEMPLATES: &str = "additional_chat_templates";

/// An open model folder.
#[derive(Debug)]
pub struct ModelDir {
    root: PathBuf,
    config: Value,
    weights: WeightFiles,
    has_tokenizer: bool,
    tokenizer_config: Option<Value>,
    special_tokens_map: Option<Value>,
    generation_config: Option<Value>,
}

/// A file of a model, identified by its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileDigest {
    /// File name in the folder.
    pub name: String,
    /// Length.
    pub bytes: u64,
    /// SHA-256 of the content, lower-case hexadecimal.
    pub sha256: String,
}

impl ModelDir {
    /// Opens a folder: reads its small JSON files and the headers of its weights, and no tensor.
    ///
    /// config.json and weights are enough; tokenizer files may be missing.
    ///
    /// # Errors
    /// The folder does not exist, or a file is missing, damaged or implausibly large.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let metadata = fs::metadata(root).map_err(Error::io(root))?;
        if !metadata.is_dir() {
            return Err(Error::BaseNotFound {
                message: format!(
                    "{} is a file; a base model is a folder that holds config.json and safetensors weights",
                    root.display()
                ),
                fetch: None,
            });
        }
        let optional = |name: &str| -> Result<Option<Value>, Error> {
            let path = root.join(name);
            match exists(&path)? {
                true => json::read_object(&path, json::CONFIG_LIMIT).map(Some),
                false => Ok(None),
            }
        };
        let Some(config) = optional("config.json")? else {
            return Err(Error::MissingFile {
                folder: root.to_path_buf(),
                file: "config.json".into(),
                help: "a base model is a Hugging Face folder with config.json and safetensors weights".into(),
            });
        };
        Ok(Self {
            root: root.to_path_buf(),
            config,
            weights: WeightFiles::open(root)?,
            has_tokenizer: has_tokenizer(root),
            tokenizer_config: optional("tokenizer_config.json")?,
            special_tokens_map: optional("special_tokens_map.json")?,
            generation_config: optional("generation_config.json")?,
        })
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// config.json, a JSON object.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The weight files.
    pub fn weights(&self) -> &WeightFiles {
        &self.weights
    }

    /// Whether there are tokenizer files that can be read.
    pub fn has_tokenizer(&self) -> bool {
        self.has_tokenizer
    }

    /// tokenizer_config.json, a JSON object.
    pub fn tokenizer_config(&self) -> Option<&Value> {
        self.tokenizer_config.as_ref()
    }

    /// special_tokens_map.json, a JSON object.
    pub fn special_tokens_map(&self) -> Option<&Value> {
        self.special_tokens_map.as_ref()
    }

    /// generation_config.json, a JSON object.
    pub fn generation_config(&self) -> Option<&Value> {
        self.generation_config.as_ref()
    }

    /// The default chat template: chat_template.jinja, else chat_template.json, else the one in
    /// tokenizer_config.json (of several named ones, `default`), in transformers' order.
    ///
    /// # Errors
    /// A template file that cannot be read, or a `chat_template` that is neither text nor a list with `default`.
    pub fn chat_template(&self) -> Result<Option<String>, Error> {
        let jinja = self.root.join("chat_template.jinja");
        if exists(&jinja)? {
            let bytes = json::read_limited(&jinja, json::CONFIG_LIMIT)?;
            return match String::from_utf8(bytes) {
                Ok(text) => Ok(Some(text)),
                Err(_) => Err(Error::Json { path: jinja, message: "not valid UTF-8".into() }),
            };
        }
        let file = self.root.join("chat_template.json");
        if exists(&file)? {
            let value = json::read_object(&file, json::CONFIG_LIMIT)?;
            return default_template(value.get("chat_template"), &file);
        }
        let config = self.tokenizer_config.as_ref().and_then(|config| config.get("chat_template"));
        default_template(config, &self.root.join("tokenizer_config.json"))
    }

    /// The existing tokenizer files, to copy beside an adapter; in alphabetical order.
    ///
    /// # Errors
    /// A file is a dangling link.
    pub fn tokenizer_files(&self) -> Result<Vec<PathBuf>, Error> {
        tokenizer_files(&self.root)
    }

    /// SHA-256 of config.json and every weight file, in that order; reads all weights once.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn files_sha256(&self) -> Result<Vec<FileDigest>, Error> {
        let mut paths = vec![self.root.join("config.json")];
        paths.extend(self.weights.paths().map(Path::to_path_buf));
        paths[1..].sort();
        paths.into_par_iter().map(|path| digest(&path)).collect()
    }
}

/// Whether a folder has tokenizer files that can be read: tokenizer.json, or vocab.json and merges.txt.
pub fn has_tokenizer(folder: &Path) -> bool {
    let has = |name: &str| folder.join(name).is_file();
    has("tokenizer.json") || (has("vocab.json") && has("merges.txt"))
}

/// The tokenizer files of a folder, in alphabetical order, and before them its additional chat templates.
///
/// # Errors
/// A file is a dangling link.
pub fn tokenizer_files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let additional = fs::read_dir(folder.join(ADDITIONAL_TEMPLATES)).into_iter().flatten().flatten();
    let is_template =
        |path: &PathBuf| path.extension().is_some_and(|ending| ending == "jinja") && path.is_file();
    let mut found: Vec<PathBuf> = additional.map(|entry| entry.path()).filter(is_template).collect();
    found.sort();
    for name in TOKENIZER_FILES {
        let path = folder.join(name);
        if exists(&path)? {
            found.push(path);
        }
    }
    Ok(found)
}

/// Whether a tokenizer file is a chat template beside the default one.
pub fn is_additional_template(file: &Path) -> bool {
    file.parent().is_some_and(|parent| parent.file_name().is_some_and(|name| name == ADDITIONAL_TEMPLATES))
}

/// Copies a tokenizer file into `folder`, under its own name and where it is looked for.
///
/// # Errors
/// It cannot be read or written.
pub fn copy_tokenizer_file(file: &Path, folder: &Path) -> Result<(), files::Error> {
    let Some(name) = file.file_name() else {
        return Err(files::Error::NoName { path: file.to_path_buf() });
    };
    let folder = match is_additional_template(file) {
        true => folder.join(ADDITIONAL_TEMPLATES),
        false => folder.to_path_buf(),
    };
    files::create_folder(&folder)?;
    files::copy_file(file, &folder.join(name))
}

/// Hashes a file without reading it whole into memory.
///
/// # Errors
/// The file cannot be read.
pub fn digest(path: &Path) -> Result<FileDigest, Error> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let count = file.read(&mut buffer).map_err(Error::io(path))?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        bytes += count as u64;
    }
    let sha256 = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(FileDigest { name, bytes, sha256 })
}

fn default_template(value: Option<&Value>, path: &Path) -> Result<Option<String>, Error> {
    let fail = |message: &str| Error::Json { path: path.to_path_buf(), message: message.to_owned() };
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Array(named)) => {
            let default =
                named.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"));
            match default.and_then(|entry| entry.get("template")).and_then(Value::as_str) {
                Some(text) => Ok(Some(text.to_owned())),
                None => Err(fail(
                    "`chat_template` lists templates but none named `default`; set `data.chat_template` to a file",
                )),
            }
        }
        Some(_) => Err(fail("`chat_template` is neither text nor a list of named templates")),
    }
}
