//! Rewrites an adapter so that readers without rank patterns, alpha patterns and rsLoRA compute the same.
//!
//! One rank: A is padded with rows of zeros and B with columns of zeros up to the largest rank. One scaling: if all
//! targets share it, `alpha = scaling · rank` without rsLoRA; else each target's scaling is multiplied into its B, and
//! `alpha = rank`.

use super::Error;
use crate::adapter::peft::{self, Config};
use crate::adapter::projection::Module;
use crate::adapter::spec::Spec;
use crate::adapter::target::Target;

/// An adapter with one rank and one scaling.
#[derive(Clone, Debug)]
pub struct Portable {
    /// The targets, all of one rank, alpha and scaling.
    pub targets: Vec<Target>,
    /// A, then B, of each target, as [`peft::Adapter::values`] returns them.
    pub values: Vec<Vec<f32>>,
    /// What was converted, in words; empty if the adapter needed no change.
    pub changes: Vec<String>,
}

/// Rewrites an adapter.
///
/// # Errors
/// A tensor cannot be read.
pub fn fold(adapter: &peft::Adapter, targets: &[Target]) -> Result<Portable, Error> {
    let mut values = adapter.values(targets)?;
    let mut changes = Vec::new();
    let rank = targets.iter().map(|target| target.rank).max().unwrap_or(1);
    let scaling = targets.first().map_or(1.0, |target| target.scaling);
    let one_scaling = targets.iter().all(|target| target.scaling == scaling);
    let padded = targets.iter().filter(|target| target.rank < rank).count();
    for (target, pair) in targets.iter().zip(values.chunks_exact_mut(2)) {
        if !one_scaling {
            for value in &mut pair[1] {
                *value = (f64::from(*value) * target.scaling) as f32;
            }
        }
        if target.rank < rank {
            pair[0].resize(rank * target.module.in_features, 0.0);
            let mut wide = vec![0.0; target.module.out_features * rank];
            for (wide, row) in wide.chunks_exact_mut(rank).zip(pair[1].chunks_exact(target.rank)) {
                wide[..target.rank].copy_from_slice(row);
            }
            pair[1] = wide;
        }
    }
    let (alpha, scaling) = match one_scaling {
        true => (scaling * rank as f64, scaling),
        false => (rank as f64, 1.0),
    };
    if padded > 0 {
        changes.push(format!("{padded} of {} modules padded with zeros to rank {rank}", targets.len()));
    }
    if !one_scaling {
        changes.push("each module's scaling multiplied into its B".into());
    }
    if adapter.config().use_rslora {
        changes.push(format!("rsLoRA expressed as alpha = {alpha}"));
    }
    let target =
        |target: &Target| Target { module: target.module.clone(), rank, alpha, scaling, use_dora: false };
    Ok(Portable { targets: targets.iter().map(target).collect(), values, changes })
}

/// The configuration of targets that may differ in rank and alpha; `modules` are all projections of the model.
pub fn config(original: &Config, targets: &[Target], modules: &[Module], use_rslora: bool) -> Config {
    let spec = Spec {
        rank: targets.first().map_or(original.rank, |target| target.rank),
        alpha: targets.first().map_or(original.alpha, |target| target.alpha),
        dropout: original.dropout,
        use_rslora,
        use_dora: original.use_dora,
        modules_to_save: original.modules_to_save.clone(),
        ..Spec::default()
    };
    let base = original.base_model.as_deref().unwrap_or_default();
    Config::new(&spec, targets, modules, base, original.revision.as_deref())
}

/// The candidate modules of an unknown model: the projections of `targets` in every layer up to the last one named.
pub fn lattice(targets: &[Target]) -> Vec<Module> {
    let layers = targets.iter().map(|target| target.module.layer + 1).max().unwrap_or(0);
    let mut modules: Vec<Module> = Vec::new();
    for target in targets {
        let module = &target.module;
        if modules.iter().any(|known| known.path_in_layer() == module.path_in_layer()) {
            continue;
        }
        let (own, any) = (format!(".{}.", module.layer), |layer: usize| format!(".{layer}."));
        modules.extend((0..layers).map(|layer| Module {
            path: module.path.replacen(&own, &any(layer), 1),
            layer,
            ..module.clone()
        }));
    }
    modules
}
