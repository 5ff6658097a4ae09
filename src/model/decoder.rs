//! A whole frozen decoder: embeddings, layers, final norm, output head; and forward passes without gradients.
//!
//! Training walks the layers itself (`train`), through [`Decoder::embed`], [`Decoder::layers`],
//! [`Decoder::final_norm`] and [`Decoder::head`]. Refuses to know files (`load`) and sampling (`generate`).

use std::borrow::Cow;

use burn_tensor::{DType, IndexingUpdateOp, Tensor};
use tune_kernels::KernelBackend;
use tune_kernels::attention::DocumentOffsets;
use tune_kernels::linear::{FrozenWeight, Linear, linear};
use tune_kernels::linear_cross_entropy::{Logits, OutputHead};
use tune_kernels::rms_norm::{rms_norm, rms_norm_backward};

use super::Error;
use super::decoder_spec::DecoderSpec;
use super::dtype::{FloatDtype, burn_dtype};
use super::layers::cache::LayerCaches;
use super::layers::choice::Balance;
use super::layers::norm::{Norm, NormTensors};
use super::layers::shared::Shared;
use super::layers::{KeyValueCache, LayerInputs, Layers, Order};
use super::per_layer::PerLayer;
use super::rotations::Rotations;
use super::table::{Table, integers};
use crate::adapter::dora::row_norms;
use crate::adapter::lora::LoraSet;
use crate::adapter::projection::LayerAdapters;
use crate::adapter::saved::SavedKind;

/// A decoder's frozen weights on a device. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Decoder<B: KernelBackend> {
    pub(super) spec: DecoderSpec,
    pub(super) dtype: FloatDtype,
    pub(super) device: B::Device,
    /// `[vocab, hidden]`.
    pub(super) embedding: Table<B>,
    /// Embeddings by layer.
    pub(super) per_layer: Option<PerLayer<B>>,
    pub(super) layers: Layers<B>,
    pub(super) final_norm: NormTensors<B>,
    /// `[vocab, hidden]`; shares the embedding's storage when tied.
    pub(super) head: Tensor<B, 2>,
    /// `[vocab]`.
    pub(super) head_bias: Option<Tensor<B, 1>>,
    pub(super) rotations: Rotations<B>,
}

impl<B: KernelBackend> Decoder<B> {
    /// What the decoder is made of.
    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// The dtype of hidden states.
    pub fn dtype(&self) -> FloatDtype {
        self.dtype
    }

    /// Where the weights are.
    pub fn device(&self) -> &B::Device {
        &self.device
    }

    /// The layers.
    pub fn layers(&self) -> &Layers<B> {
        &self.layers
    }

    /// Runs the pass of a few tokens where its forks cost least. Not where layers are fetched: the thread that reads them ahead
    /// may need the worker that would wait for it.
    pub(crate) fn on_workers<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match self.layers.are_held() {
            true => B::on_workers(work),
            false => work(),
        }
    }

    /// The output head, `[vocab, hidden]`, and what is made of its products.
    pub fn head(&self) -> OutputHead<B> {
        let weight = FrozenWeight::Dense(self.head.clone());
        OutputHead { weight, bias: self.head_bias.clone(), logits: self.spec.logits }
    }

    /// Bytes of all frozen weights, but for tables off the device; a tied head is counted once.
    pub fn frozen_bytes(&self) -> u64 {
        let size = self.dtype.bytes();
        let embedding = self.embedding.bytes();
        let head =
            if self.spec.tied { 0 } else { self.head.shape().num_elements() * self.head.dtype().size() };
        let bias = if self.spec.head_bias { self.spec.vocab_size * size } else { 0 };
        let per_layer = self.per_layer.as_ref().map_or(0, PerLayer::bytes);
        (embedding + per_layer + head + bias + self.final_norm.bytes()) as u64 + self.layers.bytes()
    }

    /// Gives the targets under DoRA the magnitudes that the model's own rows have, so that a new adapter changes
    /// nothing.
    ///
    /// # Errors
    /// A layer cannot be read.
    pub fn init_magnitudes(&self, adapters: &mut LoraSet<B>) -> Result<(), Error> {
        for step in self.layers.up() {
            let (index, layer) = step?;
            adapters.set_magnitudes(index, |target, lora| {
                let projection = layer.projection(target.module.slot);
                row_norms(&projection.weight, projection.row_squares().clone(), lora)
            });
        }
        Ok(())
    }

    /// Gives the modules to save the numbers that the model has for them.
    ///
    /// # Errors
    /// A table off the device can no longer be read.
    pub fn init_wholes(&self, adapters: &mut LoraSet<B>) -> Result<(), Error> {
        adapters.set_saved_modules(|saved| {
            let own = match saved.kind {
                SavedKind::Embedding => {
                    self.embedding.whole(self.spec.vocab_size, self.dtype, &self.device)?
                }
                SavedKind::Head => self.head.clone(),
            };
            Ok(own.cast(DType::F32))
        })
    }

    /// The model with the saved modules of `adapters` in place of its own, everything else shared; the model itself
    /// where they bring none.
    #[must_use]
    pub fn adopting(&self, adapters: &LoraSet<B>) -> Cow<'_, Self> {
        if adapters.saved_modules().is_empty() {
            return Cow::Borrowed(self);
        }
        let mut adopted = self.clone();
        if let Some(embedding) = adapters.saved(SavedKind::Embedding) {
            adopted.embedding = Table::Device(embedding.clone());
        }
        if let Some(head) = adapters.saved(SavedKind::Head) {
            adopted.head = head.clone();
        }
        Cow::Owned(adopted)
    }

    /// Embeddings of token ids, `[tokens, hidden]`.
    ///
    /// # Errors
    /// No token, or an id outside the vocabulary; a table off the device can no longer be read.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor<B, 2>, Error> {
        let vocab_size = self.spec.vocab_size;
        if ids.is_empty() {
            return Err(Error::EmptyBatch);
        }
        if let Some(position) = ids.iter().position(|&id| id as usize >= vocab_size) {
            return Err(Error::TokenOutOfRange { id: ids[position], position, vocab_size });
        }
        // A trained table is in f32, whatever the compute dtype.
        let rows = self.rows(ids)?.cast(burn_dtype(self.dtype));
        let rows = match self.spec.embedding_norm {
            Some(norm) => rms_norm(&rows, &ones(&rows), norm),
            None => rows,
        };
        Ok(scaled(rows, self.embedding_scale()))
    }

    /// Rows of the embedding table.
    fn rows(&self, ids: &[u32]) -> Result<Tensor<B, 2>, Error> {
        self.embedding.rows(ids, self.dtype, &self.device)
    }

    /// The factor on embeddings as transformers has it: a number in the dtype of the weights.
    fn embedding_scale(&self) -> f32 {
        self.dtype.rounded(self.spec.embedding_scale)
    }

    /// The gradient of the embedding table, f32 `[vocab, hidden]`, for that of its rows `dx`; added to `sum`.
    ///
    /// # Errors
    /// A table off the device can no longer be read.
    pub fn embed_backward(
        &self,
        ids: &[u32],
        dx: Tensor<B, 2>,
        sum: Option<Tensor<B, 2>>,
    ) -> Result<Tensor<B, 2>, Error> {
        let zeros =
            || Tensor::zeros([self.spec.vocab_size, self.spec.hidden_size], (&self.device, DType::F32));
        let sum = sum.unwrap_or_else(zeros);
        let dx = scaled(dx.cast(DType::F32), self.embedding_scale());
        let dx = match self.spec.embedding_norm {
            Some(norm) => {
                let rows = self.rows(ids)?.cast(DType::F32);
                rms_norm_backward(&rows, &ones(&rows), norm, dx, None)
            }
            None => dx,
        };
        Ok(sum.select_assign(0, integers(ids, &self.device), dx, IndexingUpdateOp::Add))
    }

    /// What every layer needs beside the hidden state of a batch.
    ///
    /// `position_ids` counts from 0 in each document. Where rotary scaling depends on length, each document has the
    /// frequencies of its own length; transformers takes those of the largest position of a forward pass.
    ///
    /// # Errors
    /// No token, or a position beyond the keys there are.
    pub fn inputs(&self, position_ids: &[u32], documents: DocumentOffsets) -> Result<LayerInputs<B>, Error> {
        let Some(&last) = position_ids.iter().max() else { return Err(Error::EmptyBatch) };
        // Positions size the table below, so they are held to what the batch can hold.
        let limit = documents.keys();
        if last as usize >= limit {
            return Err(Error::PositionOutOfRange { position: last, limit });
        }
        let rotations = self.rotations.of(&self.spec.rotaries, position_ids, &documents, &self.device);
        let (shared, balance) = (Shared::default(), Balance::Off);
        Ok(LayerInputs { rotations, documents, shared, parts: None, balance })
    }

    /// [`Self::inputs`] for these tokens, whose embeddings are `x`: with their embeddings by layer, where there are any.
    ///
    /// # Errors
    /// As [`Self::inputs`]; the table of embeddings by layer can no longer be read.
    pub fn inputs_of(
        &self,
        ids: &[u32],
        x: &Tensor<B, 2>,
        position_ids: &[u32],
        documents: DocumentOffsets,
    ) -> Result<LayerInputs<B>, Error> {
        let parts = self.per_layer.as_ref().map(|own| own.parts(ids, x, self.dtype)).transpose()?;
        Ok(LayerInputs { parts, ..self.inputs(position_ids, documents)? })
    }

    /// The norm after the last layer, `[tokens, hidden]` → `[tokens, hidden]`, times the factor on logits.
    pub fn final_norm(&self, x: &Tensor<B, 2>) -> Tensor<B, 2> {
        scaled(self.final_norm_part().forward(x, None), self.spec.logit_scale)
    }

    /// The gradient of [`Self::final_norm`]'s input for that of its output.
    pub fn final_norm_backward(&self, x: &Tensor<B, 2>, dy: Tensor<B, 2>) -> Tensor<B, 2> {
        self.final_norm_part().backward(x, scaled(dy, self.spec.logit_scale), None)
    }

    fn final_norm_part(&self) -> Norm<'_, B> {
        Norm { spec: &self.spec.final_norm, tensors: &self.final_norm }
    }

    /// An empty cache for [`Self::hidden`].
    pub fn new_cache(&self) -> KeyValueCache<B> {
        KeyValueCache::new(self.layers.len())
    }

    /// Forward pass over one sequence up to the final norm, without gradients: `[tokens, hidden]`.
    ///
    /// `adapters` holds one entry per layer; without it the base runs as it is. With a cache the ids continue the
    /// sequence in it, and are added to it.
    ///
    /// # Errors
    /// No token, an id outside the vocabulary, adapters for another number of layers.
    pub fn hidden(
        &self,
        ids: &[u32],
        adapters: Option<&[LayerAdapters<B>]>,
        cache: Option<&mut KeyValueCache<B>>,
    ) -> Result<Tensor<B, 2>, Error> {
        self.pass(&[ids], adapters, cache.into_iter().collect())
    }

    /// [`Self::hidden`] of several sequences, each continued by the ids beside its cache: one pass over the layers, with
    /// the rows of one sequence behind those of another.
    ///
    /// # Errors
    /// As [`Self::hidden`].
    pub fn continued(
        &self,
        sequences: Vec<(&[u32], &mut KeyValueCache<B>)>,
        adapters: Option<&[LayerAdapters<B>]>,
    ) -> Result<Tensor<B, 2>, Error> {
        let (ids, caches): (Vec<_>, Vec<_>) = sequences.into_iter().unzip();
        self.pass(&ids, adapters, caches)
    }

    /// A pass over some sequences, which continue those in `caches`, if there are any.
    fn pass(
        &self,
        ids: &[&[u32]],
        adapters: Option<&[LayerAdapters<B>]>,
        mut caches: Vec<&mut KeyValueCache<B>>,
    ) -> Result<Tensor<B, 2>, Error> {
        if let Some(adapters) = adapters
            && adapters.len() != self.layers.len()
        {
            return Err(Error::AdapterCount { adapters: adapters.len(), layers: self.layers.len() });
        }
        let all = ids.concat();
        B::begin_pass(&self.device, all.len());
        let mut x = self.embed(&all)?;
        let mut positions: Vec<u32> = Vec::with_capacity(all.len());
        let (mut queries, mut keys) = (vec![0], vec![0]);
        let mut seen = 0;
        for (sequence, ids) in ids.iter().enumerate() {
            let past = caches.get(sequence).map_or(0, |cache| cache.tokens());
            positions.extend((past..past + ids.len()).map(|position| position as u32));
            seen += past + ids.len();
            queries.push(positions.len() as u32);
            keys.push(seen as u32);
        }
        let inputs = self.inputs_of(&all, &x, &positions, DocumentOffsets::with_cache(&queries, &keys))?;
        let none = LayerAdapters::none();
        for step in self.layers.walk_with(Order::Up(0..self.layers.len()), ids.len()) {
            let (index, layer) = step?;
            let adapters = adapters.map_or(&none, |adapters| &adapters[index]);
            let own: Vec<_> = caches.iter_mut().filter_map(|cache| cache.layer(index)).collect();
            let caches = (!own.is_empty()).then_some(LayerCaches(own));
            x = layer.forward(x, adapters, &inputs, caches);
        }
        Ok(self.final_norm(&x))
    }

    /// Logits of hidden states, `[tokens, hidden]` → `[tokens, vocab]`, in the compute dtype.
    pub fn logits_of(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        let OutputHead { weight, bias, logits: Logits { scale, soft_cap } } = self.head();
        let hidden = if scale == 1.0 { hidden } else { hidden * scale };
        let head = Linear { weight: &weight, bias: bias.as_ref(), lora: None };
        let logits = linear(&hidden, &[head], None).outputs.remove(0);
        match soft_cap {
            Some(cap) => (logits / cap).tanh() * cap,
            None => logits,
        }
    }

    /// Logits of every token of one sequence, `[tokens, vocab]`: for tests and short prompts, since training
    /// never materializes them.
    ///
    /// # Errors
    /// As [`Self::hidden`].
    pub fn logits(&self, ids: &[u32], adapters: Option<&[LayerAdapters<B>]>) -> Result<Tensor<B, 2>, Error> {
        Ok(self.logits_of(self.hidden(ids, adapters, None)?))
    }
}

/// The weight of a norm of rows that has none.
fn ones<B: KernelBackend>(x: &Tensor<B, 2>) -> Tensor<B, 1> {
    Tensor::ones([x.dims()[1]], (&x.device(), x.dtype()))
}

/// x · factor; nothing is computed where that is 1.
fn scaled<B: KernelBackend>(x: Tensor<B, 2>, factor: f32) -> Tensor<B, 2> {
    if factor == 1.0 { x } else { x * factor }
}
