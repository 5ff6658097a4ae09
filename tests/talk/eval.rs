//! `tune eval`: a run, a recipe, a file; loss and exact match, side by side.

use std::fs;

use crate::support::{lines, said, text, tune};

/// A short run of the quickstart in `folder`.
fn trained(folder: &std::path::Path) {
    said(&tune(folder, &["cp", "quickstart", "."]));
    said(&tune(
        folder,
        &[
            "run",
            "quickstart.toml",
            "--set",
            "train.max_steps=6",
            "--set",
            "train.micro_batch_size=2",
            "--set",
            "train.gradient_accumulation_steps=1",
            "--set",
            "sample.prompts=[]",
        ],
    ));
}

#[test]
fn a_run_is_measured_beside_its_base() {
    let folder = tempfile::tempdir().unwrap();
    trained(folder.path());
    let result = |arguments: &[&str]| {
        let run = tune(folder.path(), &[&["eval", "--json"], arguments].concat());
        lines(&said(&run)).into_iter().find(|event| event["event"] == "result").unwrap()
    };
    // The very numbers that the run told, base before and adapter after: row by row here, in batches there.
    let metrics = fs::read_to_string(folder.path().join("runs/quickstart/metrics.jsonl")).unwrap();
    let metrics: Vec<_> = lines(&metrics).into_iter().filter_map(|line| line["eval_loss"].as_f64()).collect();
    let found = result(&["runs/quickstart"]);
    let loss = |of: &str| found[of]["loss"].as_f64().unwrap();
    assert!((loss("base") - metrics[0]).abs() < 2e-2 * metrics[0], "{} {metrics:?}", loss("base"));
    assert!((loss("adapter") - metrics[metrics.len() - 1]).abs() < 2e-2 * metrics[0], "{found} {metrics:?}");
    assert!(loss("adapter") < loss("base") && found["adapter"]["margin"].as_f64().unwrap() > 0.0);
    // A recipe is its base; with the adapter it is the run.
    let alone = result(&["quickstart.toml"]);
    assert_eq!((&alone["base"], alone.get("adapter")), (&found["base"], None));
    let with = result(&["quickstart.toml", "--adapter", "runs/quickstart/adapter"]);
    assert_eq!(with["adapter"], found["adapter"]);
    let limited = result(&["runs/quickstart", "--limit", "3"]);
    assert_eq!(limited["rows"], 3);
    // The adapter alone, by its own folder, knows the way to its base; a run's folder is as good.
    for adapter in ["runs/quickstart/adapter", "runs/quickstart"] {
        let arguments = ["generate", "--adapter", adapter, "Hello.", "--max-new-tokens", "8"];
        assert!(!said(&tune(folder.path(), &arguments)).is_empty());
    }
    // For people: a table.
    let table = said(&tune(folder.path(), &["eval", "runs/quickstart", "--limit", "3"]));
    for word in ["rows", "base", "with adapter", "loss", "perplexity", "change"] {
        assert!(table.contains(word), "no `{word}` in:\n{table}");
    }
}

#[test]
fn answers_are_matched() {
    let folder = tempfile::tempdir().unwrap();
    let base = crate::support::base().display().to_string();
    // What the base says to a question is the known answer of its first row, and not that of the second.
    let question = "What is a drum for?";
    let says = said(&tune(folder.path(), &["generate", "--base", &base, question]));
    let rows = [
        serde_json::json!({"question": question, "answer": says.trim()}),
        serde_json::json!({"question": question, "answer": "something else"}),
        serde_json::json!({"question": "What is a garden for?", "answer": "nothing of the kind"}),
    ];
    let text_of = |rows: &[serde_json::Value]| rows.iter().map(|row| format!("{row}\n")).collect::<String>();
    fs::write(folder.path().join("rows.jsonl"), text_of(&rows)).unwrap();
    let eval = |more: &[&str]| {
        let fixed = ["eval", "--base", &base, "--data", "rows.jsonl", "--format", "prompt-completion"];
        let fields = ["--field", "prompt=question", "--field", "completion=answer", "--exact-match"];
        tune(folder.path(), &[&fixed[..], &fields, more].concat())
    };
    let run = eval(&["--extract", "(?s)(.+)", "--chat", "--json", "--out", "rows.out"]);
    let events = lines(&said(&run));
    let found = events.iter().find(|event| event["event"] == "result").unwrap();
    let matched = &found["base"]["exact_match"];
    assert_eq!((&matched["count"], &matched["of"]), (&1.into(), &3.into()), "{found}");
    assert!(matched["low"].as_f64().unwrap() > 0.05 && matched["high"].as_f64().unwrap() < 0.8);
    let written = lines(&fs::read_to_string(folder.path().join("rows.out")).unwrap());
    let right: Vec<bool> = written.iter().map(|row| row["base"]["correct"].as_bool().unwrap()).collect();
    assert_eq!(right, [true, false, false]);
    assert_eq!(written[0]["base"]["response"], says.trim());
    assert!(written[1]["place"].as_str().unwrap().ends_with("rows.jsonl:2"));
    let table = said(&eval(&["--extract", "(?s)(.+)", "--chat"]));
    assert!(table.contains("exact match") && table.contains("33.3 %"), "{table}");
    // The default pattern finds nothing in such answers, which is told before a verdict is made of it.
    let refused = eval(&["--chat"]);
    let error = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(3), "{error}");
    assert!(error.contains("rows.jsonl:1") && error.contains("--extract"), "{error}");
    let refused = eval(&["--extract", "("]);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
}

#[test]
fn rows_that_are_not_there_are_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    said(&tune(folder.path(), &["cp", "quickstart", "."]));
    let base = crate::support::base().display().to_string();
    let refused = |arguments: &[&str], code: i32| {
        let run = tune(folder.path(), &[&["eval"], arguments].concat());
        assert_eq!(run.status.code(), Some(code), "{}", text(&run.stderr));
        text(&run.stderr)
    };
    assert!(refused(&["--base", &base], 2).contains("--data"));
    let recipe = fs::read_to_string(folder.path().join("quickstart.toml")).unwrap();
    let at = recipe.find("split = \"validation\"").unwrap();
    let from = recipe[..at].rfind("[[dataset]]").unwrap();
    let end = recipe[at..].find("\n[").map_or(recipe.len(), |next| at + next + 1);
    fs::write(folder.path().join("bare.toml"), format!("{}{}", &recipe[..from], &recipe[end..])).unwrap();
    assert!(refused(&["bare.toml"], 2).contains("holds no rows out"));
    assert!(refused(&["no-such.toml"], 2).contains("no-such.toml"));
    assert!(refused(&["runs"], 2).contains("runs"));
}

#[test]
fn what_four_bits_cost_is_shown_for_a_base_and_for_a_run() {
    let folder = tempfile::tempdir().unwrap();
    said(&tune(folder.path(), &["cp", "quickstart", "."]));
    let short = ["train.max_steps=2", "train.micro_batch_size=2", "sample.prompts=[]", "quantization.nf4={}"];
    let changes: Vec<&str> = short.iter().flat_map(|change| ["--set", change]).collect();
    said(&tune(folder.path(), &[&["run", "quickstart.toml"], &changes[..]].concat()));
    let run = "runs/quickstart";
    let table = said(&tune(folder.path(), &["report", run, "--quantization", "--report-rows", "2"]));
    for word in ["module", "self_attn.q_proj", "together", "dense", "4-bit", "perplexity"] {
        assert!(table.contains(word), "no `{word}` in:\n{table}");
    }
    assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
    let page = fs::read_to_string(folder.path().join(run).join("report.html")).unwrap();
    assert!(page.contains("<h2>Quantization</h2>") && page.contains("self_attn.q_proj"));
    // The same of the base, on the recipe's held-out rows.
    let recipe = fs::read_to_string(folder.path().join(run).join("recipe.toml")).unwrap();
    let base = recipe.lines().find_map(|line| line.strip_prefix("base = \"")).unwrap().trim_end_matches('"');
    let command =
        ["quantize", base, "--out", "small", "--report", "quickstart.toml", "--report-rows", "2", "--json"];
    let events = lines(&said(&tune(folder.path(), &command)));
    let found = events.iter().find(|event| event["event"] == "report").unwrap();
    let file = fs::read_to_string(folder.path().join(run).join("quantization.json")).unwrap();
    let of_run: serde_json::Value = serde_json::from_str(&file).unwrap();
    assert_eq!(found["tensors"], of_run["tensors"]);
    assert_eq!(found["held_out"]["difference"], of_run["held_out"]["difference"]);
}
