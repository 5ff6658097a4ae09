//! YAML or JSON as a tree of values with their lines. Knows no tool.
//!
//! Words are read as PyYAML reads them (`yes` is true), since that is what these files are written for; numbers also
//! where PyYAML sees a text (`2e-4`), for all tools turn such texts into numbers.

use std::fmt;

use yaml_rust2::parser::{Event, Parser};
use yaml_rust2::scanner::TScalarStyle;

/// Larger than any configuration.
const LARGEST: usize = 256 << 10;
/// Deeper than any configuration.
const DEEPEST: usize = 32;

/// A text that is no configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// From 1; 0 where it is not known.
    pub line: usize,
    /// What was expected and what to do.
    pub problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => formatter.write_str(&self.problem),
            line => write!(formatter, "line {line}: {}", self.problem),
        }
    }
}

/// A value and the line it begins on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    /// From 1; 0 in JSON.
    pub(super) line: usize,
    pub(super) value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Truth(bool),
    Integer(i64),
    Number(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Node {
    /// The entries of a map; none of anything else.
    pub(super) fn entries(&self) -> &[(String, Node)] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// What stands under a key and says something.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        self.entries()
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, node)| node)
            .filter(|node| !node.is_empty())
    }

    /// Nothing is set: null, an empty text, an empty list.
    pub(super) fn is_empty(&self) -> bool {
        match &self.value {
            Value::Null => true,
            Value::Text(text) => text.is_empty(),
            Value::List(items) => items.is_empty(),
            Value::Map(entries) => entries.is_empty(),
            _ => false,
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn truth(&self) -> Option<bool> {
        match &self.value {
            Value::Truth(truth) => Some(*truth),
            _ => None,
        }
    }

    pub(super) fn integer(&self) -> Option<i64> {
        match self.value {
            Value::Integer(number) => Some(number),
            _ => {
                self.number().filter(|number| number.fract() == 0.0 && number.abs() < 1e15).map(|n| n as i64)
            }
        }
    }

    /// A number, or a text of one: the tools turn such texts into numbers.
    pub(super) fn number(&self) -> Option<f64> {
        match &self.value {
            Value::Integer(number) => Some(*number as f64),
            Value::Number(number) => Some(*number),
            Value::Text(text) => text.trim().parse().ok().filter(|number: &f64| number.is_finite()),
            _ => None,
        }
    }

    /// The texts of a list, or of a text with commas in it.
    pub(super) fn texts(&self) -> Option<Vec<String>> {
        match &self.value {
            Value::Text(text) => Some(text.split(',').map(|part| part.trim().to_owned()).collect()),
            Value::List(items) => items.iter().map(|item| item.text().map(str::to_owned)).collect(),
            _ => None,
        }
    }
}

/// As it would be written on one line, shortened.
impl fmt::Display for Node {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Value::Null => formatter.write_str("null"),
            Value::Truth(truth) => write!(formatter, "{truth}"),
            Value::Integer(number) => write!(formatter, "{number}"),
            Value::Number(number) => write!(formatter, "{number}"),
            Value::Text(text) => match text.char_indices().nth(60) {
                Some((end, _)) => write!(formatter, "{}…", text[..end].replace(['\n', '\r'], " ")),
                None => formatter.write_str(&text.replace(['\n', '\r'], " ")),
            },
            Value::List(items) if items.len() <= 8 && items.iter().all(|item| item.entries().is_empty()) => {
                let items: Vec<String> = items.iter().map(ToString::to_string).collect();
                write!(formatter, "[{}]", items.join(", "))
            }
            Value::List(items) => write!(formatter, "a list of {}", items.len()),
            Value::Map(entries) => write!(formatter, "{{{} keys}}", entries.len()),
        }
    }
}

/// Reads a configuration; JSON if its name or its first character says so.
pub(super) fn read(text: &str, name: &str) -> Result<Node, Fault> {
    let fault = |line, problem: &str| Fault { line, problem: problem.to_owned() };
    if text.len() > LARGEST {
        return Err(fault(
            0,
            &format!("it has {} bytes, and a configuration has at most {LARGEST}", text.len()),
        ));
    }
    let root = if name.ends_with(".json") || text.trim_start().starts_with('{') {
        let value: serde_json::Value = serde_json::from_str(text)
            .map_err(|error| Fault { line: error.line(), problem: error.to_string() })?;
        of_json(value)
    } else {
        of_yaml(text)?
    };
    match root.value {
        Value::Map(_) => Ok(root),
        _ => Err(fault(root.line, "expected keys and values at the top level")),
    }
}

fn of_json(value: serde_json::Value) -> Node {
    use serde_json::Value as Json;
    let value = match value {
        Json::Null => Value::Null,
        Json::Bool(truth) => Value::Truth(truth),
        Json::Number(number) => match number.as_i64() {
            Some(number) => Value::Integer(number),
            None => Value::Number(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::Text(text),
        Json::Array(items) => Value::List(items.into_iter().map(of_json).collect()),
        Json::Object(entries) => {
            Value::Map(entries.into_iter().map(|(key, value)| (key, of_json(value))).collect())
        }
    };
    Node { line: 0, value }
}

/// A list or map that is not yet closed.
enum Open {
    List(usize, Vec<Node>),
    Map(usize, Vec<(String, Node)>, Option<String>),
}

fn of_yaml(text: &str) -> Result<Node, Fault> {
    let mut parser = Parser::new_from_str(text);
    let mut open: Vec<Open> = Vec::new();
    let mut root = None;
    loop {
        let (event, marker) = parser.next_token().map_err(|error| Fault {
            line: error.marker().line(),
            problem: format!("not YAML: {}", error.info()),
        })?;
        let line = marker.line();
        let fault = |problem: &str| Fault { line, problem: problem.to_owned() };
        let closed = match event {
            Event::StreamEnd => break,
            Event::DocumentStart if root.is_some() => {
                return Err(fault("a second document begins; name a file with one"));
            }
            Event::Alias(_) => return Err(fault("an alias (`*name`); write out what it stands for")),
            Event::SequenceStart(..) | Event::MappingStart(..) if open.len() >= DEEPEST => {
                return Err(fault("nested more deeply than any configuration"));
            }
            Event::SequenceStart(..) => {
                open.push(Open::List(line, Vec::new()));
                continue;
            }
            Event::MappingStart(..) => {
                open.push(Open::Map(line, Vec::new(), None));
                continue;
            }
            Event::Scalar(text, style, ..) => {
                // A key is its text, whatever it would be as a value.
                if let Some(Open::Map(_, entries, key @ None)) = open.last_mut() {
                    if entries.iter().any(|(known, _)| *known == text) {
                        return Err(fault(&format!("`{text}` is there twice")));
                    }
                    *key = Some(text);
                    continue;
                }
                let value = if style == TScalarStyle::Plain { plain(text) } else { Value::Text(text) };
                Node { line, value }
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::List(line, items)) => Node { line, value: Value::List(items) },
                Some(Open::Map(line, entries, _)) => Node { line, value: Value::Map(entries) },
                None => continue,
            },
            _ => continue,
        };
        match open.last_mut() {
            None => root = Some(closed),
            Some(Open::List(_, items)) => items.push(closed),
            Some(Open::Map(_, entries, key)) => match key.take() {
                Some(key) => entries.push((key, closed)),
                None => return Err(fault("a key that is no word")),
            },
        }
    }
    root.ok_or(Fault { line: 0, problem: "it is empty".to_owned() })
}

/// A word without quotes.
fn plain(text: String) -> Value {
    match text.as_str() {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return Value::Truth(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
            return Value::Truth(false);
        }
        _ => {}
    }
    if !text.starts_with(|first: char| first.is_ascii_digit() || "+-.".contains(first)) {
        return Value::Text(text);
    }
    let digits = text.replace('_', "");
    if let Ok(number) = digits.parse() {
        return Value::Integer(number);
    }
    match digits.parse::<f64>() {
        Ok(number) if number.is_finite() => Value::Number(number),
        _ => Value::Text(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_what_python_takes_them_for() {
        let root =
            read("a: yes\nb: 2e-4\nc: 1_000\nd: '1'\ne:\nf: [x, -3, .5]\ng: {h: v1.0}\n", "c.yml").unwrap();
        let value = |key: &str| root.entries().iter().find(|(name, _)| name == key).unwrap().1.value.clone();
        assert_eq!(value("a"), Value::Truth(true));
        assert_eq!(value("b"), Value::Number(2e-4));
        assert_eq!(value("c"), Value::Integer(1000));
        assert_eq!(value("d"), Value::Text("1".into()));
        assert_eq!(value("e"), Value::Null);
        assert_eq!(root.get("f").unwrap().to_string(), "[x, -3, 0.5]");
        assert_eq!(root.get("g").unwrap().get("h").unwrap().text(), Some("v1.0"));
        assert_eq!(root.get("f").unwrap().line, 6);
        assert_eq!(read("{\"a\": [1, null]}", "c").unwrap().get("a").unwrap().to_string(), "[1, null]");
    }

    #[test]
    fn what_is_no_configuration_is_refused_with_its_line() {
        let said = |text: &str| read(text, "c.yml").unwrap_err().to_string();
        assert!(said("a: 1\na: 2\n").starts_with("line 2: `a` is there twice"));
        assert!(said("a: &x [1]\nb: *x\n").starts_with("line 2: an alias"));
        assert!(said("- 1\n").contains("keys and values"));
        assert!(said("").contains("empty"));
        assert!(said("a: [1\n").contains("not YAML"));
        assert!(said(&"- ".repeat(100_000)).contains("nested more deeply"));
        assert!(
            said(&format!("a: {}", "[".repeat(1000))).contains("nested") || said("a: [").contains("not YAML")
        );
        assert!(said(&"a".repeat(300_000)).contains("at most"));
        assert!(said("---\na: 1\n---\nb: 2\n").contains("second document"));
        assert!(read("{\"a\": }", "c.json").unwrap_err().to_string().contains("line 1"));
    }
}
