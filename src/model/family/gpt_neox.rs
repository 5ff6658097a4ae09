//! GPT-NeoX and Pythia: layer norms, attention and feed-forward block side by side, one projection to the queries, keys and
//! values of each head, a quarter of every head rotated. Defaults: `GPTNeoXConfig`.

use std::sync::Arc;

use serde_json::json;
use tune_kernels::activation::Function;

use super::Declared;
use super::layer_types::uniform_layer_types;
use super::shared::{Defaults, Shared, UNGATED, function};
use crate::adapter::projection::Role;
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::{DecoderSpec, Paths};
use crate::model::gguf_spec::{Biases, Fixed, GgufSpec};
use crate::model::parts::{AttentionSpec, Inner, LayerSpec, ProjectionSpec, parallel, pre};
use crate::model::rotary::{RotarySpec, Rules};

pub(super) const GPT_NEOX: Declared =
    Declared { model_type: "gpt_neox", architecture: "GPTNeoXForCausalLM", models: "GPT-NeoX, Pythia", read };

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    config.must_be("hidden_dropout", &[json!(0)])?;
    // Of a head for classes of tokens.
    config.get("classifier_dropout");
    let defaults = Defaults {
        hidden_size: 6144,
        layers: 44,
        attention_heads: 64,
        vocab_size: 50_432,
        intermediate_size: 24_576,
        epsilon: 1e-5,
        activation: UNGATED,
        layer_norm: Some(("layer_norm_eps", true)),
        ..Defaults::LLAMA
    };
    let shared = Shared::read(config, &defaults)?;
    uniform_layer_types(config, shared.layers, false)?;
    let (heads, hidden) = (shared.heads, shared.hidden_size);
    if heads.queries != heads.keys {
        return Err(config
            .fail("num_key_value_heads", "differs from `num_attention_heads`, which is not implemented"));
    }
    let bias = config.flag("attention_bias")?.unwrap_or(true);
    let all = [3 * heads.queries * heads.dim, hidden];
    let all = ProjectionSpec::new("attention.query_key_value".into(), all, Role::QueryKeyValue);
    let attention = shared.attention_at("attention", "dense");
    let attention = AttentionSpec { inner: Inner::ByHead(all), ..attention }.biased(bias, bias);
    let function = function(config, "hidden_act", Function::Gelu)?;
    let plain = shared.plain("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", function, true);
    let first = shared.norm("input_layernorm", "attn_norm");
    let second = shared.norm("post_attention_layernorm", "ffn_norm");
    let parallel_residual = config.flag("use_parallel_residual")?.unwrap_or(true);
    let blocks = match parallel_residual {
        true => vec![parallel([(first, attention.into()), (second, plain.into())])],
        false => vec![pre(first, attention), pre(second, plain)],
    };
    let layer = Arc::new(LayerSpec::of(hidden, blocks));
    let partial = config.positive("rotary_pct")?.unwrap_or(0.25);
    let rules = Rules { partial: Some(partial), theta_key: "rotary_emb_base", ..shared.rotary_rules() };
    let rotary = RotarySpec::read(config, &rules)?;
    let fixed: &[_] = match parallel_residual {
        true => &[("use_parallel_residual", Fixed::Flag(true))],
        false => &[("use_parallel_residual", Fixed::Flag(false))],
    };
    let gguf = GgufSpec { biases: Biases::All, fixed, ..GgufSpec::filled("gptneox") };
    Ok(DecoderSpec {
        paths: Paths { embedding: "gpt_neox.embed_in", layers: "gpt_neox.layers", head: "embed_out" },
        final_norm: shared.norm("gpt_neox.final_layer_norm", "output_norm"),
        ..shared.decoder_with(vec![rotary], &GPT_NEOX, vec![layer; shared.layers], Some(gguf))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::adapter::saved::SavedKind;
    use crate::model::family::decoder_spec;

    /// As `EleutherAI/pythia-1b` has it: 1 011 781 632 parameters.
    #[test]
    fn pythia_has_its_published_size() {
        let spec = decoder_spec(&json!({"architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0,
            "eos_token_id": 0, "hidden_act": "gelu", "hidden_size": 2048, "initializer_range": 0.02,
            "intermediate_size": 8192, "layer_norm_eps": 1e-5, "max_position_embeddings": 2048,
            "model_type": "gpt_neox", "num_attention_heads": 8, "num_hidden_layers": 16, "rotary_emb_base": 10_000,
            "rotary_pct": 0.25, "tie_word_embeddings": false, "torch_dtype": "float16", "use_cache": true,
            "use_parallel_residual": true, "vocab_size": 50_304}))
        .unwrap();
        assert_eq!(spec.parameters(), 1_011_781_632);
        assert_eq!((spec.rotaries[0].dimensions, spec.rotaries[0].theta), (64, 10_000.0));
        let saved = spec.saved_modules();
        assert_eq!(saved.iter().map(|module| module.kind).collect::<Vec<_>>(), SavedKind::ALL);
    }

    /// As `microsoft/phi-2` has it: one norm for both branches is counted once; a head with a bias is not trained.
    #[test]
    fn phi_2_has_its_published_size() {
        let spec = decoder_spec(&json!({"architectures": ["PhiForCausalLM"], "attention_dropout": 0.0,
            "bos_token_id": 50_256, "embd_pdrop": 0.0, "eos_token_id": 50_256, "hidden_act": "gelu_new",
            "hidden_size": 2560, "initializer_range": 0.02, "intermediate_size": 10_240, "layer_norm_eps": 1e-5,
            "max_position_embeddings": 2048, "model_type": "phi", "num_attention_heads": 32,
            "num_hidden_layers": 32, "num_key_value_heads": 32, "partial_rotary_factor": 0.4,
            "qk_layernorm": false, "resid_pdrop": 0.1, "rope_scaling": null, "rope_theta": 10_000.0,
            "tie_word_embeddings": false, "torch_dtype": "float16", "use_cache": true, "vocab_size": 51_200}))
        .unwrap();
        assert_eq!(spec.parameters(), 2_779_683_840);
        assert_eq!(spec.rotaries[0].dimensions, 32);
        assert_eq!(spec.saved_modules().len(), 1);
    }
}
