//! The house rules that a compiler does not check: who may import whom, what may be named where, how long a file is.
#![expect(clippy::unwrap_used, reason = "helpers of tests stop where they fail")]

use std::fs;
use std::path::{Path, PathBuf};

/// The rooms of `src/`, each importing only from rooms above it.
const ROOMS: [&str; 23] = [
    "units",
    "document",
    "files",
    "assets",
    "data",
    "quant",
    "adapter",
    "model",
    "objective",
    "checkpoint",
    "train",
    "generate",
    "export",
    "hub",
    "recipe",
    "import",
    "bundled",
    "device",
    "tensorboard",
    "record",
    "report",
    "run",
    "cli",
];

/// Rooms that must not know the tensor engine.
const BURN_FREE: [&str; 9] =
    ["units", "document", "files", "assets", "data", "hub", "recipe", "import", "bundled"];

/// Longest allowed source file, in lines.
const MAX_LINES: usize = 600;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path) -> Vec<PathBuf> {
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

/// The room a file of `src/` belongs to; `None` for `lib.rs` and `main.rs`.
fn room_of(path: &Path) -> Option<String> {
    let below = path.strip_prefix(root().join("src")).unwrap();
    let first = below.components().next().unwrap().as_os_str().to_str().unwrap();
    let name = first.strip_suffix(".rs").unwrap_or(first);
    (name != "lib" && name != "main").then(|| name.to_owned())
}

/// Whether a file of `src/` holds unit tests alone.
fn is_test(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "tests")
        || path.file_stem().is_some_and(|stem| stem == "tests")
}

/// Code lines, without comments and without the unit tests that close a file.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .take_while(|(_, line)| !line.contains("#[cfg(test)]"))
        .map(|(number, line)| (number + 1, line.split("//").next().unwrap_or("")))
}

/// The rooms that a line names as `crate::room`, inside braces too.
fn imported_rooms(line: &str) -> Vec<String> {
    let mut rooms = Vec::new();
    for (position, _) in line.match_indices("crate::") {
        let rest = &line[position + "crate::".len()..];
        let names = match rest.strip_prefix('{') {
            Some(list) => list.split(['}']).next().unwrap_or("").split(',').map(str::trim).collect(),
            None => vec![rest],
        };
        for name in names {
            let name: String = name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if !name.is_empty() {
                rooms.push(name);
            }
        }
    }
    rooms
}

#[test]
fn each_room_imports_only_from_rooms_above_it() {
    let mut faults = Vec::new();
    for path in sources(&root().join("src")) {
        let Some(room) = room_of(&path) else { continue };
        let Some(own) = ROOMS.iter().position(|name| *name == room) else {
            faults.push(format!("{}: room `{room}` is not listed in tests/layering.rs", path.display()));
            continue;
        };
        if is_test(&path) {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for (number, line) in code(&text) {
            for imported in imported_rooms(line) {
                match ROOMS.iter().position(|name| *name == imported) {
                    Some(other) if other <= own => {}
                    Some(_) => {
                        faults.push(format!("{}:{number}: `{room}` imports `{imported}`", path.display()))
                    }
                    None => faults.push(format!("{}:{number}: unknown room `{imported}`", path.display())),
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn rooms_without_tensors_never_name_burn() {
    let mut faults = Vec::new();
    for path in sources(&root().join("src")) {
        let Some(room) = room_of(&path) else { continue };
        if !BURN_FREE.contains(&room.as_str()) {
            continue;
        }
        for (number, line) in code(&fs::read_to_string(&path).unwrap()) {
            if line.contains("burn") || line.contains("tune_kernels") {
                faults.push(format!("{}:{number}: {}", path.display(), line.trim()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn only_device_names_a_concrete_backend() {
    let mut faults = Vec::new();
    for path in sources(&root().join("src")) {
        if is_test(&path) || room_of(&path).is_some_and(|room| room == "device") {
            continue;
        }
        for (number, line) in code(&fs::read_to_string(&path).unwrap()) {
            if ["burn_flex", "Flex", "kernels::gpu"].iter().any(|word| line.contains(word)) {
                faults.push(format!("{}:{number}: {}", path.display(), line.trim()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Where numbers are brought back from a device: nobody else may make the host wait for it.
const READERS: [&str; 7] = [
    "adapter/lora.rs",
    "export/check.rs",
    "generate/decode.rs",
    "run/voice.rs",
    "train/fit.rs",
    "train/optimizer.rs",
    "train/state.rs",
];

#[test]
fn few_files_read_tensors_back() {
    let mut faults = Vec::new();
    for path in sources(&root().join("src")) {
        let is_reader = READERS.iter().any(|reader| path.ends_with(reader));
        if is_test(&path) || is_reader || room_of(&path).is_some_and(|room| room == "data") {
            continue;
        }
        for (number, line) in code(&fs::read_to_string(&path).unwrap()) {
            let banned = ["into_data(", "to_data(", "into_scalar(", "read_later("];
            let own = line.contains("gradient.read_later()");
            if !own && banned.iter().any(|word| line.contains(word)) {
                faults.push(format!("{}:{number}: {}", path.display(), line.trim()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Where files and folders are made beside `files`: folders that are this user's alone.
const MAKERS: [&str; 2] = ["cli/environment.rs", "cli/reproduce.rs"];

#[test]
fn only_files_makes_files() {
    let mut faults = Vec::new();
    for path in sources(&root().join("src")) {
        let is_maker = MAKERS.iter().any(|maker| path.ends_with(maker));
        if is_test(&path) || is_maker || room_of(&path).is_some_and(|room| room == "files") {
            continue;
        }
        for (number, line) in code(&fs::read_to_string(&path).unwrap()) {
            // Made by `files` in turn.
            let line = line.replace("EventFile::create(", "");
            let banned =
                ["fs::write(", "fs::copy(", "File::create", "create_dir", "OpenOptions", "DirBuilder"];
            if banned.iter().any(|word| line.contains(word)) {
                faults.push(format!("{}:{number}: {}", path.display(), line.trim()));
            }
        }
    }
    assert!(faults.is_empty(), "others could write what is made like this:\n{}", faults.join("\n"));
}

#[test]
fn only_hub_opens_the_network() {
    let mut faults = Vec::new();
    for path in sources(&root().join("src")) {
        if room_of(&path).is_some_and(|room| room == "hub") {
            continue;
        }
        for (number, line) in code(&fs::read_to_string(&path).unwrap()) {
            if line.contains("ureq") || line.contains("std::net") {
                faults.push(format!("{}:{number}: {}", path.display(), line.trim()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_library_neither_prints_nor_exits_nor_reads_the_environment() {
    let mut faults = Vec::new();
    for path in sources(&root().join("src")) {
        let room = room_of(&path);
        if room.is_none() || room.is_some_and(|room| room == "cli") {
            continue;
        }
        for (number, line) in code(&fs::read_to_string(&path).unwrap()) {
            let banned = ["println!", "eprintln!", "print!(", "process::exit", "env::var", "env::args"];
            if banned.iter().any(|word| line.contains(word)) {
                faults.push(format!("{}:{number}: {}", path.display(), line.trim()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn files_stay_short_and_say_what_they_own() {
    let mut faults = Vec::new();
    for folder in ["src", "kernels", "tests", "benches"] {
        for path in sources(&root().join(folder)) {
            let text = fs::read_to_string(&path).unwrap();
            let lines = text.lines().count();
            if lines > MAX_LINES {
                faults.push(format!("{}: {lines} lines, at most {MAX_LINES}", path.display()));
            }
            if !text.starts_with("//!") {
                faults.push(format!("{}: does not open with a `//!` paragraph", path.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
