//! What a decoder is made of, independent of the family that described it and of any tensor engine.
//!
//! Refuses to know config.json (`family`), files (`load`) and arithmetic (`layers`).

use std::sync::Arc;

use tune_kernels::linear_cross_entropy::Logits;
use tune_kernels::rms_norm::RmsNorm;

use super::Error;
use super::dtype::FloatDtype;
use super::gguf_spec::GgufSpec;
use super::parts::{LayerSpec, NormSpec, PerLayerSpec};
use super::rotary::RotarySpec;
use super::spec::ComputeDtype;
use crate::adapter::projection::Module;
use crate::adapter::saved::{SavedKind, SavedModule};

/// Embeddings, layers, a final norm and an output head.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderSpec {
    /// Name of the family, as `model_type` spells it.
    pub family: &'static str,
    /// Rows of the embedding table and of the output head.
    pub vocab_size: usize,
    /// Width of the hidden state.
    pub hidden_size: usize,
    /// The layers, from the embeddings up; layers of one kind share a spec.
    pub layers: Vec<Arc<LayerSpec>>,
    /// Frequencies of the rotary positions, for each kind of layer; those of layers with full attention first.
    pub rotaries: Vec<RotarySpec>,
    /// Norm of embeddings, without a weight.
    pub embedding_norm: Option<RmsNorm>,
    /// Factor on embeddings.
    pub embedding_scale: f32,
    /// Factor on logits, applied to what the output head is given.
    pub logit_scale: f32,
    /// Norm after the last layer; its path begins at the model.
    pub final_norm: NormSpec,
    /// The output head is the embedding table.
    pub tied: bool,
    /// What is made of the products of hidden states and output head.
    pub logits: Logits,
    /// Whether the output head adds a bias.
    pub head_bias: bool,
    /// Whether activations of released models exceed what f16 holds.
    pub overflows_f16: bool,
    /// Positions the model was made for.
    pub max_position_embeddings: usize,
    /// The dtype config.json gives the weights, if it says.
    pub dtype: Option<FloatDtype>,
    /// Where a checkpoint has the modules.
    pub paths: Paths,
    /// The model with towers that this is the text decoder of, as its `model_type` spells it.
    pub wrapper: Option<&'static str>,
    /// Embeddings by layer.
    pub per_layer: Option<PerLayerSpec>,
    /// How llama.cpp takes the family; `None`: not at all.
    pub gguf: Option<GgufSpec>,
}

/// Module paths of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paths {
    /// The embedding table.
    pub embedding: &'static str,
    /// Stands before a layer's number.
    pub layers: &'static str,
    /// The output head.
    pub head: &'static str,
}

impl Paths {
    /// The spelling of Llama in transformers, which most families took over.
    pub const LLAMA: Self = Self { embedding: "model.embed_tokens", layers: "model.layers", head: "lm_head" };

    /// The same beside towers.
    pub const WRAPPED: Self = Self {
        embedding: "model.language_model.embed_tokens",
        layers: "model.language_model.layers",
        head: "lm_head",
    };
}

impl DecoderSpec {
    /// The same as the text decoder of a model with towers.
    #[must_use]
    pub fn wrapped(self, wrapper: &'static str) -> Self {
        let final_norm = NormSpec { path: "model.language_model.norm", ..self.final_norm };
        let per_layer = self.per_layer.map(|own| PerLayerSpec {
            table: "model.language_model.embed_tokens_per_layer",
            projection: "model.language_model.per_layer_model_projection",
            norm: NormSpec { path: "model.language_model.per_layer_projection_norm", ..own.norm },
            ..own
        });
        Self { paths: Paths::WRAPPED, wrapper: Some(wrapper), final_norm, per_layer, ..self }
    }

    /// Module path of a part of a layer (`model.layers.0.self_attn.q_proj`).
    pub fn path(&self, layer: usize, path: &str) -> String {
        format!("{}.{layer}.{path}", self.paths.layers)
    }

    /// Every projection of every layer, layer by layer: what target patterns are matched against.
    pub fn modules(&self) -> Vec<Module> {
        (0..self.layers.len()).flat_map(|layer| self.modules_of(layer)).collect()
    }

    /// Every projection of a layer.
    pub fn modules_of(&self, layer: usize) -> Vec<Module> {
        let spec = &self.layers[layer];
        let alternates = spec.mixture().is_some_and(|mixture| mixture.alternates);
        let module = |projection: &super::parts::ProjectionSpec| {
            let [out_features, in_features] = projection.shape;
            let path = self.path(layer, &projection.path);
            let (role, slot) = (projection.role, projection.slot);
            Module { path, layer, role, slot, out_features, in_features, alternates }
        };
        spec.projections().map(module).collect()
    }

    /// Numbers of a token that are held through a whole pass, forward and backward: embeddings by layer, and keys and values
    /// that several layers read, with their gradients.
    pub fn input_numbers(&self) -> u64 {
        let parts = self.per_layer.as_ref().map_or(0, PerLayerSpec::numbers);
        let given =
            self.layers.iter().filter_map(|layer| layer.attention().filter(|one| one.gives.is_some()));
        let given = given.map(|attention| {
            let [_, keys, values] = attention.heads.widths();
            2 * (keys + values)
        });
        (parts + given.sum::<usize>()) as u64
    }

    /// Whether documents may begin with tokens that stand in another one.
    pub fn takes_prefixes(&self) -> bool {
        self.layers.iter().all(|layer| layer.takes_prefixes())
    }

    /// The modules that can be trained in full and saved: none if the head is tied to the embeddings, no head with a bias.
    pub fn saved_modules(&self) -> Vec<SavedModule> {
        match self.tied {
            true => Vec::new(),
            false => self.tables(),
        }
    }

    /// The embeddings and the output head, each as a table of its own. A head with a bias is not among them: a trained one
    /// would have its bias trained too.
    pub fn tables(&self) -> Vec<SavedModule> {
        let table = |kind: SavedKind| {
            let path = match kind {
                SavedKind::Embedding => self.paths.embedding,
                SavedKind::Head => self.paths.head,
            };
            SavedModule { kind, path: path.to_owned(), shape: [self.vocab_size, self.hidden_size] }
        };
        match (self.tied, self.head_bias) {
            (true, true) => Vec::new(),
            (false, true) => vec![table(SavedKind::Embedding)],
            (_, false) => SavedKind::ALL.map(table).to_vec(),
        }
    }

    /// Positions that a document may have: those the model was made for, stretched as its frequencies are.
    pub fn positions(&self) -> usize {
        self.rotaries.first().map_or(0, RotarySpec::positions).max(self.max_position_embeddings)
    }

    /// The dtype to compute in, as [`FloatDtype::resolve`] finds it; never f16 where that overflows.
    ///
    /// # Errors
    /// The recipe names a dtype that the model or the device cannot compute in.
    pub fn compute_dtype(
        &self,
        asked: ComputeDtype,
        checkpoint: FloatDtype,
        native: impl Fn(FloatDtype) -> bool,
        supported: impl Fn(FloatDtype) -> bool,
    ) -> Result<FloatDtype, Error> {
        if self.overflows_f16 && asked == ComputeDtype::F16 {
            return Err(Error::OverflowsF16 { family: self.family });
        }
        let overflows = |dtype| self.overflows_f16 && dtype == FloatDtype::F16;
        FloatDtype::resolve(asked, checkpoint, |dtype| native(dtype) && !overflows(dtype), supported)
    }

    /// Parameters of the model; a tied head is counted once.
    pub fn parameters(&self) -> u64 {
        let sizes = super::tensors::expected(self);
        sizes.iter().map(|tensor| tensor.shape.iter().product::<usize>() as u64).sum()
    }
}
