//! An answer, token by token: the prompt in a few forward passes, then one token at a time with the cache.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use burn_tensor::{DType, Tensor};
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

/// A model that answers prompts: in turn, where a prefix shared with the previous prompt is reused, or side by side.
pub struct Session<'a, B: KernelBackend> {
    pub(super) decoder: Cow<'a, Decoder<B>>,
    pub(super) adapters: Option<Vec<LayerAdapters<B>>>,
    cache: KeyValueCache<B>,
    /// The tokens in the cache.
    cached: Vec<u32>,
}

/// An answer under way.
pub(super) struct Growing<'s> {
    sampling: &'s Sampling,
    /// Tokens of prompt and answer.
    pub(super) seen: Vec<u32>,
    tokens: Vec<u32>,
    /// Longest answer that the context has room for.
    room: usize,
    began: Instant,
    timing: Timing,
}

impl<'s> Growing<'s> {
    /// The empty answer to a prompt.
    ///
    /// # Errors
    /// The prompt is empty or fills the context.
    pub(super) fn new(prompt: &[u32], sampling: &'s Sampling, context: usize) -> Result<Self, Error> {
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if prompt.len() >= context {
            return Err(Error::PromptTooLong { prompt: prompt.len(), context });
        }
        let room = context - prompt.len();
        let (seen, began, timing) = (prompt.to_vec(), Instant::now(), Timing::default());
        Ok(Self { sampling, seen, tokens: Vec::new(), room, began, timing })
    }

    /// Says how many tokens of the prompt are not in the cache.
    pub(super) fn reading(&mut self, prompt_tokens: usize) {
        self.timing.prompt_tokens = prompt_tokens;
    }

    /// Why no further token may follow, if so.
    pub(super) fn end(&self) -> Option<Finish> {
        match self.tokens.len() {
            length if length >= self.sampling.max_new_tokens => Some(Finish::Length),
            length if length >= self.room => Some(Finish::ContextFull),
            _ => None,
        }
    }

    /// Chooses the next token by the logits behind the last one; returns why the answer ends there, if it does.
    pub(super) fn take(
        &mut self,
        logits: &mut [f32],
        listen: &mut dyn FnMut(GenerationEvent) -> ControlFlow<()>,
    ) -> Result<Option<Finish>, Error> {
        self.sampling.penalize(logits, &self.seen);
        let chosen = self.sampling.pick(logits, self.tokens.len() as u64);
        let id = chosen.ok_or(Error::NotFinite { tokens: self.seen.len() })?;
        match self.tokens.is_empty() {
            true => self.timing.prompt = self.began.elapsed(),
            false => {
                self.timing.passes += 1;
                self.timing.decode = self.began.elapsed() - self.timing.prompt;
            }
        }
        if self.sampling.stop_tokens.contains(&id) {
            return Ok(Some(Finish::StopToken(id)));
        }
        self.tokens.push(id);
        self.seen.push(id);
        Ok(match listen(GenerationEvent::Token(id)) {
            ControlFlow::Break(()) => Some(Finish::Interrupted),
            ControlFlow::Continue(()) => self.end(),
        })
    }

    /// The whole answer.
    pub(super) fn finished(self, finish: Finish) -> Generation {
        Generation { tokens: self.tokens, finish, timing: self.timing }
    }
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
        let mut answer = Growing::new(prompt, sampling, self.decoder.spec().positions())?;
        // The last token of the prompt is always read: the answer begins with its logits.
        let common = self.cached.iter().zip(prompt).take_while(|(cached, id)| cached == id).count();
        self.keep(common.min(prompt.len() - 1));
        answer.reading(prompt.len() - self.cached.len());
        let mut end = answer.end();
        let finish = loop {
            if let Some(finish) = end {
                break finish;
            }
            let (decoder, adapters) = (&*self.decoder, self.adapters.as_deref());
            let read = read(decoder, adapters, &mut self.cache, &answer.seen, listen);
            self.cached.truncate(self.cache.tokens());
            self.cached.extend(&answer.seen[self.cached.len()..self.cache.tokens()]);
            let Some(mut logits) = read? else { break Finish::Interrupted };
            end = answer.take(&mut logits, listen)?;
        };
        Ok(answer.finished(finish))
    }

    /// Takes all but the first `tokens` out of the cache.
    fn keep(&mut self, tokens: usize) {
        let kept = self.cache.truncate(tokens);
        self.cached.truncate(kept);
    }
}

/// Runs the part of `ids` that is not in the cache, and returns the logits after the last; `None` if the listener stopped
/// the answer. After an error the cache is empty.
pub(super) fn read<B: KernelBackend>(
    decoder: &Decoder<B>,
    adapters: Option<&[LayerAdapters<B>]>,
    cache: &mut KeyValueCache<B>,
    ids: &[u32],
    listen: &mut dyn FnMut(GenerationEvent) -> ControlFlow<()>,
) -> Result<Option<Vec<f32>>, Error> {
    loop {
        let start = cache.tokens();
        let end = ids.len().min(start + PROMPT_CHUNK);
        let is_last = end == ids.len();
        let mut pass = || pass(decoder, adapters, cache, &ids[start..end], is_last);
        // A token's ops are shared by threads that stay awake for them (`cpu::team`), whoever leads them.
        let passed = if end - start == 1 { pass() } else { decoder.on_workers(pass) };
        match passed {
            Ok(Some(logits)) => return Ok(Some(logits)),
            Ok(None) => {}
            Err(error) => {
                // What the cache holds is not known.
                cache.truncate(0);
                return Err(error);
            }
        }
        if listen(GenerationEvent::Prompt).is_break() {
            return Ok(None);
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
    logits_of(decoder, hidden.narrow(0, last, 1)).map(Some)
}

/// The logits of hidden states, row after row.
pub(super) fn logits_of<B: KernelBackend>(
    decoder: &Decoder<B>,
    hidden: Tensor<B, 2>,
) -> Result<Vec<f32>, Error> {
    let device = |reason: String| Error::Device { reason };
    let logits = decoder.logits_of(hidden).cast(DType::F32).try_into_data();
    let logits = logits.map_err(|error| device(format!("{error:?}")))?;
    logits.into_vec().map_err(|error| device(format!("{error:?}")))
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
