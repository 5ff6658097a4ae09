//! An answer as text, streamed while it is generated.

use std::ops::ControlFlow;

use tune_kernels::KernelBackend;

use super::decode::{Error, Finish, GenerationEvent, Session, Timing};
use super::sampling::Sampling;
use super::text::{StopStrings, TextStream};
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
    let mut stream = TextStream::new(tokenizer);
    let mut stops = StopStrings::new(request.stops);
    let mut text = String::new();
    let mut stopped: Option<String> = None;
    let mut fault: Option<TokenizerError> = None;
    // Passes text on; `Break` ends the answer.
    let mut take = |piece: String, text: &mut String| match stops.push(&piece) {
        ControlFlow::Continue(certain) => {
            text.push_str(&certain);
            listen(&certain)
        }
        ControlFlow::Break((last, stop)) => {
            text.push_str(&last);
            stopped = Some(stop);
            let _ended_anyway = listen(&last);
            ControlFlow::Break(())
        }
    };
    let generation = session.generate(request.prompt, request.sampling, &mut |event| match event {
        GenerationEvent::Prompt => take(String::new(), &mut text),
        GenerationEvent::Token(id) => match stream.push(id) {
            Ok(piece) => take(piece, &mut text),
            Err(error) => {
                fault = Some(error);
                ControlFlow::Break(())
            }
        },
    })?;
    if let Some(error) = fault {
        return Err(Error::Text(error));
    }
    if generation.finish != Finish::Interrupted {
        let _ended_anyway = take(stream.finish()?, &mut text);
    }
    if stopped.is_none() && generation.finish != Finish::Interrupted {
        let rest = stops.finish();
        text.push_str(&rest);
        let _ended_anyway = listen(&rest);
    }
    let ending = match (stopped, generation.finish) {
        (Some(stop), _) => Ending::StopString(stop),
        (None, Finish::StopToken(_)) => Ending::Stop,
        (None, Finish::Length) => Ending::Length,
        (None, Finish::ContextFull) => Ending::ContextFull,
        (None, Finish::Interrupted) => Ending::Interrupted,
    };
    Ok(Answer {
        text,
        prompt_tokens: request.prompt.len(),
        tokens: generation.tokens.len(),
        ending,
        timing: generation.timing,
    })
}
