//! `tune merge --combine`: several adapters of one base instead of one.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::json;

use super::args::positive_share;
use super::console::Console;
use super::lines::{line, next, note};
use super::style::{GOOD, paint};
use crate::export::combine::{Combination as Rule, Combined};
use crate::files::shell;
use crate::run::adapters::Combination;

/// Several adapters of one base instead of one.
#[derive(Debug, Args)]
#[command(next_help_heading = "Combining several adapters")]
pub struct CombineArguments {
    /// Adapter folders and their weights; a negative weight subtracts
    #[arg(
        long,
        value_name = "FOLDER=WEIGHT",
        num_args = 1..,
        value_parser = weighted,
        conflicts_with = "adapter",
        requires = "combine"
    )]
    pub adapters: Vec<(PathBuf, f64)>,
    /// The rule, as in PEFT's `add_weighted_adapter`
    #[arg(long, value_enum, value_name = "RULE", requires = "adapters")]
    pub combine: Option<CombineArgument>,
    /// Share of the values to keep, above 0 and at most 1; for ties, dare-linear and dare-ties
    #[arg(long, value_name = "SHARE", requires = "adapters", value_parser = positive_share)]
    pub density: Option<f64>,
    /// Seed of the values that dare-linear and dare-ties drop
    #[arg(long, default_value_t = 0, requires = "adapters")]
    pub seed: u64,
    /// Write the combined adapter instead of a merged model
    #[arg(long, requires = "adapters", conflicts_with_all = ["onto", "prompts", "recipe"])]
    pub as_adapter: bool,
}

/// `--combine`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CombineArgument {
    /// Weighted sums of A and of B; keeps the rank, adds cross terms
    Linear,
    /// Concatenation: the exact sum; ranks add up
    Cat,
    /// The largest values, merged by elected sign
    Ties,
    /// Values kept at random and rescaled, then as linear
    DareLinear,
    /// Values kept at random and rescaled, merged by elected sign
    DareTies,
}

impl CombineArguments {
    /// The requested combination, if there is one; `any_base` accepts adapters that name different bases.
    ///
    /// # Errors
    /// `--density` is missing, or given to a rule that keeps all values.
    pub(super) fn combination(&self, any_base: bool) -> Result<Option<Combination<'_>>, &'static str> {
        let Some(rule) = self.combine else { return Ok(None) };
        let with = |of: fn(f64) -> Rule| {
            self.density.map(of).ok_or(
                "`--combine` ties, dare-linear and dare-ties need `--density`, the share of values to keep",
            )
        };
        let combine = match rule {
            CombineArgument::Ties => with(Rule::Ties)?,
            CombineArgument::DareLinear => with(Rule::DareLinear)?,
            CombineArgument::DareTies => with(Rule::DareTies)?,
            CombineArgument::Linear | CombineArgument::Cat if self.density.is_some() => {
                return Err("`--combine` linear and cat keep all values; remove `--density`");
            }
            CombineArgument::Linear => Rule::Linear,
            CombineArgument::Cat => Rule::Cat,
        };
        Ok(Some(Combination { adapters: &self.adapters, combine, seed: self.seed, any_base }))
    }
}

/// A folder and its weight.
fn weighted(text: &str) -> Result<(PathBuf, f64), String> {
    let expected = "expected a folder and its weight, as in `runs/a/adapter=0.7`";
    let (folder, weight) = text.rsplit_once('=').ok_or(expected)?;
    match weight.parse::<f64>() {
        Ok(weight) if weight.is_finite() && weight != 0.0 && !folder.is_empty() => {
            Ok((folder.into(), weight))
        }
        Ok(_) => Err(format!("{expected}; the weight must be finite and not 0")),
        Err(_) => Err(expected.into()),
    }
}

/// The adapters, their weights and the rule.
pub(super) fn describe(
    combination: &Combination<'_>,
    notes: &[String],
    console: &mut Console<'_>,
) -> io::Result<()> {
    for (folder, weight) in combination.adapters {
        line(console.out(), "adapter", &format!("{weight:+} × {}", folder.display()))?;
    }
    line(console.out(), "combine", &combination.combine.to_string())?;
    for text in notes {
        note(console, text)?;
    }
    Ok(())
}

/// The result of `--as-adapter`.
pub(super) fn written(
    combination: &Combination<'_>,
    combined: &Combined,
    notes: &[String],
    out: &Path,
    console: &mut Console<'_>,
) -> io::Result<()> {
    describe(combination, notes, console)?;
    let folder = out.display();
    let (modules, rank) =
        (combined.targets.len(), combined.targets.iter().map(|target| target.rank).max().unwrap_or(0));
    console.event("result", &json!({"output_dir": folder.to_string(), "modules": modules, "rank": rank}));
    line(console.out(), "adapter", &format!("{modules} modules, rank {rank}"))?;
    line(console.out(), "combined", &paint(GOOD, &folder))?;
    let folder = out.to_string_lossy();
    let command = |words: &[&str]| shell::command(words);
    next(
        console.out(),
        &[
            ("check it", command(&["tune", "verify", &folder])),
            ("merge it into its base", command(&["tune", "merge", &folder, "--out", "merged"])),
        ],
    )
}
