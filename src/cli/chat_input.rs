//! Where the lines of a conversation come from: a terminal or a pipe.

use std::io::{self, BufRead, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::environment::Interrupts;
use super::style::{FAINT, STRONG, paint};

/// Time between two looks for Ctrl-C at the prompt.
const PATIENCE: Duration = Duration::from_millis(20);

/// What a user entered.
pub(super) enum Entered {
    /// A line.
    Line(String),
    /// A line that is not UTF-8.
    NotText,
    /// The end of the input.
    End,
}

fn prompt() -> String {
    format!("{} ", paint(STRONG, ">"))
}

/// Says how to leave after each Ctrl-C, which has emptied the line, until the next line is read.
fn answer_interrupts(interrupts: &Interrupts, is_read: &AtomicBool) {
    while !is_read.load(Ordering::Relaxed) {
        if interrupts.raised() {
            interrupts.forget();
            let hint = paint(FAINT, "Ctrl-D or /exit leaves");
            let mut stderr = anstream::stderr();
            let _ = write!(stderr, "\n{hint}\n{}", prompt()).and_then(|()| stderr.flush());
        }
        thread::sleep(PATIENCE);
    }
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
    pub(super) fn next(&mut self, interrupts: &Interrupts, out: &mut dyn Write) -> io::Result<Entered> {
        if self.prompts {
            write!(out, "{}", prompt())?;
        }
        out.flush()?;
        let mut bytes = Vec::new();
        let is_read = AtomicBool::new(false);
        let read = thread::scope(|scope| {
            if self.prompts {
                interrupts.forget();
                scope.spawn(|| answer_interrupts(interrupts, &is_read));
            }
            let read = io::stdin().lock().read_until(b'\n', &mut bytes);
            is_read.store(true, Ordering::Relaxed);
            read
        });
        if read? == 0 {
            if self.prompts {
                writeln!(out)?;
            }
            return Ok(Entered::End);
        }
        Ok(String::from_utf8(bytes).map_or(Entered::NotText, Entered::Line))
    }
}
