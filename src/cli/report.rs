//! How errors look: one line with a way out, or a recipe's problems with an excerpt of its text.

use std::io::{IsTerminal, Write};

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme};

use super::style::{ERROR, STRONG, colored_errors, paint};

/// Widest line of an excerpt.
const WIDTH: usize = 100;

/// `error: …`, and the way out below it where there is one.
pub(super) fn error(message: &str, help: Option<&str>) {
    let mut stderr = anstream::stderr().lock();
    // When nobody listens on stderr any more, the exit code still says what happened.
    let _ = writeln!(stderr, "{} {message}", paint(ERROR, "error:"));
    if let Some(help) = help {
        let _ = writeln!(stderr, "{} {help}", paint(STRONG, "help:"));
    }
}

/// A diagnostic with its excerpts; colour and box drawing only where a terminal shows them.
pub(super) fn diagnostic(problem: &dyn Diagnostic) {
    let theme = match (std::io::stderr().is_terminal(), colored_errors()) {
        (true, true) => GraphicalTheme::unicode(),
        (true, false) => GraphicalTheme::unicode_nocolor(),
        (false, _) => GraphicalTheme::none(),
    };
    let handler = GraphicalReportHandler::new_themed(theme).with_width(WIDTH).with_links(false);
    let mut text = String::new();
    if handler.render_report(&mut text, problem).is_err() {
        text = problem.to_string();
    }
    let _ = writeln!(std::io::stderr().lock(), "{}", text.trim_end());
}
