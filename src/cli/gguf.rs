//! `tune export --gguf` and `--gguf-lora`.

use std::io;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::console::Console;
use super::environment::Context;
use super::exit::Exit;
use super::export::ExportArguments;
use super::failure::Failure;
use super::fidelity;
use super::lines::{changes, detail, identity, line, next, warn};
use super::merge::ASSUMED;
use super::style::{GOOD, paint};
use crate::export::base::Trained;
use crate::export::gguf::FileType;
use crate::export::gguf::model::{Fallback, Outcome};
use crate::export::merge::Options;
use crate::export::shards::Written;
use crate::export::weights::Onto;
use crate::files::shell;
use crate::model::FloatDtype;
use crate::run::fidelity::Fidelity;
use crate::run::gguf::{self, Source};
use crate::units::Bytes;

/// Writes a model as a GGUF file.
pub(super) fn model(
    arguments: &ExportArguments,
    folder: &Path,
    file: FileType,
    context: &Context<'_>,
    console: &mut Console<'_>,
) -> Result<Exit, Failure> {
    let options =
        Options { onto: arguments.onto, any_hash: arguments.allow_other_base, ..Options::default() };
    let source = Source::open(folder, arguments.base.choice(), options, &context.environment)?;
    let base = source.base();
    let name = format!("{} ({})", base.name(), base.spec.family);
    match &source {
        Source::Model { .. } => line(console.out(), "model", &name)?,
        Source::Adapter(plan) => {
            line(console.out(), "base", &name)?;
            let adapter = format!("{}, {} modules", arguments.source.display(), plan.targets.len());
            line(console.out(), "adapter", &adapter)?;
            identity(&plan.identity, console)?;
            line(console.out(), "onto", &plan.onto_name())?;
            if plan.guesses_quantization() {
                warn(console, ASSUMED)?;
            }
        }
    }
    let is_adapter = matches!(source, Source::Adapter(_));
    let rows = arguments.rows.held_out((folder, is_adapter), &arguments.base, &context.environment)?;
    let is_onto_others = matches!(&source, Source::Adapter(plan)
        if matches!((&plan.onto, &plan.trained), (Onto::Original, Trained::Quantized(_))));
    if rows.is_none() && is_onto_others {
        warn(console, &fidelity::other_weights("answers can differ from those of `tune chat`"))?;
    }
    console.out().flush()?;
    let mut show = |written: Written| console.count("writing", written.done as u64, written.total as u64);
    let (out, existing) = (&arguments.folder.out, arguments.folder.existing());
    let outcome = source.export(file, out, existing, &mut show, &context.environment)?;
    let mut show = |done, total| console.count("measuring", done as u64, total as u64);
    let measured =
        rows.map(|rows| source.measure(file, out, &rows, arguments.device, &mut show, &context.environment));
    console.quiet();
    let measured = fidelity::measured(measured, console)?;
    let ways = [
        is_onto_others.then_some(fidelity::ONTO_TRAINED),
        file.rounds().then_some("`--gguf q8_0` rounds less"),
    ];
    let less = ways.into_iter().flatten().collect::<Vec<_>>().join("; ");
    let measured =
        measured.as_ref().map(|measured| (measured, Some(less.as_str()).filter(|less| !less.is_empty())));
    finish(&outcome, measured, arguments, console)?;
    Ok(Exit::Done)
}

fn finish(
    outcome: &Outcome,
    measured: Option<(&Fidelity, Option<&str>)>,
    arguments: &ExportArguments,
    console: &mut Console<'_>,
) -> io::Result<()> {
    let kinds: Vec<String> =
        outcome.kinds.iter().map(|(kind, count)| format!("{count} in {}", kind.name())).collect();
    let path = arguments.folder.out.join(&outcome.file);
    let tensors: Map<String, Value> =
        outcome.kinds.iter().map(|(kind, count)| (kind.name().to_owned(), json!(count))).collect();
    console.event(
        "result",
        &json!({
            "output_dir": arguments.folder.out.display().to_string(),
            "file": path.display().to_string(),
            "bytes": outcome.bytes,
            "tensors": tensors,
            "rounding": outcome.error,
            "held_out": measured.map(|(measured, _)| measured),
        }),
    );
    line(console.out(), "tensors", &kinds.join(", "))?;
    for group in groups(&outcome.fallbacks) {
        detail(console.out(), group)?;
    }
    let error = match &outcome.worst {
        Some((tensor, share)) => {
            format!("{:.2e} of the weights' norm; largest in {tensor}: {share:.2e}", outcome.error)
        }
        None => "none: lossless".to_owned(),
    };
    line(console.out(), "rounding", &error)?;
    if let Some((measured, less)) = measured {
        fidelity::show(measured, less, console)?;
    }
    for note in &outcome.notes {
        warn(console, note)?;
    }
    line(console.out(), "exported", &paint(GOOD, format!("{} ({})", path.display(), Bytes(outcome.bytes))))?;
    let modelfile = arguments.folder.out.join("Modelfile");
    let name = arguments.folder.out.file_name().unwrap_or_default().to_string_lossy();
    let ollama = ["ollama", "create", &name, "-f", &modelfile.to_string_lossy()];
    let llama = shell::command(["llama-cli", "-m", &path.to_string_lossy()]);
    next(console.out(), &[("in Ollama", shell::command(ollama)), ("in llama.cpp", llama)])
}

/// One line for all tensors with the same fallback.
fn groups(fallbacks: &[Fallback]) -> Vec<String> {
    let mut groups: Vec<(&Fallback, usize)> = Vec::new();
    for fallback in fallbacks {
        let key = |of: &Fallback| (of.columns, of.wanted, of.kind);
        match groups.iter_mut().find(|(first, _)| key(first) == key(fallback)) {
            Some((_, count)) => *count += 1,
            None => groups.push((fallback, 1)),
        }
    }
    let line = |(first, count): &(&Fallback, usize)| {
        format!(
            "{count} with rows of {}, not a multiple of {}: {} instead of {} ({}{})",
            first.columns,
            first.wanted.block_size(),
            first.kind.name(),
            first.wanted.name(),
            first.tensor,
            if *count > 1 { ", …" } else { "" }
        )
    };
    groups.iter().map(line).collect()
}

/// Writes an adapter as a GGUF file.
pub(super) fn lora(
    arguments: &ExportArguments,
    source: &Path,
    dtype: FloatDtype,
    context: &Context<'_>,
    console: &mut Console<'_>,
) -> Result<Exit, Failure> {
    let (base, out) = (arguments.base.choice(), &arguments.folder.out);
    let (any_hash, existing) = (arguments.allow_other_base, arguments.folder.existing());
    let outcome = gguf::export_lora(source, base, any_hash, dtype, out, existing, &context.environment)?;
    let path = out.join(&outcome.file);
    console.event(
        "result",
        &json!({
            "output_dir": out.display().to_string(),
            "file": path.display().to_string(),
            "bytes": outcome.bytes,
            "changes": outcome.changes,
        }),
    );
    changes(console, &outcome.changes)?;
    let written = format!("{} ({})", path.display(), Bytes(outcome.bytes));
    line(console.out(), "exported", &paint(GOOD, written))?;
    let words = ["llama-cli", "-m", "BASE.gguf", "--lora", &path.to_string_lossy()];
    next(console.out(), &[("", shell::command(words))])?;
    Ok(Exit::Done)
}
