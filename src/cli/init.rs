//! `tune init`.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::console::Console;
use super::environment::Context;
use super::exit::Exit;
use super::failure::Failure;
use super::lines::{line, next_of_all};
use super::style::{GOOD, paint};
use crate::document::Word;
use crate::files::{self, shell};
use crate::run::init::draft;
use crate::units::Grouped;

/// Arguments of `tune init`.
#[derive(Debug, Args)]
pub struct InitArguments {
    /// Your rows: a file, a glob, or a dataset of the hub in the local cache
    pub data: String,
    /// The base model: a folder, or a hub id
    #[arg(long, value_name = "FOLDER|ID", default_value = "Qwen/Qwen3-0.6B")]
    pub base: String,
    /// The recipe to write; the file must not exist [default: the data's name, with .toml]
    #[arg(short, long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Looks at the data and writes a recipe for it.
pub(super) fn init(
    arguments: &InitArguments,
    context: &Context<'_>,
    console: &mut Console<'_>,
) -> Result<Exit, Failure> {
    let name = name_of(&arguments.data);
    let out = arguments.out.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.toml")));
    if out.exists() {
        let help = "name another file with `--out`, or remove the existing one";
        console.error(&format!("{} exists", out.display()), Some(help));
        return Ok(Exit::Recipe);
    }
    let drafted = draft(&arguments.data, &arguments.base, &name, context.environment.hub_cache)?;
    files::write_bytes(&out, drafted.recipe.as_bytes())?;
    console.event(
        "result",
        &json!({
            "out": out.display().to_string(),
            "recipe": drafted.recipe,
            "format": drafted.format.word(),
            "rows": drafted.rows,
            "base": arguments.base,
        }),
    );
    let count = Grouped(drafted.rows).of("row", "rows");
    let rows = format!("{}: {count}, format \"{}\"", arguments.data, drafted.format.word());
    line(console.out(), "rows", &rows)?;
    line(console.out(), "recipe", &paint(GOOD, out.display()))?;
    let recipe = out.to_string_lossy();
    let command = |words: &[&str]| shell::command(words);
    let mut steps = Vec::new();
    if !drafted.has_base {
        steps.push(("get the model", command(&["tune", "download", &arguments.base])));
    }
    steps.push(("check it, and its memory", command(&["tune", "validate", &recipe])));
    steps.push(("see what is trained on", command(&["tune", "inspect", &recipe])));
    steps.push(("train", command(&["tune", "run", &recipe])));
    next_of_all(console.out(), &steps)?;
    Ok(Exit::Done)
}

/// The last part of a path or hub id, without its extension and without characters that a shell reads.
fn name_of(data: &str) -> String {
    let stem = Path::new(data).file_stem().unwrap_or_default().to_string_lossy();
    let plain = |character: char| {
        if character.is_alphanumeric() || "-_.".contains(character) { character } else { '-' }
    };
    let name: String = stem.chars().map(plain).collect();
    let name = name.trim_matches(['-', '.']);
    if name.is_empty() { "recipe".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipes_are_named_after_their_data() {
        for (data, name) in [
            ("data/my chats.jsonl", "my-chats"),
            ("openai/gsm8k", "gsm8k"),
            ("data/*.parquet", "recipe"),
            ("a/b-*.csv", "b"),
        ] {
            assert_eq!(name_of(data), name);
        }
    }
}
