//! Tokenizers that are not a tokenizer.json: byte-level BPE in vocab.json and merges.txt becomes one, as transformers
//! converts it; the others are recognised by their files, with the way to a tokenizer.json.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::{TokenizerError, io, optional_json};

/// How Qwen 2 splits text before BPE, from transformers' `Qwen2Tokenizer`.
const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A tokenizer.json made of the files in `folder`.
///
/// # Errors
/// There is no tokenizer that can be converted; a file is damaged.
pub(super) fn converted(folder: &Path, config: &Value) -> Result<Vec<u8>, TokenizerError> {
    let (vocabulary, merges) = (folder.join("vocab.json"), folder.join("merges.txt"));
    let class = config.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default();
    let split = match class.trim_end_matches("Fast") {
        "Qwen2Tokenizer" => Some(true),
        "GPT2Tokenizer" => Some(false),
        _ => None,
    };
    let Some(is_qwen2) = split.filter(|_| vocabulary.is_file() && merges.is_file()) else {
        return Err(missing(folder, class));
    };
    let text = fs::read_to_string(&merges).map_err(|error| io(&merges, &error))?;
    let merges: Vec<&str> =
        text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with("#version")).collect();
    let byte_level = |use_regex: bool| {
        let add_prefix_space = config.get("add_prefix_space").and_then(Value::as_bool) == Some(true);
        json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space && use_regex, "trim_offsets": false,
            "use_regex": use_regex})
    };
    let (normalizer, pre_tokenizer) = match is_qwen2 {
        true => {
            let split = json!({"type": "Split", "pattern": {"Regex": QWEN2_SPLIT}, "behavior": "Isolated",
                "invert": false});
            (json!({"type": "NFC"}), json!({"type": "Sequence", "pretokenizers": [split, byte_level(false)]}))
        }
        false => (Value::Null, byte_level(true)),
    };
    let model = json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
        "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false,
        "vocab": optional_json(&vocabulary)?, "merges": merges});
    let tokenizer = json!({"version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added_tokens(folder, config)?, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
        "post_processor": null, "decoder": byte_level(true), "model": model});
    Ok(tokenizer.to_string().into_bytes())
}

/// The tokens beside the vocabulary: of tokenizer_config.json, else of added_tokens.json; by id.
fn added_tokens(folder: &Path, config: &Value) -> Result<Vec<Value>, TokenizerError> {
    let flags = ["single_word", "lstrip", "rstrip", "normalized", "special"];
    let mut tokens = BTreeMap::new();
    let plain = |content: &str, is_special: bool| {
        json!({"content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": is_special})
    };
    if let Some(decoder) = config.get("added_tokens_decoder").and_then(Value::as_object) {
        for (id, token) in decoder {
            let (Ok(id), Some(content)) = (id.parse::<u32>(), token.get("content").and_then(Value::as_str))
            else {
                continue;
            };
            let mut entry = plain(content, false);
            for flag in flags {
                if let Some(value) = token.get(flag).filter(|value| value.is_boolean()) {
                    entry[flag] = value.clone();
                }
            }
            tokens.insert(id, entry);
        }
    } else {
        let file = optional_json(&folder.join("added_tokens.json"))?;
        let empty = Map::new();
        for (content, id) in file.as_object().unwrap_or(&empty) {
            if let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok()) {
                tokens.insert(id, plain(content, content.starts_with('<')));
            }
        }
    }
    let with_id = |(id, mut token): (u32, Value)| {
        token["id"] = id.into();
        token
    };
    Ok(tokens.into_iter().map(with_id).collect())
}

/// Names what lies in the folder instead.
fn missing(folder: &Path, class: &str) -> TokenizerError {
    let has = |name: &str| folder.join(name).is_file();
    let ends = |suffix: &str| {
        let mut entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.any(|entry| entry.file_name().to_string_lossy().ends_with(suffix))
    };
    let here = folder.display();
    let convert = format!(
        "transformers writes one: `python -c \"from transformers import AutoTokenizer as T; \
         T.from_pretrained('{here}').save_pretrained('{here}')\"`"
    );
    let (found, help) = if has("tekken.json") {
        let help =
            "take it from the Hugging Face version of the model, or from a model with the same tekken.json";
        (", only tekken.json, a tokenizer of Mistral's own kind", help.to_owned())
    } else if has("tokenizer.model") {
        match is_tiktoken(&folder.join("tokenizer.model")) {
            true => {
                let help =
                    "take it from the Hugging Face version of the model, whose files are beside `original/`";
                (", only a tokenizer.model of tiktoken's kind", help.to_owned())
            }
            false => (", only a tokenizer.model of SentencePiece's kind", convert),
        }
    } else if ends(".tiktoken") {
        let help = "it needs code that comes with the model; take tokenizer.json from a version of the model for \
                    transformers itself";
        (", only a vocabulary of tiktoken's kind", help.to_owned())
    } else if has("spiece.model") || ends(".spm") {
        (", only a vocabulary of SentencePiece's kind", convert)
    } else if has("vocab.json") && has("merges.txt") {
        let class = match class {
            "" => "tokenizer_config.json names no `tokenizer_class`",
            _ => "its `tokenizer_class` splits text in a way of its own",
        };
        (", only vocab.json and merges.txt", format!("{class}; {convert}"))
    } else if has("vocab.txt") {
        (", only vocab.txt, a vocabulary of WordPiece", convert)
    } else {
        ("", "take it from where the model comes from".to_owned())
    };
    TokenizerError::Missing { folder: here.to_string(), found, help }
}

/// Whether a file has lines of a token in base64 and its rank, as tiktoken writes them.
fn is_tiktoken(file: &Path) -> bool {
    use std::io::Read;
    let mut head = Vec::new();
    let read = fs::File::open(file).and_then(|file| file.take(256).read_to_end(&mut head));
    let first = String::from_utf8_lossy(&head);
    let line = first.lines().next().and_then(|line| line.split_once(' '));
    read.is_ok() && line.is_some_and(|(_, rank)| rank.parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokenize::Tokenizer;

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            fs::write(folder.path().join(name), bytes).unwrap();
        }
        folder
    }

    #[test]
    fn d8_tokenizers_of_other_kinds_are_named_with_the_way_out() {
        let sentencepiece: &[u8] = b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02";
        type Files<'a> = &'a [(&'a str, &'a [u8])];
        let cases: [(Files<'_>, &str, &str); 8] = [
            (&[("tokenizer.model", sentencepiece)], "SentencePiece", "save_pretrained"),
            (&[("tokenizer.model", b"IQ== 0\nIg== 1\n")], "tiktoken", "Hugging Face version"),
            (&[("tekken.json", b"{}"), ("tokenizer.model", b"")], "tekken.json", "Hugging Face version"),
            (&[("qwen.tiktoken", b"IQ== 0\n")], "tiktoken", "code that comes with the model"),
            (&[("spiece.model", sentencepiece)], "SentencePiece", "save_pretrained"),
            (&[("vocab.json", b"{}"), ("merges.txt", b"")], "vocab.json and merges.txt", "tokenizer_class"),
            (&[("vocab.txt", b"[UNK]\n")], "WordPiece", "save_pretrained"),
            (&[], "has no tokenizer.json;", "where the model comes from"),
        ];
        for (files, found, help) in cases {
            let error = Tokenizer::open(folder(files).path()).err().unwrap().to_string();
            assert!(error.contains(found) && error.contains(help), "{error}");
        }
    }

    #[test]
    fn d8_vocabulary_and_merges_are_read_as_transformers_reads_them() {
        let letters = "abcdefghijklmnopqrstuvwxyz0123456789'Ġ.";
        let mut vocabulary: Map<String, Value> =
            letters.chars().enumerate().map(|(id, letter)| (letter.to_string(), id.into())).collect();
        for (index, token) in ["he", "ll", "Ġhe", "12"].into_iter().enumerate() {
            vocabulary.insert(token.to_owned(), (letters.chars().count() + index).into());
        }
        let end = vocabulary.len();
        let merges = b"#version: 0.2\nh e\nl l\n\xc4\xa0 he\n1 2\n";
        let vocabulary = serde_json::to_vec(&vocabulary).unwrap();
        let ids = |class: &str, text: &str| {
            let config = json!({"tokenizer_class": class, "eos_token": "<|end|>",
                "added_tokens_decoder": {end.to_string(): {"content": "<|end|>", "special": true}}});
            let config = serde_json::to_vec(&config).unwrap();
            let folder = folder(&[
                ("vocab.json", &vocabulary),
                ("merges.txt", merges),
                ("tokenizer_config.json", &config),
            ]);
            let tokenizer = Tokenizer::open(folder.path()).unwrap();
            assert_eq!(tokenizer.eos().unwrap().id as usize, end);
            let ids = tokenizer.encode(text).unwrap().ids;
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
            ids
        };
        // GPT-2 keeps numbers together, Qwen 2 splits them into digits.
        assert_eq!(ids("GPT2Tokenizer", "he he12<|end|>"), [39, 41, 42, 43]);
        assert_eq!(ids("Qwen2TokenizerFast", "he he12<|end|>"), [39, 41, 27, 28, 43]);
    }
}
