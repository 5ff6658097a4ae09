//! Mistral: one sliding window for all layers (or none), no biases. Defaults: `MistralConfig`.

use serde_json::json;

use super::{Family, Own, Shared, uniform_layer_types};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::{Biases, DecoderSpec};

pub(super) fn decoder_spec(config: &ConfigReader<'_>, shared: Shared) -> Result<DecoderSpec, Error> {
    config.must_be("attention_bias", &[json!(false)])?;
    config.must_be("mlp_bias", &[json!(false)])?;
    // Absent means the default of 4096; null means none.
    let window = match config.is_null("sliding_window") {
        true => None,
        false => Some(config.size("sliding_window")?.unwrap_or(4096)),
    };
    uniform_layer_types(config, shared.layers, window.is_some())?;
    let key_value_heads = match config.is_null("num_key_value_heads") {
        true => shared.attention_heads,
        false => shared.key_value_heads.unwrap_or(8),
    };
    let own = Own {
        vocab_size: 32_000,
        intermediate_size: 14_336,
        max_position_embeddings: 4096 * 32,
        key_value_heads,
        head_dim: shared.head_dim.map_or_else(|| shared.divided_head_dim(), Ok)?,
        sliding_window: vec![window; shared.layers],
        query_key_norm: false,
        biases: Biases::default(),
    };
    shared.into_spec(config, Family::Mistral, own)
}
