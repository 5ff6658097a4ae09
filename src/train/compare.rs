//! The forward passes that an objective needs before that of a micro-batch: the reference's, and those of mismatched
//! prompts and answers.

use tune_kernels::KernelBackend;

use super::backward::document_sums;
use super::error::FitError;
use crate::adapter::lora::StepAdapters;
use crate::data::batch::MicroBatch;
use crate::model::Decoder;
use crate::objective::{Comparison, Objective};

/// Runs them. `reference` is the adapter as the run began, without any where it began with the base. Does not wait for
/// the device.
///
/// # Errors
/// Token ids outside the vocabulary, or a layer that cannot be read.
pub fn compare<B: KernelBackend>(
    decoder: &Decoder<B>,
    adapters: &StepAdapters<'_, B>,
    reference: Option<&StepAdapters<'_, B>>,
    objective: &Objective,
    batch: &MicroBatch,
) -> Result<Comparison<B>, FitError> {
    let Some(reference) = reference.filter(|_| objective.needs_reference()) else {
        return Ok(Comparison::default());
    };
    let baseline = match objective.needs_baseline() {
        true => {
            let mismatched = batch.mismatched();
            let expected = document_sums(decoder, reference, &mismatched)?;
            Some((expected - document_sums(decoder, adapters, &mismatched)?).mean())
        }
        false => None,
    };
    Ok(Comparison { reference: Some(document_sums(decoder, reference, batch)?), baseline })
}
