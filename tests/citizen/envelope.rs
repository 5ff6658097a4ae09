//! One envelope around all that is told to programs: `begin`, one `result` where a command came to its end, `end`; and
//! nothing that a command writes can be written by others.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use clap::CommandFactory;
use tune::cli::commands::Arguments;

use super::fixture::{command, events, expect, files_below, named, small, text, tune};
use super::server::{self, Hub};

const CONFIGURATION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/import/axolotl.yml");

/// Every command with `--json`, in an order in which each finds what it needs.
const COMMANDS: [&[&str]; 29] = [
    &["ls"],
    &["keys", "train"],
    &["cp", "quickstart", "copy"],
    &["validate", "small.toml"],
    &["inspect", "small.toml", "-n", "1"],
    &["run", "small.toml", "--tensorboard"],
    &["reproduce", "run", "--output", "again"],
    &["report", "run"],
    &["verify", "run/adapter"],
    &["generate", "--adapter", "run", "Tell me.", "--max-new-tokens", "2"],
    &[
        "generate",
        "--adapter",
        "run",
        "--prompts",
        "held.jsonl",
        "--out",
        "said.jsonl",
        "--max-new-tokens",
        "2",
    ],
    &["chat", "--adapter", "run", "--max-new-tokens", "2"],
    &["eval", "run", "--limit", "1", "--out", "rows.jsonl"],
    &["merge", "run/adapter", "--out", "merged", "--max-divergence", "1e9"],
    &["export", "run/adapter", "--for", "peft", "--out", "exported"],
    &["export", "run/adapter", "--for", "mlx", "--out", "exported-mlx"],
    &["export", "run/adapter", "--gguf=f16", "--out", "gguf"],
    &["export", "run/adapter", "--gguf-lora", "--out", "gguf-lora"],
    &["quantize", "data/quickstart/base", "--out", "quantized"],
    &["import", CONFIGURATION],
    &["import", CONFIGURATION, "--out", "imported.toml"],
    &["bench", "small.toml", "--steps", "1", "--warmup", "0"],
    &["doctor", "--device", "cpu"],
    &["download", "org/model"],
    &["init", "train.jsonl", "--base", "data/quickstart/base"],
    &["watch", "run", "--once"],
    &["completions", "bash"],
    &["man", "pages"],
    &["plan", "small.toml"],
];

#[test]
fn every_command_that_comes_to_its_end_has_one_result() {
    let all: BTreeSet<String> = Arguments::command()
        .get_subcommands()
        .map(|command| command.get_name().to_owned())
        .filter(|name| name != "help")
        .collect();
    let tried: BTreeSet<String> = COMMANDS.iter().map(|words| words[0].to_owned()).collect();
    assert_eq!(all, tried, "a command that this test does not try");

    let folder = small();
    let model = vec![
        server::File::text("config.json", "{\"model_type\": \"llama\"}"),
        server::File::lfs("model.safetensors", 1000),
    ];
    let hub = Hub::new(model);
    let brought = files_below(folder.path());
    for words in COMMANDS {
        let mut child = private(folder.path(), &[words, &["--json"]].concat())
            .env("HF_ENDPOINT", hub.address())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Most do not read it, and may be gone already.
        let _ = child.stdin.take().unwrap().write_all(b"Tell me.\n");
        let output = child.wait_with_output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{words:?}: {said}");
        assert_eq!(said, "", "{words:?}: programs are told on standard output");
        let told = events(&output);
        assert_eq!((&told[0]["event"], &told[0]["command"]), (&"begin".into(), &words[0].into()));
        let last = told.last().unwrap();
        assert_eq!((&last["event"], &last["exit_code"]), (&"end".into(), &0.into()), "{words:?}");
        assert_eq!(named(&told, "result").len(), 1, "{words:?}: {told:?}");
        assert!(named(&told, "result")[0].as_object().unwrap().len() > 1, "{words:?}: an empty result");
        let ends = |name: &str| named(&told, name).len();
        assert_eq!((ends("begin"), ends("end")), (1, 1), "{words:?}");
        #[cfg(unix)]
        require_own(folder.path(), &brought, words);
    }
}

/// Under a umask that leaves others no access.
fn private(folder: &Path, arguments: &[&str]) -> Command {
    let program = command(folder, arguments);
    let mut shell = Command::new("sh");
    shell.args(["-c", "umask 077; exec \"$@\"", "sh"]).arg(program.get_program()).args(program.get_args());
    shell.current_dir(folder);
    shell.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell
}

/// Others have no access to the written files, as the umask asks.
#[cfg(unix)]
fn require_own(folder: &Path, brought: &[PathBuf], words: &[&str]) {
    use std::os::unix::fs::PermissionsExt;
    for path in files_below(folder).iter().filter(|path| !brought.contains(path)) {
        let about = std::fs::symlink_metadata(path).unwrap();
        let mode = about.permissions().mode();
        assert!(about.is_symlink() || mode & 0o077 == 0, "{words:?}: {} has mode {mode:o}", path.display());
    }
}

/// The output of an invalid command line.
#[track_caller]
fn unread(arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    expect(2, folder.path(), arguments)
}

#[test]
fn an_invalid_command_line_is_reported_as_events() {
    for (arguments, command, word) in [
        (&["run", "--json"][..], Some("run"), "<RECIPE>"),
        (&["run", "x.toml", "--json", "--no-such-flag"], Some("run"), "--no-such-flag"),
        (&["run", "x.toml", "--json", "--accept-changes"], Some("run"), "--resume"),
        (&["run", "x.toml", "--device", "abacus", "--json"], Some("run"), "abacus"),
        (&["bench", "--json", "--rank", "0"], Some("bench"), "4096"),
        (&["rum", "--json"], None, "rum"),
        (&["--json"], None, "requires a subcommand"),
        (&["--json", "validate"], Some("validate"), "<RECIPE>"),
    ] {
        let output = unread(arguments);
        let told = events(&output);
        let names: Vec<&str> = told.iter().map(|event| event["event"].as_str().unwrap()).collect();
        assert_eq!(names, ["begin", "problem", "end"], "{arguments:?}");
        assert_eq!((&told[0]["version"], told[0]["command"].as_str()), (&1.into(), command), "{arguments:?}");
        let said = format!("{} {}", told[1]["message"], told[1]["help"]);
        assert!(said.contains(word), "{arguments:?}: {said}");
        assert_eq!((&told[2]["exit_code"], &told[2]["outcome"]), (&2.into(), &"recipe".into()));
        assert!(text(&output.stderr).contains("error: "), "no text for people");
    }
    // Without --json there are no events, and help stays help.
    for arguments in [&["run"][..], &["generate", "--", "--json"], &["run", "--jsonl"]] {
        assert!(unread(arguments).stdout.is_empty(), "{arguments:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    assert!(text(&tune(folder.path(), &["run", "--json", "--help"]).stdout).contains("Usage:"));
    let annotated = unread(&["run", "--annotations", "github", "--no-such-flag"]);
    assert!(text(&annotated.stderr).contains("\n::error title=arguments::"), "{}", text(&annotated.stderr));
}
