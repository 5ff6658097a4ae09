//! The command line: the only part that prints, reads the environment and decides exit codes.

pub mod adapter_args;
pub mod args;
mod bundles;
pub mod download;
mod environment;
mod exit;
mod inspect;
mod merge;
mod progress;
mod report;
mod run;
mod style;
mod tables;
mod validate;
mod verify;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use args::{Arguments, Command};
use exit::Exit;

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version go to standard output and are no error. A closed pipe changes nothing.
            let _ = error.print();
            let exit = if error.use_stderr() { Exit::Recipe } else { Exit::Done };
            return exit.into();
        }
    };
    let mut out = anstream::stdout().lock();
    let exit = match dispatch(&arguments.command, &mut out).and_then(|exit| out.flush().map(|()| exit)) {
        Ok(exit) => exit,
        // Whoever read our output has seen enough, as `head` does.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
        Err(error) => {
            report::error(&format!("cannot write to standard output: {error}"), None);
            Exit::Other
        }
    };
    exit.into()
}

fn dispatch(command: &Command, out: &mut impl Write) -> io::Result<Exit> {
    match command {
        Command::Run(arguments) => run::run(arguments, out),
        Command::Validate(arguments) => validate::validate(arguments, out),
        Command::Inspect(arguments) => inspect::inspect(arguments, out),
        Command::Merge(arguments) => merge::merge(arguments, out),
        Command::Verify(arguments) => verify::verify(arguments, out),
        Command::Export(arguments) => merge::export(arguments, out),
        Command::Download(arguments) => download::download(arguments, out),
        Command::Ls => bundles::ls(out),
        Command::Cp(arguments) => bundles::cp(arguments, out),
    }
}
