//! The program in a folder with the quickstart's base, fed from a pipe.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// The quickstart's base.
pub(crate) fn base() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/quickstart/base")
}

/// Runs the program with `input` on its standard input.
pub(crate) fn tune_with(folder: &Path, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tune"))
        .args(arguments)
        .current_dir(folder)
        .env("HF_HUB_CACHE", folder.join("no-cache"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that refuses its arguments does not read.
    let _unread = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// [`tune_with`] nothing to read.
pub(crate) fn tune(folder: &Path, arguments: &[&str]) -> Output {
    tune_with(folder, arguments, "")
}

/// Standard output of a command that must succeed.
#[track_caller]
pub(crate) fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// Bytes as text.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Each line as JSON.
pub(crate) fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// The base without its chat template, in `folder`.
pub(crate) fn base_without_template(folder: &Path) -> PathBuf {
    let copy = folder.join("plain");
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(base()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
    }
    let config = copy.join("tokenizer_config.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    json.as_object_mut().unwrap().remove("chat_template").unwrap();
    fs::write(config, json.to_string()).unwrap();
    copy
}
