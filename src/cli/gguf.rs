//! `tune export --gguf` and `--gguf-lora`.

use std::io;

use serde_json::{Map, Value, json};

use super::adapter_args::ExportArguments;
use super::console::Console;
use super::environment::{Signals, hub_cache};
use super::exit::Exit;
use super::merge::{existing, failed, line, tell, warn};
use super::style::{FAINT, GOOD, STRONG, paint};
use crate::export::gguf::FileType;
use crate::export::gguf::model::{Fallback, Outcome};
use crate::export::merge::Options;
use crate::export::shards::Written;
use crate::model::FloatDtype;
use crate::run::Environment;
use crate::run::gguf::{self, Source};
use crate::units::Bytes;

/// Writes a model as a GGUF file.
pub(super) fn model(
    arguments: &ExportArguments,
    file: FileType,
    console: &mut Console<'_>,
) -> io::Result<Exit> {
    let signals = Signals::listen();
    let stop = || signals.raised();
    let cache = hub_cache();
    let environment = Environment { hub_cache: &cache, stop: &stop };
    let options = Options {
        onto: arguments.onto.map(Into::into),
        any_hash: arguments.allow_other_base,
        ..Options::default()
    };
    let source = match Source::open(&arguments.source, arguments.base.choice(), options, &environment) {
        Ok(source) => source,
        Err(error) => return Ok(failed(&error, &signals, console)),
    };
    let base = source.base();
    match &source {
        Source::Model { .. } => {
            line(console.out(), "model", &format!("{} ({})", base.name(), base.spec.family))?
        }
        Source::Adapter(plan) => {
            line(console.out(), "base", &format!("{} ({})", base.name(), base.spec.family))?;
            line(
                console.out(),
                "adapter",
                &format!("{}, {} modules", arguments.source.display(), plan.targets.len()),
            )?;
            tell(&plan.identity, console)?;
            line(console.out(), "onto", &plan.onto_name())?;
            if plan.guesses_quantization() {
                warn(
                    console,
                    "the adapter does not say how its base was quantized; this is what QLoRA usually does",
                )?;
            }
        }
    }
    console.out().flush()?;
    let mut show = |written: Written| console.count("writing", written.done as u64, written.total as u64);
    let existing = existing(arguments.overwrite);
    let outcome = source.export(file, &arguments.out, existing, &mut show, &environment);
    console.quiet();
    match outcome {
        Ok(outcome) => {
            finish(&outcome, arguments, console)?;
            Ok(Exit::Done)
        }
        Err(error) => Ok(failed(&error, &signals, console)),
    }
}

fn finish(outcome: &Outcome, arguments: &ExportArguments, console: &mut Console<'_>) -> io::Result<()> {
    let kinds: Vec<String> =
        outcome.kinds.iter().map(|(kind, count)| format!("{count} in {}", kind.name())).collect();
    let path = arguments.out.join(&outcome.file);
    let tensors: Map<String, Value> =
        outcome.kinds.iter().map(|(kind, count)| (kind.name().to_owned(), json!(count))).collect();
    console.event(
        "result",
        &json!({
            "output_dir": arguments.out.display().to_string(),
            "file": path.display().to_string(),
            "bytes": outcome.bytes,
            "tensors": tensors,
            "rounding": outcome.error,
        }),
    );
    line(console.out(), "tensors", &kinds.join(", "))?;
    for group in groups(&outcome.fallbacks) {
        writeln!(console.out(), "          {}", paint(FAINT, group))?;
    }
    let error = match &outcome.worst {
        Some((tensor, share)) => {
            format!("{:.2e} of the weights' norm; most in {tensor}, {share:.2e}", outcome.error)
        }
        None => "none: every number is as it was".to_owned(),
    };
    line(console.out(), "rounding", &error)?;
    for note in &outcome.notes {
        warn(console, note)?;
    }
    line(console.out(), "exported", &paint(GOOD, format!("{} ({})", path.display(), Bytes(outcome.bytes))))?;
    let ollama = format!("ollama create NAME -f {}", arguments.out.join("Modelfile").display());
    writeln!(console.out(), "\nNext: {}", paint(STRONG, format!("llama-cli -m {}", path.display())))?;
    writeln!(console.out(), "  or: {}", paint(STRONG, ollama))
}

/// One line for all tensors that fell back in one way.
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
            "{count} with rows of {}, no multiple of {}: {} instead of {} ({}{})",
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
    dtype: FloatDtype,
    console: &mut Console<'_>,
) -> io::Result<Exit> {
    let signals = Signals::listen();
    let stop = || signals.raised();
    let cache = hub_cache();
    let environment = Environment { hub_cache: &cache, stop: &stop };
    let exported = gguf::export_lora(
        &arguments.source,
        arguments.base.choice(),
        arguments.allow_other_base,
        dtype,
        &arguments.out,
        existing(arguments.overwrite),
        &environment,
    );
    match exported {
        Ok(outcome) => {
            let path = arguments.out.join(&outcome.file);
            console.event(
                "result",
                &json!({
                    "output_dir": arguments.out.display().to_string(),
                    "file": path.display().to_string(),
                    "bytes": outcome.bytes,
                    "changes": outcome.changes,
                }),
            );
            match outcome.changes.as_slice() {
                [] => line(console.out(), "changed", "nothing: its numbers are as they were")?,
                changes => line(console.out(), "changed", &changes.join("; "))?,
            }
            line(
                console.out(),
                "exported",
                &paint(GOOD, format!("{} ({})", path.display(), Bytes(outcome.bytes))),
            )?;
            let next = format!("llama-cli -m BASE.gguf --lora {}", path.display());
            writeln!(console.out(), "\nNext: {}", paint(STRONG, next))?;
            Ok(Exit::Done)
        }
        Err(error) => Ok(failed(&error, &signals, console)),
    }
}
