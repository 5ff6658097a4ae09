//! `tune verify`.

use std::io;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::console::Console;
use super::environment::Context;
use super::exit::Exit;
use super::failure::Failure;
use super::finding::Finding;
use super::lines::{identity, line};
use super::style::{ERROR, FAINT, GOOD, STRONG, paint};
use crate::adapter::table::LayerRanges;
use crate::export::verify::{ModuleReport, Verification};
use crate::run::adapters::{self, BaseChoice};
use crate::run::named::adapter_folder;

/// Arguments of `tune verify`.
#[derive(Debug, Args)]
pub struct VerifyArguments {
    /// The folder of an adapter or of a finished run
    #[arg(value_name = "ADAPTER|RUN")]
    pub adapter: PathBuf,
    /// The base model to check it against
    #[arg(long, value_name = "FOLDER|ID")]
    pub base: Option<String>,
    /// A branch, tag or commit of the hub id
    #[arg(long, requires = "base")]
    pub revision: Option<String>,
}

/// Verifies an adapter; the exit code tells whether it is good.
pub(super) fn verify(
    arguments: &VerifyArguments,
    context: &Context<'_>,
    console: &mut Console<'_>,
) -> Result<Exit, Failure> {
    if !arguments.adapter.is_dir() {
        let message = format!("{} is not a folder", arguments.adapter.display());
        console.error(&message, Some("name a run or an adapter, as in `tune verify runs/NAME`"));
        return Ok(Exit::Recipe);
    }
    let base = BaseChoice { base: arguments.base.as_deref(), revision: arguments.revision.as_deref() };
    let found = adapters::verify(&adapter_folder(&arguments.adapter)?, base, &context.environment)?;
    console.event("result", &as_json(&found));
    show(&found, console)?;
    for problem in &found.problems {
        console.problem(&Finding::new(problem.to_string(), None));
    }
    Ok(if found.problems.is_empty() { Exit::Done } else { Exit::Other })
}

fn show(found: &Verification, console: &mut Console<'_>) -> io::Result<()> {
    let out = console.out();
    line(out, "adapter", &found.folder.display().to_string())?;
    for file in &found.files {
        writeln!(out, "          {} {}", paint(FAINT, &file.sha256), file.name)?;
    }
    if let Some((name, revision)) = &found.base {
        let revision = revision.as_ref().map_or(String::new(), |revision| format!(" at {revision}"));
        line(out, "base", &format!("{name}{revision}"))?;
    }
    if let Some(evidence) = &found.identity {
        identity(evidence, console)?;
    }
    let out = console.out();
    if !found.modules.is_empty() {
        writeln!(
            out,
            "{}",
            paint(STRONG, "modules    layers      rank  scaling   ‖scaling·B·A‖, smallest to largest")
        )?;
        for row in rows(&found.modules) {
            writeln!(out, "{row}")?;
        }
    }
    for saved in &found.saved_modules {
        line(out, "saved", &format!("{}, {} × {}", saved.path, saved.shape[0], saved.shape[1]))?;
    }
    for (key, value) in &found.provenance {
        writeln!(out, "          {} {value}", paint(FAINT, key))?;
    }
    if let Some(compatibility) = &found.compatibility {
        line(out, "readers", &compatibility.to_string())?;
    }
    match found.problems.as_slice() {
        [] => line(
            out,
            "verified",
            &paint(GOOD, "every tensor is used, every pair is complete, every module has an effect"),
        ),
        problems => {
            for problem in problems {
                writeln!(out, "{} {problem}", paint(ERROR, "problem:"))?;
            }
            Ok(())
        }
    }
}

/// One line for each projection, rank and scaling.
fn rows(modules: &[ModuleReport]) -> Vec<String> {
    let mut groups: Vec<(&ModuleReport, Vec<usize>, Vec<f64>)> = Vec::new();
    for module in modules {
        let same = |first: &ModuleReport| {
            let (left, right) = (&first.target, &module.target);
            left.module.path_in_layer() == right.module.path_in_layer()
                && (left.rank, left.scaling) == (right.rank, right.scaling)
        };
        match groups.iter_mut().find(|(first, ..)| same(first)) {
            Some((_, layers, norms)) => {
                layers.push(module.target.module.layer);
                norms.extend(module.norm);
            }
            None => {
                groups.push((module, vec![module.target.module.layer], module.norm.into_iter().collect()))
            }
        }
    }
    groups.sort_by_key(|(first, ..)| first.target.module.slot);
    let row = |(first, layers, norms): &(&ModuleReport, Vec<usize>, Vec<f64>)| {
        let least = norms.iter().copied().fold(f64::INFINITY, f64::min);
        let most = norms.iter().copied().fold(0.0, f64::max);
        let span = match norms.is_empty() {
            true => "-".to_owned(),
            false => format!("{least:.4e} to {most:.4e}"),
        };
        format!(
            "{:<11}{:<10}{:>6}{:>9.4}   {span}",
            first.target.module.name(),
            LayerRanges(layers).to_string(),
            first.target.rank,
            first.target.scaling,
        )
    };
    groups.iter().map(row).collect()
}

fn as_json(found: &Verification) -> Value {
    let modules: Vec<Value> = found
        .modules
        .iter()
        .map(|module| {
            json!({
                "path": module.target.module.path,
                "rank": module.target.rank,
                "alpha": module.target.alpha,
                "scaling": module.target.scaling,
                "norm": module.norm,
            })
        })
        .collect();
    let files: serde_json::Map<String, Value> = found
        .files
        .iter()
        .map(|file| (file.name.clone(), json!({"sha256": file.sha256, "bytes": file.bytes})))
        .collect();
    let readers = found.compatibility.as_ref().map(|readers| {
        let exported: serde_json::Map<String, Value> =
            readers.exported.iter().map(|(reader, why)| (reader.word().to_owned(), json!(why))).collect();
        let merged: serde_json::Map<String, Value> =
            readers.merged.iter().map(|(reader, why)| (reader.word().to_owned(), json!(why))).collect();
        json!({"as_is": readers.as_is.iter().map(|reader| reader.word()).collect::<Vec<_>>(), "exported": exported, "merged": merged})
    });
    let identity = found.identity.as_ref().map(
        |identity| json!({"same": identity.same, "different": identity.overruled, "notes": identity.notes}),
    );
    json!({
        "adapter": found.folder.display().to_string(),
        "ok": found.problems.is_empty(),
        "problems": found.problems,
        "base": found.base.as_ref().map(|(name, _)| name),
        "revision": found.base.as_ref().and_then(|(_, revision)| revision.clone()),
        "identity": identity,
        "files": files,
        "modules": modules,
        "whole_modules": found.saved_modules.iter().map(|saved| saved.path.as_str()).collect::<Vec<_>>(),
        "provenance": found.provenance,
        "readers": readers,
    })
}
