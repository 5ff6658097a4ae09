//! The values of an adapter: A and B of every target, under DoRA its magnitudes, and the modules to save; f32, on the
//! device.
//!
//! `y = W·x + scaling · B·(A·dropout(x))`, A `[rank, in]`, B `[out, rank]` (Hu et al. 2021, section 4.1). A
//! starts as Kaiming-uniform with a = √5, which is U(−1/√in, 1/√in), and B as zero, so that the first step sees
//! the base model. The set is a flat list of parameters in one fixed order; layers borrow theirs from it. Refuses to
//! know files (`peft`) and optimizers.

use std::ops::Range;

use burn_tensor::{DType, Tensor, TensorData};
use sha2::{Digest, Sha256};
use tune_kernels::KernelBackend;
use tune_kernels::dropout::{Dropout, DropoutKey, philox};
use tune_kernels::linear::Lora;

use super::dora::Dora;
use super::error::Error;
use super::parameter::{Parameter, Part};
use super::projection::{Adapter, LayerAdapters, Slot};
use super::saved::{SavedKind, SavedModule};
use super::target::{Target, tensors};

/// Which dropout masks a forward pass draws: the same for a recomputed layer and a resumed run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropoutStep {
    /// The run's seed.
    pub seed: u64,
    /// Optimizer step, from 1.
    pub step: u64,
    /// Micro-batch within the step, from 0.
    pub micro_batch: u32,
}

/// All adapters of a run.
///
/// Parameters are numbered: for each target A, then B, then magnitudes if it has them; targets by layer
/// and then by slot; behind them the modules to save. A clone shares the tensors; an update leaves the clone's as they are.
#[derive(Clone, Debug)]
pub struct LoraSet<B: KernelBackend> {
    targets: Vec<Target>,
    /// The number of each target's first parameter, and that of all.
    offsets: Vec<usize>,
    saved_modules: Vec<SavedModule>,
    parameters: Vec<Parameter>,
    tensors: Vec<Tensor<B, 2>>,
    /// Chance of an element of x to be zeroed, in [0, 1).
    dropout: f32,
}

impl<B: KernelBackend> LoraSet<B> {
    /// A new adapter: A drawn by seed and module path (so that neither the order of targets nor the number of
    /// threads matters), B zero. Magnitudes follow from the weights, and are NaN before
    /// [`Self::set_magnitudes`].
    pub fn init(targets: Vec<Target>, dropout: f64, seed: u64, device: &B::Device) -> Self {
        let targets = ordered(targets);
        let parameters = tensors(&targets);
        let values = parameters.iter().map(|parameter| match parameter.part {
            Part::A => kaiming_uniform(&parameter.name, parameter.shape, seed),
            Part::B => vec![0.0; parameter.shape[0] * parameter.shape[1]],
            Part::Magnitude | Part::Saved => vec![f32::NAN; parameter.shape[0] * parameter.shape[1]],
        });
        let tensors =
            values.zip(&parameters).map(|(values, parameter)| upload(values, parameter, device)).collect();
        Self {
            offsets: offsets(&targets),
            targets,
            saved_modules: Vec::new(),
            parameters,
            tensors,
            dropout: dropout as f32,
        }
    }

    /// An adapter with given values: one vector for each parameter, in this set's order, row-major.
    ///
    /// # Errors
    /// Another number of vectors, or one that does not fill its shape.
    pub fn from_values(
        targets: Vec<Target>,
        dropout: f64,
        values: Vec<Vec<f32>>,
        device: &B::Device,
    ) -> Result<Self, Error> {
        let targets = ordered(targets);
        let parameters = tensors(&targets);
        if values.len() != parameters.len() {
            return Err(Error::WrongCount { expected: parameters.len(), found: values.len() });
        }
        let tensor = |(values, parameter): (Vec<f32>, &Parameter)| {
            if values.len() != parameter.shape[0] * parameter.shape[1] {
                return Err(Error::WrongLength {
                    tensor: parameter.name.clone(),
                    shape: parameter.shape,
                    found: values.len(),
                });
            }
            Ok(upload(values, parameter, device))
        };
        let tensors = values.into_iter().zip(&parameters).map(tensor).collect::<Result<_, _>>()?;
        Ok(Self {
            offsets: offsets(&targets),
            targets,
            saved_modules: Vec::new(),
            parameters,
            tensors,
            dropout: dropout as f32,
        })
    }

    /// Adds modules to save; `of` gives the values of each, `[vocab, hidden]` in f32.
    #[must_use]
    pub fn with_saved_modules(
        mut self,
        saved_modules: Vec<SavedModule>,
        mut of: impl FnMut(&SavedModule) -> Tensor<B, 2>,
    ) -> Self {
        for saved in saved_modules {
            self.tensors.push(of(&saved));
            self.parameters.push(saved.parameter());
            self.saved_modules.push(saved);
        }
        self
    }

    /// The modules to save.
    pub fn saved_modules(&self) -> &[SavedModule] {
        &self.saved_modules
    }

    /// The values of a module to save, `[vocab, hidden]` in f32.
    pub fn saved(&self, kind: SavedKind) -> Option<&Tensor<B, 2>> {
        let first = self.tensors.len() - self.saved_modules.len();
        let index = self.saved_modules.iter().position(|saved| saved.kind == kind)?;
        self.tensors.get(first + index)
    }

    /// Gives every module to save the values that `of` returns for it.
    ///
    /// # Errors
    /// Those of `of`.
    pub fn set_saved_modules<E>(
        &mut self,
        mut of: impl FnMut(&SavedModule) -> Result<Tensor<B, 2>, E>,
    ) -> Result<(), E> {
        let first = self.tensors.len() - self.saved_modules.len();
        for (index, saved) in self.saved_modules.iter().enumerate() {
            self.tensors[first + index] = of(saved)?;
        }
        Ok(())
    }

    /// The adapted projections, in the order of the parameters.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Names and shapes of all tensors, in order.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// All tensors, f32, in order.
    pub fn tensors(&self) -> &[Tensor<B, 2>] {
        &self.tensors
    }

    /// Replaces all tensors: an optimizer step. `update` is the only holder of the tensors that it takes, so it may write
    /// over them.
    ///
    /// # Errors
    /// Another number of tensors, or one of another shape; the set is then empty.
    pub fn update(
        &mut self,
        update: impl FnOnce(Vec<Tensor<B, 2>>) -> Vec<Tensor<B, 2>>,
    ) -> Result<(), Error> {
        let expected = self.tensors.len();
        let tensors = update(std::mem::take(&mut self.tensors));
        if tensors.len() != expected {
            return Err(Error::WrongCount { expected, found: tensors.len() });
        }
        for (tensor, parameter) in tensors.iter().zip(&self.parameters) {
            if tensor.dims() != parameter.shape {
                return Err(Error::WrongLength {
                    tensor: parameter.name.clone(),
                    shape: parameter.shape,
                    found: tensor.dims().iter().product(),
                });
            }
        }
        self.tensors = tensors;
        Ok(())
    }

    /// The values of one parameter, row-major, on the host.
    ///
    /// # Errors
    /// The device failed.
    pub fn values(&self, index: usize) -> Result<Vec<f32>, Error> {
        let failed = |reason: String| Error::Device { tensor: self.parameters[index].name.clone(), reason };
        let data =
            self.tensors[index].clone().try_into_data().map_err(|error| failed(format!("{error:?}")))?;
        data.into_vec().map_err(|error| failed(format!("{error:?}")))
    }

    /// Number of trained values.
    pub fn count(&self) -> u64 {
        let saved_modules: u64 = self.saved_modules.iter().map(SavedModule::parameters).sum();
        self.targets.iter().map(Target::parameters).sum::<u64>() + saved_modules
    }

    /// Size of the trained values.
    pub fn bytes(&self) -> u64 {
        4 * self.count()
    }

    /// One layer's adapters; without `dropout`, nothing is dropped.
    pub fn layer(&self, layer: usize, dropout: Option<DropoutStep>) -> LayerAdapters<B> {
        let mut adapters = LayerAdapters::none();
        for index in self.layer_targets(layer) {
            let slot = self.targets[index].module.slot;
            let lora = Lora { dropout: self.dropout_of(dropout, layer, slot), ..self.lora(index) };
            let magnitude =
                self.targets[index].use_dora.then(|| self.tensors[self.offsets[index] + 2].clone());
            adapters.set(slot, Adapter { lora, dora: magnitude.map(Dora::new) });
        }
        adapters
    }

    /// The adapters as they are until the next update.
    pub fn until_update(&self) -> StepAdapters<'_, B> {
        let layers = self.targets.last().map_or(0, |target| target.module.layer + 1);
        StepAdapters { set: self, layers: (0..layers).map(|layer| self.layer(layer, None)).collect() }
    }

    fn dropout_of(&self, step: Option<DropoutStep>, layer: usize, slot: Slot) -> Option<Dropout> {
        let step = step.filter(|_| self.dropout > 0.0)?;
        Some(Dropout { probability: self.dropout, key: dropout_key(step, layer, slot) })
    }

    /// A, B and scaling of a target, by its number.
    fn lora(&self, target: usize) -> Lora<B> {
        let [a, b] = [0, 1].map(|part| self.tensors[self.offsets[target] + part].clone());
        Lora { a, b, scaling: self.targets[target].scaling as f32, dropout: None }
    }

    /// Gives every target of a layer under DoRA the magnitudes, `[1, out]`, that `of` computes for it.
    pub fn set_magnitudes(&mut self, layer: usize, mut of: impl FnMut(&Target, &Lora<B>) -> Tensor<B, 2>) {
        for index in self.layer_targets(layer) {
            if self.targets[index].use_dora {
                let magnitude = of(&self.targets[index], &self.lora(index));
                self.tensors[self.offsets[index] + 2] = magnitude;
            }
        }
    }

    /// The parameters of one layer, as numbers into [`Self::parameters`].
    pub fn layer_parameters(&self, layer: usize) -> Range<usize> {
        let targets = self.layer_targets(layer);
        self.offsets[targets.start]..self.offsets[targets.end]
    }

    /// The targets of one layer, by number.
    fn layer_targets(&self, layer: usize) -> Range<usize> {
        let first = self.targets.partition_point(|target| target.module.layer < layer);
        first..self.targets.partition_point(|target| target.module.layer <= layer)
    }
}

/// The adapters between two updates. DoRA's norms are computed in the first micro-batch and reused in the others, so one
/// value belongs to one model.
#[derive(Debug)]
pub struct StepAdapters<'a, B: KernelBackend> {
    set: &'a LoraSet<B>,
    layers: Vec<LayerAdapters<B>>,
}

impl<B: KernelBackend> StepAdapters<'_, B> {
    /// The set that they are of.
    pub fn set(&self) -> &LoraSet<B> {
        self.set
    }

    /// As [`LoraSet::layer`].
    pub fn layer(&self, layer: usize, dropout: Option<DropoutStep>) -> LayerAdapters<B> {
        match self.layers.get(layer) {
            Some(adapters) => adapters.with_dropout(|slot| self.set.dropout_of(dropout, layer, slot)),
            None => LayerAdapters::none(),
        }
    }
}

fn ordered(mut targets: Vec<Target>) -> Vec<Target> {
    targets.sort_by_key(|target| (target.module.layer, target.module.slot));
    targets
}

/// The number of each target's first parameter, and that of all.
fn offsets(targets: &[Target]) -> Vec<usize> {
    let mut offsets = vec![0];
    offsets.extend(targets.iter().scan(0, |end, target| {
        *end += target.parts().count();
        Some(*end)
    }));
    offsets
}

fn upload<B: KernelBackend>(values: Vec<f32>, parameter: &Parameter, device: &B::Device) -> Tensor<B, 2> {
    // Whatever the backend's own float type: these are the master values.
    Tensor::from_data(TensorData::new(values, parameter.shape), (device, DType::F32))
}

fn dropout_key(step: DropoutStep, layer: usize, slot: Slot) -> DropoutKey {
    DropoutKey {
        seed: step.seed,
        step: step.step,
        micro_batch: step.micro_batch,
        layer: layer as u32,
        projection: slot as u32,
    }
}

/// U(−1/√columns, 1/√columns), from a generator keyed by the seed, whose counter begins with a hash of `name`.
fn kaiming_uniform(name: &str, [rows, columns]: [usize; 2], seed: u64) -> Vec<f32> {
    let bound = 1.0 / (columns as f64).sqrt();
    let digest = Sha256::digest(name);
    let [first, second] =
        [0, 4].map(|at| u32::from_le_bytes([digest[at], digest[at + 1], digest[at + 2], digest[at + 3]]));
    let key = [seed as u32, (seed >> 32) as u32];
    let mut values = Vec::with_capacity(rows * columns);
    for block in 0..(rows * columns).div_ceil(4) as u64 {
        for word in philox([block as u32, (block >> 32) as u32, first, second], key) {
            let unit = f64::from(word) / 4_294_967_296.0;
            values.push(((2.0 * unit - 1.0) * bound) as f32);
        }
    }
    values.truncate(rows * columns);
    values
}

#[cfg(test)]
mod tests;
