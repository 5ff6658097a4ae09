//! The pass over all rows before training, with its progress reported on the calling thread.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use super::open::Opened;
use super::plan;
use super::{Environment, Error};
use crate::data::batch::Batching;
use crate::data::error::Error as DataError;
use crate::data::spec::OnBeyondPositions;
use crate::data::survey::Survey;
use crate::model::tensors;
use crate::train::event::{Event, Observer};
use crate::units::Grouped;

/// A run that only `max_steps` ends does not wait for a survey of more rows than this.
const MOST_ROWS: u64 = 1_000_000;
/// How often progress is reported and `stop` is asked.
const INTERVAL: Duration = Duration::from_millis(50);

/// Reads every row of the recipe once.
///
/// # Errors
/// [`Error::Stopped`], and what [`crate::data::corpus::Corpus::survey`] returns. Bad rows are part of the survey.
pub(super) fn survey(
    opened: &Opened,
    batching: &Batching,
    environment: &Environment<'_>,
    observer: &mut dyn Observer,
) -> Result<Survey, Error> {
    let (done, cancel) = (AtomicU64::new(0), AtomicBool::new(false));
    let total = opened.corpus.rows();
    let progress = |rows: u64, _: u64| _ = done.fetch_max(rows, Ordering::Relaxed);
    let surveyed = thread::scope(|scope| {
        let worker = scope.spawn(|| opened.corpus.survey(batching, &progress, &cancel));
        while !worker.is_finished() {
            observer.observe(&Event::Surveying { done: done.load(Ordering::Relaxed).min(total), total });
            if (environment.stop)() {
                cancel.store(true, Ordering::Relaxed);
            }
            thread::park_timeout(INTERVAL);
        }
        worker.join()
    });
    observer.observe(&Event::Surveying { done: total, total });
    match surveyed {
        Ok(Ok(survey)) => Ok(survey),
        Ok(Err(DataError::Cancelled)) => Err(Error::Stopped),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(DataError::Threads {
            problem: "the survey broke down; this is a defect of the program".into(),
        }
        .into()),
    }
}

/// The length of a run, and its largest micro-batch.
pub(super) struct Extent {
    /// Optimizer steps.
    pub steps: u64,
    /// Tokens in the largest micro-batch.
    pub largest_micro_batch: u64,
}

/// The extent of the run, after a survey of all rows; the survey's notes are reported as warnings.
///
/// # Errors
/// As [`survey`], and [`DataError::Rows`] when there are rows that cannot be used.
pub(super) fn extent(
    opened: &Opened,
    batching: &Batching,
    environment: &Environment<'_>,
    observer: &mut dyn Observer,
) -> Result<Extent, Error> {
    let rows = opened.corpus.rows();
    if let (None, Some(max_steps), true) = (batching.epochs, batching.max_steps, rows > MOST_ROWS) {
        observer.observe(&Event::Warning(format!(
            "the {} rows are not read before training, which `max_steps` ends; a row that cannot be used stops the run \
             when it is reached (`tune validate` reads them all)",
            Grouped(rows)
        )));
        return Ok(Extent { steps: max_steps, largest_micro_batch: plan::most_tokens(opened) });
    }
    let survey = survey(opened, batching, environment, observer)?.accept()?;
    observer.observe(&Event::Surveyed(&survey));
    for warning in warnings(opened, &survey) {
        observer.observe(&Event::Warning(warning));
    }
    let schedule = survey.schedule.unwrap_or_default();
    Ok(Extent { steps: schedule.steps, largest_micro_batch: schedule.largest_micro_batch })
}

/// What is worth knowing about the rows, although it is not an error.
pub(super) fn warnings(opened: &Opened, survey: &Survey) -> Vec<String> {
    let mut warnings: Vec<String> = survey.notes.iter().map(ToString::to_string).collect();
    if !opened.unread_config_keys.is_empty() {
        let keys = opened.unread_config_keys.join("`, `");
        warnings.push(format!("config.json of the base: not used: `{keys}`"));
    }
    if let Some(wrapper) = opened.spec.wrapper
        && let Ok(checked) = tensors::check(&opened.spec, opened.model.weights(), None)
    {
        warnings.push(format!(
            "the model is a {wrapper}: its text decoder is trained, and {} tensors of other parts are left out",
            Grouped(checked.skipped.len() as u64)
        ));
    }
    let val_split = opened.recipe.data.val_split;
    if val_split > 0.0 && survey.validation.rows == 0 {
        let rows = Grouped(survey.train.rows);
        warnings.push(format!(
            "`val_split = {val_split}` holds out none of the {rows} rows: there will be no evaluation"
        ));
    }
    let beyond = match opened.recipe.data.on_beyond_positions {
        OnBeyondPositions::Drop => "left out, longer",
        OnBeyondPositions::Error | OnBeyondPositions::Learn => "longer",
    };
    let beyond = format!("{beyond} than the model's {} positions", Grouped(opened.spec.positions() as u64));
    let named = [
        (&survey.overflow, "longer than `max_seq_len`"),
        (&survey.beyond_positions, beyond.as_str()),
        (&survey.empty, "left out, nothing in them supervised"),
    ];
    for (rows, what) in named {
        if rows.count > 0 {
            let places: Vec<String> =
                rows.first.iter().map(|(_, place, tokens)| format!("{place} ({tokens} tokens)")).collect();
            let more = match rows.count as usize - places.len() {
                0 => String::new(),
                more => format!(" and {} more", Grouped(more as u64)),
            };
            warnings.push(format!("{} rows are {what}: {}{more}", Grouped(rows.count), places.join(", ")));
        }
    }
    warnings
}
