//! `--json` of the commands that do not train: the same envelope as that of a run, and nothing else on standard output.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::fixture::{TOKEN, events, expect, named, small, text};

/// The one `result` of a command that comes to its end, with its name checked.
#[track_caller]
fn result(folder: &Path, command: &str, arguments: &[&str]) -> Value {
    let output = expect(0, folder, &[&[command], arguments, &["--json"]].concat());
    let told = events(&output);
    let (first, last) = (&told[0], told.last().unwrap());
    assert_eq!((&first["event"], &first["command"]), (&"begin".into(), &command.into()));
    assert_eq!((&last["event"], &last["exit_code"]), (&"end".into(), &0.into()));
    assert!(named(&told, "problem").is_empty(), "{told:?}");
    require_documented(&told);
    let results = named(&told, "result");
    assert_eq!(results.len(), 1, "{told:?}");
    results[0].clone()
}

/// What a command says that fails: its problems.
#[track_caller]
fn problems(code: i32, folder: &Path, arguments: &[&str]) -> Vec<Value> {
    let output = expect(code, folder, &[arguments, &["--json"]].concat());
    let told = events(&output);
    assert_eq!(told[0]["event"], "begin");
    assert_eq!(told.last().unwrap()["exit_code"], code);
    let problems: Vec<Value> = named(&told, "problem").into_iter().cloned().collect();
    assert!(!problems.is_empty(), "{told:?}");
    problems
}

/// Every event stands in the README's table.
fn require_documented(told: &[Value]) {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/ci.md")).unwrap();
    for event in told {
        let name = event["event"].as_str().unwrap();
        assert!(readme.contains(&format!("`{name}`")), "the README does not know the event `{name}`");
        if let Some(phase) = event["phase"].as_str() {
            assert!(readme.contains(&format!("`{phase}`")), "the README does not know the phase `{phase}`");
        }
    }
}

#[test]
fn what_is_done_with_an_adapter_is_told_to_programs() {
    let folder = small();
    let folder = folder.path();
    expect(0, folder, &["run", "small.toml"]);

    let verified = result(folder, "verify", &["run/adapter"]);
    assert_eq!((&verified["ok"], &verified["problems"]), (&true.into(), &Value::Array(Vec::new())));
    assert!(!verified["modules"].as_array().unwrap().is_empty());

    let merged = result(folder, "merge", &["run/adapter", "--out", "merged", "--max-divergence", "1e9"]);
    assert_eq!(merged["output_dir"], "merged");
    assert!(merged["compared"]["effect"].as_f64().unwrap() > 0.0, "{merged}");
    let bytes: u64 = fs::read_dir(folder.join("merged"))
        .unwrap()
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum();
    assert_eq!(merged["bytes"], bytes);

    let combined = [
        "--adapters",
        "run/adapter=0.5",
        "run/adapter=0.5",
        "--combine",
        "cat",
        "--as-adapter",
        "--out",
        "both",
    ];
    assert_eq!(result(folder, "merge", &combined)["rank"], 8);

    let exported = result(folder, "export", &["run/adapter", "--for", "vllm", "--out", "vllm"]);
    assert_eq!((&exported["for"], &exported["output_dir"]), (&"vllm".into(), &"vllm".into()));
    for (form, out) in [("--gguf=q8_0", "gguf"), ("--gguf-lora=f16", "gguf-lora")] {
        let exported = result(folder, "export", &["run/adapter", form, "--out", out]);
        let file = folder.join(exported["file"].as_str().unwrap());
        assert_eq!(exported["bytes"], fs::metadata(&file).unwrap().len(), "{exported}");
    }

    let report = result(folder, "report", &["run"]);
    assert!(folder.join(report["report"].as_str().unwrap()).is_file());
}

#[test]
fn what_is_bundled_and_imported_is_told_to_programs() {
    let folder = small();
    let folder = folder.path();
    let listed = result(folder, "ls", &[]);
    assert!(listed["recipes"].as_array().unwrap().iter().any(|recipe| recipe["name"] == "quickstart"));
    let copied = result(folder, "cp", &["quickstart", "copy"]);
    for file in copied["files"].as_array().unwrap() {
        assert!(folder.join(file.as_str().unwrap()).is_file(), "{copied}");
    }

    let keys = result(folder, "keys", &["train.learning_rate"]);
    assert_eq!(keys["keys"][0]["key"], "train.learning_rate");
    assert_eq!(keys["keys"][0]["required"], true);
    assert_eq!(keys["keys"][0]["schema"]["maximum"], 1.0);
    assert!(keys["keys"].as_array().unwrap().len() == 1, "{keys}");
    assert_eq!(result(folder, "keys", &["--schema"])["schema"]["title"], "tune recipe");

    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/import/axolotl.yml");
    let shown = result(folder, "import", &[config]);
    assert_eq!(shown["tool"], "axolotl");
    assert!(shown["recipe"].as_str().unwrap().contains("version = 1"));
    let written = result(folder, "import", &[config, "--out", "imported.toml"]);
    assert_eq!(written["out"], "imported.toml");
    assert_eq!(fs::read_to_string(folder.join("imported.toml")).unwrap(), shown["recipe"].as_str().unwrap());
    assert_eq!(shown["notes"], written["notes"]);
}

#[test]
fn what_goes_wrong_is_told_to_programs() {
    let folder = small();
    let folder = folder.path();
    expect(0, folder, &["run", "small.toml"]);
    for (code, arguments, word) in [
        (2, &["verify", "nowhere"][..], "nowhere"),
        (1, &["verify", "data"], "adapter_config.json"),
        (2, &["inspect", "small.toml", "--row", "99"], "no row 99"),
        (2, &["merge", "run/adapter", "--out", "merged", "--max-shard-gb", "0"], "--max-shard-gb"),
        (2, &["merge", "nowhere", "--out", "merged"], "nowhere"),
        (2, &["export", "nowhere", "--for", "vllm", "--out", "out"], "nowhere"),
        (2, &["export", "run/adapter", "--for", "vllm", "--out", "out", "--onto", "nf4"], "--onto"),
        (2, &["export", "nowhere", "--gguf-lora", "--out", "out"], "nowhere"),
        (2, &["cp", "no-such", "copy"], "no-such"),
        (2, &["import", "nowhere.yml"], "nowhere.yml"),
        (2, &["keys", "trian"], "trian"),
        (4, &["doctor", "--device", "cuda:200"], "cuda:200"),
        (2, &["report", "nowhere"], "nowhere"),
        (2, &["download", "../x"], "../x"),
    ] {
        let told = problems(code, folder, arguments);
        assert!(told[0]["message"].as_str().unwrap().contains(word), "{arguments:?}: {told:?}");
        assert!(!format!("{told:?}").contains(TOKEN));
    }
}

#[test]
fn a_configuration_is_annotated_at_its_line() {
    let folder = small();
    let config = "base_model: a/b\nadapter: lora\nrl: grpo\ndatasets:\n  - path: x.jsonl\n    type: alpaca\n";
    fs::write(folder.path().join("rl.yml"), config).unwrap();
    let arguments = ["import", "rl.yml", "--from", "axolotl", "--json", "--annotations", "github"];
    let failed = expect(2, folder.path(), &arguments);
    let told = events(&failed);
    let problem = named(&told, "problem")[0];
    assert_eq!((&problem["file"], &problem["line"]), (&"rl.yml".into(), &3.into()), "{problem}");
    assert!(text(&failed.stderr).contains("::error file=rl.yml,line=3::"), "{}", text(&failed.stderr));
}
