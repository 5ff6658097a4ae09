//! `tune completions` and `tune man`: what shells and `man` read, made from the declarations of the commands.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use serde_json::json;

use super::commands::Arguments;
use super::console::Console;
use super::exit::Exit;
use super::failure::Failure;
use super::lines::line;
use super::style::{GOOD, paint};
use crate::files;

/// Arguments of `tune completions`.
#[derive(Debug, Args)]
pub struct CompletionsArguments {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Arguments of `tune man`.
#[derive(Debug, Args)]
pub struct ManArguments {
    /// The folder to write the pages into, one for each command; it is created
    pub folder: PathBuf,
}

/// Prints the completions of a shell.
pub(super) fn completions(
    arguments: &CompletionsArguments,
    console: &mut Console<'_>,
) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Arguments::command(), "tune", &mut script);
    let shown = String::from_utf8_lossy(&script).into_owned();
    console.event("result", &json!({"shell": arguments.shell.to_string(), "script": shown}));
    console.out().write_all(&script)?;
    Ok(Exit::Done)
}

/// Writes the man pages.
pub(super) fn man(arguments: &ManArguments, console: &mut Console<'_>) -> Result<Exit, Failure> {
    files::create_folder(&arguments.folder)?;
    let mut command = Arguments::command();
    command.build();
    let mut written = Vec::new();
    let mut pages = vec![(String::from("tune"), command.clone())];
    pages.extend(command.get_subcommands().map(|one| (format!("tune-{}", one.get_name()), one.clone())));
    for (name, command) in pages {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).title(&name).render(&mut page)?;
        let path = arguments.folder.join(format!("{name}.1"));
        files::write_bytes(&path, &page)?;
        written.push(path.display().to_string());
    }
    console.event("result", &json!({"folder": arguments.folder.display().to_string(), "files": written}));
    let text = format!("{} ({} pages)", arguments.folder.display(), written.len());
    line(console.out(), "written", &paint(GOOD, text))?;
    Ok(Exit::Done)
}
