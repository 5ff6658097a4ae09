//! What can be typed: the commands, their options and their help. Nothing is computed here.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

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
    /// Replace an earlier run in the recipe's output folder
    #[arg(long)]
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

/// Arguments of `tune cp`.
#[derive(Debug, Args)]
pub struct CopyArguments {
    /// A name that `tune ls` shows
    pub name: String,
    /// The folder to write; it is created, and nothing in it is overwritten
    pub folder: PathBuf,
}
