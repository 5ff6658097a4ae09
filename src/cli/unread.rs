//! Reports an invalid command line: as clap's text, and like any other error as annotations and events.
//!
//! Nothing is parsed at that point, so the typed words are searched for `--json` and `--annotations`.

use std::env;
use std::ffi::OsString;
use std::io;

use clap::{CommandFactory, ValueEnum};

use super::args::{Annotations, OutputArguments};
use super::commands::Arguments;
use super::console::Console;
use super::exit::Exit;
use super::finding::Finding;
use super::hints;
use super::report;

/// Shows the error and returns its exit code. Help and version are not errors.
pub(super) fn refuse(error: &clap::Error) -> Exit {
    let typed: Vec<OsString> = env::args_os().skip(1).collect();
    let words: Vec<String> = typed.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let hint =
        hints::hint(error, &words).map(|(message, command)| (message, format!("type this:\n  {command}")));
    match &hint {
        Some((message, help)) => report::error(message, Some(help)),
        // A closed pipe changes nothing.
        None => _ = error.print(),
    }
    if !error.use_stderr() {
        return Exit::Done;
    }
    let mut out = io::stdout().lock();
    let mut console = Console::new(command(&typed).as_deref(), form(&typed), &mut out);
    let found = hint.map(|(message, help)| Finding {
        code: Some("arguments".into()),
        ..Finding::new(message, Some(&help))
    });
    console.problem(&found.unwrap_or_else(|| finding(error)));
    // The exit code stays the same if the reader has closed the output.
    console.end(Exit::Recipe).unwrap_or(Exit::Recipe)
}

/// The command, if the first word names one.
fn command(typed: &[OsString]) -> Option<String> {
    let first = typed.iter().find(|word| !word.to_string_lossy().starts_with('-'))?.to_str()?;
    Arguments::command().find_subcommand(first).map(|command| command.get_name().to_owned())
}

/// The form of output that was asked for.
fn form(typed: &[OsString]) -> OutputArguments {
    let words: Vec<&str> =
        typed.iter().filter_map(|word| word.to_str()).take_while(|word| *word != "--").collect();
    let value = words.iter().enumerate().find_map(|(at, word)| {
        let rest = word.strip_prefix("--annotations")?;
        match rest.strip_prefix('=') {
            Some(value) => Some(value),
            None if rest.is_empty() => words.get(at + 1).copied(),
            None => None,
        }
    });
    let annotations = value.and_then(|value| Annotations::from_str(value, false).ok());
    OutputArguments { json: words.contains(&"--json"), annotations }
}

/// clap's error, without its `error:` prefix and its closing advice.
fn finding(error: &clap::Error) -> Finding {
    let said = error.to_string();
    let said = said.trim().strip_prefix("error: ").unwrap_or(said.trim());
    let (message, usage) = said.split_once("\n\n").unwrap_or((said, ""));
    let lines =
        usage.lines().map(str::trim).filter(|line| !line.is_empty() && !line.contains("try '--help'"));
    let help = lines.collect::<Vec<_>>().join("; ");
    Finding {
        code: Some("arguments".into()),
        message: message.to_owned(),
        help: (!help.is_empty()).then_some(help),
        location: None,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn typed(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[test]
    fn the_form_of_output_is_found_among_the_typed_words() {
        let form = |words: &[&str]| form(&typed(words));
        assert!(form(&["run", "--jsonl", "x"]).annotations.is_none() && !form(&["run", "--jsonl"]).json);
        assert!(form(&["--json", "run"]).json && !form(&["run", "--", "--json"]).json);
        for words in [&["run", "--annotations", "github"][..], &["--annotations=github"]] {
            assert_eq!(form(words).annotations, Some(Annotations::Github));
        }
        for words in [&["run", "--annotations"][..], &["--annotations=jenkins"], &["--annotationsgithub"]] {
            assert_eq!(form(words).annotations, None);
        }
        assert_eq!(command(&typed(&["--json", "run", "x"])).as_deref(), Some("run"));
        assert_eq!(command(&typed(&["rum", "x"])), None);
        assert_eq!(command(&typed(&["--json"])), None);
    }

    #[test]
    fn message_and_help_are_separated() {
        let said =
            |words: &[&str]| finding(&Arguments::try_parse_from([&["tune"], words].concat()).unwrap_err());
        let missing = said(&["run"]);
        assert!(missing.message.contains("<RECIPE>") && !missing.message.contains("Usage"), "{missing:?}");
        assert!(missing.help.unwrap().contains("Usage: tune run"));
        let unknown = said(&["run", "x", "--resum"]);
        assert!(unknown.message.contains("'--resum'"), "{unknown:?}");
        let help = unknown.help.unwrap();
        assert!(help.contains("'--resume'") && !help.contains("try '--help'"), "{help}");
    }
}
