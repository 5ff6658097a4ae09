//! The command line: the only part that prints, reads the environment and decides exit codes.

pub mod adapter_args;
mod annotations;
pub mod args;
mod bench;
mod bundles;
mod chat;
mod console;
mod doctor;
pub mod download;
mod environment;
mod eval;
mod exit;
mod finding;
mod generate;
mod gguf;
pub mod import;
mod inspect;
mod merge;
mod page;
mod progress;
pub mod quantize;
mod report;
mod reproduce;
mod run;
mod speed;
mod style;
mod tables;
pub mod talk_args;
mod unread;
mod validate;
mod verify;

use std::io::{self, Write};
use std::process::{self, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;

use args::{Arguments, Command, OutputArguments};
use console::Console;
use exit::Exit;

use crate::device;

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return unread::refuse(&error).into(),
    };
    let profile = match &arguments.command {
        Command::Bench(arguments) if arguments.profile => Some(environment::profile_file()),
        _ => None,
    };
    device::configure(environment::kernel_cache().as_deref(), profile.as_deref());
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
    if let Some(profile) = profile {
        // Without a GPU nobody has written it.
        let _ = std::fs::remove_file(profile);
    }
    exit.into()
}

/// Memory is out: says so, and ends the program with the exit code of resources. Allocates nothing.
pub fn out_of_memory(bytes: usize) -> ! {
    static SAID: AtomicBool = AtomicBool::new(false);
    // Said once, whichever threads ask for memory while the program ends.
    if SAID.swap(true, Ordering::Relaxed) {
        process::exit(Exit::Resources as i32);
    }
    let _ = writeln!(
        io::stderr(),
        "error: out of memory: {bytes} bytes more could not be had\nhelp: `tune validate` tells what a run needs; a \
         smaller `train.micro_batch_size` or `data.max_seq_len` needs less, and what is in the newest checkpoint is not \
         lost (`--resume`)"
    );
    process::exit(Exit::Resources as i32)
}

fn dispatch(command: &Command, out: &mut impl Write) -> io::Result<Exit> {
    match command {
        Command::Run(arguments) => {
            speak("run", arguments.output, out, |console| run::run(arguments, console))
        }
        Command::Validate(arguments) => {
            speak("validate", arguments.output, out, |console| validate::validate(arguments, console))
        }
        Command::Inspect(arguments) => {
            speak("inspect", arguments.output, out, |console| inspect::inspect(arguments, console))
        }
        Command::Reproduce(arguments) => speak("reproduce", arguments.for_programs, out, |console| {
            reproduce::reproduce(arguments, console)
        }),
        Command::Report(arguments) => {
            speak("report", arguments.for_programs, out, |console| page::report(arguments, console))
        }
        Command::Bench(arguments) => {
            speak("bench", arguments.output, out, |console| bench::bench(arguments, console))
        }
        Command::Generate(arguments) => {
            speak("generate", arguments.output, out, |console| generate::generate(arguments, console))
        }
        Command::Chat(arguments) => {
            speak("chat", arguments.output, out, |console| chat::chat(arguments, console))
        }
        Command::Eval(arguments) => {
            speak("eval", arguments.output, out, |console| eval::eval(arguments, console))
        }
        Command::Doctor(arguments) => {
            speak("doctor", arguments.for_programs, out, |console| doctor::doctor(arguments, console))
        }
        Command::Merge(arguments) => {
            speak("merge", arguments.for_programs, out, |console| merge::merge(arguments, console))
        }
        Command::Quantize(arguments) => {
            speak("quantize", arguments.output, out, |console| quantize::quantize(arguments, console))
        }
        Command::Verify(arguments) => {
            speak("verify", arguments.for_programs, out, |console| verify::verify(arguments, console))
        }
        Command::Export(arguments) => {
            speak("export", arguments.for_programs, out, |console| merge::export(arguments, console))
        }
        Command::Download(arguments) => {
            speak("download", arguments.for_programs, out, |console| download::download(arguments, console))
        }
        Command::Import(arguments) => {
            speak("import", arguments.for_programs, out, |console| import::import(arguments, console))
        }
        Command::Ls(form) => speak("ls", *form, out, bundles::ls),
        Command::Cp(arguments) => {
            speak("cp", arguments.for_programs, out, |console| bundles::cp(arguments, console))
        }
    }
}

/// Does what a command does between its first word and its last.
fn speak(
    command: &str,
    form: OutputArguments,
    out: &mut dyn Write,
    act: impl FnOnce(&mut Console<'_>) -> io::Result<Exit>,
) -> io::Result<Exit> {
    let mut console = Console::new(Some(command), form, out);
    let exit = act(&mut console)?;
    console.end(exit)
}
