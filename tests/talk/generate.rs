//! `tune generate`: prompts from everywhere, answers in order, reproducible, and cut where they should be.

use std::fs;

use crate::support::{base, base_without_template, lines, said, text, tune, tune_with};

const QUESTION: &str = "What is a drum for?";

#[test]
fn a_prompt_is_the_same_from_anywhere() {
    let folder = tempfile::tempdir().unwrap();
    let base = base().display().to_string();
    let typed = tune(folder.path(), &["generate", "--base", &base, QUESTION, "--verbose"]);
    let answer = said(&typed);
    assert!(answer.len() > 5 && answer.ends_with('\n') && !answer.contains('\u{1b}'), "{answer:?}");
    assert!(text(&typed.stderr).contains("tokens/s"), "{}", text(&typed.stderr));
    let piped = tune_with(folder.path(), &["generate", "--base", &base], &format!("{QUESTION}\n"));
    assert_eq!(said(&piped), answer);
    // A file of prompts: the same answers, in order, whatever the prompts are made of.
    let user = serde_json::json!({"role": "user", "content": QUESTION});
    let rows = [
        serde_json::json!({"prompt": QUESTION, "id": 7}),
        serde_json::json!({"prompt": "Grüße 🦀?"}),
        serde_json::json!({"messages": [user]}),
    ];
    let prompts: String = rows.iter().map(|row| format!("{row}\n\n")).collect();
    fs::write(folder.path().join("prompts.jsonl"), prompts).unwrap();
    let batch = ["generate", "--base", &base, "--prompts", "prompts.jsonl"];
    let printed = said(&tune(folder.path(), &batch));
    let found = lines(&printed);
    assert_eq!(found.len(), 3);
    for (line, row) in found.iter().zip(&rows) {
        for (key, value) in row.as_object().unwrap() {
            assert_eq!(&line[key], value);
        }
        assert_eq!(line["finish"], "stop");
    }
    for row in [0, 2] {
        assert_eq!(format!("{}\n", found[row]["response"].as_str().unwrap()), answer);
    }
    assert_ne!(found[1]["response"], found[0]["response"]);
    let written = tune(folder.path(), &[&batch[..], &["--out", "answers.jsonl"]].concat());
    assert_eq!(said(&written), "");
    assert_eq!(fs::read_to_string(folder.path().join("answers.jsonl")).unwrap(), printed);
    // For programs, each answer piece by piece and whole.
    let events = lines(&said(&tune(folder.path(), &[&batch[..], &["--json"]].concat())));
    assert_eq!((&events[0]["event"], &events[0]["command"]), (&"begin".into(), &"generate".into()));
    assert_eq!(events.last().unwrap()["event"], "end");
    let pieces: String = events
        .iter()
        .filter(|event| event["event"] == "text" && event["row"] == 0)
        .map(|event| event["text"].as_str().unwrap())
        .collect();
    assert_eq!(format!("{pieces}\n"), answer);
    assert_eq!(events.iter().filter(|event| event["event"] == "answer").count(), 3);
}

#[test]
fn stop_strings_cut_across_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let base = base().display().to_string();
    let ask = |stops: &[&str]| {
        let mut arguments = vec!["generate", "--base", &base, QUESTION];
        stops.iter().for_each(|stop| arguments.extend(["--stop", *stop]));
        said(&tune(folder.path(), &arguments))
    };
    let whole = ask(&[]);
    let whole = whole.trim_end();
    // Every piece of some length in the middle of the answer, whatever the tokens.
    let (from, to) = (whole.len() / 3, whole.len() / 3 + 7);
    let stop = whole.get(from..to).unwrap();
    let cut = &whole[..whole.find(stop).unwrap()];
    assert_eq!(ask(&[stop]), format!("{cut}\n"));
    assert_eq!(ask(&["never said", stop]), format!("{cut}\n"));
    assert_eq!(ask(&["never said"]), format!("{whole}\n"));
}

#[test]
fn draws_follow_the_seed() {
    let folder = tempfile::tempdir().unwrap();
    let base = base().display().to_string();
    let ask = |seed: &str, more: &[&str]| {
        let fixed = ["generate", "--base", &base, QUESTION, "--temperature", "1.5", "--seed", seed];
        said(&tune(folder.path(), &[&fixed[..], more].concat()))
    };
    assert_eq!(ask("1", &[]), ask("1", &[]));
    assert_ne!(ask("1", &[]), ask("2", &[]));
    let greedy = said(&tune(folder.path(), &["generate", "--base", &base, QUESTION]));
    assert_eq!(ask("1", &["--top-k", "1"]), greedy);
    assert_eq!(ask("2", &["--min-p", "1.0"]), greedy);
    assert_eq!(ask("3", &["--top-p", "0.000001"]), greedy);
    let short = tune(folder.path(), &["generate", "--base", &base, QUESTION, "--max-new-tokens", "1"]);
    assert!(greedy.starts_with(said(&short).trim_end()));
    // The same prompt twice in a file: two draws, and the same two again.
    let row = serde_json::json!({"prompt": QUESTION}).to_string();
    fs::write(folder.path().join("twice.jsonl"), format!("{row}\n{row}\n")).unwrap();
    let batch = ["generate", "--base", &base, "--prompts", "twice.jsonl", "--temperature", "1.5"];
    let printed = said(&tune(folder.path(), &batch));
    assert_eq!(said(&tune(folder.path(), &batch)), printed);
    let found = lines(&printed);
    assert_ne!(found[0]["response"], found[1]["response"]);
}

#[test]
fn bad_prompts_are_told_by_their_line_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let base = base().display().to_string();
    fs::write(folder.path().join("answers.jsonl"), "kept").unwrap();
    let long = serde_json::json!({"prompt": "word ".repeat(2000)}).to_string();
    for (line, expected) in [
        ("{\"prompt\": 7}", "/prompt"),
        ("[1]", "expected an object"),
        ("{\"prompt\": ", "not JSON"),
        ("{}", "found neither"),
        ("{\"prompt\": \"a\", \"messages\": []}", "found both"),
        ("{\"messages\": [{\"role\": \"user\"}]}", "/messages/0"),
        ("{\"prompt\": \"a\", \"response\": \"b\"}", "`response`"),
        (&long, "no room"),
    ] {
        fs::write(folder.path().join("prompts.jsonl"), format!("{{\"prompt\": \"Hello.\"}}\n{line}\n"))
            .unwrap();
        let arguments = ["generate", "--base", &base, "--prompts", "prompts.jsonl", "--out", "answers.jsonl"];
        let run = tune(folder.path(), &arguments);
        let error = text(&run.stderr);
        assert_eq!(run.status.code(), Some(3), "{error}");
        assert!(error.contains("prompts.jsonl:2: ") && error.contains(expected), "{error}");
        assert_eq!(fs::read_to_string(folder.path().join("answers.jsonl")).unwrap(), "kept");
    }
}

#[test]
fn a_model_that_cannot_be_asked_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |arguments: &[&str], code: i32| {
        let run = tune(folder.path(), &[&["generate"], arguments].concat());
        assert_eq!(run.status.code(), Some(code), "{}", text(&run.stderr));
        text(&run.stderr)
    };
    assert!(refused(&["Hello."], 2).contains("--base"));
    assert!(refused(&["--base", "no/such-model", "Hello."], 2).contains("tune download no/such-model"));
    let bare = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/peft/base");
    assert!(refused(&["--base", bare, "Hello."], 2).contains("tokenizer.json"));
    let plain = base_without_template(folder.path()).display().to_string();
    assert!(refused(&["--base", &plain, "Hello."], 2).contains("--raw"));
    said(&tune(folder.path(), &["generate", "--base", &plain, "--raw", "Hello.", "--max-new-tokens", "3"]));
    let empty = tune(folder.path(), &["generate", "--base", &plain, "--raw"]);
    assert!(text(&empty.stderr).contains("no tokens"), "{}", text(&empty.stderr));
    // A folder that is a run's, but of one that did not come to its end.
    let run = folder.path().join("run");
    fs::create_dir(&run).unwrap();
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/recipes/quickstart.toml"), run.join("recipe.toml"))
        .unwrap();
    assert!(refused(&["--adapter", "run", "Hello."], 2).contains("not a finished run"));
}

/// The largest terms and ways out, before anything is loaded or answered.
#[test]
fn a_model_that_does_not_fit_is_not_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let base = base().display().to_string();
    let rows = concat!(env!("CARGO_MANIFEST_DIR"), "/data/quickstart/heldout.arrow");
    let eval = ["eval", "--base", &base, "--data", rows, "--format", "messages"];
    for command in [&["generate", "--base", &base, "Hello."][..], &["chat", "--base", &base], &eval] {
        let told = tune_with(folder.path(), &[command, &["--memory-budget", "1MiB"]].concat(), "Hello.\n");
        assert_eq!((told.status.code(), text(&told.stdout).as_str()), (Some(4), ""), "{command:?}");
        let told = text(&told.stderr);
        for part in [
            "the budget is 1.00 MiB",
            "dense weights (",
            "add `--quantize nf4`, which needs",
            "--memory-budget",
        ] {
            assert!(told.contains(part), "{command:?}: {told:?} does not say {part:?}");
        }
        assert!(!told.contains("loading"), "{told}");
        let fits = tune_with(folder.path(), &[command, &["--memory-budget", "1GiB"]].concat(), "Hello.\n");
        said(&fits);
    }
    // A cache that is most of it says so, and f32 may become bf16.
    let prompt = "sea ".repeat(400);
    let arguments =
        ["generate", "--base", &base, "--raw", "--compute-dtype", "f32", "--memory-budget", "1MiB"];
    let told = text(&tune_with(folder.path(), &arguments, &prompt).stderr);
    assert!(told.contains("`--compute-dtype bf16`"), "{told}");
}

#[test]
fn nf4_is_another_model_and_says_nothing_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let base = base().display().to_string();
    for more in [&["--quantize", "nf4"][..], &["--quantize", "nf4", "--compute-dtype", "f32"]] {
        let arguments = [&["generate", "--base", &base, QUESTION][..], more].concat();
        assert!(said(&tune(folder.path(), &arguments)).len() > 5);
    }
}

#[test]
fn the_memory_that_is_asked_for_is_enough_and_longer_answers_need_more() {
    let folder = tempfile::tempdir().unwrap();
    let base = base().display().to_string();
    let run = |budget: &str, longest: &str| {
        let model = ["--base", &base, "--compute-dtype", "f32", "--memory-budget", budget];
        tune(folder.path(), &[&["generate", QUESTION, "--max-new-tokens", longest][..], &model].concat())
    };
    let needed = |output: &std::process::Output| -> f64 {
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{error}");
        let words: Vec<&str> = error.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "needs").unwrap();
        assert_eq!(words[at + 2], "MiB;", "{error}");
        words[at + 1].parse().unwrap()
    };
    let short = needed(&run("1MiB", "4"));
    // The program's own memory differs a little from one time to the next.
    let enough = format!("{}MiB", short + 2.0);
    said(&run(&enough, "4"));
    assert!(needed(&run(&enough, "4000")) > short + 3.0);
    let odd = run("9", "4");
    assert_eq!(odd.status.code(), Some(2), "{}", text(&odd.stderr));
    assert!(text(&odd.stderr).contains("6GiB"), "{}", text(&odd.stderr));
}
