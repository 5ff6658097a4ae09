//! A chat template that means harm, over many rows: the job ends soon, whatever the number of rows.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::fixture::{events, expect, named, small, text};

/// As many conversations as a small dataset has.
const ROWS: usize = 1000;

/// Longer than any of these may take on a slow machine, and far less than it takes to render a thousand rows.
const SOON: Duration = Duration::from_secs(240);

/// Writes a template and rows to render by it.
fn write(folder: &Path, template: &str) {
    let mut rows = String::new();
    for row in 0..ROWS {
        let turns = serde_json::json!({"messages": [
            {"role": "user", "content": format!("Number {row}?")},
            {"role": "assistant", "content": format!("It is {row}.")},
        ]});
        writeln!(rows, "{turns}").unwrap();
    }
    fs::write(folder.join("train.jsonl"), rows).unwrap();
    fs::write(folder.join("hostile.jinja"), template).unwrap();
}

const HONEST: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";

#[test]
fn a_template_that_takes_seconds_for_a_row_is_stopped_over_a_thousand() {
    // Without end; just below the instructions that one render may take; one that reads as much as one may, that one
    // with an error of its own; text without measure, which has to be tokenized.
    let loops = |times: usize| {
        format!(
            "{{% for a in range({times}) %}}{{% for b in range(1000) %}}{{% set c = b %}}{{% endfor %}}{{% endfor %}}"
        )
    };
    let reads = "{% set x = 'a' * 30000000 %}{% set y = 'a' * 30000000 %}\
                 {% for i in range(250) %}{% if x == y %}{% endif %}{% endfor %}";
    for (name, template, is_row_fault) in [
        ("endless", format!("{}{HONEST}", loops(99_999)), true),
        ("long", format!("{}{HONEST}", loops(600)), false),
        ("reads", format!("{reads}{HONEST}"), false),
        ("fails", format!("{}{{{{ messages[0].no.such }}}}", loops(600)), true),
        ("refuses", format!("{}{{{{ raise_exception('no') }}}}", loops(600)), true),
        ("writes", format!("{HONEST}{{{{ 'a b ' * 5000000 }}}}"), false),
    ] {
        let folder = small();
        write(folder.path(), &template);
        let begun = Instant::now();
        let arguments = ["validate", "small.toml", "--json", "--set", "data.chat_template=hostile.jinja"];
        let failed = expect(3, folder.path(), &arguments);
        assert!(begun.elapsed() < SOON, "{name}: {:?}", begun.elapsed());
        let error = text(&failed.stderr);
        assert!(error.contains("takes far more time than the conversations"), "{name}: {error}");
        assert!(
            error.contains("train.jsonl:") && error.contains("of 1,002 rows were looked at"),
            "{name}: {error}"
        );
        assert!(error.contains("hostile.jinja"), "{name}: {error}");
        let told = events(&failed);
        let problems = named(&told, "problem");
        assert_eq!(
            (&problems[0]["file"], &problems[0]["code"]),
            (&"train.jsonl".into(), &"data::row".into())
        );
        // Rows that failed by themselves are named too, and no others are.
        assert_eq!(problems.len() > 1, is_row_fault, "{name}: {problems:?}");
        assert!(problems.len() < 30, "{name}: {}", problems.len());
    }
}

#[test]
fn training_is_stopped_as_well_and_what_fails_at_once_is_not() {
    let folder = small();
    let long = "{% for a in range(600) %}{% for b in range(1000) %}{% set c = b %}{% endfor %}{% endfor %}";
    write(folder.path(), &format!("{long}{HONEST}"));
    let arguments = ["run", "small.toml", "--set", "data.chat_template=hostile.jinja"];
    let begun = Instant::now();
    let error = text(&expect(3, folder.path(), &arguments).stderr);
    assert!(begun.elapsed() < SOON && error.contains("takes far more time"), "{error}");
    assert!(!folder.path().join("run").exists(), "nothing was begun");

    // Refused at once, row by row: all of them are looked at.
    write(folder.path(), "{{ raise_exception('not this') }}");
    let error = text(&expect(3, folder.path(), &arguments).stderr);
    assert!(error.contains("1,002 of 1,002 rows cannot be used") && error.contains("not this"), "{error}");
    write(folder.path(), "{% set n = 10000000000 %}{{ 'a' * n }}");
    let error = text(&expect(3, folder.path(), &arguments).stderr);
    assert!(error.contains("1,002 of 1,002 rows cannot be used") && error.contains("would build"), "{error}");
}
