//! What is beside projections, norms and experts in llama.cpp's terms: heads and widths that differ by layer, recurrent
//! mixers, short convolutions, embeddings by layer.
//!
//! | here | there |
//! |---|---|
//! | a delta net's convolution, decay rates, their bias | `ssm_conv1d`, `ssm_a` as −eˣ, `ssm_dt` |
//! | a short convolution | `shortconv.conv` |
//! | sinks of attention | `attn_sinks` |
//! | the factor on a layer's output | `layer_output_scale` |
//!
//! Value heads of a delta net are in another order ([`Rows::InTurn`]).

use super::super::Error;
use super::container::Value;
use super::experts;
use super::family::{not_carried, size};
use super::names::Change;
use super::rows::Rows;
use crate::model::DecoderSpec;
use crate::model::parts::{ConstantSpec, Heads, LayerSpec};

/// A layer that attends, over keys and values of its own or of an earlier layer.
pub(super) struct Attending {
    pub(super) heads: Heads,
    pub(super) window: Option<usize>,
    pub(super) rotary: Option<usize>,
}

impl Attending {
    pub(super) fn of(layer: &LayerSpec) -> Option<Self> {
        match (layer.attention(), layer.reading()) {
            (Some(own), _) => Some(Self { heads: own.heads, window: own.window, rotary: own.rotary }),
            (None, Some(other)) => {
                Some(Self { heads: other.heads, window: other.window, rotary: Some(other.rotary) })
            }
            (None, None) => None,
        }
    }
}

/// A tensor of a layer that is neither a projection nor a norm.
pub(super) struct Constant {
    /// Its name in the file, behind the layer's number.
    pub(super) name: &'static str,
    pub(super) rows: Rows,
    pub(super) change: Change,
    /// Whether dimensions of 1 are left out.
    pub(super) squeezed: bool,
}

impl Constant {
    pub(super) fn plain(name: &'static str) -> Self {
        Self { name, rows: Rows::All, change: Change::None, squeezed: false }
    }
}

/// The place of a tensor of a layer; `None`: llama.cpp has none.
pub(super) fn constant(layer: &LayerSpec, constant: &ConstantSpec) -> Option<Constant> {
    if layer.factor() == Some(constant) {
        return Some(Constant::plain("layer_output_scale.weight"));
    }
    if layer.attention().is_some_and(|attention| attention.sinks.as_ref() == Some(constant)) {
        return Some(Constant::plain("attn_sinks.weight"));
    }
    if layer.short_conv().is_some_and(|conv| conv.conv == *constant) {
        return Some(Constant { squeezed: true, ..Constant::plain("shortconv.conv.weight") });
    }
    if let Some(delta_net) = layer.delta_net() {
        let heads = Rows::in_turn(delta_net, 0, 1);
        if *constant == delta_net.conv {
            let rows = Rows::mixed(delta_net);
            return Some(Constant { rows, squeezed: true, ..Constant::plain("ssm_conv1d.weight") });
        }
        if *constant == delta_net.log_rate {
            let change = Change::MinusExponential;
            return Some(Constant { rows: heads, change, ..Constant::plain("ssm_a") });
        }
        if *constant == delta_net.bias {
            return Some(Constant { rows: heads, ..Constant::plain("ssm_dt.bias") });
        }
    }
    experts::constant(layer, constant)
}

/// Adds the keys of mixers and of embeddings by layer.
///
/// # Errors
/// llama.cpp computes something else.
pub(super) fn put(spec: &DecoderSpec, put: &mut impl FnMut(&str, Value)) -> Result<(), Error> {
    if let Some(conv) = spec.layers.iter().find_map(|layer| layer.short_conv()) {
        put("shortconv.l_cache", size(conv.conv_size()));
    }
    if let Some(delta_net) = spec.layers.iter().find_map(|layer| layer.delta_net()) {
        let heads = delta_net.heads;
        if heads.key_dim != heads.value_dim {
            return Err(not_carried(
                spec,
                "llama.cpp has recurrent heads whose keys and values are equally wide (`linear_key_head_dim`, \
                 `linear_value_head_dim`)",
            ));
        }
        put("ssm.conv_kernel", size(delta_net.conv_size()));
        put("ssm.state_size", size(heads.key_dim));
        put("ssm.group_count", size(heads.keys));
        put("ssm.time_step_rank", size(heads.values));
        put("ssm.inner_size", size(heads.values * heads.value_dim));
        let recurrent: Vec<bool> = spec.layers.iter().map(|layer| layer.delta_net().is_some()).collect();
        // What builds of llama.cpp read that know no list.
        let interval = recurrent.iter().position(|recurrent| !recurrent).map(|first| first + 1);
        let is_regular = |interval: &usize| {
            recurrent
                .iter()
                .zip(1_usize..)
                .all(|(recurrent, layer)| *recurrent != layer.is_multiple_of(*interval))
        };
        if let Some(interval) = interval.filter(is_regular) {
            put("full_attention_interval", size(interval));
        }
        put("attention.recurrent_layers", Value::Bools(recurrent));
        // Pairs that turn by time, height and width: for text all turn alike, as far as the shares reach.
        let pairs = spec.rotaries.first().map_or(0, |rotary| rotary.dimensions / 2);
        let shares = [2, 1, 0].map(|more| ((pairs + more) / 3) as i32);
        put("rope.dimension_sections", Value::I32s(shares.into_iter().chain([0]).collect()));
    }
    let readers = spec.layers.iter().filter(|layer| layer.reads().is_some()).count();
    if readers > 0 {
        let own = &spec.layers[..spec.layers.len() - readers];
        let slides = |layer: &LayerSpec| layer.attention().map(|attention| attention.window.is_some());
        let last: Vec<_> = own.iter().rev().take(2).map(|layer| slides(layer)).collect();
        if last != [Some(false), Some(true)] {
            return Err(not_carried(
                spec,
                "in llama.cpp layers read the keys and values of the last two that have their own: one with a window, then \
                 one without (`num_kv_shared_layers`, `layer_types`)",
            ));
        }
    }
    if spec.layers.iter().any(|layer| layer.factor().is_some()) {
        put("attention.shared_kv_layers", size(readers));
        let width = spec.per_layer.as_ref().map_or(0, |per_layer| per_layer.width);
        put("embedding_length_per_layer_input", size(width));
    }
    Ok(())
}
