//! A run in Markdown, as the summary of a CI job shows it: figures, a chart of the losses, and the samples.

use super::read::Run;
use super::summary::State;
use crate::units::{Bytes, Grouped};

/// Points of a line in the chart.
const POINTS: usize = 40;

/// The text.
pub(super) fn markdown(run: &Run) -> String {
    let mut text = format!("## {} ({})\n\n| | |\n|---|---|\n", run.folder.display(), State::of(run).word());
    let mut row = |name: &str, value: String| text += &format!("| {name} | {value} |\n");
    if let (Some(first), Some(last)) = (run.evaluations.first(), run.evaluations.last()) {
        row(
            "held-out loss",
            format!("{:.4} before, **{:.4}** after step {}", first.eval_loss, last.eval_loss, last.step),
        );
    }
    if let Some(last) = run.steps.last() {
        let total = run.record.as_ref().map_or(0, |record| record.total_steps);
        row(
            "training loss",
            format!("{:.4} at step {} of {}", last.loss, Grouped(last.step), Grouped(total)),
        );
        row(
            "tokens",
            format!("{}, {} a second", Grouped(last.tokens), Grouped(last.tokens_per_second as u64)),
        );
    }
    if let Some(bytes) = run.peak_memory().of_plan() {
        row("memory", format!("{} of {} planned", Bytes(bytes), Bytes(run.planned())));
    }
    let problem = run.record.as_ref().and_then(|record| record.sessions.last());
    if let Some(problem) = problem.and_then(|session| session.problem.as_deref()) {
        row("problem", cell(problem));
    }
    text += &chart(run);
    let samples = run.record.as_ref().map_or(&[][..], |record| &record.samples);
    if !samples.is_empty() {
        text += "\n| prompt | before | after |\n|---|---|---|\n";
        for sample in samples {
            let after = sample.after.as_deref().unwrap_or("not yet");
            text += &format!("| {} | {} | {} |\n", cell(&sample.prompt), cell(&sample.before), cell(after));
        }
    }
    text
}

/// The losses as a Mermaid chart; nothing where there are too few.
fn chart(run: &Run) -> String {
    let losses: Vec<f64> = run.steps.iter().map(|step| step.loss).filter(|loss| loss.is_finite()).collect();
    let (Some(first), Some(last)) = (run.steps.first(), run.steps.last()) else { return String::new() };
    if losses.len() < 3 {
        return String::new();
    }
    let group = losses.len().div_ceil(POINTS);
    let means: Vec<String> = losses
        .chunks(group)
        .map(|chunk| format!("{:.4}", chunk.iter().sum::<f64>() / chunk.len() as f64))
        .collect();
    format!(
        "\n```mermaid\nxychart-beta\n  title \"training loss\"\n  x-axis \"step\" {} --> {}\n  y-axis \"loss\"\n  line [{}]\n```\n",
        first.step,
        last.step,
        means.join(", ")
    )
}

/// A text in a cell of a table: on one line, with no markup of its own.
fn cell(text: &str) -> String {
    let mut cell = String::new();
    for character in text.split_whitespace().collect::<Vec<_>>().join(" ").chars() {
        match character {
            '&' => cell += "&amp;",
            '<' => cell += "&lt;",
            '>' => cell += "&gt;",
            '|' | '`' | '*' | '_' | '[' | ']' | '\\' | '@' | '#' | '!' => cell += &format!("\\{character}"),
            character => cell.push(character),
        }
    }
    cell
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_have_no_markup() {
        assert_eq!(cell("a | b\n<b>*c*</b> `d`"), "a \\| b &lt;b&gt;\\*c\\*&lt;/b&gt; \\`d\\`");
    }
}
