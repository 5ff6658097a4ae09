//! `tune reproduce`: the same adapter again, and every reason why not.

use std::fs;

use super::fixture::{command, events, expect, named, small, text};

#[test]
fn a_run_comes_out_the_same_from_what_its_folder_holds() {
    let folder = small();
    expect(0, folder.path(), &["run", "small.toml", "--set", "seed=7"]);
    fs::remove_file(folder.path().join("small.toml")).unwrap();
    let again = expect(0, folder.path(), &["reproduce", "run", "--json"]);
    let events = events(&again);
    let result = named(&events, "result")[0];
    assert_eq!(result["identical"], true);
    assert_eq!(result["expected_sha256"], result["found_sha256"]);
    let thrown_away = result["output_dir"].as_str().unwrap();
    assert!(!std::path::Path::new(thrown_away).exists(), "{thrown_away} was left");

    let kept = expect(0, folder.path(), &["reproduce", "run", "--output", "again"]);
    assert!(text(&kept.stdout).contains("identical"), "{}", text(&kept.stdout));
    let adapter =
        |run: &str| fs::read(folder.path().join(run).join("adapter/adapter_model.safetensors")).unwrap();
    assert_eq!(adapter("run"), adapter("again"));
    // Neither overwrites what is there, nor itself.
    expect(2, folder.path(), &["reproduce", "run", "--output", "again"]);
    expect(2, folder.path(), &["reproduce", "run", "--output", "run"]);
}

/// How far a run gets in a time is the machine's to decide; how far it got is known.
#[test]
fn a_run_that_time_ended_is_replayed_to_the_step_it_came_to() {
    let folder = small();
    let arguments =
        ["run", "small.toml", "--json", "--set", "train.max_steps=100000", "--set", "train.max_time=\"1s\""];
    let first = events(&expect(0, folder.path(), &arguments));
    let steps = &named(&first, "result")[0]["steps"];
    assert!(steps.as_u64().unwrap() < 100_000, "{steps}");
    let again = events(&expect(0, folder.path(), &["reproduce", "run", "--json"]));
    let result = named(&again, "result")[0];
    assert_eq!((&result["identical"], &result["steps"]), (&true.into(), steps));
    let told = named(&again, "note");
    let why = format!("`train.max_time` ended this run at step {steps}");
    assert!(told.iter().any(|note| note["message"].as_str().unwrap().starts_with(&why)), "{told:?}");
}

/// What the lock says and what the adapter says of their inputs is one reading of the files.
#[test]
fn the_lock_and_the_adapter_name_the_same_inputs() {
    let folder = small();
    expect(0, folder.path(), &["run", "small.toml"]);
    let lock = fs::read_to_string(folder.path().join("run/recipe.lock")).unwrap();
    let adapter = fs::read(folder.path().join("run/adapter/adapter_model.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&adapter).unwrap();
    let metadata = header.metadata().clone().unwrap();
    let hashes: Vec<_> = metadata.iter().filter(|(key, _)| key.contains("_sha256")).collect();
    assert!(hashes.len() > 6, "{hashes:?}");
    for (key, sha256) in hashes {
        assert!(lock.contains(sha256.as_str()), "{key}: {sha256} in {lock}");
    }
}

#[test]
fn every_input_that_changed_is_named_before_anything_is_trained() {
    let folder = small();
    expect(0, folder.path(), &["run", "small.toml"]);
    let path = |name: &str| folder.path().join(name);
    let changes: [(&str, &[u8], &str); 5] = [
        ("train.jsonl", b"\n{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}", "dataset train.jsonl"),
        ("data/quickstart/base/config.json", b"\n", "config.json of the base"),
        ("data/quickstart/base/tokenizer_config.json", b"\n", "tokenizer_config.json of the tokenizer"),
        ("run/adapter/adapter_model.safetensors", b"x", "the run's own adapter"),
        ("run/recipe.toml", b"weight_decay = 0.5\n", "the recipe"),
    ];
    for (file, more, named) in changes {
        let original = fs::read(path(file)).unwrap();
        let mut changed = original.clone();
        if file == "run/recipe.toml" {
            changed = text(&original).replace("weight_decay = 0.0\n", &text(more)).into_bytes();
        } else {
            changed.extend(more);
        }
        assert_ne!(changed, original, "{file}");
        fs::write(path(file), changed).unwrap();
        let refused = expect(2, folder.path(), &["reproduce", "run", "--output", "again"]);
        let said = text(&refused.stderr);
        assert!(said.contains(named) && said.contains("in the lock"), "{said}");
        assert!(!path("again").exists());
        fs::write(path(file), original).unwrap();
    }
    fs::remove_file(path("run/recipe.lock")).unwrap();
    expect(2, folder.path(), &["reproduce", "run"]);
}

/// What a run was made of changes once it was read: the adapter is the same as ever, and can be made again when it is back.
#[test]
fn a_run_whose_data_changed_under_way_is_reproduced_once_it_is_back() {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;
    let folder = small();
    let rows = folder.path().join("train.jsonl");
    let good = fs::read(&rows).unwrap();
    let arguments =
        ["run", "small.toml", "--json", "--set", "train.max_steps=30", "--set", "train.save_steps=1"];
    let mut child =
        command(folder.path(), &arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut told = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let event: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        if event["event"] == "step" && event["step"] == 1 {
            fs::write(&rows, &good[..100]).unwrap();
        }
        told.push(event);
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let changed = named(&told, "input_changed");
    assert_eq!(changed.len(), 1, "{told:?}");
    assert_eq!(changed[0]["input"], "dataset 0 (train.jsonl)");
    let warned = |event: &&serde_json::Value| event["message"].as_str().unwrap().contains("train.jsonl");
    assert_eq!(named(&told, "warning").into_iter().filter(warned).count(), 1, "{told:?}");

    let refused = expect(2, folder.path(), &["reproduce", "run"]);
    assert!(text(&refused.stderr).contains("train.jsonl"), "{}", text(&refused.stderr));
    fs::write(&rows, &good).unwrap();
    let again = expect(0, folder.path(), &["reproduce", "run"]);
    assert!(text(&again.stdout).contains("identical"), "{}", text(&again.stdout));
}
