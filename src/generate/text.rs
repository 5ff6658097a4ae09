//! From tokens to text while they come: whole characters alone, and cut where a stop string begins.
//!
//! A token may end within a character, and a stop string may begin in one token and end in another. Text is held back
//! until it can no longer change. What comes out does not depend on where the borders of tokens lie.

use std::ops::ControlFlow;

use crate::data::tokenize::{Tokenizer, TokenizerError};

/// An answer's text as its tokens come.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// Tokens before this one are text already; those from `context` on are decoded with the new ones, since the
    /// first token of a text may look different from the same token within it.
    done: usize,
    context: usize,
}

impl<'a> TextStream<'a> {
    /// Of an answer without a token yet.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), done: 0, context: 0 }
    }

    /// The text that a token completes; empty while a character is not whole.
    ///
    /// # Errors
    /// The tokenizer fails on the token.
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        self.ids.push(id);
        self.more(false)
    }

    /// What is left at the end: an unfinished character, as the replacement character.
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
            // A decoder that rewrites what stands before: nothing it says can be taken back any more.
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

/// Looks for stop strings in text that comes in pieces.
pub struct StopStrings {
    stops: Vec<String>,
    /// Text that may yet turn out to begin a stop string.
    held: String,
}

impl StopStrings {
    /// Empty strings stop nothing.
    pub fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().filter(|stop| !stop.is_empty()).cloned().collect(), held: String::new() }
    }

    /// Takes a piece, and gives the text that is certain to stand before any stop string. `Break`: one was found, and
    /// nothing comes after.
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

    /// What was held back, at the end of the text.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests;
