//! A run of a few seconds: the quickstart's model, a dozen rows, two steps.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// A folder with a small recipe, `small.toml`, and all it needs.
pub(crate) fn small() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let copied = tune(folder.path(), &["cp", "quickstart", "."]);
    assert!(copied.status.success(), "{}", text(&copied.stderr));
    let row = |index: usize| {
        format!(
            "{{\"messages\": [{{\"role\": \"user\", \"content\": \"Tell me of number {index}.\"}}, \
             {{\"role\": \"assistant\", \"content\": \"Ahoy, it is {index}.\"}}]}}\n"
        )
    };
    let rows = |range: std::ops::Range<usize>| range.map(row).collect::<String>();
    fs::write(folder.path().join("train.jsonl"), rows(0..12)).unwrap();
    fs::write(folder.path().join("held.jsonl"), rows(12..14)).unwrap();
    let recipe = "version = 1\noutput_dir = \"run\"\n\n[model]\nbase = \"data/quickstart/base\"\n\n\
                  [adapter.lora]\nrank = 4\n\n[data]\nmax_seq_len = 128\n\n\
                  [[dataset]]\npath = \"train.jsonl\"\nformat = \"messages\"\n\n\
                  [[dataset]]\npath = \"held.jsonl\"\nformat = \"messages\"\nsplit = \"validation\"\n\n\
                  [train]\nmax_steps = 2\nmicro_batch_size = 1\nlearning_rate = 1e-3\n\n\
                  [sample]\nprompts = [\"Tell me.\"]\nmax_new_tokens = 4\n";
    fs::write(folder.path().join("small.toml"), recipe).unwrap();
    folder
}

/// The program, to be run in a folder, with a token in its environment that must never be seen again.
pub(crate) fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tune"));
    command
        .args(arguments)
        .current_dir(folder)
        .env("NO_COLOR", "1")
        .env("HF_HUB_CACHE", folder.join("no-cache"))
        .env("HF_TOKEN", TOKEN)
        .env("HUGGING_FACE_HUB_TOKEN", TOKEN);
    command
}

/// A token for a hub.
pub(crate) const TOKEN: &str = "hf_thisIsASecretThatMustNotLeak";

/// Runs the program in a folder.
pub(crate) fn tune(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().unwrap()
}

/// Runs it, and expects an exit code.
#[track_caller]
pub(crate) fn expect(code: i32, folder: &Path, arguments: &[&str]) -> Output {
    let output = tune(folder, arguments);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{arguments:?}\n{out}\n{err}");
    output
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Standard output as events: nothing else may stand there.
#[track_caller]
pub(crate) fn events(output: &Output) -> Vec<Value> {
    let out = text(&output.stdout);
    assert!(out.ends_with('\n'), "{out:?}");
    out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"))).collect()
}

/// The events of one name.
pub(crate) fn named<'a>(events: &'a [Value], name: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["event"] == name).collect()
}

/// Every file below a folder.
pub(crate) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path));
        }
        found.push(path);
    }
    found.sort();
    found
}
