//! The house rules that a compiler does not check: who may import whom, what may be named where, how long a file is.
#![expect(clippy::unwrap_used, reason = "helpers of tests stop where they fail")]

use std::fs;
use std::path::Path;

use source_code::{code, sources};

#[path = "support/source_code.rs"]
mod source_code;

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
    "checkpoint",
    "objective",
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

/// How many modules deep a file of `src/` lies: as many `super::` lead to the root of the crate.
fn depth_of(path: &Path) -> usize {
    let below = path.strip_prefix(root().join("src")).unwrap();
    below.components().count() - usize::from(path.ends_with("mod.rs"))
}

/// The rooms that a line names from the root of the crate, as `crate::room` or by `depth` times `super::`; inside braces too.
fn imported_rooms(line: &str, depth: usize) -> Vec<String> {
    let climb = "super::".repeat(depth);
    let mut rooms = Vec::new();
    for from_root in ["crate::", &climb] {
        for (position, _) in line.match_indices(from_root) {
            if line[..position].ends_with("super::") || line[..position].ends_with(is_of_a_name) {
                continue;
            }
            let rest = &line[position + from_root.len()..];
            let names = match rest.strip_prefix('{') {
                Some(list) => list.split(['}']).next().unwrap_or("").split(',').map(str::trim).collect(),
                None => vec![rest],
            };
            let names = names.into_iter().map(|name| name.split(|c| !is_of_a_name(c)).next().unwrap_or(""));
            rooms.extend(names.filter(|name| !name.is_empty()).map(str::to_owned));
        }
    }
    rooms
}

fn is_of_a_name(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// Whether a line calls `name` itself, and not a longer name that ends like it.
fn names(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(position, _)| !line[..position].ends_with(is_of_a_name))
}

#[test]
fn rooms_are_found_by_every_path_to_them() {
    assert_eq!(imported_rooms("use crate::{data, model};", 2), ["data", "model"]);
    assert_eq!(imported_rooms("use super::super::train::fit;", 2), ["train"]);
    assert_eq!(imported_rooms("use super::super::Layer;", 3), [""; 0]);
    assert_eq!(imported_rooms("use super::Layer;", 2), [""; 0]);
    assert!(
        names("std::fs::File::create(path)", "File::create") && !names("EventFile::create(", "File::create")
    );
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
            for imported in imported_rooms(line, depth_of(&path)) {
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
const READERS: [&str; 10] = [
    "adapter/lora.rs",
    "export/check.rs",
    "export/fidelity.rs",
    "export/quantize/losses.rs",
    "generate/decode.rs",
    "run/inference.rs",
    "train/exchange.rs",
    "train/held_out.rs",
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
            let banned = ["into_data(", "to_data(", "into_scalar(", "B::read_later("];
            if banned.iter().any(|word| line.contains(word)) {
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
            let banned =
                ["fs::write(", "fs::copy(", "File::create", "create_dir", "OpenOptions", "DirBuilder"];
            if banned.iter().any(|word| names(line, word)) {
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
        if room.is_none() || is_test(&path) || room.is_some_and(|room| room == "cli") {
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

/// Bytes of the files below a folder.
fn bytes_below(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let bytes = |entry: fs::DirEntry| match entry.metadata().unwrap() {
        folder if folder.is_dir() => bytes_below(&entry.path()),
        file => file.len(),
    };
    entries.map(bytes).sum()
}

#[test]
fn fixtures_stay_small() {
    const ALL: u64 = 16_000_000;
    const OF_A_FAMILY: u64 = 250_000;
    let golden = root().join("tests/golden");
    let all = bytes_below(&golden);
    assert!(all <= ALL, "{all} bytes of fixtures, at most {ALL}");
    for folder in ["dense", "dense_folders", "families", "mixtures"] {
        for entry in fs::read_dir(golden.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let bytes = if path.is_dir() { bytes_below(&path) } else { 0 };
            assert!(bytes <= OF_A_FAMILY, "{}: {bytes} bytes, at most {OF_A_FAMILY}", path.display());
        }
    }
}
