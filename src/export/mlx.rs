//! Adapters as mlx-lm keeps them: `adapters.safetensors` with `….lora_a` `[in, rank]` and `….lora_b` `[rank, out]`,
//! and an `adapter_config.json` of its own with the scaling written out.
//!
//! mlx-lm adapts the named projections in each of the last `num_layers` layers. Here `num_layers` is all layers, and
//! modules without an adapter get zeros, so that every tensor that mlx-lm expects is present.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::json;

use super::Error;
use super::base::OpenedBase;
use super::portable::Portable;
use crate::adapter::parameter::{Parameter, Part};
use crate::adapter::peft::{CONFIG_FILE, Numbers, write_numbers};
use crate::adapter::projection::Module;
use crate::files::{self, Existing};

/// Writes the folder; it is complete or absent.
///
/// # Errors
/// A file cannot be written, or a value is not finite.
pub fn write(
    portable: &Portable,
    base: &OpenedBase,
    metadata: &BTreeMap<String, String>,
    out: &Path,
    existing: Existing,
) -> Result<(), Error> {
    let Some(first) = portable.targets.first() else { return Ok(()) };
    let (rank, scaling) = (first.rank, first.scaling);
    let adapted: BTreeMap<&str, usize> = portable
        .targets
        .iter()
        .enumerate()
        .map(|(index, target)| (target.module.path.as_str(), index))
        .collect();
    let keys: BTreeSet<&str> = portable.targets.iter().map(|target| target.module.path_in_layer()).collect();
    let modules: Vec<Module> =
        base.spec.modules().into_iter().filter(|module| keys.contains(module.path_in_layer())).collect();
    let mut parameters = Vec::with_capacity(2 * modules.len());
    for module in &modules {
        let (a, b) = ([module.in_features, rank], [rank, module.out_features]);
        // mlx-lm keeps a text decoder beside towers the other way round.
        let path = module.path.replacen("model.language_model.", "language_model.model.", 1);
        parameters.push(Parameter { name: format!("{path}.lora_a"), part: Part::A, shape: a });
        parameters.push(Parameter { name: format!("{path}.lora_b"), part: Part::B, shape: b });
    }
    let values = |index: usize| -> Result<Vec<f32>, crate::adapter::Error> {
        let [rows, columns] = parameters[index].shape;
        let Some(target) = adapted.get(modules[index / 2].path.as_str()) else {
            return Ok(vec![0.0; rows * columns]);
        };
        // mlx-lm stores `[columns, rows]`: the transpose of PEFT's layout.
        let source = &portable.values[2 * target + index % 2];
        Ok((0..rows * columns).map(|at| source[(at % columns) * rows + at / columns]).collect())
    };
    let config = json!({
        "fine_tune_type": "lora",
        "num_layers": base.spec.layers.len(),
        "lora_parameters": {"rank": rank, "scale": scaling, "dropout": 0.0, "keys": keys},
    });
    let mut metadata = metadata.clone();
    metadata.insert("format".into(), "mlx".into());
    files::write_folder_atomically(out, existing, |inside| -> Result<(), Error> {
        files::write_bytes(&inside.join(CONFIG_FILE), format!("{config:#}\n").as_bytes())?;
        let numbers = Numbers { parameters: &parameters, values: &values };
        Ok(write_numbers(&inside.join("adapters.safetensors"), &numbers, &metadata)?)
    })
}
