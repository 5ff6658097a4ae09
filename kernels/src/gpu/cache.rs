//! Folders of compiled kernels, one for each version of their code, below one folder of the user's.
//!
//! A process takes the folder of its own version and keeps a lock on it for as long as it lives. Folders of other versions
//! that nobody has taken for a while are removed, unless somebody holds their lock: several versions may run at once.
//! Who takes or removes holds the lock of the folder above them meanwhile, so neither sees the other half done.

use std::fs::{self, File, FileTimes};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

/// The file above all versions, locked by whoever takes or removes one of them.
const LOCK: &str = "lock";

/// The file in each folder that is locked, and whose time of change tells when it was last taken.
const MARK: &str = "in-use";

/// How long a folder that nobody takes is kept.
const KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Marks of the folders that this process took; their locks end with it.
static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// The folder of `version` below `root`, taken, after old ones were removed. Where it cannot be written to or locked it is
/// used all the same: at worst a kernel is compiled again.
pub(super) fn take(root: &Path, version: &str) -> PathBuf {
    if let Ok(mark) = take_at(root, version, SystemTime::now())
        && let Ok(mut held) = HELD.lock()
    {
        held.push(mark);
    }
    root.join(version)
}

/// Takes the folder of `version` for as long as what it returns lives, and removes what was old `now`.
fn take_at(root: &Path, version: &str, now: SystemTime) -> io::Result<File> {
    fs::create_dir_all(root)?;
    let alone = File::create(root.join(LOCK))?;
    alone.lock()?;
    let mark = mark(&root.join(version))?;
    let old = set_aside_old(root, version, now);
    drop(alone);
    for folder in old {
        // What is left of it is old the next time, too.
        let _ = fs::remove_dir_all(folder);
    }
    Ok(mark)
}

/// Locks a folder's mark, among others who do, and sets its time to now.
fn mark(folder: &Path) -> io::Result<File> {
    fs::create_dir_all(folder)?;
    let mark = File::create(folder.join(MARK))?;
    mark.lock_shared()?;
    mark.set_times(FileTimes::new().set_modified(SystemTime::now()))?;
    Ok(mark)
}

/// Gives the folders of other versions that nobody holds and nobody took since [`KEPT`] before `now` a name that nobody
/// takes, and returns them. What cannot be renamed stays.
fn set_aside_old(root: &Path, version: &str, now: SystemTime) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    let is_old = |used: SystemTime| now.duration_since(used).is_ok_and(|unused| unused > KEPT);
    let mut aside = Vec::new();
    for entry in entries.flatten() {
        let (folder, name) = (entry.path(), entry.file_name());
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !is_folder || name == version || !last_used(&folder).is_ok_and(is_old) || is_held(&folder) {
            continue;
        }
        let gone = root.join(format!("{}.removed-{}", name.to_string_lossy(), std::process::id()));
        if fs::rename(&folder, &gone).is_ok() {
            aside.push(gone);
        }
    }
    aside
}

/// Whether somebody holds a folder's mark; where that cannot be told, somebody does. Versions that knew no marks hold none.
fn is_held(folder: &Path) -> bool {
    match File::open(folder.join(MARK)) {
        Ok(mark) => mark.try_lock().is_err(),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
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
        // And the lock.
        assert_eq!(fs::read_dir(&root.0).unwrap().count(), 4);
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
                    for _ in 0..200 {
                        let version = format!("version-{}", worker % 3);
                        // To everybody else all of it is old.
                        let later = SystemTime::now() + 2 * KEPT;
                        let held = take_at(&root.0, &version, later).unwrap();
                        fs::write(root.0.join(&version).join("kernel"), "code").unwrap();
                        std::thread::yield_now();
                        assert!(
                            root.0.join(&version).join(MARK).exists(),
                            "{version} was removed while it was held"
                        );
                        drop(held);
                    }
                });
            }
        });
    }
}
