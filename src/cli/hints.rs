//! What was meant by a command line that other tools would take: a command under another name, an option that is a key
//! of the recipe here. The answer is the whole command to type.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::files::shell;
use crate::recipe;

/// Commands of other tools, and what does the same here.
const COMMANDS: [(&[&str], &str, &str); 6] = [
    (
        &["finetune", "fine-tune", "sft", "lora", "qlora", "fit", "start"],
        "training is `tune run`",
        "tune run recipe.toml",
    ),
    (&["resume", "continue"], "a run goes on by `--resume`", "tune run recipe.toml --resume"),
    (
        &["serve", "server", "api"],
        "tune has no server: write a GGUF file for llama.cpp or Ollama, or an adapter for vLLM",
        "tune export runs/NAME --for ollama --out gguf",
    ),
    (
        &["push", "upload", "publish"],
        "tune uploads nothing; the tool of the hub does",
        "hf upload ORGANIZATION/NAME runs/NAME/adapter",
    ),
    (
        &["convert", "quantise", "gguf"],
        "GGUF files are written by `tune export`",
        "tune export runs/NAME --gguf q4_k_m --out gguf",
    ),
    (&["list", "recipes"], "recipes are listed by `tune ls`", "tune ls"),
];

/// Options of other tools that are a command here.
const OPTIONS: [(&[&str], &str); 2] = [
    (&["--dry-run", "--check", "--dry_run"], "validate"),
    (&["--preview", "--show-data", "--debug-data"], "inspect"),
];

/// Commands that take a recipe and `--set`.
const OF_RECIPES: [&str; 4] = ["run", "train", "validate", "inspect"];

/// A message and a command to type for clap's `error` about `typed`, the words behind the program's name.
pub(super) fn hint(error: &clap::Error, typed: &[String]) -> Option<(String, String)> {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let wrong = context(ContextKind::InvalidSubcommand)?;
            let (_, why, command) = COMMANDS.iter().find(|(names, ..)| names.contains(&wrong))?;
            Some((format!("there is no command `{wrong}`: {why}"), (*command).to_owned()))
        }
        ErrorKind::UnknownArgument => {
            let option = context(ContextKind::InvalidArg)?;
            let option = option.split([' ', '=']).next()?;
            let command = typed.iter().find(|word| !word.starts_with('-'))?;
            if !OF_RECIPES.contains(&command.as_str()) {
                return None;
            }
            if let Some((_, instead)) = OPTIONS.iter().find(|(names, _)| names.contains(&option)) {
                let words = typed.iter().filter(|word| *word != option);
                let words = words.map(|word| if word == command { *instead } else { word.as_str() });
                let command = shell::command(std::iter::once("tune").chain(words));
                return Some((format!("there is no option `{option}`: `tune {instead}` does that"), command));
            }
            let key = key_of(option)?;
            let command = with_set(typed, option, &key)?;
            Some((format!("there is no option `{option}`: it is the key `{key}` of the recipe"), command))
        }
        _ => None,
    }
}

/// The recipe's key that an option is called by, here or in other tools.
fn key_of(option: &str) -> Option<String> {
    let name = option.trim_start_matches('-').replace('-', "_").to_lowercase();
    let keys = || recipe::tables().into_iter().filter(|table| !table.repeated).flat_map(|table| table.keys);
    let ours = keys().find(|key| key.name == name);
    ours.or_else(|| keys().find(|key| key.also.contains(&name.as_str()))).map(|key| key.path)
}

/// The command with the option as `--set`; `None` if the option has no value.
fn with_set(typed: &[String], option: &str, key: &str) -> Option<String> {
    let mut words = vec!["tune".to_owned()];
    let mut typed = typed.iter();
    let mut found = false;
    while let Some(word) = typed.next() {
        let value = match word.strip_prefix(option) {
            Some("") => typed.next().cloned(),
            Some(rest) => rest.strip_prefix('=').map(str::to_owned),
            None => None,
        };
        match value {
            Some(value) => {
                words.extend(["--set".to_owned(), format!("{key}={value}")]);
                found = true;
            }
            None => words.push(word.clone()),
        }
    }
    found.then(|| shell::command(words))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::commands::Arguments;

    fn said(line: &str) -> Option<(String, String)> {
        let typed: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let error =
            Arguments::try_parse_from(std::iter::once("tune".to_owned()).chain(typed.clone())).unwrap_err();
        hint(&error, &typed)
    }

    #[test]
    fn options_of_other_tools_become_the_command_to_type() {
        for (typed, command) in [
            ("run r.toml --dry-run --set train.epochs=2", "tune validate r.toml --set train.epochs=2"),
            ("run r.toml --learning-rate 1e-4", "tune run r.toml --set train.learning_rate=1e-4"),
            ("run --lr=1e-4 r.toml", "tune run --set train.learning_rate=1e-4 r.toml"),
            ("run r.toml --num_train_epochs 3", "tune run r.toml --set train.epochs=3"),
            ("validate r.toml --output-dir x", "tune validate r.toml --set output_dir=x"),
            ("run r.toml --rank 8", "tune run r.toml --set adapter.lora.rank=8"),
            ("serve runs/x", "tune export runs/NAME --for ollama --out gguf"),
            ("finetune r.toml", "tune run recipe.toml"),
        ] {
            assert_eq!(said(typed).map(|(_, command)| command).as_deref(), Some(command), "{typed}");
        }
        for typed in ["run r.toml --nonsense 3", "rnu r.toml", "chat --learning-rate 3", "run r.toml --lr"] {
            assert_eq!(said(typed), None, "{typed}");
        }
    }
}
