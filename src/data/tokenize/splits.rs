//! How byte-level tokenizers part text into pieces, none of which a token crosses: the patterns of GPT-2, Llama 3 and
//! Qwen 2, followed by hand. A regex engine takes most of a tokenizer's time; these patterns look at most one character
//! ahead.
//!
//! ```text
//! GPT-2     's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//! Llama 3   (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
//! Qwen 2    the same with one \p{N} at a time
//! ```
//!
//! `tests` holds every pattern against the engine.

use std::sync::{LazyLock, OnceLock};

use regex::Regex;

/// Of a text, which parts no token crosses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    /// GPT-2's.
    Gpt2,
    /// Llama 3's or Qwen 2's, by how many digits stay together.
    Llama3 {
        /// At most.
        digits: usize,
    },
}

impl Pattern {
    /// The pattern that a `Split` of tokenizer.json spells.
    pub(super) fn of_regex(regex: &str) -> Option<Self> {
        let spelled = |digits: &str| {
            format!(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            )
        };
        [(r"\p{N}{1,3}", 3), (r"\p{N}", 1)]
            .into_iter()
            .find(|(spelling, _)| spelled(spelling) == regex)
            .map(|(_, digits)| Self::Llama3 { digits })
    }

    /// Where the piece of `text` ends that begins at byte `at`, which is before the end.
    pub(super) fn end(self, text: &str, at: usize) -> usize {
        match self {
            Self::Gpt2 => gpt2(text, at),
            Self::Llama3 { digits } => llama3(text, at, digits),
        }
    }
}

/// What the patterns tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    /// White space but for line ends.
    Space,
    LineEnd,
    Other,
}

impl Class {
    fn is_space(self) -> bool {
        matches!(self, Self::Space | Self::LineEnd)
    }
}

fn gpt2(text: &str, at: usize) -> usize {
    if let Some(length) = contraction(&text.as_bytes()[at..], false) {
        return at + length;
    }
    let (class, next) = class_at(text, at);
    if class.is_space() {
        let follows = class_of(text, next);
        if text.as_bytes()[at] == b' ' && follows.is_some_and(|class| !class.is_space()) {
            return run(text, next, |other| Some(other) == follows);
        }
        return white_space(text, at);
    }
    run(text, next, |other| other == class)
}

fn llama3(text: &str, at: usize, digits: usize) -> usize {
    if let Some(length) = contraction(&text.as_bytes()[at..], true) {
        return at + length;
    }
    let (class, next) = class_at(text, at);
    let is_letter = |class| class == Class::Letter;
    let follows = class_of(text, next);
    match class {
        Class::Letter => run(text, next, is_letter),
        Class::Space | Class::Other if follows == Some(Class::Letter) => run(text, next, is_letter),
        Class::Number => {
            let mut end = next;
            for _ in 1..digits {
                match class_of(text, end) {
                    Some(Class::Number) => end = class_at(text, end).1,
                    _ => break,
                }
            }
            end
        }
        Class::Other => others(text, next),
        Class::Space if text.as_bytes()[at] == b' ' && follows == Some(Class::Other) => others(text, next),
        Class::Space | Class::LineEnd => {
            let end = run(text, next, Class::is_space);
            match text[at..end].rfind(['\r', '\n']) {
                Some(last) => at + last + 1,
                None => white_space(text, at),
            }
        }
    }
}

/// `[^\s\p{L}\p{N}]*[\r\n]*` from `at` on.
fn others(text: &str, at: usize) -> usize {
    let end = run(text, at, |class| class == Class::Other);
    run(text, end, |class| class == Class::LineEnd)
}

/// `\s+(?!\S)|\s+` at a white space: all of it, but for the last character before something else.
fn white_space(text: &str, at: usize) -> usize {
    let end = run(text, at, Class::is_space);
    let last = text[at..end].chars().next_back().map_or(0, char::len_utf8);
    if end == text.len() || at + last == end { end } else { end - last }
}

/// The length of an English contraction at the beginning of `bytes`.
fn contraction(bytes: &[u8], any_case: bool) -> Option<usize> {
    let (b'\'', rest) = bytes.split_first()? else { return None };
    let lower = |at: usize| {
        let byte = *rest.get(at)?;
        Some(if any_case { byte.to_ascii_lowercase() } else { byte })
    };
    match (lower(0)?, lower(1)) {
        (b's' | b't' | b'm' | b'd', _) => Some(2),
        (b'r', Some(b'e')) | (b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(3),
        // The long s is an s in another case.
        (0xc5, Some(0xbf)) if any_case => Some(3),
        _ => None,
    }
}

/// Where a run of characters ends whose class `belongs`.
fn run(text: &str, mut at: usize, belongs: impl Fn(Class) -> bool) -> usize {
    while at < text.len() {
        let (class, next) = class_at(text, at);
        if !belongs(class) {
            break;
        }
        at = next;
    }
    at
}

/// The class of the character at a byte, if there is one.
fn class_of(text: &str, at: usize) -> Option<Class> {
    (at < text.len()).then(|| class_at(text, at).0)
}

/// The class of the character at a byte, and where the next one begins.
fn class_at(text: &str, at: usize) -> (Class, usize) {
    let byte = text.as_bytes()[at];
    if byte.is_ascii() {
        return (ASCII[byte as usize], at + 1);
    }
    let Some(character) = text[at..].chars().next() else { return (Class::Other, text.len()) };
    (class_of_character(character), at + character.len_utf8())
}

/// The classes of ASCII.
static ASCII: [Class; 128] = {
    let mut classes = [Class::Other; 128];
    let mut byte = 0;
    while byte < 128 {
        classes[byte] = match byte as u8 {
            b'a'..=b'z' | b'A'..=b'Z' => Class::Letter,
            b'0'..=b'9' => Class::Number,
            b'\r' | b'\n' => Class::LineEnd,
            b' ' | b'\t' | 0x0b | 0x0c => Class::Space,
            _ => Class::Other,
        };
        byte += 1;
    }
    classes
};

/// Characters of one page of the table below.
const PAGE: usize = 256;

fn class_of_character(character: char) -> Class {
    /// Pages of classes, found when the first character of each is met.
    static PAGES: [OnceLock<Box<[Class; PAGE]>>; 0x11_0000 / PAGE] =
        [const { OnceLock::new() }; 0x11_0000 / PAGE];
    let code = character as usize;
    PAGES[code / PAGE].get_or_init(|| page(code / PAGE))[code % PAGE]
}

fn page(number: usize) -> Box<[Class; PAGE]> {
    /// A letter by its general category; `char::is_alphabetic` has marks and numerals too.
    static LETTER: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^\p{L}$").ok());
    let mut classes = Box::new([Class::Other; PAGE]);
    let mut encoded = [0; 4];
    for (code, class) in (number * PAGE..).zip(classes.iter_mut()) {
        let Some(character) = u32::try_from(code).ok().and_then(char::from_u32) else { continue };
        let text = character.encode_utf8(&mut encoded);
        *class = match character {
            _ if LETTER.as_ref().is_some_and(|letter| letter.is_match(text)) => Class::Letter,
            _ if character.is_numeric() => Class::Number,
            '\r' | '\n' => Class::LineEnd,
            _ if character.is_whitespace() => Class::Space,
            _ => Class::Other,
        };
    }
    classes
}
