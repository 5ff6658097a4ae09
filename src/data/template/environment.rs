//! The template engine set up as transformers sets up Jinja2. Filters, tests and functions are added one by one, so
//! that a template can use none that Jinja2 does not have, such as those that print Rust's notation.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, UndefinedBehavior, filters, functions, tests};
use regex::{Captures, Regex};

use super::{method, python};

/// Instructions that one render may take. A conversation of a thousand turns takes some hundred thousand.
pub(super) const FUEL: u64 = 5_000_000;

/// Marks the errors that `raise_exception` makes, among the engine's own.
pub(super) const REFUSAL: &str = "\u{1}raise_exception\u{1}";

/// An environment without templates. `asked_the_date` is set when a render calls `strftime_now`.
pub(super) fn transformers_environment(asked_the_date: Arc<AtomicBool>) -> Environment<'static> {
    let mut environment = Environment::empty();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_fuel(Some(FUEL));
    environment.set_debug(false);
    environment.set_unknown_method_callback(method::call);
    environment.set_formatter(|output, _, value| {
        let written = match value.as_str() {
            Some(text) => output.write_str(text),
            None => output.write_str(&python::str_of(value)?),
        };
        written.map_err(Error::from)
    });
    add_filters(&mut environment);
    add_tests(&mut environment);
    environment.add_function("range", functions::range);
    environment.add_function("dict", functions::dict);
    environment.add_function("namespace", functions::namespace);
    environment.add_function("raise_exception", |message: &Value| -> Result<Value, Error> {
        Err(python::invalid(format!("{REFUSAL}{}", python::str_of(message)?)))
    });
    environment.add_function("strftime_now", move |format: &str| {
        asked_the_date.store(true, Ordering::Relaxed);
        python::strftime_now(format)
    });
    environment
}

fn add_filters(environment: &mut Environment<'static>) {
    environment.add_filter("tojson", python::tojson);
    environment.add_filter("string", |value: &Value| python::str_of(value));
    environment.add_filter("safe", filters::safe);
    environment.add_filter("escape", filters::escape);
    environment.add_filter("e", filters::escape);
    environment.add_filter("lower", filters::lower);
    environment.add_filter("upper", filters::upper);
    environment.add_filter("title", filters::title);
    environment.add_filter("capitalize", filters::capitalize);
    environment.add_filter("trim", filters::trim);
    environment.add_filter("replace", filters::replace);
    environment.add_filter("join", filters::join);
    environment.add_filter("split", filters::split);
    environment.add_filter("lines", filters::lines);
    environment.add_filter("indent", filters::indent);
    environment.add_filter("format", filters::format);
    environment.add_filter("reverse", filters::reverse);
    environment.add_filter("dictsort", filters::dictsort);
    environment.add_filter("items", filters::items);
    environment.add_filter("groupby", filters::groupby);
    environment.add_filter("unique", filters::unique);
    environment.add_filter("list", filters::list);
    environment.add_filter("sort", filters::sort);
    environment.add_filter("min", filters::min);
    environment.add_filter("max", filters::max);
    environment.add_filter("select", filters::select);
    environment.add_filter("reject", filters::reject);
    environment.add_filter("selectattr", filters::selectattr);
    environment.add_filter("rejectattr", filters::rejectattr);
    environment.add_filter("map", filters::map);
    environment.add_filter("slice", filters::slice);
    environment.add_filter("batch", filters::batch);
    environment.add_filter("last", filters::last);
    environment.add_filter("first", filters::first);
    environment.add_filter("length", filters::length);
    environment.add_filter("count", filters::length);
    environment.add_filter("default", filters::default);
    environment.add_filter("d", filters::default);
    environment.add_filter("attr", filters::attr);
    environment.add_filter("sum", filters::sum);
    environment.add_filter("round", filters::round);
    environment.add_filter("abs", filters::abs);
    environment.add_filter("int", filters::int);
    environment.add_filter("float", filters::float);
    environment.add_filter("bool", filters::bool);
}

fn add_tests(environment: &mut Environment<'static>) {
    // Python cannot iterate over None; the engine can.
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    // The engine's slices and sums of lists are lazy; in Python they are lists.
    environment
        .add_test("sequence", |value: &Value| matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable));
    environment.add_test("defined", tests::is_defined);
    environment.add_test("undefined", tests::is_undefined);
    environment.add_test("none", tests::is_none);
    environment.add_test("safe", tests::is_safe);
    environment.add_test("escaped", tests::is_safe);
    environment.add_test("boolean", tests::is_boolean);
    environment.add_test("true", tests::is_true);
    environment.add_test("false", tests::is_false);
    environment.add_test("odd", tests::is_odd);
    environment.add_test("even", tests::is_even);
    environment.add_test("divisibleby", tests::is_divisibleby);
    environment.add_test("number", tests::is_number);
    environment.add_test("integer", tests::is_integer);
    environment.add_test("int", tests::is_integer);
    environment.add_test("float", tests::is_float);
    environment.add_test("string", tests::is_string);
    environment.add_test("mapping", tests::is_mapping);
    environment.add_test("lower", tests::is_lower);
    environment.add_test("upper", tests::is_upper);
    environment.add_test("sameas", tests::is_sameas);
    environment.add_test("filter", tests::is_filter);
    environment.add_test("test", tests::is_test);
    environment.add_test("startingwith", tests::is_startingwith);
    environment.add_test("endingwith", tests::is_endingwith);
    environment.add_test("in", tests::is_in);
    for name in ["eq", "equalto", "=="] {
        environment.add_test(name, tests::is_eq);
    }
    for name in ["ne", "!="] {
        environment.add_test(name, tests::is_ne);
    }
    for name in ["lt", "lessthan", "<"] {
        environment.add_test(name, tests::is_lt);
    }
    for name in ["le", "<="] {
        environment.add_test(name, tests::is_le);
    }
    for name in ["gt", "greaterthan", ">"] {
        environment.add_test(name, tests::is_gt);
    }
    for name in ["ge", ">="] {
        environment.add_test(name, tests::is_ge);
    }
}

/// The source as the engine has to see it to read it as Jinja2 does.
///
/// Jinja2 reads every line ending as `\n`. `{% generation %}` marks what the assistant wrote, for tools that mask by it;
/// supervised spans are found in another way (`spans`), so the tag becomes a condition that always holds, with its
/// white-space control. `[::-1]` becomes a method, since the engine panics on it where the text or list is empty.
pub(super) fn prepared(source: &str) -> String {
    const GENERATION: &str = r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}";
    const TAG: &str = r"(?s)\{\{.*?\}\}|\{%.*?%\}";
    const STRING_OR_REVERSE: &str = r#"(?s)'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|(\[\s*:\s*:\s*-1\s*\])"#;
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let (Ok(generation), Ok(tag), Ok(reverse)) =
        (Regex::new(GENERATION), Regex::new(TAG), Regex::new(STRING_OR_REVERSE))
    else {
        return source;
    };
    let source = generation.replace_all(&source, |found: &Captures<'_>| {
        let statement = if found.get(2).is_some() { "endif" } else { "if true" };
        format!("{{%{} {statement} {}%}}", &found[1], &found[3])
    });
    tag.replace_all(&source, |tag: &Captures<'_>| {
        reverse
            .replace_all(&tag[0], |found: &Captures<'_>| match found.get(1) {
                Some(_) => format!(".{}()", method::REVERSED),
                None => found[0].to_owned(),
            })
            .into_owned()
    })
    .into_owned()
}
