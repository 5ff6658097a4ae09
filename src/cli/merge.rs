//! `tune merge` and `tune export`.

use std::io::{self, Write};

use super::adapter_args::{BaseArguments, ExportArguments, FormArguments, MergeArguments};
use super::environment::{Signals, hub_cache};
use super::exit::Exit;
use super::gguf;
use super::progress::Progress;
use super::report;
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
pub(super) fn merge(arguments: &MergeArguments, out: &mut impl Write) -> io::Result<Exit> {
    let shard = arguments.max_shard_gb;
    let sensible = shard > 0.0 && shard <= 1e6 && arguments.max_divergence >= 0.0;
    if !sensible {
        report::error("`--max-shard-gb` has to be above 0, `--max-divergence` at least 0", None);
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
            report::error(message, None);
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
                tell_combined(several, &notes, out)?;
                let rank = combined.targets.iter().map(|target| target.rank).max().unwrap_or(0);
                line(out, "adapter", &format!("{} modules, rank {rank}", combined.targets.len()))?;
                line(out, "combined", &paint(GOOD, arguments.out.display()))?;
                writeln!(
                    out,
                    "\nNext: tune verify {0}; tune merge {0} --out FOLDER",
                    arguments.out.display()
                )?;
                Ok(Exit::Done)
            }
            Err(error) => Ok(failed(&error, &signals)),
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
            report::error("name an adapter, or several with `--adapters` and `--combine`", None);
            return Ok(Exit::Recipe);
        }
    };
    let (merge, notes) = match opened {
        Ok(opened) => opened,
        Err(error) => return Ok(failed(&error, &signals)),
    };
    let plan = &merge.plan;
    line(out, "base", &format!("{} ({})", plan.base.name(), plan.base.spec.family))?;
    if let Some(several) = &several {
        tell_combined(several, &notes, out)?;
    }
    let name = arguments.adapter.as_ref().map_or(String::new(), |adapter| format!("{}, ", adapter.display()));
    line(out, "adapter", &format!("{name}{} modules", plan.targets.len()))?;
    tell(&plan.identity, out)?;
    line(out, "onto", &plan.onto_name())?;
    if plan.guesses_quantization() {
        warn(out, "the adapter does not say how its base was quantized; this is what QLoRA usually does")?;
    }
    out.flush()?;
    let mut progress = Progress::new();
    let mut show = |event: Event| match event {
        Event::Writing(done, total) => progress.count("merging", done as u64, total as u64),
        Event::Comparing(done, total) => progress.count("comparing", done as u64, total as u64),
    };
    let outcome = merge.run(&arguments.out, &mut show, arguments.device, &environment);
    drop(progress);
    match outcome {
        Ok(outcome) => {
            finish(&outcome, &merge, arguments, out)?;
            Ok(Exit::Done)
        }
        Err(error) => Ok(failed(&error, &signals)),
    }
}

/// What was combined, and how.
fn tell_combined(combination: &Combination<'_>, notes: &[String], out: &mut impl Write) -> io::Result<()> {
    for (folder, weight) in combination.adapters {
        line(out, "adapter", &format!("{weight:+} × {}", folder.display()))?;
    }
    line(out, "combine", &combination.combine.to_string())?;
    for note in notes {
        writeln!(out, "          {}", paint(FAINT, note))?;
    }
    Ok(())
}

pub(super) fn failed(error: &run::Error, signals: &Signals) -> Exit {
    match error {
        run::Error::Stopped | run::Error::Export(crate::export::Error::Stopped) => {
            report::error("stopped; nothing was written", None);
            signals.exit()
        }
        run::Error::Export(crate::export::Error::WrongBase { overridable: true, .. }) => {
            let help = "give the base it was trained on with `--base`; if you are sure, `--allow-other-base`";
            report::error(&error.to_string(), Some(help));
            Exit::Other
        }
        run::Error::Export(crate::export::Error::DifferentBases { .. }) => {
            let help = "if you are sure that they belong together, `--allow-other-base`";
            report::error(&error.to_string(), Some(help));
            Exit::Other
        }
        _ => report::failure(error),
    }
}

fn finish(
    outcome: &Outcome,
    merge: &Merge,
    arguments: &MergeArguments,
    out: &mut impl Write,
) -> io::Result<()> {
    table(&outcome.report, out)?;
    let rows = &merge.rows;
    line(out, "check", &format!("{} tokens in {} rows: {}", rows.tokens(), rows.ids.len(), rows.origin))?;
    compared(&outcome.comparison, out)?;
    let files = format!("{} ({} files, {})", arguments.out.display(), outcome.files, Bytes(outcome.bytes));
    line(out, "merged", &paint(GOOD, files))?;
    writeln!(
        out,
        "\nNext: load it with transformers (`AutoModelForCausalLM.from_pretrained(\"{}\")`) or any server of models.",
        arguments.out.display()
    )
}

/// What the comparison found, in logits.
fn compared(found: &Comparison, out: &mut impl Write) -> io::Result<()> {
    if found.effect == 0.0 {
        warn(out, "the adapter changes no logit at all: see `tune verify`")?;
    }
    let detail = |text: String| format!("          {text}");
    writeln!(
        out,
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
            out,
            "{}",
            detail(format!(
                "from the adapter on the quantized base it was trained on: {distance:.3e} ({share:.0} % of the effect)"
            ))
        )?;
        if distance > FAR * found.effect {
            warn(
                out,
                "the original weights are far from those it was trained on; `--onto nf4` merges onto the latter",
            )?;
        }
    }
    Ok(())
}

/// Layer by layer: how large the change is, and what quantization and rounding are beside it.
fn table(report: &Report, out: &mut impl Write) -> io::Result<()> {
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
pub(super) fn export(arguments: &ExportArguments, out: &mut impl Write) -> io::Result<Exit> {
    let consumer = match &arguments.form {
        FormArguments { gguf: Some(file), .. } => return gguf::model(arguments, (*file).into(), out),
        FormArguments { gguf_lora: Some(dtype), .. } => return gguf::lora(arguments, (*dtype).into(), out),
        FormArguments { consumer: Some(consumer), .. } => (*consumer).into(),
        FormArguments { consumer: None, gguf: None, gguf_lora: None } => {
            report::error("name what to write: `--for`, `--gguf` or `--gguf-lora`", None);
            return Ok(Exit::Recipe);
        }
    };
    if arguments.onto.is_some() || arguments.allow_other_base {
        report::error(
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
            match exported.changes.as_slice() {
                [] => line(out, "changed", "nothing: its numbers are as they were")?,
                changes => line(out, "changed", &changes.join("; "))?,
            }
            line(out, "exported", &paint(GOOD, arguments.out.display()))?;
            writeln!(out, "\nNext: {}", paint(STRONG, exported.usage))?;
            Ok(Exit::Done)
        }
        Err(error @ run::Error::Adapter(adapter::Error::Unusable { .. })) => {
            let help = "what cannot be carried over can be merged instead: in PEFT, `merge_and_unload()`";
            report::error(&error.to_string(), Some(help));
            Ok(Exit::Other)
        }
        Err(error) => Ok(report::failure(&error)),
    }
}

/// Whether base and adapter belong together.
pub(super) fn tell(identity: &Identity, out: &mut impl Write) -> io::Result<()> {
    if !identity.same.is_empty() {
        let text = format!("same as in training: {}", identity.same.join(", "));
        writeln!(out, "          {}", paint(FAINT, text))?;
    }
    for difference in &identity.overruled {
        warn(out, &format!("not the base it was trained on: {difference}"))?;
    }
    for note in &identity.notes {
        writeln!(out, "          {}", paint(FAINT, note))?;
    }
    Ok(())
}

pub(super) fn line(out: &mut impl Write, name: &str, text: &str) -> io::Result<()> {
    writeln!(out, "{} {text}", paint(STRONG, format!("{name:<9}")))
}

pub(super) fn warn(out: &mut impl Write, text: &str) -> io::Result<()> {
    writeln!(out, "{} {text}", paint(WARNING, "warning:"))
}
