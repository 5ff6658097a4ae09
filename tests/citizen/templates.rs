//! A chat template that no row survives: the job ends soon, before training, and names it.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::fixture::{events, expect, named, small, text};

/// Writes a template and rows to render by it.
fn write(folder: &Path, template: &str) {
    let mut rows = String::new();
    for row in 0..1000 {
        let turns = serde_json::json!({"messages": [
            {"role": "user", "content": format!("Number {row}?")},
            {"role": "assistant", "content": format!("It is {row}.")},
        ]});
        writeln!(rows, "{turns}").unwrap();
    }
    fs::write(folder.join("train.jsonl"), rows).unwrap();
    fs::write(folder.join("hostile.jinja"), template).unwrap();
}

/// A thousand rows, of which one alone takes seconds.
#[test]
fn a_template_without_end_is_run_to_its_limit_once() {
    let folder = small();
    let endless = "{% for a in range(99999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    write(folder.path(), endless);
    let arguments = ["validate", "small.toml", "--json", "--set", "data.chat_template=hostile.jinja"];
    let failed = expect(3, folder.path(), &arguments);
    let error = text(&failed.stderr);
    assert!(error.contains("hostile.jinja") && error.contains("loop without end"), "{error}");
    let written = events(&failed);
    assert_eq!(named(&written, "problem")[0]["code"], "data::row");
}

#[test]
fn a_template_that_refuses_every_row_ends_the_run_before_it_begins() {
    let folder = small();
    write(folder.path(), "{{ raise_exception('not this') }}");
    let arguments = ["run", "small.toml", "--set", "data.chat_template=hostile.jinja"];
    let error = text(&expect(3, folder.path(), &arguments).stderr);
    assert!(error.contains("1,002 of 1,002 rows cannot be used") && error.contains("not this"), "{error}");
    assert!(!folder.path().join("run").exists(), "nothing was begun");
}
