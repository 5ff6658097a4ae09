//! The command line as a person meets it: help, messages, exit codes, and a whole run in a folder of its own.
#![expect(clippy::unwrap_used, reason = "helpers of tests stop where they fail")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// Help, listings and errors, word for word (`tests/cmd/`).
#[test]
fn commands_print_what_they_promise() {
    trycmd::TestCases::new().case("tests/cmd/*.trycmd");
}

fn tune(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tune"))
        .args(arguments)
        .current_dir(folder)
        .env("NO_COLOR", "1")
        .env("HF_HUB_CACHE", folder.join("no-cache"))
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The quickstart, copied out of the binary, with a few steps only.
fn quickstart(folder: &Path) {
    let copied = tune(folder, &["cp", "quickstart", "."]);
    assert!(copied.status.success(), "{}", text(&copied.stderr));
}

const SHORT: [&str; 10] = [
    "run",
    "quickstart.toml",
    "--set",
    "train.max_steps=3",
    "--set",
    "train.micro_batch_size=1",
    "--set",
    "train.gradient_accumulation_steps=1",
    "--set",
    "sample.max_new_tokens=8",
];

#[test]
fn the_copied_quickstart_trains_where_it_was_copied_to() {
    let folder = tempfile::tempdir().unwrap();
    quickstart(folder.path());
    let run = tune(folder.path(), &SHORT);
    assert_eq!(run.status.code(), Some(0), "{}", text(&run.stderr));
    let out = text(&run.stdout);
    for promised in ["held-out loss", "before", "after", "prompt", "runs/quickstart/adapter", "Next, "] {
        assert!(out.contains(promised), "no `{promised}` in:\n{out}");
    }
    assert!(!out.contains('\u{1b}') && !text(&run.stderr).contains('\u{1b}'), "colour in a pipe");
    for step in 1..=3 {
        assert!(text(&run.stderr).contains(&format!("step {step}/3")), "{}", text(&run.stderr));
    }
    let root = folder.path().join("runs/quickstart");
    for file in [
        "recipe.toml",
        "metrics.jsonl",
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "adapter/README.md",
        "adapter/tokenizer.json",
        "adapter/tokenizer_config.json",
        "checkpoints/step-3/manifest.json",
        "checkpoints/best/manifest.json",
    ] {
        assert!(root.join(file).is_file(), "{file} is missing");
    }

    // A second run does not touch the first, unless it is told to, and then ends with the same bytes.
    let adapter = root.join("adapter/adapter_model.safetensors");
    let first = fs::read(&adapter).unwrap();
    let refused = tune(folder.path(), &SHORT);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("--overwrite"), "{}", text(&refused.stderr));
    let again = tune(folder.path(), &[&SHORT[..], &["--overwrite"]].concat());
    assert_eq!(again.status.code(), Some(0), "{}", text(&again.stderr));
    assert_eq!(fs::read(&adapter).unwrap(), first);
}

#[test]
fn the_provenance_names_inputs_and_nothing_that_varies() {
    let folder = tempfile::tempdir().unwrap();
    quickstart(folder.path());
    assert!(tune(folder.path(), &SHORT).status.success());
    let bytes = fs::read(folder.path().join("runs/quickstart/adapter/adapter_model.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().clone().unwrap();
    let mut keys: Vec<&str> = metadata.keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "format",
            "tune.base_family",
            "tune.base_sha256.config.json",
            "tune.base_sha256.model.safetensors",
            "tune.base_sha256.tokenizer.json",
            "tune.base_sha256.tokenizer_config.json",
            "tune.chat_template_sha256",
            "tune.dataset_sha256.0",
            "tune.dataset_sha256.1",
            "tune.eval_loss",
            "tune.eval_loss_before",
            "tune.loss",
            "tune.quantization",
            "tune.recipe_sha256",
            "tune.seed",
            "tune.steps",
            "tune.tokens",
            "tune.version",
        ]
    );
    let here = folder.path().to_str().unwrap();
    assert!(metadata.values().all(|value| !value.contains(here)), "a path of this machine in {metadata:?}");
}

#[test]
fn bad_rows_are_shown_with_their_places_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    quickstart(folder.path());
    let mut rows = String::from(
        "{\"messages\": [{\"role\": \"user\", \"content\": \"Hello.\"}, {\"role\": \"assistant\", \"content\": \"Ahoy.\"}]}\n",
    );
    for _ in 0..25 {
        rows.push_str("{\"messages\": [{\"role\": \"user\", \"content\": 7}]}\n");
    }
    fs::write(folder.path().join("rows.jsonl"), rows).unwrap();
    let run = tune(folder.path(), &["run", "quickstart.toml", "--set", "dataset.0.path=\"rows.jsonl\""]);
    let error = text(&run.stderr);
    assert_eq!(run.status.code(), Some(3), "{error}");
    assert!(error.contains("rows.jsonl:2") && error.contains("/messages/0/content"), "{error}");
    assert!(error.contains("25"), "no total in {error}");
    assert!(!error.contains("rows.jsonl:26"), "more than twenty rows in {error}");
    assert!(!folder.path().join("runs").exists());
}

#[test]
fn problems_of_every_table_are_told_together() {
    let folder = tempfile::tempdir().unwrap();
    quickstart(folder.path());
    let recipe = fs::read_to_string(folder.path().join("quickstart.toml")).unwrap();
    let recipe = recipe
        .replace("rank = 16", "lora_r = 16\ntarget_modules = [\"q_proj\", \"qproj\"]")
        .replace("learning_rate = ", "learning_rate = -")
        .replace("data/quickstart/heldout.arrow", "data/quickstart/missing.arrow");
    fs::write(folder.path().join("bad.toml"), recipe).unwrap();
    let run = tune(folder.path(), &["validate", "bad.toml"]);
    let error = text(&run.stderr);
    assert_eq!(run.status.code(), Some(2), "{error}");
    for expected in ["lora_r", "tune calls it `rank`", "qproj", "learning_rate", "missing.arrow"] {
        assert!(error.contains(expected), "no `{expected}` in:\n{error}");
    }
}

#[test]
fn inspect_shows_rows_as_json() {
    let folder = tempfile::tempdir().unwrap();
    quickstart(folder.path());
    let shown = tune(folder.path(), &["inspect", "quickstart.toml", "--row", "5", "-n", "2", "--json"]);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    let events = text(&shown.stdout);
    let events = events.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let rows: Vec<serde_json::Value> = events.filter(|event| event["event"] == "row").collect();
    assert_eq!(rows.iter().map(|row| row["row"].as_u64().unwrap()).collect::<Vec<_>>(), [5, 6]);
    for row in rows {
        let tokens = row["tokens"].as_array().unwrap();
        let supervised = tokens.iter().filter(|token| token["supervised"].as_bool().unwrap()).count() as u64;
        assert_eq!(row["supervised_tokens"].as_u64().unwrap(), supervised);
        let learned: String = tokens
            .iter()
            .filter(|token| token["supervised"].as_bool().unwrap())
            .map(|token| token["text"].as_str().unwrap())
            .collect();
        assert!(learned.ends_with("<|im_end|>"), "{learned}");
    }
}

/// The answers of a pair beside each other, in 80 columns; for programs, one event for each.
#[test]
fn inspect_shows_the_two_answers_of_a_pair() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shown = tune(root, &["inspect", "recipes/preference.toml", "-n", "1"]);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    let out = text(&shown.stdout);
    assert!(out.contains("row 0 chosen") && out.contains("row 0 rejected"), "{out}");
    let pair: Vec<&str> = out.lines().filter(|line| line.contains(" │ ")).collect();
    assert!(pair.len() > 1 && pair.iter().all(|line| line.chars().count() <= 80), "{out}");
    assert!(pair.iter().any(|line| line.contains("[-")) && !out.contains('\u{1b}'), "{out}");
    let shown = tune(root, &["inspect", "recipes/preference.toml", "-n", "2", "--json"]);
    let events = text(&shown.stdout);
    let events = events.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let rows: Vec<_> = events.filter(|event| event["event"] == "row").collect();
    let named = |key: &str| rows.iter().map(|row| row[key].to_string()).collect::<Vec<_>>();
    assert_eq!(named("side"), ["\"chosen\"", "\"rejected\"", "\"chosen\"", "\"rejected\""]);
    assert_eq!(
        (named("group"), named("row")),
        (named("row"), ["0", "0", "1", "1"].map(String::from).to_vec())
    );
    for row in &rows {
        // Shared tokens are part of either answer.
        assert_eq!(row["kept_tokens"], row["tokens"].as_array().unwrap().len());
    }
}

#[cfg(unix)]
#[test]
fn sigterm_stops_a_run_with_a_checkpoint() {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;

    let folder = tempfile::tempdir().unwrap();
    quickstart(folder.path());
    let mut child = Command::new(env!("CARGO_BIN_EXE_tune"))
        .args(["run", "quickstart.toml", "--set", "train.micro_batch_size=1", "--set", "sample.prompts=[]"])
        .current_dir(folder.path())
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    for line in stderr.lines() {
        if line.unwrap().starts_with("step 1/") {
            // The shell's own `kill`: a program of that name is not on every machine.
            let killed =
                Command::new("sh").args(["-c", &format!("kill -TERM {}", child.id())]).status().unwrap();
            assert!(killed.success());
        }
    }
    assert_eq!(child.wait().unwrap().code(), Some(143));
    let checkpoints = folder.path().join("runs/quickstart/checkpoints");
    let saved: Vec<_> = fs::read_dir(checkpoints).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!saved.is_empty());
    for path in saved {
        tune::checkpoint::read(&path).unwrap();
    }
    assert!(!folder.path().join("runs/quickstart/adapter").exists(), "an adapter of an unfinished run");
}
