//! Processes killed at random moments, and the same adapter in the end.

use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{Bench, Random};

/// Interruptions of one run; many of them hit a checkpoint being written. `TUNE_KILLS` asks for more.
fn kills() -> u64 {
    std::env::var("TUNE_KILLS").map_or(6, |count| count.parse().unwrap())
}

#[cfg(unix)]
fn terminate(child: &Child) {
    // The shell's own `kill`: a program of that name is not on every machine.
    let sent = std::process::Command::new("sh").args(["-c", &format!("kill -TERM {}", child.id())]).status();
    assert!(sent.unwrap().success());
}

/// Runs on so many threads until `after` is over, then ends the process. Its exit code, if it came to one.
fn run_for(bench: &Bench, name: &str, threads: u64, after: Duration, gently: bool) -> Option<i32> {
    let mut child = bench
        .command(name, &["--resume"])
        .env("RAYON_NUM_THREADS", threads.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while began.elapsed() < after {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        thread::sleep(Duration::from_millis(2));
    }
    if gently {
        terminate(&child);
    } else {
        child.kill().unwrap();
    }
    child.wait().unwrap().code()
}

#[cfg(unix)]
#[test]
fn a_run_killed_again_and_again_ends_with_the_same_bytes() {
    let mut bench = Bench::in_memory();
    // A checkpoint at every step, none but the newest kept, and a best one that is often replaced.
    bench.train =
        "epochs = 5\nmicro_batch_size = 2\neval_steps = 1\nsave_steps = 1\nsave_total_limit = 1\n".into();
    let began = Instant::now();
    let (code, error) = bench.output("whole", &[]);
    assert_eq!(code, 0, "{error}");
    let whole = began.elapsed().as_millis() as u64;

    let mut random = Random(20_240_229);
    let (mut killed, mut stopped) = (0, 0);
    let check = || {
        bench.assert_same("whole", "killed");
        let leftovers: Vec<String> = walk(&bench.run_dir("killed"));
        assert!(leftovers.is_empty(), "left behind: {leftovers:?}");
    };
    while killed + stopped < kills() || killed < 3 || stopped < 1 {
        let after = Duration::from_millis(random.below(whole / 2 + 1));
        let gently = random.below(4) == 0;
        match run_for(&bench, "killed", 1 + random.below(3), after, gently) {
            None => killed += 1,
            Some(143) => stopped += 1,
            // It came to its end in between: as it should have, and once more.
            Some(0) => {
                check();
                std::fs::remove_dir_all(bench.run_dir("killed")).unwrap();
            }
            Some(code) => panic!("exit code {code}"),
        }
    }
    let (code, error) = bench.output("killed", &["--resume"]);
    assert_eq!(code, 0, "{error}");
    check();
}

/// Hidden names below a folder.
fn walk(folder: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name.starts_with('.') {
            found.push(name);
        }
        if entry.path().is_dir() {
            found.extend(walk(&entry.path()));
        }
    }
    found
}
