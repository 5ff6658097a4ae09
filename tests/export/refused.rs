//! What is refused: the wrong base, a merge that would lose what was trained, and never with half a folder left.

use std::fs;
use std::process::Command;

use tune::assets::folder::digest;
use tune::export::merge::{Options, Wanted};
use tune::files::Existing;

use super::support::{entries, f32_options, golden, merge, write_adapter};

#[test]
fn a_base_with_other_files_is_refused_unless_the_user_insists() {
    let out = tempfile::tempdir().unwrap();
    let base = golden("peft/base");
    let config = digest(&base.join("config.json")).unwrap().sha256;
    let weights = digest(&base.join("model.safetensors")).unwrap().sha256;
    let other = "0".repeat(64);
    let keys = ["tune.base_sha256.config.json", "tune.base_sha256.model.safetensors"];

    let right = out.path().join("right");
    write_adapter(&right, &base, 0.1, &[(keys[0], &config), (keys[1], &weights)]);
    merge(&right, &base, f32_options(), &out.path().join("merged")).unwrap();

    for (name, metadata) in [
        ("changed", vec![(keys[0], config.as_str()), (keys[1], other.as_str())]),
        (
            "gone",
            vec![
                (keys[0], config.as_str()),
                (keys[1], weights.as_str()),
                ("tune.base_sha256.x.safetensors", "1"),
            ],
        ),
        ("more", vec![(keys[0], config.as_str())]),
    ] {
        let adapter = out.path().join(name);
        write_adapter(&adapter, &base, 0.1, &metadata);
        let before = entries(out.path());
        let error = merge(&adapter, &base, f32_options(), &out.path().join("no")).unwrap_err().to_string();
        assert!(error.contains("another base model") && error.contains(".safetensors"), "{name}: {error}");
        assert_eq!(entries(out.path()), before);
        let options = Options { any_hash: true, ..f32_options() };
        merge(&adapter, &base, options, &out.path().join(format!("{name}-anyway"))).unwrap();
    }
}

#[test]
fn another_family_or_size_is_refused_whatever_the_user_says() {
    let out = tempfile::tempdir().unwrap();
    let options = Options { any_hash: true, ..f32_options() };
    let base = golden("peft/base");
    let adapter = out.path().join("mistral");
    write_adapter(&adapter, &base, 0.1, &[("tune.base_family", "mistral")]);
    let error = merge(&adapter, &base, options, &out.path().join("no")).unwrap_err().to_string();
    assert!(error.contains("is a mistral model"), "{error}");
    let error =
        merge(&golden("trajectory/adapter"), &base, options, &out.path().join("no")).unwrap_err().to_string();
    assert!(error.contains("shape") && error.contains("no such projection"), "{error}");
    assert_eq!(entries(out.path()), ["mistral"]);
}

#[test]
fn what_rounding_would_swallow_is_not_merged() {
    let out = tempfile::tempdir().unwrap();
    let (adapter, folder) = (out.path().join("faint"), out.path().join("merged"));
    let base = golden("trajectory/base");
    write_adapter(&adapter, &base, 0.002, &[]);
    let error = merge(&adapter, &base, Options::default(), &folder).unwrap_err().to_string();
    assert!(error.contains("rounding loses") && error.contains("--dtype f32"), "{error}");
    assert_eq!(entries(out.path()), ["faint"], "something half-written was left");
    merge(&adapter, &base, f32_options(), &folder).unwrap();
    let options = Options { max_divergence: 1e9, ..Options::default() };
    merge(&adapter, &base, options, &out.path().join("insisted")).unwrap();
}

#[test]
fn a_taken_folder_and_an_impossible_choice_are_refused() {
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("merged");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("mine"), "x").unwrap();
    let (base, adapter) = (golden("peft/base"), golden("peft/plain_qv"));
    let error = merge(&adapter, &base, f32_options(), &folder).unwrap_err().to_string();
    assert!(error.contains("not empty"), "{error}");
    assert_eq!(entries(&folder), ["mine"]);

    let base = golden("families/bnb_nf4");
    let adapter = out.path().join("adapter");
    write_adapter(&adapter, &base, 0.1, &[]);
    let options = Options { onto: Some(Wanted::Original), ..Options::default() };
    let error = merge(&adapter, &base, options, &out.path().join("no")).unwrap_err().to_string();
    assert!(error.contains("stored in 4 bits"), "{error}");
}

#[test]
fn replacing_never_removes_what_is_merged() {
    let out = tempfile::tempdir().unwrap();
    let adapter = out.path().join("adapter");
    write_adapter(&adapter, &golden("peft/base"), 0.1, &[]);
    let before = entries(&adapter);
    let options = Options { existing: Existing::Replace, ..f32_options() };
    for folder in [out.path(), &adapter] {
        let error = merge(&adapter, &golden("peft/base"), options, folder).unwrap_err().to_string();
        assert!(error.contains("would remove"), "{error}");
        assert_eq!(entries(&adapter), before);
    }
}

#[test]
fn the_command_says_what_it_did_and_compared() {
    let out = tempfile::tempdir().unwrap();
    let (base, adapter) = (golden("peft/base"), golden("peft/all_linear"));
    let merged = out.path().join("merged");
    let run = Command::new(env!("CARGO_BIN_EXE_tune"))
        .arg("merge")
        .arg(adapter)
        .arg("--base")
        .arg(base)
        .arg("--out")
        .arg(&merged)
        .env("NO_COLOR", "1")
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8(run.stdout).unwrap(), String::from_utf8(run.stderr).unwrap());
    assert_eq!(run.status.code(), Some(0), "{stderr}");
    for promised in ["delta/weight", "nf4 error/delta", "token ids spread", "logits change by", "merged"] {
        assert!(stdout.contains(promised), "no `{promised}` in:\n{stdout}");
    }
    assert_eq!(entries(&merged), ["README.md", "config.json", "generation_config.json", "model.safetensors"]);
}
