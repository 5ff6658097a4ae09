//! EXAONE 4: norms behind the blocks, norms of each head's queries and keys; with windows, the layers without one leave
//! queries and keys unrotated. Defaults: `Exaone4Config`.

use super::Declared;
use super::layer_types::{by_kind, layer_types};
use super::shared::{Defaults, Shared};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::gguf_spec::{GgufSpec, Unrotated, Windows};
use crate::model::parts::{AttentionSpec, LayerSpec, post};

pub(super) const EXAONE4: Declared =
    Declared { model_type: "exaone4", architecture: "Exaone4ForCausalLM", models: "EXAONE 4", read };

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    let defaults = Defaults {
        vocab_size: 102_400,
        intermediate_size: 16_384,
        key_value_heads: Some(32),
        epsilon: 1e-5,
        ..Defaults::LLAMA
    };
    let shared = Shared::read(config, &defaults)?;
    // Absent means the default of 4096; null means none.
    let window = match config.is_null("sliding_window") {
        true => None,
        false => Some(config.size("sliding_window")?.unwrap_or(4096)),
    };
    let slides = match layer_types(config, shared.layers)? {
        Some(listed) => {
            config.get("sliding_window_pattern");
            listed
        }
        None if window.is_none() => vec![false; shared.layers],
        None => by_pattern(config, shared.layers)?,
    };
    let layers = by_kind(&slides, |slides| {
        let attention = AttentionSpec {
            head_norms: Some(shared.head_norms("self_attn.q_norm", "self_attn.k_norm")),
            window: window.filter(|_| slides),
            rotary: (window.is_none() || slides).then_some(0),
            ..shared.attention()
        };
        let blocks = [
            post(attention, shared.norm("post_attention_layernorm", "post_attention_norm")),
            post(shared.gated("mlp"), shared.norm("post_feedforward_layernorm", "post_ffw_norm")),
        ];
        LayerSpec::of(shared.hidden_size, blocks)
    });
    // llama.cpp has windows in models of 64 layers alone, and rotates where they are; in others all layers.
    let (windows, unrotated) = match (shared.layers, window) {
        (64, Some(_)) => (Windows::Listed { always: false }, Unrotated::WithoutWindow),
        (64, None) => (Windows::None, Unrotated::Every(1)),
        _ => (Windows::None, Unrotated::None),
    };
    let gguf = GgufSpec { windows, unrotated, takes_frequency_divisors: true, ..GgufSpec::filled("exaone4") };
    shared.decoder(config, &EXAONE4, layers, Some(gguf))
}

/// Per layer, whether it slides, by `sliding_window_pattern`: a number of layers, or a letter for each ("LLLG").
fn by_pattern(config: &ConfigReader<'_>, layers: usize) -> Result<Vec<bool>, Error> {
    const KEY: &str = "sliding_window_pattern";
    match config.get(KEY).and_then(serde_json::Value::as_str) {
        Some(letters) if !letters.is_empty() && letters.bytes().all(|letter| b"LG".contains(&letter)) => {
            let mut slides: Vec<bool> =
                letters.bytes().cycle().take(layers).map(|letter| letter == b'L').collect();
            // The last layer is global, whatever the pattern.
            if let Some(last) = slides.last_mut() {
                *last = false;
            }
            Ok(slides)
        }
        Some(letters) => Err(config.fail(KEY, format!("is {letters:?}; expected letters L and G"))),
        None => {
            let every = config.size(KEY)?.unwrap_or(4);
            Ok((1..=layers).map(|layer| !layer.is_multiple_of(every)).collect())
        }
    }
}
