//! Does a merged model compute what the adapter on its base does? Both are read from disk again, one layer at a time,
//! and run side by side in f32 over the same rows.
//!
//! Logits are compared after their mean over the vocabulary is taken off, since a constant changes no probability.
//! All figures are root mean squares over tokens and vocabulary:
//!
//! | figure | of |
//! |---|---|
//! | spread | logits of adapter on base |
//! | effect | adapter on base − base |
//! | residual | merged − adapter on base |
//!
//! A merge is right when the residual is what rounding explains: `residual ≤ 4 · (‖rounding‖ / ‖delta‖) · effect +
//! 1e-5 · spread`, norms over all weights. It is useful when the residual stays a fraction of the effect.

use std::path::Path;

use burn::tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::attention::DocumentOffsets;

use super::Error;
use super::base::OpenedBase;
use super::weights::{Onto, Report};
use crate::adapter::lora::LoraSet;
use crate::adapter::peft;
use crate::adapter::projection::LayerAdapters;
use crate::adapter::target::Target;
use crate::adapter::whole::Whole;
use crate::assets::ModelDir;
use crate::model::layers::LayerInputs;
use crate::model::load::{Loader, Progress};
use crate::model::{Decoder, DecoderSpec, FloatDtype, family};
use crate::quant::spec::Spec;

/// Most of the effect that a merge may lose, unless the user says otherwise.
pub const MAX_DIVERGENCE: f64 = 0.5;

/// Rows of token ids to compare on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Each begins at position 0.
    pub ids: Vec<Vec<u32>>,
    /// Where they come from, for people.
    pub origin: String,
}

impl Rows {
    /// Tokens in all.
    pub fn tokens(&self) -> usize {
        self.ids.iter().map(Vec::len).sum()
    }
}

/// How close two models are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Logits of adapter on base.
    pub spread: f64,
    /// What the adapter changes.
    pub effect: f64,
    /// What merging changes.
    pub residual: f64,
    /// Share of tokens after which both put the same one first.
    pub agreement: f64,
    /// What the merged model differs by from the adapter on the quantized base that it was trained on, where that is
    /// another one than it was merged onto.
    pub from_training: Option<f64>,
}

impl Comparison {
    /// The residual as a share of the effect; 0 where neither is.
    pub fn divergence(&self) -> f64 {
        match self.residual > 0.0 {
            true => self.residual / self.effect,
            false => 0.0,
        }
    }

    /// Says what is wrong with a merge, if anything is.
    ///
    /// # Errors
    /// [`Error::Diverged`].
    pub fn judge(&self, report: &Report, max_divergence: f64) -> Result<(), Error> {
        let Self { spread, effect, residual, .. } = *self;
        let fail = |message: String| Err(Error::Diverged { message });
        if !(spread.is_finite() && effect.is_finite() && residual.is_finite()) {
            return fail("its logits are not finite".into());
        }
        let noise = 1e-5 * spread;
        let rounding = if report.delta() > 0.0 { report.rounding / report.delta() } else { 0.0 };
        let explained = 4.0 * rounding * effect + noise;
        // With no adapter to speak of, rounding to another dtype is all there is.
        if residual > explained && effect > noise {
            return fail(format!(
                "its logits differ by {residual:.2e}, where rounding explains {explained:.2e}; the files of base or \
                 adapter may have changed while they were read"
            ));
        }
        if residual > max_divergence * effect && residual > noise {
            return fail(format!(
                "rounding takes {:.0} % of what the adapter does (at most {:.0} % may be lost): write a wider dtype \
                 (`--dtype f32`), keep the adapter as it is, or allow more with `--max-divergence`",
                100.0 * self.divergence(),
                100.0 * max_divergence
            ));
        }
        Ok(())
    }
}

/// What is compared.
pub struct Sides<'a> {
    /// The base.
    pub base: &'a OpenedBase,
    /// The adapter.
    pub adapter: &'a peft::Adapter,
    /// Its targets.
    pub targets: &'a [Target],
    /// The modules that it has as a whole.
    pub wholes: &'a [Whole],
    /// What it was merged onto.
    pub onto: Onto,
    /// The quantization it was trained on, where that is known.
    pub trained: Option<Spec>,
    /// The merged folder.
    pub merged: &'a Path,
}

/// Runs all sides over `rows`. Memory is the embeddings and one layer in f32, and the hidden states of the rows.
///
/// # Errors
/// A folder that cannot be read back, a row the model has no tokens for, or `stop` says so.
pub fn compare<B: KernelBackend>(
    sides: &Sides<'_>,
    rows: &Rows,
    device: &B::Device,
    progress: &mut dyn FnMut(usize, usize),
    stop: &dyn Fn() -> bool,
) -> Result<Comparison, Error> {
    let merged_folder = ModelDir::open(sides.merged)?;
    let merged_spec = family::decoder_spec(merged_folder.config())?;
    let values = sides.adapter.values(sides.targets)?;
    let adapters: LoraSet<B> = LoraSet::from_values(sides.targets.to_vec(), 0.0, values, device)?;
    let adapters = sides.adapter.with_own_wholes(adapters, sides.wholes.to_vec(), device)?;
    let onto = match sides.onto {
        Onto::Dequantized(spec) => Some(spec),
        Onto::Original | Onto::Stored => None,
    };
    let other_training = sides.trained.filter(|_| sides.onto == Onto::Original);

    let weights = sides.base.folder.weights();
    let mut silent = [|_: Progress<'_>| {}; 3];
    let [first, second, third] = &mut silent;
    let spec = &sides.base.spec;
    let mut base = Loader::<B>::new(weights, spec, onto, FloatDtype::F32, device, first)?;
    let mut merged =
        Loader::<B>::new(merged_folder.weights(), &merged_spec, None, FloatDtype::F32, device, second)?;
    let mut trained = match other_training {
        Some(quantization) => {
            Some(Loader::<B>::new(weights, spec, Some(quantization), FloatDtype::F32, device, third)?)
        }
        None => None,
    };

    let frame = base.frame()?;
    let (mut plain, inputs) = begin(&frame, rows)?;
    let (mut adapted, _) = begin(&frame.adopting(&adapters), rows)?;
    drop(frame);
    let mut as_trained = trained.is_some().then(|| adapted.clone());
    let (mut folded, folded_inputs) = begin(&merged.frame()?, rows)?;
    let none = LayerAdapters::none();
    for index in 0..spec.layers {
        if stop() {
            return Err(Error::Stopped);
        }
        let own = adapters.layer(index, None);
        let layer = base.layer(index)?;
        plain = layer.forward(plain, &none, &inputs, None);
        adapted = layer.forward(adapted, &own, &inputs, None);
        drop(layer);
        if let (Some(loader), Some(x)) = (&mut trained, as_trained.take()) {
            // Afresh: what DoRA computes belongs to one base.
            let own = adapters.layer(index, None);
            as_trained = Some(loader.layer(index)?.forward(x, &own, &inputs, None));
        }
        folded = merged.layer(index)?.forward(folded, &none, &folded_inputs, None);
        progress(index + 1, spec.layers);
    }
    let frame = base.frame()?;
    let plain = logits(&frame, plain)?;
    let frame = frame.adopting(&adapters);
    let adapted = logits(&frame, adapted)?;
    let as_trained = as_trained.map(|x| logits(&frame, x)).transpose()?;
    drop(frame);
    let folded = logits(&merged.frame()?, folded)?;
    let difference = |left: &[f32], right: &[f32]| root_mean_square(left, Some(right), spec);
    Ok(Comparison {
        spread: root_mean_square(&adapted, None, spec),
        effect: difference(&adapted, &plain),
        residual: difference(&folded, &adapted),
        agreement: agreement(&folded, &adapted, spec),
        from_training: as_trained.map(|as_trained| difference(&folded, &as_trained)),
    })
}

/// Embeddings of all rows one behind the other, and what every layer needs beside them.
fn begin<B: KernelBackend>(frame: &Decoder<B>, rows: &Rows) -> Result<(Tensor<B, 2>, LayerInputs<B>), Error> {
    let ids: Vec<u32> = rows.ids.iter().flatten().copied().collect();
    let positions: Vec<u32> = rows.ids.iter().flat_map(|row| 0..row.len() as u32).collect();
    let mut offsets = vec![0];
    offsets.extend(rows.ids.iter().scan(0, |end, row| {
        *end += row.len() as u32;
        Some(*end)
    }));
    let x = frame.embed(&ids)?;
    Ok((x, frame.inputs(&positions, DocumentOffsets::packed(&offsets))?))
}

fn logits<B: KernelBackend>(frame: &Decoder<B>, x: Tensor<B, 2>) -> Result<Vec<f32>, Error> {
    let data = frame.logits_of(frame.final_norm(&x)).try_into_data();
    let values = data.map_err(|error| format!("{error:?}"));
    let values = values.and_then(|data| data.into_vec().map_err(|error| format!("{error:?}")));
    values.map_err(|reason| Error::Diverged {
        message: format!("the device did not give its logits: {reason}"),
    })
}

/// Root mean square of `left` (less `right`), the mean of each token's row taken off.
fn root_mean_square(left: &[f32], right: Option<&[f32]>, spec: &DecoderSpec) -> f64 {
    let mut sum = 0.0;
    let mut row = Vec::with_capacity(spec.vocab_size);
    for start in (0..left.len()).step_by(spec.vocab_size) {
        row.clear();
        let values = &left[start..start + spec.vocab_size];
        match right {
            None => row.extend(values.iter().map(|value| f64::from(*value))),
            Some(right) => {
                let pairs = values.iter().zip(&right[start..]);
                row.extend(pairs.map(|(left, right)| f64::from(*left) - f64::from(*right)));
            }
        }
        let mean = row.iter().sum::<f64>() / row.len() as f64;
        sum += row.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    }
    (sum / left.len().max(1) as f64).sqrt()
}

/// Share of tokens whose largest logit is the same one.
fn agreement(left: &[f32], right: &[f32], spec: &DecoderSpec) -> f64 {
    let first =
        |row: &[f32]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(index, _)| index);
    let rows = left.chunks_exact(spec.vocab_size).zip(right.chunks_exact(spec.vocab_size));
    let total = rows.len().max(1);
    rows.filter(|(left, right)| first(left) == first(right)).count() as f64 / total as f64
}
