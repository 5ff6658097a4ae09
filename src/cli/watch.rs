//! `tune watch`: a run as it goes, in a few lines that are redrawn in place.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, SystemTime};

use clap::Args;
use serde_json::json;
use textwrap::core::display_width;

use super::clock::Span;
use super::console::Console;
use super::environment::Context;
use super::exit::Exit;
use super::failure::Failure;
use super::page::no_run;
use super::style::{FAINT, GOOD, STRONG, interactive, output_width, paint, visible};
use crate::report::{self, State, Summary};
use crate::run::named::run_folder;
use crate::units::{Bytes, Grouped};

/// Time between two looks at the folder.
const INTERVAL: Duration = Duration::from_secs(1);
/// Time between two looks at whether the user wants to leave.
const PATIENCE: Duration = Duration::from_millis(50);
/// Heights of the losses' bars.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Arguments of `tune watch`.
#[derive(Debug, Args)]
pub struct WatchArguments {
    /// The folder of a run
    pub run: PathBuf,
    /// Show the run once, and end
    #[arg(long)]
    pub once: bool,
}

/// Shows a run until it ends, or until Ctrl-C.
pub(super) fn watch(
    arguments: &WatchArguments,
    context: &Context<'_>,
    console: &mut Console<'_>,
) -> Result<Exit, Failure> {
    let run = run_folder(&arguments.run);
    let is_live = !arguments.once && !console.json() && io::stdout().is_terminal() && interactive();
    let mut drawn = 0;
    loop {
        let summary = match report::summary(&run) {
            Ok(summary) => summary,
            Err(error) => return Ok(no_run(&error, console)),
        };
        let width = output_width().unwrap_or(80);
        let lines = lines(&summary, width);
        if drawn > 0 {
            // Up to the first line of the last picture, and away with it.
            write!(console.out(), "\u{1b}[{drawn}A\u{1b}[J")?;
        }
        for line in &lines {
            writeln!(console.out(), "{line}")?;
        }
        console.out().flush()?;
        drawn = lines.len();
        if !is_live || summary.state != State::Running {
            console.event("result", &as_json(&summary));
            return Ok(Exit::Done);
        }
        for _ in 0..INTERVAL.as_millis() / PATIENCE.as_millis() {
            if context.signals.raised() {
                return Ok(Exit::Done);
            }
            thread::sleep(PATIENCE);
        }
    }
}

fn as_json(summary: &Summary) -> serde_json::Value {
    json!({
        "run": summary.folder.display().to_string(),
        "state": summary.state.word(),
        "step": summary.step,
        "total_steps": summary.total_steps,
        "loss": summary.losses.last(),
        "eval_loss": summary.held_out.last().map(|(_, loss)| loss),
        "learning_rate": summary.learning_rate,
        "tokens_per_second": summary.tokens_per_second,
        "seconds_left": summary.left.map(|left| left.as_secs()),
        "memory_bytes": summary.memory,
    })
}

/// The picture.
fn lines(summary: &Summary, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line =
        |name: &str, text: String| lines.push(format!("{} {text}", paint(STRONG, format!("{name:<9}"))));
    let style = if summary.state == State::Failed { super::style::ERROR } else { GOOD };
    let (state, folder) = (summary.state.word(), summary.folder.display().to_string());
    let folder = one_line(&folder, width.saturating_sub(state.len() + 2));
    line("run", format!("{folder}  {}", paint(style, state)));
    let total = summary.total_steps.max(summary.step).max(1);
    let percent = 100 * summary.step / total;
    line("step", format!("{} of {} ({percent} %)", Grouped(summary.step), Grouped(summary.total_steps)));
    if let Some(last) = summary.losses.last() {
        let chart = bars(&summary.losses, width.saturating_sub(24).min(60));
        line("loss", format!("{last:<8.4} {}", paint(FAINT, chart)));
    }
    if let (Some((_, first)), Some((step, last))) = (summary.held_out.first(), summary.held_out.last()) {
        let begun = if *step > 0 { format!(", {first:.4} at first") } else { String::new() };
        line("held out", format!("{last:<8.4} after step {}{begun}", Grouped(*step)));
    }
    if let Some(rate) = summary.learning_rate {
        line("rate", format!("{rate:.2e}"));
    }
    let mut speed: Vec<String> = Vec::new();
    speed.extend(summary.tokens_per_second.map(|pace| format!("{} tokens/s", Grouped(pace as u64))));
    speed.extend(summary.elapsed(SystemTime::now()).map(|time| format!("{} elapsed", Span(time))));
    if summary.state == State::Running {
        speed.extend(summary.left.map(|left| format!("about {} left", Span(left))));
    }
    if !speed.is_empty() {
        line("pace", speed.join(", "));
    }
    if let Some(memory) = summary.memory {
        let planned =
            summary.planned.map_or_else(String::new, |planned| format!(" of {} planned", Bytes(planned)));
        line("memory", format!("{}{planned}", Bytes(memory)));
    }
    for (prompt, answer) in &summary.samples {
        line("prompt", one_line(prompt, width));
        line("answer", one_line(answer, width));
    }
    if let Some(problem) = &summary.problem {
        line("problem", one_line(problem, width));
    }
    lines
}

/// A text in the room that a line has.
fn one_line(text: &str, width: usize) -> String {
    let room = width.saturating_sub(12).max(20);
    let text = visible(&text.split_whitespace().collect::<Vec<_>>().join(" "));
    if display_width(&text) <= room {
        return text;
    }
    let mut used = 1;
    let fits = |character: &char| {
        used += display_width(character.encode_utf8(&mut [0; 4]));
        used <= room
    };
    text.chars().take_while(fits).chain(['…']).collect()
}

/// Values as bars, the means of as many groups as there are columns.
fn bars(values: &[f64], columns: usize) -> String {
    let group = values.len().div_ceil(columns.max(1)).max(1);
    let means: Vec<f64> =
        values.chunks(group).map(|chunk| chunk.iter().sum::<f64>() / chunk.len() as f64).collect();
    let (least, most) =
        means.iter().fold((f64::MAX, f64::MIN), |(least, most), value| (least.min(*value), most.max(*value)));
    let bar = |value: &f64| match most > least {
        true => BARS[(((value - least) / (most - least) * 7.0).round() as usize).min(7)],
        false => BARS[0],
    };
    means.iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_high_as_their_values() {
        assert_eq!(bars(&[7.0, 0.0, 3.5], 10), "█▁▅");
        assert_eq!(bars(&[1.0, 3.0, 0.0, 0.0], 2), "█▁");
        assert_eq!((bars(&[2.0, 2.0], 8), bars(&[], 8)), ("▁▁".to_owned(), String::new()));
    }

    #[test]
    fn long_answers_keep_to_their_line() {
        assert_eq!(one_line("a\n b", 80), "a b");
        assert_eq!(one_line(&"x".repeat(100), 40).chars().count(), 28);
        // Wide characters take two columns.
        assert_eq!(one_line(&"水".repeat(100), 40), format!("{}…", "水".repeat(13)));
    }
}
