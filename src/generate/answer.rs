//! An answer as text, streamed while it is generated.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use tune_kernels::KernelBackend;

use super::decode::{Error, Finish, Generation, GenerationEvent, Session, Timing};
use super::sampling::Sampling;
use super::text::{StopStrings, TextStream};
use super::together::{Ask, Failed, Listener};
use crate::data::tokenize::{Tokenizer, TokenizerError};

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its text, without special tokens and stop strings.
    pub text: String,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Generated tokens, including those of a stop string, without an end token.
    pub tokens: usize,
    /// Why it ends there.
    pub ending: Ending,
    /// Its speed.
    pub timing: Timing,
}

/// Why an answer ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// An end token.
    Stop,
    /// A stop string.
    StopString(String),
    /// The length limit.
    Length,
    /// Prompt and answer fill the context the model was made for.
    ContextFull,
    /// The listener asked for no more.
    Interrupted,
}

impl Ending {
    /// The `finish` value of an answer's event.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::StopString(_) => "stop-string",
            Self::Length => "length",
            Self::ContextFull => "context-full",
            Self::Interrupted => "interrupted",
        }
    }
}

/// A prompt, and how to answer it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The prompt's tokens.
    pub prompt: &'a [u32],
    /// The sampling settings.
    pub sampling: &'a Sampling,
    /// Stop strings; they are not part of the answer.
    pub stops: &'a [String],
}

/// Answers a prompt. `listen` receives the text as soon as it is final, and an empty string for other tokens, so that
/// it can stop the answer at any token.
///
/// # Errors
/// As [`Session::generate`]; or a token that the tokenizer cannot turn into text.
pub fn answer<B: KernelBackend>(
    session: &mut Session<'_, B>,
    tokenizer: &Tokenizer,
    request: Request<'_>,
    listen: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Answer, Error> {
    let mut reading = Reading::new(tokenizer, request);
    let hear = &mut |event| reading.hear(event, listen);
    let generation = session.generate(request.prompt, request.sampling, hear)?;
    reading.end(generation, listen)
}

/// What is heard of answers that grow side by side.
#[derive(Debug)]
pub enum Heard<'t> {
    /// More text, or an empty string for a token without any.
    Text(&'t str),
    /// The whole answer.
    Answer(Answer),
}

/// Answers prompts side by side, up to `lanes` at a time. `listen` receives the text of each, by the number of its
/// request, as [`answer`] gives it, and the answer when it has ended; `Break` there ends all the others.
///
/// # Errors
/// As [`answer`], for one of the requests.
pub fn answer_together<B: KernelBackend>(
    session: &Session<'_, B>,
    tokenizer: &Tokenizer,
    lanes: usize,
    requests: &[Request<'_>],
    listen: &mut dyn FnMut(usize, Heard<'_>) -> ControlFlow<()>,
) -> Result<(), Failed> {
    let asks = requests.iter().map(|request| Ask { prompt: request.prompt, sampling: request.sampling });
    let asks: Vec<_> = asks.collect();
    let mut readings = Readings { tokenizer, requests, under_way: BTreeMap::new(), listen };
    session.generate_together(lanes, &asks, &mut readings)
}

/// The answers under way, by the number of their request.
struct Readings<'r, 'l> {
    tokenizer: &'r Tokenizer,
    requests: &'r [Request<'r>],
    under_way: BTreeMap<usize, Reading<'r>>,
    listen: &'l mut dyn FnMut(usize, Heard<'_>) -> ControlFlow<()>,
}

impl Listener for Readings<'_, '_> {
    fn hear(&mut self, number: usize, event: GenerationEvent) -> ControlFlow<()> {
        let begun = || Reading::new(self.tokenizer, self.requests[number]);
        let reading = self.under_way.entry(number).or_insert_with(begun);
        reading.hear(event, &mut |text| (self.listen)(number, Heard::Text(text)))
    }

    fn end(&mut self, number: usize, generation: Generation) -> Result<ControlFlow<()>, Error> {
        let reading = self.under_way.remove(&number);
        let reading = reading.unwrap_or_else(|| Reading::new(self.tokenizer, self.requests[number]));
        let answer = reading.end(generation, &mut |text| (self.listen)(number, Heard::Text(text)))?;
        Ok((self.listen)(number, Heard::Answer(answer)))
    }
}

/// The tokens of an answer, as text up to a stop string.
struct Reading<'r> {
    stream: TextStream<'r>,
    stops: StopStrings,
    text: String,
    stopped: Option<String>,
    fault: Option<TokenizerError>,
    prompt_tokens: usize,
}

impl<'r> Reading<'r> {
    fn new(tokenizer: &'r Tokenizer, request: Request<'_>) -> Self {
        Self {
            stream: TextStream::new(tokenizer),
            stops: StopStrings::new(request.stops),
            text: String::new(),
            stopped: None,
            fault: None,
            prompt_tokens: request.prompt.len(),
        }
    }

    fn hear(
        &mut self,
        event: GenerationEvent,
        listen: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        match event {
            GenerationEvent::Prompt => self.take("", listen),
            GenerationEvent::Token(id) => match self.stream.push(id) {
                Ok(piece) => self.take(&piece, listen),
                Err(error) => {
                    self.fault = Some(error);
                    ControlFlow::Break(())
                }
            },
        }
    }

    /// Passes text on; `Break` ends the answer.
    fn take(&mut self, piece: &str, listen: &mut dyn FnMut(&str) -> ControlFlow<()>) -> ControlFlow<()> {
        match self.stops.push(piece) {
            ControlFlow::Continue(certain) => {
                self.text.push_str(&certain);
                listen(&certain)
            }
            ControlFlow::Break((last, stop)) => {
                self.text.push_str(&last);
                self.stopped = Some(stop);
                let _ended_anyway = listen(&last);
                ControlFlow::Break(())
            }
        }
    }

    fn end(
        mut self,
        generation: Generation,
        listen: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Answer, Error> {
        if let Some(error) = self.fault {
            return Err(Error::Text(error));
        }
        if generation.finish != Finish::Interrupted {
            let rest = self.stream.finish()?;
            let _ended_anyway = self.take(&rest, listen);
        }
        if self.stopped.is_none() && generation.finish != Finish::Interrupted {
            let rest = self.stops.finish();
            self.text.push_str(&rest);
            let _ended_anyway = listen(&rest);
        }
        let ending = match (self.stopped, generation.finish) {
            (Some(stop), _) => Ending::StopString(stop),
            (None, Finish::StopToken(_)) => Ending::Stop,
            (None, Finish::Length) => Ending::Length,
            (None, Finish::ContextFull) => Ending::ContextFull,
            (None, Finish::Interrupted) => Ending::Interrupted,
        };
        Ok(Answer {
            text: self.text,
            prompt_tokens: self.prompt_tokens,
            tokens: generation.tokens.len(),
            ending,
            timing: generation.timing,
        })
    }
}
