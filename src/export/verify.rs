//! What an adapter folder is, and whether all of it does something: every tensor consumed, every pair whole, no module
//! whose product vanishes, the base the right one.
//!
//! Everything that is wrong is collected; nothing stops at the first fault.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::base::{Identity, OpenedBase, fit};
use super::consumer::Compatibility;
use super::delta::Pair;
use crate::adapter::peft::{self, CONFIG_FILE, TENSORS_FILE};
use crate::adapter::target::Target;
use crate::adapter::whole::Whole;
use crate::assets::FileDigest;
use crate::assets::folder::digest;

/// One adapted projection.
#[derive(Clone, Debug, PartialEq)]
pub struct ModuleReport {
    /// The target.
    pub target: Target,
    /// Frobenius norm of `scaling · B·A`; `None` where its numbers cannot be used.
    pub norm: Option<f64>,
}

/// All that was found out about an adapter folder.
#[derive(Clone, Debug)]
pub struct Verification {
    /// The folder.
    pub folder: PathBuf,
    /// What is wrong; empty when the adapter is good.
    pub problems: Vec<String>,
    /// Hashes of its own files.
    pub files: Vec<FileDigest>,
    /// The base it names, and the revision.
    pub base: Option<(String, Option<String>)>,
    /// Its modules, by layer.
    pub modules: Vec<ModuleReport>,
    /// The modules that it has as a whole.
    pub wholes: Vec<Whole>,
    /// What it says of its making: metadata of the tensors' file.
    pub provenance: BTreeMap<String, String>,
    /// How sure it is that it belongs to the base at hand, where one was given.
    pub identity: Option<Identity>,
    /// Who reads it as it is.
    pub compatibility: Option<Compatibility>,
}

/// Looks at an adapter folder from all sides; with a base, also at whether they fit.
pub fn verify(folder: &Path, base: Option<&OpenedBase>) -> Verification {
    let mut found = Verification {
        folder: folder.to_path_buf(),
        problems: Vec::new(),
        files: Vec::new(),
        base: None,
        modules: Vec::new(),
        wholes: Vec::new(),
        provenance: BTreeMap::new(),
        identity: None,
        compatibility: None,
    };
    let adapter = match peft::Adapter::open_with_wholes(folder) {
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
    // With hashes that differ the modules are still worth looking at, so those are asked for first.
    let targets = match base {
        Some(base) => match fit(&adapter, base, true) {
            Ok((targets, identity)) => {
                let differences = identity.overruled.iter();
                found
                    .problems
                    .extend(differences.map(|text| format!("not the base it was trained on: {text}")));
                found.identity = Some(identity);
                Ok(targets)
            }
            Err(error) => Err(error.to_string()),
        },
        None => adapter.modules().and_then(|modules| adapter.targets(&modules)).map_err(|e| e.to_string()),
    };
    match targets {
        Ok(targets) => {
            found.compatibility = Some(Compatibility::of(config, &targets));
            measure(&adapter, targets, &mut found);
            look_at_wholes(&adapter, base, &mut found);
        }
        Err(problem) => found.problems.push(problem),
    }
    found
}

/// Reads every module that the adapter has as a whole.
fn look_at_wholes(adapter: &peft::Adapter, base: Option<&OpenedBase>, found: &mut Verification) {
    let candidates = base.map_or_else(|| adapter.own_wholes(), |base| base.spec.wholes());
    match adapter.wholes(&candidates) {
        Ok(wholes) => {
            for whole in &wholes {
                if let Err(error) = adapter.whole_values(whole) {
                    found.problems.push(error.to_string());
                }
            }
            found.wholes = wholes;
        }
        Err(error) => found.problems.push(error.to_string()),
    }
}

/// Reads every pair, one at a time, and measures what it does.
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
        if norm == Some(0.0) {
            idle.push(target.module.path.clone());
        }
        found.modules.push(ModuleReport { target, norm });
    }
    // Whether magnitudes are those of the base cannot be known without it.
    let but = if adapter.config().use_dora { ", so that at most magnitudes do something" } else { "" };
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
