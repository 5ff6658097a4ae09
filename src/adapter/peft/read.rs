//! Reading an adapter folder: every tensor consumed, every target paired, every difference named.
//!
//! PEFT loads what fits and ignores the rest, so an adapter for another architecture silently changes nothing. Here every
//! problem is collected, and all are reported together. Only headers are read before everything fits.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use burn_tensor::{DType, Tensor, TensorData};
use serde_json::Value;
use tune_kernels::KernelBackend;

use super::stacked::Tensors;
use super::tables::table_of;
use super::{CONFIG_FILE, Config, TENSORS_FILE};
use crate::adapter::error::Error;
use crate::adapter::lora::LoraSet;
use crate::adapter::parameter::{Part, key, parse};
use crate::adapter::projection::Module;
use crate::adapter::saved::{SavedModule, resolve};
use crate::adapter::spec::Spec;
use crate::adapter::target::Target;
use crate::assets::json::{CONFIG_LIMIT, read_object};
use crate::assets::weights::require_one_kind;
use crate::assets::{Dtype, SafetensorsFile};

/// An adapter folder whose files are well-formed; no tensor has been read yet.
#[derive(Debug)]
pub struct Adapter {
    pub(super) folder: PathBuf,
    pub(super) config: Config,
    pub(super) file: Tensors,
    /// Tables of the base with the adapter's LoRA on them folded in ([`Self::fold_tables`]).
    pub(super) folded: Vec<(SavedModule, Vec<f32>)>,
}

impl Adapter {
    /// Opens a folder and checks all that needs no model: the configuration, the header, and every key.
    ///
    /// # Errors
    /// Files are missing or malformed, or the adapter is of a kind that cannot be used (all reasons together). Modules to
    /// save are among those kinds: the pairs alone would be another model.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let adapter = Self::open_with_saved_modules(folder)?;
        match adapter.config.modules_to_save.as_slice() {
            [] => Ok(adapter),
            names => {
                let problem = format!(
                    "modules_to_save is {names:?}, which is not supported here; merge the adapter into its \
                     base first (`tune merge`)"
                );
                Err(Error::unusable(folder, vec![problem]))
            }
        }
    }

    /// As [`Self::open`], for callers that also use the modules to save ([`Self::saved_modules`]).
    ///
    /// # Errors
    /// As [`Self::open`], except for modules to save.
    pub fn open_with_saved_modules(folder: &Path) -> Result<Self, Error> {
        let adapter = Self::open_with_tables(folder)?;
        match adapter.adapted_tables().as_slice() {
            [] => Ok(adapter),
            names => {
                let problem = format!(
                    "it has LoRA on {}, which only `tune merge` and the export to GGUF fold into the base; merge the adapter into \
                     its base first (`tune merge`)",
                    names.join(" and ")
                );
                Err(Error::unusable(folder, vec![problem]))
            }
        }
    }

    /// As [`Self::open_with_saved_modules`], for callers that also fold LoRA on tables ([`Self::fold_tables`]).
    ///
    /// # Errors
    /// As [`Self::open`], except for modules to save and LoRA on tables.
    pub fn open_with_tables(folder: &Path) -> Result<Self, Error> {
        require_files(folder)?;
        require_one_kind(folder)?;
        let fields = read_object(&folder.join(CONFIG_FILE), CONFIG_LIMIT)?;
        let file = SafetensorsFile::open(&folder.join(TENSORS_FILE))?;
        let mut problems = Vec::new();
        let config = match &fields {
            Value::Object(fields) => Config::parse(fields, &mut problems),
            _ => None,
        };
        let file = Tensors::new(file, config.as_ref(), &mut problems);
        let mut refused = Groups::default();
        for name in file.names() {
            if table_of(name).is_some() {
                check_tensor(&file, name, Part::A, &mut refused);
                continue;
            }
            match parse(name) {
                Err(reason) => refused.add(reason.to_owned(), name),
                Ok((_, Part::Magnitude)) if config.as_ref().is_some_and(|config| !config.use_dora) => {
                    refused.add("it belongs to DoRA, and use_dora is false".into(), name);
                }
                Ok((module, Part::Saved)) if config.as_ref().is_some_and(|config| !config.saves(module)) => {
                    refused.add("it is a saved module that modules_to_save does not name".into(), name);
                }
                Ok((_, part)) => check_tensor(&file, name, part, &mut refused),
            }
        }
        problems.extend(refused.lines("tensor"));
        match config {
            Some(config) if problems.is_empty() => {
                Ok(Self { folder: folder.to_path_buf(), config, file, folded: Vec::new() })
            }
            _ => Err(Error::unusable(folder, problems)),
        }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The contents of `adapter_config.json`.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The metadata of the tensors' file, provenance among it.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        self.file.metadata()
    }

    /// The adapter's own targets, for use without a recipe.
    ///
    /// # Errors
    /// A tensor belongs to no module of the model, a pair or a named target is incomplete, or a shape does not
    /// fit (all of them together).
    pub fn targets(&self, modules: &[Module]) -> Result<Vec<Target>, Error> {
        let mut problems = Vec::new();
        let targets = self.survey(modules, &mut problems);
        match problems.is_empty() {
            true => Ok(targets),
            false => Err(Error::unusable(&self.folder, problems)),
        }
    }

    /// Checks that this adapter is what a recipe would train: the same targets, ranks, alphas and scaling.
    ///
    /// # Errors
    /// As [`Self::targets`], and every difference, all of them together.
    pub fn require_equal(&self, spec: &Spec, targets: &[Target], modules: &[Module]) -> Result<(), Error> {
        let mut problems = Vec::new();
        let own = self.survey(modules, &mut problems);
        let differences = differences(&self.config, &own, spec, targets);
        if !problems.is_empty() {
            problems.extend(differences);
            return Err(Error::unusable(&self.folder, problems));
        }
        match differences.is_empty() {
            true => Ok(()),
            false => Err(Error::Differs { folder: self.folder.clone(), differences }),
        }
    }

    /// The values of the targets, converted to f32: for each in order A, B and under DoRA magnitudes, row-major (as
    /// [`LoraSet::from_values`](crate::adapter::lora::LoraSet::from_values) takes them).
    ///
    /// # Errors
    /// A tensor is missing, has another shape, or holds a number that is not finite.
    pub fn values(&self, targets: &[Target]) -> Result<Vec<Vec<f32>>, Error> {
        let read = |(target, part, shape): (&Target, Part, [usize; 2])| {
            let tensor = key(&target.module.path, part);
            let values = self.file.read(&self.stored(&tensor), target.module.alternates)?;
            match values.len() == shape[0] * shape[1] {
                true => Ok(values),
                false => Err(Error::WrongLength { tensor, shape, found: values.len() }),
            }
        };
        let parts = |target| Target::parts(target).map(move |(part, shape)| (target, part, shape));
        targets.iter().flat_map(parts).map(read).collect()
    }

    /// The modules to save, of those in `candidates`.
    ///
    /// # Errors
    /// `modules_to_save` names another module, its tensor is missing, or has another shape (all of them together).
    pub fn saved_modules(&self, candidates: &[SavedModule]) -> Result<Vec<SavedModule>, Error> {
        // PEFT names one of two tied tables and saves both.
        let mut names = self.config.modules_to_save.clone();
        if self.config.ties_tables {
            let is_saved = |saved: &&SavedModule| self.file.info(&key(&saved.path, Part::Saved)).is_some();
            names.extend(candidates.iter().filter(is_saved).map(|saved| saved.path.clone()));
        }
        let saved_modules = match resolve(&names, candidates) {
            Ok(saved_modules) => saved_modules,
            Err(unknown) => {
                let known: Vec<&str> = candidates.iter().map(|saved| saved.kind.hf_name()).collect();
                let problem = |position: usize| match known.as_slice() {
                    [] => format!(
                        "modules_to_save names `{}`, and the base ties its output head to its embeddings; merge the \
                         adapter into its base first (`tune merge`)",
                        names[position]
                    ),
                    known => format!(
                        "modules_to_save names `{}`; supported are {}",
                        names[position],
                        known.join(" and ")
                    ),
                };
                return Err(Error::unusable(&self.folder, unknown.into_iter().map(problem).collect()));
            }
        };
        let mut saved_modules = saved_modules;
        let mut problems = Vec::new();
        for saved in &saved_modules {
            let name = self.stored(&key(&saved.path, Part::Saved));
            match self.file.info(&name) {
                None => problems
                    .push(format!("modules_to_save names `{}`, but the file has no `{name}`", saved.path)),
                Some(info) if info.shape != saved.shape => problems.push(format!(
                    "tensor `{name}`: shape {:?}, where the model asks for {:?}",
                    info.shape, saved.shape
                )),
                Some(_) => {}
            }
        }
        saved_modules.extend(self.folded.iter().map(|(saved, _)| saved.clone()));
        saved_modules.sort_by_key(|saved| saved.kind);
        match problems.is_empty() {
            true => Ok(saved_modules),
            false => Err(Error::unusable(&self.folder, problems)),
        }
    }

    /// Adds this adapter's modules to save to a set of its pairs.
    ///
    /// # Errors
    /// As [`Self::values`].
    pub fn with_own_saved_modules<B: KernelBackend>(
        &self,
        set: LoraSet<B>,
        saved_modules: Vec<SavedModule>,
        device: &B::Device,
    ) -> Result<LoraSet<B>, Error> {
        let mut values = Vec::with_capacity(saved_modules.len());
        for saved in &saved_modules {
            values.push(self.saved_values(saved)?);
        }
        let mut values = values.into_iter();
        Ok(set.with_saved_modules(saved_modules, |saved| {
            let data = TensorData::new(values.next().unwrap_or_default(), saved.shape);
            Tensor::from_data(data, (device, DType::F32))
        }))
    }

    /// The values of a module to save, converted to f32, row-major.
    ///
    /// # Errors
    /// As [`Self::values`].
    pub fn saved_values(&self, saved: &SavedModule) -> Result<Vec<f32>, Error> {
        match self.folded.iter().find(|(folded, _)| folded.path == saved.path) {
            Some((_, values)) => Ok(values.clone()),
            None => Ok(self.file.read(&self.stored(&key(&saved.path, Part::Saved)), false)?),
        }
    }

    /// Makes output head and embeddings of a tied base its own modules to save, each as the adapter leaves it: `candidates`
    /// are both, `table` returns the values of the one table. Returns them, and whether they still are one table.
    ///
    /// # Errors
    /// As [`Self::values`].
    pub fn split_tied_table<E: From<Error>>(
        mut self,
        saved: Vec<SavedModule>,
        candidates: &[SavedModule],
        table: &mut dyn FnMut() -> Result<Vec<f32>, E>,
    ) -> Result<(Self, Vec<SavedModule>, bool), E> {
        if let [only] = saved.as_slice()
            && let Some(other) = candidates.iter().find(|candidate| candidate.kind != only.kind)
        {
            let values = if self.config.ties_tables { self.saved_values(only)? } else { table()? };
            self.folded.push((other.clone(), values));
        }
        let mut values = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            values.push(self.saved_values(candidate)?);
        }
        let is_one = values.windows(2).all(|pair| pair[0] == pair[1]);
        Ok((self, candidates.to_vec(), is_one))
    }

    /// The name under which the file has a tensor: that of the model's modules, or of the same text decoder within or
    /// without a model with towers.
    fn stored(&self, name: &str) -> String {
        if self.file.info(name).is_some() {
            return name.to_owned();
        }
        let own = without_wrapper(name);
        self.file.names().find(|other| without_wrapper(other) == own).unwrap_or(name).to_owned()
    }

    /// The target that PEFT makes of a module, or of the parameter that holds it.
    fn target(&self, module: &Module) -> Target {
        let weight = format!("{}.weight", module.path);
        let path = match self.file.parameter_of(&module.path) {
            Some(parameter) => parameter,
            None if self.config.names_parameter(&weight) => &weight,
            None => &module.path,
        };
        let (rank, alpha, scaling) = self.config.strength(path);
        Target { module: module.clone(), rank, alpha, scaling, use_dora: self.config.use_dora }
    }

    /// The modules that have tensors, as targets, in the order of `modules`.
    fn survey(&self, modules: &[Module], problems: &mut Vec<String>) -> Vec<Target> {
        let mut unpaired = Groups::default();
        let own: BTreeSet<&str> = self.file.names().filter_map(target_of).collect();
        let known: BTreeMap<String, &str> =
            modules.iter().map(|module| (without_wrapper(&module.path), module.path.as_str())).collect();
        let respelled = |path| known.get(&without_wrapper(path)).copied().unwrap_or(path);
        let present: BTreeSet<&str> = own.into_iter().map(respelled).collect();
        let known: BTreeSet<&str> = known.into_values().collect();
        let example = modules.first().map_or("", |module| module.path.as_str());
        for path in present.difference(&known) {
            unpaired.add(
                format!("this model has no such projection to adapt (its paths are like `{example}`)"),
                path,
            );
        }
        if let Some(named) = self.config.named(modules) {
            let is_present = |module: &&Module| present.contains(module.path.as_str());
            // Names do not reach experts that are stacked in one parameter, as transformers has them today.
            let reaches_experts = modules.iter().any(|module| module.role.is_routed() && is_present(&module));
            let bare = named.into_iter().filter(|module| !is_present(module));
            for module in bare.filter(|module| reaches_experts || !module.role.is_routed()) {
                unpaired
                    .add("target_modules names it, but the file has no tensors for it".into(), &module.path);
            }
        }
        if present.is_empty() && self.adapted_tables().is_empty() {
            problems.push(format!("{TENSORS_FILE} holds no tensors"));
        }
        let mut misshapen = Groups::default();
        let mut targets = Vec::new();
        for module in modules.iter().filter(|module| present.contains(module.path.as_str())) {
            let target = self.target(module);
            for (part, shape) in target.parts() {
                let (name, shape) = (self.stored(&key(&module.path, part)), part.file_shape(shape));
                match self.file.info(&name) {
                    None => unpaired.add(format!("{} is missing", part.name()), &module.path),
                    Some(info) if info.shape != shape => {
                        misshapen.add(
                            format!("shape {:?}, where r and the model ask for {shape:?}", info.shape),
                            &name,
                        );
                    }
                    Some(_) => {}
                }
            }
            targets.push(target);
        }
        problems.extend(unpaired.lines("module"));
        problems.extend(misshapen.lines("tensor"));
        targets
    }
}

fn require_files(folder: &Path) -> Result<(), Error> {
    let refuse = |reason: String| Err(Error::NotAnAdapter { folder: folder.to_path_buf(), reason });
    if !folder.is_dir() {
        return refuse("there is no such folder".into());
    }
    let missing: Vec<&str> = [CONFIG_FILE, TENSORS_FILE]
        .into_iter()
        .filter(|file| fs::metadata(folder.join(file)).is_err())
        .collect();
    let Some(first) = missing.first() else { return Ok(()) };
    if folder.join("adapter").join(CONFIG_FILE).is_file() {
        return refuse(format!("it has no {first}; did you mean `{}`?", folder.join("adapter").display()));
    }
    if *first == TENSORS_FILE && folder.join("adapter_model.bin").is_file() {
        return refuse(format!(
            "it has adapter_model.bin, a pickle, which can run code when it is read; save it again as {TENSORS_FILE} \
             (PEFT: save_pretrained with safe_serialization=True)"
        ));
    }
    refuse(format!("it has no {}", missing.join(" and no ")))
}

fn check_tensor(file: &Tensors, name: &str, part: Part, refused: &mut Groups) {
    let Some(info) = file.info(name) else { return };
    if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
        refused.add(format!("its dtype is {}; F32, F16 and BF16 can be read", info.dtype), name);
        return;
    }
    let (dimensions, what) = match part {
        Part::A | Part::B | Part::Saved => (2, "a matrix"),
        Part::Magnitude => (1, "a vector"),
    };
    if info.shape.len() != dimensions {
        refused.add(format!("its shape {:?} is not that of {what}", info.shape), name);
    }
}

/// A path or key of a text decoder without the step that leads to it in a model with towers.
fn without_wrapper(path: &str) -> String {
    path.replacen("language_model.model.", "model.", 1).replacen("model.language_model.", "model.", 1)
}

/// The module of a target that a key belongs to.
pub(super) fn target_of(name: &str) -> Option<&str> {
    if table_of(name).is_some() {
        return None;
    }
    parse(name).ok().filter(|(_, part)| *part != Part::Saved).map(|(module, _)| module)
}

/// Every way in which an adapter is not what a recipe would train.
fn differences(config: &Config, own: &[Target], spec: &Spec, wanted: &[Target]) -> Vec<String> {
    let mut groups = Groups::default();
    let own: BTreeMap<&str, &Target> =
        own.iter().map(|target| (target.module.path.as_str(), target)).collect();
    let wanted: BTreeMap<&str, &Target> =
        wanted.iter().map(|target| (target.module.path.as_str(), target)).collect();
    for path in own.keys().filter(|path| !wanted.contains_key(*path)) {
        groups.add("adapted in the folder, but not by the recipe's target_modules".into(), path);
    }
    for (path, wanted) in &wanted {
        let Some(own) = own.get(path) else {
            groups.add("adapted by the recipe's target_modules, but not in the folder".into(), path);
            continue;
        };
        if own.rank != wanted.rank {
            groups.add(format!("rank {} in the folder, {} in the recipe", own.rank, wanted.rank), path);
        }
        if own.alpha != wanted.alpha {
            groups.add(format!("alpha {} in the folder, {} in the recipe", own.alpha, wanted.alpha), path);
        }
    }
    let mut lines = Vec::new();
    if config.use_rslora != spec.use_rslora {
        lines.push(format!(
            "use_rslora is {} in the folder, {} in the recipe",
            config.use_rslora, spec.use_rslora
        ));
    }
    if config.use_dora != spec.use_dora {
        lines.push(format!("use_dora is {} in the folder, {} in the recipe", config.use_dora, spec.use_dora));
    }
    let mut saved = spec.modules_to_save.clone();
    saved.sort();
    let mut own_saved = config.modules_to_save.clone();
    own_saved.sort();
    if own_saved != saved {
        lines.push(format!("modules_to_save is {own_saved:?} in the folder, {saved:?} in the recipe"));
    }
    lines.extend(groups.lines("module"));
    lines
}

/// Names gathered by what is wrong with them, so that two hundred equal faults are one line.
#[derive(Default)]
pub(super) struct Groups(BTreeMap<String, Vec<String>>);

impl Groups {
    pub(super) fn add(&mut self, reason: String, name: &str) {
        self.0.entry(reason).or_default().push(name.to_owned());
    }

    pub(super) fn lines(self, noun: &str) -> Vec<String> {
        let line = |(reason, names): (String, Vec<String>)| match names.as_slice() {
            [only] => format!("{noun} `{only}`: {reason}"),
            [first, .., last] => format!("{} {noun}s, `{first}` to `{last}`: {reason}", names.len()),
            [] => reason,
        };
        self.0.into_iter().map(line).collect()
    }
}
