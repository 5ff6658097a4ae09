//! What can be typed: the commands, their options and their help. Nothing is computed here.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::model::FloatDtype;
use crate::recipe::DeviceSpec;

use super::adapter_args::{ExportArguments, MergeArguments, VerifyArguments};
use super::download::DownloadArguments;
use super::import::ImportArguments;
use super::quantize::QuantizeArguments;
use super::talk_args::{ChatArguments, EvalArguments, GenerateArguments};

/// Fine-tune an open-weight language model on one machine, from one recipe.
#[derive(Debug, Parser)]
#[command(
    name = "tune",
    version,
    arg_required_else_help = true,
    after_help = "Start here:\n  tune cp quickstart demo && cd demo && tune run quickstart.toml\n\n\
                  Exit codes: 0 done, 1 other error, 2 command line or recipe, 3 data, 4 resources, 5 diverged,\n\
                  6 gate failed, 130 interrupted, 143 terminated."
)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train the adapter that a recipe describes
    Run(RunArguments),
    /// Check recipe, model, tokenizer, data and targets; train nothing, write nothing
    Validate(ValidateArguments),
    /// Show, row by row, what the model will see and which tokens are supervised
    Inspect(InspectArguments),
    /// Train a finished run again and tell whether the adapter comes out the same, byte for byte
    Reproduce(ReproduceArguments),
    /// Write what a run folder tells as one HTML page that needs no network
    Report(ReportArguments),
    /// Measure how fast this machine trains, and in how much memory
    Bench(BenchArguments),
    /// Answer prompts, with a base model or with an adapter on it
    Generate(GenerateArguments),
    /// Talk with a base model or with an adapter on it
    Chat(ChatArguments),
    /// Measure loss and exact match on held-out rows, of a base and of an adapter on it
    Eval(EvalArguments),
    /// List what can be computed on and what is missing, and try every op out on it
    Doctor(DoctorArguments),
    /// Fold an adapter into its base model, and prove that the result computes the same
    Merge(MergeArguments),
    /// Write a base model once in 4 bits, so that the runs on it start sooner
    Quantize(QuantizeArguments),
    /// Check that all of an adapter is used and does something, and show where it comes from
    Verify(VerifyArguments),
    /// Write an adapter, or a model as GGUF, as another program reads it
    Export(ExportArguments),
    /// Fetch a model into the Hugging Face cache; no other command opens the network
    Download(DownloadArguments),
    /// Make a recipe of an Axolotl, LLaMA-Factory, TRL, Unsloth or torchtune configuration
    Import(ImportArguments),
    /// List the bundled recipes
    Ls(OutputArguments),
    /// Copy a bundled recipe, with the model and data it needs, into a folder
    Cp(CopyArguments),
}

/// A recipe and changes to it.
#[derive(Debug, Args)]
pub struct RecipeArguments {
    /// The recipe, a TOML file
    pub recipe: PathBuf,
    /// Change one key: `--set train.learning_rate=1e-4` (repeatable; the value is TOML, else a string)
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    pub overrides: Vec<String>,
}

impl RecipeArguments {
    /// The changes to the recipe, that of `--device` last.
    pub fn overrides_with(&self, device: &DeviceArguments) -> Vec<String> {
        let mut overrides = self.overrides.clone();
        overrides.extend(device.device.map(|device| format!("device=\"{device}\"")));
        overrides
    }
}

/// What a command computes on.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct DeviceArguments {
    /// What to compute on: auto, cpu, cuda, cuda:N, vulkan, vulkan:N, metal [default: the recipe's `device`]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceSpec>,
}

/// How a command speaks to programs.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct OutputArguments {
    /// Write events as JSON, one a line, and nothing else on standard output
    #[arg(long)]
    pub json: bool,
    /// Also write problems to standard error as a CI system reads them
    #[arg(long, value_enum, value_name = "SYSTEM")]
    pub annotations: Option<Annotations>,
}

/// A CI system that shows problems beside the lines they belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Annotations {
    /// GitHub Actions: `::error file=…,line=…::…`
    Github,
}

/// Arguments of `tune run`.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// The recipe.
    #[command(flatten)]
    pub recipe: RecipeArguments,
    /// What to compute on.
    #[command(flatten)]
    pub device: DeviceArguments,
    /// Choose the micro-batches, up to the recipe's, that train fastest in the memory there is, with more accumulation
    /// instead: the same optimizer steps
    #[arg(long)]
    pub fit: bool,
    /// Go on with the run in the recipe's output folder from its newest checkpoint, if there is one
    #[arg(long)]
    pub resume: bool,
    /// With --resume: go on although recipe, base or data have changed; the adapter will say so
    #[arg(long, requires = "resume")]
    pub accept_changes: bool,
    /// Replace an earlier run in the recipe's output folder
    #[arg(long, conflicts_with = "resume")]
    pub overwrite: bool,
    /// Also write TensorBoard event files, into `tensorboard/` of the run folder
    #[arg(long)]
    pub tensorboard: bool,
    /// For programs.
    #[command(flatten)]
    pub output: OutputArguments,
}

/// Arguments of `tune validate`.
#[derive(Debug, Args)]
pub struct ValidateArguments {
    /// The recipe.
    #[command(flatten)]
    pub recipe: RecipeArguments,
    /// What to compute on.
    #[command(flatten)]
    pub device: DeviceArguments,
    /// Show the micro-batches that `tune run --fit` would choose
    #[arg(long)]
    pub fit: bool,
    /// For programs.
    #[command(flatten)]
    pub output: OutputArguments,
}

/// Arguments of `tune reproduce`.
#[derive(Debug, Args)]
pub struct ReproduceArguments {
    /// The folder of a finished run
    pub run: PathBuf,
    /// Where the new run goes; left out: a temporary folder, kept only when the adapters differ
    #[arg(long, value_name = "FOLDER")]
    pub output: Option<PathBuf>,
    /// For programs.
    #[command(flatten)]
    pub for_programs: OutputArguments,
}

/// Arguments of `tune report`.
#[derive(Debug, Args)]
pub struct ReportArguments {
    /// The folder of a run, finished or not
    pub run: PathBuf,
    /// The file to write [default: report.html in the run folder]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// For programs.
    #[command(flatten)]
    pub for_programs: OutputArguments,
}

/// Arguments of `tune inspect`.
#[derive(Debug, Args)]
pub struct InspectArguments {
    /// The recipe.
    #[command(flatten)]
    pub recipe: RecipeArguments,
    /// First row to show, counted from 0 over all datasets in the recipe's order
    #[arg(long, default_value_t = 0, value_name = "ROW")]
    pub row: u64,
    /// How many rows to show
    #[arg(short, long, default_value_t = 3, value_name = "COUNT")]
    pub n: u64,
    /// For programs.
    #[command(flatten)]
    pub output: OutputArguments,
}

/// Arguments of `tune bench`.
#[derive(Debug, Args)]
pub struct BenchArguments {
    /// A recipe: its base, adapter and micro-batches are measured, on random tokens
    #[arg(conflicts_with_all = ["shape", "rank", "micro_batch_size", "seq_len", "compute_dtype"])]
    pub recipe: Option<PathBuf>,
    /// Change one key of the recipe (repeatable)
    #[arg(long = "set", value_name = "KEY.PATH=VALUE", requires = "recipe")]
    pub overrides: Vec<String>,
    /// A model's shape, with random weights and no files: llama-3.2-1b, qwen2.5-0.5b, …
    #[arg(long, value_name = "NAME", default_value = "smollm2-135m")]
    pub shape: String,
    /// Rank of the adapters on all linear layers
    #[arg(long, default_value_t = 16, value_parser = rank)]
    pub rank: usize,
    /// Documents of a step
    #[arg(long, default_value_t = 4, value_name = "COUNT", value_parser = count)]
    pub micro_batch_size: usize,
    /// Tokens of a document
    #[arg(long, default_value_t = 256, value_name = "TOKENS", value_parser = count)]
    pub seq_len: usize,
    /// What the matmuls run in; left out: what is fastest here
    #[arg(long, value_name = "DTYPE")]
    pub compute_dtype: Option<Dtype>,
    /// What to compute on: auto, cpu, cuda, cuda:N, vulkan, vulkan:N, metal [default: the recipe's `device`, else auto]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceSpec>,
    /// Steps that are timed
    #[arg(long, default_value_t = 5, value_name = "COUNT", value_parser = count)]
    pub steps: usize,
    /// Steps before those
    #[arg(long, default_value_t = 1, value_name = "COUNT")]
    pub warmup: usize,
    /// Times every kernel of a GPU by itself, which makes each wait for the one before
    #[arg(long)]
    pub profile: bool,
    /// Tells how long so many tokens would take
    #[arg(long, default_value_t = 1_000_000, value_name = "COUNT")]
    pub tokens: u64,
    /// For programs.
    #[command(flatten)]
    pub output: OutputArguments,
}

/// Arguments of `tune doctor`.
#[derive(Debug, Args)]
pub struct DoctorArguments {
    /// Try this device alone: auto, cpu, cuda, cuda:N, vulkan, vulkan:N, metal [default: the processor and every GPU
    /// that it does not imitate]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceSpec>,
    /// For programs.
    #[command(flatten)]
    pub for_programs: OutputArguments,
}

/// A compute dtype on the command line.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Dtype {
    /// 32 bits.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl From<Dtype> for FloatDtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::Bf16,
            Dtype::F16 => Self::F16,
        }
    }
}

/// A count above zero, far from overflow.
fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=1_000_000) => Ok(count),
        _ => Err("expected a whole number from 1 to 1000000".into()),
    }
}

/// A rank above zero.
fn rank(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(rank @ 1..=4096) => Ok(rank),
        _ => Err("expected a whole number from 1 to 4096".into()),
    }
}

/// Arguments of `tune cp`.
#[derive(Debug, Args)]
pub struct CopyArguments {
    /// A name that `tune ls` shows
    pub name: String,
    /// The folder to write; it is created, and nothing in it is overwritten
    pub folder: PathBuf,
    /// For programs.
    #[command(flatten)]
    pub for_programs: OutputArguments,
}
