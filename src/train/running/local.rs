//! Local steps: lanes as workers that train by themselves for a while, and are averaged.
//!
//! A round has `train.local.steps` steps. Each worker begins it with the same adapter and moments, makes every step of it on
//! the micro-batches of its lane alone, and clips and updates by itself. Then adapters and moments are averaged: added as
//! lanes are, and divided. Ranks exchange nothing but that, once a round; one process trains the workers one after the
//! other, to the same bytes. Evaluations and checkpoints lie between rounds; a run that is stopped within one begins it
//! again.

use std::ops::ControlFlow;
use std::time::Instant;

use burn_tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::adamw::Moments;
use tune_ranks::tree::Tree;

use super::Running;
use crate::data::batch::{Counts, StepBatch};
use crate::data::error::Error as DataError;
use crate::objective::statistics::{self, Statistics};
use crate::train::divergence::{Fault, Snapshot, named_rows};
use crate::train::error::FitError;
use crate::train::exchange::{Exchanged, Wishes};
use crate::train::expert_load::ExpertLoad;
use crate::train::fit::add;
use crate::train::optimizer::{Gradient, PendingNumbers, StepNumbers};
use crate::train::state::{Ended, State, StepResult};
use crate::train::team::{framed, from_bytes, next_part, to_bytes};

/// A step of all workers.
#[derive(Clone, Debug, Default)]
struct Worked {
    workers: Vec<Numbers>,
    load: ExpertLoad,
}

/// The numbers of one worker's step.
#[derive(Clone, Copy, Debug)]
struct Numbers {
    loss: f64,
    norm: f64,
    /// The objective's, NaN where it has none.
    statistics: [f32; statistics::LENGTH],
}

impl<B: KernelBackend> Running<'_, '_, B> {
    /// Trains in rounds of `every` steps to the end of `steps`, or until the run is asked to stop.
    pub(super) fn train_locally(
        &mut self,
        mut steps: impl Iterator<Item = Result<StepBatch, DataError>>,
        every: u64,
    ) -> Result<Ended, FitError> {
        let mut ending = self.ending(false);
        if self.on_boundary(ending.is_some())?.is_break() {
            return self.stop();
        }
        loop {
            if let Some(ended) = ending {
                return Ok(ended);
            }
            if self.is_stopped() {
                return self.stop();
            }
            let mut round: Vec<StepBatch> = Vec::new();
            for batch in steps.by_ref() {
                round.push(batch?);
                if round.last().is_some_and(|batch| batch.step.is_multiple_of(every)) {
                    break;
                }
            }
            ending = match round.is_empty() {
                true => Some(Ended::Done),
                false if self.round(&round)?.is_none() => return self.stop(),
                false => self.ending(true),
            };
            let is_requested = self.is_save_requested();
            if self.on_boundary(ending.is_some())?.is_break() {
                return self.stop();
            }
            if is_requested && self.state.step > 0 {
                self.save()?;
            }
        }
    }

    /// Makes one round; `None`, and nothing has changed, when a rank is asked to stop meanwhile.
    fn round(&mut self, round: &[StepBatch]) -> Result<Option<()>, FitError> {
        let State { step, updates, .. } = self.state;
        let (start, began) = (Snapshot::of(self.adapters, self.optimizer, step, updates), Instant::now());
        let made = self.workers(round, &start);
        let Ok(Some((worked, sums))) = made else {
            start.restore(self.adapters, self.optimizer)?;
            return made.map(|_| None);
        };
        let share = 1.0 / self.fit.lanes.count() as f64;
        let mut average = sums.into_iter().flatten().map(|sum| sum.mul_scalar(share));
        let count = start.adapter.len();
        let tensors: Vec<_> = average.by_ref().take(count).collect();
        let first: Vec<_> = average.by_ref().take(count).collect();
        let moments = first.into_iter().zip(average).map(|(first, second)| Moments { first, second });
        self.optimizer.restore(moments.collect());
        self.adapters.update(|_| tensors)?;
        // Each step has its part of the round's time.
        let each = began.elapsed() / round.len().max(1) as u32;
        for (batch, Worked { workers, load }) in round.iter().zip(worked) {
            self.pace.time += each;
            self.pace.tokens += batch.tokens() as u64;
            self.advance(batch, workers);
            self.state.add_load(&load);
            self.log_if_due(false)?;
        }
        Ok(Some(()))
    }

    /// The steps of all workers, and the sums of adapters and moments over the workers, in the order of the parameters;
    /// `None` when a rank is asked to stop.
    #[expect(clippy::type_complexity, reason = "two results of one exchange, and of being asked to stop")]
    fn workers(
        &mut self,
        round: &[StepBatch],
        start: &Snapshot<B>,
    ) -> Result<Option<(Vec<Worked>, Vec<Option<Tensor<B, 2>>>)>, FitError> {
        let fit = self.fit;
        let (mut sums, mut numbers, mut wishes) = (Tree::default(), Vec::new(), Wishes::default());
        let mut loads = vec![ExpertLoad::default(); round.len()];
        'workers: for worker in fit.lanes.of(fit.team.rank(), fit.lanes.count()) {
            start.restore(self.adapters, self.optimizer)?;
            // A step's numbers are read when the next one is launched. What is computed behind one that is not finite is
            // thrown away with the round.
            let mut launched = None;
            for ((batch, load), update) in round.iter().zip(&mut loads).zip(start.updates + 1..) {
                let ControlFlow::Continue(pending) = self.worker_step(batch, worker, update, load)? else {
                    wishes.stop = true;
                    break 'workers;
                };
                if let Some(before) = launched.replace((batch, pending)) {
                    numbers.extend(self.numbers(before, worker)?.to_bytes());
                }
            }
            if let Some(last) = launched {
                numbers.extend(self.numbers(last, worker)?.to_bytes());
            }
            let moments = self.optimizer.moments();
            let (first, second) = (moments.iter().map(|m| &m.first), moments.iter().map(|m| &m.second));
            let tensors = self.adapters.tensors().iter().chain(first).chain(second);
            sums.push(tensors.map(|tensor| Some(tensor.clone())).collect::<Vec<_>>(), add);
        }
        if !fit.team.is_alone() {
            wishes.save = (fit.save)();
            wishes.late = round.last().is_some_and(|batch| fit.clock.is_spent(batch.step, true));
        }
        let shapes = self.adapters.parameters().iter().map(|parameter| parameter.shape);
        let shapes: Vec<[usize; 2]> = shapes.collect::<Vec<_>>().repeat(3);
        let values = sums.sum(add).filter(|_| !wishes.stop).unwrap_or_else(|| vec![None; shapes.len()]);
        let parts = std::iter::once(numbers).chain(loads.iter().map(ExpertLoad::to_bytes));
        let message = parts.flat_map(|part| framed(&part)).collect();
        let Exchanged { wishes, messages, sums } = fit.sum(&shapes, values, message, wishes)?;
        self.wishes = wishes;
        self.sample_device_memory();
        let Some(sums) = sums else { return Ok(None) };
        let mut worked = vec![Worked::default(); round.len()];
        for message in messages {
            let mut rest = &*message;
            for (index, bytes) in next_part(&mut rest).chunks(Numbers::BYTES).enumerate() {
                worked[index % round.len()].workers.push(Numbers::from_bytes(bytes));
            }
            for step in &mut worked {
                step.load.add(&ExpertLoad::of_bytes(next_part(&mut rest)));
            }
        }
        Ok(Some((worked, sums)))
    }

    /// Launches a worker's step, which has numbers where it has micro-batches, and adds to `load`; breaks when the run is
    /// asked to stop.
    fn worker_step(
        &mut self,
        batch: &StepBatch,
        worker: usize,
        update: u64,
        load: &mut ExpertLoad,
    ) -> Result<ControlFlow<(), Option<PendingNumbers>>, FitError> {
        let fit = self.fit;
        if (fit.stop)() {
            return Ok(ControlFlow::Break(()));
        }
        let counts = fit.counts(batch, worker);
        if counts == Counts::default() {
            return Ok(ControlFlow::Continue(None));
        }
        let mut losses = Vec::new();
        let values = fit.lane(&self.adapters.until_update(), batch, worker, &mut losses, load)?;
        let Some(values) = values else { return Ok(ControlFlow::Break(())) };
        let scale = 1.0 / fit.objective.divisor(&counts) as f64;
        let gradient = Gradient::new(losses, values, scale, fit.decoder.device());
        let numbers = gradient.read_later();
        let learning_rate = fit.schedule.learning_rate(batch.step);
        self.optimizer.step(self.adapters, gradient, update, &[], learning_rate, fit.spec.max_grad_norm)?;
        Ok(ControlFlow::Continue(Some(numbers)))
    }

    /// Reads the numbers of a worker's step.
    fn numbers(
        &self,
        (batch, pending): (&StepBatch, Option<PendingNumbers>),
        worker: usize,
    ) -> Result<Numbers, FitError> {
        let fit = self.fit;
        let Some(pending) = pending else { return Ok(Numbers::NOTHING) };
        match pending.wait().map_err(|message| FitError::device(fit.device, message))? {
            StepNumbers::Finite { loss, norm, statistics } => {
                let statistics = statistics.unwrap_or([f32::NAN; statistics::LENGTH]);
                Ok(Numbers { loss, norm, statistics })
            }
            StepNumbers::NotFinite(what, value) => {
                let of_worker = fit.lanes.micro_batches(worker, batch.micro_batches.len());
                let rows = of_worker.flat_map(|index| batch.micro_batches[index].rows.iter().copied());
                let rows = named_rows(rows, fit.place);
                let fault = Fault { step: batch.step, what, value, rows };
                Err(FitError::Diverged { fault, checkpoint: None })
            }
        }
    }

    /// Counts a step that all workers made: the sum of their losses, and the mean of their gradient norms.
    fn advance(&mut self, batch: &StepBatch, workers: Vec<Numbers>) {
        let (mut loss, mut norm, mut busy) = (0.0, 0.0, 0);
        let mut statistics = None::<Statistics>;
        for (worker, numbers) in workers.into_iter().enumerate() {
            if numbers.loss.is_nan() {
                continue;
            }
            (loss, norm, busy) = (loss + numbers.loss, norm + numbers.norm, busy + 1);
            if !numbers.statistics[0].is_nan() {
                let counts = self.fit.counts(batch, worker);
                statistics.get_or_insert_default().extend(&Statistics::of(numbers.statistics, &counts));
            }
        }
        let result = StepResult {
            loss,
            count: self.fit.objective.divisor(&batch.counts),
            grad_norm: norm / f64::from(busy.max(1)),
            learning_rate: self.fit.schedule.learning_rate(batch.step),
            statistics,
        };
        self.state.advance(batch, result);
    }
}

impl Numbers {
    /// Of a step that has no micro-batch for the worker.
    const NOTHING: Self = Self { loss: f64::NAN, norm: f64::NAN, statistics: [f32::NAN; statistics::LENGTH] };
    const BYTES: usize = 2 * size_of::<f64>() + statistics::LENGTH * size_of::<f32>();

    fn to_bytes(self) -> Vec<u8> {
        let numbers = [self.loss.to_le_bytes(), self.norm.to_le_bytes()].concat();
        [numbers, to_bytes(&self.statistics)].concat()
    }

    /// Of bytes that are cut off: [`Self::NOTHING`].
    fn from_bytes(bytes: &[u8]) -> Self {
        let (numbers, statistics) = bytes.split_at(bytes.len().min(2 * size_of::<f64>()));
        match (numbers.as_chunks().0, from_bytes(statistics).first_chunk()) {
            ([loss, norm], Some(statistics)) => Self {
                loss: f64::from_le_bytes(*loss),
                norm: f64::from_le_bytes(*norm),
                statistics: *statistics,
            },
            _ => Self::NOTHING,
        }
    }
}
