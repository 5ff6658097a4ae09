//! Imports between the files of this crate: two files may import each other, a longer circle is refused.
//!
//! An import is a path that begins with `crate`, `self`, `super` or a module declared in the file, in a `use` or in
//! code; it counts for the file of the innermost module that it names. Unit tests are left out.
#![expect(clippy::unwrap_used, reason = "helpers of tests stop where they fail")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

type Module = Vec<String>;

/// The modules of a source folder, each with its file's text.
fn modules(root: &Path) -> BTreeMap<Module, (String, String)> {
    let mut found = BTreeMap::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).unwrap().to_path_buf();
                found.insert(module(&name), (name.display().to_string(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found
}

/// The module that a file of the source folder is.
fn module(file: &Path) -> Module {
    let path: PathBuf = file.with_extension("");
    let mut parts: Module = path.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    if parts.last().is_some_and(|last| last == "mod" || last == "lib") {
        parts.pop();
    }
    parts
}

/// The code of a file as words and punctuation, `::` as one, without comments and unit tests.
fn tokens(text: &str) -> Vec<String> {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or("");
    let text = text.split("#[cfg(all(test").next().unwrap_or("");
    let mut tokens: Vec<String> = Vec::new();
    for line in text.lines() {
        let line = line.split("//").next().unwrap_or("");
        let mut word = String::new();
        for character in line.chars().chain([' ']) {
            if character.is_alphanumeric() || character == '_' {
                word.push(character);
                continue;
            }
            if !word.is_empty() {
                tokens.push(std::mem::take(&mut word));
            }
            match character {
                ':' if tokens.last().is_some_and(|last| last == ":") => {
                    tokens.pop();
                    tokens.push("::".to_owned());
                }
                ' ' => {}
                other => tokens.push(other.to_string()),
            }
        }
    }
    tokens
}

/// Every path of two words or more, those in braces each by itself.
fn paths(tokens: &[String]) -> Vec<Vec<String>> {
    let is_word = |token: &String| token.starts_with(|c: char| c.is_alphabetic() || c == '_');
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let begins = is_word(&tokens[at]) && tokens.get(at + 1).is_some_and(|next| next == "::");
        if !begins {
            at += 1;
            continue;
        }
        at = path(tokens, at, &mut Vec::new(), &mut found);
    }
    found
}

/// Reads one path from `at` on, behind `prefix`; returns where it ends.
fn path(tokens: &[String], mut at: usize, prefix: &mut Vec<String>, found: &mut Vec<Vec<String>>) -> usize {
    let length = prefix.len();
    while let Some(token) = tokens.get(at) {
        if token == "{" {
            at += 1;
            while tokens.get(at).is_some_and(|token| token != "}") {
                let end = path(tokens, at, prefix, found);
                at = end.max(at + 1);
                if tokens.get(at).is_some_and(|token| token == ",") {
                    at += 1;
                }
            }
            prefix.truncate(length);
            return at + 1;
        }
        if !token.starts_with(|c: char| c.is_alphanumeric() || c == '_') {
            break;
        }
        prefix.push(token.clone());
        at += 1;
        if tokens.get(at).is_none_or(|next| next != "::") {
            break;
        }
        at += 1;
    }
    found.push(prefix.clone());
    prefix.truncate(length);
    at
}

/// The files that a module imports from, by their modules.
fn imports(own: &Module, text: &str, all: &BTreeSet<Module>) -> BTreeSet<Module> {
    let tokens = tokens(text);
    let declared: BTreeSet<&String> = tokens
        .windows(3)
        .filter(|three| three[0] == "mod" && three[2] == ";")
        .map(|three| &three[1])
        .collect();
    let mut imported = BTreeSet::new();
    for path in paths(&tokens) {
        let mut place = match path[0].as_str() {
            "crate" => Vec::new(),
            "self" | "super" => own.clone(),
            first if declared.contains(&first.to_owned()) => {
                own.iter().cloned().chain([first.to_owned()]).collect()
            }
            _ => continue,
        };
        let rest = path
            .iter()
            .skip_while(|part| *part == "crate" || *part == "self")
            .skip(usize::from(declared.contains(&path[0])));
        for part in rest {
            if part == "super" {
                place.pop();
                continue;
            }
            place.push(part.clone());
            if !all.contains(&place) {
                place.pop();
                break;
            }
        }
        if place != *own {
            imported.insert(place);
        }
    }
    imported
}

/// Modules that import each other round a circle, the largest such sets.
fn circles(graph: &BTreeMap<Module, BTreeSet<Module>>) -> Vec<Vec<Module>> {
    let reached = |from: &Module| {
        let (mut seen, mut pending) = (BTreeSet::new(), vec![from]);
        while let Some(module) = pending.pop() {
            for next in graph.get(module).into_iter().flatten() {
                if seen.insert(next.clone()) {
                    pending.push(next);
                }
            }
        }
        seen
    };
    let reach: BTreeMap<&Module, BTreeSet<Module>> =
        graph.keys().map(|module| (module, reached(module))).collect();
    let mut found: Vec<Vec<Module>> = Vec::new();
    for module in graph.keys() {
        if found.iter().any(|circle| circle.contains(module)) {
            continue;
        }
        let both = |other: &&Module| reach[module].contains(*other) && reach[*other].contains(module);
        let circle: Vec<Module> = graph.keys().filter(both).cloned().collect();
        if circle.len() > 1 {
            found.push(circle);
        }
    }
    found
}

fn graph(sources: &BTreeMap<Module, (String, String)>) -> BTreeMap<Module, BTreeSet<Module>> {
    let all: BTreeSet<Module> = sources.keys().cloned().collect();
    sources
        .iter()
        .filter(|(module, _)| module.last().is_none_or(|last| last != "tests"))
        .map(|(module, (_, text))| (module.clone(), imports(module, text, &all)))
        .collect()
}

#[test]
fn no_circle_of_imports_is_longer_than_two_files() {
    let sources = modules(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let graph = graph(&sources);
    let edges: usize = graph.values().map(BTreeSet::len).sum();
    assert!(
        graph.len() > 80 && edges > 150,
        "{} files with {edges} imports: the reader is broken",
        graph.len()
    );
    let mut faults = Vec::new();
    for circle in circles(&graph).into_iter().filter(|circle| circle.len() > 2) {
        faults.push(format!("a circle of {} files:", circle.len()));
        for module in &circle {
            let inside = graph[module].iter().filter(|other| circle.contains(other));
            let inside: Vec<&str> = inside.map(|other| sources[other].0.as_str()).collect();
            faults.push(format!("    {} imports {}", sources[module].0, inside.join(", ")));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_circle_of_three_is_found() {
    let file = |name: &str, text: &str| (module(Path::new(name)), (name.to_owned(), text.to_owned()));
    let sources = BTreeMap::from([
        file("lib.rs", "mod a;\nmod b;\npub use a::One;"),
        file("a/mod.rs", "mod inner;\npub struct One;\nfn f() { inner::g() }"),
        file("a/inner.rs", "use crate::{\n    b::{self, Two},\n};\npub fn g() {}"),
        file("b.rs", "pub struct Two; // crate::nothing\nfn h() -> crate::a::One { crate::a::One }"),
    ]);
    let circles = circles(&graph(&sources));
    assert_eq!(circles, [[vec!["a"], vec!["a", "inner"], vec!["b"]]]);
}
