//! Colours, and text that is safe to print on a terminal. Colour is dropped if output is piped or `NO_COLOR` is set.

use std::io::IsTerminal;

use anstyle::{AnsiColor, Style};

/// Headings and names.
pub(super) const STRONG: Style = Style::new().bold();
/// Success, and supervised text.
pub(super) const GOOD: Style = AnsiColor::Green.on_default().bold();
/// Warnings.
pub(super) const WARNING: Style = AnsiColor::Yellow.on_default().bold();
/// Errors.
pub(super) const ERROR: Style = AnsiColor::Red.on_default().bold();
/// Details.
pub(super) const FAINT: Style = Style::new().dimmed();

/// Whether standard error is a terminal that can be redrawn. Some CI systems provide one and log every redrawn line.
pub(super) fn interactive() -> bool {
    let in_ci = std::env::var("CI").is_ok_and(|value| !value.is_empty() && value != "false");
    std::io::stderr().is_terminal() && !in_ci
}

/// Whether standard error is coloured.
pub(super) fn colored_errors() -> bool {
    anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never
}

/// Text in a style, for a stream that strips styles if needed.
pub(super) fn paint(style: Style, text: impl std::fmt::Display) -> String {
    format!("{style}{text}{style:#}")
}

/// Text from a file or a model with control characters made visible, so that it cannot move the cursor, recolour or
/// retitle a terminal.
pub(super) fn visible(text: &str) -> String {
    let shown = |character: char| match character {
        '\n' | '\t' => character,
        '\u{0}'..='\u{1f}' => char::from_u32(0x2400 + u32::from(character)).unwrap_or('\u{fffd}'),
        '\u{7f}' => '\u{2421}',
        control if control.is_control() => '\u{fffd}',
        other => other,
    };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_become_visible() {
        assert_eq!(
            visible("a\u{1b}[31m\r\n\tb\u{9b}c\u{7f}\u{1f980}"),
            "a\u{241b}[31m\u{240d}\n\tb\u{fffd}c\u{2421}\u{1f980}"
        );
    }
}
