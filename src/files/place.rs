//! Destinations that cannot be replaced by a rename: links, mounted volumes, folders whose parent cannot be written.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::{Action, Error, NEW, Temporary, parent, sync_folder, sync_tree};

/// The path that a link leads to, which need not exist; other paths stay.
pub(super) fn resolved(path: &Path) -> PathBuf {
    match fs::read_link(path) {
        Ok(target) => fs::canonicalize(path).unwrap_or_else(|_| parent(path).join(target)),
        Err(_) => path.to_path_buf(),
    }
}

/// Whether a volume is mounted at `path`: such a folder can neither be renamed nor removed.
pub(super) fn is_mount_point(path: &Path) -> bool {
    let Ok(path) = fs::canonicalize(path) else { return false };
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    points.any(|point| Path::new(&point.replace("\\040", " ")) == path)
}

/// Whether an error says that a folder cannot be written.
pub(super) fn is_denied(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem)
}

/// Fills an existing folder in place: `fill` writes into a hidden folder inside it, whose content then replaces the
/// folder's.
pub(super) fn fill<E: From<Error>>(
    folder: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let staged = Temporary::beside(&folder.join("content"), NEW)?;
    DirBuilder::new().create(&staged.path).map_err(Error::io(Action::CreateFolder, folder))?;
    fill(&staged.path)?;
    sync_tree(&staged.path)?;
    for path in entries(folder)?.into_iter().filter(|path| *path != staged.path) {
        let is_folder = fs::symlink_metadata(&path).is_ok_and(|about| about.is_dir());
        let removed = if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(Error::io(Action::Remove, &path))?;
    }
    for path in entries(&staged.path)? {
        let to = folder.join(path.file_name().unwrap_or_default());
        fs::rename(&path, &to).map_err(Error::io(Action::Write, &to))?;
    }
    Ok(sync_folder(folder)?)
}

/// The paths of everything directly in a folder.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let read = |error| Error::io(Action::Read, folder)(error);
    fs::read_dir(folder).map_err(read)?.map(|entry| Ok(entry.map_err(read)?.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Existing, write_bytes, write_folder_atomically};
    use super::*;

    fn put(name: &'static str) -> impl Fn(&Path) -> Result<(), Error> {
        move |inside| write_bytes(&inside.join(name), name.as_bytes())
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_that_cannot_be_renamed_is_filled_in_place() {
        let folder = tempfile::tempdir().unwrap();
        fill(folder.path(), put("one")).unwrap();
        assert_eq!(names(folder.path()), ["one"]);
        let failed = fill(folder.path(), |_| Err(Error::NoName { path: PathBuf::new() }));
        assert!(failed.is_err());
        assert_eq!(names(folder.path()), ["one"], "a failure leaves the folder as it was");
        fs::create_dir(folder.path().join("old")).unwrap();
        fill(folder.path(), put("two")).unwrap();
        assert_eq!(names(folder.path()), ["two"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_linked_output_folder_is_filled_behind_its_link() {
        let outer = tempfile::tempdir().unwrap();
        let link = outer.path().join("link");
        std::os::unix::fs::symlink("target", &link).unwrap();
        write_folder_atomically(&link, Existing::Refuse, put("one")).unwrap();
        write_folder_atomically(&link, Existing::Replace, put("two")).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(names(&outer.path().join("target")), ["two"]);
        assert_eq!(names(outer.path()), ["link", "target"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn mounted_volumes_are_recognised() {
        assert!(is_mount_point(Path::new("/proc")) && is_mount_point(Path::new("/")));
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_mount_point(folder.path()) && !is_mount_point(&folder.path().join("absent")));
    }
}
