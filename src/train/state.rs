//! Everything a run needs to go on after a step: adapter, moments, data cursor and counters, as a checkpoint.

use std::path::Path;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use tune_kernels::KernelBackend;

use super::event::EvaluationReport;
use super::optimizer::Optimizer;
use crate::adapter::lora::LoraSet;
use crate::checkpoint::{self, NamedTensor};
use crate::data::batch::{Cursor, StepBatch};

/// The counters of a run after `step` optimizer steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Optimizer steps done.
    pub step: u64,
    /// Examples consumed over examples per epoch.
    pub epoch: f64,
    /// Tokens read.
    pub tokens: u64,
    /// Where the next step begins.
    pub cursor: Cursor,
    /// Lowest held-out loss so far.
    pub best_eval_loss: Option<f64>,
    /// The evaluation before the first step.
    pub first_evaluation: Option<EvaluationReport>,
    /// Sums since the last logged line.
    pub window: Window,
}

/// Sums since the last logged line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Σ negative log-likelihood.
    pub nll: f64,
    /// Supervised tokens.
    pub supervised_tokens: u64,
    /// Tokens read.
    pub tokens: u64,
}

impl State {
    /// Before the first step.
    pub fn fresh(cursor: Cursor) -> Self {
        Self {
            step: 0,
            epoch: 0.0,
            tokens: 0,
            cursor,
            best_eval_loss: None,
            first_evaluation: None,
            window: Window::default(),
        }
    }

    /// Counts one optimizer step whose supervised tokens cost `nll` together.
    pub fn advance(&mut self, batch: &StepBatch, nll: f64, tokens: u64) {
        self.step = batch.step;
        self.epoch = batch.epoch;
        self.tokens += tokens;
        self.cursor = batch.cursor;
        self.window.nll += nll;
        self.window.supervised_tokens += batch.supervised_tokens;
        self.window.tokens += tokens;
    }

    /// Whether a held-out loss is the lowest so far.
    pub fn is_best(&self, eval_loss: f64) -> bool {
        self.best_eval_loss.is_none_or(|best| eval_loss < best)
    }

    /// Writes adapter, moments and counters as a checkpoint folder.
    ///
    /// # Errors
    /// [`checkpoint::Error`] when it cannot be written.
    pub fn save<B: KernelBackend>(
        &self,
        adapters: &LoraSet<B>,
        optimizer: &Optimizer<B>,
        folder: &Path,
    ) -> Result<(), checkpoint::Error> {
        let mut tensors = Vec::new();
        for ((parameter, tensor), moments) in
            adapters.parameters().iter().zip(adapters.tensors()).zip(optimizer.moments())
        {
            let parts = [("adapter", tensor), ("first", &moments.first), ("second", &moments.second)];
            for (kind, tensor) in parts {
                tensors.push(NamedTensor {
                    name: format!("{kind}.{}", parameter.name),
                    shape: parameter.shape.to_vec(),
                    values: host_values(tensor)?,
                });
            }
        }
        checkpoint::write(folder, &tensors, self)
    }
}

fn host_values<B: KernelBackend>(tensor: &Tensor<B, 2>) -> Result<Vec<f32>, checkpoint::Error> {
    let data =
        tensor.clone().try_into_data().map_err(|error| checkpoint::Error::Device(format!("{error:?}")))?;
    data.into_vec().map_err(|error| checkpoint::Error::Device(format!("{error:?}")))
}
