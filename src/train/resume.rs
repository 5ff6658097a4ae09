//! Finding the checkpoint that a run goes on from: the newest that is whole, walking back over those that are not.

use super::folder::{FolderError, RunFolder};
use super::state::Saved;
use crate::checkpoint;

/// Where a run can go on.
#[derive(Debug)]
pub struct Found {
    /// The newest checkpoint that can be used; `None` when none was ever written.
    pub saved: Option<Saved>,
    /// Newer ones that cannot, and why; newest first.
    pub passed_over: Vec<checkpoint::Error>,
}

/// Looks through the checkpoints of a run. Reads no more of them than it must, and changes nothing.
///
/// # Errors
/// [`FolderError::NoneUsable`] when there are checkpoints and none is whole.
pub fn find(folder: &RunFolder) -> Result<Found, FolderError> {
    let mut passed_over = Vec::new();
    let mut saved = None;
    for step in folder.checkpoint_steps()?.into_iter().rev() {
        match Saved::read(&folder.checkpoint(step)) {
            Ok(found) => {
                saved = Some(found);
                break;
            }
            Err(error) => passed_over.push(error),
        }
    }
    // The best is a checkpoint like any other, and may be newer than what is left of them.
    let is_last_resort = saved.is_none() || !passed_over.is_empty();
    if is_last_resort && folder.best().is_dir() {
        match Saved::read(&folder.best()) {
            Ok(best) => {
                let is_newer = saved.as_ref().is_none_or(|saved| best.state.step > saved.state.step);
                if is_newer {
                    saved = Some(best);
                }
            }
            Err(error) => passed_over.push(error),
        }
    }
    if saved.is_none() && !passed_over.is_empty() {
        return Err(FolderError::NoneUsable { folder: folder.checkpoints(), faults: passed_over });
    }
    Ok(Found { saved, passed_over })
}
