//! Chat templates that mean harm: whatever a template does, it ends in an error that says so, soon, and memory stays
//! within a few times what a render may build.
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
const HOSTILE: [(&str, &str); 55] = [
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
    // Values that hold themselves twice, sixty deep: refused where they are kept.
    (
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "a namespace would go through more than",
    ),
    (
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}",
        "a namespace would go through more than",
    ),
    (
        "{% macro m(x, n) %}{% if n %}{{ m([x, x], n - 1) }}{% endif %}{% endmacro %}{{ m([1], 60) }}",
        "a variable would go through more than",
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

/// Two towers of namespaces, each holding the next one twice in a list: built from the top, so that each is small when it
/// is kept. Sixty floors are 2⁶⁰ values to go through.
const TOWERS: &str = "{% set ns = namespace(l=[], m=[]) %}{% for i in range(60) %}\
    {% set ns.l = ns.l + [namespace()] %}{% set ns.m = ns.m + [namespace()] %}{% endfor %}\
    {% for i in range(59) %}{% set a = ns.l[i] %}{% set a.x = [ns.l[i + 1], ns.l[i + 1]] %}\
    {% set b = ns.m[i] %}{% set b.x = [ns.m[i + 1], ns.m[i + 1]] %}{% endfor %}\
    {% set ns.x = ns.l[0] %}{% set ns.y = ns.m[0] %}";

/// Everything that goes through all that a value holds, and what the error says.
const READERS: [(&str, &str); 45] = [
    ("ns.x == ns.y", "`==` would go through"),
    ("ns.x != ns.y", "`!=` would go through"),
    ("ns.x < ns.y", "`<` would go through"),
    ("ns.x <= ns.y", "`<=` would go through"),
    ("ns.x > ns.y", "`>` would go through"),
    ("ns.x >= ns.y", "`>=` would go through"),
    ("ns.x == ns.y == ns.x", "a comparison would go through"),
    ("ns.x in [ns.y]", "`in` would go through"),
    ("ns.x is in [ns.y]", "`in` would go through"),
    ("ns.x is eq ns.y", "`==` would go through"),
    ("ns.x is ne ns.y", "`!=` would go through"),
    ("ns.x is lt ns.y", "`<` would go through"),
    ("ns.x is ge ns.y", "`>=` would go through"),
    ("[ns.x, ns.y] | select('eq', ns.y)", "`==` would go through"),
    ("[ns.x] | reject('in', [ns.y])", "`in` would go through"),
    ("[{'a': ns.x}] | selectattr('a', 'equalto', ns.y)", "`==` would go through"),
    ("[ns.x, ns.y] | sort", "`sort` would go through"),
    ("[{'a': ns.x}, {'a': ns.y}] | sort(attribute='a')", "`sort` would go through"),
    ("[ns.x, ns.y] | unique", "`unique` would go through"),
    ("[ns.x, ns.y] | min", "`min` would go through"),
    ("[ns.x, ns.y] | max", "`max` would go through"),
    ("[{'a': ns.x}, {'a': ns.y}] | groupby('a')", "`groupby` would go through"),
    ("{'a': ns.x, 'b': ns.y} | dictsort(by='value')", "`dictsort` would go through"),
    ("[ns.x].count(ns.y)", "`count` would go through"),
    // No list or dictionary is a key, nor is looked for among them.
    ("{ns.x: 1}", "cannot be a key"),
    ("{'a': 1}[ns.x]", "cannot be a key"),
    ("{'a': 1}.get(ns.x)", "cannot be a key"),
    ("{'a': 1} | attr(ns.x)", "cannot be a key"),
    ("ns.x in {'a': 1}", "cannot be a key"),
    // Writing it out.
    ("ns.x", "writing a list"),
    ("ns.x ~ ''", "`~`"),
    ("ns.x | string", "writing a list"),
    ("ns.x | tojson", "`tojson`"),
    ("[ns.x] | join", "`join`"),
    ("''.join([ns.x])", "`join`"),
    ("ns.x | upper", "`upper`"),
    ("ns.x | trim", "`trim`"),
    ("ns.x | replace('a', 'b')", "`replace`"),
    ("ns.x | indent", "`indent`"),
    ("ns.x | safe", "`safe`"),
    ("'%s' | format(ns.x)", "`format`"),
    ("ns.x in 'abc'", "`in`"),
    ("raise_exception(ns.x)", "writing a list"),
    ("ns.x | pprint", "unknown"),
    ("ns.x | urlencode", "unknown"),
];

/// What only looks at the top of a value, however much it holds.
const GLANCES: [&str; 9] = [
    "[ns.x] | length",
    "ns.x is mapping and ns.x is sameas ns.x",
    "1 if ns.x and not ns.y else 2",
    "ns.x == 1",
    "dict({'a': ns.x}) | length",
    "[ns.x] | list | length",
    "{'a': ns.x}.items() | length",
    "[ns.x, ns.y] | map('length') | list",
    "(ns.x | default(1)) is mapping",
];

#[test]
fn what_holds_itself_many_times_over_is_not_gone_through() {
    let _alone = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut faults = Vec::new();
    let mut ask = |source: String, expected: Option<&str>| {
        let begun = Instant::now();
        match (render(&source), expected) {
            (Err(error), Some(what))
                if error.to_string().contains(what) && error.to_string().contains("the test") => {}
            (Ok(_), None) => {}
            (outcome, _) => faults.push(format!("{outcome:?}: {source}")),
        }
        if begun.elapsed() > Duration::from_secs(60) {
            faults.push(format!("takes {:?}: {source}", begun.elapsed()));
        }
    };
    READERS.iter().for_each(|(reader, what)| ask(format!("{TOWERS}{{{{ {reader} }}}}"), Some(what)));
    GLANCES.iter().for_each(|glance| ask(format!("{TOWERS}{{{{ {glance} }}}}"), None));
    // Two that hold each other have no end at all.
    let ring = "{% set a = namespace() %}{% set b = namespace() %}{% set a.o = b %}{% set b.o = a %}";
    for reader in
        ["a == b", "a < b", "[a] == [b]", "a in [b]", "[a, b] | sort", "[a, b] | unique", "a", "a | tojson"]
    {
        ask(format!("{ring}{{{{ {reader} }}}}"), Some("nested too deeply"));
    }
    // Each instruction reads what a render may build, again and again.
    for reader in ["x == y", "x[-1]", "[x, y] | sort"] {
        let again = format!(
            "{{% set x = 'a' * 30000000 %}}{{% set y = 'a' * 30000000 %}}{{% for i in range(99999) %}}\
             {{% if {reader} %}}{{% endif %}}{{% endfor %}}"
        );
        ask(again, Some("may read 8.00 GiB in all"));
    }
    let walks = "{% set x = 'a' * 30000000 %}{% for i in range(99999) %}{% for c in x %}{% break %}{% endfor %}{% endfor %}";
    ask(walks.to_owned(), Some("`for` goes on reading"));
    let path = "{% set ns = namespace() %}{% set ns.a = ns %}{% set p = 'a.' * 100000 ~ 'a' %}{{ [ns] * 999999 | map(attribute=p) }}";
    ask(path.replace("[ns] * 999999", "([ns] * 999999)"), Some("`map` goes on reading"));
    assert!(faults.is_empty(), "{}:\n{}", faults.len(), faults.join("\n"));
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
    hostile.push(format!("{{% set x = [1] %}}{}", "{% set x = [x] if true else 1 %}".repeat(60_000)));
    hostile.push(format!("{{% set x = [1] %}}{}", "{% set x, y = [x], 1 %}".repeat(60_000)));
    hostile.push(looped("([ns.x] | groupby('n', default=1))[0]"));
    for source in hostile {
        let said = render(&source).unwrap_err().to_string();
        assert!(said.contains("nested too deeply"), "{said}: {source:.120}");
    }
    // One that is wide as well takes long to look at.
    let wide = looped("[ns.x, w]").replacen("{% for", "{% set w = [1] * 9000 %}{% for", 1);
    assert!(render(&wide).unwrap_err().to_string().contains("goes on reading"));
    // In these the engine hides one in the other.
    for body in [
        "{% for k in [ns.x, 1] %}{% set ns.x = loop %}{% endfor %}",
        "{% for k in [ns.x, 1] %}{% set ns.x = [loop] %}{% endfor %}",
        "{% set y = ns.x %}{% macro m() %}{{ y }}{% endmacro %}{% set ns.x = m %}",
    ] {
        let source = looped("0").replace("{% set ns.x = 0 %}", body);
        let said = render(&source).unwrap_err().to_string();
        assert!(said.contains("cannot keep `loop` or a macro"), "{said}: {source:.120}");
    }
    // Namespaces hold each other as deep as they like: nothing follows them down.
    let source =
        looped("namespace(x=ns.x)").replace("99999", "9999").replace("ns.x | length", "ns.x is mapping");
    assert_eq!(render(&source).unwrap(), "True");
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
