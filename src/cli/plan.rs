//! `tune plan`.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;

use super::args::{memory, number};
use super::bench::{count, duration, rank};
use super::console::Console;
use super::environment::Context;
use super::exit::Exit;
use super::failure::Failure;
use super::style::{FAINT, GOOD, STRONG, paint};
use crate::model::FloatDtype;
use crate::recipe::{DeviceSpec, RecipeFile};
use crate::run::forecast::{ASSUMED_FLOPS, Fit, Options, Outlook, Report, Subject, forecast};
use crate::run::inference::Quantize;
use crate::units::{Bytes, Grouped};

/// Arguments of `tune plan`.
#[derive(Debug, Args)]
pub struct PlanArguments {
    /// A recipe whose base, adapter and micro-batches are planned for
    #[arg(conflicts_with_all = ["shape", "config", "rank", "micro_batch_size", "seq_len", "quantize"])]
    #[arg(required_unless_present_any = ["shape", "config"])]
    pub recipe: Option<PathBuf>,
    /// Change one key of the recipe (repeatable)
    #[arg(long = "set", value_name = "KEY.PATH=VALUE", requires = "recipe")]
    pub overrides: Vec<String>,
    /// A model shape, which needs no files: llama-3.1-8b, llama-3.3-70b, …
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    pub shape: Option<String>,
    /// A model's config.json, which needs no weights
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Rank of the adapters on all linear layers
    #[arg(long, default_value_t = 16, value_parser = rank)]
    pub rank: usize,
    /// Documents per micro-batch
    #[arg(long, default_value_t = 1, value_name = "COUNT", value_parser = count)]
    pub micro_batch_size: usize,
    /// Tokens per document
    #[arg(long, default_value_t = 2048, value_name = "TOKENS", value_parser = count)]
    pub seq_len: usize,
    /// Compute dtype [default: the recipe's; without a recipe, bf16]
    #[arg(long, value_enum, value_name = "DTYPE")]
    pub compute_dtype: Option<FloatDtype>,
    /// Storage of the base model [default: nf4]
    #[arg(long, value_enum, value_name = "HOW")]
    pub quantize: Option<Quantize>,
    /// What the run would compute on: a GPU, or cpu [default: the recipe's `device`; auto is a GPU]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceSpec>,
    /// Memory of the device, as in 24GiB [default: the recipe's, else the smallest card that holds all layers]
    #[arg(long, alias = "memory", value_name = "SIZE", value_parser = memory)]
    pub memory_budget: Option<u64>,
    /// Speed with all layers held [default: estimated for 100 TFLOP/s]
    #[arg(long, value_name = "SPEED", value_parser = speed)]
    pub tokens_per_second: Option<f64>,
    /// Show only the longest document that fits
    #[arg(long)]
    pub max_context: bool,
}

fn speed(text: &str) -> Result<f64, String> {
    number(text, |speed| speed > 0.0 && speed.is_finite(), "a number above 0")
}

/// Plans, and shows the plan.
pub(super) fn plan(
    arguments: &PlanArguments,
    context: &Context<'_>,
    console: &mut Console<'_>,
) -> Result<Exit, Failure> {
    let subject = match (&arguments.recipe, &arguments.shape, &arguments.config) {
        (Some(recipe), _, _) => {
            let mut overrides = arguments.overrides.clone();
            overrides.extend(arguments.device.map(|device| format!("device=\"{device}\"")));
            Subject::Recipe(Box::new(RecipeFile::open(recipe, &overrides)?))
        }
        (None, Some(shape), _) => Subject::Shape(shape.clone()),
        (None, None, config) => Subject::Config(config.clone().unwrap_or_default()),
    };
    let options = Options {
        rank: arguments.rank,
        micro_batch_size: arguments.micro_batch_size,
        seq_len: arguments.seq_len,
        compute_dtype: arguments.compute_dtype,
        is_quantized: arguments.quantize != Some(Quantize::No),
        device: arguments.device,
        memory_budget: arguments.memory_budget,
        tokens_per_second: arguments.tokens_per_second,
    };
    let report = forecast(subject, options, &context.environment)?;
    console.event("result", &report);
    match arguments.max_context {
        true => show_context(&report, console.out())?,
        false => show(&report, console.out())?,
    }
    Ok(Exit::Done)
}

fn line(out: &mut dyn Write, name: &str, text: &str) -> io::Result<()> {
    writeln!(out, "{} {text}", paint(STRONG, format!("{name:<10}")))
}

fn show_context(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let budget = Bytes(report.memory_budget);
    line(out, "held", &format!("{} tokens, all layers held in {budget}", tokens(report.held.max_context)))?;
    line(
        out,
        "streamed",
        &format!("{} tokens, no layer held in {budget}", tokens(report.streamed.max_context)),
    )
}

fn show(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    line(out, "model", &report.model)?;
    let (parameters, trained) = (Grouped(report.parameters), Grouped(report.trainable_parameters));
    line(out, "size", &format!("{parameters} parameters in {} layers, {trained} trained", report.layers))?;
    let (documents, length) = (Grouped(report.micro_batch_size as u64), Grouped(report.seq_len as u64));
    let storage = report.quantization.split(' ').next().unwrap_or_default();
    let storage = if storage == "none" { "not quantized" } else { storage };
    line(
        out,
        "run",
        &format!("{storage}, {} on a {}; {documents} × {length} tokens", report.compute_dtype, report.device),
    )?;
    writeln!(out)?;
    show_terms(report, out)?;
    if report.device == "gpu" {
        writeln!(out)?;
        show_cards(report, out)?;
    }
    writeln!(out)?;
    show_speed(report, out)
}

/// Both plans, term by term.
fn show_terms(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let is_cpu = report.device == "cpu";
    let elsewhere = if is_cpu { "layers on disk" } else { "layers on the host" };
    let head =
        format!("{:<26}{:>16}{elsewhere:>20}", format!("in {}", Bytes(report.memory_budget)), "all held");
    writeln!(out, "{}", paint(STRONG, head))?;
    let size = |bytes: Option<u64>| bytes.map_or(String::new(), |bytes| Bytes(bytes).to_string());
    let mut row =
        |name: &str, held: &str, streamed: &str| writeln!(out, "  {name:<24}{held:>16}{streamed:>20}");
    let Report { held, streamed, .. } = report;
    for term in &streamed.device {
        let of = |outlook: &Outlook| {
            outlook.device.iter().find(|other| other.name == term.name).map(|term| term.bytes)
        };
        let (held, streamed) = (of(held).filter(|bytes| *bytes > 0), of(streamed).filter(|bytes| *bytes > 0));
        if held.or(streamed).is_some() {
            row(term.name, &size(held), &size(streamed))?;
        }
    }
    row("device in all", &size(Some(held.device_bytes)), &size(Some(streamed.device_bytes)))?;
    let hosted = |outlook: &Outlook, name| {
        let found = outlook.host.iter().find(|term| term.name == name && term.bytes > 0);
        size(found.map(|term| term.bytes))
    };
    let mut names: Vec<_> = streamed.host.iter().chain(&held.host).map(|term| term.name).collect();
    names.dedup();
    for name in names {
        let (held, streamed) = (hosted(held, name), hosted(streamed, name));
        if !held.is_empty() || !streamed.is_empty() {
            row(&format!("host: {name}"), &held, &streamed)?;
        }
    }
    let layers = report.layers;
    let of = |count: usize| format!("{count} of {layers}");
    row("layers held", &of(held.resident_layers), &of(streamed.resident_layers))?;
    let lie = |outlook: &Outlook| if outlook.host_embeddings { "off the device" } else { "on the device" };
    row("token embeddings", lie(held), lie(streamed))?;
    let wait = |outlook: &Outlook| if outlook.host_inputs { "off the device" } else { "on the device" };
    if held.host_inputs || streamed.host_inputs {
        row("inputs of recomputed", wait(held), wait(streamed))?;
    }
    row("layers recomputed", &of(held.recomputed_layers), &of(streamed.recomputed_layers))?;
    row("longest document", &tokens(held.max_context), &tokens(streamed.max_context))?;
    let fits = |outlook: &Outlook| if outlook.fits { "yes" } else { "no" };
    row("fits", fits(held), fits(streamed))
}

fn show_cards(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let head = format!(
        "{:<7}{:>11}  {:<22}{:>8}{:>13}{:>13}",
        "card", "for a run", "fits", "held", "recomputed", "longest"
    );
    writeln!(out, "{}", paint(STRONG, head))?;
    for card in &report.cards {
        let (name, budget) = (format!("{} GB", card.gib), Bytes(card.memory_budget).to_string());
        let (text, fit): (String, Option<Fit>) = match (card.held.fits, card.streamed.fits) {
            (true, _) => (paint(GOOD, format!("{:<22}", "yes")), Some(card.held)),
            (false, true) => (format!("{:<22}", "with layers streamed"), Some(card.streamed)),
            (false, false) => (format!("{:<22}", "no"), None),
        };
        let (held, again, longest) = match fit {
            Some(fit) => {
                let again = fit.recomputed_layers.to_string();
                (fit.resident_layers.to_string(), again, tokens(fit.max_context))
            }
            None => Default::default(),
        };
        let row = format!("{name:<7}{budget:>11}  {text}{held:>8}{again:>13}{longest:>13}");
        writeln!(out, "{}", row.trim_end())?;
    }
    let text = "held, recomputed: layers; longest: tokens of a document alone in its micro-batch";
    writeln!(out, "{}", paint(FAINT, text))
}

fn show_speed(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let how = match report.is_estimated {
        true => format!(" (estimated for {:.0} TFLOP/s)", ASSUMED_FLOPS / 1e12),
        false => String::new(),
    };
    let rate = report.tokens_per_second;
    line(out, "speed", &format!("{rate:.0} tokens/s with all layers held{how}"))?;
    line(out, "time", &format!("{} for 1,000,000 tokens", duration(report.million_tokens_seconds)))?;
    if report.links.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    let head = format!(
        "{:<14}{:>9}{:>11}{:>17}{:>12}{:>15}",
        "link", "GB/s", "floor", "tokens to hide", "tokens/s", "1,000,000"
    );
    writeln!(out, "{}", paint(STRONG, head))?;
    for link in &report.links {
        writeln!(
            out,
            "{:<14}{:>9.0}{:>9.2} s{:>17}{:>12.1}{:>15}",
            link.name,
            link.bytes_per_second / 1e9,
            link.floor_seconds,
            Grouped(link.tokens_to_hide).to_string(),
            link.tokens_per_second,
            duration(link.million_tokens_seconds),
        )?;
    }
    let text = format!(
        "floor: what the copies of a micro-batch of {} tokens take at least;\ntokens to hide: from so many on, the products \
         take longer than the copies",
        Grouped(report.tokens)
    );
    for row in text.lines() {
        writeln!(out, "{}", paint(FAINT, row))?;
    }
    Ok(())
}

fn tokens(count: Option<u64>) -> String {
    count.map_or("none".to_owned(), |count| Grouped(count).to_string())
}
