//! `metrics.jsonl`: one JSON object a line for each logged step, evaluation and diverged step, flushed at once.
//!
//! A resumed run removes the lines after its checkpoint, so that each step has one line.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::folder::{FolderError, RunFolder};
use super::state::State;
use crate::files::{self, Action};

/// The metrics of a run, open for appending.
#[derive(Debug)]
pub struct Metrics {
    file: File,
    path: PathBuf,
}

/// The step of a line, and whether it is an evaluation.
#[derive(Deserialize)]
struct Line {
    step: u64,
    eval_tokens: Option<u64>,
}

impl Metrics {
    /// Opens the metrics of a run at `state`. Removes later lines and incomplete ones.
    ///
    /// # Errors
    /// [`FolderError::File`] when the file cannot be read or written.
    pub fn open(folder: &RunFolder, state: &State) -> Result<Self, FolderError> {
        let path = folder.metrics();
        cut(&path, state)?;
        let file = files::append(&path)?;
        Ok(Self { file, path })
    }

    /// Appends one line and flushes it.
    ///
    /// # Errors
    /// [`FolderError::File`] when the line cannot be written.
    pub fn write(&mut self, line: &impl Serialize) -> Result<(), FolderError> {
        let written = serde_json::to_vec(line).map_err(io::Error::from).and_then(|mut bytes| {
            bytes.push(b'\n');
            self.file.write_all(&bytes)?;
            self.file.flush()
        });
        Ok(written.map_err(files::Error::io(Action::Write, &self.path))?)
    }

    /// Flushes all lines to disk: before a checkpoint, which relies on them.
    ///
    /// # Errors
    /// [`FolderError::File`] when the disk reports an error.
    pub fn sync(&self) -> Result<(), FolderError> {
        Ok(self.file.sync_data().map_err(files::Error::io(Action::Write, &self.path))?)
    }
}

/// Rewrites the file without lines that a run at `state` will write again; leaves a file without such lines alone.
fn cut(path: &Path, state: &State) -> Result<(), FolderError> {
    let read = files::Error::io(Action::Read, path);
    match is_up_to(path, state) {
        Ok(true) => return Ok(()),
        Ok(false) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(read(error).into()),
    }
    let mut kept = Lines::open(path).map_err(read)?;
    Ok(files::write_atomically(path, |out| {
        while let Some(line) = kept.next()? {
            if belongs(line, state) {
                out.write_all(line)?;
            }
        }
        Ok(())
    })?)
}

/// Whether every line was written by `state`.
fn is_up_to(path: &Path, state: &State) -> io::Result<bool> {
    let mut lines = Lines::open(path)?;
    while let Some(line) = lines.next()? {
        if !belongs(line, state) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether this is a complete line of a finished step or evaluation.
fn belongs(line: &[u8], state: &State) -> bool {
    let Some(text) = line.strip_suffix(b"\n") else { return false };
    let Ok(line) = serde_json::from_slice::<Line>(text) else { return false };
    let is_done = match line.eval_tokens {
        None => true,
        Some(_) => state.last_evaluation.as_ref().is_some_and(|last| line.step <= last.step),
    };
    line.step <= state.step && is_done
}

/// The lines of a file with their line ends, one at a time.
struct Lines {
    reader: BufReader<File>,
    line: Vec<u8>,
}

impl Lines {
    fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { reader: BufReader::new(File::open(path)?), line: Vec::new() })
    }

    fn next(&mut self) -> io::Result<Option<&[u8]>> {
        self.line.clear();
        let read = self.reader.read_until(b'\n', &mut self.line)?;
        Ok((read > 0).then_some(self.line.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::data::batch::Cursor;
    use crate::train::event::EvaluationReport;

    #[test]
    fn a_resumed_run_cuts_lines_after_its_checkpoint_and_incomplete_ones() {
        let outer = tempfile::tempdir().unwrap();
        let folder = RunFolder::claim(&outer.path().join("run")).unwrap();
        let whole = "{\"step\":0,\"eval_loss\":2.0,\"eval_tokens\":9}\n{\"step\":1,\"loss\":1.0}\n{\"step\":2,\"loss\":1.0}\n";
        let evaluated = "{\"step\":2,\"eval_loss\":1.5,\"eval_tokens\":9}\n";
        let behind = "{\"step\":3,\"loss\":1.0}\n{\"step\":4,\"eval_tok";
        let evaluation =
            |step| Some(EvaluationReport { step, epoch: 0.1, eval_loss: 1.5, eval_tokens: 9, answers: None });
        let mut state =
            State { step: 2, last_evaluation: evaluation(2), ..State::fresh(Cursor::default(), 10) };
        let after = |state: &State| {
            fs::write(folder.metrics(), format!("{whole}\n{evaluated}{behind}")).unwrap();
            Metrics::open(&folder, state).unwrap().write(&serde_json::json!({"step": 3})).unwrap();
            fs::read_to_string(folder.metrics()).unwrap()
        };
        assert_eq!(after(&state), format!("{whole}{evaluated}{{\"step\":3}}\n"));
        // A checkpoint written between a step and its evaluation: the evaluation is yet to come.
        state.last_evaluation = evaluation(0);
        assert_eq!(after(&state), format!("{whole}{{\"step\":3}}\n"));
        let fresh = State::fresh(Cursor::default(), 10);
        assert_eq!(after(&fresh), "{\"step\":3}\n");
    }
}
