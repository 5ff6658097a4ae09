//! `tune import`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::args::OutputArguments;
use super::console::Console;
use super::exit::Exit;
use super::finding::{Finding, Location};
use super::report;
use super::style::{STRONG, WARNING, paint, visible};
use crate::files;
use crate::import::{self, Imported, Kind, Tool};

/// Larger than any configuration.
const LARGEST_FILE: u64 = 256 << 10;

/// Arguments of `tune import`.
#[derive(Debug, Args)]
pub struct ImportArguments {
    /// The other tool's configuration, YAML or JSON
    pub config: PathBuf,
    /// Which tool it is of; left out, its keys tell
    #[arg(long, value_enum, value_name = "TOOL")]
    pub from: Option<From>,
    /// The recipe to write, which must not be there yet; left out, it goes to standard output
    #[arg(short, long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// For programs.
    #[command(flatten)]
    pub for_programs: OutputArguments,
}

/// A tool on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum From {
    /// Axolotl
    Axolotl,
    /// LLaMA-Factory
    LlamaFactory,
    /// TRL, and Unsloth, which takes the same settings
    #[value(alias = "unsloth")]
    Trl,
    /// torchtune
    Torchtune,
}

impl From {
    fn tool(self) -> Tool {
        match self {
            From::Axolotl => Tool::Axolotl,
            From::LlamaFactory => Tool::LlamaFactory,
            From::Trl => Tool::Trl,
            From::Torchtune => Tool::Torchtune,
        }
    }
}

/// Makes a recipe of a configuration, and tells what is different.
pub(super) fn import(arguments: &ImportArguments, console: &mut Console<'_>) -> io::Result<Exit> {
    let config = &arguments.config;
    let text = match read(config) {
        Ok(text) => text,
        Err(problem) => {
            console.error(&format!("cannot read {}: {problem}", config.display()), None);
            return Ok(Exit::Recipe);
        }
    };
    let tool = arguments.from.map(From::tool);
    let imported = match import::import(&text, &config.display().to_string(), tool) {
        Ok(imported) => imported,
        Err(error) => {
            report::error(&error.to_string(), None);
            console.problem(&finding(&error, config));
            return Ok(Exit::Recipe);
        }
    };
    let notes: Vec<Value> = imported
        .notes
        .iter()
        .map(|note| json!({"kind": note.kind.title(), "message": note.to_string()}))
        .collect();
    let mut result = json!({"tool": imported.tool.name(), "recipe": imported.recipe, "notes": notes});
    match &arguments.out {
        None => {
            console.out().write_all(imported.recipe.as_bytes())?;
            if !console.json() {
                tell(&imported);
            }
        }
        Some(file) => {
            if file.exists() {
                let help = "name another file, or remove that one";
                console.error(&format!("{} is there already", file.display()), Some(help));
                return Ok(Exit::Recipe);
            }
            if let Err(error) = files::write_bytes(file, imported.recipe.as_bytes()) {
                console.error(&error.to_string(), None);
                return Ok(Exit::Resources);
            }
            if !console.json() {
                tell(&imported);
            }
            result["out"] = file.display().to_string().into();
            let out = console.out();
            writeln!(out, "{} is written, from {}", file.display(), imported.tool.name())?;
            writeln!(out, "\nNext: {}", paint(STRONG, format!("tune validate {}", file.display())))?;
        }
    }
    console.event("result", &result);
    Ok(Exit::Done)
}

/// What is wrong with a configuration, at its line where that is known.
fn finding(error: &import::Error, config: &Path) -> Finding {
    let line = match error {
        import::Error::NotTrained { line, .. } => Some(*line as u64).filter(|line| *line > 0),
        _ => None,
    };
    let location = Location { file: config.display().to_string(), line, ..Location::default() };
    Finding { location: Some(location), ..Finding::new(error.to_string(), None) }
}

fn read(file: &Path) -> Result<String, String> {
    let about = std::fs::metadata(file).map_err(|error| error.to_string())?;
    if about.is_dir() {
        return Err("it is a folder".to_owned());
    }
    if about.len() > LARGEST_FILE {
        return Err(format!("it has {} bytes, and a configuration has at most {LARGEST_FILE}", about.len()));
    }
    let bytes = std::fs::read(file).map_err(|error| error.to_string())?;
    String::from_utf8(bytes)
        .map_err(|error| format!("it is not UTF-8 text (byte {})", error.utf8_error().valid_up_to()))
}

/// What is different, on standard error: the recipe says it as well.
fn tell(imported: &Imported) {
    let mut stderr = anstream::stderr().lock();
    let mut headed = None;
    for note in &imported.notes {
        if headed != Some(note.kind) {
            headed = Some(note.kind);
            let style = if note.kind == Kind::Left { STRONG } else { WARNING };
            let _ = writeln!(stderr, "{}", paint(style, format!("{}:", note.kind.title())));
        }
        let _ = writeln!(stderr, "  - {}", visible(&note.to_string()));
    }
    if headed.is_some() {
        let _ = writeln!(stderr);
    }
}
