//! YAML as PyYAML's `safe_load` reads it: anchors, merge keys, and words without quotes resolved by its table.
//!
//! The parser knows YAML 1.2 and leaves words as text; the tools' files are written for PyYAML, which resolves them by
//! YAML 1.1: `yes` is true, `010` is 8, and `2e-4` is a text, which each tool casts where it wants a number.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use regex::RegexSet;
use yaml_rust2::parser::{Event, Parser, Tag};
use yaml_rust2::scanner::TScalarStyle;

use super::source::{Fault, Node, Value};

/// Deeper than any configuration.
const DEEPEST: usize = 32;
/// More values than any configuration has, those that aliases repeat among them.
const MOST_VALUES: usize = 100_000;
/// The merge key.
const MERGE: &str = "<<";

/// What a word without quotes is.
#[derive(Clone, Copy)]
enum Kind {
    True,
    False,
    Null,
    Float,
    Integer,
}

/// PyYAML's implicit resolvers, in its order. Its dates are left as text.
const TABLE: [(&str, Kind); 5] = [
    (r"^(?:yes|Yes|YES|true|True|TRUE|on|On|ON)$", Kind::True),
    (r"^(?:no|No|NO|false|False|FALSE|off|Off|OFF)$", Kind::False),
    (
        r"^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        Kind::Float,
    ),
    (
        r"^(?:[-+]?0b[0-1_]+|[-+]?0[0-7_]+|[-+]?(?:0|[1-9][0-9_]*)|[-+]?0x[0-9a-fA-F_]+|[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+)$",
        Kind::Integer,
    ),
    (r"^(?:~|null|Null|NULL|)$", Kind::Null),
];

static PATTERNS: LazyLock<Option<RegexSet>> =
    LazyLock::new(|| RegexSet::new(TABLE.map(|(pattern, _)| pattern)).ok());

/// A list or map that is not yet closed, with its line and its anchor.
enum Open {
    List(usize, usize, Vec<Node>),
    Map(usize, usize, Map),
}

/// A map under way.
#[derive(Default)]
struct Map {
    entries: Vec<(String, Node)>,
    /// The key whose value comes next.
    key: Option<String>,
    /// Entries of merged maps, those of the first map first.
    merged: Vec<(String, Node)>,
}

/// Reads a document.
pub(super) fn read(text: &str) -> Result<Node, Fault> {
    let mut parser = Parser::new_from_str(text);
    let mut open: Vec<Open> = Vec::new();
    let mut anchors: BTreeMap<usize, Node> = BTreeMap::new();
    let mut values = 0;
    let mut root = None;
    loop {
        let (event, marker) = parser.next_token().map_err(|error| Fault {
            line: error.marker().line(),
            problem: format!("not YAML: {}", error.info()),
        })?;
        let line = marker.line();
        let fault = |problem: &str| Fault { line, problem: problem.to_owned() };
        let (closed, anchor) = match event {
            Event::StreamEnd => break,
            Event::DocumentStart if root.is_some() => {
                return Err(fault("a second document begins; name a file with one document"));
            }
            Event::SequenceStart(..) | Event::MappingStart(..) if open.len() >= DEEPEST => {
                return Err(fault("nested more deeply than any configuration"));
            }
            Event::SequenceStart(anchor, _) => {
                open.push(Open::List(line, anchor, Vec::new()));
                continue;
            }
            Event::MappingStart(anchor, _) => {
                open.push(Open::Map(line, anchor, Map::default()));
                continue;
            }
            Event::Alias(anchor) => match anchors.get(&anchor) {
                Some(node) => (node.clone(), 0),
                None => return Err(fault("an alias inside the value that it stands for")),
            },
            Event::Scalar(text, style, anchor, tag) => {
                // A key is its text, whatever it would be as a value.
                if let Some(Open::Map(_, _, map)) = open.last_mut()
                    && map.key.is_none()
                {
                    if text != MERGE && map.entries.iter().any(|(known, _)| *known == text) {
                        return Err(fault(&format!("the key `{text}` stands twice; remove one")));
                    }
                    map.key = Some(text);
                    continue;
                }
                let value = scalar(text, style, tag.as_ref()).map_err(|problem| fault(&problem))?;
                (Node { line, value }, anchor)
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::List(line, anchor, items)) => (Node { line, value: Value::List(items) }, anchor),
                Some(Open::Map(line, anchor, map)) => {
                    (Node { line, value: Value::Map(map.entries_with_merged()) }, anchor)
                }
                None => continue,
            },
            _ => continue,
        };
        values += count(&closed);
        if values > MOST_VALUES {
            return Err(fault("its aliases stand for more values than any configuration has"));
        }
        if anchor > 0 {
            anchors.insert(anchor, closed.clone());
        }
        match open.last_mut() {
            None => root = Some(closed),
            Some(Open::List(_, _, items)) => items.push(closed),
            Some(Open::Map(_, _, map)) => match map.key.take() {
                Some(key) if key == MERGE => map.merge(closed).map_err(&fault)?,
                Some(key) => map.entries.push((key, closed)),
                None => return Err(fault("a key that is not a word")),
            },
        }
    }
    root.ok_or(Fault { line: 0, problem: "it is empty".to_owned() })
}

impl Map {
    /// Takes the entries of a merged map, or of a list of them.
    fn merge(&mut self, node: Node) -> Result<(), &'static str> {
        match node.value {
            Value::Map(entries) => self.merged.extend(entries),
            Value::List(items) => {
                for item in items {
                    match item.value {
                        Value::Map(entries) => self.merged.extend(entries),
                        _ => return Err("`<<` takes maps"),
                    }
                }
            }
            _ => return Err("`<<` takes a map, or a list of maps"),
        }
        Ok(())
    }

    /// Its own entries win over merged ones, and a merged map over those after it.
    fn entries_with_merged(self) -> Vec<(String, Node)> {
        let Self { mut entries, merged, .. } = self;
        for (key, node) in merged {
            if entries.iter().all(|(known, _)| *known != key) {
                entries.push((key, node));
            }
        }
        entries
    }
}

/// How many values a node has.
fn count(node: &Node) -> usize {
    match &node.value {
        Value::List(items) => 1 + items.iter().map(count).sum::<usize>(),
        Value::Map(entries) => 1 + entries.iter().map(|(_, node)| count(node)).sum::<usize>(),
        _ => 1,
    }
}

/// A scalar by its tag, or by the table.
fn scalar(text: String, style: TScalarStyle, tag: Option<&Tag>) -> Result<Value, String> {
    match tag.map(|tag| (tag.handle.as_str(), tag.suffix.as_str())) {
        None if style == TScalarStyle::Plain => Ok(plain(text)),
        None | Some(("", "!") | ("!", "") | ("tag:yaml.org,2002:", "str")) => Ok(Value::Text(text)),
        Some(("tag:yaml.org,2002:", "int" | "float" | "bool" | "null")) => Ok(plain(text)),
        Some((_, name)) => Err(format!("the tag `{name}` is not plain YAML; write the value itself")),
    }
}

/// A word without quotes.
fn plain(text: String) -> Value {
    let kind = PATTERNS.as_ref().and_then(|patterns| patterns.matches(&text).iter().next());
    let digits = text.replace('_', "").to_lowercase();
    let (sign, digits) = match digits.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, digits.strip_prefix('+').unwrap_or(&digits)),
    };
    let value = match kind.and_then(|at| TABLE.get(at)).map(|(_, kind)| *kind) {
        Some(Kind::True) => Some(Value::Truth(true)),
        Some(Kind::False) => Some(Value::Truth(false)),
        Some(Kind::Null) => Some(Value::Null),
        Some(Kind::Float) => float(digits).map(|number| Value::Number(f64::from(sign) * number)),
        Some(Kind::Integer) => integer(digits).map(|number| Value::Integer(i64::from(sign) * number)),
        None => None,
    };
    value.unwrap_or(Value::Text(text))
}

/// An unsigned integer: binary, octal, hexadecimal, of base 60, decimal.
fn integer(digits: &str) -> Option<i64> {
    if let Some(binary) = digits.strip_prefix("0b") {
        return i64::from_str_radix(binary, 2).ok();
    }
    if let Some(hexadecimal) = digits.strip_prefix("0x") {
        return i64::from_str_radix(hexadecimal, 16).ok();
    }
    match digits.strip_prefix('0') {
        Some("") => Some(0),
        Some(octal) => i64::from_str_radix(octal, 8).ok(),
        None => digits
            .split(':')
            .try_fold(0_i64, |sum, part| sum.checked_mul(60)?.checked_add(part.parse().ok()?)),
    }
}

/// An unsigned float: infinite, not a number, of base 60, decimal.
fn float(digits: &str) -> Option<f64> {
    match digits {
        ".inf" => Some(f64::INFINITY),
        ".nan" => Some(f64::NAN),
        _ => digits.split(':').try_fold(0.0, |sum, part| Some(sum * 60.0 + part.parse::<f64>().ok()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value as `tests/golden/yaml_values.py` writes it.
    fn shown(node: &Node) -> serde_json::Value {
        use serde_json::json;
        match &node.value {
            Value::Null => json!(null),
            Value::Truth(truth) => json!(truth),
            Value::Integer(number) => json!({"int": number.to_string()}),
            Value::Number(number) if number.is_nan() => json!({"float": "nan"}),
            Value::Number(number) => json!({"float": format!("{:016x}", number.to_bits())}),
            Value::Text(text) => json!(text),
            Value::List(items) => items.iter().map(shown).collect(),
            Value::Map(entries) => {
                let entries: BTreeMap<_, _> = entries.iter().map(|(key, node)| (key, shown(node))).collect();
                json!({"map": entries})
            }
        }
    }

    #[test]
    fn every_value_is_what_pyyaml_makes_of_it() {
        let cases = include_str!("../../tests/golden/yaml/values.json");
        let cases: Vec<(String, serde_json::Value)> = serde_json::from_str(cases).unwrap();
        assert!(cases.len() > 300, "{}", cases.len());
        for (text, expected) in cases {
            let node = read(&text).unwrap_or_else(|fault| panic!("{text}: {fault}"));
            assert_eq!(shown(&node), expected, "{text}");
        }
    }

    #[test]
    fn what_is_not_a_configuration_is_refused_with_its_line() {
        let said = |text: &str| read(text).unwrap_err().to_string();
        assert_eq!(said("a: 1\na: 2\n"), "line 2: the key `a` stands twice; remove one");
        assert_eq!(said("a: &x [1, *x]\n"), "line 1: an alias inside the value that it stands for");
        assert_eq!(
            said("a: 1\nb: !env HOME\n"),
            "line 2: the tag `env` is not plain YAML; write the value itself"
        );
        assert!(said("a: 1\n<<: 3\n").contains("`<<` takes a map"));
        assert!(said("").contains("empty"));
        assert!(said("a: [1\n").contains("not YAML"));
        assert!(said("a: *nowhere\n").contains("not YAML"));
        assert!(said(&"- ".repeat(100_000)).contains("nested more deeply"));
        assert!(said("---\na: 1\n---\nb: 2\n").contains("second document"));
        let mut bomb = "a0: &a0 [x]\n".to_owned();
        for level in 1..20 {
            bomb += &format!("a{level}: &a{level} [*a{0}, *a{0}, *a{0}]\n", level - 1);
        }
        assert!(said(&bomb).contains("more values than any configuration has"));
    }
}
