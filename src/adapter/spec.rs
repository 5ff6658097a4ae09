//! The `[adapter.lora]` table of a recipe, as a typed value.

use std::path::PathBuf;

/// LoRA as Hu et al. 2021 define it, with the options PEFT gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Rows of A, columns of B.
    pub rank: usize,
    /// Numerator of the scaling.
    pub alpha: f64,
    /// Probability of zeroing an input element of A, in `[0, 1)`.
    pub dropout: f64,
    /// The projections that get an adapter.
    pub target_modules: TargetModules,
    /// Scaling alpha/√rank instead of alpha/rank.
    pub use_rslora: bool,
    /// Module pattern → rank, in the order written; the first match wins.
    pub rank_pattern: Vec<(String, usize)>,
    /// Module pattern → alpha, in the order written; the first match wins.
    pub alpha_pattern: Vec<(String, f64)>,
    /// A PEFT adapter folder to start from.
    pub init_from: Option<PathBuf>,
}

/// Which projections get an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetModules {
    /// Every linear projection of the decoder layers; never the output head.
    AllLinear,
    /// Module names: exact paths, or their last components.
    Names(Vec<String>),
    /// A regular expression that must match a whole module path.
    Pattern(String),
}
