//! What can go wrong around a run: disks that are full or read-only, files that change under it.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use tune::run::{Error, Options};
use tune::train::event::Event;

use crate::common::{Bench, GO_ON, Silent, Watch, ended, rows};

/// A file system of its own, which goes when it is dropped.
pub(crate) struct Mount<'a>(&'a Path);

impl<'a> Mount<'a> {
    /// `None` where this process may not mount.
    pub(crate) fn tmpfs(at: &'a Path, options: &str) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Self(at))
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

/// Tells that a test could not be made here, where whoever reads the log sees it.
pub(crate) fn skipped(why: &str) {
    _ = writeln!(std::io::stderr(), "skipped: {why}");
}

#[test]
fn a_disk_that_fills_up_costs_no_checkpoint() {
    let bench = Bench::new();
    let disk = bench.path().join("disk");
    // Enough for two checkpoints of 210 KB and not for a third.
    let Some(_mount) = Mount::tmpfs(&disk, "size=560k") else {
        return skipped("no file system can be mounted here; see the test with a limit on file sizes");
    };
    bench.run("whole");
    let (code, error) = bench.output("disk/run", &[]);
    assert_eq!(code, 4, "{error}");
    assert!(error.contains("the disk is full; free some space") && error.contains("checkpoints/"), "{error}");
    // What is there is whole, and nothing half-written takes up the space.
    assert!(!bench.checkpoints("disk/run").is_empty());
    let widen = Command::new("mount").args(["-o", "remount,size=16m"]).arg(&disk).status().unwrap();
    assert!(widen.success());
    let (code, error) = bench.output("disk/run", &["--resume"]);
    assert_eq!(code, 0, "{error}");
    bench.assert_same("whole", "disk/run");
}

#[cfg(unix)]
#[test]
fn a_checkpoint_that_cannot_be_written_stops_the_run_and_no_more() {
    let bench = Bench::new();
    bench.run("whole");
    bench.stop_after("run", 4);
    // A shell in between sets the limit, in blocks of 512 or 1024 bytes: no file of a checkpoint fits.
    let command = bench.command("run", &["--resume"]);
    let mut limited = Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 300; exec \"$@\"", "sh"]).arg(command.get_program());
    limited.args(command.get_args()).env("NO_COLOR", "1");
    let (code, error) = ended(limited.output().unwrap());
    assert_eq!(code, 4, "{error}");
    assert!(error.contains("cannot write") && error.contains("checkpoints/"), "{error}");
    assert_eq!(bench.checkpoints("run").last().unwrap(), "step-4", "{error}");
    bench.resume("run");
    bench.assert_same("whole", "run");
}

#[cfg(unix)]
#[test]
fn an_output_folder_that_cannot_be_written_is_told_before_anything_is_read() {
    use std::os::unix::fs::PermissionsExt;

    let bench = Bench::new();
    let place = bench.path().join("place");
    fs::create_dir(&place).unwrap();
    fs::set_permissions(&place, fs::Permissions::from_mode(0o555)).unwrap();
    let is_guarded = File::create(place.join("probe")).is_err();
    let _mount = match is_guarded {
        true => None,
        // The superuser is stopped by no permission, but by a file system that is read-only.
        false => match Mount::tmpfs(&place, "ro,size=1m") {
            Some(mount) => Some(mount),
            None => return skipped("this user may write everywhere and mount nothing"),
        },
    };
    for arguments in [&[][..], &["--resume"]] {
        let (code, error) = bench.output("place/run", arguments);
        assert_eq!(code, 4, "{error}");
        assert!(error.contains("place/run") && !error.contains("reading examples"), "{error}");
        assert!(error.contains("read-only") || error.contains("permission denied"), "{error}");
    }
}

#[test]
fn an_output_folder_that_is_a_file_is_named() {
    let bench = Bench::new();
    fs::write(bench.run_dir("run"), "mine").unwrap();
    for name in ["run", "run/below"] {
        let (code, error) = bench.output(name, &[]);
        assert!(code != 0 && error.contains("run"), "{code} {error}");
    }
    assert_eq!(fs::read_to_string(bench.run_dir("run")).unwrap(), "mine");
}

/// A recipe over more rows than stay in memory, so that training reads the file again and again.
pub(crate) fn with_many_rows() -> Bench {
    let mut bench = Bench::new();
    let mut file = File::create(bench.rows()).unwrap();
    // Spaces make a row long on disk and leave it short in tokens.
    let filler = " ".repeat(16 << 10);
    for row in rows(400, None).lines() {
        writeln!(file, "{}{filler}}}", row.strip_suffix('}').unwrap()).unwrap();
    }
    bench.train = "max_steps = 40\nmicro_batch_size = 2\nsave_steps = 5\n".into();
    bench.data = "max_seq_len = 48\n".into();
    bench
}

#[test]
fn a_dataset_that_changes_under_way_stops_the_run_with_a_checkpoint() {
    let bench = with_many_rows();
    bench.run("whole");
    let good = fs::read(bench.rows()).unwrap();
    let sabotage: [(&str, &dyn Fn()); 3] = [
        ("cut", &|| File::options().write(true).open(bench.rows()).unwrap().set_len(1000).unwrap()),
        ("changed", &|| {
            let mut other = good.clone();
            other[20] ^= 1;
            fs::write(bench.rows(), other).unwrap();
        }),
        ("removed", &|| fs::remove_file(bench.rows()).unwrap()),
    ];
    for (name, sabotage) in sabotage {
        let mut watch = Watch(|event: &Event<'_>| {
            if let Event::Step { step: 7, .. } = event {
                sabotage();
            }
        });
        // Rows are read as they are needed: what a run keeps in memory may change on disk.
        let reads_again = Options { token_budget: Some(0), ..Options::default() };
        let error = bench.try_run(name, reads_again, GO_ON, &mut watch).unwrap_err();
        assert!(matches!(error, Error::Data(_)), "{name}: {error}");
        assert!(error.to_string().contains("rows.jsonl"), "{name}: {error}");
        assert!(!bench.run_dir(name).join("adapter").exists());
        // The file comes back, and the run goes on as if nothing had been.
        fs::write(bench.rows(), &good).unwrap();
        assert!(bench.resume(name).steps == 40);
        assert!(bench.adapter("whole") == bench.adapter(name), "{name}: another adapter");
        assert_eq!(bench.metrics("whole"), bench.metrics(name), "{name}");
    }
}

/// What a run warns of, and what its record says of its inputs, when `sabotage` is done behind its fourth step.
fn sabotaged(bench: &Bench, name: &str, sabotage: &dyn Fn()) -> (Vec<String>, Vec<String>) {
    let mut warnings = Vec::new();
    let mut watch = Watch(|event: &Event<'_>| match event {
        Event::Step { step: 4, .. } => sabotage(),
        Event::Warning(text) => warnings.push(text.clone()),
        _ => {}
    });
    bench.try_run(name, Options::default(), GO_ON, &mut watch).unwrap_or_else(|error| panic!("{error}"));
    let record = tune::record::Record::read(&bench.run_dir(name)).unwrap();
    (warnings, record.changed_on_disk)
}

#[test]
fn what_changes_after_it_was_read_is_told_and_changes_nothing() {
    let mut bench = Bench::new();
    let weights = bench.own_base().join("model.safetensors");
    bench.run("whole");
    let good = fs::read(bench.rows()).unwrap();
    let (dataset, base) = ("rows.jsonl) changed on disk", "the base's model.safetensors changed on disk");
    let sabotage: [(&str, &dyn Fn(), &str); 4] = [
        ("cut", &|| File::options().write(true).open(bench.rows()).unwrap().set_len(100).unwrap(), dataset),
        ("other", &|| fs::write(bench.rows(), rows(24, Some(3))).unwrap(), dataset),
        ("removed", &|| fs::remove_file(bench.rows()).unwrap(), dataset),
        ("other-base", &|| fs::write(&weights, b"other").unwrap(), base),
    ];
    let good_base = fs::read(&weights).unwrap();
    for (name, sabotage, what) in sabotage {
        let (warnings, said) = sabotaged(&bench, name, sabotage);
        assert_eq!(warnings.iter().filter(|text| text.contains(what)).count(), 1, "{name}: {warnings:?}");
        assert_eq!(said.len(), 1, "{name}: {said:?}");
        assert!(what.starts_with(said[0].rsplit('/').next().unwrap()), "{name}: {said:?}");
        fs::write(bench.rows(), &good).unwrap();
        fs::write(&weights, &good_base).unwrap();
        // It is made of what was read all the same, and can be made again once that is back.
        bench.assert_same("whole", name);
    }
    // Written anew with the same content, or other for a while, it is what it was.
    let (warnings, said) = sabotaged(&bench, "touched", &|| fs::write(bench.rows(), &good).unwrap());
    assert!(warnings.iter().all(|text| !text.contains("on disk")) && said.is_empty(), "{warnings:?}");
    bench.assert_same("whole", "touched");
}

#[test]
fn inputs_are_compared_once_at_the_end() {
    let bench = Bench::new();
    let good = fs::read(bench.rows()).unwrap();
    for (name, last) in [("back", good.clone()), ("other", rows(24, Some(7)).into_bytes())] {
        let mut said = Vec::new();
        let mut watch = Watch(|event: &Event<'_>| match event {
            // By turns what the run has read, and something else.
            Event::Step { step, .. } if (4..11).contains(step) => match step % 2 {
                0 => fs::write(bench.rows(), rows(24, Some(*step as u32))).unwrap(),
                _ => fs::write(bench.rows(), &good).unwrap(),
            },
            Event::Step { step: 11, .. } => fs::write(bench.rows(), &last).unwrap(),
            Event::Checkpoint { .. } => said.push("checkpoint"),
            Event::Warning(text) if text.contains("on disk") => said.push("changed"),
            _ => {}
        });
        bench.try_run(name, Options::default(), GO_ON, &mut watch).unwrap_or_else(|error| panic!("{error}"));
        let changed = said.iter().position(|what| *what == "changed");
        assert_eq!(changed, (last != good).then(|| said.len() - 1), "{name}: {said:?}");
        fs::write(bench.rows(), &good).unwrap();
    }
}

#[test]
fn kept_tokens_change_nothing() {
    let bench = Bench::new();
    bench.run("kept");
    for budget in [0, 1000] {
        let name = format!("budget-{budget}");
        let options = Options { token_budget: Some(budget), ..Options::default() };
        bench.try_run(&name, options, GO_ON, &mut Silent).unwrap_or_else(|error| panic!("{error}"));
        bench.assert_same("kept", &name);
    }
}

#[test]
fn bad_rows_in_the_middle_are_named_before_the_first_step_and_nothing_is_left() {
    let bench = Bench::new();
    let text = rows(24, None);
    let lines: Vec<&str> = text.lines().collect();
    let broken = [&lines[..11], &["{\"input_ids\": [1, 2"], &lines[12..]].concat().join("\n");
    fs::write(bench.rows(), broken).unwrap();
    let (code, error) = bench.output("deep/run", &[]);
    assert_eq!(code, 3, "{error}");
    assert!(error.contains("rows.jsonl:12"), "{error}");
    assert!(!bench.run_dir("deep").exists());
}

#[test]
fn a_base_that_changes_while_it_is_loaded_is_refused() {
    let mut bench = Bench::new();
    let base = bench.own_base();
    let weights = base.join("model.safetensors");
    let good = fs::read(&weights).unwrap();
    let loads = Cell::new(0);
    let mut watch = Watch(|event: &Event<'_>| {
        if matches!(event, Event::Loading { .. }) {
            loads.set(loads.get() + 1);
            if loads.get() == 3 {
                // Whoever copies over a model in use.
                fs::write(&weights, &good[..good.len() - 8]).unwrap();
            }
        }
    });
    let error = bench.try_run("run", Options::default(), GO_ON, &mut watch).unwrap_err();
    assert!(error.to_string().contains("model.safetensors"), "{error}");
    assert!(!bench.run_dir("run").exists());
    // Cut short for good, it is refused when it is opened.
    let error = bench.try_run("run", Options::default(), GO_ON, &mut Silent).unwrap_err();
    assert!(matches!(error, Error::Recipe(_)), "{error}");
}
