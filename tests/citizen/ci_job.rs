//! The CI job that the README shows: every command in it is run here, in order, as the job would.

use std::fs;
use std::path::Path;
use std::process::Command;

use yaml_rust2::{Yaml, YamlLoader};

use super::fixture::{expect, text};

const JOB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/recipes/ci/fine-tune.yml");

/// A program that only notes that it was called.
#[cfg(unix)]
fn stand_in(folder: &Path, name: &str) {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join(name);
    let log = folder.join(format!("{name}.log"));
    fs::write(&path, format!("#!/bin/sh\necho \"$*\" >> '{}'\n", log.display())).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn variables(node: &Yaml) -> Vec<(String, String)> {
    let entries = node["env"].as_hash().into_iter().flatten();
    entries.map(|(key, value)| (key.as_str().unwrap().into(), value.as_str().unwrap().into())).collect()
}

#[cfg(unix)]
#[test]
fn every_command_of_the_job_does_what_it_says() {
    let job = &YamlLoader::load_from_str(&fs::read_to_string(JOB).unwrap()).unwrap()[0];
    let adapter = &job["jobs"]["adapter"];
    assert!(adapter["timeout-minutes"].as_i64().is_some());

    let folder = tempfile::tempdir().unwrap();
    let programs = folder.path().join("programs");
    fs::create_dir(&programs).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_tune"), programs.join("tune")).unwrap();
    stand_in(&programs, "cargo");
    stand_in(&programs, "gh");
    let checkout = folder.path().join("checkout");
    expect(0, folder.path(), &["cp", "quickstart", "checkout"]);
    let recipe = fs::read_to_string(checkout.join("quickstart.toml")).unwrap();
    fs::write(checkout.join("quickstart.toml"), recipe.replace("max_steps = 60", "max_steps = 8")).unwrap();

    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let mut used = String::new();
    for step in adapter["steps"].as_vec().unwrap() {
        let Some(script) = step["run"].as_str() else {
            let action = step["uses"].as_str().unwrap();
            assert!(action.contains("@v"), "{action} is not pinned");
            continue;
        };
        used += script;
        // As the runner does it.
        let done = Command::new("bash")
            .args(["--noprofile", "--norc", "-eo", "pipefail", "-c", script])
            .current_dir(&checkout)
            .env("PATH", &path)
            .env("GITHUB_SHA", "0123456789abcdef0123456789abcdef01234567")
            .env("GITHUB_RUN_ATTEMPT", "2")
            .env("GITHUB_STEP_SUMMARY", folder.path().join("summary.md"))
            .env("GITHUB_OUTPUT", folder.path().join("output"))
            .env("GITHUB_PATH", folder.path().join("path"))
            .env("HOME", folder.path())
            .envs(variables(adapter))
            .envs(variables(step))
            .output()
            .unwrap();
        assert!(done.status.success(), "{script}\n{}\n{}", text(&done.stdout), text(&done.stderr));
    }
    for command in ["tune validate", "tune run", "tune report", "tune reproduce"] {
        assert!(used.contains(command), "the job has no `{command}`");
    }
    assert!(checkout.join("runs/report.html").is_file());
    let summary = fs::read_to_string(folder.path().join("summary.md")).unwrap();
    assert!(summary.contains("| held-out loss |") && summary.contains("```mermaid"), "{summary}");
    let events = fs::read_to_string(checkout.join("runs/events.jsonl")).unwrap();
    assert!(events.ends_with("{\"event\":\"end\",\"exit_code\":0,\"outcome\":\"done\"}\n"), "{events}");
    let published = fs::read_to_string(programs.join("gh.log")).unwrap();
    assert!(published.starts_with("release create adapter-0123456789ab-2 adapter.tar.gz"), "{published}");
    let listed =
        Command::new("tar").args(["-tzf", "adapter.tar.gz"]).current_dir(&checkout).output().unwrap();
    assert!(text(&listed.stdout).contains("adapter/adapter_model.safetensors"), "{}", text(&listed.stdout));
}

#[test]
fn the_readme_shows_the_job_as_it_is() {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/ci.md")).unwrap();
    assert!(readme.contains("../../recipes/ci/fine-tune.yml"), "the README does not name the job");
    let job = fs::read_to_string(JOB).unwrap();
    let (_, shown) = readme.split_once("```yaml\n").unwrap();
    let (shown, _) = shown.split_once("```").unwrap();
    for line in shown.lines().filter(|line| !line.trim().is_empty()) {
        assert!(job.contains(line.trim()), "not in the job: {line}");
    }
}
