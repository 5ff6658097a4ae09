//! Gemma 3, its text model: Gemma 2 without caps, with norms over heads, and with other rotary positions where windows
//! slide. Defaults: `Gemma3TextConfig`.

use super::Declared;
use super::gemma::{self, scaled};
use super::gemma2::{attention, cap, layer, logits, window};
use super::layer_types::{by_kind, layer_types};
use super::shared::{Defaults, Shared};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::gguf_spec::{GgufSpec, RotaryPairs, Scales, SoftCaps, Windows};
use crate::model::parts::AttentionSpec;
use crate::model::rotary::{RotarySpec, Rules};

pub(super) const GEMMA3: Declared =
    Declared { model_type: "gemma3_text", architecture: "Gemma3ForCausalLM", models: "Gemma 3", read };

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    gemma::check(config)?;
    let defaults = Defaults {
        hidden_size: 2304,
        layers: 26,
        attention_heads: 8,
        vocab_size: 262_208,
        intermediate_size: 9216,
        key_value_heads: Some(4),
        max_position_embeddings: 131_072,
        rope_theta: 1_000_000.0,
        ..gemma::DEFAULTS
    };
    let shared = Shared::read(config, &defaults)?;
    let window = window(config)?;
    let written = config.size("_sliding_window_pattern")?;
    let pattern = config.size("sliding_window_pattern")?.or(written).unwrap_or(6);
    let slides = layer_types(config, shared.layers)?;
    let slides =
        slides.unwrap_or_else(|| (1..=shared.layers).map(|layer| !layer.is_multiple_of(pattern)).collect());
    let attention = AttentionSpec {
        head_norms: Some(shared.head_norms("self_attn.q_norm", "self_attn.k_norm")),
        soft_cap: cap(config, "attn_logit_softcapping", None)?,
        ..attention(config, &shared)?
    };
    let layers = by_kind(&slides, |slides| {
        let (window, rotary) = (window.filter(|_| slides), Some(usize::from(slides)));
        layer(&shared, AttentionSpec { window, rotary, ..attention.clone() }, None)
    });
    let full = shared.rotary_rules();
    let sliding = Rules { theta: 10_000.0, theta_key: "rope_local_base_freq", ..full };
    let kinds = [("full_attention", full), ("sliding_attention", sliding)];
    let rotaries = RotarySpec::read_by_kind(config, kinds)?;
    let logits = logits(config, None)?;
    let gguf = GgufSpec {
        windows: Windows::Listed { always: false },
        scales: Scales::Gemma { wide: 62 },
        soft_caps: SoftCaps::Logits,
        takes_base_of_windows: true,
        ..GgufSpec::of("gemma3", RotaryPairs::Halves)
    };
    Ok(DecoderSpec { logits, ..scaled(shared.decoder_with(rotaries.into(), &GEMMA3, layers, Some(gguf))) })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::model::dtype::FloatDtype;
    use crate::model::family::decoder_spec;
    use crate::model::spec::ComputeDtype;

    /// As `google/gemma-3-1b-it` has it.
    fn gemma_3_1b() -> Value {
        json!({"architectures": ["Gemma3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
            "attn_logit_softcapping": null, "bos_token_id": 2, "cache_implementation": "hybrid",
            "eos_token_id": [1, 106], "final_logit_softcapping": null, "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "initializer_range": 0.02,
            "intermediate_size": 6912, "max_position_embeddings": 32_768, "model_type": "gemma3_text",
            "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1, "pad_token_id": 0,
            "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_local_base_freq": 10_000,
            "rope_scaling": null, "rope_theta": 1_000_000, "sliding_window": 512, "sliding_window_pattern": 6,
            "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0", "use_cache": true,
            "vocab_size": 262_144})
    }

    #[test]
    fn both_spellings_are_the_same_model_of_its_published_size() {
        let old = decoder_spec(&gemma_3_1b()).unwrap();
        assert_eq!(old.parameters(), 999_885_952);
        let windows = old.layers.iter().filter(|layer| layer.attention().unwrap().window == Some(512));
        assert_eq!(windows.count(), 22);
        assert_eq!(old.rotaries.iter().map(|rotary| rotary.theta).collect::<Vec<_>>(), [1e6, 1e4]);
        let mut new = gemma_3_1b();
        let keys = new.as_object_mut().unwrap();
        for key in
            ["rope_local_base_freq", "rope_scaling", "rope_theta", "sliding_window_pattern", "torch_dtype"]
        {
            keys.remove(key);
        }
        new["dtype"] = json!("bfloat16");
        new["_sliding_window_pattern"] = json!(6);
        new["rope_parameters"] = json!({"full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}});
        let kinds = (1..=26).map(|layer| if layer % 6 == 0 { "full_attention" } else { "sliding_attention" });
        new["layer_types"] = json!(kinds.collect::<Vec<_>>());
        assert_eq!(decoder_spec(&new).unwrap(), old);
    }

    #[test]
    fn what_it_does_not_compute_is_refused() {
        for (key, value) in [
            ("use_bidirectional_attention", json!(true)),
            ("hidden_activation", json!("silu")),
            ("rope_parameters", json!({"full_attention": {"rope_type": "cubic"}})),
            ("attn_logit_softcapping", json!(-1.0)),
        ] {
            let mut config = gemma_3_1b();
            config[key] = value;
            let error = decoder_spec(&config).unwrap_err().to_string();
            assert!(error.contains(key) || error.contains("cubic"), "{key}: {error}");
        }
    }

    /// Activations of released Gemmas overflow f16.
    #[test]
    fn f16_is_refused() {
        let spec = decoder_spec(&gemma_3_1b()).unwrap();
        let dtype = |asked, stored| spec.compute_dtype(asked, stored, |_| true, |_| true);
        let error = dtype(ComputeDtype::F16, FloatDtype::Bf16).unwrap_err().to_string();
        assert!(error.contains("gemma3_text") && error.contains("bf16"), "{error}");
        assert_eq!(dtype(ComputeDtype::Auto, FloatDtype::F16).unwrap(), FloatDtype::F32);
        assert_eq!(dtype(ComputeDtype::Auto, FloatDtype::Bf16).unwrap(), FloatDtype::Bf16);
    }
}
