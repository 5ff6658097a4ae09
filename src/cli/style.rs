//! Colours and how much of the terminal there is. Colour is dropped when output is piped or `NO_COLOR` is set.

use std::io::IsTerminal;

use anstyle::{AnsiColor, Style};

/// Headings and names that matter.
pub(super) const STRONG: Style = Style::new().bold();
/// What went well, and supervised text.
pub(super) const GOOD: Style = AnsiColor::Green.on_default().bold();
/// What a person should look at.
pub(super) const WARNING: Style = AnsiColor::Yellow.on_default().bold();
/// What stopped the command.
pub(super) const ERROR: Style = AnsiColor::Red.on_default().bold();
/// What can be skipped in reading.
pub(super) const FAINT: Style = Style::new().dimmed();

/// Whether standard error is a terminal that may be redrawn. Some CI systems offer one, and keep every redrawn line.
pub(super) fn interactive() -> bool {
    let in_ci = std::env::var("CI").is_ok_and(|value| !value.is_empty() && value != "false");
    std::io::stderr().is_terminal() && !in_ci
}

/// Whether standard error may be coloured.
pub(super) fn colored_errors() -> bool {
    anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never
}

/// Text in a style, for a stream that strips it where it must.
pub(super) fn paint(style: Style, text: impl std::fmt::Display) -> String {
    format!("{style}{text}{style:#}")
}
