//! The `[train]` table of a recipe, as a typed value.

use std::ops::Bound;

use super::budget::Budget;
use super::divergence::OnDivergence;
use crate::document::{Problem, TableReader, Word, Writer, integer, number, word};

/// Steps and counts beyond this are slips; every sum of them stays far from overflow.
const LARGEST_STEP: u64 = 1_000_000_000_000;

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
    /// What ends the run before its last step.
    pub budget: Budget,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Shape of the learning rate over the run.
    pub lr_scheduler: LrScheduler,
    /// Steps of linear warm-up.
    pub warmup: Warmup,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Clip the global gradient norm to this; 0: no clipping.
    pub max_grad_norm: f64,
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
    const WORDS: &'static [(&'static str, Self)] =
        &[("constant", Self::Constant), ("linear", Self::Linear), ("cosine", Self::Cosine)];
    const ALIASES: &'static [(&'static str, &'static str)] =
        &[("constant_with_warmup", "constant"), ("cosine_with_warmup", "cosine"), ("none", "constant")];
}

impl Spec {
    /// Reads the `[train]` table; nothing, when it names no learning rate.
    pub fn read(table: &mut TableReader<'_, '_>) -> Option<Self> {
        let steps = || integer(1..=LARGEST_STEP);
        let epochs = table.key("epochs", number((Bound::Excluded(0.0), Bound::Included(1e6)))).optional();
        let max_steps = table.key("max_steps", steps()).optional();
        let budget = Budget::read(table);
        let micro_batch_size = table.key("micro_batch_size", integer(1..=65_536)).or(4);
        let accumulation = table.key("gradient_accumulation_steps", integer(1..=1_048_576)).or(1);
        let rates = (Bound::Excluded(0.0), Bound::Included(1.0));
        let learning_rate = table.key("learning_rate", number(rates)).required("2e-4");
        let lr_scheduler = table.key("lr_scheduler", word).or(LrScheduler::Cosine);
        let warmup_ratio = table.key("warmup_ratio", number(0.0..=1.0)).optional();
        let warmup_steps = table.key("warmup_steps", integer(0..=LARGEST_STEP)).optional();
        let weight_decay = table.key("weight_decay", number(0.0..=1.0)).or(0.0);
        let max_grad_norm = table.key("max_grad_norm", number(0.0..)).or(1.0);
        let on_divergence = OnDivergence::read(table);
        let logging_steps = table.key("logging_steps", steps()).or(1);
        let eval_steps = table.key("eval_steps", steps()).or(200);
        let save_steps = table.key("save_steps", steps()).or(200);
        let save_total_limit = table.key("save_total_limit", integer(1..=1_000_000)).or(3);
        report_no_end(table);
        report_two_warmups(table);
        let warmup = match (warmup_steps, warmup_ratio) {
            (Some(steps), _) => Warmup::Steps(steps),
            (None, ratio) => Warmup::Ratio(ratio.unwrap_or(0.03)),
        };
        Some(Self {
            epochs,
            max_steps,
            budget,
            micro_batch_size,
            gradient_accumulation_steps: accumulation,
            learning_rate: learning_rate?,
            lr_scheduler,
            warmup,
            weight_decay,
            max_grad_norm,
            on_divergence,
            logging_steps,
            eval_steps,
            save_steps,
            save_total_limit,
        })
    }

    /// Writes the table with every value.
    pub fn write(&self, writer: &mut Writer) {
        writer.table("train");
        writer.optional("epochs", self.epochs);
        writer.optional("max_steps", self.max_steps);
        self.budget.write(writer);
        writer.key("micro_batch_size", self.micro_batch_size);
        writer.key("gradient_accumulation_steps", self.gradient_accumulation_steps);
        writer.key("learning_rate", self.learning_rate);
        writer.key("lr_scheduler", self.lr_scheduler.word());
        match self.warmup {
            Warmup::Ratio(ratio) => writer.key("warmup_ratio", ratio),
            Warmup::Steps(steps) => writer.key("warmup_steps", steps),
        }
        writer.key("weight_decay", self.weight_decay);
        writer.key("max_grad_norm", self.max_grad_norm);
        self.on_divergence.write(writer);
        writer.bookkeeping("logging_steps", self.logging_steps);
        // Evaluating reads the adapter and leaves it as it was.
        writer.bookkeeping("eval_steps", self.eval_steps);
        writer.bookkeeping("save_steps", self.save_steps);
        writer.bookkeeping("save_total_limit", self.save_total_limit);
    }
}

fn report_no_end(table: &mut TableReader<'_, '_>) {
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

fn report_two_warmups(table: &mut TableReader<'_, '_>) {
    if let (Some(ratio), Some(steps)) = (table.place_of("warmup_ratio"), table.place_of("warmup_steps")) {
        let problem = Problem::new(
            "recipe::contradiction",
            steps,
            "`warmup_steps` and `warmup_ratio` both say how long",
        )
        .label("so many steps")
        .also(ratio, "and so large a share")
        .help("keep one of them");
        table.report(problem);
    }
}
