//! `tune quantize`: saves a base model in 4 bits. And what 4 bits cost: errors of weights, losses on the user's rows.

use std::path::Path;

use tune_kernels::KernelBackend;

use super::adapters::keep_sources;
use super::evaluate::{corpus_of, dataset, held_out_of};
use super::inference::{ModelChoice, OpenedModel, Quantize};
use super::init::guess_format;
use super::verdict::Losses;
use super::{Environment, Error};
use crate::assets::resolve_base;
use crate::data::batch::MicroBatch;
use crate::data::corpus::Corpus;
use crate::data::spec::Format;
use crate::device::OnBackend;
use crate::export::quantize::report::{self, HeldOut, Report};
use crate::export::quantize::{self, Options, Outcome, Progress};
use crate::export::{self, base::OpenedBase};
use crate::files;
use crate::model;
use crate::quant::spec::{Quantization, Spec};
use crate::recipe::RecipeFile;

/// Rows that go through the model together.
const ROWS_AT_ONCE: usize = 4;

/// Opens and checks a base: a folder, or a hub id in the local cache. Reads no tensor data.
///
/// # Errors
/// It does not exist, or its architecture is not supported.
pub fn open(base: &str, revision: Option<&str>, environment: &Environment<'_>) -> Result<OpenedBase, Error> {
    let found = resolve_base(base, revision, environment.hub_cache).map_err(model::Error::from)?;
    Ok(OpenedBase::open(found)?)
}

/// Writes it in 4 bits to the folder `out`, which is complete or absent.
///
/// # Errors
/// As [`quantize::quantize`]; `out` contains the base.
pub fn quantize(
    base: &OpenedBase,
    out: &Path,
    options: Options,
    progress: &mut dyn FnMut(Progress),
    environment: &Environment<'_>,
) -> Result<Outcome, Error> {
    keep_sources(out, &[base.folder.root()])?;
    Ok(quantize::quantize(base, out, options, progress, environment.stop)?)
}

/// Rows, and a dense base that is compared on them with itself in 4 bits.
pub struct Comparison {
    opened: OpenedModel,
    quantization: Quantization,
    rows: Option<Rows>,
}

struct Rows {
    origin: String,
    batches: Vec<MicroBatch>,
    /// Rows that count, the first.
    limit: u64,
}

impl Comparison {
    /// Of the base that `choice` names, on the rows of `data`: the held-out rows of a recipe, or a dataset, whose format is
    /// told by its columns unless it is named. At most the first `limit` rows.
    ///
    /// # Errors
    /// Base or rows cannot be used.
    pub fn open(
        choice: ModelChoice<'_>,
        quantization: &Quantization,
        (data, format): (&str, Option<Format>),
        limit: u64,
        environment: &Environment<'_>,
    ) -> Result<Self, Error> {
        let choice = ModelChoice { quantize: Quantize::No, ..choice };
        let path = Path::new(data);
        let (opened, corpus, origin) = match path.extension().is_some_and(|extension| extension == "toml") {
            true => held_out_of(path, choice, environment)?,
            false => {
                let opened = OpenedModel::open(choice, environment)?;
                let guess = guess_format(data, environment.hub_cache)?;
                let fields: Vec<_> = guess.fields.into_iter().collect();
                let rows = match format {
                    Some(format) if format != guess.format => dataset(data, format, &[]),
                    _ => dataset(data, guess.format, &fields),
                };
                let corpus = corpus_of(&opened, None, rows)?;
                (opened, corpus, data.to_owned())
            }
        };
        let rows = Some(Rows { batches: batches(&corpus, limit, environment)?, origin, limit });
        Self::of(opened, quantization.clone(), rows)
    }

    /// Of the base of a run, on the first `limit` of its recipe's held-out rows.
    ///
    /// # Errors
    /// The run's base is not quantized while loading, or cannot be used any more.
    pub fn of_run(run: &Path, limit: u64, environment: &Environment<'_>) -> Result<Self, Error> {
        let path = run.join("recipe.toml");
        let recipe = RecipeFile::open(&path, &[])?.finish();
        let recipe = recipe.map_err(|problems| Error::Recipe(problems.into()))?;
        let Some(quantization) = recipe.quantization.clone() else {
            let message = format!("{} trained on a base that it did not quantize", run.display());
            return Err(Error::Choice(message));
        };
        let choice = ModelChoice { quantize: Quantize::No, ..ModelChoice::default() };
        match held_out_of(&path, choice, environment) {
            Ok((opened, corpus, origin)) => {
                let rows = Some(Rows { batches: batches(&corpus, limit, environment)?, origin, limit });
                Self::of(opened, quantization, rows)
            }
            // Without held-out rows there still are weights.
            Err(Error::Choice(_)) => {
                let opened = OpenedModel::of_recipe(&recipe, choice, environment)?;
                Self::of(opened, quantization, None)
            }
            Err(error) => Err(error),
        }
    }

    fn of(mut opened: OpenedModel, quantization: Quantization, rows: Option<Rows>) -> Result<Self, Error> {
        if opened.base.quantized {
            let message =
                format!("{} is stored in 4 bits: there is no dense base to compare with", opened.base.name());
            return Err(export::Error::Choice { message }.into());
        }
        opened.base = opened.base.keeping(&quantization.keep)?;
        Ok(Self { opened, quantization, rows })
    }

    /// The losses of both, where there are rows.
    ///
    /// # Errors
    /// The base cannot be read, a loss is not finite, or the comparison was asked to stop.
    pub fn losses(
        &self,
        progress: &mut dyn FnMut(usize, usize),
        environment: &Environment<'_>,
    ) -> Result<Option<HeldOut>, Error> {
        let Some(Rows { origin, batches, limit }) = &self.rows else { return Ok(None) };
        let (base, blocks) = (&self.opened.base, self.quantization.blocks);
        let work = Comparing { base, blocks, batches, progress, stop: environment.stop };
        let found = self.opened.device.run(work)??;
        let (mut dense, mut quantized, mut change) =
            (Losses::default(), Losses::default(), Losses::default());
        let (mut rows, mut supervised_tokens) = (0, 0);
        for (batch, [one, other]) in batches.iter().zip(found) {
            let lengths: Vec<u64> = batch.lengths().collect();
            // Of a pair, the chosen answer.
            for first in batch.groups().map(|documents| documents.start) {
                if rows == *limit {
                    break;
                }
                let (one, other, tokens) = (one[first], other[first], lengths[first]);
                if let Some(value) = [one, other].into_iter().find(|value| !value.is_finite()) {
                    return Err(Error::NotFinite { place: format!("a row of {origin}"), value });
                }
                dense.push(one, tokens);
                quantized.push(other, tokens);
                change.push(other - one, tokens);
                rows += 1;
                supervised_tokens += tokens;
            }
        }
        let change = change.together();
        Ok(Some(HeldOut {
            origin: origin.clone(),
            rows,
            supervised_tokens,
            dense_loss: dense.together().loss,
            quantized_loss: quantized.together().loss,
            difference: change.loss,
            margin: change.margin,
        }))
    }

    /// Errors of weights and losses, as a report.
    ///
    /// # Errors
    /// As [`Self::losses`].
    pub fn report(
        &self,
        progress: &mut dyn FnMut(usize, usize),
        environment: &Environment<'_>,
    ) -> Result<Report, Error> {
        let errors =
            quantize::errors(&self.opened.base, self.quantization.blocks, progress, environment.stop)?;
        let held_out = self.losses(progress, environment)?;
        Ok(Report {
            quantization: self.quantization.to_string(),
            error: errors.together(),
            tensors: errors.tensors,
            held_out,
        })
    }
}

/// Writes what 4 bits cost the base of a run into its folder, where its page is made from.
///
/// # Errors
/// As [`Comparison::of_run`] and [`Comparison::report`]; the file cannot be written.
pub fn report_on_run(
    run: &Path,
    limit: u64,
    progress: &mut dyn FnMut(usize, usize),
    environment: &Environment<'_>,
) -> Result<Report, Error> {
    let found = Comparison::of_run(run, limit, environment)?.report(progress, environment)?;
    let text = serde_json::to_string_pretty(&found).unwrap_or_default();
    files::write_bytes(&run.join(report::FILE), format!("{text}\n").as_bytes())?;
    Ok(found)
}

fn batches(corpus: &Corpus, limit: u64, environment: &Environment<'_>) -> Result<Vec<MicroBatch>, Error> {
    let (mut batches, mut rows) = (Vec::new(), 0);
    for batch in corpus.validation(ROWS_AT_ONCE)? {
        if (environment.stop)() {
            return Err(Error::Stopped);
        }
        let batch = batch?;
        rows += batch.groups().count() as u64;
        batches.push(batch);
        if rows >= limit {
            break;
        }
    }
    Ok(batches)
}

struct Comparing<'a> {
    base: &'a OpenedBase,
    blocks: Spec,
    batches: &'a [MicroBatch],
    progress: &'a mut dyn FnMut(usize, usize),
    stop: &'a dyn Fn() -> bool,
}

impl OnBackend for Comparing<'_> {
    type Output = Result<Vec<[Vec<f64>; 2]>, export::Error>;

    fn call<B: KernelBackend>(self, device: &B::Device) -> Self::Output {
        quantize::losses::<B>(self.base, self.blocks, self.batches, device, self.progress, self.stop)
    }
}
