//! From config.json to a decoder: which family it is, and what its layers are made of.
//!
//! One file per family. Defaults of absent keys are those of the family's configuration class in transformers.
//! Refuses to know weights and arithmetic.

mod layer_types;
mod llama;
mod mistral;
mod qwen2;
mod qwen3;
mod shared;
#[cfg(test)]
mod toy;

use serde_json::Value;

use super::Error;
use super::config::ConfigReader;
use super::decoder_spec::DecoderSpec;

/// A family that can be run.
pub struct Declared {
    /// As `model_type` spells it.
    pub model_type: &'static str,
    /// The causal language model as `architectures` spells it.
    pub architecture: &'static str,
    read: fn(&ConfigReader<'_>) -> Result<DecoderSpec, Error>,
}

/// Every family.
pub static FAMILIES: &[&Declared] = &[
    &llama::LLAMA,
    &mistral::MISTRAL,
    &qwen2::QWEN2,
    &qwen3::QWEN3,
    #[cfg(test)]
    &toy::TOY,
];

impl Declared {
    fn of(config: &ConfigReader<'_>) -> Result<&'static Self, Error> {
        let known = |by: &dyn Fn(&Self) -> bool| FAMILIES.iter().copied().find(|family| by(family));
        let unsupported = |found: String| {
            let supported: Vec<&str> = FAMILIES.iter().map(|family| family.architecture).collect();
            Error::UnsupportedArchitecture { found, supported: supported.join(", ") }
        };
        let architectures = config.texts("architectures")?.unwrap_or_default();
        let family = match config.text("model_type")? {
            Some(name) => known(&|family| family.model_type == name).ok_or_else(|| {
                let also = architectures.first().map(|name| format!(" ({name})")).unwrap_or_default();
                unsupported(format!("model type {name:?}{also}"))
            })?,
            None => known(&|family| architectures.contains(&family.architecture))
                .ok_or_else(|| unsupported("no known `model_type` or `architectures`".into()))?,
        };
        match architectures.is_empty() || architectures.contains(&family.architecture) {
            true => Ok(family),
            false => Err(unsupported(format!("architecture {}", architectures.join(", ")))),
        }
    }
}

/// Reads config.json.
///
/// # Errors
/// An architecture that is not supported; a value that is missing, misshapen or not implemented; a key that is
/// not understood.
pub fn decoder_spec(config: &Value) -> Result<DecoderSpec, Error> {
    let config = ConfigReader::new(config)?;
    let spec = (Declared::of(&config)?.read)(&config)?;
    config.finish()?;
    Ok(spec)
}

#[cfg(test)]
mod tests;
