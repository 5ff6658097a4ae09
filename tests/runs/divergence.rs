//! Losses that are no number, on purpose: one row of the data overflows f16 in the first layer.

use std::cell::Cell;
use std::fs;

use serde_json::Value;
use tune::run::{Error, Options};
use tune::train::event::Event;

use crate::common::{AHEAD, Bench, GO_ON, Silent, Watch, rows};

/// The largest bf16 that is finite in f16.
const HUGE: [u8; 2] = 0x477F_u16.to_le_bytes();

/// A recipe one of whose rows, and no other, makes its step diverge: token 511 fills the residual stream to the brim,
/// and what the first layer adds runs over.
pub(crate) fn poisoned(settings: &str) -> Bench {
    let mut bench = Bench::in_memory();
    bench.compute_dtype = "f16";
    let weights = bench.own_base().join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let range = |name: &str| {
        let offset = |at: usize| 8 + length + header[name]["data_offsets"][at].as_u64().unwrap() as usize;
        offset(0)..offset(1)
    };
    let embedding = range("model.embed_tokens.weight");
    let row = embedding.len() / 512;
    for value in bytes[embedding.end - row..embedding.end].chunks_exact_mut(2) {
        value.copy_from_slice(&HUGE);
    }
    for value in bytes[range("model.layers.0.mlp.down_proj.weight")].chunks_exact_mut(2) {
        // Times 2¹⁰, unless it is so small that it does not matter.
        let number = u16::from_le_bytes([value[0], value[1]]);
        if number & 0x7F80 > 0x0800 {
            value.copy_from_slice(&(number + (10 << 7)).to_le_bytes());
        }
    }
    fs::write(&weights, bytes).unwrap();
    fs::write(bench.rows(), rows(24, Some(9))).unwrap();
    bench.data = "max_seq_len = 48\npacking = false\nshuffle = false\n".into();
    bench.train = format!("epochs = 2\nmicro_batch_size = 2\nlogging_steps = 1\nsave_steps = 3\n{settings}");
    bench
}

/// Steps of the lines that have `key`.
fn steps_with(bench: &Bench, name: &str, key: &str) -> Vec<u64> {
    let lines = bench.metrics(name);
    lines.iter().filter(|line| line.get(key).is_some()).map(|line| line["step"].as_u64().unwrap()).collect()
}

#[test]
fn a_diverged_step_stops_a_run_that_says_nothing_else() {
    let bench = poisoned("");
    let (code, error) = bench.output("run", &[]);
    assert_eq!(code, 5, "{error}");
    assert!(error.contains("loss of optimizer step 5 is NaN") && error.contains("rows.jsonl:10"), "{error}");
    assert_eq!(bench.checkpoints("run"), ["step-3", "step-4"]);
    assert_eq!(steps_with(&bench, "run", "loss"), [1, 2, 3, 4]);
    // As it was, it diverges again; with another policy, accepted, it goes on.
    assert_eq!(bench.output("run", &["--resume"]).0, 5);
    let changed = ["--resume", "--accept-changes", "--set", "train.on_divergence=skip"];
    let (code, error) = bench.output("run", &changed);
    assert_eq!(code, 0, "{error}");
    assert!(error.contains("`train.on_divergence` was left out and is \"skip\""), "{error}");
}

#[test]
fn a_skipped_step_is_in_the_metrics_and_changes_nothing() {
    let bench = poisoned("on_divergence = \"skip\"\n");
    let mut seen = Vec::new();
    let mut watch = Watch(|event: &Event<'_>| {
        if let Event::Diverged(report) = event {
            seen.push(report.step);
        }
    });
    let outcome = bench.try_run("run", Options::default(), GO_ON, &mut watch).unwrap();
    // Twenty-four rows, two a step, two epochs: the tenth row is in the steps 5 and 17.
    assert_eq!((outcome.steps, seen), (24, vec![5, 17]));
    assert_eq!(steps_with(&bench, "run", "diverged"), [5, 17]);
    let good: Vec<u64> = (1..=24).filter(|step| ![5, 17].contains(step)).collect();
    assert_eq!(steps_with(&bench, "run", "loss"), good);
    let lines = bench.metrics("run");
    let line = lines.iter().find(|line| line.get("diverged").is_some()).unwrap();
    assert_eq!(line["value"], "NaN");
    assert_eq!((line["continued_from"].as_u64(), line["rolled_back"].as_bool()), (Some(4), Some(false)));
    assert!(line["rows"][1].as_str().unwrap().ends_with("rows.jsonl:10"), "{line}");
}

#[test]
fn a_rollback_returns_to_the_kept_place() {
    let bench = poisoned(
        "on_divergence = \"rollback\"\nrollback_steps = 4\nlr_scheduler = \"constant\"\nwarmup_steps = 0\n",
    );
    bench.run("run");
    assert_eq!(steps_with(&bench, "run", "diverged"), [5, 17]);
    let froms: Vec<u64> =
        bench.metrics("run").iter().filter_map(|line| line.get("continued_from")?.as_u64()).collect();
    assert_eq!(froms, [4, 16]);
    // One step later in the pattern: three good steps are lost with the bad one.
    let far = poisoned("on_divergence = \"rollback\"\nrollback_steps = 100\n");
    far.run("run");
    let froms: Vec<u64> =
        far.metrics("run").iter().filter_map(|line| line.get("continued_from")?.as_u64()).collect();
    assert_eq!(froms, [0, 0]);
}

#[test]
fn patience_ends() {
    for (settings, last) in [
        ("on_divergence = \"skip\"\ndivergence_patience = 0\n", 5),
        // Back to the very beginning twice is once too often.
        ("on_divergence = \"rollback\"\ndivergence_patience = 1\nrollback_steps = 100\n", 17),
    ] {
        let bench = poisoned(settings);
        let error = bench.try_run("run", Options::default(), GO_ON, &mut Silent).unwrap_err();
        let Error::Diverged { fault, checkpoint } = error else { panic!("{error}") };
        assert_eq!(fault.step, last, "{settings}");
        assert_eq!(checkpoint, Some(bench.checkpoint("run", &format!("step-{}", last - 1))));
    }
    // Every row is poisoned: three in a row are borne, the fourth is not.
    let bench = poisoned("on_divergence = \"skip\"\n");
    let all: String =
        (0..24).map(|row| rows(24, Some(row)).lines().nth(row as usize).unwrap().to_owned() + "\n").collect();
    fs::write(bench.rows(), all).unwrap();
    let (code, error) = bench.output("run", &[]);
    assert_eq!(code, 5, "{error}");
    assert!(error.contains("optimizer step 4"), "{error}");
}

#[test]
fn a_run_that_diverges_goes_on_exactly_too() {
    for policy in ["skip\"", "rollback\"\nrollback_steps = 3"] {
        let bench = poisoned(&format!("on_divergence = \"{policy}\n"));
        bench.run("whole");
        for step in [4, 5, 6, 17] {
            let name = format!("stopped-{step}");
            bench.stop_after(&name, step);
            bench.resume(&name);
            assert!(bench.adapter("whole") == bench.adapter(&name), "{policy} stopped after {step}");
            assert_eq!(bench.metrics("whole"), bench.metrics(&name));
        }
    }
}

#[test]
fn a_held_out_loss_that_is_no_number_ends_the_run() {
    let mut bench = poisoned("on_divergence = \"skip\"\n");
    fs::write(bench.path().join("held.jsonl"), rows(12, Some(9))).unwrap();
    bench.more += &format!(
        "[[dataset]]\npath = {:?}\nformat = \"tokens\"\nsplit = \"validation\"\n",
        bench.path().join("held.jsonl")
    );
    let evaluated = Cell::new(0);
    let mut watch = Watch(|event: &Event<'_>| {
        if matches!(event, Event::Evaluated(_)) {
            evaluated.set(evaluated.get() + 1);
        }
    });
    let error = bench.try_run("run", Options::default(), GO_ON, &mut watch).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("held-out loss before the first step is NaN") && text.contains("held.jsonl:10"),
        "{text}"
    );
    assert_eq!(evaluated.get(), 0);
}

/// As on a GPU, where each step is launched before the numbers of the one before are known: a step that turns out to have
/// diverged has changed nothing, and what was computed behind it is computed anew.
#[test]
fn numbers_that_are_read_late_change_nothing() {
    for policy in ["skip\"", "rollback\"\nrollback_steps = 3", "rollback\"\nrollback_steps = 100"] {
        let mut bench = poisoned(&format!("on_divergence = \"{policy}\n"));
        // Every step but the last is read late.
        bench.train = bench.train.replace("save_steps = 3", "save_steps = 1000");
        bench.run("whole");
        bench.try_run("ahead", AHEAD, GO_ON, &mut Silent).unwrap();
        assert!(bench.adapter("whole") == bench.adapter("ahead"), "{policy}");
        assert_eq!(bench.metrics("whole"), bench.metrics("ahead"), "{policy}");
        for step in [3, 4, 5, 6, 16, 17] {
            let name = format!("stopped-{step}");
            let reached = Cell::new(0);
            let mut watch = Watch(|event: &Event<'_>| {
                if let Event::Step { step, .. } = event {
                    reached.set(*step);
                }
            });
            let stopped = bench.try_run(&name, AHEAD, &|| reached.get() >= step, &mut watch).unwrap();
            assert_eq!(stopped.steps, step, "{policy}");
            bench.try_run(&name, Options { resume: true, ..AHEAD }, GO_ON, &mut Silent).unwrap();
            assert!(bench.adapter("whole") == bench.adapter(&name), "{policy} stopped after {step}");
            assert_eq!(bench.metrics("whole"), bench.metrics(&name));
        }
    }
}

#[test]
fn a_run_ahead_stops_at_the_step_that_diverged() {
    let bench = poisoned("");
    let error = bench.try_run("run", AHEAD, GO_ON, &mut Silent).unwrap_err();
    let Error::Diverged { fault, checkpoint } = error else { panic!("{error}") };
    assert_eq!(fault.step, 5);
    assert!(fault.rows.iter().any(|row| row.ends_with("rows.jsonl:10")), "{fault}");
    assert_eq!(checkpoint, Some(bench.checkpoint("run", "step-4")));
    assert_eq!(steps_with(&bench, "run", "loss"), [1, 2, 3, 4]);
    // The checkpoint is that of a run that never looked ahead.
    bench.try_run("other", Options::default(), GO_ON, &mut Silent).unwrap_err();
    for file in ["counters.json", "state.safetensors"] {
        let [one, other] =
            ["run", "other"].map(|run| fs::read(bench.checkpoint(run, "step-4").join(file)).unwrap());
        assert!(one == other, "{file}");
    }
}
