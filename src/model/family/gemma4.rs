//! Gemma 4, its text models: Gemma 3 with wider heads and shared keys and values where attention is full, norms of
//! values, and a factor on every layer. In the small ones (E2B, E4B) the upper layers read the keys and values of lower
//! ones, and every layer is given embeddings of its own. Beside the dense block may be a mixture (`gemma4_moe`). Defaults:
//! `Gemma4TextConfig`, `Gemma4UnifiedTextConfig`.

use serde_json::json;
use tune_kernels::rms_norm::NormWeight;

use super::Declared;
use super::gemma::{self, scaled};
use super::gemma2::{layer, layer_with, logits};
use super::gemma4_moe;
use super::layer_types::{by_kind, layer_types};
use super::shared::{Defaults, Shared, plausible_count, plausible_size};
use crate::adapter::projection::Role;
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::gguf_spec::{GgufSpec, RotaryPairs, Scales, SoftCaps, Windows};
use crate::model::parts::{
    AttentionSpec, BlockSpec, HeadNorms, Heads, Inner, NormSpec, PerLayerInputSpec, PerLayerSpec,
    ProjectionSpec, ReadingSpec, post,
};
use crate::model::rotary::{RotarySpec, Rules};

pub(super) const GEMMA4: Declared = Declared {
    model_type: "gemma4_text",
    architecture: "Gemma4ForCausalLM",
    models: "Gemma 4 (E2B, E4B, 31B, 26B-A4B)",
    read: |config| read(config, &GEMMA4, Absent { window: 512, positions: 131_072, by_layer: 256 }),
};

pub(super) const GEMMA4_UNIFIED: Declared = Declared {
    model_type: "gemma4_unified_text",
    architecture: "Gemma4UnifiedForCausalLM",
    models: "Gemma 4 12B",
    read: |config| read(config, &GEMMA4_UNIFIED, Absent { window: 1024, positions: 262_144, by_layer: 0 }),
};

/// Values of absent keys that differ between the classes.
struct Absent {
    window: usize,
    positions: usize,
    /// Width of embeddings by layer.
    by_layer: usize,
}

fn read(config: &ConfigReader<'_>, family: &Declared, absent: Absent) -> Result<DecoderSpec, Error> {
    refuse_other_kinds(config)?;
    let defaults = Defaults {
        hidden_size: 2304,
        layers: 30,
        attention_heads: 8,
        vocab_size: 262_144,
        intermediate_size: 9216,
        key_value_heads: Some(4),
        max_position_embeddings: absent.positions,
        norm_weight: NormWeight::Plain,
        ..gemma::DEFAULTS
    };
    config.must_be("hidden_activation", &[json!("gelu_pytorch_tanh")])?;
    let shared = Shared::read(config, &defaults)?;
    let window = config.size("sliding_window")?.unwrap_or(absent.window);
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
    let sharing = Sharing::read(config, &slides)?;
    let per_layer = per_layer(config, &shared, absent.by_layer)?;
    let experts = gemma4_moe::mixture(config, &shared)?;
    let value_norm = shared.norm("", "").kind.rms();
    let kind = |layer: usize| Kind {
        slides: slides[layer],
        reads: sharing.reads(layer),
        gives: sharing.gives(layer),
        part: per_layer.as_ref().map(|_| layer),
    };
    let kinds: Vec<Kind> = (0..shared.layers).map(kind).collect();
    let layers = by_kind(&kinds, |Kind { slides, reads, gives, part }| {
        let heads = if slides { shared.heads } else { wide };
        let mut shared = shared.with_heads(heads);
        if reads && sharing.is_wide {
            shared = shared.with_intermediate(2 * shared.intermediate_size);
        }
        let part = part.zip(per_layer.as_ref()).map(|(layer, own)| part_block(&shared, layer, own.width));
        let window = Some(window).filter(|_| slides);
        if reads {
            return layer(&shared, reading(&shared, slides, window, bias), part).times("layer_scalar");
        }
        let attention = shared.attention();
        let inner = match attention.inner {
            Inner::Separate { query, key, .. } if shares && !slides => Inner::SharedKey { query, key },
            inner => inner,
        };
        let attention = AttentionSpec {
            inner,
            head_norms: Some(head_norms(&shared)),
            value_norm,
            rotary: Some(usize::from(slides)),
            scaling: 1.0,
            window,
            gives: gives.then_some(usize::from(slides)),
            ..attention
        };
        let attention = attention.biased(bias, bias);
        let spec = match &experts {
            Some(experts) => layer_with(&shared, attention, gemma4_moe::block(&shared, experts), part),
            None => layer(&shared, attention, part),
        };
        spec.times("layer_scalar")
    });
    let sliding = shared.rotary_rules();
    let full = Rules { theta: 1_000_000.0, head_dim: wide.dim, partial: Some(1.0), ..sliding };
    let kinds = [("full_attention", full), ("sliding_attention", sliding)];
    let usual = json!({"rope_parameters": {"full_attention":
        {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0}}});
    let rotaries = match config.get("rope_parameters") {
        Some(_) => RotarySpec::read_by_kind(config, kinds)?,
        None => RotarySpec::read_by_kind(&ConfigReader::new(&usual)?, kinds)?,
    };
    let logits = logits(config, None)?;
    let gguf = GgufSpec {
        windows: Windows::Listed { always: true },
        scales: Scales::Gemma4,
        soft_caps: SoftCaps::Logits,
        takes_base_of_windows: true,
        takes_frequency_divisors: true,
        merges_beside_bytes: true,
        ..GgufSpec::of("gemma4", RotaryPairs::Halves)
    };
    // Experts beside a dense block have no place in the file yet.
    let gguf = Some(gguf).filter(|_| experts.is_none());
    Ok(DecoderSpec {
        logits,
        per_layer,
        ..scaled(shared.decoder_with(rotaries.into(), family, layers, gguf))
    })
}

/// What tells layers of one kind from others.
#[derive(Clone, Copy, PartialEq)]
struct Kind {
    slides: bool,
    reads: bool,
    gives: bool,
    /// The layer, where it is given embeddings of its own.
    part: Option<usize>,
}

/// Which layers read the keys and values of earlier ones: each those of the last one of its kind that has its own.
struct Sharing {
    slides: Vec<bool>,
    /// Layers with their own.
    own: usize,
    /// Whether readers have feed-forward blocks of twice the width.
    is_wide: bool,
}

impl Sharing {
    fn read(config: &ConfigReader<'_>, slides: &[bool]) -> Result<Self, Error> {
        const KEY: &str = "num_kv_shared_layers";
        let count = config.count(KEY)?.unwrap_or(0);
        let Some(own) = slides.len().checked_sub(count) else {
            return Err(config.fail(KEY, format!("is {count}, of {} layers", slides.len())));
        };
        let (own_kinds, reading) = slides.split_at(own);
        if reading.iter().any(|slides| !own_kinds.contains(slides)) {
            return Err(config.fail(KEY, format!("is {count}, which leaves a kind of layers without keys")));
        }
        let is_wide = config.flag("use_double_wide_mlp")?.unwrap_or(false);
        Ok(Self { slides: slides.to_vec(), own, is_wide })
    }

    fn reads(&self, layer: usize) -> bool {
        layer >= self.own
    }

    fn gives(&self, layer: usize) -> bool {
        let (own, reading) = self.slides.split_at(self.own);
        let slides = self.slides[layer];
        own.iter().rposition(|other| *other == slides) == Some(layer) && reading.contains(&slides)
    }
}

/// Attention over the keys and values of an earlier layer of the same kind.
fn reading(shared: &Shared, slides: bool, window: Option<usize>, bias: bool) -> ReadingSpec {
    let (heads, hidden, kind) = (shared.heads, shared.hidden_size, usize::from(slides));
    let [queries, ..] = heads.widths();
    let projection = |name: &str, shape, role| ProjectionSpec {
        bias,
        ..ProjectionSpec::new(format!("self_attn.{name}"), shape, role)
    };
    ReadingSpec {
        heads,
        from: kind,
        query: projection("q_proj", [queries, hidden], Role::Query),
        norm: head_norms(shared).query,
        rotary: kind,
        output: projection("o_proj", [hidden, queries], Role::Output),
        scaling: 1.0,
        window,
    }
}

fn head_norms(shared: &Shared) -> HeadNorms {
    shared.head_norms("self_attn.q_norm", "self_attn.k_norm")
}

/// Where a layer takes its part of the embeddings by layer in.
fn part_block(shared: &Shared, layer: usize, width: usize) -> BlockSpec {
    let hidden = shared.hidden_size;
    let gate = ProjectionSpec::new("per_layer_input_gate".into(), [width, hidden], Role::PartGate);
    let projection = ProjectionSpec::new("per_layer_projection".into(), [hidden, width], Role::PartOutput);
    let body = PerLayerInputSpec { layer, gate, activation: shared.activation, projection };
    post(body, shared.norm("post_per_layer_input_norm", "post_norm"))
}

/// Embeddings by layer; none where their width is 0.
fn per_layer(
    config: &ConfigReader<'_>,
    shared: &Shared,
    absent: usize,
) -> Result<Option<PerLayerSpec>, Error> {
    const KEY: &str = "hidden_size_per_layer_input";
    let rows = config.size("vocab_size_per_layer_input")?.unwrap_or(262_144);
    let width = match config.is_null(KEY) {
        true => {
            config.get(KEY);
            0
        }
        false => config.count(KEY)?.unwrap_or(absent),
    };
    if width == 0 {
        return Ok(None);
    }
    let (rows, width) = (plausible_size("vocab_size_per_layer_input", rows)?, plausible_count(KEY, width)?);
    if rows < shared.vocab_size {
        let message = format!("is {rows}, fewer than the {} tokens of the vocabulary", shared.vocab_size);
        return Err(config.fail("vocab_size_per_layer_input", message));
    }
    Ok(Some(PerLayerSpec {
        rows,
        width,
        layers: shared.layers,
        table: "model.embed_tokens_per_layer",
        projection: "model.per_layer_model_projection",
        norm: NormSpec { width, ..shared.norm("model.per_layer_projection_norm", "per_layer_proj_norm") },
    }))
}

/// Refuses attention in both directions.
fn refuse_other_kinds(config: &ConfigReader<'_>) -> Result<(), Error> {
    // What attention to the tokens of images is like, which text has none of.
    config.must_be("use_bidirectional_attention", &[json!(false), json!("vision")])?;
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
            for (index, is_sliding) in slides.iter().enumerate() {
                // With zeros in front, as wide as the last layer's number.
                let width = (slides.len() - 1).to_string().len();
                let names = [index.to_string(), format!("{index:0width$}")];
                let [plain, padded] = [layers.object(&names[0])?, layers.object(&names[1])?];
                let own = match plain.or(padded) {
                    Some(own) => {
                        let heads = (own.size("head_dim")?, own.size("num_key_value_heads")?);
                        own.finish()?;
                        Some(heads)
                    }
                    None => None,
                };
                let other = !is_sliding && found.is_some_and(|found| Some(found) != own);
                if own.is_some() == *is_sliding || other {
                    return Err(layers.fail(&names[0], "differs from that of other layers of its kind"));
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::model::family::decoder_spec;

    /// As `google/gemma-4-E2B-it` has it, its text part.
    fn e2b() -> Value {
        let five = ["sliding_attention"; 4].into_iter().chain(["full_attention"]);
        let layer_types: Vec<&str> = five.cycle().take(35).collect();
        json!({"model_type": "gemma4_text", "attention_bias": false, "attention_dropout": 0.0,
            "attention_k_eq_v": false, "bos_token_id": 2, "dtype": "bfloat16", "enable_moe_block": false,
            "eos_token_id": 1, "final_logit_softcapping": 30.0, "global_head_dim": 512, "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1536, "hidden_size_per_layer_input": 256,
            "initializer_range": 0.02, "intermediate_size": 6144, "layer_types": layer_types,
            "max_position_embeddings": 131_072, "moe_intermediate_size": null, "num_attention_heads": 8,
            "num_experts": null, "num_global_key_value_heads": null, "num_hidden_layers": 35,
            "num_key_value_heads": 1, "num_kv_shared_layers": 20, "pad_token_id": 0, "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"},
                "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}},
            "sliding_window": 512, "tie_word_embeddings": true, "top_k_experts": null, "use_cache": true,
            "use_bidirectional_attention": null, "use_double_wide_mlp": true, "vocab_size": 262_144,
            "vocab_size_per_layer_input": 262_144})
    }

    #[test]
    fn the_small_ones_read_keys_and_have_their_published_size() {
        let config = json!({"architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4",
            "audio_config": {}, "vision_config": {}, "text_config": e2b()});
        let spec = decoder_spec(&config).unwrap();
        assert_eq!(spec.wrapper, Some("gemma4"));
        let table = 262_144 * 35 * 256_u64;
        // Its card: 2.3 billion effective.
        let effective = (spec.parameters() - table) as f64;
        assert!((effective / 2.3e9 - 1.0).abs() < 0.02, "{effective}");
        let gives = |layer: usize| spec.layers[layer].attention().and_then(|attention| attention.gives);
        let reads = |layer: usize| spec.layers[layer].reads();
        assert_eq!((0..35).filter_map(gives).collect::<Vec<_>>(), [1, 0]);
        assert_eq!((gives(13), gives(14)), (Some(1), Some(0)));
        assert!((0..15).all(|layer| reads(layer).is_none()) && (15..35).all(|layer| reads(layer).is_some()));
        assert_eq!((reads(18), reads(19), reads(34)), (Some(1), Some(0), Some(0)));
        let widths = [14, 15].map(|layer| spec.layers[layer].gated().unwrap().intermediate());
        assert_eq!(widths, [6144, 12_288]);
        assert_eq!(spec.input_numbers(), 35 * 256 + 4 * (256 + 512));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (key, value) in [
            ("num_kv_shared_layers", json!(35)),
            ("num_kv_shared_layers", json!(40)),
            ("vocab_size_per_layer_input", json!(1000)),
            ("num_experts", json!(0)),
        ] {
            let mut config = e2b();
            config[key] = value;
            config["enable_moe_block"] = json!(key == "num_experts");
            let error = decoder_spec(&config).unwrap_err().to_string();
            assert!(error.contains(key), "{key}: {error}");
        }
    }
}
