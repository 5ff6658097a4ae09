//! Several processes that train one adapter, under each MPI that is installed: the adapter's bytes, and what becomes of
//! the others when one of them ends.
//!
//! Debian's Open MPI and MPICH are found by themselves; `TUNE_MPI` names more as `LAUNCHER=LIBRARY`, separated by spaces.
//! With `TUNE_REQUIRE_MPI` a machine without any fails instead of skipping.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tune::recipe::RecipeFile;
use tune::run::{self, Environment, Error, Options};
use tune::train::event::Event;
use tune::train::team::Team;
use tune_ranks::Ranks;

use crate::common::{Bench, GO_ON, Random, Watch, ended, rows};
use crate::divergence::poisoned;
use crate::faults::with_many_rows;
#[cfg(target_os = "linux")]
use crate::faults::{Mount, skipped};

/// An installed MPI: what starts ranks, and the library that they open.
#[derive(Clone, Debug)]
pub(crate) struct Mpi {
    pub(crate) launcher: PathBuf,
    library: String,
}

pub(crate) fn installed() -> Vec<Mpi> {
    let folders: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH").unwrap()).collect();
    let mut found = Vec::new();
    for (name, library) in [("mpirun.openmpi", "libmpi.so.40"), ("mpirun.mpich", "libmpich.so.12")] {
        let launcher = folders.iter().map(|folder| folder.join(name)).find(|path| path.exists());
        found.extend(launcher.map(|launcher| Mpi { launcher, library: library.to_owned() }));
    }
    let named = std::env::var("TUNE_MPI").unwrap_or_default();
    found.extend(named.split_whitespace().map(|pair| {
        let (launcher, library) = pair.split_once('=').unwrap();
        Mpi { launcher: launcher.into(), library: library.to_owned() }
    }));
    if found.is_empty() {
        assert!(std::env::var_os("TUNE_REQUIRE_MPI").is_none(), "no MPI is installed");
        _ = writeln!(std::io::stderr(), "skipped: no MPI is installed");
    }
    found
}

impl Mpi {
    pub(crate) fn is_open_mpi(&self) -> bool {
        self.library.contains("libmpi.so.40")
    }

    /// The launcher, with what it needs to start more ranks than there are cores, as root.
    fn launch(&self) -> Command {
        let mut command = Command::new(&self.launcher);
        if self.is_open_mpi() {
            command.args(["--oversubscribe", "--bind-to", "none"]);
            command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        }
        command.env("RAYON_NUM_THREADS", "1").env("NO_COLOR", "1").stdin(Stdio::null());
        command
    }

    /// So many ranks of the run `name`.
    pub(crate) fn command(&self, bench: &Bench, name: &str, ranks: usize, arguments: &[&str]) -> Command {
        let run = bench.command(name, arguments);
        let mut command = self.launch();
        command.args(["-n", &ranks.to_string()]).arg(run.get_program()).args(run.get_args());
        command.args(["--ranks", "mpi", "--mpi-library", &self.library]);
        command
    }

    /// Runs them to their end: exit code and standard error.
    fn run(&self, bench: &Bench, name: &str, ranks: usize, arguments: &[&str]) -> (i32, String) {
        ended(self.command(bench, name, ranks, arguments).output().unwrap())
    }

    #[track_caller]
    fn expect(&self, code: i32, bench: &Bench, name: &str, ranks: usize, arguments: &[&str]) -> String {
        let (found, error) = self.run(bench, name, ranks, arguments);
        assert_eq!(found, code, "{ranks} ranks, {self:?}: {error}");
        error
    }
}

/// Two or three micro-batches in each of four lanes, and a last step of every epoch that leaves lanes empty.
const TRAIN: &str = "epochs = 2\nmicro_batch_size = 1\ngradient_accumulation_steps = 9\nlanes = 4\nlogging_steps = 1\n\
                     eval_steps = 2\nsave_steps = 2\nsave_total_limit = 2\n";

fn bench() -> Bench {
    let mut bench = Bench::new();
    bench.train = TRAIN.into();
    bench
}

/// Adapters of every kind, in packs and without; accumulation and short last steps in all of them.
fn kinds() -> Vec<(&'static str, Bench)> {
    let kind = |adapter: &str, data: &str| {
        let mut bench = bench();
        bench.adapter = adapter.into();
        bench.data = format!("max_seq_len = 24\nval_split = 0.2\n{data}");
        bench
    };
    let mut local = bench();
    local.more = "[train.local]\nsteps = 2\n".into();
    let mut experts = Bench::of_experts();
    experts.train = format!("{TRAIN}router_aux_loss_coef = 0.1\n");
    experts.data = "max_seq_len = 24\nval_split = 0.2\npacking = false\n".into();
    vec![
        ("packs with dropout", kind("dropout = 0.1\n", "")),
        ("DoRA", kind("use_dora = true\n", "packing = false\n")),
        ("LoRA+", kind("dropout = 0.1\nlearning_rate_ratio = 16\n", "packing = false\n")),
        ("modules to save", kind("modules_to_save = [\"lm_head\", \"embed_tokens\"]\n", "packing = false\n")),
        ("preference pairs", pairs()),
        ("local steps", local),
        ("experts", experts),
    ]
}

fn pairs() -> Bench {
    let mut bench = bench();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/preference");
    let base = bench.own_base();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(golden.join(file), base.join(file)).unwrap();
    }
    fs::copy(golden.join("pairs.jsonl"), bench.rows()).unwrap();
    bench.format = "preference";
    bench.data = "max_seq_len = 128\nval_split = 0.2\n".into();
    bench.train =
        "max_steps = 3\nmicro_batch_size = 1\ngradient_accumulation_steps = 5\nlanes = 4\neval_steps = 2\n\
                   save_steps = 2\n"
            .into();
    bench.more = "[objective.dpo]\nbeta = 0.3\n".into();
    bench
}

#[test]
fn the_adapter_is_the_same_for_every_number_of_ranks() {
    let installed = installed();
    let is_nightly = std::env::var_os("TUNE_EVERY_VARIANT").is_some();
    for (kind, (name, bench)) in kinds().into_iter().enumerate() {
        bench.run("alone");
        for (turn, mpi) in installed.iter().enumerate() {
            // By the night everything. Otherwise the first kind under every MPI, and each of the others under one.
            let few = match kind {
                0 => [2, 4, 1][turn % 3],
                _ => [2, 4][kind / installed.len() % 2],
            };
            let is_chosen =
                |ranks| is_nightly || (ranks == few && (kind == 0 || turn == kind % installed.len()));
            for ranks in [1, 2, 4].into_iter().filter(|ranks| is_chosen(*ranks)) {
                let run = format!("{ranks}-{turn}");
                println!("{name}: {ranks} ranks, {mpi:?}");
                mpi.expect(0, &bench, &run, ranks, &[]);
                bench.assert_same("alone", &run);
            }
        }
    }
}

/// The processes of the run `name`, by rank.
#[cfg(target_os = "linux")]
pub(crate) fn ranks_of(bench: &Bench, name: &str) -> Vec<u32> {
    let recipe = bench.path().join(format!("{name}.toml"));
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|id| id.parse::<u32>().ok()) else { continue };
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut words = words.split(|byte| *byte == 0);
        let is_tune = words.next().is_some_and(|word| word.ends_with(b"/tune"));
        if is_tune && words.any(|word| word == recipe.to_str().unwrap().as_bytes()) {
            let variables = fs::read(entry.path().join("environ")).unwrap_or_default();
            let rank = variables.split(|byte| *byte == 0).find_map(|variable| {
                let text = std::str::from_utf8(variable).ok()?;
                let value = text.strip_prefix("OMPI_COMM_WORLD_RANK=").or(text.strip_prefix("PMI_RANK="))?;
                value.parse::<usize>().ok()
            });
            found.extend(rank.map(|rank| (rank, id)));
        }
    }
    found.sort_unstable();
    found.into_iter().map(|(_, id)| id).collect()
}

fn signal(name: &str, process: u32) {
    // The shell's own `kill`: a program of that name is not on every machine.
    _ = Command::new("sh").args(["-c", &format!("kill -{name} {process}")]).stderr(Stdio::null()).status();
}

/// Waits for a launcher, and ends it after a minute.
fn finish(mut child: Child) -> Output {
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("the ranks did not end: {:?}", child.wait_with_output());
        }
        thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

fn spawn(mut command: Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until the run has a checkpoint, or ends.
pub(crate) fn wait_for_checkpoint(bench: &Bench, name: &str, child: &mut Child) {
    let folder = bench.run_dir(name).join("checkpoints");
    let has_one = || {
        fs::read_dir(&folder).is_ok_and(|mut entries| {
            entries.any(|entry| entry.unwrap().file_name().to_str().unwrap().starts_with("step-"))
        })
    };
    while child.try_wait().unwrap().is_none() && !has_one() {
        thread::sleep(Duration::from_millis(2));
    }
}

/// A run of some seconds, with a checkpoint at every second step.
pub(crate) fn long() -> Bench {
    let mut bench = bench();
    bench.train = TRAIN.replace("epochs = 2", "epochs = 20");
    bench
}

#[cfg(target_os = "linux")]
#[test]
fn a_run_whose_ranks_are_killed_goes_on_with_another_number_of_them() {
    let kills = std::env::var("TUNE_KILLS").map_or(3, |count| count.parse().unwrap());
    // By the night, on each MPI.
    let all = std::env::var_os("TUNE_KILLS").map_or(1, |_| usize::MAX);
    for mpi in installed().into_iter().take(all) {
        let bench = long();
        bench.run("whole");
        let seed = std::process::id().into();
        println!("seed {seed}");
        let mut random = Random(seed);
        for kill in 0..kills {
            let ranks = [2, 4, 1][kill % 3];
            let mut child = spawn(mpi.command(&bench, "killed", ranks, &["--resume"]));
            wait_for_checkpoint(&bench, "killed", &mut child);
            thread::sleep(Duration::from_millis(random.below(600)));
            let processes = ranks_of(&bench, "killed");
            if let Some(process) = processes.get(random.below(ranks as u64) as usize) {
                signal("KILL", *process);
            }
            finish(child);
        }
        mpi.expect(0, &bench, "killed", 2, &["--resume"]);
        bench.assert_same("whole", "killed");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_signal_to_any_rank_stops_all_behind_the_same_step() {
    let bench = long();
    bench.run("whole");
    for (mpi, rank) in installed().into_iter().take(2).zip([1, 0]) {
        _ = fs::remove_dir_all(bench.run_dir("stopped"));
        let mut child = spawn(mpi.command(&bench, "stopped", 2, &[]));
        wait_for_checkpoint(&bench, "stopped", &mut child);
        signal("TERM", ranks_of(&bench, "stopped")[rank]);
        let output = finish(child);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("stopped after step"), "{mpi:?}: {output:?}");
        assert!(!output.status.success(), "{output:?}");
        let (code, error) = bench.output("stopped", &["--resume"]);
        assert_eq!(code, 0, "{error}");
        bench.assert_same("whole", "stopped");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_rank_that_falls_silent_ends_the_others() {
    for mpi in installed().into_iter().take(1) {
        let bench = long();
        let mut child = spawn(mpi.command(&bench, "silent", 2, &["--silence", "2s"]));
        wait_for_checkpoint(&bench, "silent", &mut child);
        let second = ranks_of(&bench, "silent")[1];
        signal("STOP", second);
        let began = Instant::now();
        while ranks_of(&bench, "silent").len() > 1 && began.elapsed() < Duration::from_secs(30) {
            thread::sleep(Duration::from_millis(20));
        }
        signal("KILL", second);
        let output = finish(child);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains("no answer from the other ranks for 2 s"), "{mpi:?}: {error}");
        assert!(error.contains("--resume"), "{error}");
    }
}

#[test]
fn ranks_that_differ_are_refused_by_name() {
    for mpi in installed() {
        let bench = bench();
        let (one, other) = (bench.path().join("one"), bench.path().join("other"));
        let recipe = bench.recipe("run").replace(bench.path().to_str().unwrap(), ".");
        for (folder, changed) in [(&one, None), (&other, Some(3))] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("rows.jsonl"), rows(24, changed)).unwrap();
            fs::write(folder.join("recipe.toml"), &recipe).unwrap();
        }
        let mut command = mpi.launch();
        for (index, folder) in [one, other.clone()].iter().enumerate() {
            if index > 0 {
                command.arg(":");
            }
            command.args(["-n", "1", "-wdir"]).arg(folder).arg(env!("CARGO_BIN_EXE_tune"));
            command.args(["run", "recipe.toml", "--ranks", "mpi", "--mpi-library", &mpi.library]);
        }
        let (code, error) = ended(command.output().unwrap());
        assert_eq!(code, 2, "{mpi:?}: {error}");
        assert!(error.contains("rank 1 does not run what rank 0 runs"), "{error}");
        assert!(error.contains("dataset 0 (./rows.jsonl) has another content"), "{error}");
        assert!(!other.join("run").exists(), "only the first rank has a folder");
    }
}

#[test]
fn a_failure_of_the_first_rank_is_told_once_and_ends_all() {
    for mpi in installed() {
        let mut bench = bench();
        fs::create_dir_all(bench.run_dir("taken")).unwrap();
        fs::write(bench.run_dir("taken").join("notes.txt"), "mine").unwrap();
        let error = mpi.expect(2, &bench, "taken", 2, &[]);
        assert_eq!(error.matches("is not empty").count(), 1, "{error}");
        bench.train = TRAIN.replace("lanes = 4", "lanes = 3");
        let error = mpi.expect(2, &bench, "shared", 2, &[]);
        assert!(error.contains("would do for 1 or 3"), "{error}");
        assert_eq!(error.matches("cannot share").count(), 1, "{error}");
    }
}

#[test]
fn another_build_on_one_rank_is_refused_before_anything_is_done() {
    for mpi in installed().into_iter().take(1) {
        let bench = bench();
        let program = Path::new(env!("CARGO_BIN_EXE_tune"));
        let other = bench.path().join("tune");
        fs::copy(program, &other).unwrap();
        fs::File::options().append(true).open(&other).unwrap().write_all(b"another build").unwrap();
        let run = mpi.command(&bench, "run", 1, &[]);
        let arguments: Vec<_> = run.get_args().skip_while(|word| *word != "run").collect();
        let mut command = mpi.launch();
        command.args(["-n", "1"]).arg(program).args(&arguments).arg(":");
        command.args(["-n", "1"]).arg(&other).args(&arguments);
        let (code, error) = ended(command.output().unwrap());
        assert_eq!(code, 2, "{error}");
        assert_eq!(error.matches("rank 1 is tune ").count(), 1, "{error}");
        assert!(error.contains("start the same file of tune on every machine"), "{error}");
        assert!(!bench.run_dir("run").exists());
    }
}

#[test]
fn a_loss_that_is_no_number_on_one_rank_ends_all_with_the_rows_told() {
    for (mpi, local) in installed().into_iter().cycle().skip(1).zip(["", "[train.local]\nsteps = 2\n"]) {
        let mut bench = poisoned("gradient_accumulation_steps = 2\nlanes = 2\n");
        bench.train = bench.train.replace("save_steps = 3", "save_steps = 2");
        bench.more = local.into();
        // Rows come in order, two in each of two lanes a step: this one is in the third, in the lane of the second rank.
        fs::write(bench.rows(), rows(24, Some(10))).unwrap();
        let error = mpi.expect(5, &bench, "run", 2, &[]);
        assert!(
            error.contains("loss of optimizer step 3 is NaN") && error.contains("rows.jsonl:11"),
            "{error}"
        );
        assert_eq!(bench.checkpoints("run"), ["step-2"]);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_of_the_first_rank_ends_all_and_costs_no_checkpoint() {
    for mpi in installed().into_iter().take(1) {
        let mut bench = bench();
        bench.train = TRAIN.replace("save_steps = 2", "save_steps = 1");
        let disk = bench.path().join("disk");
        // Enough for two checkpoints and not for a third.
        let Some(_mount) = Mount::tmpfs(&disk, "size=560k") else {
            return skipped("no file system can be mounted here");
        };
        bench.run("whole");
        let error = mpi.expect(4, &bench, "disk/run", 2, &[]);
        assert_eq!(error.matches("the disk is full").count(), 1, "{error}");
        assert!(!bench.checkpoints("disk/run").is_empty());
        let widen = Command::new("mount").args(["-o", "remount,size=16m"]).arg(&disk).status().unwrap();
        assert!(widen.success());
        mpi.expect(0, &bench, "disk/run", 4, &["--resume"]);
        bench.assert_same("whole", "disk/run");
    }
}

/// Where [`a_rank_that_loses_its_rows`] finds its MPI.
const LIBRARY: &str = "TUNE_TEST_LIBRARY";

/// No test of its own but a rank of the next one, which starts this binary under a launcher. It reads rows as it needs
/// them, and the second rank loses its own behind the seventh step.
#[test]
#[ignore = "a process of another test"]
fn a_rank_that_loses_its_rows() {
    let Some(library) = std::env::var_os(LIBRARY) else { return };
    let ranks = Ranks::mpi(Some(library.as_ref()), None, Duration::from_secs(60)).unwrap();
    let team = Team::of(ranks, 0, String::new());
    let rank = team.rank();
    let mut watch = Watch(|event: &Event<'_>| {
        if let (Event::Step { step: 7, .. }, 1) = (event, rank) {
            fs::File::options().write(true).open("rows.jsonl").unwrap().set_len(1000).unwrap();
        }
    });
    let file = RecipeFile::parse("recipe.toml", &fs::read("recipe.toml").unwrap(), &[]);
    let environment = Environment { hub_cache: Path::new("no-such-cache"), stop: GO_ON, save: &|| false };
    let options = Options { token_budget: Some(0), ..Options::default() };
    let exit = |error: &Error| if matches!(error, Error::Data(_)) { 3 } else { 1 };
    let error =
        run::fine_tune_together(&team, &exit, Ok(file), &environment, options, &mut watch).unwrap_err();
    fs::write("error", format!("{error}\n{error:?}")).unwrap();
}

#[test]
fn rows_that_one_rank_loses_end_all_with_the_cause_and_a_checkpoint() {
    for mpi in installed().into_iter().take(1) {
        let mut bench = with_many_rows();
        bench.train =
            "max_steps = 40\nmicro_batch_size = 1\ngradient_accumulation_steps = 2\nlanes = 2\n".into();
        bench.run("whole");
        let folders = ["one", "other"].map(|name| bench.path().join(name));
        let recipe = bench.recipe("run").replace(bench.path().to_str().unwrap(), ".");
        let mut command = mpi.launch();
        for (index, folder) in folders.iter().enumerate() {
            fs::create_dir(folder).unwrap();
            fs::copy(bench.rows(), folder.join("rows.jsonl")).unwrap();
            fs::write(folder.join("recipe.toml"), &recipe).unwrap();
            command.args(if index > 0 { &[":"][..] } else { &[] }).args(["-n", "1", "-wdir"]).arg(folder);
            command.arg(std::env::current_exe().unwrap());
            command.args(["--exact", "ranks::a_rank_that_loses_its_rows", "--ignored"]);
        }
        let output = command.env(LIBRARY, &mpi.library).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let [first, second] =
            folders.each_ref().map(|folder| fs::read_to_string(folder.join("error")).unwrap());
        assert!(second.contains("rows.jsonl") && second.contains("Data("), "{second}");
        let cause = second.lines().next().unwrap();
        assert!(first.starts_with(&format!("rank 1: {cause}")) && first.contains("exit: 3"), "{first}");
        // The first rank saved what was learned; a process by itself goes on with it.
        let checkpoints = bench.checkpoints("one/run");
        assert!(checkpoints.iter().any(|name| !name.ends_with("-0")), "{checkpoints:?}");
        let mut command = Command::new(env!("CARGO_BIN_EXE_tune"));
        command.args(["run", "recipe.toml", "--resume"]).current_dir(&folders[0]);
        let (code, error) = ended(command.output().unwrap());
        assert_eq!(code, 0, "{error}");
        assert_eq!(bench.metrics("whole"), bench.metrics("one/run"));
    }
}

#[test]
fn the_launcher_of_another_mpi_is_refused() {
    let (open, others): (Vec<Mpi>, Vec<Mpi>) = installed().into_iter().partition(Mpi::is_open_mpi);
    if let (Some(open), Some(other)) = (open.first(), others.first()) {
        let mixed = Mpi { launcher: other.launcher.clone(), library: open.library.clone() };
        let bench = bench();
        let mut command = other.launch();
        let run = mixed.command(&bench, "mixed", 2, &[]);
        let (code, error) =
            ended(command.args(run.get_args().skip_while(|word| *word != "-n")).output().unwrap());
        assert_eq!(code, 2, "{error}");
        assert!(error.contains("the launcher belongs to another MPI than the library"), "{error}");
        assert!(!bench.run_dir("mixed").exists());
    }
}

#[test]
fn without_an_mpi_a_run_is_refused_and_others_are_not_disturbed() {
    let bench = bench();
    let (code, error) = bench.output("run", &["--ranks", "mpi", "--mpi-library", "/no/such/libmpi.so"]);
    assert_eq!(code, 2, "{error}");
    assert!(error.contains("/no/such/libmpi.so") && error.contains("--mpi-library PATH"), "{error}");
    // Several processes that were not told to share would write the same folder.
    let mut command = bench.command("run", &[]);
    let (code, error) = ended(command.env("PMI_SIZE", "2").env("PMI_RANK", "1").output().unwrap());
    assert_eq!(code, 2, "{error}");
    assert!(error.contains("PMI_SIZE=2") && error.contains("--ranks mpi"), "{error}");
    assert!(!bench.run_dir("run").exists());
}
