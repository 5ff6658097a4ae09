//! `run.json`: the record of a run, written when it starts and again when it ends.
//!
//! A [`Journal`] records what the metrics do not contain from a run's events, and passes all events on. The last
//! session of a running or killed run has no end.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{Error, Machine, RECORD_FILE};
use crate::adapter::peft;
use crate::assets;
use crate::data::survey::Statistics;
use crate::files;
use crate::train::event::{EvaluationReport, Event, Observer, Sample, Start};
use crate::units::Utc;

/// Layout of the file.
const VERSION: u32 = 1;
/// Largest number of recorded warnings.
const MOST_WARNINGS: usize = 200;

/// The record of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Layout of the file.
    pub version: u32,
    /// Version of the program.
    pub tune: String,
    /// The starts of the run: the first, and one for every resume.
    pub sessions: Vec<Session>,
    /// Total number of optimizer steps.
    pub total_steps: u64,
    /// Trained parameters.
    pub trainable_parameters: u64,
    /// Parameters of the base model.
    pub base_parameters: u64,
    /// Memory of the frozen weights, in bytes.
    pub frozen_bytes: u64,
    /// Training examples per epoch.
    pub training_examples: u64,
    /// Held-out examples.
    pub held_out_examples: u64,
    /// Compute dtype and device.
    pub compute: String,
    /// Statistics of the rows, if they were read before training.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub data: Option<Statistics>,
    /// The recipe's sample prompts and their answers.
    #[serde(default)]
    pub samples: Vec<SampleRecord>,
    /// Warnings.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Inputs that changed on disk after they were read; the run used the versions in `recipe.lock`.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub changed_on_disk: Vec<String>,
    /// SHA-256 of the finished adapter's tensors.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub adapter_sha256: Option<String>,
    /// Held-out loss before the first step.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub first_evaluation: Option<EvaluationReport>,
    /// Held-out loss at the last evaluation.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_evaluation: Option<EvaluationReport>,
}

/// One start of a run, and its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// When it started, in UTC.
    pub started: String,
    /// When it ended; absent while it runs, or if it was killed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ended: Option<String>,
    /// How it ended.
    pub status: Status,
    /// The error, if there was one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub problem: Option<String>,
    /// Steps done before it.
    pub from_step: u64,
    /// The last step done when it ended.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub to_step: Option<u64>,
    /// Where it ran.
    pub machine: Machine,
    /// How many ranks trained together, where several did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ranks: Option<usize>,
}

/// The status of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Running, or killed.
    #[default]
    Running,
    /// Finished; the adapter is written.
    Done,
    /// Stopped by a signal; can be resumed.
    Stopped,
    /// Ended by an error.
    Failed,
}

/// A sample prompt with its answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleRecord {
    /// The prompt.
    pub prompt: String,
    /// The answer of the base before training.
    pub before: String,
    /// The answer with the trained adapter.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub after: Option<String>,
}

/// How a run ended.
pub enum End<'a> {
    /// With an adapter.
    Done {
        /// Its folder.
        adapter: &'a Path,
        /// The samples, where there are any.
        samples: &'a [Sample],
    },
    /// Stopped by a signal.
    Stopped,
    /// With an error.
    Failed(String),
}

impl Record {
    /// Reads the record of a run folder.
    ///
    /// # Errors
    /// It does not exist, or is not a record of this version.
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(RECORD_FILE);
        let damaged = |reason: String| Error::Damaged { path: path.clone(), reason };
        let record: Self =
            serde_json::from_str(&super::read(&path)?).map_err(|error| damaged(error.to_string()))?;
        if record.version != VERSION {
            let reason = format!("it has version {}; this release reads version {VERSION}", record.version);
            return Err(damaged(reason));
        }
        Ok(record)
    }

    fn write(&self, folder: &Path) -> Result<(), Error> {
        let path = folder.join(RECORD_FILE);
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::Damaged { path: path.clone(), reason: error.to_string() })?;
        bytes.push(b'\n');
        Ok(files::write_bytes(&path, &bytes)?)
    }
}

/// Writes the record of a run from its events, and passes each event on.
pub struct Journal<'a> {
    watcher: &'a mut dyn Observer,
    record: Record,
    folder: Option<PathBuf>,
    step: u64,
}

impl<'a> Journal<'a> {
    /// An empty journal; nothing is written before training starts.
    pub fn new(watcher: &'a mut dyn Observer) -> Self {
        let record =
            Record { version: VERSION, tune: env!("CARGO_PKG_VERSION").to_owned(), ..Record::default() };
        Self { watcher, record, folder: None, step: 0 }
    }

    /// Writes the end of the run. Does nothing if the run ended before its folder was created.
    pub fn end(&mut self, end: End<'_>) {
        let Some(folder) = self.folder.clone() else { return };
        let mut faults = Vec::new();
        if let Some(session) = self.record.sessions.last_mut() {
            session.ended = Some(now());
            session.to_step = Some(self.step);
            session.status = match &end {
                End::Done { .. } => Status::Done,
                End::Stopped => Status::Stopped,
                End::Failed(problem) => {
                    session.problem = Some(problem.clone());
                    Status::Failed
                }
            };
        }
        if let End::Done { adapter, samples } = end {
            match assets::folder::digest(&adapter.join(peft::TENSORS_FILE)) {
                Ok(digest) => self.record.adapter_sha256 = Some(digest.sha256),
                Err(error) => faults.push(error.to_string()),
            }
            if !samples.is_empty() {
                let recorded = |sample: &Sample| SampleRecord {
                    prompt: sample.prompt.clone(),
                    before: sample.before.clone(),
                    after: Some(sample.after.clone()),
                };
                self.record.samples = samples.iter().map(recorded).collect();
            }
        }
        faults.extend(self.record.write(&folder).err().map(|error| error.to_string()));
        for fault in faults {
            self.watcher.observe(&Event::Warning(format!("the record of the run is incomplete: {fault}")));
        }
    }

    fn start(&mut self, start: &Start) {
        let folder = &start.output_dir;
        if start.done_steps > 0 {
            self.go_on(folder);
        }
        self.record.sessions.push(Session {
            started: now(),
            from_step: start.done_steps,
            machine: Machine::this(),
            ranks: Some(start.ranks).filter(|ranks| *ranks > 1),
            ..Session::default()
        });
        self.record.total_steps = start.total_steps;
        self.record.trainable_parameters = start.trainable_parameters;
        self.record.base_parameters = start.base_parameters;
        self.record.frozen_bytes = start.frozen_bytes;
        self.record.training_examples = start.training_examples;
        self.record.held_out_examples = start.held_out_examples;
        self.record.compute = start.compute.clone();
        self.step = start.done_steps;
        self.folder = Some(folder.clone());
        if let Err(error) = self.record.write(folder) {
            self.watcher
                .observe(&Event::Warning(format!("the record of the run cannot be written: {error}")));
        }
    }

    /// Continues the record of an earlier session; starts a new one if that cannot be read.
    fn go_on(&mut self, folder: &Path) {
        let Ok(earlier) = Record::read(folder) else { return };
        let fresh = std::mem::replace(&mut self.record, earlier);
        self.record.data = fresh.data.or(self.record.data.take());
        if self.record.samples.is_empty() {
            self.record.samples = fresh.samples;
        }
        for warning in fresh.warnings {
            self.warned(&warning);
        }
    }

    fn warned(&mut self, text: &str) {
        let warnings = &mut self.record.warnings;
        if warnings.len() < MOST_WARNINGS && !warnings.iter().any(|known| known == text) {
            warnings.push(text.to_owned());
        }
    }
}

impl Observer for Journal<'_> {
    fn observe(&mut self, event: &Event<'_>) {
        match event {
            Event::Surveyed(survey) => self.record.data = Some(Statistics::of(survey)),
            Event::Answered(answers) => {
                let recorded = |(prompt, before): &(String, String)| SampleRecord {
                    prompt: prompt.clone(),
                    before: before.clone(),
                    after: None,
                };
                self.record.samples = answers.iter().map(recorded).collect();
            }
            Event::Start(start) => self.start(start),
            Event::Step { step, .. } => self.step = *step,
            Event::Evaluated(report) => {
                if report.step == 0 {
                    self.record.first_evaluation = Some((*report).clone());
                }
                self.record.last_evaluation = Some((*report).clone());
            }
            Event::InputChanged(what) if !self.record.changed_on_disk.contains(what) => {
                self.record.changed_on_disk.push(what.clone());
            }
            Event::Warning(text) => self.warned(text),
            _ => {}
        }
        self.watcher.observe(event);
    }
}

fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    Utc(seconds).to_string()
}
