//! All that a run needs to resume after a step: adapter, moments, data cursor and counters, as a checkpoint.
//!
//! Tensors are named `adapter.KEY`, `first.KEY` and `second.KEY` by the adapter's PEFT keys; those of the snapshot to
//! roll back to have `kept.` before them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn_tensor::{DType, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use tune_kernels::KernelBackend;
use tune_kernels::adamw::Moments;

use super::budget::{Budget, Spent};
use super::divergence::Snapshot;
use super::event::EvaluationReport;
use super::expert_load::ExpertLoad;
use super::optimizer::Optimizer;
use super::team;
use crate::adapter::lora::LoraSet;
use crate::checkpoint::{self, Error, NamedTensor, Source, exact};
use crate::data::batch::{Cursor, StepBatch};
use crate::objective::statistics::Statistics;

const KEPT: &str = "kept.";

/// The counters of a run after `step` optimizer steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Optimizer steps done, diverged ones included.
    pub step: u64,
    /// Optimizer steps in all.
    pub total_steps: u64,
    /// Tokens in the largest micro-batch of the run, or more than any has: what its memory is planned for.
    pub largest_micro_batch: u64,
    /// Updates of the adapter: steps that did not diverge and were not rolled back.
    pub updates: u64,
    /// Updates of each target that belongs to an expert, in the order of the targets: steps without a token for it are
    /// none. Shorter where the last ones had no update yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expert_updates: Vec<u64>,
    /// The same of the snapshot to roll back to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept_expert_updates: Vec<u64>,
    /// Tokens sent to each expert since the last logged line.
    #[serde(default, skip_serializing_if = "ExpertLoad::is_empty")]
    pub expert_load: ExpertLoad,
    /// Tokens sent to each expert in all.
    #[serde(default, skip_serializing_if = "ExpertLoad::is_empty")]
    pub expert_load_in_all: ExpertLoad,
    /// Examples consumed over examples per epoch.
    #[serde(with = "exact")]
    pub epoch: f64,
    /// Tokens read.
    pub tokens: u64,
    /// Where the next step begins.
    pub cursor: Cursor,
    /// Loss of the last step that did not diverge, before its update.
    #[serde(with = "exact::optional")]
    pub last_loss: Option<f64>,
    /// Lowest held-out loss so far.
    #[serde(with = "exact::optional")]
    pub best_eval_loss: Option<f64>,
    /// The evaluation before the first step.
    #[serde(with = "evaluation")]
    pub first_evaluation: Option<EvaluationReport>,
    /// The newest evaluation, the one before the first step included.
    #[serde(with = "evaluation")]
    pub last_evaluation: Option<EvaluationReport>,
    /// Sums since the last logged line.
    pub window: Window,
    /// Diverged steps in a row, or rollbacks to the same snapshot.
    pub divergences: u64,
    /// The snapshot to roll back to, where the recipe asks for one.
    pub kept: Option<Kept>,
    /// What the run is made from.
    pub origin: Origin,
}

/// Sums since the last logged line, and the last step's own numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// The summed loss.
    #[serde(rename = "nll", with = "exact")]
    pub loss: f64,
    /// What it is divided by: the objective's count.
    #[serde(rename = "supervised_tokens")]
    pub count: u64,
    /// Gradient norm of the last step, before clipping.
    #[serde(with = "exact")]
    pub grad_norm: f64,
    /// Learning rate of the last step.
    #[serde(with = "exact")]
    pub learning_rate: f64,
    /// The objective's statistics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statistics: Option<Statistics>,
}

/// Counters of the snapshot to roll back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// The step that it was taken after.
    pub step: u64,
    /// Updates made until then.
    pub updates: u64,
}

/// What a run is made from, compared when it is resumed. Opaque here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The recipe's canonical text.
    pub recipe: String,
    /// Hashes of all files that decide the adapter, by name.
    pub inputs: BTreeMap<String, String>,
    /// Compute dtype and device.
    pub compute: String,
    /// The release that runs it.
    pub release: String,
    /// Changes that were accepted on resume, each with the step after which it took effect.
    pub changes: Vec<String>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All steps are done.
    Done,
    /// A budget was spent.
    Budget(Spent),
    /// The run was asked to stop before its last step.
    Stopped,
}

/// Numbers of one step that was made.
#[derive(Clone, Copy, Debug)]
pub struct StepResult {
    /// The summed loss.
    pub loss: f64,
    /// What it is divided by: the objective's count.
    pub count: u64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// The rate the step was made with.
    pub learning_rate: f64,
    /// The objective's statistics.
    pub statistics: Option<Statistics>,
}

impl State {
    /// Before the first of `total_steps` steps.
    pub fn fresh(cursor: Cursor, total_steps: u64) -> Self {
        Self {
            step: 0,
            total_steps,
            largest_micro_batch: 0,
            updates: 0,
            expert_updates: Vec::new(),
            kept_expert_updates: Vec::new(),
            expert_load: ExpertLoad::default(),
            expert_load_in_all: ExpertLoad::default(),
            epoch: 0.0,
            tokens: 0,
            cursor,
            last_loss: None,
            best_eval_loss: None,
            first_evaluation: None,
            last_evaluation: None,
            window: Window::default(),
            divergences: 0,
            kept: None,
            origin: Origin::default(),
        }
    }

    /// Why a run ends at the present step, if it does. Time is not considered.
    pub fn ended(&self, budget: &Budget) -> Option<Ended> {
        Self::ended_at(self.step, self.total_steps, self.tokens, budget)
    }

    /// [`Self::ended`] of a run after `step` that has read `tokens`.
    pub(super) fn ended_at(step: u64, total_steps: u64, tokens: u64, budget: &Budget) -> Option<Ended> {
        if step >= total_steps {
            return Some(Ended::Done);
        }
        let is_spent = budget.max_tokens.is_some_and(|max_tokens| tokens >= max_tokens);
        is_spent.then_some(Ended::Budget(Spent::Tokens))
    }

    /// Counts one optimizer step.
    pub fn advance(&mut self, batch: &StepBatch, result: StepResult) {
        self.pass_over(batch);
        self.updates += 1;
        self.last_loss = Some(result.loss / result.count.max(1) as f64);
        self.window.loss += result.loss;
        self.window.count += result.count;
        self.window.grad_norm = result.grad_norm;
        self.window.learning_rate = result.learning_rate;
        if let Some(statistics) = &result.statistics {
            self.window.statistics.get_or_insert_default().extend(statistics);
        }
    }

    /// Counts the tokens that a step sent to experts.
    pub fn add_load(&mut self, load: &ExpertLoad) {
        self.expert_load.add(load);
        self.expert_load_in_all.add(load);
    }

    /// Counts an update of the targets of experts with these numbers.
    pub fn advance_experts(&mut self, reached: &[usize]) {
        for number in reached {
            if self.expert_updates.len() <= *number {
                self.expert_updates.resize(number + 1, 0);
            }
            self.expert_updates[*number] += 1;
        }
    }

    /// Counts one step that changed nothing: its rows are consumed all the same.
    pub fn pass_over(&mut self, batch: &StepBatch) {
        self.step = batch.step;
        self.epoch = batch.epoch;
        self.tokens += batch.tokens() as u64;
        self.cursor = batch.cursor;
    }

    /// Counts an evaluation. Returns whether its loss is the lowest of all evaluations after a step.
    pub fn evaluated(&mut self, report: &EvaluationReport) -> bool {
        self.last_evaluation = Some(report.clone());
        if self.step == 0 {
            self.first_evaluation = Some(report.clone());
            return false;
        }
        let is_best = self.best_eval_loss.is_none_or(|best| report.eval_loss < best);
        if is_best {
            self.best_eval_loss = Some(report.eval_loss);
        }
        is_best
    }

    /// Writes adapter, moments and counters as a checkpoint folder; `kept`: the snapshot to roll back to.
    ///
    /// # Errors
    /// [`Error`] when it cannot be written.
    pub fn save<B: KernelBackend>(
        &self,
        adapters: &LoraSet<B>,
        optimizer: &Optimizer<B>,
        kept: Option<&Snapshot<B>>,
        folder: &Path,
    ) -> Result<(), Error> {
        let mut tensors = Vec::new();
        let mut add = |prefix: &str, values: &[Tensor<B, 2>], moments: &[Moments<B>]| {
            for ((parameter, tensor), moments) in adapters.parameters().iter().zip(values).zip(moments) {
                let parts = [("adapter", tensor), ("first", &moments.first), ("second", &moments.second)];
                for (kind, tensor) in parts {
                    let name = format!("{prefix}{kind}.{}", parameter.name);
                    tensors.push(OnDevice { name, tensor: tensor.clone() });
                }
            }
        };
        add("", adapters.tensors(), optimizer.moments());
        if let Some(kept) = kept {
            add(KEPT, &kept.adapter, &kept.moments);
        }
        checkpoint::write(folder, &tensors, self)
    }
}

/// A tensor of a checkpoint that is read from the device when it is written.
struct OnDevice<B: KernelBackend> {
    name: String,
    tensor: Tensor<B, 2>,
}

impl<B: KernelBackend> Source for OnDevice<B> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn shape(&self) -> Vec<usize> {
        self.tensor.dims().to_vec()
    }

    fn values(&self) -> Result<Cow<'_, [f32]>, Error> {
        Ok(Cow::Owned(host_values(&self.tensor)?))
    }
}

fn host_values<B: KernelBackend>(tensor: &Tensor<B, 2>) -> Result<Vec<f32>, Error> {
    let data = tensor.clone().try_into_data().map_err(|error| Error::Device(format!("{error:?}")))?;
    data.into_vec().map_err(|error| Error::Device(format!("{error:?}")))
}

/// A complete checkpoint.
#[derive(Debug)]
pub struct Saved {
    /// Its folder.
    pub path: PathBuf,
    /// Its counters.
    pub state: State,
    tensors: BTreeMap<String, NamedTensor>,
}

/// What stands before the tensors of a checkpoint that is sent to other ranks.
#[derive(Serialize, Deserialize)]
struct SavedHeader {
    path: PathBuf,
    state: State,
    /// Names and shapes.
    tensors: Vec<(String, Vec<usize>)>,
}

impl Saved {
    /// Reads the checkpoint in `folder`.
    ///
    /// # Errors
    /// [`Error`] when it is damaged.
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let (tensors, counters) = checkpoint::read(folder)?;
        let state = serde_json::from_value(counters)
            .map_err(|error| Error::Damaged { path: folder.to_path_buf(), reason: error.to_string() })?;
        let tensors = tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
        Ok(Self { path: folder.to_path_buf(), state, tensors })
    }

    /// All of it as bytes, for other ranks.
    ///
    /// # Errors
    /// The counters cannot be written as JSON.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let tensors =
            self.tensors.values().map(|tensor| (tensor.name.clone(), tensor.shape.clone())).collect();
        let header = SavedHeader { path: self.path.clone(), state: self.state.clone(), tensors };
        let header = serde_json::to_vec(&header).map_err(|error| self.does_not_fit(error.to_string()))?;
        let values = self.tensors.values().flat_map(|tensor| team::to_bytes(&tensor.values));
        Ok((header.len() as u64).to_le_bytes().into_iter().chain(header).chain(values).collect())
    }

    /// The checkpoint of [`Self::to_bytes`].
    ///
    /// # Errors
    /// [`Error::Damaged`] for other bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let damaged = |reason: &str| {
            let reason = reason.to_owned();
            Error::Damaged { path: PathBuf::from("the checkpoint of rank 0"), reason }
        };
        let (length, rest) = bytes.split_first_chunk().ok_or_else(|| damaged("it has no length"))?;
        let length = u64::from_le_bytes(*length) as usize;
        let (header, mut rest) = rest.split_at_checked(length).ok_or_else(|| damaged("it is cut off"))?;
        let header: SavedHeader =
            serde_json::from_slice(header).map_err(|error| damaged(&error.to_string()))?;
        let mut tensors = BTreeMap::new();
        for (name, shape) in header.tensors {
            let bytes = size_of::<f32>() * shape.iter().product::<usize>();
            let (values, behind) = rest.split_at_checked(bytes).ok_or_else(|| damaged("it is cut off"))?;
            rest = behind;
            let values = team::from_bytes(values);
            tensors.insert(name.clone(), NamedTensor { name, shape, values });
        }
        Ok(Self { path: header.path, state: header.state, tensors })
    }

    /// Copies the saved numbers into `adapters` and `optimizer`; returns the snapshot to roll back to.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`] when the checkpoint belongs to a different adapter; `adapters` are then unchanged.
    pub fn restore<B: KernelBackend>(
        mut self,
        adapters: &mut LoraSet<B>,
        optimizer: &mut Optimizer<B>,
        device: &B::Device,
    ) -> Result<(State, Option<Snapshot<B>>), Error> {
        let (tensors, moments) = self.take("", adapters, device)?;
        let kept = match self.state.kept {
            Some(Kept { step, updates }) => {
                let (adapter, moments) = self.take(KEPT, adapters, device)?;
                Some(Snapshot { step, updates, adapter, moments })
            }
            None => None,
        };
        if let Some(name) = self.tensors.keys().next() {
            return Err(self
                .does_not_fit(format!("it has a tensor `{name}` that the recipe's adapter does not have")));
        }
        adapters.update(|_| tensors).map_err(|error| self.does_not_fit(error.to_string()))?;
        optimizer.restore(moments);
        Ok((self.state, kept))
    }

    #[expect(clippy::type_complexity, reason = "two lists in the order of the parameters")]
    fn take<B: KernelBackend>(
        &mut self,
        prefix: &str,
        adapters: &LoraSet<B>,
        device: &B::Device,
    ) -> Result<(Vec<Tensor<B, 2>>, Vec<Moments<B>>), Error> {
        let (mut tensors, mut moments) = (Vec::new(), Vec::new());
        for parameter in adapters.parameters() {
            let mut tensor = |kind: &str| {
                let name = format!("{prefix}{kind}.{}", parameter.name);
                match self.tensors.remove(&name) {
                    Some(saved) if saved.shape == parameter.shape => {
                        let data = TensorData::new(saved.values, parameter.shape);
                        Ok(Tensor::from_data(data, (device, DType::F32)))
                    }
                    Some(saved) => Err(self.does_not_fit(format!(
                        "its tensor `{name}` is {:?} where the recipe's adapter has {:?}",
                        saved.shape, parameter.shape
                    ))),
                    None => Err(self.does_not_fit(format!("it has no tensor `{name}`"))),
                }
            };
            tensors.push(tensor("adapter")?);
            moments.push(Moments { first: tensor("first")?, second: tensor("second")? });
        }
        Ok((tensors, moments))
    }

    fn does_not_fit(&self, reason: String) -> Error {
        Error::DoesNotFit { path: self.path.clone(), reason }
    }
}

/// Reads and writes an evaluation without rounding.
mod evaluation {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{EvaluationReport, exact};
    use crate::objective::statistics::Means;

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Exact {
        step: u64,
        #[serde(with = "exact")]
        epoch: f64,
        #[serde(with = "exact")]
        eval_loss: f64,
        eval_tokens: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        answers: Option<[Number; Means::LENGTH]>,
    }

    #[derive(Serialize, Deserialize)]
    struct Number(#[serde(with = "exact::optional")] Option<f64>);

    pub(super) fn serialize<S: Serializer>(
        report: &Option<EvaluationReport>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let exact = report.as_ref().map(|report| {
            let EvaluationReport { step, epoch, eval_loss, eval_tokens, answers } = *report;
            let answers = answers.map(|means| means.to_array().map(Number));
            Exact { step, epoch, eval_loss, eval_tokens, answers }
        });
        exact.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<EvaluationReport>, D::Error> {
        let exact = Option::<Exact>::deserialize(deserializer)?;
        Ok(exact.map(|Exact { step, epoch, eval_loss, eval_tokens, answers }| EvaluationReport {
            step,
            epoch,
            eval_loss,
            eval_tokens,
            answers: answers.map(|means| Means::from_array(means.map(|Number(number)| number))),
        }))
    }
}
