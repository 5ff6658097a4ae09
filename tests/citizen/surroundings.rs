//! What surrounds the process: signals, a full standard output, the umask, variables of the hub.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use super::fixture::{command, expect, small, text};

/// Starts a long run, through a shell command that ends in `exec "$@"`.
fn long_run(folder: &Path, shell: &str) -> (Child, std::io::Lines<BufReader<ChildStdout>>) {
    let run = command(folder, &["run", "small.toml", "--json", "--set", "train.max_steps=100000"]);
    let mut child = Command::new("sh");
    child.args(["-c", shell, "sh"]).arg(run.get_program()).args(run.get_args()).current_dir(folder);
    let mut child = child.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

fn send(signal: &str, child: &Child) {
    let kill = format!("kill -{signal} {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

/// Whether an event is the step of this number.
fn is_step(line: &str, step: u32) -> bool {
    line.starts_with(&format!("{{\"event\":\"step\",\"step\":{step},"))
}

#[test]
fn signals_of_batch_systems_and_closed_terminals_stop_with_a_checkpoint() {
    for (signal, code) in [("HUP", 129), ("USR2", 140), ("XCPU", 152)] {
        let folder = small();
        let (mut child, lines) = long_run(folder.path(), "exec \"$@\"");
        let mut last = String::new();
        for line in lines {
            last = line.unwrap();
            if is_step(&last, 1) {
                send(signal, &child);
            }
        }
        assert_eq!(child.wait().unwrap().code(), Some(code), "{signal}");
        assert_eq!(last, format!("{{\"event\":\"end\",\"exit_code\":{code},\"outcome\":\"terminated\"}}"));
        let checkpoints = fs::read_dir(folder.path().join("run/checkpoints")).unwrap().count();
        assert!(checkpoints > 0, "{signal}: no checkpoint");
    }
}

#[test]
fn a_requested_checkpoint_is_saved_and_the_run_continues() {
    let folder = small();
    let (mut child, lines) = long_run(folder.path(), "exec \"$@\"");
    let (mut saved, mut steps_after) = (None, 0);
    for line in lines {
        let line = line.unwrap();
        if is_step(&line, 1) {
            send("USR1", &child);
        }
        if line.contains("\"event\":\"checkpoint\"") && line.contains("\"best\":false") {
            saved.get_or_insert(line);
        } else if saved.is_some() && line.starts_with("{\"event\":\"step\"") {
            steps_after += 1;
            if steps_after == 2 {
                send("TERM", &child);
            }
        }
    }
    assert_eq!(child.wait().unwrap().code(), Some(143));
    let step: u32 = saved.unwrap().split("step-").nth(1).unwrap().split('"').next().unwrap().parse().unwrap();
    assert!(step < 100, "saved at step {step}, when a checkpoint was due anyway");
    assert!(steps_after >= 2);
}

#[test]
fn a_run_that_ignores_hangups_survives_its_terminal() {
    let folder = small();
    let (mut child, lines) = long_run(folder.path(), "trap '' HUP; exec \"$@\"");
    for line in lines {
        let line = line.unwrap();
        if is_step(&line, 1) {
            send("HUP", &child);
        } else if is_step(&line, 4) {
            send("TERM", &child);
        }
    }
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

#[test]
fn a_full_standard_output_is_a_lack_of_resources() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [&["ls"][..], &["ls", "--json"]] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = command(folder.path(), arguments).stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(4), "{arguments:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains("cannot write to standard output"), "{}", text(&output.stderr));
    }
}

#[test]
fn files_have_the_permissions_that_the_umask_leaves() {
    for (umask, file, folder) in [("002", 0o664, 0o775), ("077", 0o600, 0o700)] {
        let outer = tempfile::tempdir().unwrap();
        let tune = command(outer.path(), &["cp", "quickstart", "new"]);
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("umask {umask}; exec \"$@\""), "sh"]).arg(tune.get_program());
        assert!(shell.args(tune.get_args()).current_dir(outer.path()).output().unwrap().status.success());
        let mode = |path: &str| fs::metadata(outer.path().join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("new/quickstart.toml"), mode("new")), (file, folder), "umask {umask}");
    }
}

#[test]
fn hub_variables_may_name_the_home_folder() {
    let folder = tempfile::tempdir().unwrap();
    let looked_for = folder.path().join("hub/models--org--name").display().to_string();
    for (name, value) in [("HF_HUB_CACHE", "~/hub"), ("HUGGINGFACE_HUB_CACHE", "$HOME/hub"), ("HF_HOME", "~")]
    {
        let mut tune = command(folder.path(), &["quantize", "org/name", "--out", "out"]);
        tune.env_remove("HF_HUB_CACHE").env("HOME", folder.path()).env(name, value);
        let output = tune.output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains(&looked_for), "{name}: {}", text(&output.stderr));
    }
}

#[test]
fn an_output_folder_may_be_a_link() {
    let folder = small();
    expect(0, folder.path(), &["run", "small.toml"]);
    std::os::unix::fs::symlink("elsewhere", folder.path().join("out")).unwrap();
    for more in [&[][..], &["--overwrite"]] {
        expect(
            0,
            folder.path(),
            &[&["export", "run/adapter", "--for", "peft", "--out", "out"], more].concat(),
        );
    }
    assert!(folder.path().join("elsewhere/adapter_model.safetensors").is_file());
    assert!(fs::symlink_metadata(folder.path().join("out")).unwrap().is_symlink());
}

/// A small file system at a folder, until this is dropped.
#[cfg(target_os = "linux")]
struct SmallDisk(tempfile::TempDir);

#[cfg(target_os = "linux")]
impl SmallDisk {
    /// `None` where this user may not mount one.
    fn mount(options: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(folder.path()).stderr(Stdio::null());
        mount.status().is_ok_and(|status| status.success()).then_some(Self(folder))
    }
}

#[cfg(target_os = "linux")]
impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// A run that writes its base in 4 bits to a disk that is too small, or that fills up, ends as a lack of resources and says
/// which file needs how much room.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_named_with_the_way_out() {
    let folder = small();
    let run = |disk: &SmallDisk| {
        let output_dir = format!("output_dir={:?}", disk.0.path().join("run").display().to_string());
        let mut tune = command(folder.path(), &["run", "small.toml", "--set", "model.offload=disk"]);
        tune.args(["--set", "quantization.nf4.block_size=64", "--set", &output_dir]);
        let output = tune.output().unwrap();
        let told: Vec<String> = text(&output.stderr).split_whitespace().map(str::to_owned).collect();
        (output.status.code(), told.join(" "))
    };
    let Some(small) = SmallDisk::mount("size=8m") else {
        return println!("skipped: this user may not mount a small disk");
    };
    let (code, told) = run(&small);
    assert_eq!(code, Some(4), "{told}");
    for part in ["base-packed` takes", "are free on its disk", "choose a folder on another disk"] {
        assert!(told.contains(part), "no `{part}` in {told}");
    }
    assert!(!small.0.path().join("run/base-packed").exists(), "nothing was written");
    // Bytes enough, and no room for more files: it fills up while the folder is written.
    let mut outcomes = Vec::new();
    for files in [3, 6, 9, 12, 60] {
        let Some(disk) = SmallDisk::mount(&format!("size=128m,nr_inodes={files}")) else { return };
        let (code, told) = run(&disk);
        if code != Some(0) {
            assert_eq!(code, Some(4), "{files} files: {told}");
            assert!(told.contains("the disk is full; free some space"), "{files} files: {told}");
            assert!(told.contains(&disk.0.path().display().to_string()), "{files} files: {told}");
        }
        outcomes.push(code);
    }
    assert_eq!((outcomes.first(), outcomes.last()), (Some(&Some(4)), Some(&Some(0))));
}
