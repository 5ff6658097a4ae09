//! The `[train]` table of a recipe, as a typed value.

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
