//! The command line: its commands, and the arguments that all of them have.

use clap::{Parser, Subcommand};

use super::args::OutputArguments;
use super::bench::BenchArguments;
use super::bundles::CopyArguments;
use super::chat::ChatArguments;
use super::doctor::DoctorArguments;
use super::download::DownloadArguments;
use super::eval::EvalArguments;
use super::export::ExportArguments;
use super::generate::GenerateArguments;
use super::import::ImportArguments;
use super::init::InitArguments;
use super::inspect::InspectArguments;
use super::keys::KeysArguments;
use super::merge::MergeArguments;
use super::page::ReportArguments;
use super::plan::PlanArguments;
use super::quantize::QuantizeArguments;
use super::reproduce::ReproduceArguments;
use super::run::RunArguments;
use super::shells::{CompletionsArguments, ManArguments};
use super::validate::ValidateArguments;
use super::verify::VerifyArguments;
use super::watch::WatchArguments;

/// Fine-tune an open-weight language model on one machine, from one recipe.
#[derive(Debug, Parser)]
#[command(
    name = "tune",
    version = concat!(env!("CARGO_PKG_VERSION"), " (fine-tuning from one binary; not PyTorch's torchtune)"),
    arg_required_else_help = true,
    after_help = "Start here:\n  tune cp quickstart demo && cd demo && tune run quickstart.toml\n\n\
                  Exit codes: 0 done, 1 other error, 2 command line or recipe, 3 data,\n\
                  4 resources, 5 diverged, 6 gate failed, 128 + N stopped by signal N\n\
                  (130 SIGINT, 143 SIGTERM)."
)]
pub struct Arguments {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
    /// Output for programs.
    #[command(flatten)]
    pub output: OutputArguments,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a recipe for a file of rows, from what is in it
    Init(InitArguments),
    /// Train the adapter that a recipe describes
    #[command(alias = "train")]
    Run(RunArguments),
    /// Check a recipe, its model, data and memory needs, without training
    Validate(ValidateArguments),
    /// Show how rows are tokenized and which tokens are supervised
    Inspect(InspectArguments),
    /// Train a finished run again and compare the adapters byte for byte
    Reproduce(ReproduceArguments),
    /// Write a run's results as one self-contained HTML page
    Report(ReportArguments),
    /// Show a run as it goes: loss, pace, memory, samples
    Watch(WatchArguments),
    /// Measure training speed and memory on this machine
    Bench(BenchArguments),
    /// Show the memory a run needs, what fits which card, and what streaming costs
    Plan(PlanArguments),
    /// Answer prompts with a base model or an adapter
    Generate(GenerateArguments),
    /// Chat with a base model or an adapter
    Chat(ChatArguments),
    /// Measure loss and exact match of base and adapter on held-out rows
    Eval(EvalArguments),
    /// Show devices and missing drivers, and self-test each device
    Doctor(DoctorArguments),
    /// Merge an adapter into its base model and verify the result
    Merge(MergeArguments),
    /// Save a base model in 4 bits, so that runs on it start sooner
    Quantize(QuantizeArguments),
    /// Check that an adapter is complete and effective; show its origin
    Verify(VerifyArguments),
    /// Convert an adapter or a model for another program
    Export(ExportArguments),
    /// Download a model or a dataset into the Hugging Face cache
    Download(DownloadArguments),
    /// Convert an Axolotl, LLaMA-Factory, TRL, Unsloth or torchtune config
    Import(ImportArguments),
    /// List the keys of a recipe: type, default and meaning
    Keys(KeysArguments),
    /// List the bundled recipes
    Ls,
    /// Copy a bundled recipe and the files it needs into a folder
    Cp(CopyArguments),
    /// Print the completions of a shell
    Completions(CompletionsArguments),
    /// Write man pages
    Man(ManArguments),
}
