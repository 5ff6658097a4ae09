//! An answer, token by token: the prompt in a few forward passes, then one token at a time with the cache.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use burn_tensor::DType;
use tune_kernels::KernelBackend;

use super::sampling::Sampling;
use crate::adapter::lora::LoraSet;
use crate::adapter::projection::LayerAdapters;
use crate::data::tokenize::TokenizerError;
use crate::model::layers::KeyValueCache;
use crate::model::{self, Decoder};

/// Tokens of a prompt that go through the model together: enough for its products to be fast, few enough that a long
/// prompt neither fills the memory nor cannot be stopped.
pub(super) const PROMPT_CHUNK: usize = 512;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The forward pass failed.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// The prompt is empty.
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
    /// Logits that are not finite.
    #[error(
        "after {tokens} tokens the model's logits are not finite: its weights, or the adapter's, are damaged"
    )]
    NotFinite {
        /// Tokens of prompt and answer so far.
        tokens: usize,
    },
    /// Reading the logits from the device failed.
    #[error("the logits could not be read from the device: {reason}")]
    Device {
        /// The backend's message.
        reason: String,
    },
    /// A token that cannot be turned into text.
    #[error(transparent)]
    Text(#[from] TokenizerError),
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Its tokens, without the one that ended it.
    pub tokens: Vec<u32>,
    /// Why it ends there.
    pub finish: Finish,
    /// How long it took.
    pub timing: Timing,
}

/// How long an answer took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// Tokens of the prompt that were not in the cache already.
    pub prompt_tokens: usize,
    /// Until the first token of the answer was known.
    pub prompt: Duration,
    /// Forward passes after that, of one token each.
    pub passes: usize,
    /// For those.
    pub decode: Duration,
}

/// Why an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model emitted this end token.
    StopToken(u32),
    /// It has [`Sampling::max_new_tokens`] tokens.
    Length,
    /// Prompt and answer fill the context the model was made for.
    ContextFull,
    /// The listener stopped it.
    Interrupted,
}

/// What a generation reports to its listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GenerationEvent {
    /// A part of the prompt was read.
    Prompt,
    /// The next token of the answer.
    Token(u32),
}

/// A model that answers prompts in turn; a prefix shared with the previous prompt is reused.
pub struct Session<'a, B: KernelBackend> {
    decoder: Cow<'a, Decoder<B>>,
    adapters: Option<Vec<LayerAdapters<B>>>,
    cache: KeyValueCache<B>,
    /// The tokens in the cache.
    cached: Vec<u32>,
}

impl<'a, B: KernelBackend> Session<'a, B> {
    /// With the adapter on the base, or the base as it is.
    pub fn new(decoder: &'a Decoder<B>, adapter: Option<&LoraSet<B>>) -> Self {
        let layers = decoder.layers().len();
        let adapters = adapter.map(|adapter| (0..layers).map(|layer| adapter.layer(layer, None)).collect());
        let cache = decoder.new_cache();
        let decoder = adapter.map_or(Cow::Borrowed(decoder), |adapter| decoder.adopting(adapter));
        Self { decoder, adapters, cache, cached: Vec::new() }
    }

    /// Continues a prompt. `listen` receives each token as it is chosen, and may stop the answer there.
    ///
    /// # Errors
    /// The prompt is empty, fills the context or has ids outside the vocabulary; or the logits are not finite.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        sampling: &Sampling,
        listen: &mut dyn FnMut(GenerationEvent) -> ControlFlow<()>,
    ) -> Result<Generation, Error> {
        let context = self.decoder.spec().positions();
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if prompt.len() >= context {
            return Err(Error::PromptTooLong { prompt: prompt.len(), context });
        }
        let room = context - prompt.len();
        // The last token of the prompt is always read: the answer begins with its logits.
        let common = self.cached.iter().zip(prompt).take_while(|(cached, id)| cached == id).count();
        self.keep(common.min(prompt.len() - 1));
        let began = Instant::now();
        let mut timing = Timing { prompt_tokens: prompt.len() - self.cached.len(), ..Timing::default() };
        let mut tokens = Vec::new();
        let mut seen = prompt.to_vec();
        let finish = loop {
            if tokens.len() >= sampling.max_new_tokens {
                break Finish::Length;
            }
            if tokens.len() >= room {
                break Finish::ContextFull;
            }
            let Some(mut logits) = self.read(&seen, listen)? else { break Finish::Interrupted };
            sampling.penalize(&mut logits, &seen);
            let id =
                sampling.pick(&logits, tokens.len() as u64).ok_or(Error::NotFinite { tokens: seen.len() })?;
            match tokens.is_empty() {
                true => timing.prompt = began.elapsed(),
                false => {
                    timing.passes += 1;
                    timing.decode = began.elapsed() - timing.prompt;
                }
            }
            if sampling.stop_tokens.contains(&id) {
                break Finish::StopToken(id);
            }
            tokens.push(id);
            seen.push(id);
            if listen(GenerationEvent::Token(id)).is_break() {
                break Finish::Interrupted;
            }
        };
        Ok(Generation { tokens, finish, timing })
    }

    /// Takes all but the first `tokens` out of the cache.
    fn keep(&mut self, tokens: usize) {
        let kept = self.cache.truncate(tokens);
        self.cached.truncate(kept);
    }

    /// Runs the part of `ids` that is not in the cache, and returns the logits after the last; `None` if the listener
    /// stopped the answer.
    fn read(
        &mut self,
        ids: &[u32],
        listen: &mut dyn FnMut(GenerationEvent) -> ControlFlow<()>,
    ) -> Result<Option<Vec<f32>>, Error> {
        loop {
            let start = self.cached.len();
            let end = ids.len().min(start + PROMPT_CHUNK);
            let (decoder, adapters, cache) = (&*self.decoder, self.adapters.as_deref(), &mut self.cache);
            let is_last = end == ids.len();
            let passed = B::on_workers(|| pass(decoder, adapters, cache, &ids[start..end], is_last));
            match passed {
                Ok(Some(logits)) => {
                    self.cached.extend(&ids[start..end]);
                    return Ok(Some(logits));
                }
                Ok(None) => self.cached.extend(&ids[start..end]),
                Err(error) => {
                    // What the cache holds is not known.
                    self.keep(0);
                    return Err(error);
                }
            }
            if listen(GenerationEvent::Prompt).is_break() {
                return Ok(None);
            }
        }
    }
}

/// One forward pass; the logits behind its last token, if they are wanted.
fn pass<B: KernelBackend>(
    decoder: &Decoder<B>,
    adapters: Option<&[LayerAdapters<B>]>,
    cache: &mut KeyValueCache<B>,
    ids: &[u32],
    wants_logits: bool,
) -> Result<Option<Vec<f32>>, Error> {
    let hidden = decoder.hidden(ids, adapters, Some(cache))?;
    if !wants_logits {
        return Ok(None);
    }
    let last = hidden.dims()[0] - 1;
    let logits = decoder.logits_of(hidden.narrow(0, last, 1)).cast(DType::F32).try_into_data();
    let device = |reason: String| Error::Device { reason };
    let logits = logits.map_err(|error| device(format!("{error:?}")))?;
    Ok(Some(logits.into_vec().map_err(|error| device(format!("{error:?}")))?))
}

/// Continues one prompt. `on_token` receives each token as it is chosen, and may stop the answer there.
///
/// # Errors
/// As [`Session::generate`].
pub fn generate<B: KernelBackend>(
    decoder: &Decoder<B>,
    adapter: Option<&LoraSet<B>>,
    prompt: &[u32],
    sampling: &Sampling,
    mut on_token: impl FnMut(u32) -> ControlFlow<()>,
) -> Result<Generation, Error> {
    Session::new(decoder, adapter).generate(prompt, sampling, &mut |event| match event {
        GenerationEvent::Prompt => ControlFlow::Continue(()),
        GenerationEvent::Token(id) => on_token(id),
    })
}

#[cfg(test)]
mod tests;
