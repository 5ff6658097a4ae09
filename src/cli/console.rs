//! The output of a command: text for people on standard error and output, or JSON lines for programs on standard
//! output.
//!
//! # The events
//!
//! With `--json` each line of standard output is one JSON object; its `event` names the kind. The first is `begin`,
//! with the version of this format. The last is `end`, with the exit code. A command that exits with 0 emits exactly
//! one `result` in between. Within a version, keys and events are only added: ignore unknown ones.
//!
//! An invalid command line with `--json` anywhere on it gives the same events: `begin`, with `command` null if it is
//! unknown, a `problem`, and `end`.
//!
//! | event | of | keys |
//! |---|---|---|
//! | `begin` | all | `version` (1), `tune` (the program's version), `command` |
//! | `progress` | all long ones | `phase` (`surveying`, `loading`, `evaluating`, `answering`, `measuring`, `merging`, `comparing`, `writing`, `text`, `weights`, `rows`), `done`, `total`; at most one a second |
//! | `note`, `warning` | all | `message` |
//! | `problem` | all | `message`, and where known `code`, `help`, `file`, `line`, `column`, `end_line`, `end_column` |
//! | `data` | run, validate, reproduce | statistics of the rows: `train`, `held_out`, `schedule`, … |
//! | `targets` | run, validate, reproduce | `targets`: projection, layers, shape, rank, parameters |
//! | `start` | run, reproduce | `total_steps`, `done_steps`, `trainable_parameters`, `output_dir`, … |
//! | `step` | run, reproduce | a line of `metrics.jsonl` |
//! | `evaluation` | run, reproduce | an evaluation line of `metrics.jsonl` |
//! | `diverged` | run, reproduce | the line of `metrics.jsonl` about a skipped or reverted step |
//! | `input_changed` | run, reproduce | `input`: the input that changed on disk after it was read |
//! | `gate` | run, reproduce | `passed`, `message` |
//! | `checkpoint` | run, reproduce | `path`, `best` |
//! | `sample` | run, reproduce | `prompt`, `before`, `after` |
//! | `sampled` | run, reproduce | `step`, `prompt`, `answer`: during training, by `[sample] every` |
//! | `row` | inspect | one row, token by token |
//! | `text` | generate, chat | a part of an answer: `row` or `turn` from 0, `text` |
//! | `answer` | generate, chat | `row` or `turn`, `response`, `finish`, `prompt_tokens`, `response_tokens`; of generate also the keys of the prompt |
//! | `result` | all | the result of the command |
//! | `end` | all | `exit_code`, `outcome` |

use std::io::{self, ErrorKind, Write};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};

use super::annotations::{self, Level};
use super::args::OutputArguments;
use super::exit::Exit;
use super::finding::{Finding, findings};
use super::progress::Progress;
use super::report;
use super::style::{STRONG, paint};
use crate::adapter::table;
use crate::adapter::target::Target;
use crate::data::survey::Statistics;
use crate::run;
use crate::train::event::{Event, Observer};

/// Version of the event format.
const VERSION: u32 = 1;
/// Shortest time between `progress` events of one phase.
const INTERVAL: Duration = Duration::from_secs(1);

/// Writes a command's output, for people or as events.
pub(super) struct Console<'a> {
    out: &'a mut dyn Write,
    nowhere: io::Sink,
    form: OutputArguments,
    progress: Option<Progress>,
    reported: Option<(&'static str, Instant)>,
    fault: Option<io::Error>,
}

impl<'a> Console<'a> {
    /// Starts the output of `command`; `None` if the command is unknown.
    pub(super) fn new(command: Option<&str>, form: OutputArguments, out: &'a mut dyn Write) -> Self {
        let mut console =
            Self { out, nowhere: io::sink(), form, progress: None, reported: None, fault: None };
        let tune = env!("CARGO_PKG_VERSION");
        console.event("begin", &json!({"version": VERSION, "tune": tune, "command": command}));
        console
    }

    /// Standard output for people; a sink with `--json`.
    pub(super) fn out(&mut self) -> &mut dyn Write {
        if self.form.json { &mut self.nowhere } else { self.out }
    }

    /// Whether the output is JSON.
    pub(super) fn json(&self) -> bool {
        self.form.json
    }

    /// Emits an event; does nothing without `--json`.
    pub(super) fn event(&mut self, name: &str, fields: &impl Serialize) {
        if !self.form.json || self.fault.is_some() {
            return;
        }
        let mut object = serde_json::Map::from_iter([("event".to_owned(), Value::from(name))]);
        match serde_json::to_value(fields) {
            Ok(Value::Object(fields)) => object.extend(fields),
            Ok(Value::Null) => {}
            Ok(value) => _ = object.insert("value".into(), value),
            Err(error) => self.fault = Some(error.into()),
        }
        let line = Value::Object(object).to_string() + "\n";
        // A closed pipe does not stop a training run.
        if let Err(error) = self.out.write_all(line.as_bytes()).and_then(|()| self.out.flush()) {
            self.fault = Some(error);
        }
    }

    /// Reports why a use case failed, as text, annotations and events; returns its exit code.
    pub(super) fn failure(&mut self, error: &run::Error) -> Exit {
        self.quiet();
        let exit = report::failure(error);
        for finding in findings(error) {
            self.problem(&finding);
        }
        exit
    }

    /// Prints the commands that go on after a failure, each on a line of its own.
    pub(super) fn ways_on(&self, ways: &[(&str, String)]) {
        for (what, command) in ways {
            let _ = writeln!(anstream::stderr(), "{what}:\n  {}", paint(STRONG, command));
        }
    }

    /// Reports an error that the command itself found.
    pub(super) fn error(&mut self, message: &str, help: Option<&str>) {
        self.quiet();
        report::error(message, help);
        self.problem(&Finding::new(message, help));
    }

    /// Reports a problem that was already shown as text, as an annotation and an event.
    pub(super) fn problem(&mut self, finding: &Finding) {
        self.annotate(Level::Error, finding);
        self.event("problem", finding);
    }

    /// Reports a warning as an annotation and an event.
    pub(super) fn warning(&mut self, text: &str) {
        self.annotate(Level::Warning, &Finding::new(text, None));
        self.event("warning", &json!({"message": text}));
    }

    fn annotate(&self, level: Level, finding: &Finding) {
        if let Some(system) = self.form.annotations {
            let _ = writeln!(io::stderr().lock(), "{}", annotations::line(system, level, finding));
        }
    }

    /// Removes the progress bars.
    pub(super) fn quiet(&mut self) {
        self.progress = None;
    }

    /// Ends the output with the `end` event.
    ///
    /// # Errors
    /// Standard output could not be written, except because its reader closed it.
    pub(super) fn end(mut self, exit: Exit) -> io::Result<Exit> {
        self.quiet();
        self.event("end", &json!({"exit_code": exit.code(), "outcome": exit.name()}));
        match self.fault {
            Some(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
            _ => Ok(exit),
        }
    }

    /// Progress in items.
    pub(super) fn count(&mut self, phase: &'static str, done: u64, total: u64) {
        match self.form.json {
            true => self.phase(phase, done, total),
            false => self.progress.get_or_insert_with(Progress::new).count(phase, done, total),
        }
    }

    /// Progress in bytes.
    pub(super) fn bytes(&mut self, phase: &'static str, done: u64, total: u64) {
        match self.form.json {
            true => self.phase(phase, done, total),
            false => self.progress.get_or_insert_with(Progress::new).bytes(phase, done, total),
        }
    }

    fn phase(&mut self, phase: &'static str, done: u64, total: u64) {
        let due = match self.reported {
            Some((reported, at)) => reported != phase || at.elapsed() >= INTERVAL || done >= total,
            None => true,
        };
        if due {
            self.reported = Some((phase, Instant::now()));
            self.event("progress", &json!({"phase": phase, "done": done, "total": total}));
        }
    }

    fn emit(&mut self, event: &Event<'_>) {
        match event {
            Event::Loading { done, total } => self.phase("loading", *done, *total),
            Event::Surveying { done, total } => self.phase("surveying", *done, *total),
            Event::Evaluating { done, total } => self.phase("evaluating", *done, *total),
            Event::Surveyed(survey) => self.event("data", &Statistics::of(survey)),
            Event::Targets(targets) => self.event("targets", &targets_of(targets)),
            Event::Start(start) => self.event("start", start),
            Event::Step { logged: Some(report), .. } => self.event("step", report),
            Event::Evaluated(report) => self.event("evaluation", report),
            Event::Checkpoint { path, best } => {
                self.event("checkpoint", &json!({"path": path.display().to_string(), "best": best}));
            }
            Event::Diverged(report) => self.event("diverged", report),
            Event::Judged(verdicts) => {
                for verdict in *verdicts {
                    self.event("gate", &json!({"passed": verdict.passed, "message": verdict.to_string()}));
                }
            }
            Event::Sampled { step, answers } => {
                for (prompt, answer) in *answers {
                    self.event("sampled", &json!({"step": step, "prompt": prompt, "answer": answer}));
                }
            }
            Event::InputChanged(what) => self.event("input_changed", &json!({"input": what})),
            Event::Note(text) => self.event("note", &json!({"message": text})),
            // `warning` reports warnings; answers are reported with those after training.
            Event::Step { logged: None, .. } | Event::Answered(_) | Event::Warning(_) => {}
        }
    }
}

impl Observer for Console<'_> {
    fn observe(&mut self, event: &Event<'_>) {
        if let Event::Warning(text) = event {
            self.warning(text);
        }
        match self.form.json {
            true => self.emit(event),
            false => self.progress.get_or_insert_with(Progress::new).observe(event),
        }
    }
}

/// The adapted projections, one entry per kind.
pub(super) fn targets_of(targets: &[Target]) -> Value {
    let rows: Vec<Value> = table::table(targets)
        .iter()
        .map(|row| {
            json!({
                "projection": row.name,
                "layers": row.layers,
                "out_features": row.out_features,
                "in_features": row.in_features,
                "rank": row.rank,
                "alpha": row.alpha,
                "scaling": row.scaling,
                "parameters": row.parameters,
            })
        })
        .collect();
    json!({"targets": rows})
}
