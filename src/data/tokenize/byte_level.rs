//! Text to ids for byte-level BPE tokenizers, which most models have, without the general machinery of the `tokenizers`
//! crate: text is parted by hand (`splits`), and a piece that was seen before is looked up. The crate's own model merges
//! the others, so that the ids are its ids.
//!
//! [`ByteLevel::of`] takes a tokenizer only where every part of it is one of those that are known here; all others go
//! through the crate.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};
use tokenizers::{Model, ModelWrapper};

use super::Encoding;
use super::splits::Pattern;

/// Longest piece that is kept, in bytes.
const LONGEST: usize = 48;
/// Pieces that are kept for one thread. When there are as many, all are forgotten.
const KEPT: usize = 1 << 16;

/// The parts of a tokenizer, as far as they are known here.
pub(super) struct ByteLevel {
    pattern: Pattern,
    /// Digits are parted from one another and from all else before the pattern is applied.
    parts_digits: bool,
    /// The tokenizer composes characters first (NFC).
    composes: bool,
    /// Tokens that stand for themselves in a text: those looked for first, and those looked for between them.
    added: [Added; 2],
    /// Each byte as the model spells it.
    spelled: [char; 256],
    /// Every byte has a token, and the decoder reads the spelling back.
    spells_all: bool,
    /// One for each thread that is encoding.
    caches: Mutex<Vec<Cache>>,
}

/// Texts that are tokens wherever they stand.
#[derive(Default)]
struct Added {
    /// By first byte, the longest first.
    by_first: BTreeMap<u8, Vec<(String, u32)>>,
    is_first: Vec<bool>,
}

/// A token of a piece and its bytes there.
#[derive(Clone, Copy)]
struct Part {
    id: u32,
    start: u32,
    end: u32,
}

type Cache = HashMap<Box<[u8]>, Box<[Part]>, BuildHasherDefault<PieceHasher>>;

impl ByteLevel {
    /// Of a tokenizer whose parts are all known here.
    pub(super) fn of(tokenizer: &tokenizers::Tokenizer) -> Option<Self> {
        let ModelWrapper::BPE(model) = tokenizer.get_model() else { return None };
        let absent = |text: &Option<String>| text.as_deref().unwrap_or_default().is_empty();
        let merges_bytes = absent(&model.continuing_subword_prefix)
            && absent(&model.end_of_word_suffix)
            && model.dropout.is_none()
            && !model.byte_fallback;
        let (pattern, parts_digits) =
            pre_tokenizer(&serde_json::to_value(tokenizer.get_pre_tokenizer()).ok()?)?;
        let normalizer = serde_json::to_value(tokenizer.get_normalizer()).ok()?;
        let composes = normalizer == json!({"type": "NFC"});
        if !merges_bytes || !(composes || normalizer.is_null()) {
            return None;
        }
        let mut added = [Added::default(), Added::default()];
        for (id, token) in tokenizer.get_added_tokens_decoder() {
            if token.single_word || token.lstrip || token.rstrip || token.content.is_empty() {
                return None;
            }
            let first = token.content.as_bytes()[0];
            let of_kind = &mut added[usize::from(token.normalized)];
            of_kind.by_first.entry(first).or_default().push((token.content, id));
        }
        for added in &mut added {
            added.is_first = (0..=u8::MAX).map(|byte| added.by_first.contains_key(&byte)).collect();
            added
                .by_first
                .values_mut()
                .for_each(|tokens| tokens.sort_by_key(|(text, _)| usize::MAX - text.len()));
        }
        let spelled = spelled();
        let decoder = serde_json::to_value(tokenizer.get_decoder()).ok()?;
        let spells_all = decoder.get("type") == Some(&json!("ByteLevel"))
            && spelled.iter().all(|spelling| tokenizer.token_to_id(&spelling.to_string()).is_some());
        let caches = Mutex::default();
        Some(Self { pattern, parts_digits, composes, added, spelled, spells_all, caches })
    }

    /// As [`Tokenizer::encode`](super::Tokenizer::encode), with the model of the tokenizer that this was made of. `None`:
    /// the tokenizer's normalizer may change this text.
    pub(super) fn encode(&self, model: &ModelWrapper, text: &str) -> Option<tokenizers::Result<Encoding>> {
        if self.composes && !is_composed(text) {
            return None;
        }
        let mut cache = self.caches().pop().unwrap_or_default();
        let mut encoding = Encoding {
            ids: Vec::with_capacity(text.len() / 3),
            offsets: Vec::with_capacity(text.len() / 3),
            is_exact: self.spells_all,
        };
        let result = self.added_of(0, model, text, 0..text.len(), &mut cache, &mut encoding);
        self.caches().push(cache);
        Some(result.map(|()| encoding))
    }

    fn caches(&self) -> std::sync::MutexGuard<'_, Vec<Cache>> {
        self.caches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the ids of a part of a text, in which the added tokens from `kind` on are looked for.
    fn added_of(
        &self,
        kind: usize,
        model: &ModelWrapper,
        text: &str,
        range: std::ops::Range<usize>,
        cache: &mut Cache,
        encoding: &mut Encoding,
    ) -> tokenizers::Result<()> {
        let Some(added) = self.added.get(kind) else {
            return self.pieces(model, text, range, cache, encoding);
        };
        let mut from = range.start;
        while let Some((at, length, id)) = added.find(&text[..range.end], from) {
            if from < at {
                self.added_of(kind + 1, model, text, from..at, cache, encoding)?;
            }
            encoding.ids.push(id);
            encoding.offsets.push(at..at + length);
            from = at + length;
        }
        if from < range.end {
            self.added_of(kind + 1, model, text, from..range.end, cache, encoding)?;
        }
        Ok(())
    }

    fn pieces(
        &self,
        model: &ModelWrapper,
        text: &str,
        range: std::ops::Range<usize>,
        cache: &mut Cache,
        encoding: &mut Encoding,
    ) -> tokenizers::Result<()> {
        let mut at = range.start;
        while at < range.end {
            // What is beyond the end of a part is not seen from within.
            let end = if self.parts_digits { digits_end(text, at, range.end) } else { range.end };
            let part = &text[..end];
            while at < end {
                let next = self.pattern.end(part, at);
                self.piece(model, text, at..next, cache, encoding)?;
                at = next;
            }
        }
        Ok(())
    }

    fn piece(
        &self,
        model: &ModelWrapper,
        text: &str,
        range: std::ops::Range<usize>,
        cache: &mut Cache,
        encoding: &mut Encoding,
    ) -> tokenizers::Result<()> {
        let bytes = &text.as_bytes()[range.clone()];
        if bytes.len() > LONGEST {
            self.merged(model, bytes)?.iter().for_each(|part| encoding.add(text, range.start, *part));
            return Ok(());
        }
        if let Some(parts) = cache.get(bytes) {
            parts.iter().for_each(|part| encoding.add(text, range.start, *part));
            return Ok(());
        }
        let parts = self.merged(model, bytes)?;
        parts.iter().for_each(|part| encoding.add(text, range.start, *part));
        if cache.len() >= KEPT {
            cache.clear();
        }
        cache.insert(bytes.into(), parts.into());
        Ok(())
    }

    /// The tokens of a piece.
    fn merged(&self, model: &ModelWrapper, bytes: &[u8]) -> tokenizers::Result<Vec<Part>> {
        let mut text = String::with_capacity(2 * bytes.len());
        // The byte that each byte of the text spells.
        let mut places = Vec::with_capacity(2 * bytes.len() + 1);
        for (place, byte) in (0_u32..).zip(bytes) {
            text.push(self.spelled[*byte as usize]);
            places.resize(text.len(), place);
        }
        places.push(bytes.len() as u32);
        let tokens = model.tokenize(&text)?.into_iter();
        let part = |token: tokenizers::Token| {
            let (start, end) = token.offsets;
            Part { id: token.id, start: places[start], end: places[end] }
        };
        Ok(tokens.map(part).collect())
    }
}

impl Encoding {
    /// Adds a token of the piece that begins at `start`; one within a character has the bytes of all of it.
    fn add(&mut self, text: &str, start: usize, part: Part) {
        let (mut from, mut to) = (start + part.start as usize, start + part.end as usize);
        while !text.is_char_boundary(from) {
            from -= 1;
        }
        while !text.is_char_boundary(to) {
            to += 1;
        }
        self.ids.push(part.id);
        self.offsets.push(from..to);
    }
}

impl Added {
    /// The first of the tokens in `text` from a byte on, and of those that begin there the longest: where, its length and
    /// its id.
    fn find(&self, text: &str, from: usize) -> Option<(usize, usize, u32)> {
        let bytes = text.as_bytes();
        let mut at = from;
        loop {
            at += match self.by_first.len() {
                0 => return None,
                1 => memchr::memchr(*self.by_first.keys().next()?, bytes.get(at..)?)?,
                _ => bytes.get(at..)?.iter().position(|byte| self.is_first[*byte as usize])?,
            };
            let here = self.by_first.get(&bytes[at])?;
            if let Some((token, id)) =
                here.iter().find(|(token, _)| bytes[at..].starts_with(token.as_bytes()))
            {
                return Some((at, token.len(), *id));
            }
            at += 1;
        }
    }
}

/// Whether a text is made of characters that NFC leaves as they are, next to whichever of them: those before the first
/// combining mark, dashes and quotation marks, Han, pictures.
fn is_composed(text: &str) -> bool {
    let is_stable = |character| matches!(character, '\0'..'\u{300}' | '‐'..='‧' | '\u{4e00}'..='\u{9fff}' | '\u{1f300}'..='\u{1faff}');
    text.is_ascii() || text.chars().all(is_stable)
}

/// Where the part that begins at `at` ends: behind one digit, or before the next.
fn digits_end(text: &str, at: usize, end: usize) -> usize {
    let mut characters = text[at..end].char_indices();
    match characters.next() {
        Some((_, first)) if first.is_numeric() => at + first.len_utf8(),
        _ => characters.find(|(_, character)| character.is_numeric()).map_or(end, |(next, _)| at + next),
    }
}

/// The pattern of a pre-tokenizer, and whether digits are parted before it.
fn pre_tokenizer(value: &Value) -> Option<(Pattern, bool)> {
    let kind = |value: &Value| value.get("type").and_then(Value::as_str).map(str::to_owned);
    let byte_level = |value: &Value, use_regex: bool| {
        kind(value).as_deref() == Some("ByteLevel")
            && value.get("add_prefix_space") == Some(&Value::Bool(false))
            && value.get("use_regex").and_then(Value::as_bool).unwrap_or(true) == use_regex
    };
    if byte_level(value, true) {
        return Some((Pattern::Gpt2, false));
    }
    if kind(value).as_deref() != Some("Sequence") {
        return None;
    }
    let [first, second] = value.get("pretokenizers")?.as_array()?.as_slice() else { return None };
    match kind(first)?.as_str() {
        "Digits"
            if first.get("individual_digits") == Some(&Value::Bool(true)) && byte_level(second, true) =>
        {
            Some((Pattern::Gpt2, true))
        }
        "Split" if byte_level(second, false) => {
            let is_plain = first.get("behavior") == Some(&json!("Isolated"))
                && first.get("invert").and_then(Value::as_bool) == Some(false);
            let regex = first.get("pattern")?.get("Regex")?.as_str()?;
            Pattern::of_regex(regex).filter(|_| is_plain).map(|pattern| (pattern, false))
        }
        _ => None,
    }
}

/// The character that stands for each byte in the vocabulary of a byte-level model: printable ones for themselves, the
/// others in turn from U+0100 on.
fn spelled() -> [char; 256] {
    let mut others = (0x100_u32..).filter_map(char::from_u32);
    std::array::from_fn(|byte| match byte as u8 {
        byte @ (b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) => char::from(byte),
        byte => others.next().unwrap_or(char::from(byte)),
    })
}

/// A hash for short texts: eight bytes at a time, mixed by a product.
#[derive(Default)]
struct PieceHasher(u64);

impl Hasher for PieceHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        self.0 = (product as u64) ^ (product >> 64) as u64;
    }

    fn write_usize(&mut self, length: usize) {
        self.write_u64(length as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests;
