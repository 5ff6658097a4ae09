//! Today's dense families and mixtures of experts against transformers and PEFT. See `tests/golden/README.md`.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a helper outside the test functions may fail the test, and shows what it saw"
)]

use std::path::{Path, PathBuf};

mod by_use;
mod experts;
mod folders;
mod forward;
#[path = "../support/forward.rs"]
mod golden;
mod released;
mod trajectory;

/// The folders of the goldens.
const FOLDERS: [&str; 2] = ["tests/golden/dense", "tests/golden/mixtures"];

/// The folder of a family, or a file beside those of the dense families.
fn dense(name: &str) -> PathBuf {
    let of = |folder: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(name);
    FOLDERS.map(of).into_iter().find(|path| path.exists()).unwrap_or_else(|| of(FOLDERS[0]))
}

/// Every family that has a golden.
fn families() -> Vec<String> {
    let mut names = Vec::new();
    for folder in FOLDERS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
        let folders = entries.filter(|entry| entry.path().is_dir());
        names.extend(folders.map(|entry| entry.file_name().into_string().unwrap()));
    }
    names.sort();
    assert!(names.len() >= 16, "{names:?}");
    names
}
