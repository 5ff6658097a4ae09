//! `tune inspect`: what the model will see, in colour on a terminal, in brackets elsewhere, or as JSON.

use std::io::{self, IsTerminal, Write};

use serde_json::json;

use super::args::InspectArguments;
use super::console::Console;
use super::environment::hub_cache;
use super::exit::Exit;
use super::style::{FAINT, GOOD, STRONG, WARNING, paint, visible};
use crate::data::inspect::{InspectedRow, Piece, Verdict};
use crate::data::template::SpanMethod;
use crate::data::tokenize::Supervision;
use crate::recipe::RecipeFile;
use crate::run::{Environment, inspect as use_case};

/// Shows rows.
pub(super) fn inspect(arguments: &InspectArguments, console: &mut Console<'_>) -> io::Result<Exit> {
    let file = match RecipeFile::open(&arguments.recipe.recipe, &arguments.recipe.overrides) {
        Ok(file) => file,
        Err(error) => return Ok(console.failure(&error.into())),
    };
    let cache = hub_cache();
    let environment = Environment { hub_cache: &cache, stop: &|| false };
    let inspection = match use_case::inspect(file, &environment) {
        Ok(inspection) => inspection,
        Err(error) => return Ok(console.failure(&error)),
    };
    // Colour tells supervised text apart where it is shown; brackets do where it is not.
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
        let row = match inspection.row(number) {
            Ok(row) => row,
            Err(error) => {
                exit = console.failure(&error);
                continue;
            }
        };
        shown += 1;
        match console.json() {
            true => console.event("row", &as_json(number, &row)),
            false => show(number, &row, colored, console.out())?,
        }
    }
    let template = inspection.template().map(ToString::to_string);
    console.event("result", &json!({"template": template, "rows": inspection.rows(), "shown": shown}));
    Ok(exit)
}

fn show(number: u64, row: &InspectedRow, colored: bool, out: &mut dyn Write) -> io::Result<()> {
    let share = 100.0 * row.supervised_tokens as f64 / row.kept_tokens.max(1) as f64;
    let held_out = if row.held_out { ", held out" } else { "" };
    writeln!(
        out,
        "{} {}{held_out}: {} tokens, {} supervised ({share:.0} %) {}",
        paint(STRONG, format!("row {number}")),
        row.place,
        row.kept_tokens,
        row.supervised_tokens,
        paint(FAINT, method(row.supervision)),
    )?;
    if let Some(verdict) = verdict(&row.verdict) {
        writeln!(out, "{}", paint(WARNING, verdict))?;
    }
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

/// Styles each line by itself, so that a pager cutting lines cuts no style.
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
        Supervision::Template(SpanMethod::Prefix) => "by rendering each turn's beginning",
        Supervision::Template(SpanMethod::Differential) => "by where the rendering changes with the answer",
        Supervision::Completion => "all behind the prompt",
        Supervision::Labels => "by the record's labels",
        Supervision::Everything => "everything",
    }
}

fn verdict(verdict: &Verdict) -> Option<String> {
    match verdict {
        Verdict::Whole => None,
        Verdict::Truncated => Some("longer than `max_seq_len`: what follows ✂ is cut off".into()),
        Verdict::TooLong => Some("left out: longer than `max_seq_len`".into()),
        Verdict::Empty => Some("left out: nothing in it is supervised".into()),
        Verdict::Refused(error) => Some(format!("refused: {error}")),
    }
}

fn as_json(number: u64, row: &InspectedRow) -> serde_json::Value {
    let tokens: Vec<_> = row
        .pieces
        .iter()
        .map(|piece| json!({"id": piece.id, "text": piece.text, "supervised": piece.supervised, "label": piece.label}))
        .collect();
    json!({
        "row": number,
        "place": row.place.to_string(),
        "held_out": row.held_out,
        "kept_tokens": row.kept_tokens,
        "supervised_tokens": row.supervised_tokens,
        "supervision": method(row.supervision),
        "verdict": verdict(&row.verdict).unwrap_or_else(|| "whole".into()),
        "tokens": tokens,
    })
}
