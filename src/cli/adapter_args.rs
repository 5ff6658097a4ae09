//! What can be typed after `merge`, `verify` and `export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::args::{Dtype, OutputArguments};
use crate::export::Consumer;
use crate::export::combine::Combination;
use crate::export::gguf::FileType;
use crate::export::merge::Wanted;
use crate::model::FloatDtype;
use crate::recipe::DeviceSpec;

/// The base of an adapter.
#[derive(Debug, Args)]
pub struct BaseArguments {
    /// The base model: a folder, or a hub id looked up in the local cache [default: the one the adapter names]
    #[arg(long, value_name = "FOLDER|ID")]
    pub base: Option<String>,
    /// A branch, tag or commit of the hub id
    #[arg(long, requires = "base")]
    pub revision: Option<String>,
}

/// Arguments of `tune merge`.
#[derive(Debug, Args)]
pub struct MergeArguments {
    /// The adapter's folder
    #[arg(required_unless_present = "adapters")]
    pub adapter: Option<PathBuf>,
    /// Several.
    #[command(flatten)]
    pub combine: CombineArguments,
    /// The base.
    #[command(flatten)]
    pub base: BaseArguments,
    /// The folder to write
    #[arg(long)]
    pub out: PathBuf,
    /// The weights to fold the adapter into [default: original; of a 4-bit checkpoint, its dequantized ones]
    #[arg(long)]
    pub onto: Option<OntoArgument>,
    /// The dtype of the merged weights
    #[arg(long, default_value = "auto")]
    pub dtype: DtypeArgument,
    /// Compare on the lines of this file instead of rows that are found or made
    #[arg(long, value_name = "FILE", conflicts_with = "recipe")]
    pub prompts: Option<PathBuf>,
    /// Compare on the held-out rows of this recipe
    #[arg(long, value_name = "FILE")]
    pub recipe: Option<PathBuf>,
    /// Share of the adapter's effect that rounding may take before the merge is refused
    #[arg(long, value_name = "SHARE", default_value_t = crate::export::check::MAX_DIVERGENCE)]
    pub max_divergence: f64,
    /// Merge although the base's files are not the ones the adapter records (sizes and family still have to fit)
    #[arg(long)]
    pub allow_other_base: bool,
    /// What to compare on: auto, cpu, cuda, cuda:N, vulkan, vulkan:N, metal
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceSpec,
    /// Largest file of weights, in gigabytes
    #[arg(long, value_name = "GB", default_value_t = 5.0)]
    pub max_shard_gb: f64,
    /// Replace what is in the folder
    #[arg(long)]
    pub overwrite: bool,
    /// For programs.
    #[command(flatten)]
    pub for_programs: OutputArguments,
}

/// Several adapters of one base instead of one.
#[derive(Debug, Args)]
#[command(next_help_heading = "Several adapters of one base as one")]
pub struct CombineArguments {
    /// Folders and their weights; below zero takes away
    #[arg(long, value_name = "FOLDER=WEIGHT", num_args = 1.., value_parser = weighted, conflicts_with = "adapter", requires = "combine")]
    pub adapters: Vec<(PathBuf, f64)>,
    /// How they become one, as PEFT's `add_weighted_adapter` does it
    #[arg(long, value_name = "HOW", requires = "adapters")]
    pub combine: Option<CombineArgument>,
    /// Share of the values that is kept, above 0 and at most 1: for ties, dare-linear and dare-ties
    #[arg(long, value_name = "SHARE", requires = "adapters", value_parser = share)]
    pub density: Option<f64>,
    /// Of what dare-linear and dare-ties drop at random
    #[arg(long, default_value_t = 0, requires = "adapters")]
    pub seed: u64,
    /// Write an adapter, and merge nothing
    #[arg(long, requires = "adapters", conflicts_with_all = ["onto", "prompts", "recipe"])]
    pub as_adapter: bool,
}

/// `--combine`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CombineArgument {
    /// Weighted sums of A and of B; one rank, with cross terms
    Linear,
    /// Side by side: the exact sum, ranks add up
    Cat,
    /// The largest values, by elected sign
    Ties,
    /// Values kept at random and rescaled, then as linear
    DareLinear,
    /// Values kept at random and rescaled, by elected sign
    DareTies,
}

impl CombineArguments {
    /// The combination that was asked for, if one was.
    ///
    /// # Errors
    /// A density that is missing, or that means nothing.
    pub(super) fn combination(&self) -> Result<Option<Combination>, &'static str> {
        let Some(how) = self.combine else { return Ok(None) };
        let with = |of: fn(f64) -> Combination| {
            self.density
                .map(of)
                .ok_or("`--combine` ties, dare-linear and dare-ties need `--density`, the share that is kept")
        };
        let combination = match how {
            CombineArgument::Ties => with(Combination::Ties)?,
            CombineArgument::DareLinear => with(Combination::DareLinear)?,
            CombineArgument::DareTies => with(Combination::DareTies)?,
            CombineArgument::Linear | CombineArgument::Cat if self.density.is_some() => {
                return Err("`--combine` linear and cat keep all values: leave `--density` out");
            }
            CombineArgument::Linear => Combination::Linear,
            CombineArgument::Cat => Combination::Cat,
        };
        Ok(Some(combination))
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
        Ok(_) => Err(format!("{expected}; a weight is finite and not 0")),
        Err(_) => Err(expected.into()),
    }
}

/// A share above 0.
fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err("expected a share above 0 and at most 1".into()),
    }
}

/// Arguments of `tune verify`.
#[derive(Debug, Args)]
pub struct VerifyArguments {
    /// The adapter's folder
    pub adapter: PathBuf,
    /// The base to check it against
    #[arg(long, value_name = "FOLDER|ID")]
    pub base: Option<String>,
    /// A branch, tag or commit of the hub id
    #[arg(long, requires = "base")]
    pub revision: Option<String>,
    /// For programs.
    #[command(flatten)]
    pub for_programs: OutputArguments,
}

/// Arguments of `tune export`.
#[derive(Debug, Args)]
pub struct ExportArguments {
    /// The adapter's folder; with --gguf also a model: a folder, or a hub id looked up in the local cache
    #[arg(value_name = "ADAPTER|MODEL")]
    pub source: PathBuf,
    /// What to write.
    #[command(flatten)]
    pub form: FormArguments,
    /// The folder to write
    #[arg(long)]
    pub out: PathBuf,
    /// The base.
    #[command(flatten)]
    pub base: BaseArguments,
    /// With --gguf: the weights to fold the adapter into [default: original; of a 4-bit checkpoint, its dequantized
    /// ones]
    #[arg(long)]
    pub onto: Option<OntoArgument>,
    /// With --gguf, --gguf-lora: go on although the base's files are not the ones the adapter records
    #[arg(long)]
    pub allow_other_base: bool,
    /// Replace what is in the folder
    #[arg(long)]
    pub overwrite: bool,
    /// For programs.
    #[command(flatten)]
    pub for_programs: OutputArguments,
}

/// What `tune export` writes: one of these.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct FormArguments {
    /// An adapter folder for the program that is to load it
    #[arg(long = "for", value_name = "PROGRAM")]
    pub consumer: Option<ConsumerArgument>,
    /// A model as one GGUF file, for llama.cpp and Ollama: the adapter folded into its base, or a model as it is
    #[arg(long, value_name = "TYPE")]
    pub gguf: Option<GgufArgument>,
    /// The adapter alone as a GGUF file, for `--lora` of llama.cpp and ADAPTER of Ollama
    #[arg(long, value_name = "DTYPE", num_args = 0..=1, require_equals = true, default_missing_value = "f32")]
    pub gguf_lora: Option<Dtype>,
}

/// `--gguf`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GgufArgument {
    /// 32-bit floats
    F32,
    /// IEEE half precision
    F16,
    /// bfloat16
    Bf16,
    /// 8 bits
    #[value(name = "q8_0")]
    Q8_0,
    /// 6 bits
    #[value(name = "q6_k")]
    Q6K,
    /// 5 bits, 6 where it counts
    #[value(name = "q5_k_m")]
    Q5KM,
    /// 4 bits, 6 where it counts: the usual choice
    #[value(name = "q4_k_m")]
    Q4KM,
    /// 4 bits, plain
    #[value(name = "q4_0")]
    Q4_0,
}

impl From<GgufArgument> for FileType {
    fn from(file: GgufArgument) -> Self {
        match file {
            GgufArgument::F32 => Self::F32,
            GgufArgument::F16 => Self::F16,
            GgufArgument::Bf16 => Self::Bf16,
            GgufArgument::Q8_0 => Self::Q8_0,
            GgufArgument::Q6K => Self::Q6K,
            GgufArgument::Q5KM => Self::Q5KM,
            GgufArgument::Q4KM => Self::Q4KM,
            GgufArgument::Q4_0 => Self::Q4_0,
        }
    }
}

/// `--onto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OntoArgument {
    /// The weights as the checkpoint has them
    Original,
    /// The weights quantized to NF4 and back, as QLoRA trained on them
    Nf4,
}

impl From<OntoArgument> for Wanted {
    fn from(onto: OntoArgument) -> Self {
        match onto {
            OntoArgument::Original => Self::Original,
            OntoArgument::Nf4 => Self::Nf4,
        }
    }
}

/// `--dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DtypeArgument {
    /// Each tensor keeps its own; dequantized ones get the model's
    Auto,
    /// bfloat16
    Bf16,
    /// IEEE half precision
    F16,
    /// 32 bits
    F32,
}

impl DtypeArgument {
    /// The dtype asked for, if one is.
    pub(super) fn dtype(self) -> Option<FloatDtype> {
        match self {
            Self::Auto => None,
            Self::Bf16 => Some(FloatDtype::Bf16),
            Self::F16 => Some(FloatDtype::F16),
            Self::F32 => Some(FloatDtype::F32),
        }
    }
}

/// `--for`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ConsumerArgument {
    /// vLLM: one rank and one scaling for all modules
    Vllm,
    /// llama.cpp's convert_lora_to_gguf.py: the scaling in `lora_alpha` alone (--gguf-lora needs no such script)
    #[value(name = "llama.cpp")]
    LlamaCpp,
    /// mlx-lm: its own layout
    Mlx,
    /// mistral.rs
    Mistralrs,
    /// Hugging Face PEFT
    Peft,
}

impl From<ConsumerArgument> for Consumer {
    fn from(consumer: ConsumerArgument) -> Self {
        match consumer {
            ConsumerArgument::Vllm => Self::Vllm,
            ConsumerArgument::LlamaCpp => Self::LlamaCpp,
            ConsumerArgument::Mlx => Self::Mlx,
            ConsumerArgument::Mistralrs => Self::MistralRs,
            ConsumerArgument::Peft => Self::Peft,
        }
    }
}
