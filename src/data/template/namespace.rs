//! The `namespace` of a template: the one value that a template can change, and with it the one that can come to hold
//! itself. Emptied when the render is over, so that nothing of it outlives its row.
//!
//! The engine's own namespaces hold each other for ever once they do: a template from a stranger could keep a conversation
//! of every row.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::value::{Enumerator, Object, Value};
use minijinja::{Error, ErrorKind};

use super::effort;

thread_local! {
    /// Those of the render under way.
    static MADE: RefCell<Vec<Arc<Namespace>>> = const { RefCell::new(Vec::new()) };
}

/// Names that a namespace may have. Asking whether it is empty goes through all of them.
const MOST_NAMES: usize = 1_000;

#[derive(Debug, Default)]
struct Namespace(Mutex<BTreeMap<Arc<str>, Value>>);

impl Namespace {
    /// # Errors
    /// It has as many names as it may.
    fn insert(&self, name: &str, value: Value) -> Result<(), Error> {
        let mut values = self.values();
        if values.len() >= MOST_NAMES && !values.contains_key(name) {
            let text = format!("a namespace holds no more than {MOST_NAMES} names");
            return Err(Error::new(ErrorKind::InvalidOperation, text));
        }
        values.insert(name.into(), value);
        Ok(())
    }

    fn values(&self) -> std::sync::MutexGuard<'_, BTreeMap<Arc<str>, Value>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Object for Namespace {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.values().get(key.as_str()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.values().keys().cloned().map(Value::from).collect())
    }
}

/// A namespace with the entries of a dictionary or of keyword arguments.
///
/// # Errors
/// `defaults` is neither, or more than a namespace holds.
pub(super) fn namespace(defaults: Option<Value>) -> Result<Value, Error> {
    let made = Arc::new(Namespace::default());
    if let Some(defaults) = defaults {
        let pairs = defaults.as_object().and_then(|object| object.try_iter_pairs()).ok_or_else(|| {
            let kind = defaults.kind();
            Error::new(
                ErrorKind::InvalidOperation,
                format!("expected object or keyword arguments, got {kind}"),
            )
        })?;
        for (key, value) in pairs {
            if let Some(key) = key.as_str() {
                made.insert(key, value)?;
            }
        }
    }
    MADE.with_borrow_mut(|all| all.push(Arc::clone(&made)));
    Ok(Value::from_dyn_object(made))
}

/// `{% set namespace.name = value %}`.
///
/// # Errors
/// It is no namespace, or the value is more than one may keep.
pub(super) fn set(value: Value, namespace: &Value, name: &str) -> Result<(), Error> {
    let Some(namespace) = namespace.downcast_object_ref::<Namespace>() else {
        let text = format!("can only assign to namespaces, not {}", namespace.kind());
        return Err(Error::new(ErrorKind::InvalidOperation, text));
    };
    // What holds a namespace may hold itself, and has no depth.
    if value.downcast_object_ref::<Namespace>().is_none() {
        effort::require_plain("a namespace", &value)?;
    }
    namespace.insert(name, value)
}

/// Empties all namespaces of the render that is over.
pub(super) fn empty_all() {
    for namespace in MADE.take() {
        // What it held may be a namespace: dropped once nobody reads this one.
        let held = std::mem::take(&mut *namespace.values());
        drop(held);
    }
}
