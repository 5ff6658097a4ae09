//! What a merged model or a GGUF file keeps of what training gained, on held-out rows: those of the run that the adapter is
//! of, or those of a dataset.

use std::path::Path;

use serde::Serialize;
use tune_kernels::KernelBackend;

use super::evaluate::corpus_of;
use super::held_out::recipe_beside;
use super::inference::{ModelChoice, OpenedModel};
use super::open::open;
use super::{Environment, Error};
use crate::assets::WeightFiles;
use crate::data::batch::MicroBatch;
use crate::data::corpus::Corpus;
use crate::data::spec::DatasetSpec;
use crate::device::{Device, OnBackend};
use crate::export;
use crate::export::base::OpenedBase;
use crate::export::fidelity::{Adapted, Losses, Sides, losses};
use crate::model::DecoderSpec;
use crate::recipe::{DeviceSpec, RecipeFile};

/// Rows at most.
const ROWS: usize = 32;
/// Tokens from which on no further row is taken.
const TOKENS: usize = 2048;
/// Training has to lower the loss by so much for a share of it to mean anything.
const SMALLEST_GAIN: f64 = 0.01;

/// Rows that were not trained on.
pub struct HeldOut {
    batches: Vec<MicroBatch>,
    /// Where they come from, in words.
    pub origin: String,
}

/// Losses on held-out rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fidelity {
    /// Where the rows come from.
    pub origin: String,
    /// Their number.
    pub rows: u64,
    /// Their supervised tokens.
    pub supervised_tokens: u64,
    /// The loss of the base.
    pub base: f64,
    /// The loss of the adapter on the base as it was trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trained: Option<f64>,
    /// The loss of what was written.
    pub written: f64,
}

impl Fidelity {
    /// The share of the gain of training that what was written has lost; below 0 where it is better. `None` where training
    /// gained nothing to speak of, or nothing was trained.
    pub fn lost(&self) -> Option<f64> {
        let trained = self.trained?;
        let gained = self.base - trained;
        (gained >= SMALLEST_GAIN).then(|| (self.written - trained) / gained)
    }
}

impl HeldOut {
    /// The held-out rows of the run whose adapter is in `adapter`; `None` where there are none, or its data are no longer
    /// where they were.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn of_run(adapter: &Path, environment: &Environment<'_>) -> Result<Option<Self>, Error> {
        let Some(recipe) = recipe_beside(adapter) else { return Ok(None) };
        match Self::of_recipe(&recipe, environment) {
            Err(Error::Stopped) => Err(Error::Stopped),
            found => Ok(found.ok().filter(|found| !found.batches.is_empty())),
        }
    }

    /// The held-out rows of a recipe.
    ///
    /// # Errors
    /// It or something that it names cannot be used.
    pub fn of_recipe(recipe: &Path, environment: &Environment<'_>) -> Result<Self, Error> {
        let opened = open(RecipeFile::open(recipe, &[])?, environment)?;
        Self::of(&opened.corpus, format!("held-out rows of {}", recipe.display()), environment)
    }

    /// The rows of a dataset, as the model that `choice` names reads them.
    ///
    /// # Errors
    /// Model or rows cannot be used; there are no rows.
    pub fn of_dataset(
        data: DatasetSpec,
        choice: ModelChoice<'_>,
        environment: &Environment<'_>,
    ) -> Result<Self, Error> {
        let opened = OpenedModel::open(choice, environment)?;
        let origin = data.path.clone();
        let found = Self::of(&corpus_of(&opened, None, data)?, origin.clone(), environment)?;
        if found.batches.is_empty() { Err(Error::NoRows { origin }) } else { Ok(found) }
    }

    fn of(corpus: &Corpus, origin: String, environment: &Environment<'_>) -> Result<Self, Error> {
        let (mut batches, mut rows, mut tokens): (Vec<MicroBatch>, _, _) = (Vec::new(), 0, 0);
        for batch in corpus.validation(1)? {
            let batch = batch?;
            rows += batch.rows.len();
            tokens += batch.input_ids.len();
            batches.push(batch);
            if (environment.stop)() {
                return Err(Error::Stopped);
            }
            if rows >= ROWS || tokens >= TOKENS {
                break;
            }
        }
        Ok(Self { batches, origin })
    }

    /// Measures what was written.
    ///
    /// # Errors
    /// There are no rows, a file cannot be read, the device cannot be used, a loss is not finite, or the work was asked to
    /// stop.
    pub fn measure(
        &self,
        base: &OpenedBase,
        adapted: Option<Adapted<'_>>,
        (written, spec): (&WeightFiles, &DecoderSpec),
        device: DeviceSpec,
        progress: &mut dyn FnMut(usize, usize),
        environment: &Environment<'_>,
    ) -> Result<Fidelity, Error> {
        if self.batches.is_empty() {
            return Err(Error::NoRows { origin: self.origin.clone() });
        }
        let sides = Sides { base, adapted, written, spec };
        let work = Measuring { sides, batches: &self.batches, progress, stop: environment.stop };
        let Losses { base, trained, written } = Device::choose(device)?.run(work)??;
        let wrong = [Some(base), trained, Some(written)].into_iter().flatten().find(|loss| !loss.is_finite());
        if let Some(value) = wrong {
            return Err(Error::NotFinite { place: self.origin.clone(), value });
        }
        Ok(Fidelity {
            origin: self.origin.clone(),
            rows: self.batches.iter().map(|batch| batch.rows.len() as u64).sum(),
            supervised_tokens: self.batches.iter().map(|batch| batch.supervised_tokens).sum(),
            base,
            trained,
            written,
        })
    }
}

struct Measuring<'a> {
    sides: Sides<'a>,
    batches: &'a [MicroBatch],
    progress: &'a mut dyn FnMut(usize, usize),
    stop: &'a dyn Fn() -> bool,
}

impl OnBackend for Measuring<'_> {
    type Output = Result<Losses, export::Error>;

    fn call<B: KernelBackend>(self, device: &B::Device) -> Self::Output {
        losses::<B>(&self.sides, self.batches, device, self.progress, self.stop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_that_is_lost_is_of_what_training_gained() {
        let of = |base, trained, written| {
            let origin = String::new();
            Fidelity { origin, rows: 1, supervised_tokens: 1, base, trained, written }.lost()
        };
        assert_eq!(of(3.0, Some(1.0), 1.5), Some(0.25));
        assert_eq!(of(3.0, Some(1.0), 1.0), Some(0.0));
        assert_eq!(of(3.0, Some(2.995), 3.5), None, "nothing was gained that could be lost");
        assert_eq!(of(3.0, None, 3.5), None);
    }
}
