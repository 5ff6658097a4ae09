//! The run folder: it explains itself, keeps no secret, and nobody but its owner can write it.

use std::fs;
use std::process::Command;

use super::fixture::{TOKEN, expect, files_below, small, text};

#[test]
fn a_run_folder_explains_itself() {
    let folder = small();
    expect(0, folder.path(), &["run", "small.toml", "--tensorboard"]);
    let run = folder.path().join("run");
    let lock = tune::record::Lock::read(&run).unwrap();
    let names: Vec<&str> =
        lock.base_file.iter().chain(&lock.tokenizer_file).map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]);
    assert_eq!(lock.dataset.iter().map(|dataset| dataset.rows).collect::<Vec<_>>(), [12, 2]);
    assert!(lock.chat_template.is_some());
    let record = tune::record::Record::read(&run).unwrap();
    assert_eq!(record.sessions.len(), 1);
    assert_eq!(record.sessions[0].status, tune::record::Status::Done);
    assert_eq!(record.sessions[0].to_step, Some(2));
    assert_eq!(record.samples[0].prompt, "Tell me.");
    assert!(record.samples[0].after.is_some());
    assert_eq!(record.data.as_ref().unwrap().train.used, 12);
    let events: Vec<_> =
        fs::read_dir(run.join("tensorboard")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(events.len(), 1);
    let bytes = fs::read(&events[0]).unwrap();
    for tag in
        ["brain.Event:2", "train/loss", "train/learning_rate", "throughput/tokens_per_second", "eval/loss"]
    {
        assert!(bytes.windows(tag.len()).any(|window| window == tag.as_bytes()), "no {tag}");
    }
    // A page of it, and of a copy from which everything but the metrics is gone.
    let said = expect(0, folder.path(), &["report", "run", "-o", "page.html"]);
    assert_eq!(text(&said.stdout), "report page.html\n");
    let page = fs::read_to_string(folder.path().join("page.html")).unwrap();
    for part in [
        "finished",
        "Held-out loss",
        "Training loss",
        "Learning rate",
        "Gradient norm, before clipping",
        "Tokens per second",
        "Tell me.",
        "Before training",
        "After training",
        "% of the plan",
        "planned",
        "measured peak",
        "Rows as trained on",
        "train.jsonl",
        &lock.recipe_sha256,
        &lock.base_file[1].sha256,
        &record.adapter_sha256.unwrap(),
        "rank = 4",
    ] {
        assert!(page.contains(part), "no {part:?} in the page");
    }
    for answer in [&record.samples[0].before, record.samples[0].after.as_ref().unwrap()] {
        let shown =
            answer.trim().split(|c: char| !c.is_alphanumeric()).max_by_key(|word| word.len()).unwrap();
        assert!(page.contains(shown), "no {answer:?} in the page");
    }
    fs::create_dir(folder.path().join("bare")).unwrap();
    fs::copy(run.join("metrics.jsonl"), folder.path().join("bare/metrics.jsonl")).unwrap();
    expect(0, folder.path(), &["report", "bare"]);

    // A second run takes the place of the first only when it is told to, and leaves nothing of it.
    expect(2, folder.path(), &["run", "small.toml"]);
    expect(0, folder.path(), &["run", "small.toml", "--overwrite"]);
    assert!(!run.join("tensorboard").exists() && !run.join("report.html").exists());
    assert_eq!(tune::record::Record::read(&run).unwrap().sessions.len(), 1);
}

#[cfg(unix)]
#[test]
fn files_follow_the_umask_and_contain_no_token() {
    use std::os::unix::fs::PermissionsExt;
    let folder = small();
    let script =
        format!("umask 077; exec '{}' run small.toml --tensorboard --json", env!("CARGO_BIN_EXE_tune"));
    let run = Command::new("sh")
        .args(["-c", &script])
        .current_dir(folder.path())
        .env("HF_TOKEN", TOKEN)
        .env("HUGGING_FACE_HUB_TOKEN", TOKEN)
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", text(&run.stderr));
    let report = format!("umask 077; exec '{}' report run", env!("CARGO_BIN_EXE_tune"));
    assert!(Command::new("sh").args(["-c", &report]).current_dir(folder.path()).status().unwrap().success());
    let written = files_below(&folder.path().join("run"));
    assert!(written.len() > 15, "{written:?}");
    for path in written {
        let about = fs::symlink_metadata(&path).unwrap();
        assert_eq!(about.permissions().mode() & 0o077, 0, "{} is accessible to others", path.display());
        if about.is_file() {
            let bytes = fs::read(&path).unwrap();
            assert!(
                !bytes.windows(TOKEN.len()).any(|window| window == TOKEN.as_bytes()),
                "a token in {}",
                path.display()
            );
        }
    }
    assert!(!text(&run.stdout).contains(TOKEN) && !text(&run.stderr).contains(TOKEN));
}

#[cfg(unix)]
#[test]
fn links_in_a_run_folder_lead_nothing_astray() {
    use std::os::unix::fs::symlink;
    let folder = small();
    expect(0, folder.path(), &["run", "small.toml"]);
    let (run, outside) = (folder.path().join("run"), folder.path().join("outside"));
    fs::create_dir(&outside).unwrap();
    for name in ["checkpoints", "adapter", "metrics.jsonl", "run.json", "recipe.lock", "report.html"] {
        let (inside, target) = (run.join(name), outside.join(name));
        if inside.is_dir() {
            fs::remove_dir_all(&inside).unwrap();
            fs::create_dir(&target).unwrap();
            fs::write(target.join("precious"), "mine").unwrap();
        } else {
            let _ = fs::remove_file(&inside);
            fs::write(&target, "mine").unwrap();
        }
        symlink(&target, &inside).unwrap();
    }
    expect(0, folder.path(), &["run", "small.toml", "--overwrite"]);
    expect(0, folder.path(), &["report", "run"]);
    for path in files_below(&outside).into_iter().filter(|path| path.is_file()) {
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine", "{}", path.display());
    }
    assert_eq!(files_below(&outside).len(), 8, "{:?}", files_below(&outside));
    assert!(run.join("adapter/adapter_model.safetensors").is_file());
}
