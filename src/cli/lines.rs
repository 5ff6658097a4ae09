//! Labelled lines of a result, as `merge`, `export`, `verify`, `quantize` and `download` print them.

use std::io::{self, Write};

use serde_json::json;

use super::console::Console;
use super::style::{FAINT, STRONG, WARNING, paint};
use crate::export::base::Identity;

/// A line with its label in front.
pub(super) fn line(out: &mut dyn Write, name: &str, text: &str) -> io::Result<()> {
    writeln!(out, "{} {text}", paint(STRONG, format!("{name:<9}")))
}

/// A detail below the line it belongs to.
pub(super) fn detail(out: &mut dyn Write, text: impl std::fmt::Display) -> io::Result<()> {
    writeln!(out, "          {}", paint(FAINT, text))
}

/// A warning among the result's lines.
pub(super) fn warn(console: &mut Console<'_>, text: &str) -> io::Result<()> {
    console.warning(text);
    writeln!(console.out(), "{} {text}", paint(WARNING, "warning:"))
}

/// A note below the line it belongs to.
pub(super) fn note(console: &mut Console<'_>, text: &str) -> io::Result<()> {
    console.event("note", &json!({"message": text}));
    detail(console.out(), text)
}

/// The evidence that adapter and base belong together.
pub(super) fn identity(identity: &Identity, console: &mut Console<'_>) -> io::Result<()> {
    if !identity.same.is_empty() {
        detail(console.out(), format!("same as in training: {}", identity.same.join(", ")))?;
    }
    for difference in &identity.overruled {
        warn(console, &format!("not the base model of the training run: {difference}"))?;
    }
    for text in &identity.notes {
        note(console, text)?;
    }
    Ok(())
}

/// What a conversion changed in an adapter's tensors.
pub(super) fn changes(console: &mut Console<'_>, changes: &[String]) -> io::Result<()> {
    let text = match changes {
        [] => "nothing: the values are unchanged".to_owned(),
        changes => changes.join("; "),
    };
    line(console.out(), "changed", &text)
}
