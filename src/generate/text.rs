//! Streams tokens as text: only complete characters, and up to the start of a stop string.
//!
//! A token may end within a character, and a stop string may span several tokens. Text is held back until it is final,
//! so the output does not depend on token boundaries.

use std::ops::ControlFlow;

use crate::data::tokenize::{Tokenizer, TokenizerError};

/// Decodes an answer's tokens one at a time.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// Tokens before this one are decoded; those from `context` on are decoded again with new ones, because the first
    /// token of a text may decode differently from the same token within it.
    done: usize,
    context: usize,
}

impl<'a> TextStream<'a> {
    /// The stream of an empty answer.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), done: 0, context: 0 }
    }

    /// The text that a token completes; empty while a character is incomplete.
    ///
    /// # Errors
    /// The tokenizer fails on the token.
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        self.ids.push(id);
        self.more(false)
    }

    /// The rest at the end: an incomplete character, as the replacement character.
    ///
    /// # Errors
    /// The tokenizer fails on the tokens.
    pub fn finish(&mut self) -> Result<String, TokenizerError> {
        self.more(true)
    }

    fn more(&mut self, all: bool) -> Result<String, TokenizerError> {
        let before = self.tokenizer.decode_plain(&self.ids[self.context..self.done])?;
        let now = self.tokenizer.decode_plain(&self.ids[self.context..])?;
        if !all && now.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        let Some(new) = now.strip_prefix(&before) else {
            // The decoder changed earlier text, which is already emitted.
            (self.context, self.done) = (self.done, self.ids.len());
            return self.tokenizer.decode_plain(&self.ids[self.context..]);
        };
        let new = new.to_owned();
        if !new.is_empty() {
            (self.context, self.done) = (self.done, self.ids.len());
        }
        Ok(new)
    }
}

/// Finds stop strings in streamed text.
pub struct StopStrings {
    stops: Vec<String>,
    /// Text that may be the start of a stop string.
    held: String,
}

impl StopStrings {
    /// Empty strings are ignored.
    pub fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().filter(|stop| !stop.is_empty()).cloned().collect(), held: String::new() }
    }

    /// Appends a piece, and returns the text that is certainly before any stop string. `Break`: a stop string was
    /// found, and the text ends.
    ///
    /// The string that is complete first ends the text; of several that are complete at the same character, the one
    /// that began first.
    pub fn push(&mut self, piece: &str) -> ControlFlow<(String, String), String> {
        self.held.push_str(piece);
        let found = self.stops.iter().filter_map(|stop| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start, stop))
        });
        if let Some((_, start, stop)) = found.min_by_key(|(end, start, _)| (*end, *start)) {
            let stop = stop.clone();
            self.held.truncate(start);
            return ControlFlow::Break((std::mem::take(&mut self.held), stop));
        }
        let may_begin = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let starts = self.held.char_indices().map(|(at, _)| at);
        let certain = starts.into_iter().find(may_begin).unwrap_or(self.held.len());
        let rest = self.held.split_off(certain);
        ControlFlow::Continue(std::mem::replace(&mut self.held, rest))
    }

    /// The text held back, at the end of the answer.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests;
