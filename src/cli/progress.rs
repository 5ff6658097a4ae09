//! Shows a run's events: progress bars on a terminal, plain lines elsewhere. The only user of indicatif.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::clock::Clock;
use super::style::{self, FAINT, GOOD, STRONG, WARNING, error_width, paint, wrapped};
use super::tables;
use crate::objective::statistics::Means;
use crate::train::divergence::DivergenceReport;
use crate::train::event::{EvaluationReport, Event, Observer, Start, StepReport};
use crate::units::{Bytes, Grouped};

/// Shortest time between progress lines of one phase in a plain log.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// Lines about steps that stay on a terminal, above the bar.
const KEPT_LINES: u64 = 10;
/// Further lines of a text begin here, below the text behind its label.
const INDENT: &str = "        ";
/// Below this width the bar of a long run leaves out the tokens per second.
const ROOMY: usize = 90;

/// An [`Observer`] that writes to standard error.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    phase: Option<&'static str>,
    interactive: bool,
    last_plain: Option<Instant>,
    total_steps: u64,
    /// The bar's words about the last logged step.
    message: String,
    /// Tenths of the run whose line was shown.
    tenths: u64,
    /// The times of the run whose bar is shown.
    clock: Option<Arc<Mutex<Clock>>>,
}

impl Progress {
    /// Bars if standard error is a terminal, lines otherwise.
    pub(super) fn new() -> Self {
        Self {
            bar: None,
            phase: None,
            interactive: style::interactive(),
            last_plain: None,
            total_steps: 0,
            message: String::new(),
            tenths: 0,
            clock: None,
        }
    }

    /// A permanent line, above the bar if there is one.
    fn line(&self, text: &str) {
        let text = wrapped(text, error_width(), INDENT);
        let write = || {
            // A closed pipe does not stop a training run.
            let _ = writeln!(anstream::stderr(), "{text}");
        };
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// Progress in items.
    pub(super) fn count(&mut self, name: &'static str, done: u64, total: u64) {
        self.phase(name, "{msg}  {wide_bar:.green/dim} {pos}/{len}", done, total);
    }

    /// Progress in bytes.
    pub(super) fn bytes(&mut self, name: &'static str, done: u64, total: u64) {
        let template =
            "{msg}  {wide_bar:.green/dim} {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}";
        self.phase(name, template, done, total);
    }

    /// Progress of a phase before or between training steps.
    fn phase(&mut self, name: &'static str, template: &str, done: u64, total: u64) {
        if self.phase != Some(name) {
            self.clear();
            self.phase = Some(name);
            self.last_plain = Some(Instant::now());
            if self.interactive {
                self.bar = Some(bar(total, template).with_message(name));
            }
        }
        match &self.bar {
            Some(bar) => bar.set_position(done),
            None => {
                let due = self.last_plain.is_none_or(|last| last.elapsed() >= PLAIN_INTERVAL);
                if due && done < total {
                    self.last_plain = Some(Instant::now());
                    self.line(&format!("{name}: {:.0} %", 100.0 * done as f64 / total.max(1) as f64));
                }
            }
        }
        if done >= total {
            self.clear();
        }
    }

    /// Applies `change` to the times of the run under way.
    fn time(&self, change: impl FnOnce(&mut Clock, Instant)) {
        if let Some(clock) = &self.clock {
            change(&mut clock.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
        }
    }

    /// Progress of an evaluation: part of the run's bar, or a phase of its own.
    fn evaluating(&mut self, done: u64, total: u64) {
        self.time(Clock::evaluating);
        match (&self.clock, &self.bar) {
            (Some(_), Some(bar)) => bar.set_message(format!("evaluating {done}/{total}")),
            (Some(_), None) => {}
            (None, _) => {
                self.phase("evaluating", "{msg}  {wide_bar:.green/dim} {pos}/{len} examples", done, total);
            }
        }
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.phase = None;
    }

    fn start(&mut self, start: &Start) {
        self.total_steps = start.total_steps;
        self.tenths = start.done_steps.saturating_mul(KEPT_LINES) / start.total_steps.max(1);
        self.line(&format!(
            "{}  {} of {} parameters trained ({:.2} %), frozen base {} in memory, {}",
            paint(STRONG, "model"),
            Grouped(start.trainable_parameters),
            Grouped(start.base_parameters),
            100.0 * start.trainable_parameters as f64 / start.base_parameters.max(1) as f64,
            Bytes(start.frozen_bytes),
            start.compute,
        ));
        self.line(&format!(
            "{}   {} examples per epoch, {} held out",
            paint(STRONG, "data"),
            Grouped(start.training_examples),
            Grouped(start.held_out_examples),
        ));
        self.line(&format!("{} {}", paint(STRONG, "memory"), tables::plan_line(&start.plan)));
        let from = match start.done_steps {
            0 => String::new(),
            done => format!(", continuing after step {}", Grouped(done)),
        };
        self.line(&format!(
            "{}  {} steps, output in {}{from}",
            paint(STRONG, "train"),
            Grouped(start.total_steps),
            start.output_dir.display()
        ));
        if self.interactive {
            let eval_steps = (start.held_out_examples > 0).then_some(start.eval_steps);
            let clock = Clock::new(start.done_steps, start.total_steps, eval_steps, Instant::now());
            let clock = Arc::new(Mutex::new(clock));
            self.clear();
            self.phase = Some("training");
            let bar = run_bar(start.total_steps, Arc::clone(&clock));
            bar.set_position(start.done_steps);
            (self.bar, self.clock) = (Some(bar), Some(clock));
        }
    }

    fn step(&mut self, step: u64, logged: Option<&StepReport>) {
        self.time(|clock, now| clock.step(step, now));
        if let Some(report) = logged {
            self.message = format!("loss {:.4}", report.loss);
            if self.total_steps < 10_000 || error_width().is_some_and(|width| width >= ROOMY) {
                self.message += &format!("  {} tokens/s", Grouped(report.tokens_per_second as u64));
            }
            let tenths = step.saturating_mul(KEPT_LINES) / self.total_steps.max(1);
            if !self.interactive || tenths > self.tenths {
                self.tenths = tenths;
                let is_narrow = error_width().is_some_and(|width| width < ROOMY);
                self.line(&step_line(report, self.total_steps, is_narrow));
            }
        }
        if let Some(bar) = &self.bar {
            bar.set_message(self.message.clone());
            bar.set_position(step);
        }
    }

    fn diverged(&mut self, report: &DivergenceReport) {
        let what_next = match report.rolled_back {
            true => format!("rolled back to step {}", report.continued_from),
            false => "step skipped".to_owned(),
        };
        self.line(&format!(
            "{} the {} of step {} is {}: {what_next}; rows {}",
            paint(WARNING, "warning:"),
            report.diverged,
            report.step,
            report.value,
            report.rows.join(", ")
        ));
    }

    fn evaluated(&mut self, report: &EvaluationReport) {
        if self.phase == Some("evaluating") {
            self.clear();
        }
        self.time(Clock::evaluated);
        if let (Some(bar), Some(_)) = (&self.bar, &self.clock) {
            bar.set_message(self.message.clone());
        }
        self.line(&format!(
            "{}   held-out loss {}{} after step {} ({} tokens)",
            paint(STRONG, "eval"),
            paint(GOOD, format!("{:.4}", report.eval_loss)),
            answers(report.answers.as_ref()),
            report.step,
            Grouped(report.eval_tokens)
        ));
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Observer for Progress {
    fn observe(&mut self, event: &Event<'_>) {
        match event {
            Event::Loading { done, total } => self.phase(
                "loading weights",
                "{msg}  {wide_bar:.green/dim} {pos}/{len} tensors",
                *done,
                *total,
            ),
            Event::Surveying { done, total } => self.phase(
                "reading examples",
                "{msg}  {wide_bar:.green/dim} {human_pos}/{human_len} rows",
                *done,
                *total,
            ),
            Event::Evaluating { done, total } => self.evaluating(*done, *total),
            Event::Targets(targets) => {
                for line in tables::targets(targets) {
                    self.line(&line);
                }
            }
            Event::Start(start) => self.start(start),
            Event::Step { step, logged } => self.step(*step, *logged),
            Event::Diverged(report) => self.diverged(report),
            Event::Evaluated(report) => self.evaluated(report),
            Event::Judged(verdicts) => {
                for verdict in *verdicts {
                    let style = if verdict.passed { GOOD } else { WARNING };
                    self.line(&format!("{}   {}", paint(STRONG, "gate"), paint(style, verdict)));
                }
            }
            // A bar has the losses above it; the log of a run has all its files.
            Event::Checkpoint { best: true, .. } if self.interactive => {}
            Event::Checkpoint { path, best } => {
                let what = if *best { "best so far" } else { "checkpoint" };
                self.line(&paint(FAINT, format!("saved  {} ({what})", path.display())));
            }
            // Shown together with later events.
            Event::Surveyed(_) | Event::Answered(_) | Event::InputChanged(_) => {}
            Event::Sampled { step, answers } => {
                for (prompt, answer) in *answers {
                    let text = format!("{} step {step}: {}", paint(STRONG, "sample"), style::visible(prompt));
                    self.line(&text);
                    self.line(&format!("{INDENT}{}", style::visible(answer.trim()).replace('\n', " ")));
                }
            }
            Event::Note(text) => self.line(&format!("{}   {text}", paint(STRONG, "note"))),
            Event::Warning(text) => self.line(&format!("{} {text}", paint(WARNING, "warning:"))),
        }
    }
}

/// The bar of a run, from its first step to its last.
fn run_bar(total: u64, clock: Arc<Mutex<Clock>>) -> ProgressBar {
    let template = "{msg}  {wide_bar:.green/dim} {pos}/{len}  {clock}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let words = move |_: &ProgressState, out: &mut dyn std::fmt::Write| {
        let clock = clock.lock().unwrap_or_else(PoisonError::into_inner);
        let _infallible = out.write_str(&clock.words(Instant::now()));
    };
    styled(total, style.with_key("clock", words)).with_message("training")
}

fn bar(total: u64, template: &str) -> ProgressBar {
    styled(total, ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn styled(total: u64, style: ProgressStyle) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr())
        .with_style(style.progress_chars("━╸─"));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Margin and accuracy of a preference objective.
fn answers(means: Option<&Means>) -> String {
    let Some(means) = means else { return String::new() };
    let margin = means.reward_margin.map(|margin| format!("  margin {margin:.3}")).unwrap_or_default();
    let accuracy =
        means.preference_accuracy.map(|share| format!("  accuracy {share:.2}")).unwrap_or_default();
    margin + &accuracy
}

/// One logged step as a plain line; on a narrow terminal without its memory, which `tune watch` shows.
fn step_line(report: &StepReport, total_steps: u64, is_narrow: bool) -> String {
    let peak = report.peak_memory_bytes.filter(|_| !is_narrow);
    format!(
        "step {}/{}  loss {:.4}{}  grad {:.3}  lr {:.2e}  {} tokens/s{}",
        report.step,
        total_steps,
        report.loss,
        answers(report.answers.as_ref()),
        report.grad_norm,
        report.learning_rate,
        Grouped(report.tokens_per_second as u64),
        peak.map(|bytes| format!("  peak {}", Bytes(bytes))).unwrap_or_default(),
    )
}
