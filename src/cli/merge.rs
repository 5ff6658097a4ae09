//! `tune merge` and `tune export`.

use std::io::{self, Write};

use serde_json::json;

use super::adapter_args::{BaseArguments, ExportArguments, FormArguments, MergeArguments};
use super::console::Console;
use super::environment::{Signals, hub_cache};
use super::exit::Exit;
use super::gguf;
use super::style::{FAINT, GOOD, STRONG, WARNING, paint};
use crate::adapter;
use crate::export::base::Identity;
use crate::export::check::Comparison;
use crate::export::merge::{Options, Outcome, Progress as Event};
use crate::export::weights::Report;
use crate::files::Existing;
use crate::run::adapters::{self, BaseChoice, Combination, Merge};
use crate::run::held_out::Source;
use crate::run::{self, Environment};
use crate::units::Bytes;

/// Share of the adapter's effect from which on another base than that of training is worth a warning.
const FAR: f64 = 0.25;
/// Most lines of the table of layers; more layers are shown in groups.
const TABLE_LINES: usize = 16;

impl BaseArguments {
    pub(super) fn choice(&self) -> BaseChoice<'_> {
        BaseChoice { base: self.base.as_deref(), revision: self.revision.as_deref() }
    }
}

pub(super) fn existing(overwrite: bool) -> Existing {
    if overwrite { Existing::Replace } else { Existing::Refuse }
}

/// Merges an adapter into its base.
pub(super) fn merge(arguments: &MergeArguments, console: &mut Console<'_>) -> io::Result<Exit> {
    let shard = arguments.max_shard_gb;
    let sensible = shard > 0.0 && shard <= 1e6 && arguments.max_divergence >= 0.0;
    if !sensible {
        console.error("`--max-shard-gb` has to be above 0, `--max-divergence` at least 0", None);
        return Ok(Exit::Recipe);
    }
    let options = Options {
        onto: arguments.onto.map(Into::into),
        dtype: arguments.dtype.dtype(),
        any_hash: arguments.allow_other_base,
        max_divergence: arguments.max_divergence,
        shard_bytes: (shard * 1e9) as u64,
        existing: existing(arguments.overwrite),
    };
    let source = match (&arguments.prompts, &arguments.recipe) {
        (Some(prompts), _) => Source::Prompts(prompts.clone()),
        (None, Some(recipe)) => Source::Recipe(recipe.clone()),
        (None, None) => Source::Any,
    };
    let signals = Signals::listen();
    let stop = || signals.raised();
    let cache = hub_cache();
    let environment = Environment { hub_cache: &cache, stop: &stop };
    let how = match arguments.combine.combination() {
        Ok(how) => how,
        Err(message) => {
            console.error(message, None);
            return Ok(Exit::Recipe);
        }
    };
    let base = arguments.base.choice();
    let several = how.map(|how| Combination {
        adapters: &arguments.combine.adapters,
        combine: how,
        seed: arguments.combine.seed,
        any_base: arguments.allow_other_base,
    });
    if let Some(several) = several.as_ref().filter(|_| arguments.combine.as_adapter) {
        return match several.write(base, &arguments.out, options.existing, &environment) {
            Ok((combined, notes)) => {
                tell_combined(several, &notes, console)?;
                let rank = combined.targets.iter().map(|target| target.rank).max().unwrap_or(0);
                console.event(
                    "result",
                    &json!({
                        "output_dir": arguments.out.display().to_string(),
                        "modules": combined.targets.len(),
                        "rank": rank,
                    }),
                );
                line(console.out(), "adapter", &format!("{} modules, rank {rank}", combined.targets.len()))?;
                line(console.out(), "combined", &paint(GOOD, arguments.out.display()))?;
                writeln!(
                    console.out(),
                    "\nNext: tune verify {0}; tune merge {0} --out FOLDER",
                    arguments.out.display()
                )?;
                Ok(Exit::Done)
            }
            Err(error) => Ok(failed(&error, &signals, console)),
        };
    }
    let opened = match (&several, &arguments.adapter) {
        (Some(several), _) => {
            Merge::open_combined(several, base, options, &source, &arguments.out, &environment)
        }
        (None, Some(adapter)) => {
            Merge::open(adapter, base, options, &source, &environment).map(|merge| (merge, Vec::new()))
        }
        (None, None) => {
            console.error("name an adapter, or several with `--adapters` and `--combine`", None);
            return Ok(Exit::Recipe);
        }
    };
    let (merge, notes) = match opened {
        Ok(opened) => opened,
        Err(error) => return Ok(failed(&error, &signals, console)),
    };
    let plan = &merge.plan;
    line(console.out(), "base", &format!("{} ({})", plan.base.name(), plan.base.spec.family))?;
    if let Some(several) = &several {
        tell_combined(several, &notes, console)?;
    }
    let name = arguments.adapter.as_ref().map_or(String::new(), |adapter| format!("{}, ", adapter.display()));
    line(console.out(), "adapter", &format!("{name}{} modules", plan.targets.len()))?;
    tell(&plan.identity, console)?;
    line(console.out(), "onto", &plan.onto_name())?;
    if plan.guesses_quantization() {
        warn(
            console,
            "the adapter does not say how its base was quantized; this is what QLoRA usually does",
        )?;
    }
    console.out().flush()?;
    let mut show = |event: Event| match event {
        Event::Writing(done, total) => console.count("merging", done as u64, total as u64),
        Event::Comparing(done, total) => console.count("comparing", done as u64, total as u64),
    };
    let outcome = merge.run(&arguments.out, &mut show, arguments.device, &environment);
    console.quiet();
    match outcome {
        Ok(outcome) => {
            finish(&outcome, &merge, arguments, console)?;
            Ok(Exit::Done)
        }
        Err(error) => Ok(failed(&error, &signals, console)),
    }
}

/// What was combined, and how.
fn tell_combined(
    combination: &Combination<'_>,
    notes: &[String],
    console: &mut Console<'_>,
) -> io::Result<()> {
    for (folder, weight) in combination.adapters {
        line(console.out(), "adapter", &format!("{weight:+} × {}", folder.display()))?;
    }
    line(console.out(), "combine", &combination.combine.to_string())?;
    for text in notes {
        note(console, text)?;
    }
    Ok(())
}

pub(super) fn failed(error: &run::Error, signals: &Signals, console: &mut Console<'_>) -> Exit {
    match error {
        run::Error::Stopped | run::Error::Export(crate::export::Error::Stopped) => {
            console.error("stopped; nothing was written", None);
            signals.exit()
        }
        run::Error::Export(crate::export::Error::WrongBase { overridable: true, .. }) => {
            let help = "give the base it was trained on with `--base`; if you are sure, `--allow-other-base`";
            console.error(&error.to_string(), Some(help));
            Exit::Other
        }
        run::Error::Export(crate::export::Error::DifferentBases { .. }) => {
            let help = "if you are sure that they belong together, `--allow-other-base`";
            console.error(&error.to_string(), Some(help));
            Exit::Other
        }
        _ => console.failure(error),
    }
}

fn finish(
    outcome: &Outcome,
    merge: &Merge,
    arguments: &MergeArguments,
    console: &mut Console<'_>,
) -> io::Result<()> {
    let (rows, found) = (&merge.rows, &outcome.comparison);
    console.event(
        "result",
        &json!({
            "output_dir": arguments.out.display().to_string(),
            "onto": outcome.onto,
            "modules": merge.plan.targets.len(),
            "files": outcome.files,
            "bytes": outcome.bytes,
            "compared": {
                "rows": rows.ids.len(),
                "tokens": rows.tokens(),
                "origin": rows.origin,
                "effect": found.effect,
                "residual": found.residual,
                "divergence": found.divergence(),
                "agreement": found.agreement,
                "from_training": found.from_training,
            },
        }),
    );
    table(&outcome.report, console.out())?;
    line(
        console.out(),
        "check",
        &format!("{} tokens in {} rows: {}", rows.tokens(), rows.ids.len(), rows.origin),
    )?;
    compared(&outcome.comparison, console)?;
    let files = format!("{} ({} files, {})", arguments.out.display(), outcome.files, Bytes(outcome.bytes));
    line(console.out(), "merged", &paint(GOOD, files))?;
    writeln!(
        console.out(),
        "\nNext: load it with transformers (`AutoModelForCausalLM.from_pretrained(\"{}\")`) or any server of models.",
        arguments.out.display()
    )
}

/// What the comparison found, in logits.
fn compared(found: &Comparison, console: &mut Console<'_>) -> io::Result<()> {
    if found.effect == 0.0 {
        warn(console, "the adapter changes no logit at all: see `tune verify`")?;
    }
    let detail = |text: String| format!("          {text}");
    writeln!(
        console.out(),
        "{}",
        detail(format!(
            "the adapter moves logits by {:.3e}, merging by {:.3e} ({:.2} % of that); same first token after {:.1} %",
            found.effect,
            found.residual,
            100.0 * found.divergence(),
            100.0 * found.agreement
        ))
    )?;
    if let Some(distance) = found.from_training {
        let share = 100.0 * distance / found.effect;
        writeln!(
            console.out(),
            "{}",
            detail(format!(
                "from the adapter on the quantized base it was trained on: {distance:.3e} ({share:.0} % of the effect)"
            ))
        )?;
        if distance > FAR * found.effect {
            warn(
                console,
                "the original weights are far from those it was trained on; `--onto nf4` merges onto the latter",
            )?;
        }
    }
    Ok(())
}

/// Layer by layer: how large the change is, and what quantization and rounding are beside it.
fn table(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{}", paint(STRONG, "layer       delta/weight   nf4 error/delta   rounding/delta"))?;
    let group = report.layers.len().div_ceil(TABLE_LINES).max(1);
    for layers in report.layers.chunks(group) {
        let sum = |of: &dyn Fn(&crate::export::weights::LayerChange) -> f64| -> f64 {
            layers.iter().map(|layer| of(layer).powi(2)).sum::<f64>().sqrt()
        };
        let (weight, delta) = (sum(&|layer| layer.weight), sum(&|layer| layer.delta));
        let known = layers.iter().all(|layer| layer.quantization.is_some());
        let quantization = match known && delta > 0.0 {
            true => format!("{:.3}", sum(&|layer| layer.quantization.unwrap_or_default()) / delta),
            false => "-".into(),
        };
        let rounding =
            if delta > 0.0 { format!("{:.4}", sum(&|layer| layer.rounding) / delta) } else { "-".into() };
        let name = match layers {
            [first, .., last] => format!("{}-{}", first.layer, last.layer),
            [only] => only.layer.to_string(),
            [] => continue,
        };
        writeln!(
            out,
            "{name:<11}{:>13.6}{quantization:>18}{rounding:>17}",
            delta / weight.max(f64::MIN_POSITIVE)
        )?;
    }
    Ok(())
}

/// Writes an adapter for another program.
pub(super) fn export(arguments: &ExportArguments, console: &mut Console<'_>) -> io::Result<Exit> {
    let consumer = match &arguments.form {
        FormArguments { gguf: Some(file), .. } => return gguf::model(arguments, (*file).into(), console),
        FormArguments { gguf_lora: Some(dtype), .. } => {
            return gguf::lora(arguments, (*dtype).into(), console);
        }
        FormArguments { consumer: Some(consumer), .. } => (*consumer).into(),
        FormArguments { consumer: None, gguf: None, gguf_lora: None } => {
            console.error("name what to write: `--for`, `--gguf` or `--gguf-lora`", None);
            return Ok(Exit::Recipe);
        }
    };
    if arguments.onto.is_some() || arguments.allow_other_base {
        console.error(
            "`--onto` and `--allow-other-base` go with `--gguf`; `--for` asks nothing of the base",
            None,
        );
        return Ok(Exit::Recipe);
    }
    let cache = hub_cache();
    let environment = Environment { hub_cache: &cache, stop: &|| false };
    let exported = adapters::export(
        &arguments.source,
        arguments.base.choice(),
        consumer,
        &arguments.out,
        existing(arguments.overwrite),
        &environment,
    );
    match exported {
        Ok(exported) => {
            console.event(
                "result",
                &json!({
                    "output_dir": arguments.out.display().to_string(),
                    "for": consumer.word(),
                    "changes": exported.changes,
                    "usage": exported.usage,
                }),
            );
            match exported.changes.as_slice() {
                [] => line(console.out(), "changed", "nothing: its numbers are as they were")?,
                changes => line(console.out(), "changed", &changes.join("; "))?,
            }
            line(console.out(), "exported", &paint(GOOD, arguments.out.display()))?;
            writeln!(console.out(), "\nNext: {}", paint(STRONG, exported.usage))?;
            Ok(Exit::Done)
        }
        Err(error @ run::Error::Adapter(adapter::Error::Unusable { .. })) => {
            let help = "what cannot be carried over can be merged instead: in PEFT, `merge_and_unload()`";
            console.error(&error.to_string(), Some(help));
            Ok(Exit::Other)
        }
        Err(error) => Ok(console.failure(&error)),
    }
}

/// Whether base and adapter belong together.
pub(super) fn tell(identity: &Identity, console: &mut Console<'_>) -> io::Result<()> {
    if !identity.same.is_empty() {
        let text = format!("same as in training: {}", identity.same.join(", "));
        writeln!(console.out(), "          {}", paint(FAINT, text))?;
    }
    for difference in &identity.overruled {
        warn(console, &format!("not the base it was trained on: {difference}"))?;
    }
    for text in &identity.notes {
        note(console, text)?;
    }
    Ok(())
}

pub(super) fn line(out: &mut dyn Write, name: &str, text: &str) -> io::Result<()> {
    writeln!(out, "{} {text}", paint(STRONG, format!("{name:<9}")))
}

/// Something that a person should look at, among what is told of the files.
pub(super) fn warn(console: &mut Console<'_>, text: &str) -> io::Result<()> {
    console.warning(text);
    writeln!(console.out(), "{} {text}", paint(WARNING, "warning:"))
}

/// Something worth knowing, below the line it belongs to.
fn note(console: &mut Console<'_>, text: &str) -> io::Result<()> {
    console.event("note", &json!({"message": text}));
    writeln!(console.out(), "          {}", paint(FAINT, text))
}
