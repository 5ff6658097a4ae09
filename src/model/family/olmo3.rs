//! OLMo 3: OLMo 2 with sliding windows in three of four layers, whose rotary positions are never stretched. Defaults:
//! `Olmo3Config`.

use super::Declared;
use super::layer_types::{by_kind, layer_types};
use super::olmo2;
use super::shared::{Defaults, Shared};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::parts::AttentionSpec;
use crate::model::rotary::RotarySpec;

pub(super) const OLMO3: Declared =
    Declared { model_type: "olmo3", architecture: "Olmo3ForCausalLM", models: "OLMo 3", read };

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    let defaults = Defaults { rope_theta: 500_000.0, ..olmo2::DEFAULTS };
    let shared = Shared::read(config, &defaults)?;
    let bias = config.flag("attention_bias")?.unwrap_or(false);
    // Absent means the default of 4096; null means none.
    let window = match config.is_null("sliding_window") {
        true => None,
        false => Some(config.size("sliding_window")?.unwrap_or(4096)),
    };
    let slides = layer_types(config, shared.layers)?;
    let slides =
        slides.unwrap_or_else(|| (1..=shared.layers).map(|layer| !layer.is_multiple_of(4)).collect());
    let layers = by_kind(&slides, |slides| {
        let (window, rotary) = (window.filter(|_| slides), Some(usize::from(slides)));
        olmo2::layer(&shared, AttentionSpec { window, rotary, ..shared.attention() }.biased(bias, bias))
    });
    let kinds = ["full_attention", "sliding_attention"].map(|kind| (kind, shared.rotary_rules()));
    let rotaries = RotarySpec::read_by_kind(config, kinds)?;
    Ok(shared.decoder_with(rotaries.into(), &OLMO3, layers, Some(olmo2::GGUF)))
}
