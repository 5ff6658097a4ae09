//! The objective over the held-out examples. Several ranks take the micro-batches in turn; the numbers of each are added at
//! their place, so that the result is the same for every number of ranks.

use burn_tensor::Tensor;
use tune_kernels::{KernelBackend, Reading};

use super::backward::evaluate;
use super::compare::compare;
use super::divergence::{Fault, Quantity, named_rows};
use super::error::FitError;
use super::event::{EvaluationReport, Event, Observer};
use super::fit::Fit;
use super::state::State;
use super::team::{from_bytes, to_bytes};
use crate::adapter::lora::{LoraSet, StepAdapters};
use crate::data::batch::{Counts, MicroBatch};
use crate::data::corpus::ValidationStream;
use crate::data::example::RowId;
use crate::objective::Summed;
use crate::objective::statistics::Statistics;

/// The first byte of a rank's message.
const DONE: u8 = 0;
const STOPS: u8 = 1;

/// What is known of a held-out micro-batch beside its loss.
struct Part {
    rows: Vec<RowId>,
    counts: Counts,
}

impl<B: KernelBackend> Fit<'_, B> {
    /// Evaluates the rows of `held_out` after the steps of `state`; `None` when the run is asked to stop meanwhile.
    ///
    /// # Errors
    /// Unreadable rows, a failed device or rank, or a loss that is not finite.
    pub(super) fn evaluate(
        &self,
        adapters: &LoraSet<B>,
        held_out: ValidationStream,
        state: &State,
        observer: &mut dyn Observer,
    ) -> Result<Option<EvaluationReport>, FitError> {
        let (mut parts, mut numbers, mut examples) = (Vec::new(), Vec::new(), 0);
        let (rank, ranks) = (self.team.rank(), self.team.size());
        // Read when the next one is launched, as the steps are.
        let mut launched: Option<Reading> = None;
        let mut read = |reading: Option<Reading>| -> Result<(), FitError> {
            let Some(reading) = reading else { return Ok(()) };
            let read = reading.wait().map_err(|message| FitError::device(self.device, message))?;
            numbers.push(read);
            Ok(())
        };
        let mut message = vec![DONE];
        let adapters = adapters.until_update();
        for (index, micro_batch) in held_out.enumerate() {
            let micro_batch = micro_batch?;
            if index % ranks == rank {
                if (self.stop)() {
                    message = vec![STOPS];
                    break;
                }
                observer.observe(&Event::Evaluating { done: examples, total: self.held_out_examples });
                let loss = self.evaluated(&adapters, &micro_batch)?;
                read(launched.replace(loss))?;
                if !self.runs_ahead {
                    read(launched.take())?;
                }
            }
            examples += micro_batch.rows.len() as u64;
            parts.push(Part { counts: micro_batch.counts(), rows: micro_batch.rows });
        }
        read(launched)?;
        let width = numbers.first().map_or(1, Vec::len) as u8;
        message.push(width);
        numbers.iter().for_each(|numbers| message.extend(to_bytes(numbers)));
        let messages = self.team.gather(&message)?;
        if messages.iter().any(|message| message.first() != Some(&DONE)) {
            return Ok(None);
        }

        let numbers: Vec<(usize, Vec<f32>)> = messages
            .iter()
            .map(|message| (message.get(1).map_or(1, |width| usize::from(*width)), from_bytes(&message[2..])))
            .collect();
        let (mut sum, mut statistics, mut counts) = (0.0, None::<Statistics>, Counts::default());
        for (index, part) in parts.into_iter().enumerate() {
            let (width, numbers) = &numbers[index % ranks];
            let numbers = numbers.chunks((*width).max(1)).nth(index / ranks).unwrap_or_default();
            let Some((loss, more)) = numbers.split_first() else {
                return Err(FitError::device(self.device, "no numbers to read".into()));
            };
            sum += f64::from(*loss);
            if let Some(more) = more.first_chunk() {
                statistics.get_or_insert_default().extend(&Statistics::of(*more, &part.counts));
            }
            if !f64::is_finite(sum) {
                let rows = named_rows(part.rows.iter().copied(), self.place);
                let fault = Fault { step: state.step, what: Quantity::HeldOutLoss, value: sum, rows };
                return Err(FitError::Diverged { fault, checkpoint: None });
            }
            counts = counts + part.counts;
        }
        Ok(Some(EvaluationReport {
            step: state.step,
            epoch: state.epoch,
            eval_loss: sum / self.objective.divisor(&counts) as f64,
            eval_tokens: counts.tokens,
            answers: statistics.and_then(|statistics| statistics.means()),
        }))
    }

    /// Launches the evaluation of a micro-batch: its loss, and behind it the objective's statistics.
    fn evaluated(&self, adapters: &StepAdapters<'_, B>, batch: &MicroBatch) -> Result<Reading, FitError> {
        let (decoder, objective) = (self.decoder, self.objective);
        let comparison = compare(decoder, adapters, self.reference, objective, batch)?;
        let Summed { value, statistics } = evaluate(decoder, adapters, objective, &comparison, batch)?;
        Ok(B::read_later(match statistics {
            Some(statistics) => Tensor::cat(vec![value, statistics], 0),
            None => value,
        }))
    }
}
