//! Qwen2 and Qwen2.5: biases on queries, keys and values alone; windows per layer. Defaults: `Qwen2Config`.

use serde_json::json;

use super::{Family, Own, Shared, windows_by_layer};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::{Biases, DecoderSpec};

pub(super) fn decoder_spec(config: &ConfigReader<'_>, shared: Shared) -> Result<DecoderSpec, Error> {
    config.must_be("use_mrope", &[json!(false)])?;
    config.must_be("mlp_bias", &[json!(false)])?;
    // Its projections have their biases whatever such a key would say.
    config.must_be("attention_bias", &[json!(true)])?;
    let key_value_heads = match config.is_null("num_key_value_heads") {
        true => shared.attention_heads,
        false => shared.key_value_heads.unwrap_or(32),
    };
    let own = Own {
        vocab_size: 151_936,
        intermediate_size: 22_016,
        max_position_embeddings: 32_768,
        key_value_heads,
        head_dim: shared.head_dim.map_or_else(|| shared.divided_head_dim(), Ok)?,
        sliding_window: windows_by_layer(config, shared.layers, 4096, 28)?,
        query_key_norm: false,
        biases: Biases { query_key_value: true, attention_output: false, feed_forward: false },
    };
    shared.into_spec(config, Family::Qwen2, own)
}
