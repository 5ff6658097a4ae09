//! An answer, token by token: the prompt in one forward pass, then one token at a time with the cache.

use std::ops::ControlFlow;

use burn::tensor::DType;
use tune_kernels::KernelBackend;

use super::sampling::Sampling;
use crate::adapter::lora::LoraSet;
use crate::model::{self, Decoder};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The forward pass refused.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// Nothing to continue.
    #[error("the prompt has no tokens; a model needs at least one to continue")]
    EmptyPrompt,
    /// A prompt that leaves no room for an answer.
    #[error(
        "the prompt has {prompt} tokens, and the model sees at most {context} (max_position_embeddings): no room is \
         left for an answer; shorten the prompt"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens the model was made for.
        context: usize,
    },
    /// Logits that are not numbers.
    #[error(
        "after {tokens} tokens the model's logits are not finite: its weights, or the adapter's, are damaged"
    )]
    NotFinite {
        /// Tokens of prompt and answer so far.
        tokens: usize,
    },
    /// The logits could not be brought from the device.
    #[error("the logits could not be read from the device: {reason}")]
    Device {
        /// The backend's own words.
        reason: String,
    },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Its tokens, without the one that ended it.
    pub tokens: Vec<u32>,
    /// Why it ends there.
    pub finish: Finish,
}

/// Why an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model said so, with this token.
    StopToken(u32),
    /// It has [`Sampling::max_new_tokens`] tokens.
    Length,
    /// Prompt and answer fill the context the model was made for.
    ContextFull,
    /// The listener asked for no more.
    Interrupted,
}

/// Continues a prompt. `on_token` hears each token as it is chosen, and may end the answer there.
///
/// # Errors
/// The prompt is empty, fills the context or has ids outside the vocabulary; or the logits are not finite.
pub fn generate<B: KernelBackend>(
    decoder: &Decoder<B>,
    adapter: Option<&LoraSet<B>>,
    prompt: &[u32],
    sampling: &Sampling,
    mut on_token: impl FnMut(u32) -> ControlFlow<()>,
) -> Result<Generation, Error> {
    let context = decoder.spec().max_position_embeddings;
    if prompt.is_empty() {
        return Err(Error::EmptyPrompt);
    }
    if prompt.len() >= context {
        return Err(Error::PromptTooLong { prompt: prompt.len(), context });
    }
    let adopting = adapter.filter(|adapter| !adapter.wholes().is_empty());
    let adopting = adopting.map(|adapter| decoder.adopting(adapter));
    let decoder = adopting.as_ref().unwrap_or(decoder);
    let layers = decoder.layers().len();
    let adapters: Option<Vec<_>> =
        adapter.map(|adapter| (0..layers).map(|layer| adapter.layer(layer, None)).collect());
    let room = context - prompt.len();
    let mut cache = decoder.new_cache();
    let mut tokens = Vec::new();
    let mut next = prompt.to_vec();
    let finish = loop {
        if tokens.len() >= sampling.max_new_tokens {
            break Finish::Length;
        }
        if tokens.len() >= room {
            break Finish::ContextFull;
        }
        let hidden = decoder.hidden(&next, adapters.as_deref(), Some(&mut cache))?;
        let last = hidden.dims()[0] - 1;
        let logits = decoder.logits_of(hidden.narrow(0, last, 1)).cast(DType::F32).try_into_data();
        let device = |reason: String| Error::Device { reason };
        let logits: Vec<f32> = logits
            .map_err(|error| device(format!("{error:?}")))?
            .into_vec()
            .map_err(|error| device(format!("{error:?}")))?;
        let seen = prompt.len() + tokens.len();
        let id = sampling.pick(&logits, tokens.len() as u64).ok_or(Error::NotFinite { tokens: seen })?;
        if sampling.stop_tokens.contains(&id) {
            break Finish::StopToken(id);
        }
        tokens.push(id);
        if on_token(id).is_break() {
            break Finish::Interrupted;
        }
        next = vec![id];
    };
    Ok(Generation { tokens, finish })
}

#[cfg(test)]
mod tests;
