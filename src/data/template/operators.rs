//! The operators of a template that can build something large or read a lot, each asking [`budget`] or [`effort`]
//! first. `program` puts a call of one of these in the place of the engine's own instruction; what is computed stays the
//! engine's business.

use std::collections::BTreeMap;

use minijinja::machinery::{Instruction, Instructions, Vm, make_string_output};
use minijinja::value::{ObjectRepr, Rest, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State};

use super::budget::{self, Text};
use super::effort;
use super::namespace;
use super::python;

/// Names under which the environment holds the operators: none that a template can write.
pub(super) const CONCAT: &str = "operator ~";
pub(super) const ADD: &str = "operator +";
pub(super) const MULTIPLY: &str = "operator *";
pub(super) const SLICE: &str = "operator [:]";
pub(super) const IN: &str = "operator in";
pub(super) const JOIN_LISTS: &str = "operator *arguments";
pub(super) const OF_LENGTH: &str = "operator a, b =";
pub(super) const SET_ATTRIBUTE: &str = "operator a.b =";
pub(super) const EQUAL: &str = "operator ==";
pub(super) const UNEQUAL: &str = "operator !=";
pub(super) const LESS: &str = "operator <";
pub(super) const AT_MOST: &str = "operator <=";
pub(super) const GREATER: &str = "operator >";
pub(super) const AT_LEAST: &str = "operator >=";
pub(super) const COMPARED: &str = "operator a < b <";
pub(super) const ITEM: &str = "operator []";
pub(super) const DICTIONARY: &str = "operator {}";
pub(super) const LOOP_OVER: &str = "operator for";
pub(super) const STORE: &str = "operator =";
pub(super) const CHANGED: &str = "operator changed";
pub(super) const OTHER_TEMPLATE: &str = "operator include";
pub(super) const COUNT: &str = "operator count";

/// What tells whether two values stand to each other as an operator wants.
type Holds = fn(&Value, &Value) -> bool;

/// The comparisons: as it is written, its name here, the tests that ask the same, and what it computes.
const COMPARISONS: [(&str, &str, &[&str], Holds); 6] = [
    ("`==`", EQUAL, &["eq", "equalto", "=="], |left, right| left == right),
    ("`!=`", UNEQUAL, &["ne", "!="], |left, right| left != right),
    ("`<`", LESS, &["lt", "lessthan", "<"], |left, right| left < right),
    ("`<=`", AT_MOST, &["le", "<="], |left, right| left <= right),
    ("`>`", GREATER, &["gt", "greaterthan", ">"], |left, right| left > right),
    ("`>=`", AT_LEAST, &["ge", ">="], |left, right| left >= right),
];

/// Notes how many instructions the render has taken.
pub(super) fn count(state: &State<'_, '_>) {
    effort::instructions(state.fuel_levels().map_or(0, |(consumed, _)| consumed));
}

/// Adds the operators to an environment.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.add_function(CONCAT, concat);
    environment.add_function(ADD, add);
    environment.add_function(MULTIPLY, multiply);
    environment.add_function(SLICE, slice);
    environment.add_function(IN, contains);
    environment.add_function(JOIN_LISTS, join_lists);
    environment.add_function(OF_LENGTH, of_length);
    environment.add_function(SET_ATTRIBUTE, |value: Value, target: &Value, name: &str| {
        namespace::set(value, target, name)
    });
    for (sign, name, tests, holds) in COMPARISONS {
        let compare = move |left: &Value, right: &Value| {
            effort::compare(sign, left, right)?;
            Ok::<bool, Error>(holds(left, right))
        };
        environment.add_function(name, compare);
        for test in tests {
            environment.add_test(*test, compare);
        }
    }
    environment.add_function(COMPARED, |pair: Value| {
        effort::compare("a comparison", &pair.get_item_by_index(0)?, &pair.get_item_by_index(1)?)?;
        Ok::<Value, Error>(pair)
    });
    environment.add_function(COUNT, |state: &State<'_, '_>| count(state));
    environment.add_function(ITEM, item);
    environment.add_function(DICTIONARY, dictionary);
    environment.add_function(LOOP_OVER, |value: Value| {
        let text = value.as_str().map_or(0, str::len);
        effort::spend("`for`", text as u64).map(|()| value)
    });
    environment.add_function(STORE, |value: Value| effort::whole("a variable", &value).map(|_| value));
    environment.add_function(CHANGED, changed);
    environment.add_function(OTHER_TEMPLATE, other_template);
    environment.add_test(
        "in",
        |state: &State<'_, '_>, value: &Value, container: &Value| -> Result<bool, Error> {
            match contains(state, value, container) {
                Ok(contained) => Ok(contained.is_true()),
                // As the engine's own: nothing lies in what is no container.
                Err(_) if !is_container(container) => Ok(false),
                Err(error) => Err(error),
            }
        },
    );
}

/// Runs one instruction of the engine on operands.
fn original(
    state: &State<'_, '_>,
    instruction: Instruction<'static>,
    operands: &[&Value],
) -> Result<Value, Error> {
    let mut program = Instructions::new("operator", "");
    for operand in operands {
        program.add(Instruction::LoadConst((*operand).clone()));
    }
    program.add(instruction);
    let (mut nothing, blocks) = (String::new(), BTreeMap::new());
    let mut output = make_string_output(&mut nothing);
    let (value, _) =
        Vm::new(state.env()).eval(&program, Value::from(()), &blocks, &mut output, AutoEscape::None)?;
    Ok(value.unwrap_or_default())
}

fn concat(left: &Value, right: &Value) -> Result<Value, Error> {
    let mut text = Text::new("`~`");
    text.push_value(left)?;
    text.push_value(right)?;
    text.finish_value()
}

/// Both as whole numbers of 64 bits, which all that templates count are.
fn whole_numbers(left: &Value, right: &Value) -> Option<(i64, i64)> {
    (left.is_integer() && right.is_integer())
        .then(|| Some((i64::try_from(left.clone()).ok()?, i64::try_from(right.clone()).ok()?)))
        .flatten()
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

fn add(state: &State<'_, '_>, left: &Value, right: &Value) -> Result<Value, Error> {
    if let (Some(left), Some(right)) = (left.as_str(), right.as_str()) {
        let mut sum = Text::new("`+`");
        sum.push_str(left)?;
        sum.push_str(right)?;
        return sum.finish_value();
    }
    if let Some(sum) = whole_numbers(left, right).and_then(|(left, right)| left.checked_add(right)) {
        return Ok(Value::from(sum));
    }
    if is_list(left) && is_list(right) {
        // The engine would only note what was added to what, and build it for whoever reads it later.
        let length = budget::items(left).saturating_add(budget::items(right));
        return budget::list("`+`", left.try_iter()?.chain(right.try_iter()?), length);
    }
    original(state, Instruction::Add, &[left, right])
}

fn multiply(state: &State<'_, '_>, left: &Value, right: &Value) -> Result<Value, Error> {
    if let Some(product) = whole_numbers(left, right).and_then(|(left, right)| left.checked_mul(right)) {
        return Ok(Value::from(product));
    }
    for (repeated, times) in [(left, right), (right, left)] {
        let Some(times) = times.as_usize() else { continue };
        if let Some(text) = repeated.as_str() {
            let took = (text.len() as u64).saturating_mul(times as u64);
            budget::charge("`*`", took)?;
            return Ok(budget::text(Value::from(text.repeat(times)), took));
        } else if is_list(repeated) {
            let length = budget::items(repeated).saturating_mul(times as u64);
            let items: Vec<Value> = repeated.try_iter()?.take(length as usize).collect();
            let again = (0..times).flat_map(|_| items.iter().cloned());
            return budget::list("`*`", again, length);
        }
    }
    original(state, Instruction::Mul, &[left, right])
}

fn slice(
    state: &State<'_, '_>,
    value: &Value,
    start: &Value,
    stop: &Value,
    step: &Value,
) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return budget::eager("`[:]`", original(state, Instruction::Slice, &[value, start, stop, step])?);
    };
    if text.is_empty() {
        // The engine has no answer to `''[::-1]`.
        return Ok(Value::from(""));
    }
    // Turning a text round takes its characters one by one.
    let took = text.len() as u64 * if step.is_none() { 1 } else { 5 };
    budget::charge("`[:]`", took)?;
    Ok(budget::text(original(state, Instruction::Slice, &[value, start, stop, step])?, took))
}

fn is_container(value: &Value) -> bool {
    value.is_undefined() || value.as_str().is_some() || value.as_object().is_some()
}

fn contains(state: &State<'_, '_>, value: &Value, container: &Value) -> Result<Value, Error> {
    effort::spend_on("`in`", std::slice::from_ref(container))?;
    let contained = match (container.as_str(), container.as_object()) {
        (Some(text), _) => match value.as_str() {
            Some(part) => text.contains(part),
            None => {
                let mut part = Text::new("`in`");
                part.push_value(value)?;
                text.contains(&part.finish()?)
            }
        },
        (None, Some(object)) => match object.repr() {
            ObjectRepr::Map => {
                effort::require_key(value)?;
                object.get_value(value).is_some()
            }
            ObjectRepr::Seq | ObjectRepr::Iterable => found("`in`", value, container)? > 0,
            _ => false,
        },
        (None, None) => return original(state, Instruction::In, &[value, container]),
    };
    Ok(Value::from(contained))
}

/// How many items of a list are equal to a value.
///
/// # Errors
/// Comparing with them goes through more than a render may.
pub(super) fn found(what: &str, value: &Value, list: &Value) -> Result<usize, Error> {
    let mut found = 0;
    for item in list.try_iter()? {
        effort::compare(what, &item, value)?;
        found += usize::from(item == *value);
    }
    Ok(found)
}

/// `container[key]`.
fn item(container: &Value, key: &Value) -> Result<Value, Error> {
    effort::require_key(key)?;
    // The characters of a text are counted one by one.
    effort::spend("`[]`", container.as_str().map_or(0, str::len) as u64)?;
    container.get_item(key)
}

/// A dictionary of a list of keys, each before its value.
fn dictionary(entries: &Value) -> Result<Value, Error> {
    let mut entries = entries.try_iter()?;
    let mut pairs = Vec::new();
    while let (Some(key), Some(value)) = (entries.next(), entries.next()) {
        effort::require_key(&key)?;
        pairs.push((key, value));
    }
    Ok(pairs.into_iter().collect())
}

/// The lists behind `*` in a call, and the arguments between them, as one list.
fn join_lists(lists: &Value) -> Result<Value, Error> {
    let mut joined = Vec::new();
    for list in lists.try_iter()? {
        budget::charge_items("`*` in a call", budget::items(&list))?;
        joined.extend(list.try_iter()?);
    }
    Ok(Value::from(joined))
}

/// A list that is about to be taken apart, if it is not longer than that takes. The engine counts after it is done.
fn of_length(list: Value, wanted: usize) -> Result<Value, Error> {
    let found = list.try_iter().map_or(0, |items| items.take(wanted + 1).count());
    if found > wanted {
        return Err(Error::new(
            ErrorKind::CannotUnpack,
            format!("sequence of wrong length (expected {wanted}, got more)"),
        ));
    }
    Ok(list)
}

/// `loop.changed(…)`, which remembers what it is given: texts in the place of lists and dictionaries, so that a loop never
/// comes to hold itself.
fn changed(state: &State<'_, '_>, arguments: Rest<Value>) -> Result<Value, Error> {
    let Some((of, given)) = arguments.split_first() else { return Ok(Value::from(false)) };
    let plain = |value: &Value| match value.as_object() {
        Some(_) => python::str_of(value).map(Value::from),
        None => Ok(value.clone()),
    };
    let given = given.iter().map(plain).collect::<Result<Vec<Value>, Error>>()?;
    of.call_method(state, "changed", &given)
}

fn other_template(_name: Rest<Value>) -> Result<Value, Error> {
    Err(python::invalid(
        "a chat template stands alone: there is nothing that it could include, import or extend",
    ))
}
