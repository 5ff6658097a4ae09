//! Everything in a merged folder besides the weights: config.json, generation_config.json, tokenizer, template and
//! a model card.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::Error;
use super::base::OpenedBase;
use crate::adapter::peft::{self, TEMPLATE_FILE};
use crate::assets::ModelDir;
use crate::assets::folder::{copy_tokenizer_file, has_tokenizer, is_additional_template, tokenizer_files};
use crate::data::error::Error as DataError;
use crate::data::template::ChatTemplate;
use crate::data::tokenize::Tokenizer;
use crate::files;
use crate::model::FloatDtype;

/// Tokenizer and chat template of a merged model.
pub struct Text {
    /// Tokenizer and template files.
    pub files: Vec<PathBuf>,
    /// The tokenizer, if there is one.
    pub tokenizer: Option<Tokenizer>,
    /// The chat template, if there is one.
    pub template: Option<ChatTemplate>,
}

impl Text {
    /// Tokenizer and template from the adapter's folder if it has them, else from the base.
    ///
    /// # Errors
    /// A file cannot be read or is invalid.
    pub fn open(adapter: &peft::Adapter, base: &ModelDir) -> Result<Self, Error> {
        let own = tokenizer_files(adapter.folder())?;
        let has = |name: &str| own.iter().any(|file| file.file_name().is_some_and(|file| file == name));
        let own_template = has(TEMPLATE_FILE);
        let (files, root) = match has_tokenizer(adapter.folder()) {
            true => (own, adapter.folder()),
            false => {
                let mut files = base.tokenizer_files()?;
                if own_template {
                    let is_template = |file: &PathBuf| {
                        is_additional_template(file)
                            || file.file_name().is_some_and(|name| name == TEMPLATE_FILE)
                    };
                    files.retain(|file| !is_template(file));
                    files.extend(own.into_iter().filter(is_template));
                }
                (files, base.root())
            }
        };
        // A template file beside the adapter takes precedence over the one in tokenizer_config.json.
        let template = if own_template { adapter.folder() } else { root };
        Self::from_files(files, root, template)
    }

    /// The tokenizer and template of a model.
    ///
    /// # Errors
    /// A file cannot be read or is invalid.
    pub fn of_model(model: &ModelDir) -> Result<Self, Error> {
        Self::from_files(model.tokenizer_files()?, model.root(), model.root())
    }

    fn from_files(files: Vec<PathBuf>, root: &Path, folder: &Path) -> Result<Self, Error> {
        if !has_tokenizer(root) {
            return Ok(Self { files, tokenizer: None, template: None });
        }
        let tokenizer = Tokenizer::open(root).map_err(DataError::from)?;
        let template = ChatTemplate::open(None, folder, &tokenizer).map_err(DataError::from)?;
        Ok(Self { files, tokenizer: Some(tokenizer), template })
    }

    /// Tokens that end an answer: the tokenizer's EOS and the template's end of turn.
    fn end_tokens(&self) -> Vec<u32> {
        let Some(tokenizer) = &self.tokenizer else { return Vec::new() };
        end_tokens(tokenizer, self.template.as_ref())
    }
}

/// Tokens that end an answer: the tokenizer's EOS and the token with which the template ends a turn.
pub fn end_tokens(tokenizer: &Tokenizer, template: Option<&ChatTemplate>) -> Vec<u32> {
    let end_of_turn = template.and_then(ChatTemplate::end_of_turn).and_then(|token| tokenizer.id(&token));
    tokenizer.eos().map(|token| token.id).into_iter().chain(end_of_turn).collect()
}

/// A key of config.json, or of the text decoder in it where the model has towers and the key stands there.
pub fn of_text<'a>(config: &'a Value, key: &str) -> Option<&'a Value> {
    let given = |config: &'a Value| config.get(key).filter(|value| !value.is_null());
    given(config).or_else(|| given(config.get("text_config")?))
}

/// The tokens that generation_config.json says end an answer, else those of config.json.
pub fn configured_ends(model: &ModelDir) -> Vec<u32> {
    let given = model.generation_config().and_then(|config| config.get("eos_token_id"));
    token_ids(given.filter(|ids| !ids.is_null()).or_else(|| of_text(model.config(), "eos_token_id")))
}

/// Token ids of a JSON value: one, or a list.
pub fn token_ids(value: Option<&Value>) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(ids)) => ids.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

/// Writes everything besides the weights into a folder.
///
/// # Errors
/// A file cannot be written, or a file of the base or the adapter cannot be read.
pub fn write(
    folder: &Path,
    base: &OpenedBase,
    tied: bool,
    adapter: &peft::Adapter,
    text: &Text,
    dtype: FloatDtype,
    onto: &str,
) -> Result<(), Error> {
    let put =
        |name: &str, value: &Value| files::write_bytes(&folder.join(name), format!("{value:#}\n").as_bytes());
    let mut config = config(base.folder.config(), dtype);
    if base.spec.tied && !tied {
        config["tie_word_embeddings"] = json!(false);
    }
    put("config.json", &config)?;
    let ends = text.end_tokens();
    if let Some(generation) = generation_config(base.folder.generation_config(), base.folder.config(), &ends)
    {
        put("generation_config.json", &generation)?;
    }
    for file in &text.files {
        copy_tokenizer_file(file, folder)?;
    }
    files::write_bytes(&folder.join("README.md"), card(base, adapter, onto).as_bytes())?;
    Ok(())
}

/// The base's config.json, adjusted to dense weights of one dtype.
fn config(base: &Value, dtype: FloatDtype) -> Value {
    let mut config = base.clone();
    let Value::Object(entries) = &mut config else { return config };
    // The weights are dense now: with this key a loader would quantize or reject them.
    entries.shift_remove("quantization_config");
    let name = match dtype {
        FloatDtype::F32 => "float32",
        FloatDtype::Bf16 => "bfloat16",
        FloatDtype::F16 => "float16",
    };
    // transformers 5 writes `dtype`; every version reads `torch_dtype`.
    let key = if entries.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    entries.insert(key.to_owned(), json!(name));
    config
}

/// The base's generation_config.json with missing end tokens added; derived from config.json if the base has none.
/// `None` if it would be empty.
fn generation_config(base: Option<&Value>, config: &Value, ends: &[u32]) -> Option<Value> {
    let mut generation = match base {
        Some(Value::Object(entries)) => entries.clone(),
        _ => {
            let mut entries = Map::new();
            for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
                if let Some(value) = of_text(config, key) {
                    entries.insert(key.into(), value.clone());
                }
            }
            entries
        }
    };
    // Existing ids stay first: some readers use only the first.
    let known = generation.get("eos_token_id").filter(|value| !value.is_null());
    let mut ids = token_ids(known.or_else(|| of_text(config, "eos_token_id")));
    let before = ids.len();
    for end in ends {
        if !ids.contains(end) {
            ids.push(*end);
        }
    }
    if ids.len() > before || known.is_none() {
        match ids.as_slice() {
            [] => {}
            [only] => _ = generation.insert("eos_token_id".into(), json!(only)),
            several => _ = generation.insert("eos_token_id".into(), json!(several)),
        }
    }
    (!generation.is_empty()).then_some(Value::Object(generation))
}

fn card(base: &OpenedBase, adapter: &peft::Adapter, onto: &str) -> String {
    let name = match (&base.base.hub, &adapter.config().base_model) {
        (Some(hub), _) => hub.id.clone(),
        (None, Some(name)) => name.clone(),
        (None, None) => "an unnamed base".into(),
    };
    format!(
        "---\nbase_model: {}\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- merged\n- tune\n---\n\n\
         # {name} with a LoRA adapter merged in\n\n\
         Merged onto {onto}, in f32 with one rounding. The metadata of the safetensors files records how the adapter\n\
         was trained.\n",
        Value::from(name.clone())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_tokens_are_added_and_never_replaced() {
        let of = |base: Value, config: Value, ends: &[u32]| {
            generation_config(Some(&base).filter(|base| !base.is_null()), &config, ends)
        };
        let kept = of(json!({"eos_token_id": [2, 7], "top_p": 0.9}), json!({}), &[9, 2]).unwrap();
        assert_eq!(kept, json!({"eos_token_id": [2, 7, 9], "top_p": 0.9}));
        assert_eq!(of(json!({"eos_token_id": 2}), json!({}), &[2]).unwrap(), json!({"eos_token_id": 2}));
        assert_eq!(
            of(Value::Null, json!({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": null}), &[5])
                .unwrap(),
            json!({"bos_token_id": 1, "eos_token_id": [2, 5]})
        );
        assert_eq!(of(Value::Null, json!({}), &[]), None);
        let inside =
            json!({"eos_token_id": null, "text_config": {"eos_token_id": [1, 106], "bos_token_id": 2}});
        assert_eq!(
            of(Value::Null, inside, &[106]).unwrap(),
            json!({"bos_token_id": 2, "eos_token_id": [1, 106]})
        );
    }

    #[test]
    fn a_dense_folder_says_nothing_of_quantization() {
        let base =
            json!({"model_type": "llama", "quantization_config": {"load_in_4bit": true}, "dtype": "float16"});
        assert_eq!(config(&base, FloatDtype::F32), json!({"model_type": "llama", "dtype": "float32"}));
        assert_eq!(config(&json!({}), FloatDtype::Bf16), json!({"torch_dtype": "bfloat16"}));
    }
}
