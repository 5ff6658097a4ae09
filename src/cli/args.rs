//! What can be typed: the commands, their options and their help. Nothing is computed here.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::adapter_args::{ExportArguments, MergeArguments, VerifyArguments};
use super::download::DownloadArguments;

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
    Validate(RecipeArguments),
    /// Show, row by row, what the model will see and which tokens are supervised
    Inspect(InspectArguments),
    /// Fold an adapter into its base model, and prove that the result computes the same
    Merge(MergeArguments),
    /// Check that all of an adapter is used and does something, and show where it comes from
    Verify(VerifyArguments),
    /// Write an adapter as another program reads it
    Export(ExportArguments),
    /// Fetch a model into the Hugging Face cache; no other command opens the network
    Download(DownloadArguments),
    /// List the bundled recipes
    Ls,
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

/// Arguments of `tune run`.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// The recipe.
    #[command(flatten)]
    pub recipe: RecipeArguments,
    /// Go on with the run in the recipe's output folder from its newest checkpoint, if there is one
    #[arg(long)]
    pub resume: bool,
    /// With --resume: go on although recipe, base or data have changed; the adapter will say so
    #[arg(long, requires = "resume")]
    pub accept_changes: bool,
    /// Replace an earlier run in the recipe's output folder
    #[arg(long, conflicts_with = "resume")]
    pub overwrite: bool,
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
    /// One JSON object per row instead of text
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `tune cp`.
#[derive(Debug, Args)]
pub struct CopyArguments {
    /// A name that `tune ls` shows
    pub name: String,
    /// The folder to write; it is created, and nothing in it is overwritten
    pub folder: PathBuf,
}
