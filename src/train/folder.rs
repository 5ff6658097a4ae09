//! The folder a run writes: where everything in it lies, and its `metrics.jsonl`.
//!
//! ```text
//! recipe.toml            the resolved recipe, every default written out
//! recipe.lock            the hash of every input
//! run.json               how the run went: sessions, data statistics, samples, machine
//! metrics.jsonl          one line per logged optimizer step or evaluation, flushed at once
//! checkpoints/step-N/    adapter, optimizer and data cursor after step N
//! checkpoints/best/      the checkpoint with the lowest held-out loss
//! adapter/               the last step's adapter: the one that ships
//! tensorboard/           event files, when asked for
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::files::{self, Action};

/// Something in the run folder could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The folder already holds a run.
    #[error("{} already holds a run", .0.display())]
    Occupied(PathBuf),
    /// Reading or writing failed.
    #[error(transparent)]
    File(#[from] files::Error),
}

/// An output folder that belongs to one run.
#[derive(Debug)]
pub struct RunFolder {
    root: PathBuf,
}

impl RunFolder {
    /// Refuses a folder that holds anything, unless `overwrite` says that an earlier run there may be replaced.
    ///
    /// # Errors
    /// [`FolderError::Occupied`] for a folder with content; [`FolderError::File`] when it cannot be looked at.
    pub fn check(root: &Path, overwrite: bool) -> Result<(), FolderError> {
        let occupied = match fs::read_dir(root) {
            Ok(mut entries) => entries.next().is_some(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(files::Error::io(Action::Read, root)(error).into()),
        };
        let replaceable = overwrite && root.join("recipe.toml").is_file();
        if occupied && !replaceable {
            return Err(FolderError::Occupied(root.to_path_buf()));
        }
        Ok(())
    }

    /// Creates the folder. With `overwrite`, what an earlier run left in it goes first.
    ///
    /// # Errors
    /// As [`Self::check`], and [`FolderError::File`] when it cannot be made.
    pub fn create(root: &Path, overwrite: bool) -> Result<Self, FolderError> {
        Self::check(root, overwrite)?;
        files::create_folder(root)?;
        if overwrite {
            for name in ["adapter", "checkpoints", "tensorboard"] {
                let path = root.join(name);
                if path.is_dir() {
                    fs::remove_dir_all(&path).map_err(files::Error::io(Action::Remove, &path))?;
                }
            }
            for name in
                ["metrics.jsonl", "memory_plan.json", "report.html", "run.json", "recipe.lock", "recipe.toml"]
            {
                let path = root.join(name);
                if path.is_file() {
                    fs::remove_file(&path).map_err(files::Error::io(Action::Remove, &path))?;
                }
            }
        }
        Ok(Self { root: root.to_path_buf() })
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The resolved recipe.
    pub fn recipe(&self) -> PathBuf {
        self.root.join("recipe.toml")
    }

    /// The metrics, one JSON object per line.
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// The adapter that ships.
    pub fn adapter(&self) -> PathBuf {
        self.root.join("adapter")
    }

    /// All checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// The checkpoint after `step` optimizer steps.
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        self.checkpoints().join(format!("step-{step}"))
    }

    /// The checkpoint with the lowest held-out loss.
    pub fn best(&self) -> PathBuf {
        self.checkpoints().join("best")
    }

    /// Steps of the checkpoints that lie here, ascending. Folders of other names are left alone.
    ///
    /// # Errors
    /// [`FolderError::File`] when the folder cannot be listed.
    pub fn checkpoint_steps(&self) -> Result<Vec<u64>, FolderError> {
        let folder = self.checkpoints();
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(files::Error::io(Action::Read, &folder)(error).into()),
        };
        let mut steps = Vec::new();
        for entry in entries {
            let entry = entry.map_err(files::Error::io(Action::Read, &folder))?;
            let name = entry.file_name();
            steps.extend(name.to_str().and_then(|name| name.strip_prefix("step-")?.parse::<u64>().ok()));
        }
        steps.sort_unstable();
        Ok(steps)
    }

    /// Removes the oldest step checkpoints beyond `keep`; the newest always stays.
    ///
    /// # Errors
    /// [`FolderError::File`] when one cannot be removed.
    pub fn prune_checkpoints(&self, keep: usize) -> Result<(), FolderError> {
        let steps = self.checkpoint_steps()?;
        for step in &steps[..steps.len().saturating_sub(keep.max(1))] {
            let path = self.checkpoint(*step);
            fs::remove_dir_all(&path).map_err(files::Error::io(Action::Remove, &path))?;
        }
        Ok(())
    }
}

/// `metrics.jsonl`, open for appending.
#[derive(Debug)]
pub struct Metrics {
    file: File,
    path: PathBuf,
}

impl Metrics {
    /// Opens the metrics of a run.
    ///
    /// # Errors
    /// [`FolderError::File`] when the file cannot be opened.
    pub fn open(folder: &RunFolder) -> Result<Self, FolderError> {
        let path = folder.metrics();
        let file = files::append(&path).map_err(files::Error::io(Action::Write, &path))?;
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_content_is_refused_and_left_as_it_is() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("run");
        RunFolder::create(&root, false).unwrap();
        fs::write(root.join("notes.txt"), "mine").unwrap();
        assert!(matches!(RunFolder::create(&root, false), Err(FolderError::Occupied(_))));
        assert!(
            matches!(RunFolder::create(&root, true), Err(FolderError::Occupied(_))),
            "not a run: not replaced"
        );
        fs::write(root.join("recipe.toml"), "").unwrap();
        fs::write(root.join("metrics.jsonl"), "old").unwrap();
        RunFolder::create(&root, true).unwrap();
        assert_eq!(fs::read_to_string(root.join("notes.txt")).unwrap(), "mine");
        assert!(!root.join("metrics.jsonl").exists());
    }

    #[test]
    fn pruning_keeps_the_newest() {
        let outer = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(outer.path(), false).unwrap();
        for step in [5, 10, 100, 20] {
            fs::create_dir_all(folder.checkpoint(step)).unwrap();
        }
        fs::create_dir_all(folder.best()).unwrap();
        folder.prune_checkpoints(2).unwrap();
        assert_eq!(folder.checkpoint_steps().unwrap(), [20, 100]);
        assert!(folder.best().is_dir());
        folder.prune_checkpoints(0).unwrap();
        assert_eq!(folder.checkpoint_steps().unwrap(), [100]);
    }
}
