//! `tune quantize`.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::args::OutputArguments;
use super::console::Console;
use super::environment::{Signals, hub_cache};
use super::exit::Exit;
use super::merge::{existing, line};
use super::style::{GOOD, STRONG, paint};
use crate::export;
use crate::export::quantize::{Options, Outcome, Progress};
use crate::quant::spec::Spec;
use crate::run::{self, Environment};
use crate::units::Bytes;

/// Arguments of `tune quantize`.
#[derive(Debug, Args)]
pub struct QuantizeArguments {
    /// The base model: a folder, or a hub id looked up in the local cache
    #[arg(value_name = "FOLDER|ID")]
    pub base: String,
    /// A branch, tag or commit of the hub id
    #[arg(long)]
    pub revision: Option<String>,
    /// The folder to write
    #[arg(long)]
    pub out: PathBuf,
    /// Weights that share a scale: a power of two, 64 to 4096
    #[arg(long, value_name = "WEIGHTS", default_value_t = 64, value_parser = block_size)]
    pub block_size: usize,
    /// Keep the scales in 32 bits; left out, they are quantized to 8 (double quantization)
    #[arg(long)]
    pub no_double_quant: bool,
    /// Largest file of weights, in gigabytes
    #[arg(long, value_name = "GB", default_value_t = 5.0, value_parser = gigabytes)]
    pub max_shard_gb: f64,
    /// Replace what is in the folder
    #[arg(long)]
    pub overwrite: bool,
    /// For programs.
    #[command(flatten)]
    pub output: OutputArguments,
}

/// Writes a base in 4 bits.
pub(super) fn quantize(arguments: &QuantizeArguments, console: &mut Console<'_>) -> io::Result<Exit> {
    let signals = Signals::listen();
    let stop = || signals.raised();
    let cache = hub_cache();
    let environment = Environment { hub_cache: &cache, stop: &stop };
    let spec = Spec::Nf4 { block_size: arguments.block_size, double_quant: !arguments.no_double_quant };
    let options = Options {
        spec,
        shard_bytes: (arguments.max_shard_gb * 1e9) as u64,
        existing: existing(arguments.overwrite),
    };
    let base = match run::quantize::open(&arguments.base, arguments.revision.as_deref(), &environment) {
        Ok(base) => base,
        Err(error) => return Ok(console.failure(&error)),
    };
    if !console.json() {
        let mut out = console.out();
        line(&mut out, "base", &format!("{} ({})", base.name(), base.spec.family))?;
        out.flush()?;
    }
    let mut show = |event: Progress| match event {
        Progress::Measuring(done, total) => console.count("measuring", done as u64, total as u64),
        Progress::Writing(done, total) => console.count("writing", done as u64, total as u64),
    };
    let outcome = run::quantize::quantize(&base, &arguments.out, options, &mut show, &environment);
    console.quiet();
    match outcome {
        Ok(outcome) if console.json() => {
            console.event("result", &result(&outcome, arguments, spec));
            Ok(Exit::Done)
        }
        Ok(outcome) => {
            show_outcome(&outcome, arguments, spec, &mut console.out())?;
            Ok(Exit::Done)
        }
        Err(run::Error::Export(export::Error::Stopped)) => {
            console.error("stopped; nothing was written", None);
            Ok(signals.exit())
        }
        Err(error) => Ok(console.failure(&error)),
    }
}

fn result(outcome: &Outcome, arguments: &QuantizeArguments, spec: Spec) -> serde_json::Value {
    let worst = outcome.worst.as_ref().map(|(tensor, error)| json!({"tensor": tensor, "error": error}));
    json!({
        "output_dir": arguments.out.display().to_string(),
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
    mut out: &mut dyn Write,
) -> io::Result<()> {
    let Spec::Nf4 { block_size, double_quant } = spec;
    let scales = if double_quant { ", double quantization" } else { "" };
    let how = format!(
        "{} weights to NF4 (blocks of {block_size}{scales}); {} tensors kept as they were",
        outcome.quantized, outcome.kept
    );
    line(&mut out, "quantized", &how)?;
    if let Some((tensor, share)) = &outcome.worst {
        let error = format!("{:.2e} of the weights' norm; most in {tensor}, {share:.2e}", outcome.error);
        line(&mut out, "error", &error)?;
    }
    let folder = arguments.out.display();
    let written = format!("{folder} ({}, was {})", Bytes(outcome.bytes), Bytes(outcome.bytes_before));
    line(&mut out, "written", &paint(GOOD, written))?;
    let path = toml::Value::from(arguments.out.to_string_lossy().as_ref());
    writeln!(out, "\nNext, in a recipe:\n{}", paint(STRONG, format!("[model]\nbase = {path}")))
}

/// A power of two, 64 to 4096.
fn block_size(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(size) if size.is_power_of_two() && (64..=4096).contains(&size) => Ok(size),
        _ => Err("expected one of 64, 128, 256, 512, 1024, 2048, 4096".into()),
    }
}

/// More than none, and not beyond all disks.
fn gigabytes(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(size) if size > 0.0 && size <= 1e6 => Ok(size),
        _ => Err("expected gigabytes above 0".into()),
    }
}
