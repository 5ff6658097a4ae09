//! Adapter folders as PEFT writes and reads them: `adapter_config.json`, `adapter_model.safetensors` and a model
//! card.
//!
//! Two runs of one recipe write the same bytes: keys are sorted, tensors are f32, and no date or host is written.
//! Provenance goes into the safetensors metadata, since PEFT warns of configuration keys that it does not know.

mod card;
pub mod config;
mod modules;
mod patterns;
mod read;
mod stacked;
mod tables;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use tune_kernels::KernelBackend;

pub use config::Config;
pub use read::Adapter;
pub use stacked::{ALTERNATE, GATE_UP, PARAMETERS};

use super::error::Error;
use super::lora::LoraSet;
use super::parameter::Parameter;
use crate::assets::folder::{copy_tokenizer_file, is_additional_template};
use crate::files::safetensors::{Dtype, Layout, TensorHeader, write_f32};
use crate::files::{self, Existing};

/// Name of the configuration file.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Name of the file of tensors.
pub const TENSORS_FILE: &str = "adapter_model.safetensors";
/// Name of a separate chat template; it takes precedence over the one in tokenizer_config.json.
pub const TEMPLATE_FILE: &str = "chat_template.jinja";
/// Name of the model card.
pub const CARD_FILE: &str = "README.md";

/// Writes an adapter folder, whole or not at all.
///
/// `provenance` joins `{"format": "pt"}` in the safetensors metadata; `beside` are files copied in under their
/// own names (tokenizer and chat template). A `chat_template` that the recipe chose is written as
/// `chat_template.jinja`, in the place of all of the model's own, since it is what the adapter was trained with.
///
/// # Errors
/// The folder exists and must not be replaced, writing fails, or a value is not finite.
pub fn write<B: KernelBackend>(
    folder: &Path,
    existing: Existing,
    adapter: &LoraSet<B>,
    config: &Config,
    provenance: &BTreeMap<String, String>,
    beside: &[PathBuf],
    chat_template: Option<&str>,
) -> Result<(), Error> {
    let values = |index: usize| adapter.values(index);
    let numbers = Numbers { parameters: adapter.parameters(), values: &values };
    write_folder(folder, existing, &numbers, config, provenance, beside, chat_template)
}

/// The tensors of an adapter, wherever they come from.
pub struct Numbers<'a> {
    /// Names and shapes.
    pub parameters: &'a [Parameter],
    /// The values of one of them, by its position.
    pub values: &'a dyn Fn(usize) -> Result<Vec<f32>, Error>,
}

/// As [`write()`], for values on the host.
///
/// # Errors
/// As [`write()`].
pub fn write_folder(
    folder: &Path,
    existing: Existing,
    numbers: &Numbers<'_>,
    config: &Config,
    provenance: &BTreeMap<String, String>,
    beside: &[PathBuf],
    chat_template: Option<&str>,
) -> Result<(), Error> {
    files::write_folder_atomically(folder, existing, |inside| {
        files::write_bytes(&inside.join(CONFIG_FILE), config.to_json().as_bytes())?;
        write_numbers(&inside.join(TENSORS_FILE), numbers, provenance)?;
        files::write_bytes(&inside.join(CARD_FILE), card::card(config).as_bytes())?;
        for file in beside {
            if chat_template.is_none() || !is_additional_template(file) {
                copy_tokenizer_file(file, inside)?;
            }
        }
        if let Some(template) = chat_template {
            files::write_bytes(&inside.join(TEMPLATE_FILE), template.as_bytes())?;
        }
        Ok(())
    })
}

/// Writes `adapter_model.safetensors` alone.
///
/// # Errors
/// Writing fails, or a value is not finite.
pub fn write_tensors<B: KernelBackend>(
    path: &Path,
    adapter: &LoraSet<B>,
    provenance: &BTreeMap<String, String>,
) -> Result<(), Error> {
    let values = |index: usize| adapter.values(index);
    write_numbers(path, &Numbers { parameters: adapter.parameters(), values: &values }, provenance)
}

/// Writes a safetensors file of f32 tensors; `provenance` joins `{"format": "pt"}` in its metadata.
///
/// # Errors
/// Writing fails, or a value is not finite.
pub fn write_numbers(
    path: &Path,
    tensors: &Numbers<'_>,
    provenance: &BTreeMap<String, String>,
) -> Result<(), Error> {
    let mut metadata = provenance.clone();
    metadata.entry("format".into()).or_insert_with(|| "pt".into());
    let header = |(index, parameter): (usize, &Parameter)| {
        let shape = parameter.part.file_shape(parameter.shape);
        let header = TensorHeader { name: parameter.name.clone(), dtype: Dtype::F32, shape };
        ((parameter.name.clone(), index), header)
    };
    let (numbers, headers): (BTreeMap<String, usize>, Vec<_>) =
        tensors.parameters.iter().enumerate().map(header).unzip();
    let layout = Layout::new(&metadata, headers)?;
    // The writer reports I/O errors alone: another error is stored here.
    let mut fault = None;
    let written = files::write_atomically(path, |out: &mut dyn Write| {
        layout.write(out, |tensor, out| match finite_values(tensors, &numbers, &tensor.name) {
            Ok(values) => write_f32(out, &values),
            Err(error) => {
                fault = Some(error);
                Err(std::io::Error::other("the adapter cannot be written"))
            }
        })
    });
    match fault {
        Some(error) => Err(error),
        None => Ok(written?),
    }
}

/// The values of one tensor, all of them finite.
fn finite_values(
    tensors: &Numbers<'_>,
    numbers: &BTreeMap<String, usize>,
    name: &str,
) -> Result<Vec<f32>, Error> {
    // A name that is not there gives no values, which the writer then reports.
    let Some(index) = numbers.get(name) else { return Ok(Vec::new()) };
    let values = (tensors.values)(*index)?;
    match values.iter().position(|value| !value.is_finite()) {
        Some(element) => Err(Error::NotFinite { tensor: name.to_owned(), element, value: values[element] }),
        None => Ok(values),
    }
}
