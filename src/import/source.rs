//! YAML or JSON as a tree of values with their lines, cast as the tools' schemas cast them. Knows no tool.

use std::fmt;

use super::yaml;

/// Larger than any configuration.
const LARGEST: usize = 256 << 10;

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

    /// The value of a key, unless it is empty.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        self.entries()
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, node)| node)
            .filter(|node| !node.is_empty())
    }

    /// Whether it sets nothing: null, an empty text, an empty list.
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

    /// A truth value, or what the tools' schemas take for one.
    pub(super) fn truth(&self) -> Option<bool> {
        match &self.value {
            Value::Truth(truth) => Some(*truth),
            Value::Integer(0) => Some(false),
            Value::Integer(1) => Some(true),
            Value::Text(text) => match text.to_lowercase().as_str() {
                "true" | "yes" | "on" | "1" => Some(true),
                "false" | "no" | "off" | "0" => Some(false),
                _ => None,
            },
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

    /// A finite number, or a text of one, which the tools' schemas cast.
    pub(super) fn number(&self) -> Option<f64> {
        let number = match &self.value {
            Value::Integer(number) => *number as f64,
            Value::Number(number) => *number,
            Value::Text(text) => text.trim().replace('_', "").parse().ok()?,
            _ => return None,
        };
        number.is_finite().then_some(number)
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
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let root = if name.ends_with(".json") || text.trim_start().starts_with('{') {
        let value: serde_json::Value = serde_json::from_str(text)
            .map_err(|error| Fault { line: error.line(), problem: error.to_string() })?;
        of_json(value)
    } else {
        yaml::read(text)?
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

/// The same with `${a.b}` replaced by what stands at `a.b` of `root`, as OmegaConf reads it. What is not there stays as
/// it is written.
pub(super) fn resolved(node: &Node, root: &Node) -> Node {
    resolved_within(node, root, 0)
}

fn resolved_within(node: &Node, root: &Node, depth: usize) -> Node {
    let value = match &node.value {
        Value::Text(text) if depth < 8 && text.contains("${") => {
            let at = |path: &str| path.split('.').try_fold(root, |node, key| node.get(key));
            let whole = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
            match whole.filter(|path| !path.contains("${")) {
                // The whole value: it keeps its kind.
                Some(path) => match at(path) {
                    Some(found) => resolved_within(found, root, depth + 1).value,
                    None => node.value.clone(),
                },
                None => {
                    let mut parts = text.split("${");
                    let mut whole = parts.next().unwrap_or_default().to_owned();
                    for part in parts {
                        match part.split_once('}').and_then(|(path, rest)| Some((at(path)?, rest))) {
                            Some((found, rest)) => {
                                let found = resolved_within(found, root, depth + 1);
                                whole += &found.text().map_or_else(|| found.to_string(), str::to_owned);
                                whole += rest;
                            }
                            None => whole += &format!("${{{part}"),
                        }
                    }
                    Value::Text(whole)
                }
            }
        }
        Value::List(items) => {
            Value::List(items.iter().map(|item| resolved_within(item, root, depth)).collect())
        }
        Value::Map(entries) => {
            let resolved =
                entries.iter().map(|(key, node)| (key.clone(), resolved_within(node, root, depth)));
            Value::Map(resolved.collect())
        }
        other => other.clone(),
    };
    Node { line: node.line, value }
}

/// Every text with a variable in it, with the path of its key.
pub(super) fn variables<'a>(node: &'a Node, path: &str, found: &mut Vec<(String, &'a Node)>) {
    match &node.value {
        // The text of a chat template has braces of its own.
        Value::Text(text) if text.contains("${") && !text.contains("{%") => {
            found.push((path.to_owned(), node));
        }
        Value::List(items) => {
            for (index, item) in items.iter().enumerate() {
                variables(item, &format!("{path}[{index}]"), found);
            }
        }
        Value::Map(entries) => {
            for (key, node) in entries {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                variables(node, &path, found);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_cast_as_the_tools_cast_it() {
        let root = read("a: 2e-4\nb: '8'\nc: \"true\"\nd: 1\ne: 'No'\nf: .inf\ng: 1.5\n", "c.yml").unwrap();
        let node = |key: &str| root.get(key).unwrap();
        assert_eq!((node("a").text(), node("a").number()), (Some("2e-4"), Some(2e-4)));
        assert_eq!((node("b").integer(), node("g").integer()), (Some(8), None));
        assert_eq!(
            (node("c").truth(), node("d").truth(), node("e").truth()),
            (Some(true), Some(true), Some(false))
        );
        assert_eq!(node("f").number(), None);
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_key() {
        for (text, name) in [("\u{feff}a: 1\n", "c.yml"), ("\u{feff}{\"a\": 1}", "c.json")] {
            assert_eq!(read(text, name).unwrap().get("a").unwrap().integer(), Some(1), "{name}");
        }
    }

    #[test]
    fn variables_are_resolved_within_the_file_and_others_are_found() {
        let root = read("a: x\nb: {c: '${a}/y', d: '${a}', e: ['${oc.env:HOME}/z']}\n", "c.yml").unwrap();
        let resolved = resolved(&root, &root);
        assert_eq!(resolved.get("b").unwrap().get("c").unwrap().text(), Some("x/y"));
        let mut found = Vec::new();
        variables(&resolved, "", &mut found);
        let found: Vec<_> = found.into_iter().map(|(path, node)| (path, node.line)).collect();
        assert_eq!(found, [("b.e[0]".to_owned(), 2)]);
    }

    #[test]
    fn what_is_not_a_configuration_is_refused() {
        let said = |text: &str| read(text, "c.yml").unwrap_err().to_string();
        assert!(said("- 1\n").contains("keys and values"));
        assert!(said(&"a".repeat(300_000)).contains("at most"));
        assert!(read("{\"a\": }", "c.json").unwrap_err().to_string().contains("line 1"));
    }
}
