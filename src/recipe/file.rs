//! A recipe's file: read, overridden, checked; other rooms add the problems that they find.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::document::{Findings, Kind, Place, Problem, Problems, Source, Value};
use crate::files::shell;
use crate::{adapter, data, generate, model, objective, quant, train};

use super::keys::{TOP, Top};
use super::{DeviceSpec, Recipe, check, files, foreign, overrides};

/// Larger than any recipe.
const LARGEST_FILE: u64 = 256 << 10;

/// Why there is no recipe.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum Error {
    /// The file could not be read.
    #[error("cannot read the recipe {path}: {reason}", path = path.display())]
    #[diagnostic(code(recipe::unreadable), help("name a recipe file, as in `tune run recipe.toml`"))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why. Not the error's source, since the message has it.
        reason: io::Error,
    },
    /// The file is far larger than any recipe.
    #[error("{path} is not a recipe: it has {bytes} bytes, and a recipe has at most {LARGEST_FILE}", path = path.display())]
    #[diagnostic(code(recipe::too_large), help("was a dataset or a model named instead of a recipe?"))]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// A configuration of another tool, in another language.
    #[error("{path} is {language}, and a recipe is TOML: it looks like another tool's configuration", path = path.display())]
    #[diagnostic(code(recipe::other_language), help("convert it into a recipe:\n  {command}"))]
    OtherLanguage {
        /// The file.
        path: PathBuf,
        /// YAML or JSON.
        language: &'static str,
        /// The command that converts it.
        command: String,
    },
    /// The file was read and has these problems.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Problems(#[from] Problems),
}

/// The values that could be read, for checks that run although there are problems elsewhere.
///
/// A wrong value is replaced by its default, so this is never run: [`RecipeFile::finish`] returns the [`Recipe`] if there
/// are no problems.
#[derive(Clone, Debug, PartialEq)]
pub struct Parts {
    /// The run folder.
    pub output_dir: Option<PathBuf>,
    /// The seed.
    pub seed: u64,
    /// The device.
    pub device: DeviceSpec,
    /// `[model]`, when it names a base.
    pub model: Option<model::spec::Spec>,
    /// `[quantization]`.
    pub quantization: Option<quant::spec::Quantization>,
    /// `[adapter]`.
    pub adapter: adapter::spec::Spec,
    /// `[objective]`.
    pub objective: objective::Objective,
    /// `[data]`.
    pub data: data::spec::Spec,
    /// Each `[[dataset]]` with its position; `None` where one has no path or no format.
    pub datasets: Vec<Option<data::spec::DatasetSpec>>,
    /// `[train]`, when it names a learning rate.
    pub train: Option<train::spec::Spec>,
    /// `[gate]`.
    pub gate: train::gate::Spec,
    /// `[sample]`.
    pub sample: generate::spec::Spec,
}

/// A recipe's text, the values that could be read, and all problems.
#[derive(Debug)]
pub struct RecipeFile {
    name: String,
    root: Value,
    parts: Parts,
    problems: Vec<Problem>,
}

impl RecipeFile {
    /// Reads the recipe at `path` and lays `overrides` (`key.path=VALUE`) over it.
    ///
    /// # Errors
    /// Only if the file cannot be read; problems of its text are collected in the result.
    pub fn open(path: &Path, overrides: &[String]) -> Result<Self, Error> {
        let unreadable = |reason| Error::Unreadable { path: path.to_owned(), reason };
        let metadata = std::fs::metadata(path).map_err(unreadable)?;
        if metadata.is_dir() {
            return Err(unreadable(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder")));
        }
        if metadata.len() > LARGEST_FILE {
            return Err(Error::TooLarge { path: path.to_owned(), bytes: metadata.len() });
        }
        let bytes = std::fs::read(path).map_err(unreadable)?;
        if let Some(language) = other_language(path, &bytes) {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let out = path.with_file_name(format!("{stem}.toml"));
            let words = ["tune", "import", &path.to_string_lossy(), "--out", &out.to_string_lossy()];
            let command = shell::command(words);
            return Err(Error::OtherLanguage { path: path.to_owned(), language, command });
        }
        Ok(Self::parse(&path.display().to_string(), &bytes, overrides))
    }

    /// Reads a recipe from the bytes of a file, which messages call `name`.
    pub fn parse(name: &str, bytes: &[u8], overrides: &[String]) -> Self {
        let source = Source::new(0, name, String::from_utf8_lossy(bytes).into_owned());
        let (mut root, mut syntax) = crate::document::parse(&source);
        if let Err(error) = std::str::from_utf8(bytes) {
            let at = error.valid_up_to();
            let place = Place::new(&source, at..at + 1);
            let byte = bytes.get(at).copied().unwrap_or_default();
            let problem = Problem::new("document::encoding", place, "the recipe is not UTF-8 text");
            let label = format!("byte 0x{byte:02X}");
            syntax.push(problem.label(label).help("save the file as UTF-8"));
        }
        syntax.extend(overrides::apply(&mut root, overrides));
        let (parts, problems) = read(&source, &root, syntax);
        let mut file = Self { name: name.to_owned(), root, parts, problems };
        check::across_tables(&mut file);
        file
    }

    /// Looks for the files that the recipe names: base folder, datasets, template, adapter to start from.
    pub fn check_files(&mut self) {
        let problems = files::missing(self);
        self.problems.extend(problems);
    }

    /// The folder of the recipe, if `path` exists there.
    pub(super) fn folder_with(&self, path: &str) -> Option<&Path> {
        let folder = Path::new(&self.name).parent().filter(|folder| !folder.as_os_str().is_empty());
        folder.filter(|folder| folder.join(path).exists())
    }

    /// What could be read.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    pub(super) fn parts_mut(&mut self) -> &mut Parts {
        &mut self.parts
    }

    /// The value at a path of keys, list positions among them (`["dataset", "0", "path"]`), as written.
    pub fn value(&self, path: &[&str]) -> Option<&Value> {
        let (last, table) = path.split_last()?;
        match &self.root.nearest(table).kind {
            Kind::Table(entries) => entries.get(last).map(|entry| &entry.value),
            Kind::Array(items) => items.get(last.parse::<usize>().ok()?),
            _ => None,
        }
    }

    /// The place of the value at a path of keys, in the file or in an override; of an absent value, its table's header or
    /// the end of the file.
    pub fn place(&self, path: &[&str]) -> Place {
        self.root.nearest(path).place.clone()
    }

    /// Adds a problem that another room found, so that all are reported together.
    pub fn report(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// The problems so far, in no order.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The recipe, if it has no problems.
    ///
    /// # Errors
    /// All problems, in the order of their places.
    pub fn finish(self) -> Result<Recipe, Problems> {
        let Self { name, root, parts, mut problems } = self;
        let datasets: Option<Vec<_>> = parts.datasets.into_iter().collect();
        if let ([], Some(output_dir), Some(model), Some(datasets), Some(train)) =
            (problems.as_slice(), parts.output_dir, parts.model, datasets, parts.train)
        {
            return Ok(Recipe {
                output_dir,
                seed: parts.seed,
                device: parts.device,
                model,
                quantization: parts.quantization,
                adapter: parts.adapter,
                objective: parts.objective,
                data: parts.data,
                datasets,
                train,
                gate: parts.gate,
                sample: parts.sample,
            });
        }
        if problems.is_empty() {
            // A missing value was reported, or stands behind a syntax error that was.
            let message = "a required value could not be read";
            problems.push(Problem::new("recipe::incomplete", root.place, message));
        }
        Err(Problems::new(name, problems))
    }
}

/// Every table through the room that owns it.
fn read(source: &Arc<Source>, root: &Value, syntax: Vec<Problem>) -> (Parts, Vec<Problem>) {
    let mut findings = Findings::new(Place::end_of(source), syntax);
    let parts = findings.read(root, |top| {
        let Top { version: _, output_dir, seed, device } = TOP.read(top);
        let parts = Parts {
            output_dir,
            seed,
            device,
            model: top.table("model", model::spec::Spec::read),
            quantization: top.table("quantization", quant::spec::Quantization::read),
            adapter: top.table("adapter", adapter::spec::Spec::read),
            objective: top.table("objective", objective::Objective::read),
            data: top.table("data", data::spec::Spec::read),
            datasets: top.tables("dataset", data::spec::DatasetSpec::read),
            train: top.table("train", train::spec::Spec::read),
            gate: top.table("gate", train::gate::Spec::read),
            sample: top.table("sample", generate::spec::Spec::read),
        };
        let has_none = match top.value("dataset").map(|value| &value.kind) {
            None => true,
            Some(Kind::Array(items)) => items.is_empty(),
            Some(_) => false,
        };
        if has_none {
            let place = top.value("dataset").map_or_else(|| top.header(), |value| value.place.clone());
            let problem = Problem::new("recipe::missing_table", place, "the recipe has no dataset")
                .label("no `[[dataset]]`")
                .help("add a `[[dataset]]` with `path` and `format`");
            top.report_missing(&["dataset"], problem);
        }
        parts
    });
    (parts, findings.into_problems(foreign::meaning))
}

/// The language of a file that is no TOML but YAML or JSON, by its name or its first line.
fn other_language(path: &Path, bytes: &[u8]) -> Option<&'static str> {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    match extension.as_str() {
        "yaml" | "yml" => return Some("YAML"),
        "json" => return Some("JSON"),
        "toml" => return None,
        _ => {}
    }
    let text = std::str::from_utf8(bytes).ok()?;
    let first = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'))?;
    let key = first.split_once(':').map(|(key, rest)| (key, rest.is_empty() || rest.starts_with(' ')));
    let is_word = |key: &str| key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
    match key {
        _ if first.starts_with('{') => Some("JSON"),
        _ if first == "---" => Some("YAML"),
        Some((key, true)) if is_word(key) => Some("YAML"),
        _ => None,
    }
}
