//! The first hour with the program: own data, commands as others spell them, what is printed typed again.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests stop where they fail")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

mod packaging;
#[cfg(unix)]
mod terminal;

const HOME: &str = env!("CARGO_MANIFEST_DIR");

fn tune(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tune"))
        .args(arguments)
        .current_dir(folder)
        .env("NO_COLOR", "1")
        .env("HF_HUB_CACHE", folder.join("no-cache"))
        .output()
        .unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn error(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The command that begins with `words` on a line of its own.
fn printed<'a>(text: &'a str, words: &str) -> &'a str {
    let found = text.lines().find(|line| line.trim_start().starts_with(words));
    found.unwrap_or_else(|| panic!("no line `{words}…` in\n{text}")).trim()
}

/// Runs a printed command in a shell that finds this program.
fn typed(folder: &Path, command: &str) -> Output {
    let programs = Path::new(env!("CARGO_BIN_EXE_tune")).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    Command::new("sh")
        .args(["-c", command])
        .current_dir(folder)
        .env("PATH", path)
        .env("NO_COLOR", "1")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap()
}

fn chats(rows: usize) -> String {
    let row = |number| {
        let messages =
            [("user", format!("What is number {number}?")), ("assistant", format!("It is {number}."))];
        let messages = messages.map(|(role, content)| serde_json::json!({"role": role, "content": content}));
        serde_json::json!({"messages": messages}).to_string() + "\n"
    };
    (0..rows).map(row).collect()
}

const BASE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/quickstart/base");

#[test]
fn a_recipe_is_made_of_a_file_and_trains() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("my chats.jsonl"), chats(60)).unwrap();
    let made = tune(folder, &["init", "my chats.jsonl", "--base", BASE]);
    assert!(made.status.success(), "{}", error(&made));
    let recipe = fs::read_to_string(folder.join("my-chats.toml")).unwrap();
    for line in ["format = \"messages\"", "max_seq_len = 256", "val_split = 0.1", "path = \"my chats.jsonl\""]
    {
        assert!(recipe.lines().any(|found| found == line), "no `{line}` in\n{recipe}");
    }
    // The commands that it prints work as they stand.
    let validated = typed(folder, printed(&out(&made), "tune validate"));
    assert!(validated.status.success(), "{}", error(&validated));
    let again = tune(folder, &["init", "my chats.jsonl", "--base", BASE]);
    assert_eq!(again.status.code(), Some(2), "an existing recipe is kept");
    let run = tune(
        folder,
        &[
            "train",
            "my-chats.toml",
            "--set",
            "train.max_steps=2",
            "--set",
            "train.warmup_steps=0",
            "--set",
            "sample.prompts=[]",
        ],
    );
    assert!(run.status.success(), "{}", error(&run));
    // Every command takes the run as its first argument.
    for arguments in [
        &["verify", "runs/my-chats"][..],
        &["report", "runs/my-chats/adapter"],
        &["watch", "runs/my-chats", "--once"],
        &["eval", "runs/my-chats"],
        &["generate", "runs/my-chats", "Hi.", "--max-new-tokens", "2"],
        &["generate", "runs/my-chats/adapter", "Hi.", "--max-new-tokens", "2"],
        &["generate", BASE, "Hi.", "--max-new-tokens", "2"],
        &["generate", "--base", BASE, "Hi.", "--max-new-tokens", "2"],
        &["merge", "runs/my-chats", "--out", "merged"],
        &["export", "runs/my-chats", "--gguf", "Q8_0", "--out", "gguf"],
        &["export", "runs/my-chats", "--gguf", "f16", "--no-measure", "--out", "gguf-f16"],
        &["merge", "runs/my-chats", "--no-measure", "--out", "merged-unmeasured"],
        &["export", "runs/my-chats", "--for", "peft", "--out", "peft"],
    ] {
        let done = tune(folder, arguments);
        assert!(done.status.success(), "{arguments:?}: {}", error(&done));
        // What differs from what was trained is measured on the run's held-out rows.
        let is_measured = out(&done).contains("held out") && out(&done).contains("as trained");
        let is_file = arguments[0] == "merge" || arguments.contains(&"--gguf");
        assert_eq!(is_measured, is_file && !arguments.contains(&"--no-measure"), "{}", out(&done));
    }
    // An occupied folder is exit 2 everywhere, and says what to add.
    for arguments in [
        &["export", "runs/my-chats", "--for", "vllm", "--out", "peft"][..],
        &["export", "runs/my-chats", "--for", "ollama", "--out", "gguf"],
        &["merge", "runs/my-chats", "--out", "merged"],
    ] {
        let refused = tune(folder, arguments);
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}: {}", error(&refused));
        assert!(error(&refused).contains("--overwrite"), "{}", error(&refused));
    }
}

#[test]
fn formats_and_columns_are_recognised() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("faq.csv"), "question,answer\nWhat?,That.\nWho?,They.\n").unwrap();
    let made = tune(folder, &["init", "faq.csv", "--base", BASE, "--json"]);
    assert!(made.status.success(), "{}", out(&made));
    let recipe = fs::read_to_string(folder.join("faq.toml")).unwrap();
    assert!(
        recipe.contains("format = \"prompt-completion\"") && recipe.contains("completion = \"answer\""),
        "{recipe}"
    );
    assert!(tune(folder, &["validate", "faq.toml"]).status.success());
    fs::write(folder.join("odd.csv"), "a,b\n1,2\n").unwrap();
    let refused = tune(folder, &["init", "odd.csv"]);
    assert_eq!(refused.status.code(), Some(2), "{}", error(&refused));
    assert!(error(&refused).contains("`a`, `b`"), "{}", error(&refused));
}

#[test]
fn an_interrupted_command_is_printed_whole_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    assert!(tune(folder, &["cp", "quickstart", "."]).status.success());
    let short = [
        "--set",
        "train.max_steps=3",
        "--set",
        "output_dir=runs/a b",
        "--set",
        "sample.prompts=[]",
        "--device",
        "cpu",
    ];
    let done = tune(folder, &[&["run", "quickstart.toml"][..], &short].concat());
    assert!(done.status.success(), "{}", error(&done));
    let refused = tune(folder, &[&["run", "quickstart.toml"][..], &short].concat());
    assert_eq!(refused.status.code(), Some(2));
    let said = error(&refused);
    let command = printed(&said, "tune run");
    assert!(command.contains("--set 'output_dir=runs/a b'") && command.ends_with("--overwrite"), "{command}");
    let again = typed(folder, command);
    assert!(again.status.success(), "{}", error(&again));
    // What another run is refused with can be typed too.
    let other = tune(
        folder,
        &[&["run", "quickstart.toml", "--resume"][..], &short, &["--set", "train.learning_rate=1e-3"]]
            .concat(),
    );
    let said = error(&other);
    assert!(printed(&said, "tune run").ends_with("--resume --accept-changes"), "{said}");
}

#[test]
fn what_other_tools_would_take_is_answered_with_the_command_to_type() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("axolotl.yaml"), "base_model: x\nlora_r: 8\n").unwrap();
    for (arguments, command) in [
        (&["run", "axolotl.yaml"][..], "tune import axolotl.yaml --out axolotl.toml"),
        (&["run", "r.toml", "--dry-run"], "tune validate r.toml"),
        (&["train", "r.toml", "--learning-rate", "1e-4"], "tune train r.toml --set train.learning_rate=1e-4"),
        (&["serve"], "tune export runs/NAME --for ollama --out gguf"),
    ] {
        let refused = tune(folder, arguments);
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}");
        let said = error(&refused);
        assert!(
            said.lines().any(|line| line.trim().trim_start_matches("│ ").trim() == command),
            "{arguments:?}: {said}"
        );
        assert!(said.lines().count() < 8, "{said}");
    }
}

#[test]
fn a_copied_recipe_says_what_it_needs() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let copied = tune(folder, &["cp", "qwen3-0.6b", "my bot"]);
    let said = out(&copied);
    assert_eq!(printed(&said, "tune download"), "tune download Qwen/Qwen3-0.6B");
    assert!(said.contains("\n  cd 'my bot' && tune inspect qwen3-0.6b.toml\n"), "{said}");
    let rows = fs::read_to_string(folder.join("my bot/chats.jsonl")).unwrap();
    assert_eq!(rows.lines().count(), 3);
}

#[test]
fn what_is_missing_is_said_with_the_command_that_leads_there() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    assert!(tune(folder, &["cp", "quickstart", "my demo"]).status.success());
    let beside = tune(folder, &["validate", "my demo/quickstart.toml"]);
    assert_eq!(beside.status.code(), Some(2));
    assert_eq!(printed(&error(&beside), "cd "), "cd 'my demo'");
    let absent = ["validate", "quickstart.toml", "--set", "model.base=Qwen/Qwen3-0.6B"];
    let absent = tune(&folder.join("my demo"), &absent);
    assert_eq!(absent.status.code(), Some(2));
    assert_eq!(printed(&error(&absent), "tune download"), "tune download Qwen/Qwen3-0.6B");
}

#[test]
fn settings_that_are_rarely_meant_are_noted() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    assert!(tune(folder, &["cp", "quickstart", "."]).status.success());
    let said = |changes: &[&str]| {
        let changes = changes.iter().flat_map(|change| ["--set", change]);
        let done =
            tune(folder, &["validate", "quickstart.toml"].into_iter().chain(changes).collect::<Vec<_>>());
        assert!(done.status.success(), "{}", error(&done));
        out(&done)
    };
    assert!(!said(&["train.max_steps=60"]).contains("note:"));
    assert!(said(&["train.max_steps=1"]).contains("every step has learning rate 0"));
    assert!(said(&["train.warmup_steps=50"]).contains("the warm-up takes 50 of 60 steps"));
    assert!(said(&["train.max_steps=10"]).contains("step 1 changes nothing"));
    assert!(said(&["train.max_steps=6000"]).contains("times: the model may learn the rows by heart"));
}

#[test]
fn samples_are_answered_during_training() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    assert!(tune(folder, &["cp", "quickstart", "."]).status.success());
    let run = [
        "run",
        "quickstart.toml",
        "--json",
        "--set",
        "train.max_steps=4",
        "--set",
        "sample.max_new_tokens=4",
    ];
    let with =
        tune(folder, &[&run[..], &["--set", "sample.every=2", "--set", "output_dir=runs/with"]].concat());
    let without = tune(folder, &[&run[..], &["--set", "output_dir=runs/without"]].concat());
    assert!(with.status.success() && without.status.success(), "{}", error(&with));
    let events: Vec<Value> = out(&with).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let sampled: Vec<&Value> = events.iter().filter(|event| event["event"] == "sampled").collect();
    assert_eq!(sampled.len(), 2, "two prompts after step 2; those after the last step are the samples");
    assert!(sampled.iter().all(|event| event["step"] == 2));
    assert_eq!(fs::read_to_string(folder.join("runs/with/samples.jsonl")).unwrap().lines().count(), 2);
    let adapter = |run: &str| fs::read(folder.join(run).join("adapter/adapter_model.safetensors")).unwrap();
    assert!(adapter("runs/with") == adapter("runs/without"), "samples change the adapter");
}
