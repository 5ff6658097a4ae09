//! The folder a run writes: whose it is, and where everything in it lies.
//!
//! ```text
//! recipe.toml            the resolved recipe, every default written out
//! recipe.lock            the hash of every input
//! run.json               how the run went: sessions, data statistics, samples, machine
//! expert_load.json       how many tokens each expert of a mixture was sent, by layer
//! metrics.jsonl          one line per logged optimizer step or evaluation, flushed at once
//! checkpoints/step-N/    adapter, optimizer and data cursor after step N
//! checkpoints/best/      the checkpoint with the lowest held-out loss
//! base-packed/           the base in 4 bits, for a run that fetches layers from disk
//! adapter/               the last step's adapter: the one that ships
//! quantization.json      what 4 bits cost the base, when asked for
//! tensorboard/           event files, when asked for
//! .lock                  there while a run is at work
//! ```

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::expert_load::ExpertLoad;
use crate::checkpoint;
use crate::files::lock::Lock;
use crate::files::{self, Action};

const LOCK: &str = ".lock";
/// The folder of the packed base.
pub const PACKED: &str = "base-packed";
const SAMPLES: &str = "samples.jsonl";
/// How many tokens the experts of a mixture were sent.
pub const EXPERT_LOAD: &str = "expert_load.json";
const STEP: &str = "step-";
const DAMAGED: &str = "damaged-";

/// The run folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Another run is at work in it.
    #[error("another run is writing to {}", .0.display())]
    InUse(PathBuf),
    /// It holds a finished run.
    #[error("{} already holds a run, with its adapter", .0.display())]
    Occupied(PathBuf),
    /// It holds a run that was interrupted.
    #[error("{} holds a run that did not come to its end", .0.display())]
    Unfinished(PathBuf),
    /// It holds something else.
    #[error("{} is not empty, and what it holds is no run", .0.display())]
    Foreign(PathBuf),
    /// It holds checkpoints, and none can be read.
    #[error("no checkpoint in {} can be used:{}", folder.display(), listed(faults))]
    NoneUsable {
        /// The folder of the checkpoints.
        folder: PathBuf,
        /// What is wrong with each.
        faults: Vec<checkpoint::Error>,
    },
    /// Reading or writing failed.
    #[error(transparent)]
    File(#[from] files::Error),
}

fn listed(faults: &[checkpoint::Error]) -> String {
    faults.iter().map(|fault| format!("\n  - {fault}")).collect()
}

/// What a run finds in its folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing.
    Empty,
    /// A run without an adapter.
    Unfinished,
    /// A run with its adapter.
    Finished,
    /// Something that is no run.
    Foreign,
}

/// An output folder, claimed by one run.
#[derive(Debug)]
pub struct RunFolder {
    root: PathBuf,
    lock: Option<Lock>,
    /// Folders made for the claim, outermost first, until something is written into them.
    made: Vec<PathBuf>,
}

impl RunFolder {
    /// Takes the folder for this process, and creates it if need be. Dropping the claim before [`Self::begin`] leaves
    /// no trace.
    ///
    /// # Errors
    /// [`FolderError::InUse`] when another process has it; [`FolderError::File`] when it cannot be created or locked.
    pub fn claim(root: &Path) -> Result<Self, FolderError> {
        let missing = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
        let mut made: Vec<PathBuf> = root.ancestors().take_while(missing).map(Path::to_path_buf).collect();
        made.reverse();
        files::create_folder(root)?;
        let mut folder = Self { root: root.to_path_buf(), lock: None, made };
        match Lock::try_take(&root.join(LOCK))? {
            Some(lock) => folder.lock = Some(lock),
            None => return Err(FolderError::InUse(root.to_path_buf())),
        }
        Ok(folder)
    }

    /// Whether other processes are kept out; some network file systems have no locks.
    pub fn is_exclusive(&self) -> bool {
        self.lock.as_ref().is_some_and(Lock::is_effective)
    }

    /// What lies in the folder.
    ///
    /// # Errors
    /// [`FolderError::File`] when it cannot be listed.
    pub fn standing(&self) -> Result<Standing, FolderError> {
        let mut is_empty = true;
        for entry in fs::read_dir(&self.root).map_err(files::Error::io(Action::Read, &self.root))? {
            let name = entry.map_err(files::Error::io(Action::Read, &self.root))?.file_name();
            let name = name.to_string_lossy();
            // A packed base comes before the run, and serves every later one.
            is_empty &= name == LOCK || name == PACKED || files::is_leftover(&name);
        }
        Ok(match () {
            () if is_empty => Standing::Empty,
            () if !self.recipe().is_file() => Standing::Foreign,
            () if self.adapter().is_dir() => Standing::Finished,
            () => Standing::Unfinished,
        })
    }

    /// Refuses a folder that holds anything, unless `overwrite` says that an earlier run there may be replaced.
    ///
    /// # Errors
    /// [`FolderError::Occupied`], [`FolderError::Unfinished`] or [`FolderError::Foreign`] for a folder with content.
    pub fn require_free(&self, overwrite: bool) -> Result<(), FolderError> {
        let root = self.root.clone();
        match self.standing()? {
            Standing::Empty => Ok(()),
            Standing::Foreign => Err(FolderError::Foreign(root)),
            Standing::Finished | Standing::Unfinished if overwrite => Ok(()),
            Standing::Finished => Err(FolderError::Occupied(root)),
            Standing::Unfinished => Err(FolderError::Unfinished(root)),
        }
    }

    /// Prepares the folder for a run: what killed processes left half-written goes, and unless the run `goes_on` with
    /// an earlier one, what that one left.
    ///
    /// # Errors
    /// [`FolderError::File`] when something cannot be removed.
    pub fn begin(&mut self, goes_on: bool) -> Result<(), FolderError> {
        self.made.clear();
        files::sweep(&self.root)?;
        files::sweep(&self.checkpoints())?;
        if goes_on {
            return Ok(());
        }
        // The recipe, which tells a run from anything else, goes last.
        for folder in [self.adapter(), self.checkpoints(), self.root.join("tensorboard")] {
            files::remove_folder(&folder)?;
        }
        let others = ["report.html", "quantization.json", "run.json", "recipe.lock", SAMPLES, EXPERT_LOAD]
            .map(|name| self.root.join(name));
        for file in others.into_iter().chain([self.memory_plan(), self.metrics(), self.recipe()]) {
            match fs::remove_file(&file) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                result => result.map_err(files::Error::io(Action::Remove, &file))?,
            }
        }
        Ok(())
    }

    /// Answers to the sample prompts while the run goes on.
    pub fn samples(&self) -> PathBuf {
        self.root.join(SAMPLES)
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The resolved recipe.
    pub fn recipe(&self) -> PathBuf {
        self.root.join("recipe.toml")
    }

    /// What the run was planned to hold in memory.
    pub fn memory_plan(&self) -> PathBuf {
        self.root.join("memory_plan.json")
    }

    /// Writes how many tokens each expert was sent so far, by layer.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn write_expert_load(&self, load: &ExpertLoad) -> Result<(), FolderError> {
        let text = serde_json::json!({ "tokens": load });
        Ok(files::write_bytes(&self.root.join(EXPERT_LOAD), format!("{text}\n").as_bytes())?)
    }

    /// The metrics, one JSON object per line.
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// The adapter that ships.
    pub fn adapter(&self) -> PathBuf {
        self.root.join("adapter")
    }

    /// The base in 4 bits, for runs that fetch layers from disk.
    pub fn packed_base(&self) -> PathBuf {
        self.root.join(PACKED)
    }

    /// All checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// The checkpoint after `step` optimizer steps.
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        self.checkpoints().join(format!("{STEP}{step}"))
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
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(files::Error::io(Action::Read, &folder)(error).into()),
        };
        let mut steps = Vec::new();
        for entry in entries {
            let entry = entry.map_err(files::Error::io(Action::Read, &folder))?;
            let name = entry.file_name();
            steps.extend(name.to_str().and_then(|name| name.strip_prefix(STEP)?.parse::<u64>().ok()));
        }
        steps.sort_unstable();
        Ok(steps)
    }

    /// Removes the oldest step checkpoints beyond `keep`; the newest always stays, and `best` is none of them.
    ///
    /// Call it after a checkpoint was written: the newest is then known to be good.
    ///
    /// # Errors
    /// [`FolderError::File`] when one cannot be removed.
    pub fn prune_checkpoints(&self, keep: usize) -> Result<(), FolderError> {
        let steps = self.checkpoint_steps()?;
        for step in &steps[..steps.len().saturating_sub(keep.max(1))] {
            files::remove_folder(&self.checkpoint(*step))?;
        }
        Ok(())
    }

    /// Puts the checkpoints from `step` on aside under another name, all but the one at `used`: they cannot be used, and
    /// must not count among those that are kept.
    ///
    /// # Errors
    /// [`FolderError::File`] when one cannot be renamed.
    pub fn set_aside(&self, step: u64, used: &Path) -> Result<(), FolderError> {
        for later in self.checkpoint_steps()?.into_iter().filter(|later| *later >= step) {
            let path = self.checkpoint(later);
            if path == used {
                continue;
            }
            let aside = self.checkpoints().join(format!("{DAMAGED}{STEP}{later}"));
            files::remove_folder(&aside)?;
            fs::rename(&path, &aside).map_err(files::Error::io(Action::Write, &path))?;
        }
        Ok(())
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        if self.made.is_empty() {
            return;
        }
        // Folders that were made for nothing; one that holds something after all refuses to go.
        self.lock = None;
        for folder in self.made.iter().rev() {
            _ = fs::remove_dir(folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_that_comes_to_nothing_leaves_no_trace() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("runs/deep/run");
        let folder = RunFolder::claim(&root).unwrap();
        assert!(matches!(RunFolder::claim(&root), Err(FolderError::InUse(_))));
        drop(folder);
        assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 0);
        let mut folder = RunFolder::claim(&root).unwrap();
        folder.begin(false).unwrap();
        drop(folder);
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0, "the lock goes with the run");
    }

    #[test]
    fn a_folder_with_content_is_refused_and_left_as_it_is() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("run");
        let claim = || RunFolder::claim(&root).unwrap();
        let mut folder = claim();
        folder.require_free(false).unwrap();
        folder.begin(false).unwrap();
        fs::write(root.join("notes.txt"), "mine").unwrap();
        for overwrite in [false, true] {
            assert!(matches!(folder.require_free(overwrite), Err(FolderError::Foreign(_))));
        }
        fs::write(folder.recipe(), "").unwrap();
        fs::write(folder.metrics(), "old").unwrap();
        assert!(matches!(folder.require_free(false), Err(FolderError::Unfinished(_))));
        fs::create_dir(folder.adapter()).unwrap();
        assert!(matches!(folder.require_free(false), Err(FolderError::Occupied(_))));
        folder.require_free(true).unwrap();
        folder.begin(false).unwrap();
        assert_eq!(fs::read_to_string(root.join("notes.txt")).unwrap(), "mine");
        assert!(!folder.metrics().exists() && !folder.adapter().exists());
    }

    #[test]
    fn what_a_killed_run_left_before_its_first_file_is_no_content() {
        let outer = tempfile::tempdir().unwrap();
        fs::write(outer.path().join(".recipe.toml.tmp-12-0"), "half").unwrap();
        fs::write(outer.path().join(LOCK), "").unwrap();
        let mut folder = RunFolder::claim(outer.path()).unwrap();
        folder.require_free(false).unwrap();
        folder.begin(false).unwrap();
        assert!(!outer.path().join(".recipe.toml.tmp-12-0").exists());
    }

    #[test]
    fn pruning_keeps_the_newest() {
        let outer = tempfile::tempdir().unwrap();
        let folder = RunFolder::claim(outer.path()).unwrap();
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

    #[test]
    fn what_is_set_aside_counts_no_more() {
        let outer = tempfile::tempdir().unwrap();
        let folder = RunFolder::claim(outer.path()).unwrap();
        for step in [5, 10, 15] {
            fs::create_dir_all(folder.checkpoint(step)).unwrap();
        }
        folder.set_aside(5, &folder.checkpoint(5)).unwrap();
        assert_eq!(folder.checkpoint_steps().unwrap(), [5]);
        assert!(folder.checkpoints().join("damaged-step-15").is_dir());
    }
}
