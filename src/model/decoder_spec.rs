//! What a decoder is made of, independent of the family that described it and of any tensor engine.
//!
//! Refuses to know config.json (`family`), files (`load`) and arithmetic (`layers`).

use super::Error;
use super::rotary::RotarySpec;
use super::spec::ComputeDtype;
use crate::adapter::projection::{Module, Projection};
use crate::adapter::whole::{Whole, WholeKind};

/// A float dtype of weights and of the arithmetic on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatDtype {
    /// 32 bits.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl FloatDtype {
    /// The name used in recipes and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }

    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// The dtype to compute in: what the recipe asks for, or for `auto` the checkpoint's where the device
    /// multiplies it natively and f32 elsewhere.
    ///
    /// `native` answers whether the device multiplies a dtype natively, `supported` whether it can compute in it.
    ///
    /// # Errors
    /// The recipe asks for a dtype that the device cannot compute in.
    pub fn resolve(
        asked: ComputeDtype,
        checkpoint: Self,
        native: impl Fn(Self) -> bool,
        supported: impl Fn(Self) -> bool,
    ) -> Result<Self, Error> {
        let chosen = match asked {
            ComputeDtype::Auto if native(checkpoint) => checkpoint,
            ComputeDtype::Auto | ComputeDtype::F32 => Self::F32,
            ComputeDtype::Bf16 => Self::Bf16,
            ComputeDtype::F16 => Self::F16,
        };
        match supported(chosen) {
            true => Ok(chosen),
            false => Err(Error::UnsupportedDtype { dtype: chosen.name() }),
        }
    }
}

/// Which projections add a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    /// Queries, keys and values.
    pub query_key_value: bool,
    /// Attention output.
    pub attention_output: bool,
    /// The three projections of the feed-forward block.
    pub feed_forward: bool,
}

/// A pre-norm decoder with grouped-query attention, rotary positions and a gated SiLU feed-forward block.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderSpec {
    /// Name of the family, as `model_type` spells it.
    pub family: &'static str,
    /// Rows of the embedding table and of the output head.
    pub vocab_size: usize,
    /// Width of the hidden state.
    pub hidden_size: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Query heads.
    pub attention_heads: usize,
    /// Key and value heads; divides `attention_heads`.
    pub key_value_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Added to the mean square before its root.
    pub rms_norm_epsilon: f64,
    /// Frequencies of the rotary positions.
    pub rotary: RotarySpec,
    /// Per layer: keys a query may look back at, itself included; `None`: all of its document.
    pub sliding_window: Vec<Option<usize>>,
    /// RMS norm over each head's queries and keys before the rotation.
    pub query_key_norm: bool,
    /// Which projections add a bias.
    pub biases: Biases,
    /// The output head is the embedding table.
    pub tied: bool,
    /// Positions the model was made for.
    pub max_position_embeddings: usize,
    /// The dtype config.json gives the weights, if it says.
    pub dtype: Option<FloatDtype>,
    /// How the checkpoint spells its tensors.
    pub names: TensorNames,
}

/// Refuses a count that would have things allocated for what no model has.
pub(super) fn plausible_count(key: &str, count: usize) -> Result<(), Error> {
    const LIMIT: usize = 1 << 14;
    match count {
        0..=LIMIT => Ok(()),
        _ => Err(Error::config(key, format!("is {count}; more than {LIMIT} is not plausible"))),
    }
}

/// How a checkpoint spells its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorNames {
    /// The embedding table.
    pub embedding: &'static str,
    /// What stands before a layer's number.
    pub layers: &'static str,
    /// The block that holds q, k, v and o.
    pub attention: &'static str,
    /// The block that holds gate, up and down.
    pub feed_forward: &'static str,
    /// Norm before attention.
    pub attention_norm: &'static str,
    /// Norm before the feed-forward block.
    pub feed_forward_norm: &'static str,
    /// Norm after the last layer.
    pub final_norm: &'static str,
    /// The output head.
    pub head: &'static str,
}

impl TensorNames {
    /// The spelling of Llama in transformers, which most families took over.
    pub const LLAMA: Self = Self {
        embedding: "model.embed_tokens.weight",
        layers: "model.layers",
        attention: "self_attn",
        feed_forward: "mlp",
        attention_norm: "input_layernorm.weight",
        feed_forward_norm: "post_attention_layernorm.weight",
        final_norm: "model.norm.weight",
        head: "lm_head.weight",
    };

    /// Module path of a projection (`model.layers.0.self_attn.q_proj`).
    pub fn projection(&self, layer: usize, projection: Projection) -> String {
        let block = match projection {
            Projection::Query | Projection::Key | Projection::Value | Projection::Output => self.attention,
            Projection::Gate | Projection::Up | Projection::Down => self.feed_forward,
        };
        format!("{}.{layer}.{block}.{projection}", self.layers)
    }
}

impl DecoderSpec {
    /// `[out, in]` of a projection's weight.
    pub fn projection_shape(&self, projection: Projection) -> [usize; 2] {
        let queries = self.attention_heads * self.head_dim;
        let keys = self.key_value_heads * self.head_dim;
        match projection {
            Projection::Query => [queries, self.hidden_size],
            Projection::Key | Projection::Value => [keys, self.hidden_size],
            Projection::Output => [self.hidden_size, queries],
            Projection::Gate | Projection::Up => [self.intermediate_size, self.hidden_size],
            Projection::Down => [self.hidden_size, self.intermediate_size],
        }
    }

    /// Whether a projection adds a bias.
    pub fn has_bias(&self, projection: Projection) -> bool {
        match projection {
            Projection::Query | Projection::Key | Projection::Value => self.biases.query_key_value,
            Projection::Output => self.biases.attention_output,
            Projection::Gate | Projection::Up | Projection::Down => self.biases.feed_forward,
        }
    }

    /// Every projection of every layer, layer by layer: what target patterns are matched against.
    pub fn modules(&self) -> Vec<Module> {
        (0..self.layers)
            .flat_map(|layer| {
                Projection::ALL.map(|projection| {
                    let [out_features, in_features] = self.projection_shape(projection);
                    let path = self.names.projection(layer, projection);
                    Module { path, layer, projection, out_features, in_features }
                })
            })
            .collect()
    }

    /// The modules that can be trained as a whole; none where embeddings and head are one.
    pub fn wholes(&self) -> Vec<Whole> {
        let whole = |kind: WholeKind| {
            let weight = match kind {
                WholeKind::Embedding => self.names.embedding,
                WholeKind::Head => self.names.head,
            };
            let path = weight.strip_suffix(".weight").unwrap_or(weight).to_owned();
            Whole { kind, path, shape: [self.vocab_size, self.hidden_size] }
        };
        match self.tied {
            true => Vec::new(),
            false => WholeKind::ALL.map(whole).to_vec(),
        }
    }

    /// Parameters of the model; a tied head is counted once.
    pub fn parameters(&self) -> u64 {
        let sizes = super::tensors::expected(self);
        sizes.iter().map(|tensor| tensor.shape.iter().product::<usize>() as u64).sum()
    }

    /// Proves that sizes are consistent and small enough for arithmetic on them not to overflow.
    pub(super) fn check(&self) -> Result<(), Error> {
        // Far above any real model; keeps every product of two within 2^56.
        const LIMIT: usize = 1 << 28;
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        for (key, size) in sizes {
            if size > LIMIT {
                return Err(Error::config(key, format!("is {size}; sizes above {LIMIT} are not plausible")));
            }
        }
        plausible_count("num_hidden_layers", self.layers)?;
        plausible_count("num_attention_heads", self.attention_heads)?;
        plausible_count("head_dim", self.head_dim)?;
        if !self.attention_heads.is_multiple_of(self.key_value_heads) {
            return Err(Error::config(
                "num_key_value_heads",
                format!(
                    "is {}, which does not divide {} attention heads",
                    self.key_value_heads, self.attention_heads
                ),
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(Error::config(
                "head_dim",
                format!(
                    "is {}; rotary positions pair the halves of a head, so it has to be even",
                    self.head_dim
                ),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_takes_the_checkpoint_dtype_only_where_it_is_native() {
        let resolve = |asked, native: &[FloatDtype], supported: &[FloatDtype]| {
            FloatDtype::resolve(
                asked,
                FloatDtype::Bf16,
                |dtype| native.contains(&dtype),
                |dtype| supported.contains(&dtype),
            )
        };
        let all = [FloatDtype::F32, FloatDtype::Bf16, FloatDtype::F16];
        assert_eq!(resolve(ComputeDtype::Auto, &[FloatDtype::Bf16], &all).unwrap(), FloatDtype::Bf16);
        assert_eq!(resolve(ComputeDtype::Auto, &[FloatDtype::F16], &all).unwrap(), FloatDtype::F32);
        assert_eq!(resolve(ComputeDtype::F16, &[], &all).unwrap(), FloatDtype::F16);
        assert_eq!(resolve(ComputeDtype::F32, &all, &all).unwrap(), FloatDtype::F32);
        let error = resolve(ComputeDtype::F16, &[], &[FloatDtype::F32]).unwrap_err().to_string();
        assert!(error.contains("f16") && error.contains("compute_dtype"), "{error}");
    }
}
