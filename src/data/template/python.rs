//! What Jinja2 under transformers does by being Python: `json.dumps`, `str()` of lists and dictionaries,
//! `strftime`. Knows values, and nothing of templates, chats or tokens.

use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Error, ErrorKind};

use super::context::LongInteger;
use super::text::Text;
use crate::data::json;

/// The time that `strftime_now` returns: Friday, 26 July 2024, 12:30 (see `CLOCK`).
///
/// Training must give the same bytes on every day, so the clock stands still, on the day that the templates of
/// Llama 3.1 and 3.2 write by themselves where no clock is offered.
const YEAR: u32 = 2024;
const MONTH: u32 = 7;
const DAY: u32 = 26;
const DAY_OF_YEAR: u32 = 208;
const HOUR: u32 = 12;
const MINUTE: u32 = 30;

/// `strftime` for the fixed day. English names, as in Python's default locale.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    let mut text = Text::default();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character)?;
            continue;
        }
        let mut directive = characters.next();
        // glibc's `%-d`: the same number without padding.
        let padded = directive != Some('-');
        if !padded {
            directive = characters.next();
        }
        let number = |value: u32, width: usize| match padded {
            true => format!("{value:0width$}"),
            false => value.to_string(),
        };
        match directive {
            Some('d') => text.push_str(&number(DAY, 2))?,
            Some('e') => text.push_str(&DAY.to_string())?,
            Some('m') => text.push_str(&number(MONTH, 2))?,
            Some('b' | 'h') => text.push_str("Jul")?,
            Some('B') => text.push_str("July")?,
            Some('Y') => text.push_str(&YEAR.to_string())?,
            Some('y') => text.push_str(&number(YEAR % 100, 2))?,
            Some('a') => text.push_str("Fri")?,
            Some('A') => text.push_str("Friday")?,
            Some('w' | 'u') => text.push('5')?,
            Some('j') => text.push_str(&number(DAY_OF_YEAR, 3))?,
            Some('H') => text.push_str(&number(HOUR, 2))?,
            Some('I') => text.push_str(&number(HOUR, 2))?,
            Some('M') => text.push_str(&number(MINUTE, 2))?,
            Some('S') => text.push_str(&number(0, 2))?,
            Some('p') => text.push_str("PM")?,
            Some('f') => text.push_str("000000")?,
            Some('F') => text.push_str("2024-07-26")?,
            Some('T') => text.push_str("12:30:00")?,
            Some('z' | 'Z') => {}
            Some('%') => text.push('%')?,
            other => {
                let shown = other.map(String::from).unwrap_or_default();
                return Err(invalid(format!("strftime_now: `%{shown}` is not supported")));
            }
        }
    }
    Ok(text.finish())
}

/// The `tojson` filter as transformers defines it: `json.dumps(x, ensure_ascii=False, indent=…, separators=…,
/// sort_keys=…)`, without the HTML escapes of Jinja's own.
pub(super) fn tojson(value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let argument = |position: usize, name: &str| -> Result<Option<Value>, Error> {
        if let Some(value) = positional.get(position) {
            return Ok(Some(value.clone()));
        }
        if named.has(name) { named.get(name).map(Some) } else { Ok(None) }
    };
    let given = |value: Option<Value>| value.filter(|value| !value.is_none() && !value.is_undefined());
    let ensure_ascii = argument(0, "ensure_ascii")?.is_some_and(|value| value.is_true());
    let indent = match given(argument(1, "indent")?) {
        None => None,
        Some(value) => Some(match value.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(value)?.min(64)),
        }),
    };
    let separators = match given(argument(2, "separators")?) {
        Some(pair) => {
            let part = |index| {
                pair.get_item_by_index(index)
                    .ok()
                    .and_then(|part| part.as_str().map(str::to_owned))
                    .ok_or_else(|| invalid("tojson: separators must be two strings"))
            };
            (part(0)?, part(1)?)
        }
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let sort_keys = argument(3, "sort_keys")?.is_some_and(|value| value.is_true());
    named.assert_all_used()?;
    let style = JsonStyle { ensure_ascii, indent, separators, sort_keys };
    written_json(value, &style).map(Value::from)
}

/// `json.dumps(x, ensure_ascii=False)`.
pub(super) fn json_of(value: &Value) -> Result<String, Error> {
    let separators = (", ".to_owned(), ": ".to_owned());
    written_json(value, &JsonStyle { ensure_ascii: false, indent: None, separators, sort_keys: false })
}

fn written_json(value: &Value, style: &JsonStyle) -> Result<String, Error> {
    let mut text = Text::default();
    write_json(&mut text, value, style, 0)?;
    Ok(text.finish())
}

struct JsonStyle {
    ensure_ascii: bool,
    indent: Option<String>,
    separators: (String, String),
    sort_keys: bool,
}

impl JsonStyle {
    fn new_line(&self, text: &mut Text, depth: usize) -> Result<(), Error> {
        if let Some(indent) = &self.indent {
            text.push('\n')?;
            for _ in 0..depth {
                text.push_str(indent)?;
            }
        }
        Ok(())
    }
}

/// Deeper nesting than this is refused, so that a value cannot exhaust the stack.
const MAXIMUM_DEPTH: usize = 200;

fn write_json(text: &mut Text, value: &Value, style: &JsonStyle, depth: usize) -> Result<(), Error> {
    if depth > MAXIMUM_DEPTH {
        return Err(invalid("tojson: nested too deeply"));
    }
    match value.kind() {
        ValueKind::None => text.push_str("null")?,
        ValueKind::Bool => text.push_str(if value.is_true() { "true" } else { "false" })?,
        ValueKind::Number => text.push_str(&json_number(value))?,
        ValueKind::Plain if value.downcast_object_ref::<LongInteger>().is_some() => {
            text.push_str(&value.to_string())?;
        }
        ValueKind::String => json_string(text, value.as_str().unwrap_or_default(), style.ensure_ascii)?,
        ValueKind::Seq | ValueKind::Iterable => {
            text.push('[')?;
            let mut empty = true;
            for item in value.try_iter()? {
                if !empty {
                    text.push_str(&style.separators.0)?;
                }
                empty = false;
                style.new_line(text, depth + 1)?;
                write_json(text, &item, style, depth + 1)?;
            }
            if !empty {
                style.new_line(text, depth)?;
            }
            text.push(']')?;
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if style.sort_keys {
                keys.sort();
            }
            text.push('{')?;
            for (position, key) in keys.iter().enumerate() {
                if position > 0 {
                    text.push_str(&style.separators.0)?;
                }
                style.new_line(text, depth + 1)?;
                let name = match key.kind() {
                    ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
                    ValueKind::None => "null".to_owned(),
                    ValueKind::Bool => if key.is_true() { "true" } else { "false" }.to_owned(),
                    ValueKind::Number => json_number(key),
                    kind => return Err(invalid(format!("tojson: {kind} cannot be a key"))),
                };
                json_string(text, &name, style.ensure_ascii)?;
                text.push_str(&style.separators.1)?;
                write_json(text, &value.get_item(key)?, style, depth + 1)?;
            }
            if !keys.is_empty() {
                style.new_line(text, depth)?;
            }
            text.push('}')?;
        }
        kind => return Err(invalid(format!("tojson: {kind} cannot be written as JSON"))),
    }
    Ok(())
}

fn json_string(text: &mut Text, value: &str, ensure_ascii: bool) -> Result<(), Error> {
    text.push('"')?;
    for character in value.chars() {
        match character {
            '"' => text.push_str("\\\"")?,
            '\\' => text.push_str("\\\\")?,
            '\n' => text.push_str("\\n")?,
            '\r' => text.push_str("\\r")?,
            '\t' => text.push_str("\\t")?,
            '\u{8}' => text.push_str("\\b")?,
            '\u{c}' => text.push_str("\\f")?,
            control if control < ' ' => {
                text.push_str(&format!("\\u{:04x}", control as u32))?;
            }
            other if ensure_ascii && !other.is_ascii() => {
                for unit in other.encode_utf16(&mut [0; 2]) {
                    text.push_str(&format!("\\u{unit:04x}"))?;
                }
            }
            other => text.push(other)?,
        }
    }
    text.push('"')?;
    Ok(())
}

/// A number as `json.dumps` writes it.
fn json_number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() && !float.is_finite() => json::python_float(float).to_owned(),
        _ => number(value),
    }
}

/// `repr()` of a Python number: integers as they are, floats shortest, `1e+16` and `1e-05` with a signed exponent
/// of two digits.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let Ok(float) = f64::try_from(value.clone()) else { return value.to_string() };
    if !float.is_finite() {
        return float.to_string().to_lowercase();
    }
    let shortest = format!("{float:?}");
    match shortest.split_once('e') {
        None => shortest,
        Some((mantissa, exponent)) => {
            let (sign, digits) = match exponent.strip_prefix('-') {
                Some(digits) => ('-', digits),
                None => ('+', exponent),
            };
            format!("{mantissa}e{sign}{digits:0>2}")
        }
    }
}

/// Python's `str()`: strings as they are, everything inside a list or dictionary by `repr()`.
pub(super) fn str_of(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => {
            let mut text = Text::default();
            repr(&mut text, value, 0)?;
            Ok(text.finish())
        }
        ValueKind::Number => Ok(number(value)),
        _ => Ok(value.to_string()),
    }
}

fn repr(text: &mut Text, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > MAXIMUM_DEPTH {
        return Err(invalid("a value is nested too deeply to be written"));
    }
    match value.kind() {
        ValueKind::String => repr_string(text, value.as_str().unwrap_or_default())?,
        ValueKind::Number => text.push_str(&number(value))?,
        ValueKind::Seq | ValueKind::Iterable => {
            text.push('[')?;
            for (position, item) in value.try_iter()?.enumerate() {
                if position > 0 {
                    text.push_str(", ")?;
                }
                repr(text, &item, depth + 1)?;
            }
            text.push(']')?;
        }
        ValueKind::Map => {
            text.push('{')?;
            for (position, key) in value.try_iter()?.enumerate() {
                if position > 0 {
                    text.push_str(", ")?;
                }
                repr(text, &key, depth + 1)?;
                text.push_str(": ")?;
                repr(text, &value.get_item(&key)?, depth + 1)?;
            }
            text.push('}')?;
        }
        _ => text.push_str(&value.to_string())?,
    }
    Ok(())
}

fn repr_string(text: &mut Text, value: &str) -> Result<(), Error> {
    let quote = if value.contains('\'') && !value.contains('"') { '"' } else { '\'' };
    text.push(quote)?;
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\")?,
            '\n' => text.push_str("\\n")?,
            '\r' => text.push_str("\\r")?,
            '\t' => text.push_str("\\t")?,
            other if other == quote => {
                text.push('\\')?;
                text.push(other)?;
            }
            other if !is_printable(other) => {
                let code = other as u32;
                text.push_str(&match code {
                    0..=0xff => format!("\\x{code:02x}"),
                    0x100..=0xffff => format!("\\u{code:04x}"),
                    _ => format!("\\U{code:08x}"),
                })?;
            }
            other => text.push(other)?,
        }
    }
    text.push(quote)?;
    Ok(())
}

/// `str.isprintable`, but for code points that Unicode has not assigned.
fn is_printable(character: char) -> bool {
    let format = matches!(
        character,
        '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{8e2}' | '\u{180e}'
            | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0001}'..='\u{e007f}' | '\u{e000}'..='\u{f8ff}'
    );
    character == ' ' || !(format || character.is_control() || character.is_whitespace())
}

pub(super) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dump(json: &str, style: JsonStyle) -> String {
        let value = Value::from_serialize(serde_json::from_str::<serde_json::Value>(json).unwrap());
        let mut text = Text::default();
        write_json(&mut text, &value, &style, 0).unwrap();
        text.finish()
    }

    fn style(indent: Option<&str>) -> JsonStyle {
        let item = if indent.is_some() { "," } else { ", " };
        JsonStyle {
            ensure_ascii: false,
            indent: indent.map(str::to_owned),
            separators: (item.to_owned(), ": ".to_owned()),
            sort_keys: false,
        }
    }

    /// Expected strings are what `json.dumps(json.loads(…), ensure_ascii=False)` prints.
    #[test]
    fn json_is_written_as_python_writes_it() {
        let json = r#"{"b": [1, 2.0, 1e16, 0.00001, -0.5], "a": "é\"<&>'\n\u0001", "c": null, "d": true, "e": {}, "f": []}"#;
        assert_eq!(
            dump(json, style(None)),
            r#"{"b": [1, 2.0, 1e+16, 1e-05, -0.5], "a": "é\"<&>'\n\u0001", "c": null, "d": true, "e": {}, "f": []}"#
        );
        assert_eq!(
            dump(r#"{"a": [1, {"b": 2}], "c": []}"#, style(Some("  "))),
            "{\n  \"a\": [\n    1,\n    {\n      \"b\": 2\n    }\n  ],\n  \"c\": []\n}"
        );
        let ascii = JsonStyle { ensure_ascii: true, ..style(None) };
        assert_eq!(dump(r#""é😀""#, ascii), "\"\\u00e9\\ud83d\\ude00\"");
    }

    #[test]
    fn containers_print_by_repr() {
        let value = Value::from_serialize(serde_json::json!({"a": ["it's", "say \"hi\"", true, null, 1.0]}));
        assert_eq!(str_of(&value).unwrap(), r#"{'a': ["it's", 'say "hi"', True, None, 1.0]}"#);
    }

    #[test]
    fn the_clock_stands_still() {
        assert_eq!(strftime_now("%d %b %Y").unwrap(), "26 Jul 2024");
        assert_eq!(strftime_now("%A, %B %-d, %Y %H:%M:%S").unwrap(), "Friday, July 26, 2024 12:30:00");
        assert_eq!(strftime_now("%Y-%m-%d %H:%M").unwrap(), crate::data::template::CLOCK);
        assert!(strftime_now("%Q").is_err());
        assert!(strftime_now("100%").is_err());
    }
}
