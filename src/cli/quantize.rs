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
use super::quantization::{self, REPORT_ROWS};
use super::style::{GOOD, STRONG, paint};
use crate::data::spec::Format;
use crate::export::quantize::report::Report;
use crate::export::quantize::{Options, Outcome, Progress};
use crate::quant::spec::{Quantization, Spec};
use crate::recipe::DeviceSpec;
use crate::run;
use crate::run::inference::ModelChoice;
use crate::run::quantize::Comparison;
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
    /// Leave the modules dense that this pattern matches: a name, or a regular expression for a path or its end (repeatable)
    #[arg(long, value_name = "PATTERN")]
    pub keep: Vec<String>,
    /// Also show the error of every weight, and the loss in 4 bits beside the dense one on these rows: a file, or the held-out
    /// rows of a recipe
    #[arg(long, value_name = "DATA|RECIPE")]
    pub report: Option<String>,
    /// Record format of --report [default: as its columns tell]
    #[arg(long, value_enum, value_name = "FORMAT", requires = "report")]
    pub format: Option<Format>,
    /// Compare losses on the first COUNT rows
    #[arg(long, value_name = "COUNT", default_value_t = REPORT_ROWS, requires = "report",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub report_rows: u64,
    /// The device of the comparison: auto, cpu, cuda, cuda:N, vulkan, vulkan:N, metal
    #[arg(long, value_name = "DEVICE", default_value = "auto", requires = "report")]
    pub device: DeviceSpec,
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
    let blocks = Spec::Nf4 { block_size: arguments.block_size, double_quant: !arguments.no_double_quant };
    let quantization = &Quantization { blocks, keep: arguments.keep.clone() };
    let options = Options {
        quantization: quantization.clone(),
        shard_bytes: arguments.shard_bytes,
        existing: arguments.folder.existing(),
    };
    let base = run::quantize::open(&arguments.base, arguments.revision.as_deref(), environment)?;
    line(console.out(), "base", &format!("{} ({})", base.name(), base.spec.family))?;
    console.out().flush()?;
    let comparison = match &arguments.report {
        Some(data) => {
            let (base, revision) = (Some(arguments.base.as_str()), arguments.revision.as_deref());
            let device = Some(arguments.device);
            let choice = ModelChoice { base, revision, device, ..ModelChoice::default() };
            let rows = (data.as_str(), arguments.format);
            Some(Comparison::open(choice, quantization, rows, arguments.report_rows, environment)?)
        }
        None => None,
    };
    let mut show = |progress: Progress| match progress {
        Progress::Measuring(done, total) => console.count("measuring", done as u64, total as u64),
        Progress::Writing(done, total) => console.count("writing", done as u64, total as u64),
    };
    let outcome = run::quantize::quantize(&base, &arguments.folder.out, options, &mut show, environment)?;
    if let Some(comparison) = comparison {
        let mut show = |done, total| console.count("comparing", done as u64, total as u64);
        let held_out = comparison.losses(&mut show, environment)?;
        let (quantization, tensors) = (quantization.to_string(), outcome.tensors.clone());
        let report = Report { quantization, error: outcome.error, tensors, held_out };
        console.quiet();
        console.event("report", &report);
        quantization::show(&report, console.out())?;
    }
    console.quiet();
    console.event("result", &result(&outcome, arguments, quantization));
    show_outcome(&outcome, arguments, quantization, console.out())?;
    Ok(Exit::Done)
}

fn result(
    outcome: &Outcome,
    arguments: &QuantizeArguments,
    quantization: &Quantization,
) -> serde_json::Value {
    let worst = outcome.worst.as_ref().map(|(tensor, error)| json!({"tensor": tensor, "error": error}));
    json!({
        "output_dir": arguments.folder.out.display().to_string(),
        "quantization": quantization.to_string(),
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
    quantization: &Quantization,
    out: &mut dyn Write,
) -> io::Result<()> {
    let Spec::Nf4 { block_size, double_quant } = quantization.blocks;
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
