//! Folders of compiled kernels, one for each version of their code, below one folder of the user's.
//!
//! A process takes the folder of its own version and keeps a lock on it for as long as it lives. Folders of other versions
//! that nobody has taken for a while are removed, unless somebody holds their lock: several versions may run at once.

use std::fs::{self, File, FileTimes};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

/// The file in each folder that is locked, and whose time of change tells when it was last taken.
const MARK: &str = "in-use";

/// How long a folder that nobody takes is kept.
const KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Marks of the folders that this process took; their locks end with it.
static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// The folder of `version` below `root`, taken, after old ones were removed. Where it cannot be written to or locked it is
/// used all the same: at worst a kernel is compiled again.
pub(super) fn take(root: &Path, version: &str) -> PathBuf {
    let own = root.join(version);
    if let Ok(mark) = mark(&own)
        && let Ok(mut held) = HELD.lock()
    {
        held.push(mark);
    }
    remove_old(root, version, SystemTime::now());
    own
}

/// Locks a folder's mark, among others who do, and sets its time to now.
fn mark(folder: &Path) -> io::Result<File> {
    loop {
        fs::create_dir_all(folder)?;
        let path = folder.join(MARK);
        let mark = match File::create(&path) {
            // Removed by another process after it was made.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            created => created?,
        };
        mark.lock_shared()?;
        // Whoever removes a folder has it under another name before he gives the lock up.
        if path.exists() {
            mark.set_times(FileTimes::new().set_modified(SystemTime::now()))?;
            return Ok(mark);
        }
    }
}

/// Removes the folders of other versions that were not taken since [`KEPT`] before `now`. What cannot be removed stays.
fn remove_old(root: &Path, version: &str, now: SystemTime) {
    let Ok(entries) = fs::read_dir(root) else { return };
    for entry in entries.flatten() {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let is_old = |used: SystemTime| now.duration_since(used).is_ok_and(|unused| unused > KEPT);
        if is_folder && entry.file_name() != version && last_used(&entry.path()).is_ok_and(is_old) {
            let _ = remove(&entry.path(), &is_old);
        }
    }
}

/// When a folder was last taken; of one without a mark, when anything in it was last changed.
fn last_used(folder: &Path) -> io::Result<SystemTime> {
    if let Ok(mark) = fs::metadata(folder.join(MARK)) {
        return mark.modified();
    }
    let mut newest = fs::metadata(folder)?.modified()?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let changed = match entry.file_type()?.is_dir() {
            true => last_used(&entry.path())?,
            false => entry.metadata()?.modified()?,
        };
        newest = newest.max(changed);
    }
    Ok(newest)
}

/// Removes a folder that nobody holds and that is still old once it is locked.
fn remove(folder: &Path, is_old: &dyn Fn(SystemTime) -> bool) -> io::Result<()> {
    let path = folder.join(MARK);
    if path.exists() {
        let mark = File::open(&path)?;
        mark.try_lock()?;
        if !is_old(fs::metadata(&path)?.modified()?) {
            return Ok(());
        }
        discard(folder)
    } else {
        // Of a version that knew no marks.
        discard(folder)
    }
}

/// Under another name first, so that nobody takes what is half gone. A folder that was left so is removed the next time.
fn discard(folder: &Path) -> io::Result<()> {
    let gone = folder.with_extension(format!("removed-{}", std::process::id()));
    fs::rename(folder, &gone)?;
    fs::remove_dir_all(&gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of its own for a test, removed when it ends.
    struct Root(PathBuf);

    impl Root {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("tune-kernels-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&root);
            fs::create_dir_all(&root).unwrap();
            Self(root)
        }

        /// A folder that was last used so many days ago.
        fn used(&self, version: &str, days: u64, is_marked: bool) -> PathBuf {
            let folder = self.0.join(version);
            fs::create_dir_all(folder.join("vulkan")).unwrap();
            fs::write(folder.join("vulkan/kernel"), "code").unwrap();
            if is_marked {
                drop(mark(&folder).unwrap());
            }
            let then = SystemTime::now() - Duration::from_secs(days * 24 * 60 * 60);
            for path in
                [folder.join("vulkan/kernel"), folder.join("vulkan"), folder.join(MARK), folder.clone()]
            {
                if let Ok(file) = File::open(path) {
                    file.set_modified(then).unwrap();
                }
            }
            folder
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn old_versions_go_and_recent_ones_stay() {
        let root = Root::new("old");
        let (old, unmarked) = (root.used("old", 31, true), root.used("unmarked", 40, false));
        let (recent, recent_unmarked) = (root.used("recent", 29, true), root.used("new", 2, false));
        // One that this version left long ago is its own.
        let own = root.used("own", 100, true);
        assert_eq!(take(&root.0, "own"), own);
        assert!(!old.exists() && !unmarked.exists());
        assert!(recent.join("vulkan/kernel").exists() && recent_unmarked.join("vulkan/kernel").exists());
        assert!(own.join("vulkan/kernel").exists());
        assert!(last_used(&own).unwrap().elapsed().unwrap() < Duration::from_secs(60));
        assert_eq!(fs::read_dir(&root.0).unwrap().count(), 3);
    }

    #[test]
    fn what_somebody_holds_stays() {
        let root = Root::new("held");
        let old = root.used("old", 400, true);
        let held = File::open(old.join(MARK)).unwrap();
        held.lock_shared().unwrap();
        take(&root.0, "own");
        assert!(old.join("vulkan/kernel").exists());
        drop(held);
        take(&root.0, "own");
        assert!(!old.exists());
    }

    /// Many who take and remove at once: whoever took a folder finds it there.
    #[test]
    fn parallel_runs_never_lose_the_folder_they_took() {
        let root = Root::new("parallel");
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let root = &root;
                scope.spawn(move || {
                    for _ in 0..50 {
                        let version = format!("version-{}", worker % 2);
                        let folder = root.0.join(&version);
                        let held = mark(&folder).unwrap();
                        // To everybody else all of it is old.
                        let later = SystemTime::now() + 2 * KEPT;
                        remove_old(&root.0, "another", later);
                        assert!(folder.join(MARK).exists(), "{version} was removed while it was held");
                        drop(held);
                    }
                });
            }
        });
    }
}
