//! Which layers have a sliding window: `layer_types` and the keys that came before it.

use std::sync::Arc;

use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::parts::LayerSpec;

/// A spec for each layer; layers of one kind share theirs.
pub(super) fn by_kind<K: PartialEq + Copy>(
    kinds: &[K],
    layer: impl Fn(K) -> LayerSpec,
) -> Vec<Arc<LayerSpec>> {
    let mut known: Vec<(K, Arc<LayerSpec>)> = Vec::new();
    let mut spec = |kind: &K| match known.iter().find(|(other, _)| other == kind) {
        Some((_, spec)) => Arc::clone(spec),
        None => {
            let spec = Arc::new(layer(*kind));
            known.push((*kind, Arc::clone(&spec)));
            spec
        }
    };
    kinds.iter().map(&mut spec).collect()
}

/// Per-layer windows of the families that have `layer_types`: from that list, or from `max_window_layers`.
pub(super) fn windows_by_layer(
    config: &ConfigReader<'_>,
    layers: usize,
    default_window: usize,
    default_max_window_layers: usize,
) -> Result<Vec<Option<usize>>, Error> {
    let used = config.flag("use_sliding_window")?.unwrap_or(false);
    // An explicit null stands for no window; an absent key for the default. Where none is used it may be anything.
    let window = match config.is_null("sliding_window") || !used {
        true => None,
        false => Some(config.size("sliding_window")?.unwrap_or(default_window)),
    };
    config.ignore(&["sliding_window"]);
    let first = config.count("max_window_layers")?.unwrap_or(default_max_window_layers);
    match layer_types(config, layers)? {
        None => Ok((0..layers).map(|layer| window.filter(|_| layer >= first)).collect()),
        Some(slides) => slides
            .into_iter()
            .map(|slides| match (slides, window) {
                (false, _) => Ok(None),
                (true, Some(window)) => Ok(Some(window)),
                (true, None) => Err(config.fail(
                    "layer_types",
                    "has sliding layers, but `use_sliding_window` is off or `sliding_window` is null",
                )),
            })
            .collect(),
    }
}

/// Per layer: whether its attention slides.
pub(super) fn layer_types(config: &ConfigReader<'_>, layers: usize) -> Result<Option<Vec<bool>>, Error> {
    let Some(types) = config.texts("layer_types")? else { return Ok(None) };
    if types.len() != layers {
        return Err(config.fail("layer_types", format!("has {} entries for {layers} layers", types.len())));
    }
    types
        .into_iter()
        .map(|name| match name {
            "full_attention" => Ok(false),
            "sliding_attention" => Ok(true),
            other => Err(config.fail(
                "layer_types",
                format!("has {other:?}; implemented are \"full_attention\" and \"sliding_attention\""),
            )),
        })
        .collect::<Result<_, _>>()
        .map(Some)
}

/// Refuses `layer_types` of several kinds, for families whose code does not read it.
pub(super) fn uniform_layer_types(
    config: &ConfigReader<'_>,
    layers: usize,
    slides: bool,
) -> Result<(), Error> {
    match layer_types(config, layers)? {
        Some(types) if types.iter().any(|&layer| layer != slides) => Err(config.fail(
            "layer_types",
            "contradicts `sliding_window`: layers of different kinds are not part of this family",
        )),
        _ => Ok(()),
    }
}
