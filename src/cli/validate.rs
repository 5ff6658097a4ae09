//! `tune validate`.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::args::{RecipeArguments, ValidateArguments};
use super::console::{Console, targets_of};
use super::environment::{Signals, hub_cache};
use super::exit::Exit;
use super::style::{GOOD, STRONG, WARNING, paint};
use super::tables;
use crate::adapter::target::Target;
use crate::adapter::whole::Whole;
use crate::data::survey::{Statistics, Tally};
use crate::recipe::RecipeFile;
use crate::run::validate::{Validation, validate as check};
use crate::run::{self, Environment};
use crate::units::Grouped;

/// Checks a recipe and shows what its run would be.
pub(super) fn validate(arguments: &ValidateArguments, console: &mut Console<'_>) -> io::Result<Exit> {
    let file =
        match RecipeFile::open(&arguments.recipe.recipe, &arguments.recipe.overrides_with(&arguments.device))
        {
            Ok(file) => file,
            Err(error) => return Ok(console.failure(&error.into())),
        };
    let signals = Signals::listen();
    let stop = || signals.raised();
    let cache = hub_cache();
    let environment = Environment { hub_cache: &cache, stop: &stop };
    let validation = check(file, &environment, arguments.fit, console);
    console.quiet();
    match validation {
        Ok(validation) => {
            for warning in &validation.warnings {
                console.warning(warning);
            }
            if console.json() {
                console.event("targets", &targets_of(&validation.targets));
                console.event("data", &Statistics::of(&validation.survey));
                console.event("result", &result_of(&validation));
            } else {
                show(&validation, &arguments.recipe, console.out())?;
            }
            Ok(Exit::Done)
        }
        Err(run::Error::Stopped) => Ok(signals.exit()),
        Err(error) => Ok(console.failure(&error)),
    }
}

/// What a run would be, as JSON.
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
    let wholes: u64 = validation.wholes.iter().map(Whole::parameters).sum();
    validation.targets.iter().map(Target::parameters).sum::<u64>() + wholes
}

fn show(validation: &Validation, arguments: &RecipeArguments, out: &mut dyn Write) -> io::Result<()> {
    let Validation { recipe, survey, .. } = validation;
    let (family, parameters) = validation.model;
    let storage = match recipe.quantization {
        Some(crate::quant::spec::Spec::Nf4 { block_size, double_quant }) => {
            let double = if double_quant { " with double quantization" } else { "" };
            format!("NF4, blocks of {block_size}{double}")
        }
        None => "dense".to_owned(),
    };
    let line = |out: &mut dyn Write, name: &str, text: String| {
        writeln!(out, "{} {text}", paint(STRONG, format!("{name:<10}")))
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
    for whole in &validation.wholes {
        let [rows, columns] = whole.shape;
        let size = Grouped(whole.parameters());
        line(
            out,
            "whole",
            format!("{} is trained as a whole: {rows} × {columns}, {size} parameters", whole.path),
        )?;
    }
    if recipe.adapter.use_dora {
        line(out, "DoRA", "a magnitude for every row of an adapted weight".to_owned())?;
    }
    let ratio = recipe.adapter.learning_rate_ratio;
    if ratio > 1.0 {
        let rate = recipe.train.learning_rate;
        line(out, "LoRA+", format!("A learns at {rate:e}, B at {:e} ({ratio} times that)", ratio * rate))?;
    }
    line(out, "training", tally(&survey.train))?;
    line(out, "held out", tally(&survey.validation))?;
    if let Some(schedule) = survey.schedule {
        line(
            out,
            "schedule",
            format!(
                "{} optimizer steps ({} of them warm-up), {} an epoch, {} tokens, largest micro-batch {} tokens",
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
    for warning in &validation.warnings {
        writeln!(out, "{} {warning}", paint(WARNING, "warning:"))?;
    }
    writeln!(out, "\n{}. Next: tune run {}", paint(GOOD, "The recipe is valid"), arguments.recipe.display())
}

fn tally(tally: &Tally) -> String {
    let supervised = 100.0 * tally.supervised_tokens as f64 / tally.tokens.max(1) as f64;
    let longest = tally
        .longest
        .map(|(tokens, _)| format!(", the longest {}", Grouped(tokens.into())))
        .unwrap_or_default();
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
