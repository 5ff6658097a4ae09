//! The name of a pre-tokenizer in llama.cpp (`tokenizer.ggml.pre`), recognised from the steps in tokenizer.json.
//!
//! llama.cpp has the splitting rules built in and looks them up by name; a wrong name silently gives other tokens. So a
//! tokenizer is recognised only if its steps equal those of a known one, expression by expression, and its
//! `ignore_merges` equals llama.cpp's for that name. `tests/golden/gguf_tokens.py` compares the tokens of both for every
//! entry; a note names known differences of llama.cpp's own rule.

use serde_json::Value;

/// One step of a pre-tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Split at an expression, keeping matches as pieces.
    Split(String),
    /// Split off every digit.
    Digits,
    /// Map bytes to characters.
    Bytes {
        /// Whether GPT-2's expression splits first.
        splits: bool,
    },
    /// Anything else, in words.
    Other(String),
}

/// A pre-tokenizer of llama.cpp.
struct Known {
    name: &'static str,
    steps: &'static [KnownStep],
    ignores_merges: bool,
    /// llama.cpp's expression ignores the case of letters beyond ASCII.
    ascii_case: bool,
}

/// A recognised pre-tokenizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Recognised {
    /// Its name in llama.cpp.
    pub(super) name: &'static str,
    /// A known difference of llama.cpp's rule.
    pub(super) note: Option<&'static str>,
}

enum KnownStep {
    Split(&'static str),
    Digits,
    Bytes { splits: bool },
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT_4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK_V3_WORDS: &str = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+";

/// Maps bytes without splitting again.
const BYTES: KnownStep = KnownStep::Bytes { splits: false };

const KNOWN: [Known; 9] = [
    Known {
        name: "gpt-2",
        steps: &[KnownStep::Bytes { splits: true }],
        ignores_merges: false,
        ascii_case: false,
    },
    Known {
        name: "smollm",
        steps: &[KnownStep::Digits, KnownStep::Bytes { splits: true }],
        ignores_merges: false,
        ascii_case: false,
    },
    Known {
        name: "llama-bpe",
        steps: &[KnownStep::Split(LLAMA3), BYTES],
        ignores_merges: true,
        ascii_case: false,
    },
    Known {
        name: "smaug-bpe",
        steps: &[KnownStep::Split(LLAMA3), BYTES],
        ignores_merges: false,
        ascii_case: false,
    },
    Known {
        name: "qwen2",
        steps: &[KnownStep::Split(QWEN2), BYTES],
        ignores_merges: false,
        ascii_case: false,
    },
    Known {
        name: "qwen35",
        steps: &[KnownStep::Split(QWEN35), BYTES],
        ignores_merges: false,
        ascii_case: false,
    },
    Known {
        name: "tekken",
        steps: &[KnownStep::Split(TEKKEN), BYTES],
        ignores_merges: true,
        ascii_case: true,
    },
    Known {
        name: "gpt-4o",
        steps: &[KnownStep::Split(GPT_4O), BYTES],
        ignores_merges: false,
        ascii_case: true,
    },
    Known {
        name: "deepseek-v3",
        steps: &[
            KnownStep::Split(r"\p{N}{1,3}"),
            KnownStep::Split("[一-龥\u{3040}-ゟ゠-ヿ]+"),
            KnownStep::Split(DEEPSEEK_V3_WORDS),
            BYTES,
        ],
        ignores_merges: false,
        ascii_case: false,
    },
];

/// The name of a pre-tokenizer.
///
/// # Errors
/// It is not recognised: its steps, and the known names.
pub(super) fn recognise(pre_tokenizer: &Value, ignores_merges: bool) -> Result<Recognised, String> {
    let mut steps = Vec::new();
    flatten(pre_tokenizer, &mut steps);
    let same = |known: &&Known| {
        known.ignores_merges == ignores_merges
            && known.steps.len() == steps.len()
            && known.steps.iter().zip(&steps).all(|(known, step)| known.is(step))
    };
    match KNOWN.iter().find(same) {
        Some(known) => Ok(Recognised {
            name: known.name,
            note: known.ascii_case.then_some(
                "llama.cpp's rule for this tokenizer ignores the case of letters beyond ASCII: words with such letters \
                 may become other tokens",
            ),
        }),
        None => {
            let steps: Vec<String> = steps.iter().map(Step::to_string).collect();
            let names: Vec<&str> = KNOWN.iter().map(|known| known.name).collect();
            Err(format!(
                "its `pre_tokenizer` ({}{}) matches no known pre-tokenizer of llama.cpp ({})",
                if steps.is_empty() { "nothing".to_owned() } else { steps.join(", then ") },
                if ignores_merges { "; `ignore_merges`" } else { "" },
                names.join(", ")
            ))
        }
    }
}

impl KnownStep {
    fn is(&self, step: &Step) -> bool {
        match (self, step) {
            (Self::Split(known), Step::Split(expression)) => spelled(known) == spelled(expression),
            (Self::Digits, Step::Digits) => true,
            (Self::Bytes { splits }, Step::Bytes { splits: own }) => splits == own,
            _ => false,
        }
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Split(expression) => write!(formatter, "Split at {expression:?}"),
            Self::Digits => write!(formatter, "Digits one by one"),
            Self::Bytes { splits: true } => write!(formatter, "ByteLevel with its own expression"),
            Self::Bytes { splits: false } => write!(formatter, "ByteLevel"),
            Self::Other(text) => formatter.write_str(text),
        }
    }
}

/// An expression with line ends written as escapes, to compare files with and without escapes.
fn spelled(expression: &str) -> String {
    expression.replace('\r', r"\r").replace('\n', r"\n")
}

/// The steps in order, nested sequences flattened.
fn flatten(value: &Value, steps: &mut Vec<Step>) {
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    let flag = |key: &str, default: bool| value.get(key).and_then(Value::as_bool).unwrap_or(default);
    let other = || {
        let json = value.to_string();
        let end = json.char_indices().nth(160).map_or(json.len(), |(at, _)| at);
        Step::Other(json[..end].to_owned())
    };
    let step = match text("type") {
        None if value.is_null() => return,
        Some("Sequence") => {
            for inner in value.get("pretokenizers").and_then(Value::as_array).into_iter().flatten() {
                flatten(inner, steps);
            }
            return;
        }
        Some("Split") if text("behavior") == Some("Isolated") && !flag("invert", false) => {
            match value.pointer("/pattern/Regex").and_then(Value::as_str) {
                Some(expression) => Step::Split(expression.to_owned()),
                None => other(),
            }
        }
        Some("Digits") if flag("individual_digits", false) => Step::Digits,
        Some("ByteLevel") if !flag("add_prefix_space", true) => {
            Step::Bytes { splits: flag("use_regex", true) }
        }
        _ => other(),
    };
    steps.push(step);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn name(value: &Value, ignores_merges: bool) -> Result<&'static str, String> {
        recognise(value, ignores_merges).map(|known| known.name)
    }

    fn split(expression: &str) -> Value {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}]})
    }

    #[test]
    fn known_ones_are_recognised_by_what_they_do() {
        assert_eq!(name(&split(LLAMA3), true), Ok("llama-bpe"));
        assert_eq!(name(&split(LLAMA3), false), Ok("smaug-bpe"));
        assert_eq!(name(&split(QWEN2), false), Ok("qwen2"));
        assert_eq!(name(&json!({"type": "ByteLevel", "add_prefix_space": false}), false), Ok("gpt-2"));
        let digits = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true}]});
        assert_eq!(name(&digits, false), Ok("smollm"));
    }

    #[test]
    fn nothing_is_guessed() {
        for (value, ignores, says) in [
            (split(QWEN2), true, "ignore_merges"),
            (split(r"\p{N}"), false, r"\\p{N}"),
            (json!({"type": "ByteLevel", "add_prefix_space": true}), false, "add_prefix_space"),
            (json!({"type": "Whitespace"}), false, "Whitespace"),
            (Value::Null, false, "nothing"),
        ] {
            let error = name(&value, ignores).unwrap_err();
            assert!(error.contains(says) && error.contains("llama-bpe"), "{error}");
        }
    }
}
