//! `tune validate`.

use std::io::{self, Write};

use clap::Args;
use serde_json::{Value, json};

use super::args::{DeviceArguments, RecipeArguments};
use super::console::{Console, targets_of};
use super::environment::Context;
use super::exit::Exit;
use super::failure::Failure;
use super::lines::next;
use super::style::{GOOD, STRONG, WARNING, output_width, paint, wrapped};
use super::tables;
use crate::adapter::saved::SavedModule;
use crate::adapter::target::Target;
use crate::data::survey::{Statistics, Tally};
use crate::quant::spec::{Quantization, Spec};
use crate::run::validate::{Validation, validate as check};
use crate::units::Grouped;

/// Arguments of `tune validate`.
#[derive(Debug, Args)]
pub struct ValidateArguments {
    /// The recipe.
    #[command(flatten)]
    pub recipe: RecipeArguments,
    /// The device.
    #[command(flatten)]
    pub device: DeviceArguments,
    /// Show the micro-batches that `tune run --fit` would choose
    #[arg(long)]
    pub fit: bool,
}

/// Checks a recipe and shows the plan of its run.
pub(super) fn validate(
    arguments: &ValidateArguments,
    context: &Context<'_>,
    console: &mut Console<'_>,
) -> Result<Exit, Failure> {
    let file = arguments.recipe.open(arguments.device.device)?;
    let validation = check(file, &context.environment, arguments.fit, console)?;
    console.quiet();
    for warning in &validation.warnings {
        console.warning(warning);
    }
    for note in &validation.notes {
        console.event("note", &json!({"message": note}));
    }
    console.event("targets", &targets_of(&validation.targets));
    console.event("data", &Statistics::of(&validation.survey));
    console.event("result", &result_of(&validation));
    show(&validation, arguments, console.out())?;
    Ok(Exit::Done)
}

/// The plan of a run, as JSON.
fn result_of(validation: &Validation) -> Value {
    let (family, parameters) = validation.model;
    json!({
        "base": validation.recipe.model.base,
        "family": family,
        "base_parameters": parameters,
        "compute_dtype": validation.compute_dtype.name(),
        "device": validation.device,
        "template": validation.template,
        "trainable_parameters": trainable(validation),
        "fitted": validation.fitted,
        "micro_batch_size": validation.recipe.train.micro_batch_size,
        "gradient_accumulation_steps": validation.recipe.train.gradient_accumulation_steps,
        "warmup_steps": validation.warmup_steps,
        "output_dir": validation.recipe.output_dir.display().to_string(),
        "recipe_sha256": validation.recipe.sha256(),
    })
}

fn trainable(validation: &Validation) -> u64 {
    let saved_modules: u64 = validation.saved_modules.iter().map(SavedModule::parameters).sum();
    validation.targets.iter().map(Target::parameters).sum::<u64>() + saved_modules
}

fn show(validation: &Validation, arguments: &ValidateArguments, out: &mut dyn Write) -> io::Result<()> {
    let Validation { recipe, survey, .. } = validation;
    let (family, parameters) = validation.model;
    let storage = match &recipe.quantization {
        Some(Quantization { blocks: Spec::Nf4 { block_size, double_quant }, keep }) => {
            let double = if *double_quant { " with double quantization" } else { "" };
            let keep = if keep.is_empty() { String::new() } else { format!(", {} dense", keep.join(", ")) };
            format!("NF4, blocks of {block_size}{double}{keep}")
        }
        None => "dense".to_owned(),
    };
    let line = |out: &mut dyn Write, name: &str, text: String| {
        let text = format!("{} {text}", paint(STRONG, format!("{name:<10}")));
        writeln!(out, "{}", wrapped(&text, output_width(), "           "))
    };
    line(
        out,
        "base",
        format!("{} ({family}, {} parameters, {storage})", recipe.model.base, Grouped(parameters)),
    )?;
    line(out, "compute", format!("{} on {}", validation.compute_dtype.name(), validation.device))?;
    if let Some(template) = &validation.template {
        line(out, "template", template.clone())?;
    }
    for row in tables::targets(&validation.targets) {
        writeln!(out, "{row}")?;
    }
    for saved in &validation.saved_modules {
        let [rows, columns] = saved.shape;
        let size = Grouped(saved.parameters());
        line(
            out,
            "saved",
            format!("{} is trained in full: {rows} × {columns}, {size} parameters", saved.path),
        )?;
    }
    if recipe.adapter.use_dora {
        line(out, "DoRA", "one magnitude per row of each adapted weight".to_owned())?;
    }
    let ratio = recipe.adapter.learning_rate_ratio;
    if ratio > 1.0 {
        let rate = recipe.train.learning_rate;
        line(
            out,
            "LoRA+",
            format!("learning rate {rate:e} for A, {:e} for B ({ratio} times that)", ratio * rate),
        )?;
    }
    line(out, "training", tally(&survey.train))?;
    line(out, "held out", tally(&survey.validation))?;
    if let Some(schedule) = survey.schedule {
        line(
            out,
            "schedule",
            format!(
                "{} optimizer steps ({} of them warm-up), {} per epoch, {} tokens, largest micro-batch {} tokens",
                Grouped(schedule.steps),
                Grouped(validation.warmup_steps),
                Grouped(schedule.steps_per_epoch),
                Grouped(schedule.tokens),
                Grouped(schedule.largest_micro_batch),
            ),
        )?;
    }
    if let Some(fitted) = &validation.fitted {
        line(out, "fit", fitted.clone())?;
    }
    line(out, "memory", tables::plan_line(&validation.plan))?;
    for row in tables::plan(&validation.plan) {
        writeln!(out, "{row}")?;
    }
    line(out, "output", recipe.output_dir.display().to_string())?;
    for note in &validation.notes {
        writeln!(out, "{}", wrapped(&format!("{} {note}", paint(STRONG, "note:")), output_width(), "  "))?;
    }
    for warning in &validation.warnings {
        let text = format!("{} {warning}", paint(WARNING, "warning:"));
        writeln!(out, "{}", wrapped(&text, output_width(), "  "))?;
    }
    writeln!(out, "\n{}.", paint(GOOD, "The recipe is valid"))?;
    let ValidateArguments { recipe, device, fit } = arguments;
    let flags: &[&str] = if *fit { &["--fit"] } else { &[] };
    next(
        out,
        &[
            ("see what is trained on", recipe.typed("inspect", DeviceArguments::default(), &[])),
            ("train", recipe.typed("run", *device, flags)),
        ],
    )
}

fn tally(tally: &Tally) -> String {
    let supervised = 100.0 * tally.supervised_tokens as f64 / tally.tokens.max(1) as f64;
    let longest =
        tally.longest.map(|(tokens, _)| format!(", longest {}", Grouped(tokens.into()))).unwrap_or_default();
    match tally.rows {
        0 => "none".to_owned(),
        rows => format!(
            "{} of {} rows used, {} tokens ({supervised:.0} % supervised){longest}",
            Grouped(tally.used),
            Grouped(rows),
            Grouped(tally.tokens),
        ),
    }
}
