//! The projections that stay dense while the others are quantized: those that `keep` of `[quantization.nf4]` names, or
//! those that a checkpoint in 4 bits has dense.

use std::fmt;
use std::sync::Arc;

use super::decoder_spec::DecoderSpec;
use super::parts::LayerSpec;
use super::tensors::Checked;
use crate::adapter::projection::Slot;
use crate::adapter::spec::pattern_regex;
use crate::adapter::target::available;

/// A pattern of `keep` that does not fit the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmatched {
    /// Its place in the list, from 0.
    pub position: usize,
    /// What is wrong.
    pub message: String,
    /// The remedy.
    pub help: String,
}

impl fmt::Display for Unmatched {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}; {}", self.message, self.help)
    }
}

impl DecoderSpec {
    /// The same with every projection that a pattern matches left dense. A pattern matches a module's whole path, or its end
    /// from the beginning of a component on, as the keys of `rank_pattern` do.
    ///
    /// # Errors
    /// Every pattern that matches nothing or is not a regular expression, and patterns that leave nothing to quantize.
    pub fn keeping(self, patterns: &[String]) -> Result<Self, Vec<Unmatched>> {
        let modules = self.modules();
        let (mut regexes, mut problems) = (Vec::new(), Vec::new());
        for (position, pattern) in patterns.iter().enumerate() {
            let mut report = |message, help| problems.push(Unmatched { position, message, help });
            match pattern_regex(pattern) {
                Err(error) => {
                    let text = error.to_string();
                    let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
                    let help = "the syntax is that of Rust's regex crate; a literal dot is written \\.";
                    report(format!("`{pattern}` is not a regular expression: {reason}"), help.to_owned());
                }
                Ok(regex) if !modules.iter().any(|module| regex.is_match(&module.path)) => {
                    let message = format!("`{pattern}` in keep matches no projection of this model");
                    report(message, available(pattern, &modules));
                }
                Ok(regex) => regexes.push(regex),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let kept = self.dense_where(|path| regexes.iter().any(|regex| regex.is_match(path)));
        let is_quantized = |layer: &Arc<LayerSpec>| layer.projections().any(|projection| !projection.dense);
        match patterns.is_empty() || kept.layers.iter().any(is_quantized) {
            true => Ok(kept),
            false => Err(vec![Unmatched {
                position: 0,
                message: "keep leaves every projection dense, so nothing would be quantized".to_owned(),
                help: "remove `[quantization.nf4]`, or name fewer modules".to_owned(),
            }]),
        }
    }

    /// The same with every projection left dense whose module path `is_dense` accepts.
    #[must_use]
    pub(super) fn dense_where(mut self, is_dense: impl Fn(&str) -> bool) -> Self {
        // Layers of one kind that keep the same projections still share a spec.
        let mut known: Vec<(Arc<LayerSpec>, Vec<Slot>, Arc<LayerSpec>)> = Vec::new();
        for layer in 0..self.layers.len() {
            let spec = Arc::clone(&self.layers[layer]);
            let more = spec.projections().filter(|projection| !projection.dense);
            let more = more.filter(|projection| is_dense(&self.path(layer, &projection.path)));
            let slots: Vec<Slot> = more.map(|projection| projection.slot).collect();
            if slots.is_empty() {
                continue;
            }
            let same = known.iter().find(|(from, kept, _)| Arc::ptr_eq(from, &spec) && *kept == slots);
            self.layers[layer] = match same {
                Some((_, _, changed)) => Arc::clone(changed),
                None => {
                    let changed = Arc::new(spec.with_dense(&slots));
                    known.push((spec, slots, Arc::clone(&changed)));
                    changed
                }
            };
        }
        self
    }
}

impl Checked {
    /// The first pattern that would leave a projection dense which the checkpoint stores in 4 bits.
    pub fn in_four_bits(&self, patterns: &[String]) -> Option<Unmatched> {
        patterns.iter().enumerate().find_map(|(position, pattern)| {
            let regex = pattern_regex(pattern).ok()?;
            let mut paths = self.quantized.keys().filter_map(|weight| weight.strip_suffix(".weight"));
            let path = paths.find(|path| regex.is_match(path))?;
            Some(Unmatched {
                position,
                message: format!("`{pattern}` in keep matches `{path}`, which the base stores in 4 bits"),
                help: "name the original model as the base, or remove the pattern".to_owned(),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::shapes;

    fn kept(patterns: &[&str]) -> Result<Vec<String>, Vec<Unmatched>> {
        let patterns: Vec<String> = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
        let spec = shapes::spec("qwen3-0.6b").unwrap().unwrap().keeping(&patterns)?;
        let of = |(layer, layer_spec): (usize, &Arc<LayerSpec>)| {
            let dense = layer_spec.projections().filter(|projection| projection.dense);
            dense.map(|projection| spec.path(layer, &projection.path)).collect::<Vec<_>>()
        };
        Ok(spec.layers.iter().enumerate().flat_map(of).collect())
    }

    #[test]
    fn names_and_patterns_keep_what_they_match() {
        assert!(kept(&[]).unwrap().is_empty());
        assert_eq!(kept(&["down_proj"]).unwrap().len(), 28);
        let first = kept(&[r"layers\.[01]\.mlp\..*", "model.layers.27.self_attn.o_proj"]).unwrap();
        assert_eq!(first.len(), 7);
        assert!(first.contains(&"model.layers.1.mlp.gate_proj".to_owned()));
        // Not in the middle of a component: 1 is not 11.
        assert_eq!(kept(&[r"1\.mlp\.up_proj"]).unwrap(), ["model.layers.1.mlp.up_proj"]);
    }

    #[test]
    fn layers_that_keep_the_same_share_a_spec() {
        let spec = shapes::spec("qwen3-0.6b").unwrap().unwrap();
        let spec = spec.keeping(&[r"layers\.[0-3]\.self_attn\.q_proj".to_owned()]).unwrap();
        assert!(Arc::ptr_eq(&spec.layers[0], &spec.layers[3]));
        assert!(Arc::ptr_eq(&spec.layers[4], &spec.layers[27]));
        assert!(!Arc::ptr_eq(&spec.layers[3], &spec.layers[4]));
    }

    #[test]
    fn what_keeps_nothing_or_everything_is_refused() {
        let problems = kept(&["q_proj", "qproj", "("]).unwrap_err();
        assert_eq!(problems.iter().map(|problem| problem.position).collect::<Vec<_>>(), [1, 2]);
        assert!(problems[0].help.contains("did you mean `q_proj`?"), "{}", problems[0]);
        let problems = kept(&[".*"]).unwrap_err();
        assert!(problems[0].message.contains("every projection"), "{}", problems[0]);
    }
}
