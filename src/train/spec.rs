//! The `[train]` table of a recipe: its keys, and their values as a [`Spec`].

use super::budget::{Budget, MOST_TOKENS};
use super::divergence::{Choice, OnDivergence};
use super::saved_inputs::SavedInputs;
use crate::document::{
    Key, KeyTable, Kind, Limits, Parsed, Problem, Shaped, TableReader, Value, ValueError, Word, Writer,
    Written,
};
use crate::units::Bytes;

/// Steps and counts beyond this are slips; every sum of them stays far from overflow.
const LARGEST_STEP: u64 = 1_000_000_000_000;

/// Share of the steps that warm up where no key says otherwise.
const WARMUP_RATIO: f64 = 0.03;

/// How long, how fast, how often.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Passes over the training rows.
    pub epochs: Option<f64>,
    /// Optimizer steps; with `epochs` as well, the first reached ends the run.
    pub max_steps: Option<u64>,
    /// Sequences (packs) per forward pass.
    pub micro_batch_size: usize,
    /// Micro-batches per optimizer step.
    pub gradient_accumulation_steps: usize,
    /// Sums that the micro-batches of a step are dealt into, in turn, and that are added as a binary tree.
    pub lanes: usize,
    /// Steps that each lane makes by itself before the lanes are averaged; `None`: lanes are added in every step.
    pub local_steps: Option<u64>,
    /// What ends the run before its last step.
    pub budget: Budget,
    /// Memory that the run may use, in bytes; `None`: what is free.
    pub memory_budget: Option<u64>,
    /// Host memory that layers may wait in, in bytes; `None`: what is free.
    pub host_memory_budget: Option<u64>,
    /// Where the inputs of layers wait whose forward pass is run again.
    pub saved_inputs: SavedInputs,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Shape of the learning rate over the run.
    pub lr_scheduler: LrScheduler,
    /// Share of the peak rate that a decay ends at, of schedules that have one.
    pub min_lr_rate: f64,
    /// Steps of the decay of `warmup_stable_decay`; `None`: a tenth of all steps, rounded up.
    pub decay_steps: Option<u64>,
    /// Steps of linear warm-up.
    pub warmup: Warmup,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Clip the global gradient norm to this; 0: no clipping.
    pub max_grad_norm: f64,
    /// Factor on the loss that spreads tokens over the experts of mixtures; 0: there is none.
    pub router_aux_loss_coef: f64,
    /// What becomes of a step whose loss or gradient is not finite.
    pub on_divergence: OnDivergence,
    /// Write a metrics line every so many optimizer steps.
    pub logging_steps: u64,
    /// Evaluate every so many optimizer steps (and at the end) when rows are held out.
    pub eval_steps: u64,
    /// Write a checkpoint every so many optimizer steps (and at the end).
    pub save_steps: u64,
    /// Checkpoints kept; the best and the newest always are.
    pub save_total_limit: usize,
}

/// The schedules of transformers' `get_scheduler`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LrScheduler {
    /// Warm-up, then constant.
    Constant,
    /// Warm-up, then linearly to zero.
    Linear,
    /// Warm-up, then half a cosine to zero.
    Cosine,
    /// Warm-up, then half a cosine to `min_lr_rate` of the peak.
    CosineWithMinLr,
    /// Warm-up, then constant, then half a cosine over the last `decay_steps`.
    WarmupStableDecay,
    /// Warm-up, then falling with the square root of the steps.
    InverseSqrt,
}

impl LrScheduler {
    /// Whether `min_lr_rate` has an effect.
    fn has_floor(self) -> bool {
        matches!(self, Self::CosineWithMinLr | Self::WarmupStableDecay)
    }
}

/// Length of the warm-up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Warmup {
    /// Share of all steps, rounded up as transformers does.
    Ratio(f64),
    /// A number of steps.
    Steps(u64),
}

impl Word for LrScheduler {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("constant", Self::Constant),
        ("constant_with_warmup", Self::Constant),
        ("linear", Self::Linear),
        ("cosine", Self::Cosine),
        ("cosine_with_min_lr", Self::CosineWithMinLr),
        ("warmup_stable_decay", Self::WarmupStableDecay),
        ("wsd", Self::WarmupStableDecay),
        ("inverse_sqrt", Self::InverseSqrt),
    ];
    const ALIASES: &'static [(&'static str, &'static str)] =
        &[("cosine_with_warmup", "cosine"), ("none", "constant"), ("rsqrt", "inverse_sqrt")];
}

/// The table while it is read: without a learning rate there is no [`Spec`].
pub(crate) struct Draft {
    /// The fields that are one key each; the others have their keys below.
    spec: Spec,
    learning_rate: Option<f64>,
    min_lr_rate: Option<f64>,
    warmup_ratio: Option<f64>,
    warmup_steps: Option<u64>,
    on_divergence: Choice,
    divergence_patience: Option<u64>,
    rollback_steps: Option<u64>,
    memory_budget: Option<Bytes>,
    host_memory_budget: Option<Bytes>,
}

impl Default for Draft {
    fn default() -> Self {
        let spec = Spec {
            epochs: None,
            max_steps: None,
            budget: Budget::default(),
            micro_batch_size: 4,
            gradient_accumulation_steps: 1,
            lanes: 1,
            local_steps: None,
            memory_budget: None,
            host_memory_budget: None,
            saved_inputs: SavedInputs::Auto,
            learning_rate: 0.0,
            lr_scheduler: LrScheduler::Cosine,
            min_lr_rate: 0.0,
            decay_steps: None,
            warmup: Warmup::Ratio(WARMUP_RATIO),
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            router_aux_loss_coef: 0.0,
            on_divergence: OnDivergence::Stop,
            logging_steps: 1,
            eval_steps: 200,
            save_steps: 200,
            save_total_limit: 3,
        };
        Self {
            spec,
            learning_rate: None,
            min_lr_rate: None,
            warmup_ratio: None,
            warmup_steps: None,
            on_divergence: Choice::Stop,
            divergence_patience: None,
            rollback_steps: None,
            memory_budget: None,
            host_memory_budget: None,
        }
    }
}

type K = Key<Draft>;

pub(crate) static TABLE: KeyTable<Draft> = KeyTable {
    path: "train",
    meaning: "How long, how fast, how often.",
    also: &["training", "trainer", "training_args", "training_arguments", "train_config"],
    keys: &[
        K::number("epochs", Limits::above(0.0).to(1e6), |train| &mut train.spec.epochs)
            .optional("as many as `max_steps` needs; one of the two is required")
            .means("Passes over the training rows.")
            .also(&["num_train_epochs", "num_epochs", "epoch", "n_epochs", "max_epochs"]),
        K::integer("max_steps", 1..=LARGEST_STEP, |train| &mut train.spec.max_steps)
            .optional("as many as `epochs` needs")
            .means("Optimizer steps; the first of `epochs` and `max_steps` to be reached ends the run.")
            .also(&[
                "max_train_steps",
                "iters",
                "num_steps",
                "total_steps",
                "max_iters",
                "steps",
                "max_steps_per_epoch",
            ]),
        // How far a run gets in a time is not the recipe's to decide; the adapter says how many steps it had.
        K::parsed("max_time", |train| &mut train.spec.budget.max_time)
            .bookkeeping()
            .optional("no limit")
            .means("Time after which the command ends with a checkpoint and the adapter, loading included.")
            .also(&["max_runtime", "max_train_time", "time_limit", "max_seconds", "timeout"]),
        K::integer("max_tokens", 1..=MOST_TOKENS, |train| &mut train.spec.budget.max_tokens)
            .optional("no limit")
            .means("Tokens, supervised or not, after which the run ends.")
            .also(&["max_train_tokens", "token_budget", "num_tokens"]),
        K::count("micro_batch_size", 1..=65_536, |train| &mut train.spec.micro_batch_size)
            .means("Sequences (packs) in a forward pass.")
            .also(&[
                "per_device_train_batch_size",
                "batch_size",
                "train_batch_size",
                "micro_batch",
                "device_batch_size",
                "per_device_batch_size",
            ]),
        K::count("gradient_accumulation_steps", 1..=1_048_576, |train| {
            &mut train.spec.gradient_accumulation_steps
        })
        .means("Micro-batches in an optimizer step.")
        .also(&[
            "gradient_accumulation",
            "grad_accumulation_steps",
            "accumulation_steps",
            "grad_accum",
            "accumulate_grad_batches",
            "gradient_accumulation_step",
        ]),
        K::count("lanes", 1..=65_536, |train| &mut train.spec.lanes)
            .means("Sums that a step's micro-batches are dealt into, to be shared by ranks: 4 lanes are for 1, 2 or 4 of them.")
            .added(),
        K::number("learning_rate", Limits::above(0.0).to(1.0), |train| &mut train.learning_rate)
            .required("2e-4")
            .means("Peak learning rate.")
            .also(&["lr", "peak_lr", "max_lr"]),
        K::parsed("lr_scheduler", |train| &mut train.spec.lr_scheduler)
            .means("Shape of the learning rate after the warm-up, as transformers computes it.")
            .also(&["lr_scheduler_type", "scheduler", "lr_schedule", "schedule", "lr_decay_style"]),
        K::number("min_lr_rate", Limits::from(0.0).to(1.0), |train| &mut train.min_lr_rate)
            .optional("0; `cosine_with_min_lr` requires it")
            .means("Share of the peak rate that `cosine_with_min_lr` and `warmup_stable_decay` end at.")
            .also(&["min_lr_ratio", "min_learning_rate_ratio"])
            .added(),
        K::integer("decay_steps", 1..=LARGEST_STEP, |train| &mut train.spec.decay_steps)
            .optional("a tenth of all steps")
            .means("Last steps of `warmup_stable_decay`, over which the learning rate falls.")
            .also(&["num_decay_steps", "lr_decay_steps"])
            .added(),
        K::number("warmup_ratio", Limits::from(0.0).to(1.0), |train| &mut train.warmup_ratio)
            .optional("0.03, unless `warmup_steps` is set")
            .means("Share of all steps over which the learning rate rises from zero.")
            .also(&["warmup_fraction", "warmup_proportion", "lr_warmup_ratio"]),
        K::integer("warmup_steps", 0..=LARGEST_STEP, |train| &mut train.warmup_steps)
            .optional("as `warmup_ratio` says")
            .means("Steps over which the learning rate rises from zero.")
            .also(&["warmup", "num_warmup_steps", "warmup_iters", "lr_warmup_steps"]),
        K::number("weight_decay", Limits::from(0.0).to(1.0), |train| &mut train.spec.weight_decay)
            .means("Decoupled weight decay of AdamW.")
            .also(&["wd"]),
        K::number("max_grad_norm", Limits::from(0.0), |train| &mut train.spec.max_grad_norm)
            .means("Gradients are scaled down to this global norm; 0 turns clipping off.")
            .also(&[
                "max_norm",
                "gradient_clipping",
                "clip_grad_norm",
                "grad_clip",
                "max_gradient_norm",
                "gradient_clip_val",
            ]),
        K::number("router_aux_loss_coef", Limits::from(0.0).to(100.0), |train| {
            &mut train.spec.router_aux_loss_coef
        })
        .means("Factor on transformers' loss that spreads tokens over experts; routers stay frozen; 0: no such loss.")
        .also(&["aux_loss_coef", "moe_aux_loss_coeff", "router_aux_loss_coefficient"])
        .added(),
        // A run that ends at its first divergence has the adapter that it would have with any other choice.
        K::parsed("on_divergence", |train| &mut train.on_divergence)
            .bookkeeping_unless(|train| train.on_divergence != Choice::Stop)
            .means("What happens when a loss or gradient is not finite: end the run, leave the step out, or go back.")
            .also(&["skip_nan", "skip_nan_steps", "nan_policy", "on_nan"]),
        K::integer("divergence_patience", 0..=1_000_000, |train| &mut train.divergence_patience)
            .optional("3")
            .means("How many diverged steps in a row (skip) or returns to one place (rollback) are tolerated."),
        K::integer("rollback_steps", 1..=1_000_000_000, |train| &mut train.rollback_steps)
            .optional("50")
            .means("Steps between the places that \"rollback\" can go back to."),
        // Recomputing a layer gives the same bits as saving its activations.
        K::parsed("memory_budget", |train| &mut train.memory_budget)
            .bookkeeping()
            .optional("the memory that is free")
            .means("Memory that the run may use; with less, more activations are recomputed."),
        K::parsed("host_memory_budget", |train| &mut train.host_memory_budget)
            .bookkeeping()
            .optional("the memory that is free")
            .means("Host memory in which layers and saved inputs may wait that are not held on a GPU."),
        // The same numbers come back.
        K::parsed("saved_inputs", |train| &mut train.spec.saved_inputs)
            .bookkeeping()
            .means("Where the inputs of recomputed layers wait: device; host: in host memory beside a GPU; auto: as fits.")
            .also(&["activation_offloading", "offload_activations"]),
        K::integer("logging_steps", 1..=LARGEST_STEP, |train| &mut train.spec.logging_steps)
            .bookkeeping()
            .means("Optimizer steps between two lines of metrics.jsonl.")
            .also(&["log_steps", "log_every", "log_every_n_steps", "log_interval", "steps_per_report"]),
        // Evaluating reads the adapter and leaves it as it was.
        K::integer("eval_steps", 1..=LARGEST_STEP, |train| &mut train.spec.eval_steps)
            .bookkeeping()
            .means("Optimizer steps between two evaluations of the held-out rows.")
            .also(&[
                "eval_interval",
                "steps_per_eval",
                "evals_per_epoch",
                "evaluation_steps",
                "eval_every",
                "eval_frequency",
                "eval_strategy",
                "evaluation_strategy",
            ]),
        K::integer("save_steps", 1..=LARGEST_STEP, |train| &mut train.spec.save_steps)
            .bookkeeping()
            .means("Optimizer steps between two checkpoints.")
            .also(&[
                "save_every",
                "saves_per_epoch",
                "checkpoint_steps",
                "save_interval",
                "save_frequency",
                "save_strategy",
                "checkpointing_steps",
            ]),
        K::count("save_total_limit", 1..=1_000_000, |train| &mut train.spec.save_total_limit)
            .bookkeeping()
            .means("Checkpoints to keep; the best and the newest are always kept.")
            .also(&["max_checkpoints", "keep_checkpoints", "keep_last", "save_limit"]),
    ],
    checks: &[report_no_end, report_two_warmups, report_no_floor, report_empty_lanes, report_idle],
    ..KeyTable::NEW
};

/// `[train.local]`.
#[derive(Default)]
pub(crate) struct Local {
    steps: Option<u64>,
}

pub(crate) static LOCAL: KeyTable<Local> = KeyTable {
    path: "train.local",
    meaning: "Makes each lane a worker that trains by itself, and averages the workers now and then; without this table lanes \
              are added in every step.",
    also: &["diloco", "local_sgd"],
    keys: &[Key::integer("steps", 1..=1_000_000, |local: &mut Local| &mut local.steps)
        .optional("required in this table")
        .means("Optimizer steps of each lane between two averages of adapters and moments.")
        .also(&["inner_steps", "sync_every"])],
    checks: &[report_no_local_steps],
    added: true,
    ..KeyTable::NEW
};

fn report_no_local_steps(table: &mut TableReader<'_, '_>, local: &Local) {
    if table.is_present() && local.steps.is_none() && table.place_of("steps").is_none() {
        let message = "missing key `train.local.steps`";
        let problem = Problem::new("recipe::missing_key", table.header(), message).label("no `steps`");
        table.report_missing(&["steps"], problem.help("write `steps = 20` under `[train.local]`"));
    }
}

/// Evaluations, checkpoints and divergence between two averages.
fn report_within_rounds(table: &mut TableReader<'_, '_>, spec: &Spec) {
    let Some(steps) = spec.local_steps else { return };
    for (key, every) in [("eval_steps", spec.eval_steps), ("save_steps", spec.save_steps)] {
        if !every.is_multiple_of(steps) {
            let place = table.place_of(key).unwrap_or_else(|| table.header());
            let message =
                format!("`train.{key}` is {every}, and lanes are averaged every {steps} steps alone");
            let help = format!("set it to a multiple of `train.local.steps`, {steps}");
            table.report(Problem::new("recipe::contradiction", place, message).help(help));
        }
    }
    if spec.on_divergence != OnDivergence::Stop
        && let Some(place) = table.place_of("on_divergence")
    {
        let message = "with `[train.local]` a run ends at a step that diverges";
        table.report(Problem::new("recipe::contradiction", place, message).help("remove `on_divergence`"));
    }
}

impl Spec {
    /// Reads the `[train]` table; `None` if it names no learning rate.
    pub fn read(table: &mut TableReader<'_, '_>) -> Option<Self> {
        let Draft {
            spec,
            learning_rate,
            min_lr_rate,
            warmup_ratio,
            warmup_steps,
            on_divergence,
            divergence_patience,
            rollback_steps,
            memory_budget,
            host_memory_budget,
        } = TABLE.read(table);
        let local_steps =
            table.table("local", |local| LOCAL.read(local).steps.filter(|_| local.is_present()));
        let warmup = match (warmup_steps, warmup_ratio) {
            (Some(steps), _) => Warmup::Steps(steps),
            (None, ratio) => Warmup::Ratio(ratio.unwrap_or(WARMUP_RATIO)),
        };
        let spec = Self {
            local_steps,
            learning_rate: learning_rate?,
            min_lr_rate: min_lr_rate.unwrap_or(0.0),
            warmup,
            on_divergence: OnDivergence::of(on_divergence, divergence_patience, rollback_steps),
            memory_budget: memory_budget.map(|Bytes(bytes)| bytes),
            host_memory_budget: host_memory_budget.map(|Bytes(bytes)| bytes),
            ..spec
        };
        report_within_rounds(table, &spec);
        Some(spec)
    }

    /// Writes the table.
    pub fn write(&self, writer: &mut Writer) {
        let spec = self.clone();
        let (warmup_ratio, warmup_steps) = match spec.warmup {
            Warmup::Ratio(ratio) => (Some(ratio), None),
            Warmup::Steps(steps) => (None, Some(steps)),
        };
        let (on_divergence, divergence_patience, rollback_steps) = spec.on_divergence.keys();
        let mut draft = Draft {
            learning_rate: Some(spec.learning_rate),
            min_lr_rate: spec.lr_scheduler.has_floor().then_some(spec.min_lr_rate),
            memory_budget: spec.memory_budget.map(Bytes),
            host_memory_budget: spec.host_memory_budget.map(Bytes),
            spec,
            warmup_ratio,
            warmup_steps,
            on_divergence,
            divergence_patience,
            rollback_steps,
        };
        TABLE.write(&mut draft, writer);
        if let Some(steps) = self.local_steps {
            LOCAL.write(&mut Local { steps: Some(steps) }, writer);
        }
    }
}

/// A size such as `"12GiB"`.
impl Parsed for Bytes {
    fn expected() -> String {
        "size such as \"12GiB\"".to_owned()
    }

    fn schema() -> serde_json::Value {
        serde_json::json!({"type": "string", "pattern": "^ *[0-9.]+ *([kKMGT]B|[KMGT]iB|B) *$"})
    }

    fn read(value: &Value) -> Shaped<Self> {
        let error = |message: &str| {
            let help = "write it as \"12GiB\", \"800MiB\" or \"16GB\"";
            vec![ValueError::new(value, message, "not a size").help(help)]
        };
        match &value.kind {
            Kind::String(text) => match Self::parse(text) {
                Some(bytes) if bytes.0 > 0 => Ok(bytes),
                _ => Err(error("expected a size above zero, with a unit")),
            },
            Kind::Broken => Err(Vec::new()),
            _ => Err(error("expected a size with a unit, as a string")),
        }
    }

    fn written(&self) -> String {
        format!("{} B", self.0).written()
    }
}

fn report_no_end(table: &mut TableReader<'_, '_>, _: &Draft) {
    if table.place_of("epochs").is_none() && table.place_of("max_steps").is_none() {
        let problem = Problem::new(
            "recipe::missing_key",
            table.header(),
            "nothing says when training ends: missing key `train.epochs` or `train.max_steps`",
        )
        .label("neither `epochs` nor `max_steps`")
        .help("write `epochs = 1` or `max_steps = 1000` under `[train]`");
        table.report_missing(&["epochs", "max_steps"], problem);
    }
}

fn report_two_warmups(table: &mut TableReader<'_, '_>, _: &Draft) {
    if let (Some(ratio), Some(steps)) = (table.place_of("warmup_ratio"), table.place_of("warmup_steps")) {
        let problem = Problem::new(
            "recipe::contradiction",
            steps,
            "`warmup_steps` and `warmup_ratio` both set the warm-up",
        )
        .label("in steps")
        .also(ratio, "and as a share")
        .help("keep one of them");
        table.report(problem);
    }
}

/// `cosine_with_min_lr` without its floor, which transformers refuses too.
fn report_no_floor(table: &mut TableReader<'_, '_>, train: &Draft) {
    let Some(place) = table.place_of("lr_scheduler") else { return };
    if train.spec.lr_scheduler == LrScheduler::CosineWithMinLr && train.min_lr_rate.is_none() {
        let message = "`cosine_with_min_lr` needs `min_lr_rate`, the share of the peak rate that it ends at";
        let problem = Problem::new("recipe::missing_key", place, message);
        table.report(
            problem.label("`min_lr_rate` is missing").help("write `min_lr_rate = 0.1` under `[train]`"),
        );
    }
}

/// More lanes than any step has micro-batches for.
fn report_empty_lanes(table: &mut TableReader<'_, '_>, train: &Draft) {
    let (lanes, micro_batches) = (train.spec.lanes, train.spec.gradient_accumulation_steps);
    let Some(place) = table.place_of("lanes").filter(|_| lanes > micro_batches) else { return };
    let message =
        format!("{lanes} lanes for {micro_batches} micro-batches a step: some lanes would never have one");
    let help = format!("set `train.gradient_accumulation_steps` to {lanes} or more, or lower `lanes`");
    table.report(
        Problem::new("recipe::contradiction", place, message).label("more than micro-batches").help(help),
    );
}

/// Keys that have no effect beside this `on_divergence` or `lr_scheduler`.
fn report_idle(table: &mut TableReader<'_, '_>, train: &Draft) {
    let (choice, scheduler) = (train.on_divergence, train.spec.lr_scheduler);
    for (key, has_effect, condition, remedy) in [
        (
            "divergence_patience",
            choice != Choice::Stop,
            "`on_divergence` is \"skip\" or \"rollback\"",
            "remove it, or set `on_divergence`",
        ),
        (
            "rollback_steps",
            choice == Choice::Rollback,
            "`on_divergence` is \"rollback\"",
            "remove it, or set `on_divergence`",
        ),
        (
            "min_lr_rate",
            scheduler.has_floor(),
            "`lr_scheduler` is \"cosine_with_min_lr\" or \"warmup_stable_decay\"",
            "remove it, or set `lr_scheduler`",
        ),
        (
            "decay_steps",
            scheduler == LrScheduler::WarmupStableDecay,
            "`lr_scheduler` is \"warmup_stable_decay\"",
            "remove it, or set `lr_scheduler`",
        ),
    ] {
        let Some(place) = table.place_of(key).filter(|_| !has_effect) else { continue };
        let message = format!("`train.{key}` has an effect only when {condition}");
        table.report(
            Problem::new("recipe::contradiction", place, message).label("has no effect here").help(remedy),
        );
    }
}
