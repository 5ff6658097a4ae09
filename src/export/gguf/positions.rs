//! Positions in llama.cpp's terms: rotary frequencies, sliding windows, layers that rotate nothing.

use super::super::Error;
use super::container::{Keys, Value};
use super::family::{not_carried, size};
use super::mixers::Attending;
use crate::model::DecoderSpec;
use crate::model::gguf_spec::{GgufSpec, Unrotated, Windows};
use crate::model::rotary::{QueryScale, RotaryScaling, RotarySpec};

/// Adds the architecture's keys; returns the context length. `notes` are for the user.
///
/// # Errors
/// llama.cpp computes something else.
pub(super) fn put(
    spec: &DecoderSpec,
    gguf: GgufSpec,
    keys: &mut Keys,
    notes: &mut Vec<String>,
) -> Result<usize, Error> {
    let mut add = |key: &str, value: Value| keys.push((format!("{}.{key}", gguf.architecture), value));
    let rotary = &spec.rotaries[0];
    let mut context = spec.max_position_embeddings;
    if let Some(limit) = windows(spec, gguf, &mut add)? {
        context = context.min(limit);
        notes.push(format!(
            "llama.cpp has no sliding window for {}, so the context length is limited to the window, {limit} (the model \
             supports {})",
            gguf.architecture, spec.max_position_embeddings
        ));
    }
    unrotated(spec, gguf, &mut add)?;
    if let RotaryScaling::Dynamic { .. } = rotary.scaling {
        notes.push(format!(
            "llama.cpp has no dynamic rotary scaling; it has no effect up to the context length of {context}"
        ));
    }
    add("rope.dimension_count", size(rotary.dimensions));
    add("rope.freq_base", Value::F32(rotary.theta as f32));
    scaling(spec, gguf, rotary, &mut add)?;
    if let RotaryScaling::Yarn { truncate: false, .. } = rotary.scaling {
        notes.push(
            "llama.cpp rounds the ends of YaRN's ramp, which this model does not (`truncate` is false): frequencies in \
             between differ a little"
                .into(),
        );
    }
    if let Some(QueryScale { beta, .. }) = rotary.query_scale {
        add("attention.temperature_scale", Value::F32(beta as f32));
    }
    Ok(context)
}

/// Adds the keys of windows; returns the smallest window where llama.cpp has none.
fn windows(
    spec: &DecoderSpec,
    gguf: GgufSpec,
    add: &mut impl FnMut(&str, Value),
) -> Result<Option<usize>, Error> {
    let attending = spec.layers.iter().map(|layer| Attending::of(layer));
    let windows: Vec<Option<usize>> = attending.map(|layer| layer.and_then(|layer| layer.window)).collect();
    let Some(smallest) = windows.iter().flatten().min().copied() else {
        match gguf.windows {
            Windows::Told => add("attention.sliding_window", size(0)),
            Windows::Listed { always: true } => {
                add("attention.sliding_window", size(spec.max_position_embeddings));
                add("attention.sliding_window_pattern", Value::Bools(vec![false; windows.len()]));
            }
            Windows::None | Windows::Listed { always: false } => {}
        }
        return Ok(None);
    };
    let Windows::Listed { .. } = gguf.windows else {
        if gguf.windows == Windows::Told {
            add("attention.sliding_window", size(smallest));
        }
        return Ok(Some(smallest).filter(|window| *window < spec.max_position_embeddings));
    };
    if windows.iter().flatten().any(|window| *window != smallest) {
        return Err(not_carried(
            spec,
            format!(
                "llama.cpp has windows of one size for a {}, in the layers that have any",
                gguf.architecture
            ),
        ));
    }
    add("attention.sliding_window", size(smallest));
    add("attention.sliding_window_pattern", Value::Bools(windows.iter().map(Option::is_some).collect()));
    Ok(None)
}

/// Checks that llama.cpp rotates in the layers that do.
fn unrotated(spec: &DecoderSpec, gguf: GgufSpec, add: &mut impl FnMut(&str, Value)) -> Result<(), Error> {
    let attending = spec.layers.iter().map(|layer| Attending::of(layer)).enumerate();
    let attending: Vec<_> = attending.filter_map(|(layer, attending)| Some((layer, attending?))).collect();
    let has_windows = attending.iter().any(|(_, attending)| attending.window.is_some());
    let all = |expected: &dyn Fn(usize, &Attending) -> bool| {
        attending.iter().all(|(layer, attending)| attending.rotary.is_some() == expected(*layer, attending))
    };
    let fits = match gguf.unrotated {
        Unrotated::None => all(&|_, _| true),
        Unrotated::Every(period) => all(&|layer, _| !(layer + 1).is_multiple_of(period)),
        Unrotated::WithoutWindow => all(&|_, attending| !has_windows || attending.window.is_some()),
        Unrotated::AllOrNone => {
            let rotates = attending.first().is_some_and(|(_, first)| first.rotary.is_some());
            add("rope.scaling.finetuned", Value::Bool(rotates));
            all(&|_, _| rotates)
        }
    };
    match fits {
        true => Ok(()),
        false => Err(not_carried(
            spec,
            format!("llama.cpp rotates queries and keys in other layers of a {}", gguf.architecture),
        )),
    }
}

fn scaling(
    spec: &DecoderSpec,
    gguf: GgufSpec,
    rotary: &RotarySpec,
    add: &mut impl FnMut(&str, Value),
) -> Result<(), Error> {
    // llama.cpp takes the stretch from layers with a window, and keeps the base unless a key says otherwise.
    if let Some(other) = spec.rotaries.get(1) {
        let same_base = gguf.takes_base_of_windows || other.theta == rotary.theta;
        if !same_base || other.scaling != RotaryScaling::None {
            return Err(not_carried(spec, "its layers with a window have rotary positions of another kind"));
        }
        if gguf.takes_base_of_windows {
            add("rope.freq_base_swa", Value::F32(other.theta as f32));
        }
        if other.dimensions != rotary.dimensions {
            add("rope.dimension_count_swa", size(other.dimensions));
        }
    }
    match &rotary.scaling {
        RotaryScaling::None | RotaryScaling::Dynamic { .. } => {}
        RotaryScaling::Llama3 { .. } | RotaryScaling::Proportional { .. }
            if gguf.takes_frequency_divisors => {}
        RotaryScaling::Llama3 { .. } | RotaryScaling::Proportional { .. } => {
            return Err(not_carried(
                spec,
                format!(
                    "llama.cpp does not support rope types llama3 and proportional for {}",
                    gguf.architecture
                ),
            ));
        }
        RotaryScaling::Linear { factor } => {
            add("rope.scaling.type", "linear".into());
            add("rope.scaling.factor", Value::F32(*factor as f32));
        }
        RotaryScaling::Yarn {
            factor,
            attention_factor,
            beta_fast,
            beta_slow,
            original_max_position_embeddings,
            truncate: _,
        } => {
            add("rope.scaling.type", "yarn".into());
            add("rope.scaling.factor", Value::F32(*factor as f32));
            add("rope.scaling.original_context_length", size(*original_max_position_embeddings));
            add("rope.scaling.yarn_beta_fast", Value::F32(*beta_fast as f32));
            add("rope.scaling.yarn_beta_slow", Value::F32(*beta_slow as f32));
            // llama.cpp multiplies by the usual temperature itself.
            let slope = 0.1 * factor.max(1.0).ln();
            match gguf.divides_temperature && slope > 0.0 {
                true => {
                    let multiplier = ((slope + 1.0) / attention_factor - 1.0) / slope;
                    add("rope.scaling.yarn_log_multiplier", Value::F32(multiplier as f32));
                }
                false => {
                    add("rope.scaling.attn_factor", Value::F32((attention_factor / (slope + 1.0)) as f32));
                }
            }
        }
        RotaryScaling::LongRope { attention_factor, original_max_position_embeddings, .. } => {
            add("rope.scaling.original_context_length", size(*original_max_position_embeddings));
            add("rope.scaling.attn_factor", Value::F32(*attention_factor as f32));
        }
    }
    Ok(())
}

/// Tensors of rotary frequencies: what llama.cpp divides each pair's frequency by, for all documents or for short and long
/// ones.
pub(super) fn divisors(spec: &DecoderSpec) -> Vec<(&'static str, Vec<f32>)> {
    let rotary = &spec.rotaries[0];
    match &rotary.scaling {
        RotaryScaling::Llama3 { .. } => {
            let unscaled = RotarySpec { scaling: RotaryScaling::None, ..rotary.clone() };
            let pairs = unscaled.inverse_frequencies(0).into_iter().zip(rotary.inverse_frequencies(0));
            let divisors = pairs.map(|(unscaled, scaled)| (f64::from(unscaled) / f64::from(scaled)) as f32);
            vec![("rope_freqs.weight", divisors.collect())]
        }
        // A pair that stands still turns once in so many positions that none sees it.
        RotaryScaling::Proportional { pairs, factor } => {
            let divisor = |pair: usize| if pair < *pairs { *factor as f32 } else { 1e30 };
            vec![("rope_freqs.weight", (0..rotary.dimensions / 2).map(divisor).collect())]
        }
        RotaryScaling::LongRope { short, long, .. } => {
            let narrow = |divisors: &[f64]| divisors.iter().map(|divisor| *divisor as f32).collect();
            vec![("rope_factors_long.weight", narrow(long)), ("rope_factors_short.weight", narrow(short))]
        }
        _ => Vec::new(),
    }
}
