//! The tokenizer of a Hugging Face folder: text to ids with the offsets of every token, and back. Knows nothing of
//! conversations, masks or sequences; `tokenized` turns examples into tokens.
//!
//! tokenizer.json says how text becomes ids, and by its post-processor whether a BOS goes in front;
//! tokenizer_config.json (else special_tokens_map.json) says which tokens are BOS and EOS.

mod answers;
mod byte_level;
mod other;
mod splits;
mod tokenized;

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use byte_level::ByteLevel;
use serde_json::Value;
use tokenizers::{ModelWrapper, PostProcessorWrapper};

pub use tokenized::{Examples, IGNORED, Supervision, TemplateTraits, Tokenized, TokenizedText};

/// A special token: its text and its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecialToken {
    /// Its text.
    pub text: String,
    /// Its id in the vocabulary.
    pub id: u32,
}

/// A tokenizer, ready to be shared between threads.
pub struct Tokenizer {
    /// Without post-processor, truncation and padding: adds no tokens, and every offset is exact.
    inner: tokenizers::Tokenizer,
    /// The fast way to the same ids, for the tokenizers that have one.
    byte_level: Option<ByteLevel>,
    config: Value,
    variables: BTreeMap<String, String>,
    bos: Option<SpecialToken>,
    eos: Option<SpecialToken>,
    specials: BTreeMap<u32, String>,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    origin: String,
}

/// A tokenizer that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenizerError {
    /// A file cannot be read.
    #[error("{file}: cannot be read: {problem}")]
    Io {
        /// The file.
        file: String,
        /// What the system said.
        problem: String,
    },
    /// There is no tokenizer.json, and nothing else that can be read.
    #[error("{folder} has no tokenizer.json{found}; {help}")]
    Missing {
        /// The folder.
        folder: String,
        /// What is there instead.
        found: &'static str,
        /// The remedy.
        help: String,
    },
    /// The content of a file is not what its name says.
    #[error("{file}: {problem}")]
    Malformed {
        /// The file.
        file: String,
        /// What was expected and what was found.
        problem: String,
    },
    /// A declared special token is not in the vocabulary.
    #[error("{file}: `{name}` is `{token}`, which is not in the vocabulary of tokenizer.json")]
    NotInVocabulary {
        /// The file that declares it.
        file: String,
        /// `bos_token` or `eos_token`.
        name: &'static str,
        /// Its text.
        token: String,
    },
    /// The tokenizer failed on a text.
    #[error("{file}: the tokenizer fails on this text: {problem}")]
    Encode {
        /// The tokenizer's file.
        file: String,
        /// What it said.
        problem: String,
    },
}

/// Token ids and the bytes of each token in the text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoding {
    /// One per token.
    pub ids: Vec<u32>,
    /// One byte range per token. Several tokens that share one character share its range.
    pub offsets: Vec<Range<usize>>,
    /// Whether the tokens are known to spell the text byte for byte.
    pub is_exact: bool,
}

impl Tokenizer {
    /// Opens tokenizer.json in `folder` (else vocab.json and merges.txt), and tokenizer_config.json and
    /// special_tokens_map.json where they exist.
    ///
    /// # Errors
    /// A missing or malformed file, a BOS or EOS token that the vocabulary does not have.
    pub fn open(folder: &Path) -> Result<Tokenizer, TokenizerError> {
        let file = folder.join("tokenizer.json");
        let config = optional_json(&folder.join("tokenizer_config.json"))?;
        let bytes = match std::fs::read(&file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => other::converted(folder, &config)?,
            Err(error) => return Err(io(&file, &error)),
        };
        let map = optional_json(&folder.join("special_tokens_map.json"))?;
        Tokenizer::from_bytes(&bytes, config, &map, &file.display().to_string())
    }

    /// As [`open`](Self::open), from contents. `origin` is named in errors; absent files are `null`.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(
        tokenizer_json: &[u8],
        config: Value,
        special_tokens_map: &Value,
        origin: &str,
    ) -> Result<Tokenizer, TokenizerError> {
        let malformed = |problem: String| TokenizerError::Malformed { file: origin.to_owned(), problem };
        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(tokenizer_json)).map_err(malformed)?;
        if let ModelWrapper::BPE(model) = inner.get_model()
            && model.dropout.is_some()
        {
            // The same text must become the same tokens every time.
            let mut model = model.clone();
            model.dropout = None;
            inner.with_model(model);
        }
        inner.with_truncation(None).map_err(|error| malformed(error.to_string()))?;
        inner.with_padding(None);
        let variables = special_variables(&config, special_tokens_map);
        let special = |name: &'static str| -> Result<Option<SpecialToken>, TokenizerError> {
            let Some(text) = variables.get(name) else { return Ok(None) };
            let id = inner.token_to_id(text).ok_or_else(|| TokenizerError::NotInVocabulary {
                file: origin.replace("tokenizer.json", "tokenizer_config.json"),
                name,
                token: text.clone(),
            })?;
            Ok(Some(SpecialToken { text: text.clone(), id }))
        };
        let (bos, eos) = (special("bos_token")?, special("eos_token")?);
        let specials = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, token)| (id, token.content))
            .chain([&bos, &eos].into_iter().flatten().map(|token| (token.id, token.text.clone())))
            .collect();
        let has_post_processor = inner.get_post_processor().is_some();
        let (mut prefix, mut suffix) = additions(&inner).map_err(malformed)?;
        inner.with_post_processor(None::<PostProcessorWrapper>);
        if !has_post_processor {
            let adds = |name: &str| config.get(name).and_then(Value::as_bool).unwrap_or(false);
            prefix.extend(bos.iter().filter(|_| adds("add_bos_token")).map(|token| token.id));
            suffix.extend(eos.iter().filter(|_| adds("add_eos_token")).map(|token| token.id));
        }
        let origin = origin.to_owned();
        let byte_level = ByteLevel::of(&inner);
        Ok(Tokenizer { inner, byte_level, config, variables, bos, eos, specials, prefix, suffix, origin })
    }

    /// Tokenizes `text` and adds no tokens. The text of a special token becomes that token.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`].
    pub fn encode(&self, text: &str) -> Result<Encoding, TokenizerError> {
        let failed = |problem| TokenizerError::Encode { file: self.origin.clone(), problem };
        let fast = |byte_level: &ByteLevel| byte_level.encode(self.inner.get_model(), text).transpose();
        match guarded(|| self.byte_level.as_ref().map_or(Ok(None), fast)).map_err(failed)? {
            Some(encoding) => Ok(encoding),
            None => self.encode_by_crate(text),
        }
    }

    /// [`Self::encode`] for every tokenizer and text.
    fn encode_by_crate(&self, text: &str) -> Result<Encoding, TokenizerError> {
        let encoded = guarded(|| self.inner.encode(text, false))
            .map_err(|problem| TokenizerError::Encode { file: self.origin.clone(), problem })?;
        let offsets = encoded.get_offsets().iter().map(|&(start, end)| start..end).collect();
        Ok(Encoding { ids: encoded.get_ids().to_vec(), offsets, is_exact: false })
    }

    /// Decodes `ids`, special tokens included.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`].
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.decode_with(ids, false)
    }

    /// Decodes `ids` without special tokens.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`].
    pub fn decode_plain(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.decode_with(ids, true)
    }

    /// The text of each token in context. Of tokens that form a character together, the last one gets it.
    pub fn pieces(&self, ids: &[u32]) -> Vec<String> {
        let mut stream = self.inner.decode_stream(false);
        ids.iter()
            .map(|id| match guarded(|| stream.step(*id)) {
                Ok(text) => text.unwrap_or_default(),
                Err(_) => self.token(*id).unwrap_or_default(),
            })
            .collect()
    }

    fn decode_with(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        guarded(|| self.inner.decode(ids, skip_special))
            .map_err(|problem| TokenizerError::Encode { file: self.origin.clone(), problem })
    }

    /// The beginning-of-sequence token, if one is declared.
    pub fn bos(&self) -> Option<&SpecialToken> {
        self.bos.as_ref()
    }

    /// The end-of-sequence token, if one is declared.
    pub fn eos(&self) -> Option<&SpecialToken> {
        self.eos.as_ref()
    }

    /// Ids that the tokenizer puts in front of every text by itself: a BOS, or none.
    pub fn prefix(&self) -> &[u32] {
        &self.prefix
    }

    /// Ids that the tokenizer puts behind every text by itself: mostly none.
    pub fn suffix(&self) -> &[u32] {
        &self.suffix
    }

    /// The text of `id` if it is a special token.
    pub fn special(&self, id: u32) -> Option<&str> {
        self.specials.get(&id).map(String::as_str)
    }

    /// The texts of all special tokens.
    pub fn special_texts(&self) -> Vec<String> {
        self.specials.values().cloned().collect()
    }

    /// The id of a token, by its text.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id, as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// One more than the largest id that text can become.
    pub fn vocabulary_size(&self) -> usize {
        self.inner.get_vocab(true).into_values().max().map_or(0, |largest| largest as usize + 1)
    }

    /// The content of tokenizer_config.json; `null` where the file is absent.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The variables of a chat template: the names `bos_token`, `eos_token` and the like with their texts.
    pub fn template_variables(&self) -> impl Iterator<Item = (String, String)> + '_ {
        self.variables.iter().map(|(name, token)| (name.clone(), token.clone()))
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Tokenizer")
            .field("origin", &self.origin)
            .field("bos", &self.bos)
            .field("eos", &self.eos)
            .finish_non_exhaustive()
    }
}

/// Runs code of the `tokenizers` crate. It reports most malformed files as errors, but panics on some; such a panic
/// becomes an error here.
fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the tokenizer library panicked; the file is damaged or not a tokenizer".to_owned()),
    }
}

/// The ids that a tokenizer puts before and behind a text by itself, found by tokenizing a text with and without them.
fn additions(tokenizer: &tokenizers::Tokenizer) -> Result<(Vec<u32>, Vec<u32>), String> {
    let ids = |text: &str, add| -> Result<Vec<u32>, String> {
        Ok(guarded(|| tokenizer.encode(text, add))?.get_ids().to_vec())
    };
    if ids("", true) == Ok(Vec::new()) {
        return Ok((Vec::new(), Vec::new()));
    }
    let (with, without) = (ids("a", true)?, ids("a", false)?);
    let core = without.len();
    match with.windows(core.max(1)).position(|window| window == without) {
        Some(at) => Ok((with[..at].to_vec(), with[at + core..].to_vec())),
        None => Err("the tokens that its post-processor adds depend on the text".to_owned()),
    }
}

/// The special tokens that a chat template can name. In the files each is a string or an object with `content`.
fn special_variables(config: &Value, map: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Object(token) => token.get("content").and_then(Value::as_str).map(str::to_owned),
        _ => None,
    };
    [map, config]
        .into_iter()
        .filter_map(Value::as_object)
        .flatten()
        .filter(|(name, _)| name.ends_with("_token"))
        .filter_map(|(name, value)| Some((name.clone(), text(value)?)))
        .collect()
}

fn optional_json(file: &Path) -> Result<Value, TokenizerError> {
    if !file.is_file() {
        return Ok(Value::Null);
    }
    let bytes = std::fs::read(file).map_err(|error| io(file, &error))?;
    let malformed = |problem: String| TokenizerError::Malformed { file: file.display().to_string(), problem };
    match serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))? {
        object @ Value::Object(_) => Ok(object),
        other => Err(malformed(format!("expected a JSON object, found {other}"))),
    }
}

fn io(file: &Path, error: &std::io::Error) -> TokenizerError {
    TokenizerError::Io { file: file.display().to_string(), problem: error.to_string() }
}

#[cfg(test)]
mod tests;
