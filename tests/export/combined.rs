//! Several adapters as one, beside what PEFT makes of the same ones; and what has no sum.

use std::path::{Path, PathBuf};
use std::process::Command;

use tune::adapter::peft::{Adapter, TENSORS_FILE};
use tune::assets::SafetensorsFile;
use tune::export::combine::Combination as How;
use tune::export::verify::verify;
use tune::files::Existing;
use tune::run::Error;
use tune::run::adapters::{BaseChoice, Combination};

use super::support::{
    adapted_logits, entries, environment, golden, largest_difference, logits, write_adapter,
};

/// Combines golden adapters into `out`, without their base.
fn combine(adapters: &[(PathBuf, f64)], how: How, seed: u64, out: &Path) -> Result<Vec<String>, Error> {
    let combination = Combination { adapters, combine: how, seed, any_base: false };
    let written = combination.write(BaseChoice::default(), out, Existing::Refuse, &environment());
    written.map(|(_, notes)| notes)
}

/// Golden adapters and their weights.
type Weights = &'static [(&'static str, f64)];

fn golden_adapters(weights: &[(&str, f64)]) -> Vec<(PathBuf, f64)> {
    weights.iter().map(|(name, weight)| (golden("peft").join(name), *weight)).collect()
}

#[test]
fn every_combination_is_that_of_peft() {
    let out = tempfile::tempdir().unwrap();
    let cases: [(&str, How, Weights); 7] = [
        ("linear", How::Linear, &[("all_linear", 0.7), ("plain_qv", -0.3)]),
        ("linear_single", How::Linear, &[("plain_qv", 0.25)]),
        ("cat", How::Cat, &[("plain_qv", 0.6), ("rslora_patterns", 0.5), ("bf16", -0.2)]),
        ("ties", How::Ties(0.45), &[("all_linear", 0.7), ("plain_qv", 0.4)]),
        ("ties_whole", How::Ties(1.0), &[("all_linear", 0.7), ("bf16", -0.9)]),
        ("dare_linear_whole", How::DareLinear(1.0), &[("all_linear", 0.7), ("bf16", 0.5)]),
        ("dare_ties_whole", How::DareTies(1.0), &[("all_linear", 0.7), ("plain_qv", 0.3), ("bf16", 0.5)]),
    ];
    for (name, how, weights) in cases {
        let folder = out.path().join(name);
        combine(&golden_adapters(weights), how, 0, &folder).unwrap();
        let ours = SafetensorsFile::open(&folder.join(TENSORS_FILE)).unwrap();
        let theirs =
            SafetensorsFile::open(&golden("peft/combined").join(format!("{name}.safetensors"))).unwrap();
        assert_eq!(ours.names().collect::<Vec<_>>(), theirs.names().collect::<Vec<_>>(), "{name}");
        let mut worst = 0.0_f32;
        for tensor in theirs.names() {
            assert_eq!(
                ours.info(tensor).unwrap().shape,
                theirs.info(tensor).unwrap().shape,
                "{name} {tensor}"
            );
            let (ours, theirs): (Vec<f32>, Vec<f32>) =
                (ours.read_floats(tensor).unwrap(), theirs.read_floats(tensor).unwrap());
            worst = worst.max(largest_difference(&ours, &theirs));
        }
        assert!(worst <= 1e-6, "{name}: a value differs by {worst:e}");
        assert_eq!(verify(&folder, None).problems, Vec::<String>::new(), "{name}");
    }
}

#[test]
fn side_by_side_is_the_exact_sum_and_merges_as_one() {
    let out = tempfile::tempdir().unwrap();
    let base = golden("peft/base");
    let adapters = golden_adapters(&[("all_linear", 1.0), ("rslora_patterns", 1.0)]);
    // An adapter and its opposite cancel.
    let (sum, none) = (out.path().join("sum"), out.path().join("none"));
    combine(&adapters, How::Cat, 0, &sum).unwrap();
    let opposite = [adapters.clone(), golden_adapters(&[("rslora_patterns", -1.0)])].concat();
    combine(&opposite, How::Cat, 0, &none).unwrap();
    let ids: Vec<u32> = (0..24).map(|at| at * 5 % 64).collect();
    let alone = adapted_logits(&base, &golden("peft/all_linear"), &ids);
    assert!(largest_difference(&adapted_logits(&base, &none, &ids), &alone) < 1e-4);
    let combined = adapted_logits(&base, &sum, &ids);
    assert!(largest_difference(&combined, &alone) > 0.1);

    // From the command line, merged into the base at once.
    let merged = out.path().join("merged");
    let named = adapters.iter().map(|(folder, weight)| format!("{}={weight}", folder.display()));
    let run = Command::new(env!("CARGO_BIN_EXE_tune"))
        .args(["merge", "--combine", "cat", "--dtype", "f32", "--out"])
        .arg(&merged)
        .arg("--base")
        .arg(&base)
        .arg("--adapters")
        .args(named)
        .env("NO_COLOR", "1")
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert_eq!(run.status.code(), Some(0), "{stderr}");
    for promised in ["combine   cat", "+1 × ", "logits change by", "merged"] {
        assert!(stdout.contains(promised), "no `{promised}` in:\n{stdout}");
    }
    assert!(largest_difference(&logits(&merged, &ids), &combined) < 1e-4);
    // What was combined on the way is gone.
    assert_eq!(entries(out.path()), ["merged", "none", "sum"]);
}

#[test]
fn what_is_dropped_depends_on_the_seed_alone() {
    let out = tempfile::tempdir().unwrap();
    let adapters = golden_adapters(&[("all_linear", 0.5), ("bf16", 0.5)]);
    let bytes = |name: &str, seed: u64| {
        let folder = out.path().join(name);
        combine(&adapters, How::DareTies(0.5), seed, &folder).unwrap();
        std::fs::read(folder.join(TENSORS_FILE)).unwrap()
    };
    let first = bytes("first", 1);
    assert!(first == bytes("again", 1));
    assert!(first != bytes("other", 2));
}

#[test]
fn what_it_was_made_of_is_recorded() {
    let out = tempfile::tempdir().unwrap();
    let (left, right, whole) = (out.path().join("left"), out.path().join("right"), out.path().join("whole"));
    let base = golden("peft/base");
    let shared =
        [("tune.base_sha256.model.safetensors", "12"), ("tune.quantization", "none"), ("tune.seed", "1")];
    write_adapter(&left, &base, 0.1, &shared);
    write_adapter(&right, &base, 0.2, &[shared[0], ("tune.quantization", "nf4"), ("tune.seed", "1")]);
    combine(&[(left.clone(), 0.75), (right, 0.5)], How::DareLinear(0.5), 9, &whole).unwrap();
    let adapter = Adapter::open(&whole).unwrap();
    let metadata = adapter.metadata();
    assert_eq!(metadata["tune.base_sha256.model.safetensors"], "12");
    assert_eq!(metadata["tune.combined"], "dare-linear, density 0.5");
    assert_eq!(metadata["tune.combined_seed"], "9");
    let first = tune::assets::folder::digest(&left.join(TENSORS_FILE)).unwrap().sha256;
    assert_eq!(metadata["tune.combined_from.1"], format!("{first} times 0.75"));
    // What they do not say alike, and what is of one run alone, is not said of the whole.
    assert!(!metadata.contains_key("tune.quantization") && !metadata.contains_key("tune.seed"));
    assert_eq!(adapter.config().alpha, adapter.config().rank as f64);
}

#[test]
fn adapters_that_have_no_sum_are_refused() {
    let out = tempfile::tempdir().unwrap();
    let to = out.path().join("no");
    let refused = |adapters: &[(PathBuf, f64)], how: How| {
        let error = combine(adapters, how, 0, &to).unwrap_err().to_string();
        assert!(!to.exists());
        error
    };
    let error = refused(&golden_adapters(&[("dora", 1.0), ("all_linear", 1.0)]), How::Cat);
    assert!(error.contains("DoRA") && error.contains("merge it into the base first"), "{error}");
    let error = refused(&golden_adapters(&[("wholes", 1.0), ("plain_qv", 1.0)]), How::Cat);
    assert!(error.contains("modules_to_save") && error.contains("tune merge"), "{error}");
    let error = refused(&golden_adapters(&[("plain_qv", 1.0), ("rslora_patterns", 1.0)]), How::Linear);
    assert!(error.contains("equal rank") && error.contains("--combine cat"), "{error}");
    let mut other = golden_adapters(&[("all_linear", 1.0)]);
    other.push((golden("trajectory/adapter"), 1.0));
    let error = refused(&other, How::Cat);
    assert!(
        error.contains("tune-golden/trajectory-base") && error.contains("different base models"),
        "{error}"
    );

    let base = golden("peft/base");
    let [left, right] = ["left", "right"].map(|name| out.path().join(name));
    write_adapter(&left, &base, 0.1, &[("tune.base_sha256.model.safetensors", "12")]);
    write_adapter(&right, &base, 0.1, &[("tune.base_sha256.model.safetensors", "13")]);
    let both = [(left, 1.0), (right, 1.0)];
    let error = refused(&both, How::Linear);
    assert!(error.contains("with other files"), "{error}");
    let combination = Combination { adapters: &both, combine: How::Linear, seed: 0, any_base: true };
    combination.write(BaseChoice::default(), &to, Existing::Refuse, &environment()).unwrap();
}

#[test]
fn the_command_line_is_held_to_what_makes_sense() {
    let run = |arguments: &[&str]| {
        let run = Command::new(env!("CARGO_BIN_EXE_tune"))
            .args(["merge", "--out", "no-such-folder"])
            .args(arguments)
            .env("NO_COLOR", "1")
            .output()
            .unwrap();
        (run.status.code(), String::from_utf8_lossy(&run.stderr).into_owned())
    };
    for (arguments, part) in [
        (&["--adapters", "a", "--combine", "cat"][..], "a folder and its weight"),
        (&["--adapters", "a=0", "--combine", "cat"], "not 0"),
        (&["--adapters", "a=1"], "--combine"),
        (&["--adapters", "a=1", "--combine", "ties"], "need `--density`"),
        (&["--adapters", "a=1", "--combine", "cat", "--density", "0.5"], "remove `--density`"),
        (&["--adapters", "a=1", "--combine", "ties", "--density", "0"], "above 0"),
        (&["x", "--adapters", "a=1", "--combine", "cat"], "cannot be used with"),
        (&[], "<ADAPTER|RUN>"),
    ] {
        let (code, error) = run(arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {error}");
        assert!(error.contains(part), "{arguments:?}: no `{part}` in {error}");
    }
}
