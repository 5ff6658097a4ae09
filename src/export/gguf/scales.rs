//! Factors and smooth bounds in llama.cpp's terms: keys where an architecture has them, refusals where it computes others.

use super::super::Error;
use super::container::Value;
use super::family::{attentions, not_carried};
use crate::model::DecoderSpec;
use crate::model::gguf_spec::{GgufSpec, Scales, SoftCaps};
use crate::model::parts::AttentionSpec;

/// The keys of factors on embeddings, scores, blocks and logits.
pub(super) fn put(
    spec: &DecoderSpec,
    gguf: GgufSpec,
    put: &mut impl FnMut(&str, Value),
) -> Result<(), Error> {
    let block = spec.layers.first().and_then(|layer| layer.blocks().first()).map_or(1.0, |block| block.scale);
    let [embedding, logits] = [spec.embedding_scale, spec.logit_scale];
    let root = |square: f32| 1.0 / square.sqrt();
    let scores_are = |expected: &dyn Fn(&AttentionSpec) -> f32| {
        attentions(spec)
            .all(|attention| (attention.scaling - expected(attention)).abs() <= 1e-6 * expected(attention))
    };
    let usual = scores_are(&|attention| root(attention.heads.dim as f32));
    let wide = scores_are(&|attention| root((spec.hidden_size / attention.heads.queries) as f32));
    let scaled = embedding == (spec.hidden_size as f32).sqrt();
    let fits = match gguf.scales {
        Scales::Keys => {
            put("attention.scale", Value::F32(attentions(spec).next().map_or(1.0, |first| first.scaling)));
            put("embedding_scale", Value::F32(embedding));
            put("residual_scale", Value::F32(block));
            put("logit_scale", Value::F32(1.0 / logits));
            return Ok(());
        }
        Scales::LogitKey => {
            put("logit_scale", Value::F32(logits));
            usual && embedding == 1.0
        }
        Scales::QueryNorm => {
            put("logit_scale", Value::F32(spec.logits.scale));
            (embedding, logits) == (1.0, 1.0)
        }
        Scales::Usual => usual && (embedding, logits) == (1.0, 1.0),
        Scales::Gemma { wide: layers } => {
            scaled && logits == 1.0 && if spec.layers.len() == layers { wide } else { usual }
        }
        Scales::Gemma4 => scaled && logits == 1.0 && scores_are(&|_| 1.0),
    };
    match fits && block == 1.0 && (spec.logits.scale == 1.0 || gguf.scales == Scales::QueryNorm) {
        true => Ok(()),
        false => Err(not_carried(
            spec,
            format!("llama.cpp has no keys for the factors of a {}", gguf.architecture),
        )),
    }
}

/// The keys of smooth bounds.
pub(super) fn put_soft_caps(
    spec: &DecoderSpec,
    gguf: GgufSpec,
    put: &mut impl FnMut(&str, Value),
) -> Result<(), Error> {
    let (scores, logits) = (attentions(spec).find_map(|attention| attention.soft_cap), spec.logits.soft_cap);
    let fits = match gguf.soft_caps {
        SoftCaps::None => scores.or(logits).is_none(),
        // Absent keys stand for the caps of Gemma 2.
        SoftCaps::Logits => {
            put("final_logit_softcapping", Value::F32(logits.unwrap_or(0.0)));
            scores.is_none()
        }
        SoftCaps::ScoresAndLogits => {
            put("attn_logit_softcapping", Value::F32(scores.unwrap_or(0.0)));
            put("final_logit_softcapping", Value::F32(logits.unwrap_or(0.0)));
            scores.is_some()
        }
    };
    match fits {
        true => Ok(()),
        false => Err(not_carried(
            spec,
            format!("llama.cpp bounds other numbers smoothly in a {}", gguf.architecture),
        )),
    }
}
