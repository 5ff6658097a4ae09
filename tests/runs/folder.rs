//! The output folder: one run at a time, nothing overwritten in silence, nothing that others can write.

use std::cell::RefCell;
use std::fs;
use std::path::Path;

use tune::run::{Error, Options};
use tune::train::event::Event;
use tune::train::folder::FolderError;

use crate::common::{Bench, GO_ON, Silent, Watch};

#[test]
fn a_folder_in_use_is_refused_to_everybody_else() {
    let bench = Bench::new();
    let told = RefCell::new(Vec::new());
    let mut watch = Watch(|event: &Event<'_>| {
        if let Event::Step { step: 2, .. } = event {
            for arguments in [&[][..], &["--resume"], &["--overwrite"]] {
                told.borrow_mut().push(bench.output("run", arguments));
            }
        }
    });
    bench.try_run("run", Options::default(), GO_ON, &mut watch).unwrap();
    for (code, error) in told.take() {
        assert_eq!(code, 2, "{error}");
        assert!(error.contains("another run is writing to"), "{error}");
    }
    bench.run("alone");
    bench.assert_same("alone", "run");
    assert!(!bench.run_dir("run").join(".lock").exists());
}

/// The record is the last thing written; until then the folder is not free. A record that cannot be written is warned
/// of, and tells when that is.
#[test]
fn the_folder_is_held_until_the_record_is_written() {
    let bench = Bench::new();
    let told = RefCell::new(Vec::new());
    let mut watch = Watch(|event: &Event<'_>| match event {
        Event::Step { step: 2, .. } => {
            let record = bench.run_dir("run").join("run.json");
            fs::remove_file(&record).unwrap();
            fs::create_dir_all(record.join("in the way")).unwrap();
        }
        Event::Warning(text) if text.contains("the record of the run") => {
            told.borrow_mut().push(bench.output("run", &["--overwrite"]));
        }
        _ => {}
    });
    bench.try_run("run", Options::default(), GO_ON, &mut watch).unwrap();
    let told = told.take();
    assert_eq!(told.len(), 1, "warned of once");
    assert!(told[0].0 == 2 && told[0].1.contains("another run is writing to"), "{told:?}");
}

#[test]
fn nothing_is_overwritten_in_silence() {
    let bench = Bench::new();
    bench.stop_after("run", 4);
    let metrics = bench.metrics("run");
    let (code, error) = bench.output("run", &[]);
    assert_eq!(code, 2);
    for word in ["did not come to its end", "--resume", "output_dir", "--overwrite"] {
        assert!(error.contains(word), "no `{word}` in {error}");
    }
    assert_eq!(bench.metrics("run"), metrics);
    assert_eq!(bench.resume("run").steps, bench.run("whole").steps);
    let (code, error) = bench.output("run", &[]);
    assert!(code == 2 && error.contains("already holds a run") && !error.contains("--resume"), "{error}");
    let (code, error) = bench.output("run", &["--overwrite"]);
    assert_eq!(code, 0, "{error}");
    bench.assert_same("whole", "run");

    let notes = bench.run_dir("notes");
    fs::create_dir(&notes).unwrap();
    fs::write(notes.join("todo.txt"), "mine").unwrap();
    for options in [
        Options::default(),
        Options { overwrite: true, ..Options::default() },
        Options { resume: true, ..Options::default() },
    ] {
        let error = bench.try_run("notes", options, GO_ON, &mut Silent).unwrap_err();
        assert!(matches!(error, Error::Folder(FolderError::Foreign(_))), "{error}");
    }
    assert_eq!(fs::read_dir(&notes).unwrap().count(), 1);
}

#[test]
fn options_that_contradict_each_other_are_a_wrong_command_line() {
    let bench = Bench::new();
    for arguments in [&["--resume", "--overwrite"][..], &["--accept-changes"]] {
        assert_eq!(bench.output("run", arguments).0, 2);
    }
    assert!(!bench.run_dir("run").exists());
}

#[cfg(unix)]
#[test]
fn a_run_folder_follows_the_umask() {
    let bench = Bench::new();
    let command = bench.command("deep/run", &[]);
    let quoted = |text: &std::ffi::OsStr| format!("'{}'", text.to_str().unwrap());
    let line: Vec<String> =
        std::iter::once(command.get_program()).chain(command.get_args()).map(quoted).collect();
    let script = format!("umask 077; exec {}", line.join(" "));
    let status = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    let mut seen = 0;
    check_modes(&bench.run_dir("deep"), &mut seen);
    assert!(seen > 10, "{seen}");
}

#[cfg(unix)]
fn check_modes(path: &Path, seen: &mut usize) {
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::symlink_metadata(path).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
    *seen += 1;
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            check_modes(&entry.unwrap().path(), seen);
        }
    }
}
