//! Python's methods, each asking `budget` and `effort` first: our own where the Python-compatibility helpers of minijinja
//! count bytes instead of characters, or differ on characters without case and on empty strings, theirs otherwise.

use minijinja::value::{Value, ValueKind, from_args};
use minijinja::{Error, State};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::{budget, effort, filters, operators};

/// Calls a method that minijinja does not know by itself.
pub(super) fn call(
    state: &State<'_, '_>,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        match method {
            "get" => arguments.first().map_or(Ok(()), effort::require_key)?,
            "count" if value.kind() == ValueKind::Seq => {
                let (sought,): (&Value,) = from_args(arguments)?;
                return operators::found("`count`", sought, value).map(Value::from);
            }
            _ => {}
        }
        return budget::eager(method, unknown_method_callback(state, value, method, arguments)?);
    };
    effort::spend(method, read(text, method))?;
    effort::spend_on(method, arguments)?;
    let took = charge(text, value, method, arguments)?;
    compute(state, text, value, method, arguments).map(|result| budget::text(result, took))
}

fn compute(
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

/// What a method reads of its text.
fn read(text: &str, method: &str) -> u64 {
    let length = text.len() as u64;
    match method {
        "startswith" | "endswith" | "removeprefix" | "removesuffix" => 0,
        "count" | "find" | "rfind" | "replace" | "split" | "join" | "format" => length,
        _ => length.saturating_mul(effort::CHARACTER),
    }
}

/// Takes what a method of a text can build, and says how much. Those that are not here build nothing.
fn charge(text: &str, value: &Value, method: &str, arguments: &[Value]) -> Result<u64, Error> {
    let need: filters::Need = match method {
        "upper" | "lower" | "title" | "capitalize" => filters::changed_case,
        "strip" | "lstrip" | "rstrip" => filters::trimmed,
        "replace" => filters::replaced,
        "split" => filters::split,
        "splitlines" => filters::lines,
        "format" => filters::formatted,
        "removeprefix" | "removesuffix" => return budget::charge(method, text.len() as u64),
        "join" => {
            let items = arguments.first().map_or(0, |items| filters::joined_size(items, text.len() as u64));
            return budget::charge("`join`", items);
        }
        _ => return Ok(0),
    };
    let all: Vec<Value> = [value].into_iter().chain(arguments).cloned().collect();
    need(&format!("`{method}`"), &all)
}

/// At least one character has case, and all that do have this one.
fn cased(text: &str, arguments: &[Value], wanted: fn(char) -> bool) -> Result<Value, Error> {
    let () = from_args(arguments)?;
    let mut with_case = text.chars().filter(|c| c.is_lowercase() || c.is_uppercase()).peekable();
    Ok(Value::from(with_case.peek().is_some() && with_case.all(wanted)))
}

/// Index in characters, -1 if it is not there. Bounds count from the end where they are negative.
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

pub(super) fn capitalize(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    first + &characters.as_str().to_lowercase()
}

/// A letter after anything that is no letter in upper case, the others in lower case.
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

/// The lines of a text, at every character that Python takes for the end of one.
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
