//! Compares a merged model with the adapter on its base. Both are read back from disk, one layer at a time, and run
//! in f32 over the same rows.
//!
//! Each token's logits are compared after subtracting their mean over the vocabulary: a constant changes no
//! probability. All figures are root mean squares over tokens and vocabulary:
//!
//! | figure | of |
//! |---|---|
//! | spread | logits of adapter on base |
//! | effect | adapter on base − base |
//! | residual | merged − adapter on base |
//!
//! A merge is correct if rounding explains the residual: `residual ≤ 4 · (‖rounding‖ / ‖delta‖) · effect +
//! 1e-5 · spread`, norms over all weights. It is useful if the residual is a small fraction of the effect.

use std::path::Path;

use burn_tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::attention::DocumentOffsets;

use super::Error;
use super::base::OpenedBase;
use super::weights::{Onto, Report};
use crate::adapter::lora::LoraSet;
use crate::adapter::peft;
use crate::adapter::projection::LayerAdapters;
use crate::adapter::saved::SavedModule;
use crate::adapter::target::Target;
use crate::assets::ModelDir;
use crate::model::layers::{LayerInputs, Order};
use crate::model::load::{Loader, Progress};
use crate::model::{Decoder, DecoderSpec, FloatDtype, family};
use crate::quant::spec::Spec;

/// Default limit of [`Comparison::divergence`].
pub const MAX_DIVERGENCE: f64 = 0.5;

/// Rows of token ids to compare on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Token ids of each row; positions start at 0.
    pub ids: Vec<Vec<u32>>,
    /// Origin of the rows, for messages.
    pub origin: String,
}

impl Rows {
    /// Total number of tokens.
    pub fn tokens(&self) -> usize {
        self.ids.iter().map(Vec::len).sum()
    }
}

/// Differences between the merged model and the adapter on its base.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Logits of adapter on base.
    pub spread: f64,
    /// Difference between adapter on base and the base alone.
    pub effect: f64,
    /// Difference between the merged model and adapter on base.
    pub residual: f64,
    /// Share of positions at which both predict the same most likely token.
    pub agreement: f64,
    /// Difference between the merged model and the adapter on the quantized base of training, if it was merged onto
    /// other weights.
    pub from_training: Option<f64>,
}

impl Comparison {
    /// `residual / effect`; 0 if both are 0.
    pub fn divergence(&self) -> f64 {
        match self.residual > 0.0 {
            true => self.residual / self.effect,
            false => 0.0,
        }
    }

    /// Checks the comparison: `rounding` and `delta` are norms over all weights, `limit` the accepted divergence.
    ///
    /// # Errors
    /// [`Error::Diverged`].
    pub fn judge(&self, report: &Report, max_divergence: f64) -> Result<(), Error> {
        let Self { spread, effect, residual, .. } = *self;
        let fail = |message: String| Err(Error::Diverged { message });
        if !(spread.is_finite() && effect.is_finite() && residual.is_finite()) {
            return fail("the logits are not finite".into());
        }
        let noise = 1e-5 * spread;
        let rounding = if report.delta() > 0.0 { report.rounding / report.delta() } else { 0.0 };
        let explained = 4.0 * rounding * effect + noise;
        // An adapter without effect: only rounding to another dtype remains.
        if residual > explained && effect > noise {
            return fail(format!(
                "the logits differ by {residual:.2e}, rounding explains {explained:.2e}; files of the base or the adapter \
                 may have changed during the merge"
            ));
        }
        if residual > max_divergence * effect && residual > noise {
            return fail(format!(
                "rounding loses {:.0} % of the adapter's effect (limit {:.0} %); write a wider dtype (`--dtype f32`), use \
                 the adapter unmerged, or raise `--max-divergence`",
                100.0 * self.divergence(),
                100.0 * max_divergence
            ));
        }
        Ok(())
    }
}

/// The models to compare.
pub struct Sides<'a> {
    /// The base.
    pub base: &'a OpenedBase,
    /// The adapter.
    pub adapter: &'a peft::Adapter,
    /// Its targets.
    pub targets: &'a [Target],
    /// Its modules to save.
    pub saved_modules: &'a [SavedModule],
    /// The weights it was merged onto.
    pub onto: Onto,
    /// The quantization of the base in training, if known.
    pub trained: Option<Spec>,
    /// The merged folder.
    pub merged: &'a Path,
}

/// Runs every model over `rows`. Memory: embeddings, one layer in f32, and the hidden states of the rows.
///
/// # Errors
/// A folder cannot be read back, a token id is outside the vocabulary, or `stop` returned true.
pub fn compare<B: KernelBackend>(
    sides: &Sides<'_>,
    rows: &Rows,
    device: &B::Device,
    progress: &mut dyn FnMut(usize, usize),
    stop: &dyn Fn() -> bool,
) -> Result<Comparison, Error> {
    let merged_folder = ModelDir::open(sides.merged)?;
    let ignored = &sides.base.ignored_config_keys;
    let merged_spec = family::decoder_spec_of_run(merged_folder.config(), ignored)?;
    let values = sides.adapter.values(sides.targets)?;
    let adapters: LoraSet<B> = LoraSet::from_values(sides.targets.to_vec(), 0.0, values, device)?;
    let adapters = sides.adapter.with_own_saved_modules(adapters, sides.saved_modules.to_vec(), device)?;
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
    let (mut adapted, adapted_inputs) = begin(&frame.adopting(&adapters), rows)?;
    let trained_inputs = adapted_inputs.apart();
    drop(frame);
    let mut as_trained = trained.is_some().then(|| adapted.clone());
    let (mut folded, folded_inputs) = begin(&merged.frame()?, rows)?;
    let none = LayerAdapters::none();
    let all = || Order::Up(0..spec.layers.len());
    let mut trained_layers = trained.as_mut().map(|loader| loader.walk(all()));
    for (step, merged_step) in base.walk(all()).zip(merged.walk(all())) {
        if stop() {
            return Err(Error::Stopped);
        }
        let (index, layer) = step?;
        let own = adapters.layer(index, None);
        plain = layer.forward(plain, &none, &inputs, None);
        adapted = layer.forward(adapted, &own, &adapted_inputs, None);
        drop(layer);
        let trained_step = trained_layers.as_mut().and_then(Iterator::next).transpose()?;
        if let (Some((_, layer)), Some(x)) = (trained_step, as_trained.take()) {
            // DoRA's norms belong to one base: computed anew.
            let own = adapters.layer(index, None);
            as_trained = Some(layer.forward(x, &own, &trained_inputs, None));
        }
        let (_, layer) = merged_step?;
        folded = layer.forward(folded, &none, &folded_inputs, None);
        progress(index + 1, spec.layers.len());
    }
    drop(trained_layers);
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

/// Embeddings of all rows, concatenated, and the inputs shared by all layers.
fn begin<B: KernelBackend>(frame: &Decoder<B>, rows: &Rows) -> Result<(Tensor<B, 2>, LayerInputs<B>), Error> {
    let ids: Vec<u32> = rows.ids.iter().flatten().copied().collect();
    let positions: Vec<u32> = rows.ids.iter().flat_map(|row| 0..row.len() as u32).collect();
    let mut offsets = vec![0];
    offsets.extend(rows.ids.iter().scan(0, |end, row| {
        *end += row.len() as u32;
        Some(*end)
    }));
    let x = frame.embed(&ids)?;
    let inputs = frame.inputs_of(&ids, &x, &positions, DocumentOffsets::packed(&offsets))?;
    Ok((x, inputs))
}

fn logits<B: KernelBackend>(frame: &Decoder<B>, x: Tensor<B, 2>) -> Result<Vec<f32>, Error> {
    let data = frame.logits_of(frame.final_norm(&x)).try_into_data();
    let values = data.map_err(|error| format!("{error:?}"));
    let values = values.and_then(|data| data.into_vec().map_err(|error| format!("{error:?}")));
    values.map_err(|reason| Error::Diverged {
        message: format!("cannot read the logits from the device: {reason}"),
    })
}

/// Root mean square of `left` or `left - right`, after subtracting the mean of each token's row.
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

/// Share of positions whose largest logit is at the same token.
fn agreement(left: &[f32], right: &[f32], spec: &DecoderSpec) -> f64 {
    let first =
        |row: &[f32]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(index, _)| index);
    let rows = left.chunks_exact(spec.vocab_size).zip(right.chunks_exact(spec.vocab_size));
    let total = rows.len().max(1);
    rows.filter(|(left, right)| first(left) == first(right)).count() as f64 / total as f64
}
