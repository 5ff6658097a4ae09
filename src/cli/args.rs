//! Arguments that several commands share, and the parsers of their values.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::failure::Failure;
use crate::files::{Existing, shell};
use crate::generate::Sampling;
use crate::model::spec::ComputeDtype;
use crate::recipe::{self, DeviceSpec, RecipeFile};
use crate::run;
use crate::run::adapters::BaseChoice;
use crate::run::inference::{ModelChoice, Quantize};
use crate::run::named::Named;
use crate::units::Bytes;

/// `ours=theirs`.
pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((ours, theirs)) if !ours.is_empty() && !theirs.is_empty() => Ok((ours.into(), theirs.into())),
        _ => Err("expected OURS=THEIRS, as in completion=answer".into()),
    }
}

/// Output for programs; valid before and after every command.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct OutputArguments {
    /// Write one JSON event per line to standard output, and nothing else
    #[arg(long, global = true)]
    pub json: bool,
    /// Also write problems to standard error in the format of a CI system
    #[arg(long, value_enum, value_name = "SYSTEM", global = true)]
    pub annotations: Option<Annotations>,
}

/// A CI system that shows problems beside the lines they belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Annotations {
    /// GitHub Actions: `::error file=…,line=…::…`
    Github,
}

/// A recipe and changes to it.
#[derive(Debug, Args)]
pub struct RecipeArguments {
    /// The recipe, a TOML file
    pub recipe: PathBuf,
    /// Change one key, as in `--set train.learning_rate=1e-4` (repeatable; VALUE is TOML, else a string)
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    pub overrides: Vec<String>,
}

impl RecipeArguments {
    /// Opens the recipe with its changes; that of `--device` comes last.
    ///
    /// # Errors
    /// As [`RecipeFile::open`].
    pub fn open(&self, device: Option<DeviceSpec>) -> Result<RecipeFile, recipe::Error> {
        let mut overrides = self.overrides.clone();
        overrides.extend(device.map(|device| format!("device=\"{device}\"")));
        RecipeFile::open(&self.recipe, &overrides)
    }

    /// A command on this recipe with the same changes, as it can be typed.
    pub(super) fn typed(&self, name: &str, device: DeviceArguments, flags: &[&str]) -> String {
        let mut words = vec!["tune".to_owned(), name.to_owned(), self.recipe.to_string_lossy().into_owned()];
        for change in &self.overrides {
            words.extend(["--set".to_owned(), change.clone()]);
        }
        if let Some(device) = device.device {
            words.extend(["--device".to_owned(), device.to_string()]);
        }
        words.extend(flags.iter().map(|flag| (*flag).to_owned()));
        shell::command(words)
    }
}

/// The device of a command that takes a recipe.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct DeviceArguments {
    /// The device: auto, cpu, cuda, cuda:N, vulkan, vulkan:N, metal [default: the recipe's `device`]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceSpec>,
}

/// The base of an adapter.
#[derive(Debug, Args)]
pub struct BaseArguments {
    /// The base model: a folder, or a hub id in the local cache [default: the base that the adapter names]
    #[arg(long, value_name = "FOLDER|ID")]
    pub base: Option<String>,
    /// A branch, tag or commit of the hub id
    #[arg(long, requires = "base")]
    pub revision: Option<String>,
}

impl BaseArguments {
    pub(super) fn choice(&self) -> BaseChoice<'_> {
        BaseChoice { base: self.base.as_deref(), revision: self.revision.as_deref() }
    }
}

/// The folder that a command writes.
#[derive(Debug, Args)]
pub struct FolderArguments {
    /// The folder to write
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// Replace the folder if it exists
    #[arg(long)]
    pub overwrite: bool,
}

impl FolderArguments {
    pub(super) fn existing(&self) -> Existing {
        if self.overwrite { Existing::Replace } else { Existing::Refuse }
    }
}

/// The model of `generate`, `chat` and `eval`.
#[derive(Clone, Debug, PartialEq, Args)]
pub struct ModelArguments {
    /// The base model: a folder, or a hub id in the local cache [default: the base that the adapter or run names]
    #[arg(long, value_name = "FOLDER|ID")]
    pub base: Option<String>,
    /// A branch, tag or commit of the hub id
    #[arg(long, requires = "base")]
    pub revision: Option<String>,
    /// The folder of an adapter or of a finished run; a run also provides base and quantization
    #[arg(long, value_name = "FOLDER")]
    pub adapter: Option<PathBuf>,
    /// Storage of the base model in memory [default: as in the adapter's training; without an adapter, as stored]
    #[arg(long, value_enum, value_name = "HOW")]
    pub quantize: Option<Quantize>,
    /// Compute dtype [default: the run's; without a run, the checkpoint's dtype if the device multiplies it natively]
    #[arg(long, value_enum, value_name = "DTYPE")]
    pub compute_dtype: Option<ComputeDtype>,
    /// The device: auto, cpu, cuda, cuda:N, vulkan, vulkan:N, metal [default: the run's; without a run, auto]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceSpec>,
    /// Memory limit, as in 6GiB; a model that needs more is not loaded [default: 90 % of the free memory]
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    pub memory_budget: Option<u64>,
}

impl ModelArguments {
    /// These, with the model that the first argument of the command names.
    pub(super) fn naming(&self, first: Option<&str>, hub_cache: &Path) -> Result<Self, Failure> {
        let mut model = self.clone();
        let Some(text) = first else { return Ok(model) };
        let twice = |option: &str| {
            let message = format!("`{text}` and `{option}` both name the model: leave one of them out");
            Failure::Run(run::Error::Choice(message))
        };
        match Named::of(text, hub_cache) {
            Some(Named::Run(_) | Named::Adapter(_)) if self.adapter.is_some() => {
                return Err(twice("--adapter"));
            }
            Some(Named::Run(folder) | Named::Adapter(folder)) => model.adapter = Some(folder),
            Some(Named::Base(_)) if self.base.is_some() => return Err(twice("--base")),
            Some(Named::Base(base)) => model.base = Some(base),
            None => {
                let message = format!(
                    "no model given: `{text}` is neither a run, an adapter nor a model on this machine; add \
                     `--adapter RUN` or `--base MODEL`"
                );
                return Err(Failure::Run(run::Error::Choice(message)));
            }
        }
        Ok(model)
    }

    pub(super) fn choice(&self) -> ModelChoice<'_> {
        ModelChoice {
            base: self.base.as_deref(),
            revision: self.revision.as_deref(),
            adapter: self.adapter.as_deref(),
            quantize: self.quantize.unwrap_or_default(),
            compute_dtype: self.compute_dtype,
            device: self.device,
            memory_budget: self.memory_budget,
        }
    }
}

/// How tokens of an answer are chosen.
#[derive(Debug, Args)]
pub struct SamplingArguments {
    /// Longest answer, in tokens
    #[arg(long, default_value_t = 512, value_name = "COUNT", value_parser = length)]
    pub max_new_tokens: usize,
    /// Divisor of the logits; 0 always chooses the most likely token
    #[arg(long, default_value_t = 0.0, value_parser = temperature)]
    pub temperature: f64,
    /// Sample from this many of the most likely tokens; 0: from all
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    pub top_k: usize,
    /// Sample from the smallest set of tokens with this total probability
    #[arg(long, default_value_t = 1.0, value_name = "SHARE", value_parser = positive_share)]
    pub top_p: f64,
    /// Sample from tokens with at least this share of the most likely token's probability
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", value_parser = share)]
    pub min_p: f64,
    /// Above 1: makes tokens that occurred before less likely, at temperature 0 too
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR", value_parser = penalty)]
    pub repetition_penalty: f64,
    /// Seed of the sampling; the same seed, prompt and model give the same answer
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// A text that ends the answer and is left out of it (repeatable)
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
}

impl SamplingArguments {
    /// The settings for a model whose answers end with one of these tokens.
    pub(super) fn sampling(&self, end_tokens: &[u32]) -> Sampling {
        Sampling {
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            answer: 0,
            stop_tokens: end_tokens.to_vec(),
        }
    }
}

/// A length in tokens, above zero.
pub(super) fn length(text: &str) -> Result<usize, String> {
    whole(text, 1_048_576)
}

/// A whole number from 1 to `most`.
pub(super) fn whole(text: &str, most: usize) -> Result<usize, String> {
    match text.parse() {
        Ok(value) if (1..=most).contains(&value) => Ok(value),
        _ => Err(format!("expected a whole number from 1 to {most}")),
    }
}

/// A number that `is_valid` accepts; `expected` describes those.
pub(super) fn number(text: &str, is_valid: impl Fn(f64) -> bool, expected: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if is_valid(value) => Ok(value),
        _ => Err(format!("expected a number {expected}")),
    }
}

/// Gigabytes above 0, as bytes.
pub(super) fn gigabytes(text: &str) -> Result<u64, String> {
    match text.parse::<f64>() {
        Ok(size) if size > 0.0 && size <= 1e6 => Ok((size * 1e9) as u64),
        _ => Err("expected gigabytes above 0".into()),
    }
}

/// A size with its unit, as bytes.
pub(super) fn memory(text: &str) -> Result<u64, String> {
    match Bytes::parse(text) {
        Some(Bytes(bytes)) if bytes > 0 => Ok(bytes),
        _ => Err("expected a size with its unit, as in 800MiB or 6GiB".into()),
    }
}

fn temperature(text: &str) -> Result<f64, String> {
    number(text, |value| (0.0..=100.0).contains(&value), "from 0 to 100")
}

fn share(text: &str) -> Result<f64, String> {
    number(text, |value| (0.0..=1.0).contains(&value), "from 0 to 1")
}

/// A share above 0.
pub(super) fn positive_share(text: &str) -> Result<f64, String> {
    number(text, |value| value > 0.0 && value <= 1.0, "above 0, at most 1")
}

fn penalty(text: &str) -> Result<f64, String> {
    number(text, |value| value > 0.0 && value <= 100.0, "above 0, at most 100")
}
