//! The embeddings by layer of a decoder. Their table, larger than all other weights together, stays on disk: rows are read
//! from there as tokens need them.

use burn_tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::linear::{FrozenWeight, Linear, linear};

use super::Error;
use super::dtype::FloatDtype;
use super::layers::norm::{Norm, NormTensors};
use super::parts::PerLayerSpec;
use super::table::HostTable;

/// The embeddings by layer of a decoder. Cloning shares them.
#[derive(Clone, Debug)]
pub(super) struct PerLayer<B: KernelBackend> {
    pub(super) spec: PerLayerSpec,
    pub(super) table: HostTable,
    /// `[layers · width, hidden]`.
    pub(super) projection: Tensor<B, 2>,
    pub(super) norm: NormTensors<B>,
}

impl<B: KernelBackend> PerLayer<B> {
    /// The parts of all layers for tokens `ids` with embeddings `x`, `[tokens, layers · width]`.
    ///
    /// # Errors
    /// The table can no longer be read, or has no such row.
    pub(super) fn parts(
        &self,
        ids: &[u32],
        x: &Tensor<B, 2>,
        dtype: FloatDtype,
    ) -> Result<Tensor<B, 2>, Error> {
        let PerLayerSpec { width, layers, .. } = self.spec;
        let ([tokens, hidden], numbers) = (x.dims(), self.spec.numbers());
        let weight = FrozenWeight::Dense(self.projection.clone());
        let projection = Linear { weight: &weight, bias: None, lora: None };
        let projected = linear(x, &[projection], None).outputs.remove(0) * (hidden as f32).powf(-0.5);
        let norm = Norm { spec: &self.spec.norm, tensors: &self.norm };
        let normed = norm.forward(&projected.reshape([tokens * layers, width]), None);
        let rows = self.table.rows(ids, dtype, &x.device())? * dtype.rounded((width as f32).sqrt());
        Ok((normed.reshape([tokens, numbers]) + rows) * 0.5_f32.sqrt())
    }

    /// Bytes that it takes on the device.
    pub(super) fn bytes(&self) -> usize {
        self.projection.shape().num_elements() * self.projection.dtype().size() + self.norm.bytes()
    }
}
