//! What a run computes on: chosen by name, tried out by `tune doctor`, and fitted into.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::fixture::{events, expect, named, small, text, tune};

#[cfg(feature = "vulkan")]
fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

#[test]
fn a_device_that_does_not_exist_is_a_slip_and_one_that_is_not_there_is_a_lack() {
    let folder = small();
    let slip = text(&expect(2, folder.path(), &["run", "small.toml", "--device", "gpu"]).stderr);
    assert!(slip.contains("is not a device") && slip.contains("vulkan"), "{slip}");
    let recipe = fs::read_to_string(folder.path().join("small.toml")).unwrap();
    fs::write(folder.path().join("slip.toml"), recipe.replace("\n[model]", "device = \"cuda:x\"\n\n[model]"))
        .unwrap();
    let slip = text(&expect(2, folder.path(), &["validate", "slip.toml"]).stderr);
    assert!(slip.contains("slip.toml:3") && slip.contains("whole number"), "{slip}");
    for command in ["run", "validate", "bench"] {
        let lack = text(&expect(4, folder.path(), &[command, "small.toml", "--device", "cuda:200"]).stderr);
        assert!(
            lack.contains("cuda:200") && lack.contains("(available: `cpu`") && lack.contains("help:"),
            "{lack}"
        );
    }
    expect(4, folder.path(), &["doctor", "--device", "cuda:200"]);
    assert!(!folder.path().join("run").exists());
}

#[test]
fn the_doctor_finds_the_processor_well() {
    let folder = tempfile::tempdir().unwrap();
    let events = events(&expect(0, folder.path(), &["doctor", "--device", "cpu", "--json"]));
    let report = named(&events, "result")[0];
    let devices = report["devices"].as_array().unwrap();
    assert_eq!(devices.len(), 1);
    assert_eq!(devices[0]["dtypes"], serde_json::json!(["f32", "bf16", "f16"]));
    require_all_right(&devices[0], 20);
    assert!(!report["instruction_set"].as_str().unwrap().is_empty());

    let told = text(&expect(0, folder.path(), &["doctor", "--device", "cpu"]).stdout);
    for word in ["attention", "linear_cross_entropy", "nf4", "ok", "All tested ops are correct"] {
        assert!(told.contains(word), "no `{word}` in\n{told}");
    }
    assert!(!told.contains('\u{1b}'), "colour in a pipe");
    if cfg!(not(any(feature = "cuda", feature = "vulkan", feature = "metal"))) {
        assert!(told.contains("--features cuda"), "{told}");
    }
}

/// `--op` and `--dtype` leave only what they name; what leaves nothing is no success.
#[test]
fn the_doctor_tests_what_it_is_asked_to() {
    let folder = tempfile::tempdir().unwrap();
    let named_tests =
        ["doctor", "--device", "cpu", "--op", "rope", "--op", "nf4", "--dtype", "bf16", "--json"];
    let report = named(&events(&expect(0, folder.path(), &named_tests)), "result")[0].clone();
    let ops = report["devices"][0]["ops"].as_array().unwrap();
    let seen: Vec<_> =
        ops.iter().map(|op| (op["op"].as_str().unwrap(), op["dtype"].as_str().unwrap())).collect();
    assert_eq!(seen, [("rope", "bf16")], "nf4 computes in f32 alone");
    let nothing = ["doctor", "--device", "cpu", "--op", "nf4", "--dtype", "f16"];
    let told = text(&expect(2, folder.path(), &nothing).stderr);
    assert!(told.contains("cpu has nothing to test"), "{told}");
    let told = text(&expect(2, folder.path(), &["doctor", "--op", "lineal"]).stderr);
    assert!(told.contains("linear"), "{told}");
}

/// Every op in every dtype, each with a number.
fn require_all_right(device: &Value, at_least: usize) {
    let ops = device["ops"].as_array().unwrap();
    assert!(ops.len() >= at_least, "{device:#}");
    for op in ops {
        assert_eq!(op["is_right"], true, "{op:#}");
        assert!(op["error"].as_f64().unwrap() <= op["tolerance"].as_f64().unwrap(), "{op:#}");
    }
}

/// On a machine without one this says so: the processor's imitation (`mesa-vulkan-drivers`) is enough.
#[cfg(feature = "vulkan")]
#[test]
fn the_doctor_finds_a_vulkan_device_well() {
    let Some(_) = crate::vulkan::devices() else { return };
    // Two ops: the parity tests see all of them on this device.
    let report = doctor_on_vulkan(&["--op", "rms_norm", "--op", "nf4"]);
    require_all_right(&report["devices"][0], 2);
    let vulkan = &report["apis"][1];
    assert_eq!((&vulkan["name"], &vulkan["is_built"]), (&"vulkan".into(), &true.into()));
    assert_eq!(vulkan["devices"][0]["device"], "vulkan:0");
}

#[cfg(feature = "vulkan")]
#[test]
#[ignore = "minutes, of which most compile kernels: .ci/nightly"]
fn every_op_is_right_on_vulkan() {
    require_all_right(&doctor_on_vulkan(&[])["devices"][0], 20);
}

/// What the doctor says of the first Vulkan device.
#[cfg(feature = "vulkan")]
fn doctor_on_vulkan(more: &[&str]) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let output = expect(0, folder.path(), &[&["doctor", "--device", "vulkan", "--json"], more].concat());
    named(&events(&output), "result")[0].clone()
}

/// Losses of a run of the small recipe in f32, and the adapter that came of it.
#[cfg(feature = "vulkan")]
fn trained(folder: &Path, device: &str, out: &str, offload: &str) -> (Vec<f64>, Vec<u8>) {
    let output_dir = format!("output_dir={out:?}");
    let f32 = "model.compute_dtype=\"f32\"";
    let offload = format!("model.offload={offload:?}");
    let arguments = ["run", "small.toml", "--device", device, "--set", &output_dir, "--set", f32];
    expect(0, folder, &[&arguments[..], &["--set", &offload]].concat());
    let metrics = fs::read_to_string(folder.join(out).join("metrics.jsonl")).unwrap();
    let losses = metrics.lines().filter_map(|line| json(line.as_bytes())["loss"].as_f64()).collect();
    (losses, fs::read(folder.join(out).join("adapter/adapter_model.safetensors")).unwrap())
}

/// The whole trainer on a GPU: the losses of the processor, and the same bytes with layers that wait on the disk. In host
/// memory, and with adapters of every kind, they wait by night (tests/runs).
#[cfg(feature = "vulkan")]
#[test]
fn a_run_on_vulkan_follows_one_on_the_processor() {
    let Some(_) = crate::vulkan::devices() else { return };
    let folder = small();
    let (expected, _) = trained(folder.path(), "cpu", "on-cpu", "auto");
    let (losses, adapter) = trained(folder.path(), "vulkan", "on-vulkan", "none");
    assert_eq!(losses.len(), expected.len());
    for (step, (loss, expected)) in losses.iter().zip(&expected).enumerate() {
        assert!((loss - expected).abs() <= 1e-5 * expected, "step {step}: {loss} instead of {expected}");
    }
    let (again, same) = trained(folder.path(), "vulkan", "again", "disk");
    assert_eq!(again, losses);
    assert!(same == adapter, "the same run on the same device gave another adapter");
}

/// `tune validate --fit`: what it chose, in the memory it was given; `None` where nothing fits.
fn fitted(folder: &Path, device: &str, budget: &str) -> Option<(u64, u64)> {
    let budget = format!("train.memory_budget=\"{budget}\"");
    let arguments = ["validate", "wide.toml", "--device", device, "--fit", "--json", "--set", &budget];
    let output = tune(folder, &arguments);
    match output.status.code() {
        Some(0) => {
            let told = events(&output);
            let result = named(&told, "result")[0].clone();
            let number = |key: &str| result[key].as_u64().unwrap();
            let said = result["fitted"].as_str().unwrap();
            let chosen = (number("micro_batch_size"), number("gradient_accumulation_steps"));
            assert_eq!(chosen.0 * chosen.1, 16, "{result}");
            let told =
                format!("micro_batch_size = {} and gradient_accumulation_steps = {}", chosen.0, chosen.1);
            assert!(said.contains(&told) && said.contains("layers recomputed"), "{said}");
            Some(chosen)
        }
        code => {
            assert_eq!(code, Some(4), "{}", text(&output.stderr));
            assert!(text(&output.stderr).contains("Largest terms"), "{}", text(&output.stderr));
            None
        }
    }
}

/// The small recipe with micro-batches that take some memory.
fn wide(folder: &Path) {
    let recipe = fs::read_to_string(folder.join("small.toml")).unwrap();
    let recipe = recipe
        .replace("max_seq_len = 128", "max_seq_len = 256")
        .replace("max_steps = 2", "max_steps = 1")
        .replace("micro_batch_size = 1", "micro_batch_size = 16");
    fs::write(folder.join("wide.toml"), recipe).unwrap();
    // Enough for a micro-batch of full packs.
    let rows = fs::read_to_string(folder.join("train.jsonl")).unwrap();
    fs::write(folder.join("train.jsonl"), rows.repeat(40)).unwrap();
}

#[test]
fn fit_makes_micro_batches_smaller_and_leaves_the_steps_as_they_are() {
    let folder = small();
    wide(folder.path());
    let mut sizes = Vec::new();
    let mut megabytes = 2048;
    while megabytes > 16 {
        let Some((size, _)) = fitted(folder.path(), "cpu", &format!("{megabytes}MiB")) else { break };
        sizes.push((megabytes, size));
        megabytes = megabytes * 3 / 4;
    }
    println!("{sizes:?}");
    assert_eq!(sizes[0].1, 16, "there is room for what the recipe says");
    assert!(megabytes > 16, "the program alone takes more than 16 MiB");

    // Without `--fit` a budget that is smaller still is refused, and settings are named that fit.
    let tight = sizes.iter().map(|(megabytes, _)| format!("train.memory_budget=\"{megabytes}MiB\""));
    let is_refused = |budget: &String| {
        tune(folder.path(), &["validate", "wide.toml", "--set", budget]).status.code() == Some(4)
    };
    let tight = tight.into_iter().find(is_refused).unwrap();
    let refused = text(&expect(4, folder.path(), &["run", "wide.toml", "--set", &tight]).stderr);
    assert!(refused.contains("help: set") && refused.contains("--fit"), "{refused}");

    expect(0, folder.path(), &["run", "wide.toml", "--fit", "--set", &tight]);
    let resolved = fs::read_to_string(folder.path().join("run/recipe.toml")).unwrap();
    let number = |key: &str| -> usize {
        let line = resolved.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
        line.unwrap_or_else(|| panic!("no {key} in\n{resolved}")).parse().unwrap()
    };
    let (size, accumulation) = (number("micro_batch_size"), number("gradient_accumulation_steps"));
    assert!(size < 16 && size * accumulation == 16, "{size} x {accumulation}");
    assert!(resolved.contains("memory_budget = "), "{resolved}");
    // With more room it goes on with the micro-batches it was begun with.
    let again = expect(0, folder.path(), &["run", "wide.toml", "--fit", "--resume"]);
    assert!(text(&again.stdout).contains("was finished before"), "{}", text(&again.stdout));
}

/// The same on a GPU, whose plan counts its own memory alone. Whatever it says, it is chosen in less memory than is free.
#[cfg(feature = "vulkan")]
#[test]
fn fit_on_vulkan_chooses_within_its_memory_and_a_refusal_names_what_takes_it() {
    let Some(devices) = crate::vulkan::devices() else { return };
    let folder = small();
    wide(folder.path());
    let path = folder.path();
    let roomy = fitted(path, "vulkan", "4GiB");
    assert_eq!(roomy, Some((16, 1)), "there is room for what the recipe says");
    let mut kib = 64 * 1024;
    let mut sizes = Vec::new();
    while let Some((size, _)) = fitted(path, "vulkan", &format!("{kib}KiB")) {
        sizes.push((kib, size));
        kib = kib * 2 / 3;
    }
    println!("{sizes:?}");
    assert!(sizes.iter().any(|(_, size)| *size < 16), "{sizes:?}");
    let refused = ["validate", "wide.toml", "--device", "vulkan", "--set", "train.memory_budget=\"1MiB\""];
    let told = text(&expect(4, path, &refused).stderr);
    assert!(told.contains("Largest terms: ") && told.contains("the budget is 1.00 MiB"), "{told}");

    // What the processor imitates is not taken unless it is named.
    if devices.iter().all(|found| found.is_software()) {
        let told = events(&expect(0, path, &["validate", "small.toml", "--device", "auto", "--json"]));
        let device = named(&told, "result")[0]["device"].as_str().unwrap().to_owned();
        assert!(!device.starts_with("vulkan"), "{device}");
    }
}
