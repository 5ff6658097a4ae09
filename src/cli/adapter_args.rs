//! What can be typed after `merge`, `verify` and `export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::export::Consumer;
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
    pub adapter: PathBuf,
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
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `tune export`.
#[derive(Debug, Args)]
pub struct ExportArguments {
    /// The adapter's folder
    pub adapter: PathBuf,
    /// The program that is to load it
    #[arg(long = "for", value_name = "PROGRAM")]
    pub consumer: ConsumerArgument,
    /// The folder to write
    #[arg(long)]
    pub out: PathBuf,
    /// The base.
    #[command(flatten)]
    pub base: BaseArguments,
    /// Replace what is in the folder
    #[arg(long)]
    pub overwrite: bool,
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
    /// llama.cpp's convert_lora_to_gguf.py: the scaling in `lora_alpha` alone
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
