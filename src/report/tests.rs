//! The page of run folders made to order: whole, under way, empty, and hostile.

use std::fs;
use std::path::Path;

use super::{Error, page};
use crate::record::{Record, SampleRecord, Session};
use crate::train::event::{EvaluationReport, StepReport};

const HOSTILE: &str = "</style><script>alert('x')</script>\"'&<!--\u{1b}[31m\u{202e}";

fn step(step: u64) -> String {
    let report = StepReport {
        step,
        epoch: 0.5,
        loss: 2.0 / step as f64,
        grad_norm: 1.0,
        learning_rate: 1e-3,
        tokens: 100 * step,
        tokens_per_second: 1000.0,
        peak_memory_bytes: Some(1 << 20),
        device_memory_bytes: None,
        device_reserved_bytes: None,
        answers: None,
        experts: Default::default(),
    };
    serde_json::to_string(&report).unwrap() + "\n"
}

fn evaluation(step: u64) -> String {
    let report = EvaluationReport { step, epoch: 0.5, eval_loss: 1.25, eval_tokens: 10, answers: None };
    serde_json::to_string(&report).unwrap() + "\n"
}

fn record(folder: &Path, record: &Record) {
    fs::write(folder.join("run.json"), serde_json::to_vec(&Record { version: 1, ..record.clone() }).unwrap())
        .unwrap();
}

#[test]
fn what_comes_from_files_cannot_become_markup() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("recipe.toml"), HOSTILE).unwrap();
    fs::write(folder.path().join("metrics.jsonl"), evaluation(0) + &step(1) + HOSTILE + "\n").unwrap();
    fs::write(folder.path().join("memory_plan.json"), serde_json::json!({HOSTILE: 7}).to_string()).unwrap();
    let text = HOSTILE.to_owned();
    record(
        folder.path(),
        &Record {
            tune: text.clone(),
            compute: text.clone(),
            warnings: vec![text.clone()],
            samples: vec![SampleRecord {
                prompt: text.clone(),
                before: text.clone(),
                after: Some(text.clone()),
            }],
            sessions: vec![Session { started: text.clone(), problem: Some(text), ..Session::default() }],
            data: Some(Default::default()),
            ..Record::default()
        },
    );
    let page = page(folder.path()).unwrap();
    assert!(
        !page.contains("<script")
            && !page.contains("<!--")
            && !page.contains('\u{1b}')
            && !page.contains('\u{202e}')
    );
    assert_eq!(page.matches("</style>").count(), 1, "the page's own");
    assert!(page.contains("&lt;script&gt;alert(&#39;x&#39;)"));
    assert!(page.contains("1 line of metrics.jsonl could not be read"));
}

#[test]
fn nothing_is_loaded_from_anywhere() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("metrics.jsonl"), step(1)).unwrap();
    let page = page(folder.path()).unwrap();
    for loads in ["http:", "https:", "src=", "href=", "url(", "@import", "<script", "<link", "<iframe"] {
        assert!(!page.contains(loads), "{loads}");
    }
}

#[test]
fn a_run_under_way_has_a_page() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("recipe.toml"), "version = 1").unwrap();
    assert!(page(folder.path()).unwrap().contains("No step has been logged yet"));
    // The last line is being written.
    let metrics = step(1) + &step(2) + &step(3)[..20];
    fs::write(folder.path().join("metrics.jsonl"), metrics).unwrap();
    record(
        folder.path(),
        &Record { total_steps: 9, sessions: vec![Session::default()], ..Record::default() },
    );
    let page = page(folder.path()).unwrap();
    assert!(page.contains("cut off, can be resumed") && page.contains("of 9"), "{page}");
    assert!(!page.contains("could not be read"));
    // A line that a crash cut off is left out and counted; the answers around it are read.
    let answer = |text: &str| format!("{}\n", serde_json::json!({"step": 1, "prompt": "p", "answer": text}));
    let answers = answer("first") + "{\"step\": 2, \"pro\n" + &answer("last");
    fs::write(folder.path().join("samples.jsonl"), answers).unwrap();
    let run = super::read::Run::read(folder.path()).unwrap();
    assert_eq!((run.answers.len(), run.unreadable_answers), (2, 1));
    assert!(super::page(folder.path()).unwrap().contains("1 line of samples.jsonl could not be read"));
}

#[test]
fn every_chart_is_described_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let metrics: String = (1..200).map(step).chain([0, 100, 199].map(evaluation)).collect();
    fs::write(folder.path().join("metrics.jsonl"), metrics).unwrap();
    let page = page(folder.path()).unwrap();
    assert_eq!(page.matches("viewBox=\"0 0 1080").count() + page.matches("viewBox=\"0 0 540").count(), 6);
    assert_eq!(page.matches("role=\"img\" aria-labelledby=").count(), 6);
    assert!(page.contains("Held-out loss: 1.25 at step 0, 1.25 at step 199."));
    assert!(page.contains("Training loss: 2 at step 1, 0.0101 at step 199."), "rounded to what can be seen");
}

#[test]
fn a_plan_is_held_against_the_peak() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("metrics.jsonl"), step(1)).unwrap();
    let plan = serde_json::json!({"terms": [{"name": "frozen weights", "bytes": 1_048_576}, {"name": "logits", "bytes": 1_048_576}]});
    fs::write(folder.path().join("memory_plan.json"), plan.to_string()).unwrap();
    let page = page(folder.path()).unwrap();
    for part in ["frozen weights", "2.00 MiB", "50 % of the plan"] {
        assert!(page.contains(part), "no {part}");
    }
}

#[test]
fn the_plan_of_a_device_is_held_against_what_was_on_the_device() {
    let folder = tempfile::tempdir().unwrap();
    let on_device =
        step(1).replace('}', r#","device_memory_bytes":1572864,"device_reserved_bytes":3145728}"#);
    fs::write(folder.path().join("metrics.jsonl"), on_device).unwrap();
    let plan = serde_json::json!({"terms": [{"name": "frozen weights", "bytes": 2_097_152}]});
    fs::write(folder.path().join("memory_plan.json"), plan.to_string()).unwrap();
    let page = page(folder.path()).unwrap();
    for part in ["75 % of the plan", "on the device", "1.50 MiB", "3.00 MiB", "peak of the process"] {
        assert!(page.contains(part), "no {part}");
    }
    assert!(!page.contains("50 % of the plan"), "the process is not what was planned");
}

#[test]
fn steps_that_diverged_are_shown_with_their_rows() {
    let folder = tempfile::tempdir().unwrap();
    let bad = r#"{"step":2,"epoch":0.1,"diverged":"loss","value":"NaN","rows":["a<b.jsonl:3"],"continued_from":1,"rolled_back":false}"#;
    fs::write(folder.path().join("metrics.jsonl"), format!("{}{bad}\n{}", step(1), step(3))).unwrap();
    let page = page(folder.path()).unwrap();
    for part in ["Diverged steps", "loss NaN", "a&lt;b.jsonl:3", "skipped; continued from step 1"] {
        assert!(page.contains(part), "no {part}");
    }
    assert!(!page.contains("could not be read"));
}

#[test]
fn a_folder_without_a_run_says_so() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(page(folder.path()), Err(Error::NoRun(_))));
    fs::write(folder.path().join("metrics.jsonl"), "").unwrap();
    fs::write(folder.path().join("run.json"), "{}").unwrap();
    assert!(matches!(page(folder.path()), Err(Error::Record(_))));
}

#[test]
fn the_load_of_every_expert_is_drawn() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("metrics.jsonl"), step(1)).unwrap();
    let write = |load: serde_json::Value| fs::write(folder.path().join("expert_load.json"), load.to_string());
    write(serde_json::json!({ "tokens": [[], [6, 0, 0, 2], [1, 1, 1, 1]] })).unwrap();
    let found = page(folder.path()).unwrap();
    assert_eq!(found.matches("class=\"cell\"").count(), 8);
    for part in ["layer 1, expert 0: 6 tokens, 3.00 of the mean", "expert 0 of layer 1", "2 of 8 experts"] {
        assert!(found.contains(part), "no {part}");
    }
    // A file that is none shows nothing, and numbers without end are no drawing.
    let hostile = serde_json::json!({ "tokens": [vec![u64::MAX; 3], vec![0; 200_000]] });
    for load in [serde_json::json!({ "tokens": "x" }), serde_json::json!([1]), hostile] {
        write(load).unwrap();
        assert!(!page(folder.path()).unwrap().contains("<h2>Experts"));
    }
}
