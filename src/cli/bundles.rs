//! `tune ls` and `tune cp`.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::console::Console;
use super::exit::Exit;
use super::failure::Failure;
use super::lines::next_of_all;
use super::style::{FAINT, STRONG, output_width, paint, wrapped};
use crate::bundled::{self, BUNDLES, CopyError, Needs};
use crate::files::shell;
use crate::units::Bytes;

/// Arguments of `tune cp`.
#[derive(Debug, Args)]
pub struct CopyArguments {
    /// A name from `tune ls`
    pub name: String,
    /// The folder to write into; it is created, and existing files are kept
    pub folder: PathBuf,
}

/// Lists the bundled recipes.
pub(super) fn ls(console: &mut Console<'_>) -> Result<Exit, Failure> {
    let width = BUNDLES.iter().map(|bundle| bundle.name.len()).max().unwrap_or(0);
    let size =
        |bundle: &bundled::Bundle| bundle.files.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
    let recipes: Vec<Value> = BUNDLES
        .iter()
        .map(|bundle| json!({"name": bundle.name, "summary": bundle.summary(), "bytes": size(bundle)}))
        .collect();
    console.event("result", &json!({"recipes": recipes}));
    let out = console.out();
    for bundle in BUNDLES {
        let carried = match bundle.needs {
            Some(Needs { base: Some(_), .. }) => String::new(),
            Some(_) => paint(FAINT, format!(" (with its model, {})", Bytes(size(bundle)))),
            None => paint(FAINT, format!(" (with model and data, {})", Bytes(size(bundle)))),
        };
        let name = paint(STRONG, format!("{:width$}", bundle.name));
        let text = format!("{name}  {}{carried}", bundle.summary());
        writeln!(out, "{}", wrapped(&text, output_width(), &" ".repeat(width + 2)))?;
    }
    Ok(Exit::Done)
}

/// Copies a bundled recipe into a folder.
pub(super) fn cp(arguments: &CopyArguments, console: &mut Console<'_>) -> Result<Exit, Failure> {
    let Some(bundle) = bundled::find(&arguments.name) else {
        let names: Vec<&str> = BUNDLES.iter().map(|bundle| bundle.name).collect();
        console.error(
            &format!("unknown bundled recipe `{}`", arguments.name),
            Some(&format!("bundled recipes: {}", names.join(", "))),
        );
        return Ok(Exit::Recipe);
    };
    let folder = &arguments.folder;
    match bundled::copy(bundle, folder) {
        Ok(written) => {
            let files: Vec<String> = written.iter().map(|path| path.display().to_string()).collect();
            console.event("result", &json!({"folder": folder.display().to_string(), "files": files}));
            let out = console.out();
            for path in &written {
                writeln!(out, "{}", path.display())?;
            }
            let in_folder = |command: String| match folder.as_os_str() {
                folder if folder == "." => command,
                folder => format!("cd {} && {command}", shell::quoted(&folder.to_string_lossy())),
            };
            let mut steps = Vec::new();
            let rows;
            if let Some(needs) = bundle.needs {
                if let Some(base) = needs.base {
                    steps.push(("get the model", shell::command(["tune", "download", base])));
                }
                let file = folder.join(needs.rows);
                rows = format!(
                    "put your rows into {}, which has three samples, and look at them",
                    file.display()
                );
                steps.push((&rows, in_folder(shell::command(["tune", "inspect", &bundle.file_name()]))));
                steps.push(("train", format!("tune run {}", bundle.file_name())));
            } else {
                steps.push(("", in_folder(shell::command(["tune", "run", &bundle.file_name()]))));
            }
            next_of_all(out, &steps)?;
            Ok(Exit::Done)
        }
        Err(error @ CopyError::Exists(_)) => {
            console.error(&error.to_string(), None);
            Ok(Exit::Recipe)
        }
        Err(error @ CopyError::File(_)) => {
            console.error(&error.to_string(), None);
            Ok(Exit::Resources)
        }
    }
}
