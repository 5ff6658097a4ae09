//! The project's own source text, for tests that hold it to the house rules.

use std::fs;
use std::path::{Path, PathBuf};

/// Every Rust file below a folder, sorted.
pub(crate) fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![folder.to_path_buf()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no sources below {}", folder.display());
    found
}

/// The lines of a file's code with their numbers: without comments, and without the items under `#[cfg(test)]`, wherever
/// they stand. Relies on rustfmt: an item that opens a brace ends with one at its own indentation.
pub(crate) fn code(text: &str) -> Vec<(usize, &str)> {
    let mut lines = text.lines().enumerate().map(|(number, line)| (number + 1, line));
    let mut kept = Vec::new();
    while let Some((number, line)) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            kept.push((number, line.split("//").next().unwrap_or("")));
            continue;
        }
        let item = lines.by_ref().find(|(_, line)| !line.trim_start().starts_with("#["));
        let Some((_, item)) = item.filter(|(_, item)| item.ends_with(['{', '(', '['])) else { continue };
        let indentation = &item[..item.len() - item.trim_start().len()];
        let _end = lines.by_ref().find(|(_, line)| {
            line.strip_prefix(indentation).is_some_and(|rest| rest.starts_with(['}', ')', ']']))
        });
    }
    kept
}

#[test]
fn code_behind_a_test_module_is_seen() {
    let text = "use a;\n#[cfg(test)]\nmod tests;\nuse b; // c\n#[cfg(test)]\n#[path = \"t.rs\"]\nmod t {\n    use d;\n}\nuse e;";
    assert_eq!(code(text), [(1, "use a;"), (4, "use b; "), (10, "use e;")]);
}
