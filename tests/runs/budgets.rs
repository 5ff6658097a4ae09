//! Runs that end early because their recipe says so, and runs whose recipe is not content with what they learned.

use std::time::Instant;

use tune::run::Options;
use tune::train::budget::Spent;
use tune::train::state::Ended;

use crate::common::{Bench, GO_ON, RESUME, Silent};

#[test]
fn a_budget_of_tokens_ends_with_an_adapter_and_can_be_raised() {
    let mut bench = Bench::new();
    let train = bench.train.clone();
    let whole = bench.run("whole");
    bench.train = format!("{train}max_tokens = {}\n", whole.tokens / 2);
    let half = bench.run("run");
    assert_eq!(half.ended, Ended::Budget(Spent::Tokens));
    assert!(half.steps < half.total_steps && half.tokens >= whole.tokens / 2, "{half:?}");
    assert!(half.tokens < whole.tokens && half.evaluations.is_some());
    assert_eq!(bench.provenance("run")["tune.ended_by"], "max_tokens");
    assert_eq!(bench.provenance("run")["tune.steps"], half.steps.to_string());
    // The same again has nothing left to do; however it is interrupted, it ends at the same step.
    assert!(bench.resume("run").was_finished);
    bench.stop_after("stopped", 3);
    bench.resume("stopped");
    bench.assert_same("run", "stopped");
    // A later end changes nothing of the beginning.
    bench.train = train;
    let rest = bench.resume("run");
    assert_eq!((rest.ended, rest.steps, rest.was_finished), (Ended::Done, whole.steps, false));
    assert!(bench.adapter("whole") == bench.adapter("run"), "another adapter");
    // An earlier one would not be the run that was made.
    bench.train = format!("{}max_tokens = 1\n", bench.train);
    assert!(bench.try_run("run", RESUME, GO_ON, &mut Silent).is_err());
}

#[test]
fn a_budget_of_time_ends_with_an_adapter_and_is_given_anew() {
    let mut bench = Bench::new();
    bench.data = "max_seq_len = 48\n".into();
    let train = "max_steps = 40\nmicro_batch_size = 2\neval_steps = 1000\nsave_steps = 1000\n";
    bench.train = train.into();
    bench.run("whole");
    bench.train = format!("{train}max_time = \"1s\"\n");
    let began = Instant::now();
    // Slow enough on any machine to be ended by the clock: each time the run asks whether to stop takes a while.
    let slowly = || {
        std::thread::sleep(std::time::Duration::from_millis(30));
        false
    };
    let first = bench.try_run("run", Options::default(), &slowly, &mut Silent).unwrap();
    assert_eq!(first.ended, Ended::Budget(Spent::Time));
    assert!(began.elapsed().as_secs_f64() >= 1.0 && (1..40).contains(&first.steps), "{first:?}");
    assert!(first.adapter.is_some());
    assert_eq!(bench.provenance("run")["tune.ended_by"], "max_time");
    let mut rest = bench.try_run("run", RESUME, &slowly, &mut Silent).unwrap();
    assert!(rest.steps > first.steps);
    while rest.ended != Ended::Done {
        rest = bench.resume("run");
    }
    assert!(bench.adapter("whole") == bench.adapter("run"), "another adapter");
    let steps: Vec<u64> = bench.metrics("run").iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (1..=40).collect::<Vec<_>>());
}

#[test]
fn a_spent_budget_is_success_and_says_so() {
    let mut bench = Bench::new();
    bench.train += "max_tokens = 100\n";
    let output = bench.command("run", &[]).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("`max_tokens` ended the run after step") && text.contains("--resume"), "{text}");
    assert!(text.contains("run/adapter"), "{text}");
}

#[test]
fn a_gate_that_is_not_met_fails_the_command_after_the_adapter_is_written() {
    let mut bench = Bench::new();
    bench.more = "[gate]\nmax_eval_loss_ratio = 0.01\nmax_eval_loss = 1000\n".into();
    for arguments in [&[][..], &["--resume"]] {
        let (code, error) = bench.output("run", arguments);
        assert_eq!(code, 6, "{error}");
        assert!(
            error.contains("error: the adapter fails a gate of the recipe: `max_eval_loss_ratio`"),
            "{error}"
        );
        assert!(!error.contains("recipe: `max_eval_loss`"), "{error}");
        assert!(!bench.adapter("run").is_empty());
    }
    // A gate judges and changes nothing.
    bench.more = "[gate]\nmax_eval_loss_ratio = 100\n".into();
    let (code, error) = bench.output("met", &[]);
    assert_eq!(code, 0, "{error}");
    bench.assert_same("run", "met");
}

#[test]
fn a_gate_needs_something_to_judge_by() {
    let mut bench = Bench::new();
    bench.more = "[gate]\nmax_eval_loss = 2.0\n".into();
    for data in ["max_seq_len = 48\n", "max_seq_len = 48\nval_split = 1e-9\n"] {
        bench.data = data.into();
        let (code, error) = bench.output("run", &[]);
        assert_eq!(code, 2, "{error}");
        assert!(error.contains("`[gate]` limits the held-out loss"), "{error}");
        assert!(!bench.run_dir("run").exists());
    }
}
