//! What the tests here share: a small recipe in a folder of its own, runs of it in this process and in others.

use std::cell::Cell;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tune::recipe::RecipeFile;
use tune::run::{self, Environment, Options, Outcome};
use tune::train::event::{Event, Observer};

/// A folder with rows and a recipe.
pub(crate) struct Bench {
    folder: tempfile::TempDir,
    base: PathBuf,
    /// What the matmuls run in.
    pub(crate) compute_dtype: &'static str,
    /// Changes as of `--set`.
    pub(crate) overrides: Vec<String>,
    /// Of the rows.
    pub(crate) format: &'static str,
    /// Written under `[model]`.
    pub(crate) model: String,
    /// Written under `[adapter.lora]`.
    pub(crate) adapter: String,
    /// Written under `[train]`.
    pub(crate) train: String,
    /// Written under `[data]`.
    pub(crate) data: String,
    /// Written at the end.
    pub(crate) more: String,
}

/// Settings that leave no part of the loop idle, over three epochs of about twenty rows: a dozen steps.
pub(crate) const TRAIN: &str = "epochs = 3\nmicro_batch_size = 2\ngradient_accumulation_steps = 2\nlogging_steps = 3\n\
                                eval_steps = 2\nsave_steps = 3\nsave_total_limit = 2\n";

/// What `stop` answers when a run is to go on to its end.
pub(crate) const GO_ON: &dyn Fn() -> bool = &|| false;

pub(crate) const RESUME: Options = Options {
    overwrite: false,
    resume: true,
    accept_changes: false,
    runs_ahead: false,
    fit: false,
    token_budget: None,
};

/// As on a GPU: a step's numbers are read when the next is launched.
pub(crate) const AHEAD: Options = Options {
    overwrite: false,
    resume: false,
    accept_changes: false,
    runs_ahead: true,
    fit: false,
    token_budget: None,
};

impl Bench {
    pub(crate) fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap())
    }

    /// In memory where there is a place for that: for tests that write more than a disk likes to flush.
    pub(crate) fn in_memory() -> Self {
        Self::at(tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap())
    }

    fn at(folder: tempfile::TempDir) -> Self {
        fs::write(folder.path().join("rows.jsonl"), rows(24, None)).unwrap();
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/trajectory/base");
        let data = "max_seq_len = 24\nval_split = 0.2\n".to_owned();
        let adapter = "dropout = 0.1\n".to_owned();
        let (overrides, model) = (Vec::new(), String::new());
        Self {
            folder,
            base,
            compute_dtype: "f32",
            format: "tokens",
            overrides,
            model,
            adapter,
            train: TRAIN.into(),
            data,
            more: String::new(),
        }
    }

    /// On a mixture, with adapters on all experts, and short rows that do not reach every expert.
    pub(crate) fn of_experts() -> Self {
        let mut bench = Self::new();
        bench.base = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mixture_experts/base");
        fs::write(bench.rows(), rows_below(64, 24, None)).unwrap();
        bench.adapter = "experts = true\n".into();
        bench
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn rows(&self) -> PathBuf {
        self.path().join("rows.jsonl")
    }

    /// The output folder of that name.
    pub(crate) fn run_dir(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Copies the base, to be changed; returns where it is.
    pub(crate) fn own_base(&mut self) -> PathBuf {
        let copy = self.path().join("base");
        fs::create_dir_all(&copy).unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(self.base.join(file), copy.join(file)).unwrap();
        }
        self.base = copy.clone();
        copy
    }

    /// Trains on the base in another folder.
    pub(crate) fn use_base(&mut self, folder: PathBuf) {
        self.base = folder;
    }

    /// The recipe that writes to the folder `name`.
    pub(crate) fn recipe(&self, name: &str) -> String {
        let Self { base, compute_dtype, format, model, adapter, train, data, more, .. } = self;
        format!(
            "version = 1\noutput_dir = {:?}\n[model]\nbase = {base:?}\ncompute_dtype = {compute_dtype:?}\n{model}[adapter.lora]\nrank = 4\nalpha = 8\n{adapter}\
             [data]\n{data}\n[[dataset]]\npath = {:?}\nformat = {format:?}\n[train]\nlearning_rate = 1e-3\n{train}\n{more}",
            self.run_dir(name),
            self.rows(),
        )
    }

    /// Runs the recipe in this process.
    pub(crate) fn try_run(
        &self,
        name: &str,
        options: Options,
        stop: &dyn Fn() -> bool,
        observer: &mut dyn Observer,
    ) -> Result<Outcome, run::Error> {
        let file = RecipeFile::parse("test.toml", self.recipe(name).as_bytes(), &self.overrides);
        let environment = Environment { hub_cache: Path::new("no-such-cache"), stop, save: &|| false };
        run::fine_tune(file, &environment, options, observer)
    }

    /// Runs the recipe from its first step to its end.
    pub(crate) fn run(&self, name: &str) -> Outcome {
        self.try_run(name, Options::default(), GO_ON, &mut Silent).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Goes on with a run to its end.
    pub(crate) fn resume(&self, name: &str) -> Outcome {
        self.try_run(name, RESUME, GO_ON, &mut Silent).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Stops a new run behind `step`, with a checkpoint.
    pub(crate) fn stop_after(&self, name: &str, step: u64) {
        let reached = Cell::new(0);
        let mut watch = Watch(|event: &Event<'_>| {
            if let Event::Step { step, .. } = event {
                reached.set(*step);
            }
        });
        let outcome = self.try_run(name, Options::default(), &|| reached.get() >= step, &mut watch).unwrap();
        assert!(outcome.adapter.is_none() && outcome.steps == step);
    }

    /// The `tune` command with the recipe, to be run in a process of its own.
    pub(crate) fn command(&self, name: &str, arguments: &[&str]) -> Command {
        let recipe = self.path().join(format!("{}.toml", name.replace('/', "-")));
        fs::write(&recipe, self.recipe(name)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tune"));
        command.arg("run").arg(recipe).args(arguments).env("NO_COLOR", "1").env("RAYON_NUM_THREADS", "2");
        command.stdin(Stdio::null());
        command
    }

    /// Runs the command to its end: exit code and standard error.
    pub(crate) fn output(&self, name: &str, arguments: &[&str]) -> (i32, String) {
        ended(self.command(name, arguments).output().unwrap())
    }

    /// The bytes of a run's adapter.
    pub(crate) fn adapter(&self, name: &str) -> Vec<u8> {
        fs::read(self.run_dir(name).join("adapter/adapter_model.safetensors")).unwrap()
    }

    /// What the adapter says of itself.
    pub(crate) fn provenance(&self, name: &str) -> std::collections::HashMap<String, String> {
        let bytes = self.adapter(name);
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        header.metadata().clone().unwrap()
    }

    /// The lines of a run's metrics, without what differs from one run to the next.
    pub(crate) fn metrics(&self, name: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.run_dir(name).join("metrics.jsonl")).unwrap();
        let line = |line| {
            let mut value: Value = serde_json::from_str(line).unwrap();
            for key in ["tokens_per_second", "peak_memory_bytes"] {
                value.as_object_mut().unwrap().remove(key);
            }
            value
        };
        text.lines().map(line).collect()
    }

    /// Names of a run's checkpoints, sorted; each is whole.
    pub(crate) fn checkpoints(&self, name: &str) -> Vec<String> {
        let folder = self.run_dir(name).join("checkpoints");
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .inspect(|step| _ = tune::checkpoint::read(&self.checkpoint(name, step)).unwrap())
            .collect();
        names.sort();
        names
    }

    pub(crate) fn checkpoint(&self, name: &str, step: &str) -> PathBuf {
        self.run_dir(name).join("checkpoints").join(step)
    }

    /// Two runs ended alike: adapter, metrics, the last checkpoint and the best one, byte for byte.
    #[track_caller]
    pub(crate) fn assert_same(&self, one: &str, other: &str) {
        assert_eq!(self.metrics(one), self.metrics(other), "metrics of {one} and {other}");
        assert!(self.adapter(one) == self.adapter(other), "adapters of {one} and {other} differ");
        let last = format!("step-{}", self.metrics(one).last().unwrap()["step"]);
        // Where it was stopped a run has checkpoints that one without a stop has not.
        assert_eq!(self.checkpoints(one).len(), self.checkpoints(other).len());
        for checkpoint in [last.as_str(), "best"] {
            for file in ["counters.json", "state.safetensors"] {
                let [one, other] =
                    [one, other].map(|run| fs::read(self.checkpoint(run, checkpoint).join(file)).unwrap());
                assert!(one == other, "{checkpoint}/{file} differ");
            }
        }
    }
}

/// Exit code and standard error of a process that was not killed.
pub(crate) fn ended(output: Output) -> (i32, String) {
    let error = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap_or_else(|| panic!("killed: {error}")), error)
}

/// Rows of different lengths, some of whose tokens are not supervised; `poisoned` holds token 511, all others do not.
pub(crate) fn rows(count: u32, poisoned: Option<u32>) -> String {
    rows_below(500, count, poisoned)
}

/// Rows of ids below a number.
fn rows_below(vocabulary: u32, count: u32, poisoned: Option<u32>) -> String {
    let mut text = String::new();
    for row in 0..count {
        let length = 5 + (row * 7) % 19;
        let mut ids: Vec<u32> =
            (0..length).map(|at| (row * 131 + at * 29 + at * at * 3) % vocabulary).collect();
        if poisoned == Some(row) {
            ids[2] = 511;
        }
        let label = |(at, id): (usize, &u32)| match (at as u32 + row).is_multiple_of(4) {
            true => -100,
            false => i64::from(*id),
        };
        let labels: Vec<i64> = ids.iter().enumerate().map(label).collect();
        writeln!(text, "{}", serde_json::json!({"input_ids": ids, "labels": labels})).unwrap();
    }
    text
}

/// Numbers that look random and are the same each time (SplitMix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}

/// Hears nothing.
pub(crate) struct Silent;

impl Observer for Silent {
    fn observe(&mut self, _: &Event<'_>) {}
}

/// Does something at each event.
pub(crate) struct Watch<F>(pub(crate) F);

impl<F: FnMut(&Event<'_>)> Observer for Watch<F> {
    fn observe(&mut self, event: &Event<'_>) {
        (self.0)(event);
    }
}
