//! The state of a run in a few numbers, while it goes on or later.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Error;
use super::read::Run;
use crate::files::lock;
use crate::record::Status;
use crate::units::Utc;

/// The lock of a run folder that a run is at work in.
const LOCK: &str = ".lock";
/// Steps whose pace counts.
const RECENT: usize = 20;

/// Whether a run goes on, and how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// A process is at work in the folder.
    Running,
    /// Finished; the adapter is written.
    Done,
    /// Stopped by a signal; can be resumed.
    Stopped,
    /// Ended by an error.
    Failed,
    /// The process ended without a word: killed, or the machine went down. Can be resumed.
    CutOff,
    /// The folder has no record.
    Unknown,
}

impl State {
    /// In a few words.
    pub fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "finished",
            Self::Stopped => "stopped, can be resumed",
            Self::Failed => "failed",
            Self::CutOff => "cut off, can be resumed",
            Self::Unknown => "no record",
        }
    }

    pub(super) fn of(run: &Run) -> Self {
        if lock::is_held(&run.folder.join(LOCK)) {
            return Self::Running;
        }
        match run.record.as_ref().and_then(|record| record.sessions.last()).map(|session| session.status) {
            Some(Status::Done) => Self::Done,
            Some(Status::Stopped) => Self::Stopped,
            Some(Status::Failed) => Self::Failed,
            Some(Status::Running) => Self::CutOff,
            None => Self::Unknown,
        }
    }
}

/// A run in a few numbers.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Its folder.
    pub folder: PathBuf,
    /// Whether it goes on.
    pub state: State,
    /// The last logged step.
    pub step: u64,
    /// Steps of the whole run; 0 if not known.
    pub total_steps: u64,
    /// The loss of each logged step.
    pub losses: Vec<f64>,
    /// Step and loss of each evaluation of the held-out rows.
    pub held_out: Vec<(u64, f64)>,
    /// The last learning rate.
    pub learning_rate: Option<f64>,
    /// The newest pace.
    pub tokens_per_second: Option<f64>,
    /// About the time that the steps left take, evaluations not counted.
    pub left: Option<Duration>,
    /// Peak memory in bytes.
    pub memory: Option<u64>,
    /// Planned memory in bytes.
    pub planned: Option<u64>,
    /// The newest answers to the recipe's sample prompts.
    pub samples: Vec<(String, String)>,
    /// Why it failed.
    pub problem: Option<String>,
    /// When the last session began and ended, in seconds since 1970.
    session: Option<(u64, Option<u64>)>,
}

impl Summary {
    /// How long the last session went on until it ended, or until `now`.
    pub fn elapsed(&self, now: SystemTime) -> Option<Duration> {
        let (began, ended) = self.session?;
        let now = now.duration_since(UNIX_EPOCH).ok()?.as_secs();
        Some(Duration::from_secs(ended.unwrap_or(now).saturating_sub(began)))
    }
}

/// Reads the state of the run in the folder `run`.
///
/// # Errors
/// The folder is not a run folder, or one of its files is invalid.
pub fn summary(run: &Path) -> Result<Summary, Error> {
    let run = Run::read(run)?;
    let record = run.record.as_ref();
    let session = record.and_then(|record| record.sessions.last());
    let last = run.steps.last();
    let total_steps = record.map_or(0, |record| record.total_steps);
    let recent = run.steps.len().saturating_sub(RECENT);
    let per_step = match (run.steps.get(recent), last) {
        (Some(first), Some(last)) if last.step > first.step => {
            let seconds: f64 = run.steps[recent..]
                .windows(2)
                .map(|pair| {
                    (pair[1].tokens - pair[0].tokens.min(pair[1].tokens)) as f64
                        / pair[1].tokens_per_second.max(1e-9)
                })
                .sum();
            Some(seconds / (last.step - first.step) as f64)
        }
        _ => None,
    };
    let step = last.map_or(0, |last| last.step);
    let left = per_step.map(|seconds| seconds * total_steps.saturating_sub(step) as f64);
    Ok(Summary {
        state: State::of(&run),
        step,
        total_steps,
        losses: run.steps.iter().map(|step| step.loss).collect(),
        held_out: run.evaluations.iter().map(|report| (report.step, report.eval_loss)).collect(),
        learning_rate: last.map(|last| last.learning_rate),
        tokens_per_second: last.map(|last| last.tokens_per_second),
        left: left.and_then(|left| Duration::try_from_secs_f64(left).ok()),
        memory: run.peak_memory().of_plan(),
        planned: Some(run.planned()).filter(|bytes| *bytes > 0),
        samples: run.newest_answers(),
        problem: session.and_then(|session| session.problem.clone()),
        session: session.and_then(|session| {
            let seconds = |text: &String| Utc::parse(text).map(|Utc(seconds)| seconds);
            Some((seconds(&session.started)?, session.ended.as_ref().and_then(seconds)))
        }),
        folder: run.folder,
    })
}
