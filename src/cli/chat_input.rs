//! Where the lines of a conversation come from: a terminal or a pipe.

use std::io::{self, BufRead, Write};

use super::style::{STRONG, paint};

/// What a user entered.
pub(super) enum Entered {
    /// A line.
    Line(String),
    /// A line that is not UTF-8.
    NotText,
    /// The end of the input.
    End,
}

/// The source of the lines.
pub(super) struct Input {
    /// Whether a prompt is shown before each line.
    pub(super) prompts: bool,
}

impl Input {
    /// The next line.
    ///
    /// # Errors
    /// The input cannot be read.
    pub(super) fn next(&mut self, out: &mut dyn Write) -> io::Result<Entered> {
        if self.prompts {
            write!(out, "{} ", paint(STRONG, ">"))?;
        }
        out.flush()?;
        let mut bytes = Vec::new();
        if io::stdin().lock().read_until(b'\n', &mut bytes)? == 0 {
            if self.prompts {
                writeln!(out)?;
            }
            return Ok(Entered::End);
        }
        Ok(String::from_utf8(bytes).map_or(Entered::NotText, Entered::Line))
    }
}
