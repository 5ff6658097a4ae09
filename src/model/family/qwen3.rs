//! Qwen3, dense: a norm on each head's queries and keys, windows per layer. Defaults: `Qwen3Config`.

use serde_json::json;

use super::{Family, Own, Shared, windows_by_layer};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::{Biases, DecoderSpec};

pub(super) fn decoder_spec(config: &ConfigReader<'_>, shared: Shared) -> Result<DecoderSpec, Error> {
    config.must_be("mlp_bias", &[json!(false)])?;
    let attention_bias = config.flag("attention_bias")?.unwrap_or(false);
    let key_value_heads = match config.is_null("num_key_value_heads") {
        true => shared.attention_heads,
        false => shared.key_value_heads.unwrap_or(32),
    };
    let own = Own {
        vocab_size: 151_936,
        intermediate_size: 22_016,
        max_position_embeddings: 32_768,
        key_value_heads,
        // Not derived from the hidden size.
        head_dim: shared.head_dim.unwrap_or(128),
        sliding_window: windows_by_layer(config, shared.layers, 4096, 28)?,
        query_key_norm: true,
        biases: Biases {
            query_key_value: attention_bias,
            attention_output: attention_bias,
            feed_forward: false,
        },
    };
    shared.into_spec(config, Family::Qwen3, own)
}
