//! Verifies an adapter folder: every tensor is used, every pair is complete, every module has an effect, and the base
//! is the right one.
//!
//! All problems are collected; the first one does not end the check.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::base::{Identity, OpenedBase, fit};
use super::consumer::Compatibility;
use super::delta::Pair;
use crate::adapter::peft::{self, CONFIG_FILE, TENSORS_FILE};
use crate::adapter::saved::SavedModule;
use crate::adapter::target::Target;
use crate::assets::FileDigest;
use crate::assets::folder::digest;

/// One adapted projection.
#[derive(Clone, Debug, PartialEq)]
pub struct ModuleReport {
    /// The target.
    pub target: Target,
    /// Frobenius norm of `scaling · B·A`; `None` if its tensors cannot be read.
    pub norm: Option<f64>,
}

/// The result of verifying an adapter folder.
#[derive(Clone, Debug)]
pub struct Verification {
    /// The folder.
    pub folder: PathBuf,
    /// Problems found; empty if the adapter is good.
    pub problems: Vec<String>,
    /// Names, sizes and hashes of its files.
    pub files: Vec<FileDigest>,
    /// The base that it names, and its revision.
    pub base: Option<(String, Option<String>)>,
    /// Its modules, by layer.
    pub modules: Vec<ModuleReport>,
    /// Its modules to save.
    pub saved_modules: Vec<SavedModule>,
    /// Provenance: the metadata of adapter_model.safetensors.
    pub provenance: BTreeMap<String, String>,
    /// Evidence that it belongs to the given base, if one was given.
    pub identity: Option<Identity>,
    /// The consumers that can load it, and in which form.
    pub compatibility: Option<Compatibility>,
}

/// Verifies an adapter folder; with a base, also that they fit.
pub fn verify(folder: &Path, base: Option<&OpenedBase>) -> Verification {
    let mut found = Verification {
        folder: folder.to_path_buf(),
        problems: Vec::new(),
        files: Vec::new(),
        base: None,
        modules: Vec::new(),
        saved_modules: Vec::new(),
        provenance: BTreeMap::new(),
        identity: None,
        compatibility: None,
    };
    let adapter = match peft::Adapter::open_with_tables(folder) {
        Ok(adapter) => adapter,
        Err(error) => {
            found.problems.push(error.to_string());
            return found;
        }
    };
    for name in [CONFIG_FILE, TENSORS_FILE] {
        match digest(&folder.join(name)) {
            Ok(file) => found.files.push(file),
            Err(error) => found.problems.push(error.to_string()),
        }
    }
    let config = adapter.config();
    found.base = config.base_model.clone().map(|name| (name, config.revision.clone()));
    found.provenance = adapter.metadata().clone();
    // Modules are examined even if hashes differ, so targets are resolved first.
    let targets = match base {
        Some(base) => match fit(&adapter, base, true) {
            Ok((targets, identity)) => {
                let differences = identity.overruled.iter();
                found.problems.extend(
                    differences.map(|text| format!("not the base model of the training run: {text}")),
                );
                found.identity = Some(identity);
                Ok(targets)
            }
            Err(error) => Err(error.to_string()),
        },
        None => adapter.modules().and_then(|modules| adapter.targets(&modules)).map_err(|e| e.to_string()),
    };
    match targets {
        Ok(targets) => {
            found.compatibility = Some(match adapter.adapted_tables().is_empty() {
                true => Compatibility::of(config, &targets),
                false => Compatibility::with_tables(),
            });
            measure(&adapter, targets, &mut found);
            look_at_saved_modules(&adapter, base, &mut found);
        }
        Err(problem) => found.problems.push(problem),
    }
    found
}

/// Reads every module to save.
fn look_at_saved_modules(adapter: &peft::Adapter, base: Option<&OpenedBase>, found: &mut Verification) {
    let candidates = base.map_or_else(|| adapter.own_saved_modules(), |base| base.spec.saved_modules());
    match adapter.saved_modules(&candidates) {
        Ok(saved_modules) => {
            for saved in &saved_modules {
                if let Err(error) = adapter.saved_values(saved) {
                    found.problems.push(error.to_string());
                }
            }
            found.saved_modules = saved_modules;
        }
        Err(error) => found.problems.push(error.to_string()),
    }
}

/// Reads every pair of A and B, one at a time, and computes the norm of its delta.
fn measure(adapter: &peft::Adapter, targets: Vec<Target>, found: &mut Verification) {
    let mut idle = Vec::new();
    for target in targets {
        let norm = match Pair::read(adapter, &target) {
            Ok(pair) => Some(pair.norm()),
            Err(error) => {
                found.problems.push(error.to_string());
                None
            }
        };
        // Of an expert that no token reached, or that another tool wants a pair for, nothing was learned.
        if norm == Some(0.0) && !target.module.role.is_routed() {
            idle.push(target.module.path.clone());
        }
        found.modules.push(ModuleReport { target, norm });
    }
    // Whether DoRA's magnitudes differ from the base's norms is unknown without the base.
    let but = if adapter.config().use_dora { "; at most its DoRA magnitudes have one" } else { "" };
    match idle.as_slice() {
        [] => {}
        [only] => found.problems.push(format!("module `{only}` has no effect: B·A is zero{but}")),
        [first, .., last] => found.problems.push(format!(
            "{} of {} modules have no effect, `{first}` to `{last}`: their B·A is zero{but}",
            idle.len(),
            found.modules.len()
        )),
    }
}
