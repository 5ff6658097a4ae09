//! Today's dense families against transformers and PEFT. See `tests/golden/README.md`.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper outside the test functions may fail the test"
)]

use std::path::{Path, PathBuf};

mod folders;
mod forward;
mod released;
mod trajectory;

/// The folder of the goldens, or one of a family.
fn dense(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/dense").join(name)
}

/// Every family that has a golden.
fn families() -> Vec<String> {
    let entries = std::fs::read_dir(dense("")).unwrap().map(|entry| entry.unwrap());
    let folders = entries.filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> = folders.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(names.len() >= 11, "{names:?}");
    names
}
