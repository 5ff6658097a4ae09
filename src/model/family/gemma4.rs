//! Gemma 4, its dense text models without embeddings by layer: Gemma 3 with wider heads and shared keys and values where attention
//! is full, norms of values, and a factor on every layer. Defaults: `Gemma4TextConfig`.

use serde_json::json;
use tune_kernels::rms_norm::NormWeight;

use super::Declared;
use super::gemma::{self, scaled};
use super::gemma2::{layer, logits};
use super::layer_types::{by_kind, layer_types};
use super::shared::{Defaults, Shared};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::parts::{AttentionSpec, Heads, Inner, NormKind};
use crate::model::rotary::{RotarySpec, Rules};

pub(super) const GEMMA4: Declared = Declared {
    model_type: "gemma4_text",
    architecture: "Gemma4ForCausalLM",
    models: "Gemma 4 (dense text: 12B, 31B)",
    read,
};

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    refuse_other_kinds(config)?;
    let defaults = Defaults {
        vocab_size: 262_144,
        intermediate_size: 9216,
        key_value_heads: Some(4),
        max_position_embeddings: 131_072,
        norm_weight: NormWeight::Plain,
        ..gemma::DEFAULTS
    };
    config.must_be("hidden_activation", &[json!("gelu_pytorch_tanh")])?;
    let shared = Shared::read(config, &defaults)?;
    let window = config.size("sliding_window")?.unwrap_or(512);
    let slides = layer_types(config, shared.layers)?;
    let mut slides =
        slides.unwrap_or_else(|| (1..=shared.layers).map(|layer| !layer.is_multiple_of(6)).collect());
    // The last layer attends to everything, whatever the file says.
    if let Some(last) = slides.last_mut() {
        *last = false;
    }
    let shares = config.flag("attention_k_eq_v")?.unwrap_or(false);
    let wide = wide_heads(config, &shared, &slides, shares)?;
    let bias = config.flag("attention_bias")?.unwrap_or(false);
    let NormKind::Rms(value_norm) = shared.norm("", "").kind else { unreachable!("Gemma has RMS norms") };
    let layers = by_kind(&slides, |slides| {
        let heads = if slides { shared.heads } else { wide };
        let shared = shared.with_heads(heads);
        let attention = shared.attention();
        let inner = match attention.inner {
            Inner::Separate { query, key, .. } if shares && !slides => Inner::SharedKey { query, key },
            inner => inner,
        };
        let attention = AttentionSpec {
            inner,
            head_norms: Some(shared.head_norms("self_attn.q_norm", "self_attn.k_norm")),
            value_norm: Some(value_norm),
            rotary: Some(usize::from(slides)),
            scaling: 1.0,
            window: Some(window).filter(|_| slides),
            ..attention
        };
        layer(&shared, attention.biased(bias, bias)).times("layer_scalar")
    });
    if config.get("rope_parameters").is_none() {
        return Err(config.fail("rope_parameters", "is missing"));
    }
    let sliding = shared.rotary_rules();
    let full = Rules { theta: 1_000_000.0, head_dim: wide.dim, partial: Some(1.0), ..sliding };
    let kinds = [("full_attention", full), ("sliding_attention", sliding)];
    let rotaries = RotarySpec::read_by_kind(config, kinds)?;
    let logits = logits(config, None)?;
    Ok(DecoderSpec { logits, ..scaled(shared.decoder_with(rotaries.into(), &GEMMA4, layers, None)) })
}

/// Refuses the members of the family with embeddings by layer, shared states, experts, or attention in both directions.
fn refuse_other_kinds(config: &ConfigReader<'_>) -> Result<(), Error> {
    const KEY: &str = "hidden_size_per_layer_input";
    if config.is_null(KEY) {
        config.get(KEY);
    } else if config.count(KEY)?.unwrap_or(256) > 0 {
        return Err(config.fail(KEY, "is above 0: embeddings by layer (E2B, E4B) are not implemented"));
    }
    config.must_be("num_kv_shared_layers", &[json!(0)])?;
    config.must_be("enable_moe_block", &[json!(false)])?;
    // What attention to the tokens of images is like, which text has none of.
    config.must_be("use_bidirectional_attention", &[json!(false), json!("vision")])?;
    // Of what is refused above.
    for key in [
        "vocab_size_per_layer_input",
        "use_double_wide_mlp",
        "num_experts",
        "top_k_experts",
        "moe_intermediate_size",
    ] {
        config.get(key);
    }
    Ok(())
}

/// The heads of full attention: from `per_layer_config` (transformers 5.24), or `global_head_dim` and
/// `num_global_key_value_heads`.
fn wide_heads(
    config: &ConfigReader<'_>,
    shared: &Shared,
    slides: &[bool],
    shares: bool,
) -> Result<Heads, Error> {
    let queries = shared.heads.queries;
    let global_dim = config.size("global_head_dim")?;
    let global_keys = config.size("num_global_key_value_heads")?.filter(|_| shares);
    let (dim, keys) = match config.object("per_layer_config")? {
        None => (global_dim.unwrap_or(512), global_keys.unwrap_or(shared.heads.keys)),
        Some(layers) => {
            let mut found = None;
            for (index, slides) in slides.iter().enumerate() {
                let name = index.to_string();
                let own = match layers.object(&name)? {
                    Some(own) => {
                        let heads = (own.size("head_dim")?, own.size("num_key_value_heads")?);
                        own.finish()?;
                        Some(heads)
                    }
                    None => None,
                };
                if own.is_some() == *slides || (!slides && found.is_some_and(|found| Some(found) != own)) {
                    return Err(layers.fail(&name, "differs from that of other layers of its kind"));
                }
                found = own.or(found);
            }
            layers.finish()?;
            let (dim, keys) = found.unwrap_or_default();
            (dim.unwrap_or(shared.heads.dim), keys.unwrap_or(shared.heads.keys))
        }
    };
    if !dim.is_multiple_of(2) || dim > 1 << 14 || !queries.is_multiple_of(keys) {
        return Err(config.fail(
            "global_head_dim",
            format!("of {dim} with {keys} key heads does not fit {queries} attention heads"),
        ));
    }
    Ok(Heads { queries, keys, dim })
}
