//! `tune import`.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::console::Console;
use super::exit::Exit;
use super::failure::Failure;
use super::finding::{Finding, Location};
use super::lines::next;
use super::report;
use super::style::{STRONG, WARNING, error_width, paint, visible, wrapped};
use crate::files::{self, shell};
use crate::import::{self, Imported, Kind, Tool};

/// Largest configuration read, in bytes.
const LARGEST_FILE: u64 = 256 << 10;

/// Arguments of `tune import`.
#[derive(Debug, Args)]
pub struct ImportArguments {
    /// The other tool's configuration, YAML or JSON
    pub config: PathBuf,
    /// The tool it belongs to [default: recognised by its keys]
    #[arg(long, value_enum, value_name = "TOOL")]
    pub from: Option<Tool>,
    /// The recipe to write; the file must not exist [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Converts a configuration into a recipe, and lists the differences.
pub(super) fn import(arguments: &ImportArguments, console: &mut Console<'_>) -> Result<Exit, Failure> {
    let config = &arguments.config;
    let text = match read(config) {
        Ok(text) => text,
        Err(problem) => {
            console.error(&format!("cannot read {}: {problem}", config.display()), None);
            return Ok(Exit::Recipe);
        }
    };
    let imported = match import::import(&text, &config.display().to_string(), arguments.from) {
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
                list_differences(&imported);
            }
        }
        Some(file) => {
            if file.exists() {
                let help = "name another file, or remove the existing one";
                console.error(&format!("{} exists", file.display()), Some(help));
                return Ok(Exit::Recipe);
            }
            files::write_bytes(file, imported.recipe.as_bytes())?;
            if !console.json() {
                list_differences(&imported);
            }
            result["out"] = file.display().to_string().into();
            let out = console.out();
            writeln!(out, "wrote {}, converted from {}", file.display(), imported.tool.name())?;
            next(out, &[("", shell::command(["tune", "validate", &file.to_string_lossy()]))])?;
        }
    }
    console.event("result", &result);
    Ok(Exit::Done)
}

/// An error of the conversion, with its line if that is known.
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
        return Err("it is a folder, not a file".to_owned());
    }
    if about.len() > LARGEST_FILE {
        return Err(format!("it has {} bytes; the limit for a configuration is {LARGEST_FILE}", about.len()));
    }
    let bytes = std::fs::read(file).map_err(|error| error.to_string())?;
    String::from_utf8(bytes)
        .map_err(|error| format!("it is not UTF-8 text (byte {})", error.utf8_error().valid_up_to()))
}

/// Lists the differences on standard error; the recipe contains them as comments too.
fn list_differences(imported: &Imported) {
    let mut stderr = anstream::stderr().lock();
    let mut headed = None;
    for note in &imported.notes {
        if headed != Some(note.kind) {
            headed = Some(note.kind);
            let style = if note.kind == Kind::Left { STRONG } else { WARNING };
            let _ = writeln!(stderr, "{}", paint(style, format!("{}:", note.kind.title())));
        }
        let text = format!("  - {}", visible(&note.to_string()));
        let _ = writeln!(stderr, "{}", wrapped(&text, error_width(), "    "));
    }
    if headed.is_some() {
        let _ = writeln!(stderr);
    }
}
