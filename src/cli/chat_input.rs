//! Where the lines of a conversation come from: a terminal, with editing and a history, or a pipe. The only user of
//! rustyline.

use std::io::{self, BufRead, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustyline::config::BellStyle;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Config, Editor};

use super::environment::{Interrupts, private_folder};
use super::style::{FAINT, is_dumb, paint};

/// What stands before a line.
const PROMPT: &str = "> ";
/// Time between two looks for Ctrl-C at a prompt without editing.
const PATIENCE: Duration = Duration::from_millis(20);
/// Lines that the history keeps.
const KEPT_LINES: usize = 1000;
/// Longest line that the history keeps, in bytes: pasted pages are not kept.
const LONGEST_KEPT: usize = 8 * 1024;

/// What a user entered.
pub(super) enum Entered {
    /// A line, or several that were pasted at once.
    Line(String),
    /// A line that is not UTF-8.
    NotText,
    /// The end of the input.
    End,
}

/// The source of the lines.
pub(super) enum Input {
    /// A pipe, or a program that asks for JSON: lines as they are.
    Piped,
    /// A terminal whose cursor cannot be moved.
    Plain,
    /// A terminal.
    Edited(Box<Edited>),
}

impl Input {
    /// The input of a conversation on a terminal; `history` is the file of its history.
    ///
    /// # Errors
    /// The terminal cannot be set up.
    pub(super) fn terminal(history: Option<&Path>) -> io::Result<Self> {
        match is_dumb() {
            true => Ok(Self::Plain),
            false => Ok(Self::Edited(Box::new(Edited::new(history)?))),
        }
    }

    /// The next line, after a prompt on a terminal. `out` is flushed.
    ///
    /// # Errors
    /// The input cannot be read.
    pub(super) fn next(&mut self, interrupts: &Interrupts, out: &mut dyn Write) -> io::Result<Entered> {
        match self {
            Self::Piped => read_line(),
            Self::Plain => plain(interrupts, out),
            Self::Edited(edited) => edited.next(),
        }
    }

    /// Adds a line to the history.
    pub(super) fn remember(&mut self, line: &str) {
        if let Self::Edited(edited) = self {
            edited.remember(line);
        }
    }

    /// The file of the history, if there is one.
    pub(super) fn history(&self) -> Option<&Path> {
        match self {
            Self::Edited(edited) => edited.file.as_deref(),
            Self::Piped | Self::Plain => None,
        }
    }
}

fn read_line() -> io::Result<Entered> {
    let mut bytes = Vec::new();
    match io::stdin().lock().read_until(b'\n', &mut bytes)? {
        0 => Ok(Entered::End),
        _ => Ok(String::from_utf8(bytes).map_or(Entered::NotText, Entered::Line)),
    }
}

fn hint_at_leaving() -> String {
    paint(FAINT, "Ctrl-D or /exit leaves")
}

/// A line of a terminal without editing.
fn plain(interrupts: &Interrupts, out: &mut dyn Write) -> io::Result<Entered> {
    write!(out, "{PROMPT}").and_then(|()| out.flush())?;
    let is_read = AtomicBool::new(false);
    let read = thread::scope(|scope| {
        interrupts.forget();
        scope.spawn(|| answer_interrupts(interrupts, &is_read));
        let read = read_line();
        is_read.store(true, Ordering::Relaxed);
        read
    });
    if let Ok(Entered::End) = read {
        writeln!(out)?;
    }
    read
}

/// Says how to leave after each Ctrl-C, which has emptied the line, until the next line is read.
fn answer_interrupts(interrupts: &Interrupts, is_read: &AtomicBool) {
    while !is_read.load(Ordering::Relaxed) {
        if interrupts.raised() {
            interrupts.forget();
            let mut stderr = anstream::stderr();
            let _ = write!(stderr, "\n{}\n{PROMPT}", hint_at_leaving()).and_then(|()| stderr.flush());
        }
        thread::sleep(PATIENCE);
    }
}

/// Lines of a terminal, with editing.
pub(super) struct Edited {
    editor: Editor<(), FileHistory>,
    file: Option<PathBuf>,
}

impl Edited {
    /// A history whose file cannot be read begins empty; where it cannot be written, it ends with the conversation.
    fn new(history: Option<&Path>) -> io::Result<Self> {
        let config = Config::builder()
            .max_history_size(KEPT_LINES)
            .map_err(io_error)?
            .history_ignore_space(true)
            .bell_style(BellStyle::None)
            .build();
        let mut editor = Editor::with_config(config).map_err(io_error)?;
        let file = history.filter(|file| is_usable(file)).map(Path::to_owned);
        if let Some(file) = &file {
            let _ = editor.load_history(file);
        }
        Ok(Self { editor, file })
    }

    fn next(&mut self) -> io::Result<Entered> {
        loop {
            match self.editor.readline(PROMPT) {
                Ok(line) => return Ok(Entered::Line(line)),
                Err(ReadlineError::Eof) => return Ok(Entered::End),
                Err(ReadlineError::Interrupted | ReadlineError::Signal(_)) => {
                    let _ = writeln!(anstream::stderr(), "{}", hint_at_leaving());
                }
                Err(ReadlineError::Io(error)) if error.kind() == ErrorKind::InvalidData => {
                    return Ok(Entered::NotText);
                }
                Err(error) => return Err(io_error(error)),
            }
        }
    }

    /// The file is written at once, so that a conversation that is killed loses nothing.
    fn remember(&mut self, line: &str) {
        if line.len() <= LONGEST_KEPT
            && self.editor.add_history_entry(line).unwrap_or(false)
            && let Some(file) = &self.file
        {
            let _ = self.editor.append_history(file);
        }
    }
}

/// Whether a file can be that of the history: it is one, of a length that we write, or can be created. Its folder, created
/// if missing, is accessible for this user only; rustyline does the same for the file.
fn is_usable(file: &Path) -> bool {
    match file.metadata() {
        Ok(found) => found.is_file() && found.len() <= 2 * (KEPT_LINES * LONGEST_KEPT) as u64,
        Err(_) => file.parent().is_some_and(|folder| private_folder(folder).is_ok()),
    }
}

fn io_error(error: ReadlineError) -> io::Error {
    match error {
        ReadlineError::Io(error) => error,
        error => io::Error::other(error),
    }
}
