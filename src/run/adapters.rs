//! `tune merge`, `tune verify` and `tune export`: work on an adapter after training.

use std::path::{Path, PathBuf};

use tune_kernels::KernelBackend;

use super::fidelity::{Fidelity, HeldOut};
use super::held_out::{self, Source};
use super::{Environment, Error};
use crate::adapter::peft::{self, Numbers};
use crate::adapter::target::tensors;
use crate::assets::folder::tokenizer_files;
use crate::assets::{ModelDir, resolve_base};
use crate::device::{Device, OnBackend};
use crate::export::base::{OpenedBase, fit, ignored_config_keys};
use crate::export::check::Rows;
use crate::export::combine::{self, Combined, Weighted};
use crate::export::consumer::{Consumer, Exported, export as write_for};
use crate::export::merge::{Options, Outcome, Plan, Progress};
use crate::export::verify::{Verification, verify as look_at};
use crate::files::{Existing, Scratch};
use crate::recipe::DeviceSpec;
use crate::{export, model};

/// A base as the user names it; by default the one that the adapter names.
#[derive(Clone, Copy, Debug, Default)]
pub struct BaseChoice<'a> {
    /// A folder or a hub id.
    pub base: Option<&'a str>,
    /// A branch, tag or commit of a hub id.
    pub revision: Option<&'a str>,
}

impl BaseChoice<'_> {
    /// Opens the base.
    pub(super) fn open(
        &self,
        adapter: &peft::Adapter,
        environment: &Environment<'_>,
    ) -> Result<OpenedBase, Error> {
        let config = adapter.config();
        let (name, revision) = match self.base {
            Some(base) => (base, self.revision),
            None => match config.base_model.as_deref().filter(|name| !name.is_empty()) {
                Some(name) => {
                    let pinned = config.revision.as_deref().filter(|_| !Path::new(name).is_dir());
                    (name, self.revision.or(pinned))
                }
                None => {
                    let message = "the adapter does not name its base model: add `--base MODEL`".to_owned();
                    return Err(export::Error::Choice { message }.into());
                }
            },
        };
        let found = resolve_base(name, revision, environment.hub_cache).map_err(model::Error::from)?;
        Ok(OpenedBase::open_without(found, ignored_config_keys(adapter))?)
    }

    /// Opens the named base, or the adapter's own if it is on this machine.
    fn open_if_there(
        &self,
        adapter: &peft::Adapter,
        environment: &Environment<'_>,
    ) -> Result<Option<OpenedBase>, Error> {
        match (self.base, self.open(adapter, environment)) {
            (_, Ok(base)) => Ok(Some(base)),
            (Some(_), Err(error)) => Err(error),
            (None, Err(_)) => Ok(None),
        }
    }
}

/// A merge that is ready to run, and the rows to compare on.
pub struct Merge {
    /// The folder of the combined adapter, removed with this.
    _combined: Option<Scratch>,
    /// Adapter and base.
    pub plan: Plan,
    /// The rows to compare on.
    pub rows: Rows,
}

impl Merge {
    /// Opens adapter, base and rows; writes nothing.
    ///
    /// # Errors
    /// One of them is unusable, or they do not belong together.
    pub fn open(
        adapter: &Path,
        base: BaseChoice<'_>,
        options: Options,
        source: &Source,
        environment: &Environment<'_>,
    ) -> Result<Self, Error> {
        let opened = peft::Adapter::open_with_tables(adapter)?;
        let base = base.open(&opened, environment)?;
        let plan = Plan::new(opened, base, options)?;
        let spec = &plan.base.spec;
        let (tokenizer, positions) = (plan.text.tokenizer.as_ref(), spec.positions());
        let rows = held_out::rows(source, adapter, tokenizer, spec.vocab_size, positions, environment)?;
        Ok(Self { _combined: None, plan, rows })
    }

    /// As [`Self::open`], for several adapters; the combined one is kept beside `out` while this value exists.
    ///
    /// # Errors
    /// As [`Self::open`] and [`Combination::write`].
    pub fn open_combined(
        combination: &Combination<'_>,
        base: BaseChoice<'_>,
        options: Options,
        source: &Source,
        out: &Path,
        environment: &Environment<'_>,
    ) -> Result<(Self, Vec<String>), Error> {
        let scratch = Scratch::beside(out)?;
        let (_, notes) = combination.write(base, scratch.path(), Existing::Refuse, environment)?;
        let merge = Self::open(scratch.path(), base, options, source, environment)?;
        Ok((Self { _combined: Some(scratch), ..merge }, notes))
    }

    /// Merges into `out`, which appears only after the comparison on `device` with the adapter on its base.
    ///
    /// # Errors
    /// As [`Plan::run`], and [`Error::Device`].
    pub fn run(
        &self,
        out: &Path,
        progress: &mut dyn FnMut(Progress),
        device: DeviceSpec,
        environment: &Environment<'_>,
    ) -> Result<Outcome, Error> {
        keep_sources(out, &[self.plan.adapter.folder(), self.plan.base.folder.root()])?;
        let work = Merging { merge: self, out, progress, stop: environment.stop };
        Ok(Device::choose(device)?.run(work)??)
    }
}

impl Merge {
    /// Measures the folder that [`Self::run`] wrote.
    ///
    /// # Errors
    /// As [`HeldOut::measure`].
    pub fn measure(
        &self,
        out: &Path,
        rows: &HeldOut,
        device: DeviceSpec,
        progress: &mut dyn FnMut(usize, usize),
        environment: &Environment<'_>,
    ) -> Result<Fidelity, Error> {
        let (plan, written) = (&self.plan, ModelDir::open(out)?);
        let sides = (written.weights(), &plan.spec);
        rows.measure(&plan.base, Some(plan.adapted()), sides, device, progress, environment)
    }
}

/// Adapters to combine.
pub struct Combination<'a> {
    /// Folders and weights.
    pub adapters: &'a [(PathBuf, f64)],
    /// The rule.
    pub combine: combine::Combination,
    /// Seed of random pruning.
    pub seed: u64,
    /// Accept adapters that name different bases, if sizes fit.
    pub any_base: bool,
}

impl Combination<'_> {
    /// Writes the combined adapter to `out`, which is complete or absent; also returns notes for the user. The adapters
    /// are checked against the base if it is on this machine.
    ///
    /// # Errors
    /// The named base is unusable, the adapters cannot be combined, or the folder exists.
    pub fn write(
        &self,
        base: BaseChoice<'_>,
        out: &Path,
        existing: Existing,
        environment: &Environment<'_>,
    ) -> Result<(Combined, Vec<String>), Error> {
        let mut adapters = Vec::with_capacity(self.adapters.len());
        for (folder, weight) in self.adapters {
            adapters.push(Weighted { adapter: peft::Adapter::open(folder)?, weight: *weight });
        }
        let folders: Vec<&Path> = self.adapters.iter().map(|(folder, _)| folder.as_path()).collect();
        keep_sources(out, &folders)?;
        let mut notes = Vec::new();
        let base = match adapters.first() {
            Some(first) => base.open_if_there(&first.adapter, environment)?,
            None => None,
        };
        match &base {
            Some(base) => {
                for Weighted { adapter, .. } in &adapters {
                    fit(adapter, base, self.any_base)?;
                }
            }
            None => {
                notes.push("the base was not found here, so only the adapters' sizes were compared".into())
            }
        }
        let modules = base.map(|base| base.spec.modules());
        let combined =
            combine::combine(&adapters, self.combine, self.seed, modules.as_deref(), self.any_base)?;
        let others = combine::other_tokenizers(&adapters)?;
        if !others.is_empty() {
            notes.push(format!(
                "tokenizer and template are taken from the first adapter; those of {} differ",
                others.join(", ")
            ));
        }
        let parameters = tensors(&combined.targets);
        let values = |index: usize| Ok(combined.values[index].clone());
        let numbers = Numbers { parameters: &parameters, values: &values };
        let beside = match folders.first() {
            Some(folder) => tokenizer_files(folder)?,
            None => Vec::new(),
        };
        peft::write_folder(out, existing, &numbers, &combined.config, &combined.metadata, &beside, None)?;
        Ok((combined, notes))
    }
}

struct Merging<'a> {
    merge: &'a Merge,
    out: &'a Path,
    progress: &'a mut dyn FnMut(Progress),
    stop: &'a dyn Fn() -> bool,
}

impl OnBackend for Merging<'_> {
    type Output = Result<Outcome, export::Error>;

    fn call<B: KernelBackend>(self, device: &B::Device) -> Self::Output {
        self.merge.plan.run::<B>(self.out, &self.merge.rows, device, self.progress, self.stop)
    }
}

/// Refuses an output folder whose replacement would remove an input.
pub(super) fn keep_sources(out: &Path, sources: &[&Path]) -> Result<(), Error> {
    // A path that cannot be resolved does not exist yet.
    let Ok(out) = out.canonicalize() else { return Ok(()) };
    let lost =
        sources.iter().find(|source| source.canonicalize().is_ok_and(|source| source.starts_with(&out)));
    match lost {
        None => Ok(()),
        Some(source) => {
            let message = format!(
                "writing to {} would remove the input {}; choose another folder",
                out.display(),
                source.display()
            );
            Err(export::Error::Choice { message }.into())
        }
    }
}

/// Verifies an adapter; the result lists its problems.
///
/// # Errors
/// The named base is unusable.
pub fn verify(
    adapter: &Path,
    base: BaseChoice<'_>,
    environment: &Environment<'_>,
) -> Result<Verification, Error> {
    let base = match (base.base, peft::Adapter::open_with_tables(adapter)) {
        (Some(_), Ok(opened)) => Some(base.open(&opened, environment)?),
        (None, _) | (_, Err(_)) => None,
    };
    Ok(look_at(adapter, base.as_ref()))
}

/// Writes an adapter for `consumer`.
///
/// # Errors
/// The adapter is unusable, does not fit the base, or the consumer does not support it.
pub fn export(
    adapter: &Path,
    base: BaseChoice<'_>,
    consumer: Consumer,
    out: &Path,
    existing: Existing,
    environment: &Environment<'_>,
) -> Result<Exported, Error> {
    let opened = peft::Adapter::open_with_saved_modules(adapter)?;
    let base = base.open_if_there(&opened, environment)?;
    let targets = match &base {
        Some(base) => opened.targets(&base.spec.modules())?,
        None => opened.targets(&opened.modules()?)?,
    };
    keep_sources(out, &[adapter])?;
    Ok(write_for(&opened, &targets, base.as_ref(), consumer, out, existing)?)
}
