//! Llama: full attention, optional biases everywhere at once. Defaults: `LlamaConfig`.

use serde_json::json;

use super::{Family, Own, Shared, uniform_layer_types};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::{Biases, DecoderSpec};

pub(super) fn decoder_spec(config: &ConfigReader<'_>, shared: Shared) -> Result<DecoderSpec, Error> {
    // Above 1 the projections were once split and summed in another order.
    config.must_be("pretraining_tp", &[json!(1)])?;
    config.must_be("use_sliding_window", &[json!(false)])?;
    uniform_layer_types(config, shared.layers, false)?;
    let attention_bias = config.flag("attention_bias")?.unwrap_or(false);
    let own = Own {
        vocab_size: 32_000,
        intermediate_size: 11_008,
        max_position_embeddings: 2048,
        key_value_heads: shared.key_value_heads.unwrap_or(shared.attention_heads),
        head_dim: shared.head_dim.map_or_else(|| shared.divided_head_dim(), Ok)?,
        sliding_window: vec![None; shared.layers],
        query_key_norm: false,
        biases: Biases {
            query_key_value: attention_bias,
            attention_output: attention_bias,
            feed_forward: config.flag("mlp_bias")?.unwrap_or(false),
        },
    };
    shared.into_spec(config, Family::Llama, own)
}
