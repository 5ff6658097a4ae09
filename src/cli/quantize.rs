//! `tune quantize`.

use std::io::{self, Write};

use clap::Args;
use serde_json::json;

use super::args::{FolderArguments, gigabytes};
use super::console::Console;
use super::environment::Context;
use super::exit::Exit;
use super::failure::Failure;
use super::lines::line;
use super::style::{GOOD, STRONG, paint};
use crate::export::quantize::{Options, Outcome, Progress};
use crate::quant::spec::Spec;
use crate::run;
use crate::units::Bytes;

/// Arguments of `tune quantize`.
#[derive(Debug, Args)]
pub struct QuantizeArguments {
    /// The base model: a folder, or a hub id in the local cache
    #[arg(value_name = "FOLDER|ID")]
    pub base: String,
    /// A branch, tag or commit of the hub id
    #[arg(long)]
    pub revision: Option<String>,
    /// The folder to write.
    #[command(flatten)]
    pub folder: FolderArguments,
    /// Weights per scale: a power of two from 64 to 4096
    #[arg(long, value_name = "WEIGHTS", default_value_t = 64, value_parser = block_size)]
    pub block_size: usize,
    /// Store scales in 32 bits instead of 8 (no double quantization)
    #[arg(long)]
    pub no_double_quant: bool,
    /// Largest file of weights, in gigabytes
    #[arg(long = "max-shard-gb", value_name = "GB", default_value = "5", value_parser = gigabytes)]
    pub shard_bytes: u64,
}

/// Writes a base in 4 bits.
pub(super) fn quantize(
    arguments: &QuantizeArguments,
    context: &Context<'_>,
    console: &mut Console<'_>,
) -> Result<Exit, Failure> {
    let environment = &context.environment;
    let spec = Spec::Nf4 { block_size: arguments.block_size, double_quant: !arguments.no_double_quant };
    let options = Options { spec, shard_bytes: arguments.shard_bytes, existing: arguments.folder.existing() };
    let base = run::quantize::open(&arguments.base, arguments.revision.as_deref(), environment)?;
    line(console.out(), "base", &format!("{} ({})", base.name(), base.spec.family))?;
    console.out().flush()?;
    let mut show = |progress: Progress| match progress {
        Progress::Measuring(done, total) => console.count("measuring", done as u64, total as u64),
        Progress::Writing(done, total) => console.count("writing", done as u64, total as u64),
    };
    let outcome = run::quantize::quantize(&base, &arguments.folder.out, options, &mut show, environment)?;
    console.quiet();
    console.event("result", &result(&outcome, arguments, spec));
    show_outcome(&outcome, arguments, spec, console.out())?;
    Ok(Exit::Done)
}

fn result(outcome: &Outcome, arguments: &QuantizeArguments, spec: Spec) -> serde_json::Value {
    let worst = outcome.worst.as_ref().map(|(tensor, error)| json!({"tensor": tensor, "error": error}));
    json!({
        "output_dir": arguments.folder.out.display().to_string(),
        "quantization": spec.to_string(),
        "quantized": outcome.quantized,
        "kept": outcome.kept,
        "bytes_before": outcome.bytes_before,
        "bytes": outcome.bytes,
        "error": outcome.error,
        "worst": worst,
    })
}

fn show_outcome(
    outcome: &Outcome,
    arguments: &QuantizeArguments,
    spec: Spec,
    out: &mut dyn Write,
) -> io::Result<()> {
    let Spec::Nf4 { block_size, double_quant } = spec;
    let scales = if double_quant { ", double quantization" } else { "" };
    let how = format!(
        "{} weights to NF4 (blocks of {block_size}{scales}); {} tensors copied unchanged",
        outcome.quantized, outcome.kept
    );
    line(out, "quantized", &how)?;
    if let Some((tensor, share)) = &outcome.worst {
        let error = format!("{:.2e} of the weights' norm; largest in {tensor}: {share:.2e}", outcome.error);
        line(out, "error", &error)?;
    }
    let folder = &arguments.folder.out;
    let written =
        format!("{} ({}, was {})", folder.display(), Bytes(outcome.bytes), Bytes(outcome.bytes_before));
    line(out, "written", &paint(GOOD, written))?;
    let path = toml::Value::from(folder.to_string_lossy().as_ref());
    writeln!(out, "\nNext, in a recipe:\n{}", paint(STRONG, format!("[model]\nbase = {path}")))
}

/// A power of two from 64 to 4096.
fn block_size(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(size) if size.is_power_of_two() && (64..=4096).contains(&size) => Ok(size),
        _ => Err("expected one of 64, 128, 256, 512, 1024, 2048, 4096".into()),
    }
}
