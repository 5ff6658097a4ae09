//! Each exit code that the help promises, through the program.

use std::fs;
use std::path::Path;

use super::fixture::{command, expect, small, text};

#[test]
fn the_help_and_the_readme_name_every_code() {
    let folder = tempfile::tempdir().unwrap();
    let help = text(&expect(0, folder.path(), &["--help"]).stdout).replace('\n', " ");
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/ci.md")).unwrap();
    for code in [
        "0 done",
        "1 other",
        "2 command line or recipe",
        "3 data",
        "4 resources",
        "5 diverged",
        "6 gate failed",
        "130",
        "143",
    ] {
        assert!(help.contains(code), "{code} in {help}");
        let number = code.split(' ').next().unwrap();
        assert!(readme.contains(&format!("| {number} |")), "{code} in the README");
    }
}

#[test]
fn two_for_the_command_line_and_the_recipe() {
    let folder = small();
    expect(2, folder.path(), &["run"]);
    expect(2, folder.path(), &["run", "small.toml", "--no-such-flag"]);
    expect(2, folder.path(), &["run", "no-such.toml"]);
    expect(2, folder.path(), &["run", "small.toml", "--set", "model.base=nowhere/at-all"]);
    expect(2, folder.path(), &["run", "small.toml", "--set", "dataset.0.path=missing.jsonl"]);
    expect(2, folder.path(), &["run", "small.toml", "--annotations", "nothing"]);
    expect(2, folder.path(), &["report", "no-such-run"]);
    expect(2, folder.path(), &["reproduce", "no-such-run"]);
    let base = "data/quickstart/base";
    for arguments in [
        &["generate", "--base", "no-such-base", "Hi"][..],
        &["generate", "--base", base, "--prompts", "no-such.jsonl"],
        &["chat", "--base", "no-such-base"],
        &["quantize", "no-such-base", "--out", "out"],
        &["eval", "no-such-run"],
        &["eval", "--base", base, "--data", "no-such.jsonl", "--format", "text"],
        &["eval", "--base", base, "--data", "small.toml", "--format", "text"],
        &["export", "no-such-base", "--gguf", "f16", "--out", "out"],
        &["merge", "no-such-adapter", "--out", "out"],
        &["verify", "no-such-adapter"],
        &["inspect", "small.toml", "--row", "99"],
        &["bench", "--shape", "no-such-shape"],
        &["plan", "--config", "no-such.json"],
        &["plan", "--config", "small.toml"],
    ] {
        expect(2, folder.path(), arguments);
    }
    assert!(!folder.path().join("run").exists());
    // What is planned for is named by the user, and refused with the reason.
    for (config, reason) in [
        ("{}", "neither `model_type` nor `architectures`"),
        (r#"{"model_type": "mamba"}"#, "model type \"mamba\""),
        (r#"{"model_type": "mistral3", "text_config": 3}"#, "`text_config` is a number; expected an object"),
        (r#"{"model_type": "mistral3"}"#, "`text_config` is missing"),
    ] {
        fs::write(folder.path().join("config.json"), config).unwrap();
        let refused = text(&expect(2, folder.path(), &["plan", "--config", "config.json"]).stderr);
        let said = refused.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains(reason), "{config}: {said}");
    }
}

#[test]
fn three_for_the_data() {
    let folder = small();
    fs::write(folder.path().join("train.jsonl"), "{\"messages\": []}\n").unwrap();
    expect(3, folder.path(), &["validate", "small.toml"]);
    expect(3, folder.path(), &["run", "small.toml"]);
}

#[cfg(target_os = "linux")]
#[test]
fn four_for_resources_and_one_for_anything_else() {
    let folder = small();
    // A folder that cannot be made, whoever asks.
    let failed = expect(4, folder.path(), &["run", "small.toml", "--set", "output_dir=/dev/null/run"]);
    assert!(text(&failed.stderr).contains("/dev/null/run"), "{}", text(&failed.stderr));
    // Events that cannot be written are no success.
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let validated =
        command(folder.path(), &["validate", "small.toml", "--json"]).stdout(full).output().unwrap();
    assert_eq!(validated.status.code(), Some(4), "{}", text(&validated.stderr));
    expect(1, folder.path(), &["verify", "data"]);
}

/// Turns the numbers of a bf16 tensor into the largest there are: a weight may be that large, and no sum of such is.
fn overflow(path: &Path, name: &str) {
    let mut bytes = fs::read(path).unwrap();
    let (length, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let info = header.info(name).unwrap();
    assert_eq!(info.dtype, safetensors::Dtype::BF16);
    for number in
        bytes[8 + length + info.data_offsets.0..8 + length + info.data_offsets.1].chunks_exact_mut(2)
    {
        number.copy_from_slice(&[0x7f, 0x7f]);
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn five_for_a_loss_that_is_no_number() {
    let folder = small();
    overflow(&folder.path().join("data/quickstart/base/model.safetensors"), "model.norm.weight");
    let recipe = fs::read_to_string(folder.path().join("small.toml")).unwrap();
    let recipe = recipe
        .replace("\n[[dataset]]\npath = \"held.jsonl\"\nformat = \"messages\"\nsplit = \"validation\"\n", "");
    fs::write(folder.path().join("small.toml"), recipe.replace("[\"Tell me.\"]", "[]")).unwrap();
    let diverged = expect(5, folder.path(), &["run", "small.toml", "--json"]);
    let events = super::fixture::events(&diverged);
    assert_eq!(events.last().unwrap()["outcome"], "diverged");
    let record = fs::read_to_string(folder.path().join("run/run.json")).unwrap();
    assert!(record.contains("\"status\": \"failed\"") && record.contains("train.jsonl:"), "{record}");
    // And such a run has a page.
    expect(0, folder.path(), &["report", "run"]);
    let page = fs::read_to_string(folder.path().join("run/report.html")).unwrap();
    assert!(page.contains("class=\"problem\"") && page.contains(">failed<"), "the page does not say so");
}

#[test]
fn six_for_a_gate_that_is_not_met() {
    let folder = small();
    let arguments =
        ["run", "small.toml", "--json", "--annotations", "github", "--set", "gate.max_eval_loss=0.001"];
    let failed = expect(6, folder.path(), &arguments);
    let events = super::fixture::events(&failed);
    assert_eq!(events.last().unwrap()["outcome"], "gate");
    assert_eq!(super::fixture::named(&events, "gate")[0]["passed"], false);
    assert!(
        text(&failed.stderr).contains("::error::the adapter fails a gate of the recipe"),
        "{}",
        text(&failed.stderr)
    );
    assert!(folder.path().join("run/adapter/adapter_model.safetensors").is_file(), "written all the same");
    let met = ["run", "small.toml", "--overwrite", "--set", "gate.max_eval_loss_ratio=1.0"];
    expect(0, folder.path(), &met);
}

#[cfg(unix)]
#[test]
fn signals_have_their_own_codes_and_leave_a_record() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    for (signal, code, outcome) in [("INT", 130, "interrupted"), ("TERM", 143, "terminated")] {
        let folder = small();
        let mut child =
            command(folder.path(), &["run", "small.toml", "--json", "--set", "train.max_steps=100000"])
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
        let mut last = String::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            last = line.unwrap();
            if last.starts_with("{\"event\":\"step\",\"step\":1,") {
                let kill = format!("kill -{signal} {}", child.id());
                assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
            }
        }
        assert_eq!(child.wait().unwrap().code(), Some(code));
        assert_eq!(last, format!("{{\"event\":\"end\",\"exit_code\":{code},\"outcome\":\"{outcome}\"}}"));
        let record = fs::read_to_string(folder.path().join("run/run.json")).unwrap();
        assert!(record.contains("\"status\": \"stopped\""), "{record}");
        expect(2, folder.path(), &["reproduce", "run"]);
    }
}
