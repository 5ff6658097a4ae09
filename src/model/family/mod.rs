//! From config.json to a decoder: which family it is, and what its layers are made of.
//!
//! One file per family. Defaults of absent keys are those of the family's configuration class in transformers.
//! Refuses to know weights and arithmetic.

mod arcee;
mod cohere2;
mod ernie4_5;
mod exaone4;
mod experts;
mod falcon;
mod gemma;
mod gemma2;
mod gemma3;
mod gemma4;
mod gemma4_moe;
mod glm4;
mod gpt_neox;
mod gpt_oss;
mod gptj;
mod granite;
mod hunyuan;
mod layer_types;
mod lfm2;
mod llama;
mod ministral3;
mod mistral;
mod mixtral;
mod muse_glimmer;
mod olmo2;
mod olmo3;
mod olmoe;
mod phi;
mod phi3;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_5;
mod qwen3_5_moe;
mod qwen3_moe;
mod seed_oss;
mod shared;
mod smollm3;
mod starcoder2;
#[cfg(test)]
mod toy;
mod wrapper;

use serde_json::Value;

use super::Error;
use super::config::{ConfigReader, without_keys};
use super::decoder_spec::DecoderSpec;

/// A family that can be run.
pub struct Declared {
    /// As `model_type` spells it.
    pub model_type: &'static str,
    /// The causal language model as `architectures` spells it.
    pub architecture: &'static str,
    /// The models of the family by the names that people know them by.
    pub models: &'static str,
    read: fn(&ConfigReader<'_>) -> Result<DecoderSpec, Error>,
}

/// Every family.
pub static FAMILIES: &[&Declared] = &[
    &llama::LLAMA,
    &mistral::MISTRAL,
    &qwen2::QWEN2,
    &qwen3::QWEN3,
    &qwen3_5::QWEN3_5,
    &qwen3_5_moe::QWEN3_5_MOE,
    &qwen3_moe::QWEN3_MOE,
    &qwen2_moe::QWEN2_MOE,
    &mixtral::MIXTRAL,
    &olmoe::OLMOE,
    &gpt_oss::GPT_OSS,
    &lfm2::LFM2,
    &smollm3::SMOLLM3,
    &ministral3::MINISTRAL3,
    &phi3::PHI3,
    &olmo2::OLMO2,
    &olmo3::OLMO3,
    &granite::GRANITE,
    &granite::GRANITE_HYBRID,
    &seed_oss::SEED_OSS,
    &hunyuan::HUNYUAN,
    &exaone4::EXAONE4,
    &ernie4_5::ERNIE4_5,
    &cohere2::COHERE2,
    &arcee::ARCEE,
    &gemma::GEMMA,
    &gemma2::GEMMA2,
    &gemma3::GEMMA3,
    &gemma4::GEMMA4,
    &gemma4::GEMMA4_UNIFIED,
    &muse_glimmer::MUSE_GLIMMER,
    &glm4::GLM4,
    &gpt_neox::GPT_NEOX,
    &phi::PHI,
    &starcoder2::STARCODER2,
    &falcon::FALCON,
    &gptj::GPTJ,
    #[cfg(test)]
    &toy::TOY,
];

impl Declared {
    fn of(config: &ConfigReader<'_>) -> Result<&'static Self, Error> {
        let architectures = config.texts("architectures")?.unwrap_or_default();
        let name = config.text("model_type")?;
        let known = |by: &dyn Fn(&Self) -> bool| FAMILIES.iter().copied().find(|family| by(family));
        let alike = |left: &str, right: &str| plain(left) == plain(right);
        let unsupported = |found: String| {
            let supported: Vec<&str> = FAMILIES.iter().map(|family| family.architecture).collect();
            let nearest = Self::nearest(name.or(architectures.first().copied()).unwrap_or_default());
            Error::UnsupportedArchitecture { found, nearest, supported: supported.join(", ") }
        };
        let family = match name {
            Some(name) => known(&|family| alike(family.model_type, name)).ok_or_else(|| {
                let also = architectures.first().map(|name| format!(" ({name})")).unwrap_or_default();
                unsupported(format!("model type {name:?}{also}"))
            })?,
            None if architectures.is_empty() => return Err(Error::NoArchitecture),
            None => known(&|family| architectures.iter().any(|name| alike(family.architecture, name)))
                .ok_or_else(|| unsupported(format!("architecture {}", architectures.join(", "))))?,
        };
        match architectures.first() {
            None => Ok(family),
            Some(_) if architectures.iter().any(|name| alike(family.architecture, name)) => Ok(family),
            Some(name) => Err(unsupported(format!(
                "architecture {}{}",
                architectures.join(", "),
                other_kind(family, name)
            ))),
        }
    }
}

/// A name without its capitals, dashes and the like: `LLaMAForCausalLM` is Llama, `Qwen-2` is `qwen2`.
fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|letter| letter.to_ascii_lowercase()).collect()
}

/// What an architecture is beside the causal language model of its family, in words.
fn other_kind(family: &Declared, architecture: &str) -> String {
    let causal = family.architecture;
    let is = |part: &str| architecture.contains(part);
    match () {
        () if is("Classification") || is("RewardModel") || is("ValueHead") || is("QuestionAnswering") => {
            format!(", which has another head in place of the one that writes; take the {causal} that it was made of")
        }
        () if is(causal) || is("Peft") => format!(
            ", a wrapper around {causal}; save the model inside it, or set `architectures` in a copy of config.json to \
             [\"{causal}\"] where the weights are plain ones"
        ),
        () if plain(architecture) == format!("{}model", plain(family.model_type)) => {
            ", a model without its output head; load the folder with transformers' AutoModelForCausalLM and save it again"
                .to_owned()
        }
        () => String::new(),
    }
}

impl Declared {
    /// The family whose name is most like another, in words.
    fn nearest(name: &str) -> String {
        let name = name.to_lowercase();
        let likeness = |family: &Self| {
            let architecture = family.architecture.to_lowercase();
            let by = [family.model_type, &architecture].map(|known| strsim::jaro_winkler(&name, known));
            by[0].max(by[1])
        };
        let nearest = FAMILIES.iter().max_by(|one, other| likeness(one).total_cmp(&likeness(other)));
        nearest.map_or_else(String::new, |family| format!("{} ({})", family.model_type, family.models))
    }
}

/// The families as a table in Markdown: what README shows.
pub fn markdown() -> String {
    let mut table = String::from("| models | `model_type` |\n|---|---|\n");
    for family in FAMILIES.iter().filter(|family| !family.models.is_empty()) {
        table += &format!("| {} | `{}` |\n", family.models, family.model_type);
    }
    table
}

/// Reads config.json.
///
/// # Errors
/// An architecture that is not supported; a value that is missing, misshapen or not implemented; a key that is
/// not understood.
pub fn decoder_spec(config: &Value) -> Result<DecoderSpec, Error> {
    read(config).map(|(spec, _)| spec)
}

/// As [`decoder_spec`], and the keys that are not read because they do not change the maths.
fn read(config: &Value) -> Result<(DecoderSpec, Vec<String>), Error> {
    match wrapper::Wrapper::of(config)? {
        Some((wrapper, text, mut unread)) => {
            let (spec, more) = text_decoder(&text)?;
            unread.extend(more);
            Ok((spec.wrapped(wrapper.model_type), unread))
        }
        None => text_decoder(config),
    }
}

fn text_decoder(config: &Value) -> Result<(DecoderSpec, Vec<String>), Error> {
    let config = ConfigReader::new(config)?;
    let spec = (Declared::of(&config)?.read)(&config)?;
    Ok((spec, config.finish()?))
}

/// Reads config.json as if it did not have the keys at some paths (`rope_parameters.twist`), and returns the names of the
/// other keys that are not read because they do not change the maths.
///
/// # Errors
/// As [`decoder_spec`]; config.json does not have a key that is to be left out.
pub fn decoder_spec_without(config: &Value, keys: &[String]) -> Result<(DecoderSpec, Vec<String>), Error> {
    match without_keys(config, keys) {
        (config, absent) if absent.is_empty() => read(&config),
        (_, absent) => Err(Error::NoSuchKey { key: absent[0].clone() }),
    }
}

/// As [`decoder_spec`], without the keys that a run left out; config.json may have fewer of them.
///
/// # Errors
/// As [`decoder_spec`].
pub fn decoder_spec_of_run(config: &Value, ignored: &[String]) -> Result<DecoderSpec, Error> {
    decoder_spec(&without_keys(config, ignored).0)
}

#[cfg(test)]
mod tests;
