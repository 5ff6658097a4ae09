//! Colours, text that is safe to print on a terminal, and lines of its width. Colours and bars are for terminals: pipes,
//! `NO_COLOR`, `TERM=dumb` and `CI` switch them off.

use std::io::IsTerminal;

use anstyle::{AnsiColor, Style};
use terminal_size::{Width, terminal_size_of};
use textwrap::{Options, WordSeparator, WordSplitter};

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

/// Stands for a space inside backticks while text is wrapped: a command is never broken.
const UNBREAKABLE: &str = "\u{e000}";

/// Whether a variable is set and not empty.
fn set(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| !value.is_empty())
}

/// Whether this is a job of a CI system. Some provide a terminal, and log every redrawn line and every escape.
fn in_ci() -> bool {
    set("CI") && std::env::var_os("CI").is_some_and(|value| value != "false")
}

/// Switches colours off in CI; `NO_COLOR` and `TERM=dumb` do so themselves.
pub(super) fn settle() {
    if in_ci() && !set("CLICOLOR_FORCE") {
        anstream::ColorChoice::Never.write_global();
    }
}

/// Whether standard error is a terminal that may be redrawn.
pub(super) fn interactive() -> bool {
    std::io::stderr().is_terminal() && !in_ci() && !is_dumb() && !set("NO_COLOR")
}

/// Whether the terminal says that its cursor cannot be moved.
pub(super) fn is_dumb() -> bool {
    std::env::var("TERM").is_ok_and(|value| value == "dumb")
}

/// The width of standard error, if it is a terminal.
pub(super) fn error_width() -> Option<usize> {
    terminal_size_of(std::io::stderr()).map(|(Width(width), _)| usize::from(width))
}

/// The width of standard output, if it is a terminal.
pub(super) fn output_width() -> Option<usize> {
    terminal_size_of(std::io::stdout()).map(|(Width(width), _)| usize::from(width))
}

/// Text in lines of `width`, broken between words; lines after the first begin with `indent`. What stands in backticks,
/// and a further line that begins with two spaces (a command to type), is never broken.
pub(super) fn wrapped(text: &str, width: Option<usize>, indent: &str) -> String {
    let Some(width) = width.filter(|width| *width > indent.len() + 10) else { return text.to_owned() };
    let options = Options::new(width)
        .subsequent_indent(indent)
        .break_words(false)
        .word_separator(WordSeparator::AsciiSpace)
        .word_splitter(WordSplitter::NoHyphenation);
    let wrap = |(number, line): (usize, &str)| match (number, line.starts_with("  ")) {
        (0, _) => textwrap::fill(&unbreakable(line), &options),
        (_, true) => line.to_owned(),
        (_, false) => textwrap::fill(&unbreakable(line), options.clone().initial_indent(indent)),
    };
    text.split('\n').enumerate().map(wrap).collect::<Vec<_>>().join("\n").replace(UNBREAKABLE, " ")
}

/// Text whose spaces in backticks no wrapping breaks; [`breakable`] brings them back.
pub(super) fn unbreakable(text: &str) -> String {
    let parts = text.split('`').enumerate();
    let parts = parts.map(|(number, part)| match number % 2 {
        1 => part.replace(' ', UNBREAKABLE),
        _ => part.to_owned(),
    });
    parts.collect::<Vec<_>>().join("`")
}

/// Brings back the spaces of [`unbreakable`].
pub(super) fn breakable(text: &str) -> String {
    text.replace(UNBREAKABLE, " ")
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
    fn lines_are_broken_between_words_and_commands_nowhere() {
        let text = "the base is missing; download it with `tune download Qwen/Qwen3-0.6B`, or name a folder";
        assert_eq!(
            wrapped(text, Some(40), "  "),
            "the base is missing; download it with\n  `tune download Qwen/Qwen3-0.6B`, or\n  name a folder"
        );
        assert_eq!(wrapped(text, None, ""), text);
        let command = "type this and nothing else at all:\n  tune run a-very-long-recipe-name.toml --resume";
        assert!(
            wrapped(command, Some(30), "").ends_with("\n  tune run a-very-long-recipe-name.toml --resume")
        );
        let painted = paint(STRONG, "four words are here");
        assert_eq!(wrapped(&painted, Some(19), ""), painted, "escapes take no room");
    }

    #[test]
    fn control_characters_become_visible() {
        assert_eq!(
            visible("a\u{1b}[31m\r\n\tb\u{9b}c\u{7f}\u{1f980}"),
            "a\u{241b}[31m\u{240d}\n\tb\u{fffd}c\u{2421}\u{1f980}"
        );
    }
}
