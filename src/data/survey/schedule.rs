//! How many optimizer steps a run takes, and how large they get: the packer of training, run on lengths alone.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::data::batch::Batching;
use crate::data::corpus::Inner;
use crate::data::error::Error;
use crate::data::pack::Boundary;

/// The shape of a run, found by placing the length of every example of every epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// Optimizer steps of the whole run.
    pub steps: u64,
    /// Optimizer steps of the whole first epoch, even if the run ends within it.
    pub steps_per_epoch: u64,
    /// Examples seen.
    pub examples: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Tokens in the largest micro-batch, which memory is planned for.
    pub largest_micro_batch: u64,
    /// Tokens in the longest document.
    pub longest_document: u64,
}

/// Places every example of every epoch by its length. A length of 0: left out.
pub(super) fn schedule(
    inner: &Inner,
    batching: &Batching,
    lengths: &[Vec<u32>],
    cancel: &AtomicBool,
) -> Result<Schedule, Error> {
    let nothing_left = || Error::NothingLeft { rows: inner.training_rows() };
    let mut schedule = Schedule::default();
    let mut epoch = 0;
    'run: while !batching.ends_before(epoch) && !batching.done(schedule.steps) {
        let plan = inner.plan(epoch)?;
        let mut packer = inner.packer(batching);
        let (mut examples, mut micro_batch) = (0_u64, 0_u64);
        for position in 0..batching.examples_of(epoch, plan.len()) {
            if position % (1 << 16) == 0 && cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            let Some(id) = plan.at(position) else { continue };
            let tokens = lengths[id.dataset as usize][id.row as usize];
            if tokens == 0 {
                continue;
            }
            let boundary = packer.place(tokens as usize);
            if boundary == Boundary::Step {
                if batching.done(schedule.steps) {
                    break 'run;
                }
                schedule.steps += 1;
            }
            if boundary >= Boundary::MicroBatch {
                micro_batch = 0;
            }
            examples += 1;
            schedule.examples += 1;
            micro_batch += u64::from(tokens);
            schedule.tokens += u64::from(tokens);
            schedule.largest_micro_batch = schedule.largest_micro_batch.max(micro_batch);
            schedule.longest_document = schedule.longest_document.max(u64::from(tokens));
        }
        if examples == 0 && (epoch == 0 || batching.epochs.is_none()) {
            return Err(nothing_left());
        }
        epoch += 1;
    }
    schedule.steps_per_epoch = steps_per_epoch(inner, batching, lengths)?;
    Ok(schedule)
}

/// Optimizer steps of the whole first epoch.
fn steps_per_epoch(inner: &Inner, batching: &Batching, lengths: &[Vec<u32>]) -> Result<u64, Error> {
    let (plan, mut packer) = (inner.plan(0)?, inner.packer(batching));
    let rows = (0..plan.len()).filter_map(|position| plan.at(position));
    let used = rows.map(|id| lengths[id.dataset as usize][id.row as usize]).filter(|tokens| *tokens > 0);
    Ok(used.filter(|tokens| packer.place(*tokens as usize) == Boundary::Step).count() as u64)
}
