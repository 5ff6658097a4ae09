//! `tune inspect`: tokenized rows with their supervised parts in colour, in brackets where there is no colour, or as JSON; the
//! two answers of a pair beside each other.

use std::io::{self, IsTerminal, Write};

use clap::Args;
use serde_json::json;

use super::args::RecipeArguments;
use super::console::Console;
use super::environment::Context;
use super::exit::Exit;
use super::failure::Failure;
use super::side_by_side::{self, Token};
use super::style::{FAINT, GOOD, STRONG, WARNING, paint, visible};
use crate::data::inspect::{InspectedRow, Piece, Verdict};
use crate::data::template::SpanMethod;
use crate::data::tokenize::Supervision;
use crate::run;

/// Arguments of `tune inspect`.
#[derive(Debug, Args)]
pub struct InspectArguments {
    /// The recipe.
    #[command(flatten)]
    pub recipe: RecipeArguments,
    /// First row to show, counted from 0 over all datasets in the recipe's order
    #[arg(long, default_value_t = 0, value_name = "ROW")]
    pub row: u64,
    /// Number of rows to show
    #[arg(short, long, default_value_t = 3, value_name = "COUNT")]
    pub n: u64,
}

/// Shows rows.
pub(super) fn inspect(
    arguments: &InspectArguments,
    context: &Context<'_>,
    console: &mut Console<'_>,
) -> Result<Exit, Failure> {
    let inspection = run::inspect::inspect(arguments.recipe.open(None)?, &context.environment)?;
    // Colour marks supervised text where it is shown, brackets elsewhere.
    let colored = io::stdout().is_terminal()
        && anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never;
    if !console.json() {
        let out = console.out();
        if let Some(template) = inspection.template() {
            writeln!(out, "{} {template}", paint(STRONG, "template"))?;
        }
        let legend = if colored { paint(GOOD, "supervised") } else { "⟦supervised⟧".to_owned() };
        writeln!(out, "{} {legend} {}\n", paint(STRONG, "legend  "), paint(FAINT, "not supervised"))?;
    }
    let (mut exit, mut shown) = (Exit::Done, 0);
    let end = arguments.row.saturating_add(arguments.n).min(inspection.rows().max(arguments.row + 1));
    for number in arguments.row..end {
        let documents = match inspection.row(number) {
            Ok(documents) => documents,
            Err(error) => {
                exit = console.failure(&error);
                continue;
            }
        };
        shown += 1;
        match documents.as_slice() {
            _ if console.json() => {
                documents.iter().for_each(|row| console.event("row", &as_json(number, row)));
            }
            [chosen, rejected] => show_pair(number, [chosen, rejected], colored, console.out())?,
            rows => rows.iter().try_for_each(|row| show(number, row, colored, console.out()))?,
        }
    }
    let template = inspection.template().map(ToString::to_string);
    console.event("result", &json!({"template": template, "rows": inspection.rows(), "shown": shown}));
    Ok(exit)
}

/// The prompt of a pair, and below it the answers beside each other.
fn show_pair(number: u64, pair: [&InspectedRow; 2], colored: bool, out: &mut dyn Write) -> io::Result<()> {
    for row in pair {
        head(number, row, out)?;
    }
    remarks(pair[0], out)?;
    writeln!(out, "{} {}", paint(STRONG, "differ  "), side_by_side::legend(colored))?;
    let [chosen, rejected] = pair.map(tokens);
    let prompt = side_by_side::prompt(&chosen, &rejected);
    let shown: String = chosen[..prompt].iter().map(|token| token.text.as_str()).collect();
    writeln!(out, "{}", lines(shown.trim_end_matches('\n'), |line| paint(FAINT, line)))?;
    for line in side_by_side::lines(&chosen[prompt..], &rejected[prompt..], colored) {
        writeln!(out, "{line}")?;
    }
    writeln!(out)
}

fn tokens(row: &InspectedRow) -> Vec<Token> {
    let token = |(at, piece): (usize, &Piece)| Token {
        text: spelled(piece),
        id: piece.id,
        supervised: piece.supervised,
        cut: at >= row.kept_tokens,
    };
    row.pieces.iter().enumerate().map(token).collect()
}

fn show(number: u64, row: &InspectedRow, colored: bool, out: &mut dyn Write) -> io::Result<()> {
    head(number, row, out)?;
    remarks(row, out)?;
    let (kept, cut) = row.pieces.split_at(row.kept_tokens.min(row.pieces.len()));
    let mut text = String::new();
    for run in kept.chunk_by(|left, right| left.supervised == right.supervised) {
        let shown: String = run.iter().map(spelled).collect();
        text += &match (run[0].supervised, colored) {
            (true, true) => lines(&shown, |line| paint(GOOD, line)),
            (true, false) => format!("⟦{shown}⟧"),
            (false, _) => lines(&shown, |line| paint(FAINT, line)),
        };
    }
    if !cut.is_empty() {
        let shown: String = cut.iter().map(spelled).collect();
        text += &lines(&format!("✂ {shown}"), |line| paint(WARNING, line));
    }
    writeln!(out, "{}\n", text.trim_end_matches('\n'))
}

/// Which row it is, and how much of it is learned.
fn head(number: u64, row: &InspectedRow, out: &mut dyn Write) -> io::Result<()> {
    let share = 100.0 * row.supervised_tokens as f64 / row.kept_tokens.max(1) as f64;
    let held_out = if row.held_out { ", held out" } else { "" };
    let side = row.side.name().map(|side| format!(" {side}")).unwrap_or_default();
    writeln!(
        out,
        "{}{side} {}{held_out}: {} tokens, {} supervised ({share:.0} %) {}",
        paint(STRONG, format!("row {number}")),
        row.place,
        row.kept_tokens,
        row.supervised_tokens,
        paint(FAINT, method(row.supervision)),
    )
}

/// How it is used, and what of it is not.
fn remarks(row: &InspectedRow, out: &mut dyn Write) -> io::Result<()> {
    if let Some(verdict) = verdict(&row.verdict) {
        writeln!(out, "{}", paint(WARNING, verdict))?;
    }
    if !row.unused.is_empty() {
        writeln!(out, "{}", paint(FAINT, format!("not used: {}", row.unused.join(", "))))?;
    }
    Ok(())
}

/// Styles each line separately, so that a pager that cuts lines keeps styles complete.
fn lines(text: &str, style: impl Fn(&str) -> String) -> String {
    let style = |line: &str| if line.is_empty() { String::new() } else { style(line) };
    text.split('\n').map(style).collect::<Vec<_>>().join("\n")
}

fn spelled(piece: &Piece) -> String {
    match &piece.text {
        Some(text) => visible(text),
        None => format!("{} ", piece.id),
    }
}

fn method(supervision: Supervision) -> &'static str {
    match supervision {
        Supervision::Template(SpanMethod::Prefix) => "from the rendering of each turn's beginning",
        Supervision::Template(SpanMethod::Differential) => {
            "from the difference that the answer makes in the rendering"
        }
        Supervision::Completion => "everything after the prompt",
        Supervision::Labels => "from the record's labels",
        Supervision::Everything => "everything",
    }
}

fn verdict(verdict: &Verdict) -> Option<String> {
    match verdict {
        Verdict::Whole => None,
        Verdict::Truncated => Some("longer than `max_seq_len`: truncated at ✂".into()),
        Verdict::TooLong => Some("dropped: longer than `max_seq_len`".into()),
        Verdict::BeyondPositions => Some("dropped: longer than the positions of the model".into()),
        Verdict::Empty => Some("dropped: no token is supervised".into()),
        Verdict::Refused(error) => Some(format!("rejected: {error}")),
    }
}

fn as_json(number: u64, row: &InspectedRow) -> serde_json::Value {
    let tokens: Vec<_> = row
        .pieces
        .iter()
        .map(|piece| json!({"id": piece.id, "text": piece.text, "supervised": piece.supervised, "label": piece.label}))
        .collect();
    let mut event = json!({
        "row": number,
        "place": row.place.to_string(),
        "held_out": row.held_out,
        "kept_tokens": row.kept_tokens,
        "supervised_tokens": row.supervised_tokens,
        "supervision": method(row.supervision),
        "verdict": verdict(&row.verdict).unwrap_or_else(|| "whole".into()),
        "tokens": tokens,
        "unused": row.unused,
    });
    if let Some(side) = row.side.name() {
        event["group"] = number.into();
        event["side"] = side.into();
    }
    event
}
