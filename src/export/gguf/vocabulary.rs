//! A tokenizer in llama.cpp's terms: its kind, its tokens with their types, merges or scores, and its special tokens.
//!
//! | tokenizer.json | `tokenizer.ggml.model` | carries |
//! |---|---|---|
//! | byte-level BPE | `gpt2` | merges, and the name of the pre-tokenizer (`pre.rs`) |
//! | BPE on characters with byte fallback, converted from SentencePiece | `llama` | a score for each token |
//! | the same, where the architecture says so | `gemma4` | merges |
//!
//! The `llama` kind has no merges: it merges the pair whose token has the highest score. That gives the same tokens
//! only if every split of a token into two tokens is a merge and the merges of one token are adjacent, which is
//! checked. A tokenizer without an equivalent is an error.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use serde_json::Value as Json;

use super::super::Error;
use super::super::folder::{of_text, token_ids};
use super::container::{Keys, Value};
use super::pre;
use crate::assets::json::read_limited;
use crate::data::tokenize::Tokenizer;

/// Largest tokenizer.json read: 256 thousand tokens take about 35 MiB.
const LIMIT: u64 = 256 << 20;

/// The types of tokens (`enum llama_token_type`).
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// SentencePiece's symbol for a space.
const SPACE: &str = "\u{2581}";

/// A tokenizer in llama.cpp's terms.
#[derive(Debug)]
pub struct Vocabulary {
    /// Keys for kind, tokens, types, and merges or scores.
    pub keys: Keys,
    /// Notes about differences in llama.cpp.
    pub notes: Vec<String>,
    /// The text of every token.
    pub tokens: Vec<String>,
}

/// The reader of one tokenizer.json.
struct Source<'a> {
    path: &'a Path,
    json: Json,
    /// Rows of the embedding table.
    size: usize,
    /// Whether llama.cpp takes merges beside bytes.
    merges_beside_bytes: bool,
}

/// Reads tokenizer.json for a model with `size` rows of embeddings; `merges_beside_bytes` as its architecture says.
///
/// # Errors
/// llama.cpp would produce other tokens, or there are more tokens than rows of embeddings.
pub fn read(path: &Path, size: usize, merges_beside_bytes: bool) -> Result<Vocabulary, Error> {
    let bytes = read_limited(path, LIMIT)?;
    let json = serde_json::from_slice(&bytes).map_err(|error| crate::assets::Error::Json {
        path: path.to_path_buf(),
        message: format!("not valid JSON: {error}"),
    })?;
    Source { path, json, size, merges_beside_bytes }.read()
}

impl Source<'_> {
    fn fail(&self, reason: impl Into<String>) -> Error {
        Error::NotInGguf {
            subject: format!("the tokenizer of {}", self.path.display()),
            reason: reason.into(),
        }
    }

    fn at(&self, pointer: &str) -> &Json {
        self.json.pointer(pointer).unwrap_or(&Json::Null)
    }

    fn flag(&self, pointer: &str) -> bool {
        self.at(pointer).as_bool().unwrap_or(false)
    }

    fn read(&self) -> Result<Vocabulary, Error> {
        match self.at("/model/type").as_str() {
            Some("BPE") => {}
            other => {
                return Err(self.fail(format!(
                    "its model is {}; supported are byte-level BPE, and BPE with byte fallback converted from \
                     SentencePiece",
                    other.unwrap_or("not named")
                )));
            }
        }
        for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
            if self.at(&format!("/model/{key}")).as_str().is_some_and(|text| !text.is_empty()) {
                return Err(self.fail(format!("llama.cpp's BPE has no `{key}`")));
            }
        }
        match self.flag("/model/byte_fallback") {
            true => self.read_sentencepiece(),
            false => self.read_byte_level(),
        }
    }

    fn read_byte_level(&self) -> Result<Vocabulary, Error> {
        let mut notes = Vec::new();
        match self.normalizers()?.as_slice() {
            [] => {}
            [Normalizer::Nfc] => notes.push(
                "llama.cpp does not normalize text to NFC as this tokenizer does: text with separate combining marks \
                 becomes other tokens"
                    .into(),
            ),
            _ => return Err(self.fail("llama.cpp's byte-level BPE does not support this `normalizer`")),
        }
        let pre = pre::recognise(self.at("/pre_tokenizer"), self.flag("/model/ignore_merges"))
            .map_err(|reason| self.fail(reason))?;
        notes.extend(pre.note.map(str::to_owned));
        let (tokens, types) = self.tokens(|_| NORMAL, &mut notes)?;
        let keys = vec![
            key("model", "gpt2".into()),
            key("pre", pre.name.into()),
            key("tokens", Value::Texts(tokens.clone())),
            key("token_type", Value::I32s(types)),
            key("merges", self.merge_lines()?),
        ];
        Ok(Vocabulary { keys, notes, tokens })
    }

    fn read_sentencepiece(&self) -> Result<Vocabulary, Error> {
        let mut notes = Vec::new();
        let prepends = self.prepends_space(&mut notes)?;
        let unknown = self.at("/model/unk_token").as_str().map(str::to_owned);
        let bytes: HashSet<String> = (0..=255_u8).map(|byte| format!("<0x{byte:02X}>")).collect();
        let kind = |token: &str| match token {
            _ if bytes.contains(token) => BYTE,
            _ if unknown.as_deref() == Some(token) => UNKNOWN,
            _ => NORMAL,
        };
        let (tokens, types) = self.tokens(kind, &mut notes)?;
        if types.iter().filter(|kind| **kind == BYTE).count() != bytes.len() {
            return Err(
                self.fail("`byte_fallback` is set, but some tokens from `<0x00>` to `<0xFF>` are missing")
            );
        }
        let (model, scores) = match self.merges_beside_bytes {
            true => ("gemma4", vec![-1000.0; tokens.len()]),
            false => ("llama", self.scores(&tokens, &types)?),
        };
        let mut keys = vec![key("model", model.into())];
        match self.merges_beside_bytes {
            true => keys.push(key("merges", self.merge_lines()?)),
            false => keys.push(key("pre", "default".into())),
        }
        keys.extend([
            key("tokens", Value::Texts(tokens.clone())),
            key("scores", Value::F32s(scores)),
            key("token_type", Value::I32s(types)),
            key("add_space_prefix", Value::Bool(prepends)),
        ]);
        Ok(Vocabulary { keys, notes, tokens })
    }

    /// Whether a space is put before the text. Spaces must become `▁`, and nothing may split the text.
    fn prepends_space(&self, notes: &mut Vec<String>) -> Result<bool, Error> {
        let normalizers = self.normalizers()?;
        let pre = self.at("/pre_tokenizer");
        let space = |normalizer: &Normalizer| *normalizer == Normalizer::Spaces;
        match (normalizers.as_slice(), pre) {
            ([Normalizer::Prepend, spaces], Json::Null) if space(spaces) => Ok(true),
            ([spaces], Json::Null) if space(spaces) => Ok(false),
            // Gemma splits at spaces, of which none is left.
            ([spaces], Json::Object(_)) if space(spaces) && splits_at_spaces(pre) => Ok(false),
            ([], Json::Object(_)) => {
                let text = |name: &str| pre.get(name).and_then(Json::as_str);
                let splits = pre.get("split").and_then(Json::as_bool).unwrap_or(true);
                match (text("type"), text("replacement"), text("prepend_scheme"), splits) {
                    (Some("Metaspace"), Some(SPACE), Some("never"), false) => Ok(false),
                    (Some("Metaspace"), Some(SPACE), Some(scheme @ ("always" | "first")), false) => {
                        let only = if scheme == "first" { ", and none after special tokens" } else { "" };
                        notes.push(format!(
                            "this tokenizer adds no space before a text that starts with one{only}; llama.cpp does"
                        ));
                        Ok(true)
                    }
                    _ => Err(self.fail(format!("llama.cpp's SentencePiece does not support this `pre_tokenizer`: {pre}"))),
                }
            }
            _ => Err(self.fail(
                "its `normalizer` and `pre_tokenizer` are not those of a tokenizer converted from SentencePiece",
            )),
        }
    }

    /// The steps of the normalizer.
    fn normalizers(&self) -> Result<Vec<Normalizer>, Error> {
        let mut steps = Vec::new();
        let mut pending = vec![self.at("/normalizer")];
        while let Some(value) = pending.pop() {
            let text = |pointer: &str| value.pointer(pointer).and_then(Json::as_str);
            steps.push(match text("/type") {
                None if value.is_null() => continue,
                Some("Sequence") => {
                    pending.extend(
                        value.get("normalizers").and_then(Json::as_array).into_iter().flatten().rev(),
                    );
                    continue;
                }
                Some("NFC") => Normalizer::Nfc,
                Some("Prepend") if text("/prepend") == Some(SPACE) => Normalizer::Prepend,
                Some("Replace")
                    if (text("/pattern/String"), text("/content")) == (Some(" "), Some(SPACE)) =>
                {
                    Normalizer::Spaces
                }
                _ => return Err(self.fail(format!("llama.cpp does not support this normalizer: {value}"))),
            });
        }
        Ok(steps)
    }

    /// Text and type of every id up to the rows of the embedding table; ids without a token are unused. Added tokens
    /// beyond the table are left out, with a note: tokenizers of models with towers name those of images.
    fn tokens(
        &self,
        plain: impl Fn(&str) -> i32,
        notes: &mut Vec<String>,
    ) -> Result<(Vec<String>, Vec<i32>), Error> {
        let Some(vocabulary) = self.at("/model/vocab").as_object() else {
            return Err(self.fail("`model.vocab` is missing"));
        };
        let mut found: BTreeMap<usize, (String, i32)> = BTreeMap::new();
        for (token, id) in vocabulary {
            let Some(id) = id.as_u64().and_then(|id| usize::try_from(id).ok()) else {
                return Err(self.fail(format!("the id of token {token:?} is {id}, not a whole number")));
            };
            if let Some((other, _)) = found.insert(id, (token.clone(), plain(token))) {
                return Err(self.fail(format!("tokens {other:?} and {token:?} have the same id, {id}")));
            }
        }
        for added in self.at("/added_tokens").as_array().into_iter().flatten() {
            let id = added.get("id").and_then(Json::as_u64).and_then(|id| usize::try_from(id).ok());
            let (Some(id), Some(content)) = (id, added.get("content").and_then(Json::as_str)) else {
                return Err(self.fail(format!("an added token lacks `id` or `content`: {added}")));
            };
            if id >= self.size {
                notes.push(format!(
                    "the token {content:?} is left out: the model has no embedding for its id, {id}"
                ));
                continue;
            }
            let special = added.get("special").and_then(Json::as_bool).unwrap_or(false);
            let kind = match plain(content) {
                UNKNOWN => UNKNOWN,
                _ if special || looks_special(content) => CONTROL,
                _ => USER_DEFINED,
            };
            found.insert(id, (content.to_owned(), kind));
        }
        if let Some((id, (token, _))) = found.last_key_value()
            && *id >= self.size
        {
            return Err(self.fail(format!(
                "token {token:?} has the id {id}, but the model has {} rows of embeddings",
                self.size
            )));
        }
        let (mut tokens, mut types) = (Vec::with_capacity(self.size), Vec::with_capacity(self.size));
        let mut seen = HashSet::with_capacity(self.size);
        for id in 0..self.size {
            let (token, kind) = found.remove(&id).unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED));
            if !seen.insert(token.clone()) {
                return Err(self.fail(format!("token {token:?} occurs twice, again with the id {id}")));
            }
            tokens.push(token);
            types.push(kind);
        }
        Ok((tokens, types))
    }

    /// The merges as llama.cpp spells them.
    fn merge_lines(&self) -> Result<Value, Error> {
        Ok(Value::Texts(self.merges()?.into_iter().map(|(left, right)| format!("{left} {right}")).collect()))
    }

    /// The merges, best first: pairs, or texts with a space between.
    fn merges(&self) -> Result<Vec<(String, String)>, Error> {
        let Some(merges) = self.at("/model/merges").as_array() else {
            return Err(self.fail("the list `model.merges` is missing"));
        };
        merges
            .iter()
            .map(|merge| {
                let pair = match merge {
                    Json::String(text) => text.split_once(' '),
                    Json::Array(pair) => match pair.as_slice() {
                        [Json::String(left), Json::String(right)] => Some((left.as_str(), right.as_str())),
                        _ => None,
                    },
                    _ => None,
                };
                match pair {
                    Some((left, right)) if !left.contains(' ') && !right.contains(' ') => {
                        Ok((left.to_owned(), right.to_owned()))
                    }
                    _ => {
                        Err(self
                            .fail(format!("`model.merges` contains {merge}, which is not a pair of tokens")))
                    }
                }
            })
            .collect()
    }

    /// A score for each token, so that the best pair is the one whose merge comes first.
    fn scores(&self, tokens: &[String], types: &[i32]) -> Result<Vec<f32>, Error> {
        let merges = self.merges()?;
        // For every token that is merged: its place among those, in the order of their first merges.
        let mut places: HashMap<String, usize> = HashMap::new();
        let mut last = None;
        for (left, right) in &merges {
            let token = format!("{left}{right}");
            let count = places.len();
            let place = *places.entry(token.clone()).or_insert(count);
            if place != count && last != Some(place) {
                return Err(self.fail(format!(
                    "the merges that make {token:?} are not adjacent, so no score is equivalent"
                )));
            }
            last = Some(place);
        }
        let pairs: HashSet<(&str, &str)> =
            merges.iter().map(|(left, right)| (left.as_str(), right.as_str())).collect();
        let mergeable: HashSet<&str> = tokens
            .iter()
            .zip(types)
            .filter(|(_, kind)| **kind == NORMAL)
            .map(|(token, _)| token.as_str())
            .collect();
        for token in &mergeable {
            for (at, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(at);
                let both = mergeable.contains(left) && mergeable.contains(right);
                if both && !pairs.contains(&(left, right)) {
                    return Err(self.fail(format!(
                        "{left:?} and {right:?} make the token {token:?}, but there is no such merge: the tokenizer was \
                         not converted from SentencePiece"
                    )));
                }
            }
        }
        let mut rest = places.len();
        let score = |(token, kind): (&String, &i32)| match (*kind, places.get(token)) {
            (NORMAL, Some(place)) => -(*place as f32),
            (NORMAL, None) => {
                // No merge makes it, so its score is never used.
                rest += 1;
                -((rest - 1) as f32)
            }
            (BYTE | UNKNOWN, _) => 0.0,
            _ => -1000.0,
        };
        Ok(tokens.iter().zip(types).map(score).collect())
    }
}

/// A step of a normalizer that llama.cpp performs too, or does not need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Normalizer {
    Nfc,
    Prepend,
    Spaces,
}

/// Whether a pre-tokenizer cuts behind every space and does nothing else.
fn splits_at_spaces(pre: &Json) -> bool {
    let text = |pointer: &str| pre.pointer(pointer).and_then(Json::as_str);
    (text("/type"), text("/pattern/String"), text("/behavior"))
        == (Some("Split"), Some(" "), Some("MergedWithPrevious"))
        && pre.get("invert").and_then(Json::as_bool) == Some(false)
}

/// Added tokens that are treated as special without being declared so, as in llama.cpp's converter.
fn looks_special(token: &str) -> bool {
    let between = |open: &str, close: &str| token.starts_with(open) && token.ends_with(close);
    token == "<pad>" || token == "<mask>" || between("<|", "|>") || between("<｜", "｜>")
}

fn key(name: &str, value: Value) -> (String, Value) {
    (format!("tokenizer.ggml.{name}"), value)
}

/// Keys for the special tokens, for tokens added around a text, and for the template.
///
/// `ends` are the tokens that end an answer; `config` is config.json, which provides BOS, EOS and padding ids if the
/// tokenizer names none.
///
/// # Errors
/// The tokenizer adds other tokens than a BOS before or an EOS after a text.
pub fn special(
    tokenizer: &Tokenizer,
    template: Option<&str>,
    ends: &[u32],
    config: &Json,
    size: usize,
) -> Result<Keys, Error> {
    let mut keys = Keys::new();
    let variables: BTreeMap<String, String> = tokenizer.template_variables().collect();
    let named = |name: &str| variables.get(name).and_then(|token| tokenizer.id(token));
    let configured = |name: &str| token_ids(of_text(config, name)).first().copied();
    let inside = |id: &u32| (*id as usize) < size;
    let bos = tokenizer.bos().map(|token| token.id);
    let eos = tokenizer.eos().map(|token| token.id).or_else(|| configured("eos_token_id")).filter(inside);
    let all = [
        ("bos_token_id", bos.or_else(|| configured("bos_token_id")).filter(inside)),
        ("eos_token_id", eos),
        // llama.cpp stops at no more than two tokens that it does not recognise by their text.
        ("eot_token_id", ends.iter().copied().find(|end| Some(*end) != eos).filter(inside)),
        ("unknown_token_id", named("unk_token")),
        ("padding_token_id", named("pad_token").or_else(|| configured("pad_token_id")).filter(inside)),
    ];
    keys.extend(all.into_iter().filter_map(|(name, id)| Some(key(name, Value::U32(id?)))));
    let added = |ids: &[u32], token: Option<u32>, place: &str| match ids {
        [] => Ok(false),
        [only] if Some(*only) == token => Ok(true),
        _ => Err(Error::NotInGguf {
            subject: "the tokenizer".into(),
            reason: format!(
                "it adds the tokens {ids:?} {place} every text; llama.cpp can add a BOS before and an EOS after, or nothing"
            ),
        }),
    };
    keys.push(key("add_bos_token", Value::Bool(added(tokenizer.prefix(), bos, "before")?)));
    keys.push(key("add_eos_token", Value::Bool(added(tokenizer.suffix(), eos, "after")?)));
    if let Some(template) = template {
        keys.push(("tokenizer.chat_template".into(), template.into()));
    }
    Ok(keys)
}
