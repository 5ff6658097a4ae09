//! `tune merge`.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::args::{BaseArguments, FolderArguments, gigabytes, number};
use super::combine::{self, CombineArguments};
use super::console::Console;
use super::environment::Context;
use super::exit::Exit;
use super::failure::Failure;
use super::fidelity::{self, RowsArguments};
use super::lines::{detail, identity, line, warn};
use super::style::{GOOD, STRONG, paint};
use crate::export::check::{Comparison, MAX_DIVERGENCE};
use crate::export::merge::{Options, Outcome, Progress, Wanted};
use crate::export::weights::{Onto, Report};
use crate::model::FloatDtype;
use crate::recipe::DeviceSpec;
use crate::run::adapters::Merge;
use crate::run::fidelity::{Fidelity, HeldOut};
use crate::run::held_out::Source;
use crate::run::named::adapter_folder;
use crate::units::Bytes;

/// Distance from the adapter on its base of training, as a share of its effect, from which a warning is printed.
const FAR: f64 = 0.25;
/// Largest number of lines in the table of layers; more layers are grouped.
const TABLE_LINES: usize = 16;
/// Shown where the quantization of the base in training is assumed.
pub(super) const ASSUMED: &str =
    "the adapter does not record how its base was quantized; QLoRA's usual settings are assumed";

/// Arguments of `tune merge`.
#[derive(Debug, Args)]
pub struct MergeArguments {
    /// The folder of an adapter or of a finished run
    #[arg(value_name = "ADAPTER|RUN", required_unless_present = "adapters")]
    pub adapter: Option<PathBuf>,
    /// The base.
    #[command(flatten)]
    pub base: BaseArguments,
    /// The merged folder.
    #[command(flatten)]
    pub folder: FolderArguments,
    /// The weights to merge into [default: original; for a 4-bit checkpoint, its dequantized weights]
    #[arg(long, value_enum)]
    pub onto: Option<Wanted>,
    /// Dtype of the merged weights
    #[arg(long, value_enum, default_value = "auto")]
    pub dtype: DtypeArgument,
    /// Compare on the lines of this file instead of held-out or generated rows
    #[arg(long, value_name = "FILE", conflicts_with = "recipe")]
    pub prompts: Option<PathBuf>,
    /// Compare on the held-out rows of this recipe
    #[arg(long, value_name = "FILE")]
    pub recipe: Option<PathBuf>,
    /// The rows that the merged model is measured on.
    #[command(flatten)]
    pub rows: RowsArguments,
    /// Refuse the merge if rounding loses more than this share of the adapter's effect
    #[arg(long, value_name = "SHARE", default_value_t = MAX_DIVERGENCE, value_parser = divergence)]
    pub max_divergence: f64,
    /// Merge even if the base's files differ from those that the adapter records (sizes and family must fit)
    #[arg(long)]
    pub allow_other_base: bool,
    /// The device of the comparison: auto, cpu, cuda, cuda:N, vulkan, vulkan:N, metal
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceSpec,
    /// Largest file of weights, in gigabytes
    #[arg(long = "max-shard-gb", value_name = "GB", default_value = "5", value_parser = gigabytes)]
    pub shard_bytes: u64,
    /// Several adapters.
    #[command(flatten)]
    pub combine: CombineArguments,
}

/// `--dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DtypeArgument {
    /// Each tensor keeps its own; dequantized ones get the model's
    Auto,
    /// bfloat16
    Bf16,
    /// IEEE half precision
    F16,
    /// 32-bit floats
    F32,
}

impl DtypeArgument {
    fn dtype(self) -> Option<FloatDtype> {
        match self {
            Self::Auto => None,
            Self::Bf16 => Some(FloatDtype::Bf16),
            Self::F16 => Some(FloatDtype::F16),
            Self::F32 => Some(FloatDtype::F32),
        }
    }
}

fn divergence(text: &str) -> Result<f64, String> {
    number(text, |value| value >= 0.0, "of at least 0")
}

/// Merges an adapter, or several combined, into their base.
pub(super) fn merge(
    arguments: &MergeArguments,
    context: &Context<'_>,
    console: &mut Console<'_>,
) -> Result<Exit, Failure> {
    let options = Options {
        onto: arguments.onto,
        dtype: arguments.dtype.dtype(),
        any_hash: arguments.allow_other_base,
        max_divergence: arguments.max_divergence,
        shard_bytes: arguments.shard_bytes,
        existing: arguments.folder.existing(),
    };
    let source = match (&arguments.prompts, &arguments.recipe) {
        (Some(prompts), _) => Source::Prompts(prompts.clone()),
        (None, Some(recipe)) => Source::Recipe(recipe.clone()),
        (None, None) => Source::Any,
    };
    let combination = match arguments.combine.combination(arguments.allow_other_base) {
        Ok(combination) => combination,
        Err(message) => {
            console.error(message, None);
            return Ok(Exit::Recipe);
        }
    };
    let (base, out, environment) = (arguments.base.choice(), &arguments.folder.out, &context.environment);
    if let Some(combination) = combination.as_ref().filter(|_| arguments.combine.as_adapter) {
        let (combined, notes) = combination.write(base, out, options.existing, environment)?;
        combine::written(combination, &combined, &notes, out, console)?;
        return Ok(Exit::Done);
    }
    let (merge, notes) = match (&combination, &arguments.adapter) {
        (Some(combination), _) => {
            Merge::open_combined(combination, base, options, &source, out, environment)?
        }
        (None, Some(adapter)) => {
            let adapter = adapter_folder(adapter)?;
            (Merge::open(&adapter, base, options, &source, environment)?, Vec::new())
        }
        (None, None) => {
            console.error(
                "no adapter given",
                Some("name its folder, or several with `--adapters` and `--combine`"),
            );
            return Ok(Exit::Recipe);
        }
    };
    let plan = &merge.plan;
    line(console.out(), "base", &format!("{} ({})", plan.base.name(), plan.base.spec.family))?;
    if let Some(combination) = &combination {
        combine::describe(combination, &notes, console)?;
    }
    let name = arguments.adapter.as_ref().map_or(String::new(), |adapter| format!("{}, ", adapter.display()));
    line(console.out(), "adapter", &format!("{name}{} modules", plan.targets.len()))?;
    identity(&plan.identity, console)?;
    line(console.out(), "onto", &plan.onto_name())?;
    if plan.guesses_quantization() {
        warn(console, ASSUMED)?;
    }
    console.out().flush()?;
    let mut show = |progress: Progress| match progress {
        Progress::Writing(done, total) => console.count("merging", done as u64, total as u64),
        Progress::Comparing(done, total) => console.count("comparing", done as u64, total as u64),
    };
    // Rows that cannot be used are said before the work.
    let rows = match (&arguments.recipe, &arguments.adapter) {
        (Some(recipe), _) if arguments.rows.wants_run() => Some(HeldOut::of_recipe(recipe, environment)?),
        (_, Some(adapter)) => {
            let adapter = adapter_folder(adapter)?;
            arguments.rows.held_out((&adapter, true), &arguments.base, environment)?
        }
        (_, None) => None,
    };
    let outcome = merge.run(out, &mut show, arguments.device, environment)?;
    let mut show = |done, total| console.count("measuring", done as u64, total as u64);
    let measured = rows.map(|rows| merge.measure(out, &rows, arguments.device, &mut show, environment));
    console.quiet();
    let measured = fidelity::measured(measured, console)?;
    finish(&outcome, measured.as_ref(), &merge, arguments, console)?;
    Ok(Exit::Done)
}

fn finish(
    outcome: &Outcome,
    measured: Option<&Fidelity>,
    merge: &Merge,
    arguments: &MergeArguments,
    console: &mut Console<'_>,
) -> io::Result<()> {
    let (rows, found) = (&merge.rows, &outcome.comparison);
    let folder = arguments.folder.out.display();
    console.event(
        "result",
        &json!({
            "output_dir": folder.to_string(),
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
            "held_out": measured,
        }),
    );
    table(&outcome.report, console.out())?;
    let compared_on = format!("{} tokens in {} rows: {}", rows.tokens(), rows.ids.len(), rows.origin);
    line(console.out(), "check", &compared_on)?;
    compared(&outcome.comparison, console)?;
    if let Some(measured) = measured {
        let less = match merge.plan.onto {
            Onto::Original if merge.plan.adapted().quantization.is_some() => fidelity::ONTO_TRAINED,
            _ => "`--dtype f32` rounds less, and the adapter beside its base loses nothing",
        };
        fidelity::show(measured, Some(less), console)?;
    }
    let files = format!("{folder} ({} files, {})", outcome.files, Bytes(outcome.bytes));
    line(console.out(), "merged", &paint(GOOD, files))?;
    writeln!(
        console.out(),
        "\nNext: load it with transformers or any inference server:\n  AutoModelForCausalLM.from_pretrained(\"{folder}\")"
    )
}

/// The comparison of merged model and adapter on base, in logits.
fn compared(found: &Comparison, console: &mut Console<'_>) -> io::Result<()> {
    if found.effect == 0.0 {
        warn(console, "the adapter changes no logit; `tune verify` shows why")?;
    }
    let text = format!(
        "logits change by {:.3e} through the adapter, by {:.3e} through merging ({:.2} %)",
        found.effect,
        found.residual,
        100.0 * found.divergence(),
    );
    detail(console.out(), text)?;
    detail(
        console.out(),
        format!("same most likely token at {:.1} % of positions", 100.0 * found.agreement),
    )?;
    if let Some(distance) = found.from_training {
        let share = 100.0 * distance / found.effect;
        let text = format!(
            "logits differ by {distance:.3e} from those on the 4-bit base of training ({share:.0} % of the adapter's effect)"
        );
        detail(console.out(), text)?;
        if distance > FAR * found.effect {
            let how = format!("its outputs differ by {share:.0} % of what it changes");
            warn(console, &fidelity::other_weights(&how))?;
        }
    }
    Ok(())
}

/// Layer by layer: the relative size of the delta, and of the quantization and rounding errors.
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
