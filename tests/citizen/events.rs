//! `--json` and `--annotations`: what programs read.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use super::fixture::{command, events, expect, named, small, text};

#[test]
fn a_run_tells_programs_everything_and_nobody_else_anything() {
    let folder = small();
    let run = expect(0, folder.path(), &["run", "small.toml", "--json"]);
    assert_eq!(text(&run.stderr), "");
    let events = events(&run);
    let first = &events[0];
    assert_eq!(
        (&first["event"], &first["version"], &first["command"]),
        (&"begin".into(), &1.into(), &"run".into())
    );
    assert_eq!(first["tune"], env!("CARGO_PKG_VERSION"));
    let last = events.last().unwrap();
    assert_eq!(
        (&last["event"], &last["exit_code"], &last["outcome"]),
        (&"end".into(), &0.into(), &"done".into())
    );

    // The very lines of the metrics.
    let metrics = fs::read_to_string(folder.path().join("run/metrics.jsonl")).unwrap();
    let lines: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<Value> = events
        .iter()
        .filter(|event| event["event"] == "step" || event["event"] == "evaluation")
        .map(|event| {
            let mut event = event.clone();
            event.as_object_mut().unwrap().remove("event");
            event
        })
        .collect();
    assert_eq!(told, lines);
    assert_eq!(named(&events, "step").len(), 2);

    let result = named(&events, "result")[0];
    assert_eq!((&result["adapter"], &result["steps"]), (&"run/adapter".into(), &2.into()));
    assert_eq!((&result["was_finished"], &result["ended_by"]), (&false.into(), &Value::Null));
    let loss = named(&events, "evaluation").last().unwrap()["eval_loss"].as_f64().unwrap();
    assert_eq!(result["eval_loss"].as_f64().unwrap(), loss);
    assert_eq!(named(&events, "sample")[0]["prompt"], "Tell me.");
    assert_eq!(named(&events, "data")[0]["train"]["rows"], 12);
    assert_eq!(named(&events, "start")[0]["total_steps"], 2);

    // Once more there is nothing to do, which a program can tell.
    let again =
        super::fixture::events(&expect(0, folder.path(), &["run", "small.toml", "--resume", "--json"]));
    assert_eq!(named(&again, "result")[0]["was_finished"], true);
    assert!(named(&again, "step").is_empty(), "{again:?}");

    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/ci.md")).unwrap();
    let names: BTreeSet<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    for name in names {
        assert!(readme.contains(&format!("`{name}`")), "the README does not know the event `{name}`");
    }
}

#[test]
fn validate_and_inspect_speak_to_programs_too() {
    let folder = small();
    let events = |arguments: &[&str]| events(&expect(0, folder.path(), arguments));
    let validated = events(&["validate", "small.toml", "--json"]);
    let result = named(&validated, "result")[0];
    assert_eq!((&result["device"], &result["family"]), (&"cpu".into(), &"llama".into()));
    assert_eq!(named(&validated, "data")[0]["schedule"]["steps"], 2);
    assert!(!named(&validated, "targets")[0]["targets"].as_array().unwrap().is_empty());
    let inspected = events(&["inspect", "small.toml", "--json", "--row", "3", "-n", "2"]);
    let rows: Vec<u64> = named(&inspected, "row").iter().map(|row| row["row"].as_u64().unwrap()).collect();
    assert_eq!(rows, [3, 4]);
    assert_eq!(inspected.last().unwrap()["outcome"], "done");
}

#[test]
fn problems_of_a_recipe_have_spans() {
    let folder = small();
    let recipe = fs::read_to_string(folder.path().join("small.toml")).unwrap();
    fs::write(folder.path().join("bad, 1%.toml"), recipe.replace("rank = 4", "rank = -4\nlora_alpha = 8"))
        .unwrap();
    let arguments =
        ["validate", "bad, 1%.toml", "--json", "--annotations", "github", "--set", "train.epochs=-1"];
    let failed = expect(2, folder.path(), &arguments);
    let events = events(&failed);
    let problems = named(&events, "problem");
    assert_eq!(problems.len(), 3, "{problems:?}");
    let rank = problems.iter().find(|problem| problem["line"] == 8).unwrap();
    assert_eq!(
        (&rank["file"], &rank["column"], &rank["end_column"]),
        (&"bad, 1%.toml".into(), &8.into(), &10.into())
    );
    assert!(rank["help"].as_str().unwrap().contains("allowed"), "{rank}");
    // What was typed on the command line has no place in a file.
    let typed = problems.iter().find(|problem| problem.get("file").is_none()).unwrap();
    assert!(typed["message"].as_str().unwrap().contains("--set train.epochs=-1"), "{typed}");
    assert_eq!(events.last().unwrap()["exit_code"], 2);

    let error = text(&failed.stderr);
    let annotations: Vec<&str> = error.lines().filter(|line| line.starts_with("::error")).collect();
    assert_eq!(annotations.len(), 3, "{error}");
    let place = "::error file=bad%2C 1%25.toml,line=8,endLine=8,col=8,endColumn=10,title=recipe%3A%3A";
    assert!(annotations.iter().any(|line| line.starts_with(place)), "{annotations:?}");
    assert!(annotations.iter().all(|line| !line.contains("file=--set")), "{annotations:?}");
}

#[test]
fn problems_that_are_no_recipes_say_what_to_do_as_well() {
    let folder = small();
    expect(0, folder.path(), &["run", "small.toml"]);
    let occupied = expect(2, folder.path(), &["run", "small.toml", "--json"]);
    let problem = &named(&events(&occupied), "problem")[0].clone();
    assert!(problem["help"].as_str().unwrap().contains("--overwrite"), "{problem}");
    assert!(text(&occupied.stderr).contains(problem["help"].as_str().unwrap()), "people read the same");
}

/// Exit code 0 whether it fits or not: a plan is an answer. In text it fits 80 columns.
#[test]
fn a_plan_answers_without_files() {
    let folder = small();
    let arguments = ["plan", "--shape", "llama-3.3-70b", "--memory-budget", "24GiB"];
    let planned = events(&expect(0, folder.path(), &[&arguments[..], &["--json"]].concat()));
    let result = named(&planned, "result")[0];
    assert_eq!((&result["held"]["fits"], &result["streamed"]["fits"]), (&false.into(), &true.into()));
    assert_eq!(result["cards"].as_array().unwrap().len(), 6);
    let shown = text(&expect(0, folder.path(), &arguments).stdout);
    assert!(shown.contains("PCIe 4.0 x16") && shown.contains("layers on the host"), "{shown}");
    let config = folder.path().join("config.json");
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/trajectory/base/config.json");
    fs::copy(model, &config).unwrap();
    for more in [&["--config", "config.json"][..], &["small.toml"], &["small.toml", "--device", "cpu"]] {
        let shown = text(&expect(0, folder.path(), &[&["plan"], more].concat()).stdout);
        for line in shown.lines().filter(|line| !line.starts_with("model")) {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
    let context = text(&expect(0, folder.path(), &[&arguments[..], &["--max-context"]].concat()).stdout);
    assert_eq!(context.lines().count(), 2, "{context}");
    for wrong in [&["plan"][..], &["plan", "--shape", "no-such"], &["plan", "--config", "none.json"]] {
        let code = command(folder.path(), wrong).output().unwrap().status.code();
        assert!(code.is_some_and(|code| code != 0), "{wrong:?}");
    }
}

#[test]
fn a_bench_speaks_to_programs_too() {
    let folder = small();
    let arguments = ["bench", "small.toml", "--steps", "1", "--warmup", "0", "--json"];
    let benched = events(&expect(0, folder.path(), &arguments));
    assert_eq!((&benched[0]["event"], &benched[0]["command"]), (&"begin".into(), &"bench".into()));
    assert!(named(&benched, "result")[0]["tokens_per_second"].as_f64().unwrap() > 0.0);
    assert_eq!(benched.last().unwrap()["outcome"], "done");
    let unknown = events(&expect(2, folder.path(), &["bench", "--shape", "no-such", "--json"]));
    let problem = named(&unknown, "problem")[0]["message"].as_str().unwrap();
    assert!(problem.contains("no-such") && problem.contains("smollm2-135m"), "{problem}");
    assert_eq!(unknown.last().unwrap()["exit_code"], 2);
}

#[test]
fn bad_rows_are_annotated_at_their_lines() {
    let folder = small();
    let rows = "{\"messages\": [{\"role\": \"user\", \"content\": 7}]}\n".repeat(30);
    fs::write(folder.path().join("train.jsonl"), rows).unwrap();
    let failed = expect(3, folder.path(), &["run", "small.toml", "--json", "--annotations", "github"]);
    let events = events(&failed);
    let problems = named(&events, "problem");
    assert_eq!(problems.len(), 21, "twenty rows and the rest");
    assert_eq!((&problems[1]["file"], &problems[1]["line"]), (&"train.jsonl".into(), &2.into()));
    assert!(
        text(&failed.stderr)
            .contains("::error file=train.jsonl,line=2,title=data%3A%3Arow::/messages/0/content")
    );
    assert!(!folder.path().join("run").exists());
}

#[test]
fn a_reader_that_leaves_does_not_stop_training() {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;
    let folder = small();
    let mut child = command(folder.path(), &["run", "small.toml", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("begin"), "{line}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(folder.path().join("run/adapter/adapter_model.safetensors").is_file());
}
