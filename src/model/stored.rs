//! A layer in host memory, as its tensors will lie on a device.

use std::sync::{Arc, OnceLock};

use burn_tensor::{Tensor, TensorData};
use tune_kernels::KernelBackend;
use tune_kernels::linear::FrozenWeight;
use tune_kernels::nf4::{Nf4Weight, Quantized};

use super::Error;
use super::dtype::{FloatDtype, burn_dtype};
use super::layers::norm::NormTensors;
use super::layers::{FrozenProjection, Layer};
use super::parts::LayerSpec;
use crate::quant;

/// The tensors of a layer, read and not yet placed.
#[derive(Clone, Debug)]
pub(super) struct StoredLayer {
    /// What it is made of.
    pub(super) spec: Arc<LayerSpec>,
    /// By slot; `None` for those of experts that come when they are used.
    pub(super) projections: Vec<Option<StoredProjection>>,
    /// By place.
    pub(super) norms: Vec<StoredNorm>,
    /// By place, each with its dtype.
    pub(super) constants: Vec<(TensorData, FloatDtype)>,
}

/// Weight and bias of a norm.
#[derive(Clone, Debug)]
pub(super) struct StoredNorm {
    pub(super) weight: TensorData,
    pub(super) bias: Option<TensorData>,
}

impl StoredNorm {
    /// Moves it to a device.
    pub(super) fn place<B: KernelBackend>(self, dtype: FloatDtype, device: &B::Device) -> NormTensors<B> {
        let Self { weight, bias } = self;
        NormTensors {
            weight: dense(weight, dtype, device),
            bias: bias.map(|bias| dense(bias, dtype, device)),
        }
    }
}

/// Weight and bias of a projection.
#[derive(Clone, Debug)]
pub(super) struct StoredProjection {
    pub(super) weight: StoredWeight,
    pub(super) bias: Option<TensorData>,
}

impl StoredProjection {
    /// Moves it to a device.
    ///
    /// # Errors
    /// Parts of a 4-bit weight that do not fit each other.
    pub(super) fn place<B: KernelBackend>(
        self,
        dtype: FloatDtype,
        device: &B::Device,
    ) -> Result<FrozenProjection<B>, Error> {
        let weight = match self.weight {
            StoredWeight::Dense(data) => FrozenWeight::Dense(dense(data, dtype, device)),
            StoredWeight::FourBit(name, quantized) => packed(name, quantized, device)?,
        };
        Ok(FrozenProjection::new(weight, self.bias.map(|bias| dense(bias, dtype, device))))
    }
}

/// A weight, named where its parts may not fit each other.
#[derive(Clone, Debug)]
pub(super) enum StoredWeight {
    Dense(TensorData),
    /// Shared by what waits in host memory and what is on its way.
    FourBit(String, Arc<Quantized>),
}

/// The sums of squares of the rows of each projection, which outlive the weights that they are of: by slot.
pub(super) type Squares<B> = Vec<Arc<OnceLock<Tensor<B, 2>>>>;

impl StoredLayer {
    /// The same without the projections of its experts.
    pub(super) fn without_experts(&self) -> Self {
        let mut projections = vec![None; self.projections.len()];
        for projection in self.spec.projections().filter(|projection| !projection.role.is_routed()) {
            projections[projection.slot].clone_from(&self.projections[projection.slot]);
        }
        let Self { spec, norms, constants, .. } = self;
        Self { spec: Arc::clone(spec), projections, norms: norms.clone(), constants: constants.clone() }
    }

    /// Moves it to a device.
    ///
    /// # Errors
    /// Parts of a 4-bit weight that do not fit each other.
    pub(super) fn place<B: KernelBackend>(
        self,
        dtype: FloatDtype,
        device: &B::Device,
        squares: Option<&Squares<B>>,
    ) -> Result<Layer<B>, Error> {
        let constants = self.constants.into_iter().map(|(data, dtype)| dense(data, dtype, device)).collect();
        let norms = self.norms.into_iter().map(|norm| norm.place(dtype, device)).collect();
        let place = |(slot, stored): (usize, Option<StoredProjection>)| {
            let Some(stored) = stored else { return Ok(OnceLock::new()) };
            let projection = stored.place(dtype, device)?;
            Ok(OnceLock::from(match squares.and_then(|squares| squares.get(slot)) {
                Some(squares) => projection.with_squares(Arc::clone(squares)),
                None => projection,
            }))
        };
        let projections = self.projections.into_iter().enumerate().map(place);
        Ok(Layer::new(self.spec, projections.collect::<Result<_, Error>>()?, norms, constants))
    }
}

/// A 4-bit weight on a device.
fn packed<B: KernelBackend>(
    name: String,
    quantized: Arc<Quantized>,
    device: &B::Device,
) -> Result<FrozenWeight<B>, Error> {
    let weight = match Arc::try_unwrap(quantized) {
        Ok(quantized) => Nf4Weight::try_new(quantized, device),
        Err(shared) => Nf4Weight::copied(&shared, device),
    };
    let weight =
        weight.map_err(|error| quant::Error::FourBit { weight: name, message: error.to_string() })?;
    Ok(FrozenWeight::Nf4(weight))
}

/// A tensor in the compute dtype on a device.
pub(super) fn dense<B: KernelBackend, const D: usize>(
    data: TensorData,
    dtype: FloatDtype,
    device: &B::Device,
) -> Tensor<B, D> {
    B::upload(data, burn_dtype(dtype), device)
}
