//! Many runs at a time, and long ones.

use std::process::{Child, Stdio};

use tune::run::Options;
use tune::train::event::Event;
use tune::train::process::peak_resident_bytes;

use crate::common::{Bench, GO_ON, Watch, ended};

#[test]
fn runs_beside_each_other_do_not_disturb_each_other() {
    let bench = Bench::new();
    bench.run("alone");
    let names: Vec<String> = (0..8).map(|number| format!("beside-{number}")).collect();
    let start = |name: &String| -> Child {
        bench.command(name, &[]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let children: Vec<Child> = names.iter().map(start).collect();
    for (name, child) in names.iter().zip(children) {
        let (code, error) = ended(child.wait_with_output().unwrap());
        assert_eq!(code, 0, "{name}: {error}");
        bench.assert_same("alone", name);
    }
}

/// Runs many steps and watches the memory of the process, in which nothing else may run meanwhile:
/// `cargo test --test runs -- --ignored --nocapture`.
#[test]
#[ignore = "wants a process of its own for half a minute"]
fn ten_thousand_steps_take_no_more_memory_than_one_thousand() {
    let mut bench = Bench::new();
    bench.train =
        "max_steps = 10000\nmicro_batch_size = 2\neval_steps = 500\nsave_steps = 500\nlogging_steps = 10\n"
            .into();
    let mut peaks = Vec::new();
    let mut watch = Watch(|event: &Event<'_>| {
        if let Event::Step { step, .. } = event
            && step.is_multiple_of(1000)
        {
            peaks.extend(peak_resident_bytes());
        }
    });
    bench.try_run("run", Options::default(), GO_ON, &mut watch).unwrap();
    println!(
        "peak resident memory every thousand steps, in KiB: {:?}",
        peaks.iter().map(|b| b / 1024).collect::<Vec<_>>()
    );
    let Some((first, last)) = peaks.first().zip(peaks.last()) else { return };
    assert!(*last < first + (4 << 20), "grew from {first} to {last} bytes");
    let steps: Vec<u64> = bench
        .metrics("run")
        .iter()
        .filter(|line| line.get("loss").is_some())
        .map(|line| line["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, (1..=1000).map(|line| line * 10).collect::<Vec<_>>());
    assert_eq!(bench.checkpoints("run").iter().filter(|name| name.starts_with("step-")).count(), 3);
}
