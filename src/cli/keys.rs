//! `tune keys`: the keys of a recipe, from their declarations.

use std::io::{self, IsTerminal};

use clap::Args;
use serde_json::{Value, json};

use super::console::Console;
use super::exit::Exit;
use super::failure::Failure;
use super::style::{STRONG, paint};
use crate::document::{Absence, KeyDescription, TableDescription};
use crate::recipe;

/// Arguments of `tune keys`.
#[derive(Debug, Args)]
pub struct KeysArguments {
    /// A table (`train`, `adapter.lora`) or a key (`train.epochs`) [default: all]
    #[arg(value_name = "TABLE")]
    pub table: Option<String>,
    /// Print a JSON schema of recipes, for editors
    #[arg(long, conflicts_with_all = ["table", "markdown"])]
    pub schema: bool,
    /// Print a page in Markdown
    #[arg(long, conflicts_with = "table")]
    pub markdown: bool,
}

/// Prints the keys.
pub(super) fn keys(arguments: &KeysArguments, console: &mut Console<'_>) -> Result<Exit, Failure> {
    if arguments.schema {
        let schema = recipe::schema();
        console.event("result", &json!({"schema": schema}));
        writeln!(console.out(), "{schema:#}")?;
        return Ok(Exit::Done);
    }
    let tables = recipe::tables();
    if arguments.markdown {
        let page = page(&tables);
        console.event("result", &json!({"page": page}));
        write!(console.out(), "{page}")?;
        return Ok(Exit::Done);
    }
    let asked = arguments.table.as_deref().unwrap_or_default();
    let asked = asked.trim_start_matches('[').trim_end_matches(']');
    let is_asked = |path: &str| {
        asked.is_empty()
            || path == asked
            || path.strip_prefix(asked).is_some_and(|rest| rest.starts_with('.'))
    };
    let keys: Vec<&KeyDescription> =
        tables.iter().flat_map(|table| &table.keys).filter(|key| is_asked(&key.path)).collect();
    if keys.is_empty() {
        let paths = tables.iter().map(|table| table.path).filter(|path| !path.is_empty());
        let help = format!("the tables are {}", paths.collect::<Vec<_>>().join(", "));
        console.error(&format!("a recipe has no table or key `{asked}`"), Some(&help));
        return Ok(Exit::Recipe);
    }
    console.event("result", &json!({"keys": keys.iter().map(|key| of_key(key)).collect::<Vec<_>>()}));
    let padding = keys.iter().map(|key| key.path.len()).max().unwrap_or(0);
    let width = match io::stdout().is_terminal() {
        true => terminal_size::terminal_size().map(|(width, _)| usize::from(width.0)),
        false => None,
    };
    let out = console.out();
    for key in keys {
        let KeyDescription { path, kind, absence, meaning, .. } = key;
        let line = wrapped(&format!("{path:padding$}  {kind}; {absence}. {meaning}"), width);
        let name = paint(STRONG, path);
        writeln!(out, "{name}{}", line.strip_prefix(path.as_str()).unwrap_or(&line))?;
    }
    Ok(Exit::Done)
}

/// A key for programs.
fn of_key(key: &KeyDescription) -> Value {
    let KeyDescription { path, kind, absence, meaning, also, changes_weights, .. } = key;
    let mut object = json!({
        "key": path,
        "type": kind.to_string(),
        "schema": kind.schema(),
        "meaning": meaning,
        "changes_weights": changes_weights,
        "other_names": also,
    });
    let (name, text) = match absence {
        Absence::Default(default) => ("default", default.as_str()),
        Absence::Means(meaning) => ("when_absent", *meaning),
        Absence::Required(example) => ("example", *example),
    };
    object[name] = json!(text);
    object["required"] = json!(matches!(absence, Absence::Required(_)));
    object
}

/// `line` in as many lines as a terminal of this width needs; those after the first are indented.
fn wrapped(line: &str, width: Option<usize>) -> String {
    const INDENT: &str = "    ";
    let Some(width) = width.filter(|width| line.chars().count() > *width) else { return line.to_owned() };
    let mut text = String::new();
    let mut column = 0;
    // The first piece is the key with its padding.
    for word in line.split_inclusive(' ') {
        let length = word.trim_end().chars().count();
        if column + length > width && column > INDENT.len() {
            text.truncate(text.trim_end().len());
            text += "\n";
            text += INDENT;
            column = INDENT.len();
        }
        text += word;
        column += word.chars().count();
    }
    text
}

/// All keys as one page.
fn page(tables: &[TableDescription]) -> String {
    let mut text = "# The keys of a recipe\n\n\
        Made by `tune keys --markdown`. `tune keys train` shows the same for one table, and `tune keys --schema` prints a \
        JSON schema for editors. A key that is marked with \\* never changes the weights, and so is not part of the \
        recipe's hash.\n"
        .to_owned();
    for table in tables {
        let header =
            if table.header.is_empty() { "Top level".to_owned() } else { format!("`{}`", table.header) };
        text += &format!("\n## {header}\n\n{}\n", table.meaning);
        text += "\n| key | value | when absent | meaning | in other tools |\n|---|---|---|---|---|\n";
        for key in &table.keys {
            let absence = match &key.absence {
                Absence::Default(default) => format!("`{default}`"),
                Absence::Means(meaning) => (*meaning).to_owned(),
                Absence::Required(example) => format!("an error; for example `{example}`"),
            };
            let mark = if key.changes_weights { "" } else { " \\*" };
            let also: Vec<String> = key.also.iter().map(|name| format!("`{name}`")).collect();
            let (name, kind, meaning) = (key.name, &key.kind, key.meaning);
            text += &format!("| `{name}`{mark} | {kind} | {absence} | {meaning} | {} |\n", also.join(" "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_wrapped_between_words() {
        assert_eq!(wrapped("a.b  one two three", None), "a.b  one two three");
        assert_eq!(wrapped("a.b  one two three", Some(80)), "a.b  one two three");
        assert_eq!(wrapped("a.b  one two three", Some(9)), "a.b  one\n    two\n    three");
    }
}
