//! Labelled lines of a result, as `merge`, `export`, `verify`, `quantize` and `download` print them.

use std::io::{self, Write};

use serde_json::json;

use super::console::Console;
use super::style::{FAINT, STRONG, WARNING, output_width, paint, wrapped};
use crate::export::base::Identity;

/// Lines below a labelled one begin here.
const INDENT: &str = "          ";

/// A line with its label in front.
pub(super) fn line(out: &mut dyn Write, name: &str, text: &str) -> io::Result<()> {
    let text = format!("{} {text}", paint(STRONG, format!("{name:<9}")));
    writeln!(out, "{}", wrapped(&text, output_width(), INDENT))
}

/// What to do next, each with a command that can be typed as it stands, on a line of its own.
pub(super) fn next(out: &mut dyn Write, steps: &[(&str, String)]) -> io::Result<()> {
    listed(out, steps, "or")
}

/// As [`next`], where all steps are to be taken, one after another.
pub(super) fn next_of_all(out: &mut dyn Write, steps: &[(&str, String)]) -> io::Result<()> {
    listed(out, steps, "then")
}

fn listed(out: &mut dyn Write, steps: &[(&str, String)], between: &str) -> io::Result<()> {
    writeln!(out)?;
    for (number, (what, command)) in steps.iter().enumerate() {
        let begin = if number == 0 { "Next" } else { between };
        let what = if what.is_empty() { String::new() } else { format!(", {what}") };
        let what = wrapped(&format!("{begin}{what}:"), output_width(), "");
        writeln!(out, "{what}\n  {}", paint(STRONG, command))?;
    }
    Ok(())
}

/// A detail below the line it belongs to.
pub(super) fn detail(out: &mut dyn Write, text: impl std::fmt::Display) -> io::Result<()> {
    writeln!(out, "{}", wrapped(&format!("{INDENT}{}", paint(FAINT, text)), output_width(), INDENT))
}

/// A warning among the result's lines.
pub(super) fn warn(console: &mut Console<'_>, text: &str) -> io::Result<()> {
    console.warning(text);
    let text = format!("{} {text}", paint(WARNING, "warning:"));
    writeln!(console.out(), "{}", wrapped(&text, output_width(), "  "))
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
