//! Prompts answered side by side: each pass over the layers takes every answer under way one token further, and reads the
//! weights once for all of them.
//!
//! A prompt is read by itself, as if it were the only one, and takes the place of an answer that has ended. On the CPU
//! every row of a pass is computed as it would be alone, so that answers are the same, token for token, whatever
//! stands beside them.

use std::ops::ControlFlow;

use tune_kernels::KernelBackend;

use super::decode::{
    Error, Finish, Generation, GenerationEvent, Growing, PROMPT_CHUNK, Session, logits_of, read,
};
use super::sampling::Sampling;
use crate::model::layers::KeyValueCache;

/// Answers that grow side by side at most: the rows for which a product reads a weight once, row by row.
pub const MOST_TOGETHER: usize = 8;

/// A prompt, and how its answer is sampled.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The prompt's tokens.
    pub prompt: &'a [u32],
    /// The sampling settings.
    pub sampling: &'a Sampling,
}

/// Hears of answers that grow side by side, by the number of their prompt.
pub trait Listener {
    /// What is new of an answer; `Break` ends it there.
    fn hear(&mut self, number: usize, event: GenerationEvent) -> ControlFlow<()>;

    /// An answer has ended; `Break` or an error ends all the others.
    ///
    /// # Errors
    /// The answer cannot be used.
    fn end(&mut self, number: usize, generation: Generation) -> Result<ControlFlow<()>, Error>;
}

/// A failure, and the number of the prompt that it happened at.
#[derive(Debug, thiserror::Error)]
#[error("prompt {}: {error}", number + 1)]
pub struct Failed {
    /// Counted from 0.
    pub number: usize,
    /// The failure.
    #[source]
    pub error: Error,
}

/// A cache, and the prompt whose tokens it begins with.
struct Lane<B: KernelBackend> {
    cache: KeyValueCache<B>,
    prompt: Vec<u32>,
}

/// An answer that grows.
struct Active<'r, B: KernelBackend> {
    number: usize,
    answer: Growing<'r>,
    lane: Lane<B>,
}

impl<B: KernelBackend> Session<'_, B> {
    /// Continues prompts, up to `lanes` at a time, in their order.
    ///
    /// # Errors
    /// As [`Session::generate`], for one of the prompts; or the listener's.
    pub fn generate_together(
        &self,
        lanes: usize,
        asks: &[Ask<'_>],
        listener: &mut dyn Listener,
    ) -> Result<(), Failed> {
        let mut waiting = asks.iter().enumerate();
        let (mut active, mut idle) = (Vec::new(), Vec::new());
        loop {
            while active.len() < lanes.max(1)
                && let Some((number, ask)) = waiting.next()
            {
                let began = self.begin(number, ask, &active, &mut idle, listener);
                match began.map_err(|error| Failed { number, error })? {
                    (one, None) => active.push(one),
                    (one, Some(finish)) => {
                        if end(one, finish, &mut idle, listener)?.is_break() {
                            return Ok(());
                        }
                    }
                }
            }
            let Some(number) = active.first().map(|one| one.number) else { return Ok(()) };
            let mut logits = self.step(&mut active).map_err(|error| Failed { number, error })?;
            let width = logits.len() / active.len();
            for (mut one, row) in std::mem::take(&mut active).into_iter().zip(logits.chunks_mut(width)) {
                let number = one.number;
                let taken = one.answer.take(row, &mut |event| listener.hear(number, event));
                match taken.map_err(|error| Failed { number, error })? {
                    None => active.push(one),
                    Some(finish) => {
                        if end(one, finish, &mut idle, listener)?.is_break() {
                            return Ok(());
                        }
                    }
                }
            }
        }
    }

    /// Reads a prompt and chooses the first token behind it; returns why the answer ends there, if it does.
    fn begin<'r>(
        &self,
        number: usize,
        ask: &Ask<'r>,
        active: &[Active<'_, B>],
        idle: &mut Vec<Lane<B>>,
        listener: &mut dyn Listener,
    ) -> Result<(Active<'r, B>, Option<Finish>), Error> {
        let mut answer = Growing::new(ask.prompt, ask.sampling, self.decoder.spec().positions())?;
        let mut lane = self.lane(ask.prompt, active, idle);
        answer.reading(ask.prompt.len() - lane.cache.tokens());
        let mut finish = answer.end();
        if finish.is_none() {
            let (decoder, adapters) = (&*self.decoder, self.adapters.as_deref());
            let mut hear = |event| listener.hear(number, event);
            finish = match read(decoder, adapters, &mut lane.cache, ask.prompt, &mut hear)? {
                Some(mut logits) => answer.take(&mut logits, &mut hear)?,
                None => Some(Finish::Interrupted),
            };
        }
        Ok((Active { number, answer, lane }, finish))
    }

    /// A lane with as much of a prompt in its cache as another prompt has read already. Whole chunks alone are taken over:
    /// the rest is then read in the same passes as without them, to the same bits.
    fn lane(&self, prompt: &[u32], active: &[Active<'_, B>], idle: &mut Vec<Lane<B>>) -> Lane<B> {
        let shared = |lane: &Lane<B>| {
            let common = lane.prompt.iter().zip(prompt).take_while(|(one, other)| one == other).count();
            let common = common.min(lane.cache.tokens()).min(prompt.len() - 1);
            common / PROMPT_CHUNK * PROMPT_CHUNK
        };
        let own = (0..idle.len()).max_by_key(|&at| shared(&idle[at])).map(|at| idle.swap_remove(at));
        let other = active.iter().map(|one| &one.lane).max_by_key(|lane| shared(lane));
        let (mut cache, tokens) = match (own, other) {
            (own, Some(other)) if shared(other) > own.as_ref().map_or(0, shared) => {
                (other.cache.clone(), shared(other))
            }
            (Some(own), _) => {
                let tokens = shared(&own);
                (own.cache, tokens)
            }
            (None, _) => (self.decoder.new_cache(), 0),
        };
        cache.truncate(tokens);
        Lane { cache, prompt: prompt.to_vec() }
    }

    /// Takes every answer one token further: the logits behind them, one row behind the other.
    fn step(&self, active: &mut [Active<'_, B>]) -> Result<Vec<f32>, Error> {
        let (decoder, adapters) = (&*self.decoder, self.adapters.as_deref());
        let sequences = active.iter_mut().map(|one| {
            let new = &one.answer.seen[one.lane.cache.tokens()..];
            (new, &mut one.lane.cache)
        });
        let sequences = sequences.collect();
        decoder.on_workers(|| logits_of(decoder, decoder.continued(sequences, adapters)?))
    }
}

/// Hands an answer over; its lane is free for another prompt.
fn end<B: KernelBackend>(
    one: Active<'_, B>,
    finish: Finish,
    idle: &mut Vec<Lane<B>>,
    listener: &mut dyn Listener,
) -> Result<ControlFlow<()>, Failed> {
    let Active { number, answer, lane } = one;
    idle.push(lane);
    listener.end(number, answer.finished(finish)).map_err(|error| Failed { number, error })
}
