//! Reads the files of a run folder that exist so far.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::Error;
use crate::export::quantize::report::{FILE as QUANTIZATION_FILE, Report as QuantizationReport};
use crate::files::{self, Action};
use crate::record::{LOCK_FILE, Lock, RECORD_FILE, Record};
use crate::train::event::{EvaluationReport, StepReport};
use crate::train::expert_load::ExpertLoad;
use crate::train::folder::EXPERT_LOAD;

/// Largest metrics file read, in bytes: about four million lines.
const LARGEST_METRICS: u64 = 1 << 30;
/// Largest recipe or plan read, in bytes.
const LARGEST_TEXT: u64 = 16 << 20;

/// A run folder.
#[derive(Debug, Default)]
pub(super) struct Run {
    /// Its path.
    pub folder: PathBuf,
    /// The resolved recipe.
    pub recipe: Option<String>,
    /// The lock of its inputs.
    pub lock: Option<Lock>,
    /// The record of the run.
    pub record: Option<Record>,
    /// The logged steps, ascending, each once.
    pub steps: Vec<StepReport>,
    /// The evaluations, ascending, each once.
    pub evaluations: Vec<EvaluationReport>,
    /// Diverged steps that were tolerated, in order; a step can occur again after a rollback.
    pub diverged: Vec<Diverged>,
    /// Answers during training, in order.
    pub answers: Vec<Answered>,
    /// Number of other lines in the metrics.
    pub unreadable_lines: u64,
    /// Number of lines among the answers that are none.
    pub unreadable_answers: u64,
    /// What 4 bits cost the base, where that was measured.
    pub quantization: Option<QuantizationReport>,
    /// How many tokens the experts of a mixture were sent.
    pub expert_load: ExpertLoad,
    /// The terms of the memory plan: names and bytes.
    pub plan: Vec<(String, u64)>,
}

/// An answer to a sample prompt during training.
#[derive(Debug, Deserialize)]
pub(super) struct Answered {
    /// The step.
    pub step: u64,
    /// The prompt.
    pub prompt: String,
    /// The answer.
    pub answer: String,
}

/// A diverged step.
#[derive(Debug, Deserialize)]
pub(super) struct Diverged {
    /// The step, from 1.
    pub step: u64,
    /// The quantity that was not finite.
    pub diverged: String,
    /// Its value.
    pub value: String,
    /// The rows of the step.
    pub rows: Vec<String>,
    /// The step whose adapter the run continued with.
    pub continued_from: u64,
    /// Whether that is an earlier adapter than the one before the step.
    pub rolled_back: bool,
}

/// Measured peak memory.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Peak {
    /// Tensors on a device with its own memory, and the memory reserved for them.
    pub device: Option<(u64, u64)>,
    /// The process.
    pub process: Option<u64>,
}

impl Peak {
    /// The peak to compare with the plan: the device's if it has its own memory, else the process's.
    pub(super) fn of_plan(self) -> Option<u64> {
        self.device.map(|(tensors, _)| tensors).or(self.process)
    }
}

impl Run {
    /// Reads the folder.
    pub(super) fn read(folder: &Path) -> Result<Self, Error> {
        let recipe = text(&folder.join("recipe.toml"), LARGEST_TEXT)?;
        let metrics = text(&folder.join("metrics.jsonl"), LARGEST_METRICS)?;
        if recipe.is_none() && metrics.is_none() {
            return Err(Error::NoRun(folder.to_path_buf()));
        }
        let plan = text(&folder.join("memory_plan.json"), LARGEST_TEXT)?;
        let mut run = Self {
            folder: folder.to_path_buf(),
            recipe,
            lock: folder.join(LOCK_FILE).is_file().then(|| Lock::read(folder)).transpose()?,
            record: folder.join(RECORD_FILE).is_file().then(|| Record::read(folder)).transpose()?,
            plan: plan
                .and_then(|text| serde_json::from_str(&text).ok())
                .map_or_else(Vec::new, |plan| terms(&plan)),
            ..Self::default()
        };
        let measured = text(&folder.join(QUANTIZATION_FILE), LARGEST_TEXT)?;
        run.quantization = measured.and_then(|text| serde_json::from_str(&text).ok());
        let load = text(&folder.join(EXPERT_LOAD), LARGEST_TEXT)?;
        let load = load.and_then(|text| serde_json::from_str::<Value>(&text).ok());
        let load = load.and_then(|load| serde_json::from_value(load.get("tokens")?.clone()).ok());
        run.expert_load = load.unwrap_or_default();
        let answers = text(&folder.join("samples.jsonl"), LARGEST_TEXT)?.unwrap_or_default();
        // An incomplete line at the end is still being written.
        let whole = answers.rfind('\n').map_or("", |end| &answers[..end]);
        for line in whole.lines() {
            match serde_json::from_str(line) {
                Ok(answer) => run.answers.push(answer),
                Err(_) => run.unreadable_answers += 1,
            }
        }
        run.read_metrics(&metrics.unwrap_or_default());
        Ok(run)
    }

    fn read_metrics(&mut self, text: &str) {
        let (mut steps, mut evaluations) = (BTreeMap::new(), BTreeMap::new());
        // An incomplete line at the end is still being written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for line in whole.lines().filter(|line| !line.trim().is_empty()) {
            if let Ok(report) = serde_json::from_str::<StepReport>(line) {
                steps.insert(report.step, report);
            } else if let Ok(report) = serde_json::from_str::<EvaluationReport>(line) {
                evaluations.insert(report.step, report);
            } else if let Ok(report) = serde_json::from_str::<Diverged>(line) {
                self.diverged.push(report);
            } else {
                self.unreadable_lines += 1;
            }
        }
        self.steps = steps.into_values().collect();
        self.evaluations = evaluations.into_values().collect();
    }

    /// The newest answers to the recipe's sample prompts: after training, else during it, else before.
    pub(super) fn newest_answers(&self) -> Vec<(String, String)> {
        let recorded = self.record.as_ref().map_or(&[][..], |record| &record.samples);
        let under_way = |prompt: &str| self.answers.iter().rev().find(|answer| answer.prompt == prompt);
        let newest = recorded.iter().map(|sample| {
            let answer =
                sample.after.clone().or_else(|| under_way(&sample.prompt).map(|found| found.answer.clone()));
            (sample.prompt.clone(), answer.unwrap_or_else(|| sample.before.clone()))
        });
        newest.collect()
    }

    /// Total of the memory plan in bytes.
    pub(super) fn planned(&self) -> u64 {
        self.plan.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }

    /// Measured peak memory.
    pub(super) fn peak_memory(&self) -> Peak {
        let most = |of: fn(&StepReport) -> Option<u64>| self.steps.iter().filter_map(of).max();
        let device = most(|step| step.device_memory_bytes);
        Peak {
            device: device
                .map(|tensors| (tensors, most(|step| step.device_reserved_bytes).unwrap_or(tensors))),
            process: most(|step| step.peak_memory_bytes),
        }
    }
}

/// A file's text; `None` if it does not exist. Invalid UTF-8 is replaced.
fn text(path: &Path, most: u64) -> Result<Option<String>, Error> {
    let read = || files::Error::io(Action::Read, path);
    match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(read()(error).into()),
        Ok(about) if about.len() > most => {
            return Err(Error::TooLarge { path: path.to_path_buf(), bytes: about.len(), most });
        }
        Ok(_) => {}
    }
    let bytes = fs::read(path).map_err(read())?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// The terms of a memory plan: a list of objects with a name and `bytes`, or an object of numbers, perhaps nested.
fn terms(plan: &Value) -> Vec<(String, u64)> {
    let of_list = |list: &Vec<Value>| -> Vec<(String, u64)> {
        let term = |entry: &Value| {
            let name = ["name", "term", "what"].into_iter().find_map(|key| entry.get(key)?.as_str())?;
            Some((name.to_owned(), entry.get("bytes")?.as_u64()?))
        };
        list.iter().filter_map(term).collect()
    };
    match plan {
        Value::Array(list) => of_list(list),
        Value::Object(entries) => match entries.get("terms") {
            Some(inner @ (Value::Array(_) | Value::Object(_))) => terms(inner),
            _ => {
                let number = |(name, value): (&String, &Value)| {
                    let name = name.strip_suffix("_bytes").unwrap_or(name).replace('_', " ");
                    Some((name, value.as_u64()?))
                };
                entries.iter().filter(|(name, _)| *name != "version").filter_map(number).collect()
            }
        },
        _ => Vec::new(),
    }
}
