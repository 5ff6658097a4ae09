//! The command line: the only room that prints, reads the environment and chooses exit codes.
#![doc = include_str!("ci.md")]

mod annotations;
pub mod args;
mod bench;
mod bundles;
mod chat;
mod chat_input;
mod choices;
mod clock;
mod combine;
pub mod commands;
mod console;
mod doctor;
mod download;
mod environment;
mod eval;
mod exit;
mod export;
mod failure;
mod fidelity;
mod finding;
mod generate;
mod gguf;
mod hints;
mod import;
mod init;
mod inspect;
mod keys;
mod lines;
mod merge;
mod page;
mod plan;
mod progress;
mod quantization;
mod quantize;
mod ranks;
mod report;
mod reproduce;
mod run;
mod shells;
mod shown;
mod side_by_side;
mod speed;
mod style;
mod tables;
mod unread;
mod validate;
mod verify;
mod watch;
mod wheels;

use std::io::{self, Write};
use std::process::{self, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{CommandFactory, FromArgMatches};

use commands::{Arguments, Command};
use console::Console;
use environment::{Context, Signals};
use exit::Exit;
use failure::Failure;

use crate::data::template::being_rendered;
use crate::device;
use crate::run::Environment;

/// Parses the command line and runs its command.
pub fn main() -> ExitCode {
    style::settle();
    let (name, arguments) = match parse() {
        Ok(parsed) => parsed,
        Err(error) => return unread::refuse(&error).into(),
    };
    let cache = environment::kernel_cache();
    wheels::restart_with_cuda(cache.as_deref());
    let profile = match &arguments.command {
        Command::Bench(arguments) if arguments.profile => Some(environment::profile_file()),
        _ => None,
    };
    device::configure(cache.as_deref(), profile.as_deref());
    let mut out = anstream::stdout().lock();
    let exit = match dispatch(&name, &arguments, &mut out).and_then(|exit| out.flush().map(|()| exit)) {
        Ok(exit) => exit,
        // The reader of our output closed it, as `head` does.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
        Err(error) => {
            report::error(&format!("cannot write to standard output: {error}"), None);
            Exit::Resources
        }
    };
    if let Some(profile) = profile {
        // Without a GPU it does not exist.
        let _ = std::fs::remove_file(profile);
    }
    exit.into()
}

/// Reports that memory ran out, with the chat template that is being rendered, and ends the program with the exit code of
/// resources. Allocates nothing.
pub fn out_of_memory(bytes: usize) -> ! {
    static SAID: AtomicBool = AtomicBool::new(false);
    // Reported once, even if several threads run out of memory while the program ends.
    if SAID.swap(true, Ordering::Relaxed) {
        process::exit(i32::from(Exit::Resources.code()));
    }
    let _ = match being_rendered() {
        Some(origin) => writeln!(
            io::stderr(),
            "error: out of memory: the chat template of {origin} asked for {bytes} bytes\nhelp: name another template in \
             `data.chat_template`"
        ),
        None => writeln!(
            io::stderr(),
            "error: out of memory: cannot allocate {bytes} bytes\nhelp: `tune validate` shows the memory that a run \
             needs; lower `train.micro_batch_size` or `data.max_seq_len`, then continue from the newest checkpoint with \
             `--resume`"
        ),
    };
    process::exit(i32::from(Exit::Resources.code()))
}

/// The name of the command, and everything that was typed.
fn parse() -> Result<(String, Arguments), clap::Error> {
    let mut command = Arguments::command();
    let matches = command.try_get_matches_from_mut(std::env::args_os())?;
    let arguments = Arguments::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
    Ok((matches.subcommand_name().unwrap_or_default().to_owned(), arguments))
}

/// Whether a command asks for signals while it works. They end the others at once.
fn stops_at_signals(command: &Command) -> bool {
    match command {
        Command::Run(_)
        | Command::Validate(_)
        | Command::Reproduce(_)
        | Command::Bench(_)
        | Command::Generate(_)
        | Command::Eval(_)
        | Command::Doctor(_)
        | Command::Watch(_)
        | Command::Merge(_)
        | Command::Quantize(_)
        | Command::Download(_) => true,
        Command::Report(arguments) => arguments.quantization || arguments.watch,
        Command::Export(arguments) => !matches!(arguments.form.program, Some(choices::Program::Adapter(_))),
        Command::Inspect(_)
        | Command::Plan(_)
        | Command::Completions(_)
        | Command::Man(_)
        | Command::Chat(_)
        | Command::Verify(_)
        | Command::Import(_)
        | Command::Init(_)
        | Command::Keys(_)
        | Command::Ls
        | Command::Cp(_) => false,
    }
}

fn dispatch(name: &str, arguments: &Arguments, out: &mut dyn Write) -> io::Result<Exit> {
    let signals = if stops_at_signals(&arguments.command) { Signals::listen() } else { Signals::default() };
    let (stop, save) = (|| signals.raised(), || signals.take_save_request());
    let hub_cache = environment::hub_cache();
    let context = &Context {
        environment: Environment { hub_cache: &hub_cache, stop: &stop, save: &save },
        signals: &signals,
    };
    let mut nowhere = io::sink();
    let out = match &arguments.command {
        Command::Run(arguments) if arguments.ranks.is_silent() => &mut nowhere,
        _ => out,
    };
    let mut console = Console::new(Some(name), arguments.output, out);
    let to = &mut console;
    let done = match &arguments.command {
        Command::Run(arguments) => run::run(arguments, context, to),
        Command::Validate(arguments) => validate::validate(arguments, context, to),
        Command::Inspect(arguments) => inspect::inspect(arguments, context, to),
        Command::Reproduce(arguments) => reproduce::reproduce(arguments, context, to),
        Command::Report(arguments) => page::report(arguments, context, to),
        Command::Watch(arguments) => watch::watch(arguments, context, to),
        Command::Bench(arguments) => bench::bench(arguments, context, to),
        Command::Plan(arguments) => plan::plan(arguments, context, to),
        Command::Generate(arguments) => generate::generate(arguments, context, to),
        Command::Chat(arguments) => chat::chat(arguments, context, to),
        Command::Eval(arguments) => eval::eval(arguments, context, to),
        Command::Doctor(arguments) => doctor::doctor(arguments, context, to),
        Command::Merge(arguments) => merge::merge(arguments, context, to),
        Command::Quantize(arguments) => quantize::quantize(arguments, context, to),
        Command::Verify(arguments) => verify::verify(arguments, context, to),
        Command::Export(arguments) => export::export(arguments, context, to),
        Command::Download(arguments) => download::download(arguments, context, to),
        Command::Init(arguments) => init::init(arguments, context, to),
        Command::Import(arguments) => import::import(arguments, to),
        Command::Keys(arguments) => keys::keys(arguments, to),
        Command::Completions(arguments) => shells::completions(arguments, to),
        Command::Man(arguments) => shells::man(arguments, to),
        Command::Ls => bundles::ls(to),
        Command::Cp(arguments) => bundles::cp(arguments, to),
    };
    let exit = match done {
        Ok(exit) => exit,
        Err(Failure::Output(error)) => return Err(error),
        Err(failure) if failure.is_stop() => {
            console.error("stopped; nothing was written", None);
            signals.exit()
        }
        Err(Failure::Run(error)) => console.failure(&error),
    };
    console.end(exit)
}
