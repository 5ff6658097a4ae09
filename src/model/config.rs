//! Typed reading of config.json, strict about unknown keys.
//!
//! Every key is either read by a family, on the list of keys that cannot change the maths, or must have the one
//! value without effect. Of the other keys, those whose name speaks of the maths are an error and the rest are named as
//! unread. Knows no family.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::Error;
use crate::assets::json::kind;

/// Keys that transformers writes and that do not change what the decoder computes.
const IRRELEVANT: &[&str] = &[
    // Where the file came from.
    "_commit_hash",
    "_name_or_path",
    "name_or_path",
    "transformers_version",
    "transformers.js_config",
    "unsloth_fixed",
    "unsloth_version",
    "is_llama_config",
    // Implementation choices with the same result.
    "_attn_implementation",
    "_attn_implementation_autoset",
    "attn_implementation",
    "chunk_size_feed_forward",
    "low_cpu_mem_usage",
    "torchscript",
    "use_bfloat16",
    "use_cache",
    "use_flash_attn",
    // Initialization.
    "initializer_factor",
    "initializer_range",
    // What a forward pass returns.
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "return_dict",
    "return_dict_in_generate",
    // Token ids and the tokenizer.
    "bos_token_id",
    "decoder_start_token_id",
    "eos_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "max_sequence_length",
    "pad_token_id",
    "prefix",
    "sep_token_id",
    "tokenizer_class",
    "unk_token_id",
    // Heads other than the language model's.
    "finetuning_task",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "task_specific_params",
    // Defaults for generation.
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "remove_invalid_values",
    "repetition_penalty",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
];

/// Keys whose name speaks of the maths although no implementation reads them for a forward pass.
const UNREAD: &[&str] = &[
    "dual_chunk_attention_config",
    "gradient_checkpointing_layers",
    "use_flash_attention",
    "use_flash_attention_2",
    "vocab_file",
];

/// Parts of the names of keys that may change what a decoder computes.
const OF_THE_MATHS: &[&str] = &[
    "_act",
    "act_",
    "activ",
    "adapter",
    "alibi",
    "alpha",
    "attention",
    "attn",
    "beta",
    "bias",
    "bidirect",
    "block",
    "causal",
    "clip",
    "conv",
    "depth",
    "dim",
    "embed",
    "eps",
    "expert",
    "factor",
    "ffn",
    "gate",
    "glu",
    "head",
    "hidden",
    "kv",
    "latent",
    "layer",
    "logit",
    "lora",
    "mask",
    "mixer",
    "mlp",
    "moe",
    "multiplier",
    "nope",
    "norm",
    "parallel",
    "position",
    "qk",
    "quant",
    "rank",
    "recurr",
    "residual",
    "rope",
    "rotary",
    "router",
    "scal",
    "size",
    "softcap",
    "soft_cap",
    "sparse",
    "ssm",
    "temper",
    "theta",
    "tie_",
    "vocab",
    "width",
    "window",
];

/// Parts of the names of dropouts.
const DROPOUTS: &[&str] = &["dropout", "_pdrop", "drop_rate"];

/// Whether a value says nothing: null, an empty value, a dropout of zero.
fn is_nothing(path: &str, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        Value::String(text) => text.is_empty(),
        value => value.as_f64() == Some(0.0) && DROPOUTS.iter().any(|part| path.contains(part)),
    }
}

/// Whether an unread key might change the maths. Names with a leading underscore are notes of tools.
fn might_change_maths(path: &str) -> bool {
    let (path, key) = (path.to_lowercase(), path.rsplit('.').next().unwrap_or(path));
    let of_the_maths = OF_THE_MATHS.iter().chain(DROPOUTS);
    !key.starts_with('_') && !UNREAD.contains(&key) && { of_the_maths }.any(|part| path.contains(part))
}

/// config.json without the keys at these paths (`rope_parameters.twist`), and those of the paths that it does not have.
pub(super) fn without_keys<'a>(config: &Value, paths: &'a [String]) -> (Value, Vec<&'a String>) {
    fn remove(value: &mut Value, path: &str) -> bool {
        let Some(entries) = value.as_object_mut() else { return false };
        let mut splits = path.match_indices('.').map(|(at, _)| (&path[..at], &path[at + 1..]));
        entries.shift_remove(path).is_some()
            || splits.any(|(head, tail)| entries.get_mut(head).is_some_and(|inner| remove(inner, tail)))
    }
    let mut config = config.clone();
    let absent = paths.iter().filter(|path| !remove(&mut config, path)).collect();
    (config, absent)
}

/// The keys of a JSON object, each remembered as it is read.
pub(super) struct ConfigReader<'a> {
    /// What the object is called in messages; empty for the whole file.
    path: String,
    entries: &'a Map<String, Value>,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> ConfigReader<'a> {
    /// Reads config.json.
    pub(super) fn new(config: &'a Value) -> Result<Self, Error> {
        match config {
            Value::Object(entries) => {
                Ok(Self { path: String::new(), entries, read: RefCell::new(BTreeSet::new()) })
            }
            other => Err(Error::config("", format!("expected a JSON object, found {}", kind(other)))),
        }
    }

    /// A nested object; absent, null and empty are the same.
    pub(super) fn object(&self, key: &str) -> Result<Option<Self>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(entries)) if entries.is_empty() => Ok(None),
            Some(Value::Object(entries)) => {
                Ok(Some(Self { path: self.name(key), entries, read: RefCell::new(BTreeSet::new()) }))
            }
            Some(other) => Err(self.wrong(key, "an object", other)),
        }
    }

    /// A key's name from the top of the file.
    pub(super) fn name(&self, key: &str) -> String {
        match self.path.is_empty() {
            true => key.to_owned(),
            false => format!("{}.{key}", self.path),
        }
    }

    /// An error about one key.
    pub(super) fn fail(&self, key: &str, message: impl Into<String>) -> Error {
        Error::config(self.name(key), message)
    }

    /// The value of a key; null is absent.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.read.borrow_mut().insert(key.to_owned());
        self.entries.get(key).filter(|value| !value.is_null())
    }

    /// Marks keys as understood that say nothing of the maths of this family.
    pub(super) fn ignore(&self, keys: &[&str]) {
        self.read.borrow_mut().extend(keys.iter().map(|key| (*key).to_owned()));
    }

    /// Whether a key is there and null, where that differs from its absence.
    pub(super) fn is_null(&self, key: &str) -> bool {
        self.entries.get(key).is_some_and(Value::is_null)
    }

    /// A positive whole number that fits an address.
    pub(super) fn size(&self, key: &str) -> Result<Option<usize>, Error> {
        self.get(key)
            .map(|value| match value.as_u64().and_then(|size| usize::try_from(size).ok()) {
                Some(size) if size > 0 => Ok(size),
                _ => Err(self.wrong(key, "a positive whole number", value)),
            })
            .transpose()
    }

    /// A whole number, zero included.
    pub(super) fn count(&self, key: &str) -> Result<Option<usize>, Error> {
        self.get(key)
            .map(|value| {
                let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
                count.ok_or_else(|| self.wrong(key, "a whole number", value))
            })
            .transpose()
    }

    /// A finite number.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, Error> {
        self.get(key)
            .map(|value| match value.as_f64() {
                Some(number) if number.is_finite() => Ok(number),
                _ => Err(self.wrong(key, "a number", value)),
            })
            .transpose()
    }

    /// A finite number above zero.
    pub(super) fn positive(&self, key: &str) -> Result<Option<f64>, Error> {
        match self.number(key)? {
            Some(number) if number <= 0.0 => Err(self.fail(key, format!("is {number}; expected it above 0"))),
            number => Ok(number),
        }
    }

    /// `true` or `false`.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        self.get(key)
            .map(|value| value.as_bool().ok_or_else(|| self.wrong(key, "a boolean", value)))
            .transpose()
    }

    /// Text.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, Error> {
        self.get(key)
            .map(|value| value.as_str().ok_or_else(|| self.wrong(key, "a string", value)))
            .transpose()
    }

    /// A list of texts.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let texts = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        texts.map(Some).ok_or_else(|| self.wrong(key, "a list of strings", value))
    }

    /// A list of finite numbers.
    pub(super) fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = |value: &Value| value.as_f64().filter(|number| number.is_finite());
        let numbers = value.as_array().and_then(|list| list.iter().map(number).collect());
        numbers.map(Some).ok_or_else(|| self.wrong(key, "a list of numbers", value))
    }

    /// A key that may only have values without effect.
    pub(super) fn must_be(&self, key: &str, inert: &[Value]) -> Result<(), Error> {
        match self.get(key) {
            None => Ok(()),
            Some(value) if inert.iter().any(|allowed| equal(allowed, value)) => Ok(()),
            Some(value) => {
                let allowed: Vec<String> = inert.iter().map(Value::to_string).collect();
                Err(self.fail(
                    key,
                    format!(
                        "is {}, which is not implemented (only {})",
                        shorten(value),
                        allowed.join(" or ")
                    ),
                ))
            }
        }
    }

    /// Fails if the object has keys that were not read and might change the maths; returns the other keys that were not
    /// read and are not known to be irrelevant.
    pub(super) fn finish(&self) -> Result<Vec<String>, Error> {
        let read = self.read.borrow();
        let irrelevant = |key: &str| self.path.is_empty() && IRRELEVANT.contains(&key);
        let unread = self
            .entries
            .iter()
            .filter(|(key, value)| !is_nothing(key, value))
            .filter(|(key, _)| !read.contains(key.as_str()) && !irrelevant(key))
            .map(|(key, value)| (self.name(key), value));
        let (unknown, harmless): (Vec<_>, Vec<_>) = unread.partition(|(path, _)| might_change_maths(path));
        if unknown.is_empty() {
            return Ok(harmless.into_iter().map(|(path, _)| path).collect());
        }
        let keys = unknown.iter().map(|(path, value)| format!("`{path}` = {}", shorten(value))).collect();
        Err(Error::UnknownKeys { keys, paths: unknown.into_iter().map(|(path, _)| path).collect() })
    }

    fn wrong(&self, key: &str, expected: &str, found: &Value) -> Error {
        self.fail(key, format!("is {}; expected {expected}", shorten(found)))
    }
}

/// Equal as JSON, with 1 and 1.0 the same.
fn equal(left: &Value, right: &Value) -> bool {
    match (left.as_f64(), right.as_f64()) {
        (Some(left), Some(right)) => left == right,
        _ => left == right,
    }
}

/// A value short enough for a message.
fn shorten(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
