//! Python's methods: our own where minijinja's Python-compatibility helpers count bytes instead of characters, or differ
//! on characters without case and on empty strings, theirs otherwise.

use minijinja::value::{Value, ValueKind, from_args};
use minijinja::{Error, State};
use minijinja_contrib::pycompat::unknown_method_callback;

/// The method that stands for `[::-1]`.
pub(super) const REVERSED: &str = "__reversed__";

/// Calls a method that minijinja does not know by itself.
pub(super) fn call(
    state: &State<'_, '_>,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    if method == REVERSED {
        return list(value.reverse()?);
    }
    match value.as_str() {
        Some(text) => of_text(state, text, value, method, arguments),
        None => list(unknown_method_callback(state, &list(value.clone())?, method, arguments)?),
    }
}

/// A list in place of a lazy sequence: the engine's slices, sums of lists and views of dictionaries, which have fewer
/// methods than lists have.
fn list(value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Iterable => Ok(Value::from(value.try_iter()?.collect::<Vec<Value>>())),
        _ => Ok(value),
    }
}

fn of_text(
    state: &State<'_, '_>,
    text: &str,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    let every = |holds: fn(char) -> bool| -> Result<Value, Error> {
        let () = from_args(arguments)?;
        Ok(Value::from(!text.is_empty() && text.chars().all(holds)))
    };
    match method {
        "count" => {
            let (sought,): (&str,) = from_args(arguments)?;
            Ok(Value::from(text.matches(sought).count()))
        }
        "find" | "rfind" => {
            let (sought, start, end): (&str, Option<i64>, Option<i64>) = from_args(arguments)?;
            Ok(Value::from(find(text, sought, start, end, method == "rfind")))
        }
        "islower" => cased(text, arguments, char::is_lowercase),
        "isupper" => cased(text, arguments, char::is_uppercase),
        "isspace" => every(char::is_whitespace),
        "isalpha" => every(char::is_alphabetic),
        "isalnum" => every(char::is_alphanumeric),
        "isdigit" | "isnumeric" | "isdecimal" => every(char::is_numeric),
        "capitalize" => {
            let () = from_args(arguments)?;
            Ok(Value::from(capitalize(text)))
        }
        "title" => {
            let () = from_args(arguments)?;
            Ok(Value::from(title(text)))
        }
        "splitlines" => {
            let (keep_ends,): (Option<bool>,) = from_args(arguments)?;
            Ok(lines(text, keep_ends.unwrap_or(false)).into_iter().map(Value::from).collect())
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(arguments)?;
            Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text)))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(arguments)?;
            Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text)))
        }
        _ => unknown_method_callback(state, value, method, arguments),
    }
}

/// At least one character has case, and all that have case have the wanted one.
fn cased(text: &str, arguments: &[Value], wanted: fn(char) -> bool) -> Result<Value, Error> {
    let () = from_args(arguments)?;
    let mut with_case = text.chars().filter(|c| c.is_lowercase() || c.is_uppercase()).peekable();
    Ok(Value::from(with_case.peek().is_some() && with_case.all(wanted)))
}

/// Index in characters, or -1. Negative bounds count from the end.
fn find(text: &str, sought: &str, start: Option<i64>, end: Option<i64>, last: bool) -> i64 {
    let length = text.chars().count() as i64;
    let bound = |bound: i64| if bound < 0 { (length + bound).max(0) } else { bound };
    let (start, end) = (bound(start.unwrap_or(0)), bound(end.unwrap_or(length)).min(length));
    if start > end {
        return -1;
    }
    let byte = |index: i64| text.char_indices().nth(index as usize).map_or(text.len(), |(byte, _)| byte);
    let within = &text[byte(start)..byte(end)];
    let found = if last { within.rfind(sought) } else { within.find(sought) };
    found.map_or(-1, |at| start + within[..at].chars().count() as i64)
}

fn capitalize(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    first + &characters.as_str().to_lowercase()
}

/// Upper case for a letter behind anything but a letter, lower case for all others.
fn title(text: &str) -> String {
    let mut titled = String::with_capacity(text.len());
    let mut within = false;
    for character in text.chars() {
        if within {
            titled.extend(character.to_lowercase())
        } else {
            titled.extend(character.to_uppercase())
        }
        within = character.is_lowercase() || character.is_uppercase();
    }
    titled
}

/// The lines of a text, split at every character at which Python splits.
fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let is_end = |c| matches!(c, '\n'..='\r' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some((at, end)) = rest.char_indices().find(|(_, character)| is_end(*character)) {
        let behind = at + if rest[at..].starts_with("\r\n") { 2 } else { end.len_utf8() };
        lines.push(&rest[..if keep_ends { behind } else { at }]);
        rest = &rest[behind..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values are Python's.
    #[test]
    fn methods_count_characters() {
        assert_eq!(find("é is e", "e", None, None, false), 5);
        assert_eq!(find("e is e", "e", Some(1), None, false), 5);
        assert_eq!(find("e is e", "e", None, Some(-1), true), 0);
        assert_eq!(find("abc", "x", None, None, false), -1);
        assert_eq!(find("abc", "", Some(4), None, false), -1);
        assert_eq!(title("they're 2nd o'clock É"), "They'Re 2Nd O'Clock É");
        assert_eq!(capitalize("éCOLE Nr. 5"), "École nr. 5");
    }

    #[test]
    fn lines_end_where_python_ends_them() {
        assert_eq!(lines("a\r\nb\n\nc\u{2028}d\n", false), ["a", "b", "", "c", "d"]);
        assert_eq!(lines("a\r\nb", true), ["a\r\n", "b"]);
        assert!(lines("", false).is_empty());
    }

    #[test]
    fn case_is_asked_of_letters_only() {
        let ask = |text: &str| cased(text, &[], char::is_lowercase).unwrap().is_true();
        assert!(ask("hello there.") && !ask("Hello") && !ask("123") && !ask(""));
    }
}
