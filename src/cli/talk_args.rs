//! What can be typed after `generate`, `chat` and `eval`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::args::{Dtype, OutputArguments};
use crate::data::spec::Format;
use crate::generate::Sampling;
use crate::model::FloatDtype;
use crate::model::spec::ComputeDtype;
use crate::recipe::DeviceSpec;
use crate::run::voice::{Choice, Quantize};
use crate::units::Bytes;

/// Which model.
#[derive(Debug, Args)]
pub struct ModelArguments {
    /// The base model: a folder, or a hub id looked up in the local cache [default: the one the adapter or its run
    /// names]
    #[arg(long, value_name = "FOLDER|ID")]
    pub base: Option<String>,
    /// A branch, tag or commit of the hub id
    #[arg(long, requires = "base")]
    pub revision: Option<String>,
    /// An adapter's folder; or a finished run's, which also says what its base is and how it is held
    #[arg(long, value_name = "FOLDER")]
    pub adapter: Option<PathBuf>,
    /// How the base is held in memory [default: as the adapter was trained on it; without one, as it is stored]
    #[arg(long, value_enum, value_name = "HOW")]
    pub quantize: Option<QuantizeArgument>,
    /// What the matmuls run in [default: the run's; without one, the checkpoint's own where that is fast]
    #[arg(long, value_name = "DTYPE")]
    pub compute_dtype: Option<Dtype>,
    /// What to compute on: auto, cpu, cuda, cuda:N, vulkan, vulkan:N, metal [default: the run's; without one, auto]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceSpec>,
    /// Most memory the model may take, as in 6GiB; one that would take more is not loaded [default: what is free, less a
    /// tenth]
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    pub memory_budget: Option<u64>,
}

/// `--quantize`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum QuantizeArgument {
    /// 4 bits a weight, as QLoRA trains on
    Nf4,
    /// As it is stored
    None,
}

impl ModelArguments {
    /// What is meant.
    pub(super) fn choice(&self) -> Choice<'_> {
        Choice {
            base: self.base.as_deref(),
            revision: self.revision.as_deref(),
            adapter: self.adapter.as_deref(),
            quantize: match self.quantize {
                None => Quantize::Auto,
                Some(QuantizeArgument::Nf4) => Quantize::Nf4,
                Some(QuantizeArgument::None) => Quantize::No,
            },
            compute_dtype: self.compute_dtype.map(|dtype| match FloatDtype::from(dtype) {
                FloatDtype::F32 => ComputeDtype::F32,
                FloatDtype::Bf16 => ComputeDtype::Bf16,
                FloatDtype::F16 => ComputeDtype::F16,
            }),
            device: self.device,
            memory_budget: self.memory_budget,
        }
    }
}

/// A size with its unit.
fn memory(text: &str) -> Result<u64, String> {
    match Bytes::parse(text) {
        Some(Bytes(bytes)) if bytes > 0 => Ok(bytes),
        _ => Err("expected a size with its unit, as in 800MiB or 6GiB".into()),
    }
}

/// How an answer is made.
#[derive(Debug, Args)]
pub struct SamplingArguments {
    /// Longest answer, in tokens
    #[arg(long, default_value_t = 512, value_name = "COUNT", value_parser = length)]
    pub max_new_tokens: usize,
    /// Divides the logits; 0: always the likeliest token
    #[arg(long, default_value_t = 0.0, value_parser = temperature)]
    pub temperature: f64,
    /// Draw from so many tokens; 0: from all
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    pub top_k: usize,
    /// Draw from the fewest tokens that together have this probability
    #[arg(long, default_value_t = 1.0, value_name = "SHARE", value_parser = positive_share)]
    pub top_p: f64,
    /// Draw from tokens that have this share of the likeliest one's probability
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", value_parser = share)]
    pub min_p: f64,
    /// Above 1: tokens that were there before become less likely, also where nothing is drawn
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR", value_parser = penalty)]
    pub repetition_penalty: f64,
    /// Seeds the draws: the same seed, prompt and model give the same answer
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// A text that ends the answer and is not part of it (repeatable)
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
}

impl SamplingArguments {
    /// For an answer that these tokens end.
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

/// Arguments of `tune generate`.
#[derive(Debug, Args)]
pub struct GenerateArguments {
    /// What to answer [default: standard input, to its end]
    #[arg(conflicts_with = "prompts")]
    pub prompt: Option<String>,
    /// A file of prompts, one JSON object a line with `prompt` or `messages`; each is answered by a line
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// Write the lines here instead of to standard output: all of them, or none
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Go on from the text as it stands, without a chat template
    #[arg(long)]
    pub raw: bool,
    /// A system message before each `prompt`
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    pub system: Option<String>,
    /// Tell on standard error how fast it was
    #[arg(short, long)]
    pub verbose: bool,
    /// For programs.
    #[command(flatten)]
    pub output: OutputArguments,
    /// The model.
    #[command(flatten, next_help_heading = "The model")]
    pub model: ModelArguments,
    /// The answer.
    #[command(flatten, next_help_heading = "The answer")]
    pub sampling: SamplingArguments,
}

/// Arguments of `tune chat`.
#[derive(Debug, Args)]
pub struct ChatArguments {
    /// A system message to begin with
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Tell after each answer, on standard error, how fast it was
    #[arg(short, long)]
    pub verbose: bool,
    /// For programs.
    #[command(flatten)]
    pub output: OutputArguments,
    /// The model.
    #[command(flatten, next_help_heading = "The model")]
    pub model: ModelArguments,
    /// The answer.
    #[command(flatten, next_help_heading = "The answers")]
    pub sampling: SamplingArguments,
}

/// A length above zero.
fn length(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(length @ 1..=1_048_576) => Ok(length),
        _ => Err("expected a whole number from 1 to 1048576".into()),
    }
}

fn number(text: &str, is_right: impl Fn(f64) -> bool, expected: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if is_right(value) => Ok(value),
        _ => Err(format!("expected a number {expected}")),
    }
}

fn temperature(text: &str) -> Result<f64, String> {
    number(text, |value| (0.0..=100.0).contains(&value), "from 0 to 100")
}

fn share(text: &str) -> Result<f64, String> {
    number(text, |value| (0.0..=1.0).contains(&value), "from 0 to 1")
}

fn positive_share(text: &str) -> Result<f64, String> {
    number(text, |value| value > 0.0 && value <= 1.0, "above 0, at most 1")
}

fn penalty(text: &str) -> Result<f64, String> {
    number(text, |value| value > 0.0 && value <= 100.0, "above 0, at most 100")
}

/// Arguments of `tune eval`.
#[derive(Debug, Args)]
pub struct EvalArguments {
    /// A finished run's folder, or a recipe: its held-out rows and its model
    #[arg(value_name = "RUN|RECIPE")]
    pub subject: Option<PathBuf>,
    /// Evaluate on this file, or on all that a glob names, instead
    #[arg(long, value_name = "PATH", requires = "format")]
    pub data: Option<String>,
    /// The shape of its records
    #[arg(long, value_name = "FORMAT", requires = "data")]
    pub format: Option<FormatArgument>,
    /// A field of the format that has another name there: `--field completion=answer` (repeatable)
    #[arg(long, value_name = "OURS=THEIRS", requires = "data", value_parser = pair)]
    pub field: Vec<(String, String)>,
    /// Rows at most, the first
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Write each row here, one JSON object a line: its loss, and what was answered
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// For programs.
    #[command(flatten)]
    pub output: OutputArguments,
    /// The model.
    #[command(flatten, next_help_heading = "The model")]
    pub model: ModelArguments,
    /// Also answer every row's prompt, and hold what is found in the answer against what is found in the known one
    #[arg(long, help_heading = "Exact match")]
    pub exact_match: bool,
    /// What finds it: a regular expression, whose first group counts where it has one
    #[arg(
        long,
        value_name = "REGEX",
        requires = "exact_match",
        default_value = crate::run::evaluate::GSM8K_ANSWER,
        help_heading = "Exact match"
    )]
    pub extract: String,
    /// Put prompts that are texts as what a user says, by the chat template; else they stand as in training
    #[arg(long, requires = "exact_match", help_heading = "Exact match")]
    pub chat: bool,
    /// Longest answer, in tokens
    #[arg(
        long,
        default_value_t = 512,
        value_name = "COUNT",
        value_parser = length,
        requires = "exact_match",
        help_heading = "Exact match"
    )]
    pub max_new_tokens: usize,
    /// A text that ends an answer (repeatable)
    #[arg(long, value_name = "TEXT", requires = "exact_match", help_heading = "Exact match")]
    pub stop: Vec<String>,
}

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FormatArgument {
    /// Conversations
    Messages,
    /// instruction, input, output
    Alpaca,
    /// prompt, completion
    PromptCompletion,
    /// text
    Text,
    /// input_ids, labels
    Tokens,
}

impl From<FormatArgument> for Format {
    fn from(format: FormatArgument) -> Self {
        match format {
            FormatArgument::Messages => Self::Messages,
            FormatArgument::Alpaca => Self::Alpaca,
            FormatArgument::PromptCompletion => Self::PromptCompletion,
            FormatArgument::Text => Self::Text,
            FormatArgument::Tokens => Self::Tokens,
        }
    }
}

/// `ours=theirs`.
fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((ours, theirs)) if !ours.is_empty() && !theirs.is_empty() => Ok((ours.into(), theirs.into())),
        _ => Err("expected OURS=THEIRS, as in completion=answer".into()),
    }
}
