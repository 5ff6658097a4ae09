//! A text with a maximum length: everything that a render writes, and every value that it writes out on the way.

use std::io;

use minijinja::{Error, ErrorKind};

use crate::units::Bytes;

/// Longest text, in bytes. The longest conversations that models are trained on have a few million bytes.
pub(super) const MAXIMUM: usize = 128 << 20;

/// A text that refuses to grow beyond [`MAXIMUM`].
#[derive(Debug, Default)]
pub(super) struct Text(String);

impl Text {
    /// # Errors
    /// The text would be longer than [`MAXIMUM`].
    pub(super) fn push_str(&mut self, more: &str) -> Result<(), Error> {
        if more.len() > MAXIMUM - self.0.len() {
            return Err(Error::new(ErrorKind::InvalidOperation, too_long()));
        }
        self.0.push_str(more);
        Ok(())
    }

    /// # Errors
    /// The text would be longer than [`MAXIMUM`].
    pub(super) fn push(&mut self, character: char) -> Result<(), Error> {
        self.push_str(character.encode_utf8(&mut [0; 4]))
    }

    pub(super) fn finish(self) -> String {
        self.0
    }
}

/// The engine writes whole strings, so each write is valid UTF-8.
impl io::Write for Text {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let more = str::from_utf8(bytes).map_err(io::Error::other)?;
        self.push_str(more).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is said of a text that would be longer than [`MAXIMUM`].
pub(super) fn too_long() -> String {
    format!("writes more than {} for one conversation", Bytes(MAXIMUM as u64))
}
