//! Chat templates that cost too much: each ends in an error that names the template, or ends the program with exit
//! code 4 and the template's name.
#![expect(clippy::unwrap_used, reason = "helpers of tests stop where they fail")]

use std::process::Command;

use tune::data::example::Message;
use tune::data::template::ChatTemplate;

fn error_of(source: &str) -> String {
    let message = |role: &str, content: &str| Message {
        role: role.to_owned(),
        content: content.to_owned(),
        extra: serde_json::Map::new(),
    };
    let conversation = [message("user", "Hi"), message("assistant", "Hello!")];
    let template = ChatTemplate::new(source.to_owned(), "the test", [], []);
    template
        .and_then(|template| template.render(&conversation.to_vec().into(), false))
        .unwrap_err()
        .to_string()
}

#[test]
fn what_a_render_may_not_cost_is_an_error_that_names_the_template() {
    let self_holding = "{% set ns = namespace() %}{% set ns.me = [ns] %}";
    for (source, problem) in [
        ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "loop without end"),
        ("{% for a in range(99999) %}{{ 'x' * 99999 }}{% endfor %}", "writes more than 128.00 MiB"),
        ("{% for a in range(99999) %}{{ '%99999d' | format(1) }}{% endfor %}", "writes more than 128.00 MiB"),
        ("{% macro dive(n) %}{{ dive(n + 1) }}{% endmacro %}{{ dive(0) }}", "recursion"),
        ("{{ 'x' * 999999999999 }}", "too large"),
        (&format!("{self_holding}{{{{ ns }}}}"), "nested too deeply"),
        (&format!("{self_holding}{{{{ ns | tojson }}}}"), "nested too deeply"),
        ("{{ [][::-2] }}", "the template engine panicked"),
    ] {
        let error = error_of(source);
        assert!(error.contains(problem) && error.contains("the test"), "{error}: {source}");
    }
}

/// A shell in between limits the memory, so that the machine does not have to run out of it.
#[cfg(target_os = "linux")]
#[test]
fn memory_that_a_template_exhausts_ends_the_program_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let hostile = folder.path().join("hostile.jinja");
    let source = "{% set ns = namespace(x='x' * 1000) %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
    std::fs::write(&hostile, source).unwrap();
    let ended = Command::new("sh")
        .args(["-c", "ulimit -v 4000000; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_tune")])
        .args(["validate", "recipes/quickstart.toml", "--set"])
        .arg(format!("data.chat_template={:?}", hostile.display().to_string()))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(4), "{error}");
    assert!(
        error.contains("out of memory: the chat template of") && error.contains("hostile.jinja"),
        "{error}"
    );
}
