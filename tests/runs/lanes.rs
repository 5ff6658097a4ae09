//! `train.lanes`: micro-batches dealt into sums that are added as a tree.

use crate::common::{AHEAD, Bench, GO_ON, Silent};

/// A last step of each epoch that has fewer micro-batches than lanes.
const TRAIN: &str = "epochs = 3\nmicro_batch_size = 2\ngradient_accumulation_steps = 4\nlogging_steps = 1\neval_steps = 2\n\
                     save_steps = 2\nsave_total_limit = 2\n";

fn bench(lanes: usize) -> Bench {
    let mut bench = Bench::new();
    bench.data = "max_seq_len = 24\nval_split = 0.2\npacking = false\n".into();
    bench.train = format!("{TRAIN}lanes = {lanes}\n");
    bench
}

#[test]
fn lanes_change_rounding_and_nothing_else() {
    let one = bench(1);
    one.run("run");
    for lanes in [2, 3, 4] {
        let bench = bench(lanes);
        bench.run("run");
        let (ones, others) = (one.metrics("run"), bench.metrics("run"));
        assert_eq!(ones.len(), others.len());
        let mut are_equal = true;
        for (line, other) in ones.iter().zip(&others) {
            for key in ["loss", "grad_norm", "eval_loss"] {
                let Some((line, other)) = line[key].as_f64().zip(other[key].as_f64()) else { continue };
                assert!(
                    (line - other).abs() < 2e-5 * line.abs().max(1.0),
                    "{lanes} lanes, {key}: {line} {other}"
                );
                are_equal &= line.to_bits() == other.to_bits();
            }
        }
        assert!(!are_equal, "{lanes} lanes add in the order of one");
    }
}

#[test]
fn a_run_in_lanes_is_the_same_ahead_stopped_and_resumed() {
    let bench = bench(3);
    bench.run("whole");
    bench.try_run("ahead", AHEAD, GO_ON, &mut Silent).unwrap();
    bench.assert_same("whole", "ahead");
    bench.stop_after("stopped", 4);
    bench.resume("stopped");
    bench.assert_same("whole", "stopped");
}

#[test]
fn more_lanes_than_micro_batches_are_refused() {
    let (code, error) = bench(5).output("run", &[]);
    assert_eq!(code, 2, "{error}");
    assert!(error.contains("5 lanes for 4 micro-batches a step"), "{error}");
}

fn local(lanes: usize) -> Bench {
    let mut bench = bench(lanes);
    bench.more = "[train.local]\nsteps = 2\n".into();
    bench
}

#[test]
fn one_worker_that_is_averaged_with_itself_trains_as_without() {
    let (plain, local) = (bench(1), local(1));
    plain.run("run");
    local.run("run");
    assert_eq!(plain.metrics("run"), local.metrics("run"));
}

#[test]
fn workers_learn_and_are_the_same_stopped_and_resumed() {
    let bench = local(4);
    bench.run("whole");
    let losses: Vec<f64> =
        bench.metrics("whole").iter().filter_map(|line| line["eval_loss"].as_f64()).collect();
    assert!(losses.last() < losses.first(), "{losses:?}");
    let lines = std::fs::read_to_string(bench.run_dir("whole").join("metrics.jsonl")).unwrap();
    assert!(
        !lines.contains("\"tokens_per_second\":0.0"),
        "each step of a round has its share of the time: {lines}"
    );
    bench.stop_after("stopped", 4);
    bench.resume("stopped");
    bench.assert_same("whole", "stopped");
    // Without rounds the same lanes give another adapter.
    let added = self::bench(4);
    added.run("run");
    assert_ne!(added.metrics("run"), bench.metrics("whole"));
}

/// Workers see the tokens that lanes see: of the first step, which all begin with the same adapter, the same load.
#[test]
fn the_load_of_experts_is_that_of_all_workers() {
    let mut bench = Bench::of_experts();
    bench.adapter = String::new();
    bench.train =
        "max_steps = 2\nmicro_batch_size = 2\ngradient_accumulation_steps = 2\nlanes = 2\nlogging_steps = 1\n".into();
    let run = |bench: &Bench, name: &str| {
        bench.run(name);
        let load = std::fs::read(bench.run_dir(name).join("expert_load.json")).unwrap();
        let load: std::collections::BTreeMap<String, Vec<Vec<u64>>> = serde_json::from_slice(&load).unwrap();
        let lines = std::fs::read_to_string(bench.run_dir(name).join("metrics.jsonl")).unwrap();
        let spread = |line: serde_json::Value| line["expert_load_max"].as_f64();
        let lines = lines.lines().map(|line| serde_json::from_str(line).unwrap());
        (load["tokens"].iter().flatten().sum::<u64>(), lines.filter_map(spread).collect::<Vec<_>>())
    };
    let (tokens, spreads) = run(&bench, "added");
    bench.more = "[train.local]\nsteps = 2\n".into();
    let (tokens_of_workers, spreads_of_workers) = run(&bench, "averaged");
    assert_eq!((tokens, spreads[0]), (tokens_of_workers, spreads_of_workers[0]));
    assert_eq!(spreads.len(), spreads_of_workers.len());
}

#[test]
fn what_happens_within_a_round_is_refused() {
    let mut bench = local(2);
    bench.train = bench.train.replace("eval_steps = 2", "eval_steps = 3");
    let (code, error) = bench.output("run", &[]);
    assert_eq!(code, 2, "{error}");
    assert!(error.contains("lanes are averaged every 2 steps"), "{error}");
}
