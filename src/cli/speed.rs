//! The speed of an answer, as a line on standard error.

use std::io::Write;
use std::time::Duration;

use super::style::{FAINT, paint};
use crate::generate::Answer;
use crate::units::Grouped;

/// Prints the speed after `name`.
pub(super) fn show(name: &str, answer: &Answer) {
    let timing = answer.timing;
    let prompt = part(timing.prompt_tokens, timing.prompt);
    let decode = match timing.passes {
        0 => String::new(),
        passes => format!("; then {}", part(passes, timing.decode)),
    };
    let known = match answer.prompt_tokens.saturating_sub(timing.prompt_tokens) {
        0 => String::new(),
        known => format!(", {} more cached", Grouped(known as u64)),
    };
    let text = format!("{name}prompt {prompt}{known}{decode}; ended by {}", answer.ending.name());
    // A closed pipe changes nothing.
    let _ = writeln!(anstream::stderr(), "{}", paint(FAINT, text));
}

/// Prints the speed of answers that were generated side by side.
pub(super) fn show_together(answers: usize, tokens: usize, time: Duration) {
    let text = format!("{} answers, prompts included: {}", Grouped(answers as u64), part(tokens, time));
    let _ = writeln!(anstream::stderr(), "{}", paint(FAINT, text));
}

fn part(tokens: usize, time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let rate = if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
    format!("{} tokens in {seconds:.2} s ({rate:.1} tokens/s)", Grouped(tokens as u64))
}
