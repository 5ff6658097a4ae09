//! `tune export`: an adapter folder for another program. GGUF files are written by `gguf`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::args::{BaseArguments, FolderArguments};
use super::choices::Program;
use super::console::Console;
use super::environment::Context;
use super::exit::Exit;
use super::failure::Failure;
use super::fidelity::RowsArguments;
use super::gguf;
use super::lines::{changes, line, next};
use super::style::{GOOD, paint};
use crate::adapter;
use crate::export::gguf::FileType;
use crate::export::merge::Wanted;
use crate::model::FloatDtype;
use crate::recipe::DeviceSpec;
use crate::run::named::adapter_folder;
use crate::run::{self, adapters};

/// Arguments of `tune export`.
#[derive(Debug, Args)]
pub struct ExportArguments {
    /// The folder of an adapter or of a finished run; with --gguf also a model: a folder, or a hub id in the local cache
    #[arg(value_name = "ADAPTER|RUN|MODEL")]
    pub source: PathBuf,
    /// The form to write.
    #[command(flatten)]
    pub form: FormArguments,
    /// The folder to write.
    #[command(flatten)]
    pub folder: FolderArguments,
    /// The base.
    #[command(flatten)]
    pub base: BaseArguments,
    /// With --gguf: the weights to merge into [default: original; for a 4-bit checkpoint, its dequantized weights]
    #[arg(long, value_enum)]
    pub onto: Option<Wanted>,
    /// With --gguf and --gguf-lora: export even if the base's files differ from those that the adapter records
    #[arg(long)]
    pub allow_other_base: bool,
    /// With --gguf: the rows that the file is measured on.
    #[command(flatten, next_help_heading = "Measuring a GGUF file")]
    pub rows: RowsArguments,
    /// With --gguf: the device that measures: auto, cpu, cuda, cuda:N, vulkan, vulkan:N, metal
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = "Measuring a GGUF file")]
    pub device: DeviceSpec,
}

/// What `tune export` writes: one of these.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct FormArguments {
    /// An adapter folder for this program; for ollama the same as --gguf q4_k_m
    #[arg(long = "for", value_enum, value_name = "PROGRAM", ignore_case = true)]
    pub program: Option<Program>,
    /// A GGUF file for llama.cpp and Ollama: a model, or an adapter merged into its base
    #[arg(long, value_enum, value_name = "TYPE", ignore_case = true)]
    pub gguf: Option<FileType>,
    /// The adapter alone as a GGUF file, for `--lora` of llama.cpp and ADAPTER of Ollama
    #[arg(
        long,
        value_enum,
        value_name = "DTYPE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "f32"
    )]
    pub gguf_lora: Option<FloatDtype>,
}

/// Writes an adapter for another program, or a GGUF file.
pub(super) fn export(
    arguments: &ExportArguments,
    context: &Context<'_>,
    console: &mut Console<'_>,
) -> Result<Exit, Failure> {
    let source = &adapter_folder(&arguments.source)?;
    let consumer = match arguments.form {
        FormArguments { gguf: Some(file), .. } => {
            return gguf::model(arguments, source, file, context, console);
        }
        FormArguments { program: Some(Program::Ollama), .. } => {
            return gguf::model(arguments, source, FileType::Q4KM, context, console);
        }
        _ if arguments.onto.is_some() || arguments.rows.data.is_some() || arguments.rows.no_measure => {
            console.error("`--onto`, `--data` and `--no-measure` require `--gguf`", None);
            return Ok(Exit::Recipe);
        }
        FormArguments { gguf_lora: Some(dtype), .. } => {
            return gguf::lora(arguments, source, dtype, context, console);
        }
        FormArguments { program: Some(Program::Adapter(consumer)), .. } => consumer,
        FormArguments { program: None, gguf: None, gguf_lora: None } => {
            console.error("nothing to write", Some("add `--for`, `--gguf` or `--gguf-lora`"));
            return Ok(Exit::Recipe);
        }
    };
    if arguments.allow_other_base {
        console.error("`--allow-other-base` requires `--gguf` or `--gguf-lora`", None);
        return Ok(Exit::Recipe);
    }
    let (out, existing) = (&arguments.folder.out, arguments.folder.existing());
    let base = arguments.base.choice();
    let exported = match adapters::export(source, base, consumer, out, existing, &context.environment) {
        Err(error @ run::Error::Adapter(adapter::Error::Unusable { .. })) => {
            let help = "merge such an adapter with PEFT instead: `merge_and_unload()`";
            console.error(&error.to_string(), Some(help));
            return Ok(Exit::Other);
        }
        exported => exported?,
    };
    console.event(
        "result",
        &json!({
            "output_dir": out.display().to_string(),
            "for": consumer.word(),
            "changes": exported.changes,
            "usage": exported.usage,
        }),
    );
    changes(console, &exported.changes)?;
    line(console.out(), "exported", &paint(GOOD, out.display()))?;
    next(console.out(), &[("", exported.usage)])?;
    Ok(Exit::Done)
}
