//! Chat templates that mean harm: whatever a template does, it ends in an error that says so, and memory stays within
//! a few times what a render may build.
//!
//! One test function that measures, since memory is measured for the whole process.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use peak_alloc::PeakAlloc;
use tune::data::example::Message;
use tune::data::template::{ChatTemplate, TemplateError};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// One at a time: each measures the process.
static MEASURING: Mutex<()> = Mutex::new(());

/// A render may build 128 MiB; while a text grows it is there twice, and a list of small values has room to spare.
const MOST: usize = 400 << 20;

/// What each asks for, by far, if nothing stops it.
const HOSTILE: [(&str, &str); 60] = [
    // Doubling: 40 times is a tebibyte.
    (
        "{% set ns = namespace(x='x' * 1000) %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "`~`",
    ),
    (
        "{% set ns = namespace(x='x' * 1000) %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "`+`",
    ),
    (
        "{% set ns = namespace(x='x' * 1000) %}{% for i in range(40) %}{% set ns.x = ns.x * 2 %}{% endfor %}",
        "`*`",
    ),
    (
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "`+`",
    ),
    ("{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x * 2 %}{% endfor %}", "`*`"),
    (
        "{% set ns = namespace(x=[1][:]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "`+`",
    ),
    (
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x | chain(ns.x) %}{% endfor %}",
        "`chain`",
    ),
    // Captured text: sets, macros, calls, filter blocks, raw text.
    (
        "{% set ns = namespace(x='x' * 1000) %}{% for i in range(40) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
        "writing text",
    ),
    (
        "{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns = namespace(x='x' * 1000) %}{% for i in range(40) %}{% set ns.x = twice(ns.x) %}{% endfor %}",
        "writing text",
    ),
    (
        "{% macro twice() %}{{ caller() }}{{ caller() }}{% endmacro %}{% set ns = namespace(x='x' * 1000) %}{% for i in range(40) %}{% set y %}{% call twice() %}{{ ns.x }}{% endcall %}{% endset %}{% set ns.x = y %}{% endfor %}",
        "writing text",
    ),
    (
        "{% set x %}{% for i in range(100000) %}{% for j in range(10) %}RAW{% endfor %}{% endfor %}{% endset %}{{ x.nothing.nothing }}",
        "",
    ),
    ("{% set x = 'x' * 1000000 %}{% for i in range(1000) %}{{ x }}{% endfor %}", "writing text"),
    (
        "{% block a %}{% set x = 'x' * 1000000 %}{% for i in range(1000) %}{{ x }}{% endfor %}{% endblock %}",
        "writing text",
    ),
    ("{% set x %}{% filter upper %}{{ 'x' * 60000000 }}{% endfilter %}{% endset %}", "`upper`"),
    // One operator, worked out by the compiler or by the render.
    ("{{ 'a' * 10000000000 }}", "`*`"),
    ("{{ 'a' * 99999999 ~ 'a' * 99999999 }}", "`"),
    ("{% set n = 10000000000 %}{{ 'a' * n }}", "`*`"),
    ("{% set n = 10000000000 %}{{ n * 'a' }}", "`*`"),
    ("{% set n = 10000000000 %}{{ ([1] * n) | list }}", "`*`"),
    ("{% set n = 10000000 %}{% set x = [messages] * n %}{{ x }}", "`*`"),
    // Filters and methods.
    ("{% set n = 99999999 %}{{ '%99999999d' | format(1) }}{{ '%99999999d' | format(1) }}", "`format`"),
    ("{{ '%*d' | format(999999999, 1) }}", "`format`"),
    ("{{ '%.999999999f' | format(1.5) }}", "`format`"),
    ("{% set s = 'x' * 1000000 %}{{ ('%s' * 1000) | format(s) }}", "`format`"),
    ("{% set s = 'x' * 1000000 %}{{ ('%(a)s' * 1000) | format(a=s) }}", "`format`"),
    ("{{ '{:999999999}'.format(1) }}", "`format`"),
    ("{% set s = 'x' * 1000000 %}{{ ('{0}' * 1000).format(s) }}", "`format`"),
    ("{% set s = 'x' * 100000 %}{{ s.replace('x', s) }}", "`replace`"),
    ("{% set s = 'x' * 100000 %}{{ s.replace('', s) }}", "`replace`"),
    ("{% set s = 'x' * 100000 %}{{ s | replace('x', s) }}", "`replace`"),
    ("{% set s = 'x' * 100000 %}{{ s.join(range(99999)) }}", "`join`"),
    ("{% set s = 'x' * 100000 %}{{ s.join(s) }}", "`join`"),
    ("{% set s = 'x' * 100000 %}{{ range(99999) | join(s) }}", "`join`"),
    ("{% set s = 'x' * 1000000 %}{{ ([s] * 1000) | join }}", "`join`"),
    ("{{ 'a\\nb' | indent(9999999999) }}", "`indent`"),
    ("{{ 'a\\nb' | indent(width=9999999999) }}", "`indent`"),
    ("{% set s = '\\n' * 1000000 %}{{ s | indent(1000, true, true) }}", "`indent`"),
    ("{{ ('x' * 60000000) | list }}", "`list`"),
    ("{{ ('x' * 60000000) | batch(2) }}", "`batch`"),
    ("{{ [1] | batch(9999999999, 0) }}", "`batch`"),
    ("{{ [1] | slice(9999999999) }}", "`slice`"),
    ("{{ ('x ' * 3000000).split() }}", "`split`"),
    ("{{ ('x ' * 3000000) | split }}", "`split`"),
    ("{{ ('x\\n' * 3000000).splitlines() }}", "`splitlines`"),
    ("{{ ('x\\n' * 3000000) | lines }}", "`lines`"),
    ("{{ ('<' * 60000000) | escape }}", "`escape`"),
    ("{{ ('x' * 60000000) | title }}", "`title`"),
    (
        "{% set s = 'x' * 1000000 %}{% set ns = namespace(l=[]) %}{% for i in range(9999) %}{% set ns.l = [ns.l, s.strip()] %}{% endfor %}",
        "`strip`",
    ),
    (
        "{% set s = 'x' * 1000000 %}{% set ns = namespace(l=[]) %}{% for i in range(9999) %}{% set ns.l = [ns.l, s[1:]] %}{% endfor %}",
        "`[:]`",
    ),
    ("{% set s = 'x' * 1000000 %}{{ ([s] * 10000) | map('upper') | list | length }}", "`upper`"),
    // Values that hold themselves twice, sixty deep, and what writes them out.
    (
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "writing a list",
    ),
    (
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x ~ '' }}",
        "`~`",
    ),
    (
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x | tojson }}",
        "`tojson`",
    ),
    (
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | upper }}",
        "`upper`",
    ),
    (
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x in 'abc' }}",
        "`in`",
    ),
    (
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ raise_exception(ns.x) }}",
        "writing a list",
    ),
    (
        "{% set ns = namespace(x=[1]) %}{% for i in range(300) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | join }}",
        "",
    ),
    // Lists taken apart: as arguments, as assignments.
    (
        "{% macro m() %}{% endmacro %}{% set x = [1] * 1000000 %}{{ m(*x, *x, *x, *x, *x, *x, *x) }}",
        "`*` in a call",
    ),
    ("{% set n = 5000000 %}{% set x = [1] * n %}{% set a, b = x %}", "wrong length"),
    ("{% set s = 'x' * 1000000 %}{% include ([s] * 1000) %}", "stands alone"),
];

fn conversation() -> Vec<Message> {
    [("user", "Hi"), ("assistant", "Hello!")]
        .map(|(role, content)| Message {
            role: role.to_owned(),
            content: content.to_owned(),
            extra: serde_json::Map::new(),
        })
        .to_vec()
}

fn render(source: &str) -> Result<String, TemplateError> {
    ChatTemplate::new(source.to_owned(), "the test", [], [])?.render(&conversation(), false)
}

#[test]
fn no_template_takes_memory_without_bound() {
    let _alone = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut faults = Vec::new();
    for (source, what) in HOSTILE {
        MEMORY.reset_peak_usage();
        let begun = Instant::now();
        let outcome = render(source);
        let (peak, took) = (MEMORY.peak_usage(), begun.elapsed());
        match outcome {
            Ok(text) => faults.push(format!("renders {} bytes: {source}", text.len())),
            Err(error) => {
                let said = error.to_string();
                if !said.contains(what) || !said.contains("the test") || said.len() > 3000 {
                    faults.push(format!("says {said:?}: {source}"));
                }
            }
        }
        if peak > MOST {
            faults.push(format!("takes {} MiB: {source}", peak >> 20));
        }
        if took > Duration::from_secs(60) {
            faults.push(format!("takes {took:?}: {source}"));
        }
    }
    assert!(faults.is_empty(), "{} of {}:\n{}", faults.len(), HOSTILE.len(), faults.join("\n"));
}

/// Deeper than a stack reaches. A test that fails here ends the process.
#[test]
fn deep_values_are_refused() {
    let _alone = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
    let looped = |step: &str| {
        format!(
            "{{% set ns = namespace(x=[1]) %}}{{% for i in range(9) %}}{{% for j in range(99999) %}}{{% set ns.x = {step} %}}\
             {{% endfor %}}{{% endfor %}}{{{{ ns.x | length }}}}"
        )
    };
    let mut hostile: Vec<String> =
        ["[ns.x]", "{'a': ns.x}", "dict(a=ns.x)", "[ns.x] | list", "[1, 2, [ns.x, 3]]"].map(looped).to_vec();
    hostile.push(format!("{{% set x = [1] %}}{}", "{% set x = [x] %}".repeat(60_000)));
    hostile.push(format!("{{% set x = [1] %}}{}", "{% set x = {'a': x} %}".repeat(60_000)));
    for source in hostile {
        let said = render(&source).unwrap_err().to_string();
        assert!(said.contains("nested too deeply"), "{said}: {source:.120}");
    }
    // What does not nest may go on.
    for step in ["ns.x[:]", "ns.x | reverse", "ns.x + []", "ns.x | list"] {
        let source = looped(step).replace("99999", "9999");
        assert_eq!(render(&source).unwrap(), "1", "{step}");
    }
}

/// What one row built is gone with the row, also where a template ties it to itself.
#[test]
fn nothing_of_a_row_is_kept() {
    let _alone = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
    for source in [
        "{% set ns = namespace() %}{% set ns.text = 'x' * 10000000 %}{% set ns.me = [ns] %}",
        "{% for i in range(2) %}{{ loop.changed([loop, 'x' * 5000000]) }}{% endfor %}",
        "{% set ns = namespace(text='x' * 10000000) %}{% macro m() %}{{ ns.text }}{% endmacro %}{% set ns.m = m %}",
        "{% set ns = namespace(text='x' * 10000000) %}{% set ns.me = ns %}{{ raise_exception('no') }}",
    ] {
        let template = ChatTemplate::new(source.to_owned(), "the test", [], []).unwrap();
        // Errors are as good: what was built until then has to go as well.
        let row = || drop(template.render(&conversation(), false));
        row();
        let before = MEMORY.current_usage();
        (0..10).for_each(|_| row());
        let kept = MEMORY.current_usage().saturating_sub(before);
        assert!(kept < 1 << 20, "ten rows left {} KiB behind: {source}", kept >> 10);
    }
}

/// What the budget takes for a list must not make an honest template fail: long conversations, each turn built from
/// all before it.
#[test]
fn long_conversations_render() {
    let _alone = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
    let source = "{% set ns = namespace(text='', seen=[]) %}{% for m in messages %}\
        {% set ns.seen = ns.seen + [m.role] %}{% set content = m.content.strip() | trim | replace('a', 'bb') %}\
        {% set ns.text = ns.text ~ m.role ~ ': ' + content.split('</think>')[-1] ~ '\n' %}{% endfor %}{{ ns.text }}";
    let template = ChatTemplate::new(source.to_owned(), "the test", [], []).unwrap();
    let turn = |index: usize| Message {
        role: if index.is_multiple_of(2) { "user" } else { "assistant" }.to_owned(),
        content: "a word and another ".repeat(5),
        extra: serde_json::Map::new(),
    };
    let text = template.render(&(0..1000).map(turn).collect::<Vec<_>>(), false).unwrap();
    assert_eq!(text.lines().count(), 1000);
}
