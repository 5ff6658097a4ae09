//! JSON read as Python's `json` reads it: integers of any length, `NaN`, `Infinity` and `-Infinity`. `serde_json` has no
//! place for such numbers, so each becomes an object with the one key [`NUMBER`] that holds its spelling.

use memchr::memchr2;
use serde_json::{Map, Value as Json, json};

/// The key of an object that is a number. No JSON text of a dataset has it by accident.
const NUMBER: &str = "\u{0}number";

/// # Errors
/// The text is not JSON.
pub(crate) fn from_slice(text: &[u8]) -> serde_json::Result<Json> {
    match with_spelled_numbers(text) {
        Some(text) => serde_json::from_slice(&text),
        None => serde_json::from_slice(text),
    }
}

/// The spelling of a number that `serde_json` cannot hold, if `object` is one.
pub(crate) fn spelled_number(object: &Map<String, Json>) -> Option<&str> {
    object.get(NUMBER).filter(|_| object.len() == 1).and_then(Json::as_str)
}

/// A number that `serde_json` cannot hold.
pub(crate) fn number(spelling: &str) -> Json {
    json!({ NUMBER: spelling })
}

/// A float, which may be infinite or NaN.
pub(crate) fn float(value: f64) -> Json {
    serde_json::Number::from_f64(value).map_or_else(|| number(python_float(value)), Json::Number)
}

/// Python's spelling of a float that is not finite, in JSON.
pub(crate) fn python_float(value: f64) -> &'static str {
    if value.is_nan() {
        "NaN"
    } else if value > 0.0 {
        "Infinity"
    } else {
        "-Infinity"
    }
}

/// The text with an object in place of each number that `serde_json` would refuse or change; `None` if there is none.
fn with_spelled_numbers(text: &[u8]) -> Option<Vec<u8>> {
    let mut rewritten = Vec::new();
    let (mut at, mut copied) = (0, 0);
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => at = behind_string(text, at + 1),
            b'-' | b'0'..=b'9' | b'N' | b'I' => {
                let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
                let length = text[at..].iter().position(|byte| !is_part(byte)).unwrap_or(text.len() - at);
                if let Some(replacement) = replacement(&text[at..at + length]) {
                    rewritten.extend_from_slice(&text[copied..at]);
                    rewritten.extend_from_slice(replacement.as_bytes());
                    copied = at + length;
                }
                at += length;
            }
            _ => at += 1,
        }
    }
    if copied == 0 {
        return None;
    }
    rewritten.extend_from_slice(&text[copied..]);
    Some(rewritten)
}

fn behind_string(text: &[u8], mut at: usize) -> usize {
    while let Some(found) = text.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        at += found;
        if text[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    text.len()
}

/// The JSON that replaces a number which `serde_json` would refuse or change.
fn replacement(token: &[u8]) -> Option<String> {
    const LONGEST_EXACT: usize = 18;
    let digits = token.strip_prefix(b"-").unwrap_or(token);
    let spelling = str::from_utf8(token).ok()?;
    if matches!(spelling, "NaN" | "Infinity" | "-Infinity") {
        return Some(number(spelling).to_string());
    }
    if spelling == "-0" {
        return Some("0".to_owned());
    }
    if digits.iter().all(u8::is_ascii_digit) {
        let is_long = digits.len() > LONGEST_EXACT && digits[0] != b'0';
        return is_long.then(|| number(spelling).to_string());
    }
    // Python reads a float that is too large as infinity.
    let value: f64 = spelling.parse().ok().filter(|_| digits.first().is_some_and(u8::is_ascii_digit))?;
    value.is_infinite().then(|| number(python_float(value)).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_serde_json_cannot_hold_keep_their_spelling() {
        let read = |text: &str| from_slice(text.as_bytes()).unwrap();
        let long = "12345678901234567890123";
        assert_eq!(
            read(&format!(r#"{{"a": [-{long}, 1], "b": "{long} NaN \" -0"}}"#)),
            json!({"a": [number(&format!("-{long}")), 1], "b": format!("{long} NaN \" -0")})
        );
        assert_eq!(read("[NaN, Infinity, -Infinity, 1e999, -1e999, -0, -0.0, 1.5e3]").to_string(), {
            let [nan, infinite, less] = ["NaN", "Infinity", "-Infinity"].map(number);
            json!([nan, infinite, less, infinite, less, 0, -0.0, 1500.0]).to_string()
        });
        assert_eq!(read("123456789012345678"), json!(123_456_789_012_345_678_u64));
        assert!(
            from_slice(b"[01]").is_err() && from_slice(b"[Not]").is_err() && from_slice(b"[\"1]").is_err()
        );
    }
}
