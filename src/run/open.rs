//! Opens everything a recipe names and checks each against the others, before anything is loaded or written.
//!
//! All problems are reported together: the recipe's own problems, and those that only the model folder, the tokenizer,
//! the adapter to start from or the columns of a dataset reveal, each at its place in the recipe.

use std::path::Path;
use std::sync::Arc;

use super::{Environment, Error};
use crate::adapter::peft;
use crate::adapter::saved::{self, SavedKind, SavedModule};
use crate::adapter::target::{self, At, Target};
use crate::assets::dataset::{Choice, files_of_folder, is_dataset_id, resolve_dataset};
use crate::assets::{self, Base, ModelDir};
use crate::data::corpus::{Corpus, Language};
use crate::data::error::Error as DataError;
use crate::data::source;
use crate::data::spec::{DatasetSpec, Format};
use crate::data::template::ChatTemplate;
use crate::data::tokenize::Tokenizer;
use crate::document::Problem;
use crate::model::kept::Unmatched;
use crate::model::{self, DecoderSpec};
use crate::quant;
use crate::recipe::{Recipe, RecipeFile};
use crate::train::team::Neighbours;

/// A recipe with everything it names.
pub struct Opened {
    /// The recipe, nothing wrong with it.
    pub recipe: Recipe,
    /// Where the base model lies.
    pub base: Base,
    /// The base model's folder.
    pub model: ModelDir,
    /// What the base model is.
    pub spec: DecoderSpec,
    /// Keys of config.json that are not read because they do not change the maths.
    pub unread_config_keys: Vec<String>,
    /// How the projections will be held: as the recipe says, or as a 4-bit checkpoint stores them.
    pub quantization: Option<quant::spec::Spec>,
    /// The projections that get an adapter.
    pub targets: Vec<Target>,
    /// The modules to save.
    pub saved_modules: Vec<SavedModule>,
    /// The adapter to start from.
    pub start: Option<peft::Adapter>,
    /// The tokenizer; `None` for a base without one, which only `tokens` data can be trained on.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// The chat template, where there is one.
    pub template: Option<Arc<ChatTemplate>>,
    /// The examples.
    pub corpus: Corpus,
    /// The ranks that train together.
    pub ranks: Neighbours,
}

/// What of the model folder could be opened.
struct OpenedModel {
    base: Base,
    folder: ModelDir,
    spec: DecoderSpec,
    unread_config_keys: Vec<String>,
    quantization: Option<quant::spec::Spec>,
}

/// Opens what `file` names.
///
/// # Errors
/// [`Error::Recipe`] with every problem found.
pub fn open(mut file: RecipeFile, environment: &Environment<'_>) -> Result<Opened, Error> {
    file.check_files();
    let model = open_model(&mut file, environment);
    if let Some(model) = &model {
        require_mixture(&mut file, &model.spec);
    }
    let targets = model.as_ref().and_then(|model| find_targets(&mut file, &model.spec));
    let saved_modules = model.as_ref().and_then(|model| find_saved_modules(&mut file, &model.spec));
    let start = targets
        .as_ref()
        .zip(model.as_ref())
        .and_then(|(targets, model)| open_start(&mut file, targets, &model.spec));
    let text = model.as_ref().map(|model| open_text(&mut file, &model.folder));
    let corpus = match (&model, &text) {
        (Some(model), Some(text)) => open_corpus(&mut file, model, text, environment.hub_cache),
        _ => None,
    };
    let recipe = file.finish().map_err(|problems| Error::Recipe(problems.into()))?;
    match (model, targets.zip(saved_modules), start, text, corpus) {
        (Some(model), Some((targets, saved_modules)), Some(start), Some(text), Some(corpus)) => Ok(Opened {
            recipe,
            base: model.base,
            model: model.folder,
            spec: model.spec,
            unread_config_keys: model.unread_config_keys,
            quantization: model.quantization,
            targets,
            saved_modules,
            start,
            tokenizer: text.tokenizer,
            template: text.template,
            corpus,
            ranks: Neighbours::NONE,
        }),
        _ => Err(Error::Unopened),
    }
}

fn open_model(file: &mut RecipeFile, environment: &Environment<'_>) -> Option<OpenedModel> {
    let spec = file.parts().model.clone()?;
    let quantization = file.parts().quantization.clone();
    let mut unmatched = Vec::new();
    let opened = assets::resolve_base(&spec.base, spec.revision.as_deref(), environment.hub_cache)
        .map_err(model::Error::from)
        .and_then(|base| {
            let folder = ModelDir::open(&base.folder)?;
            let (decoder, unread_config_keys) =
                model::family::decoder_spec_without(folder.config(), &spec.ignore_config_keys)?;
            let asked = quantization.as_ref().map(|quantization| quantization.blocks);
            let checked = model::tensors::check(&decoder, folder.weights(), asked)?;
            let keep = quantization.as_ref().map_or(&[][..], |quantization| &quantization.keep);
            unmatched.extend(checked.in_four_bits(keep));
            let decoder = decoder.clone().keeping(keep).unwrap_or_else(|problems| {
                unmatched.extend(problems);
                decoder
            });
            let decoder = checked.as_stored(decoder);
            let quantization = asked.or_else(|| checked.blocks(&decoder));
            Ok(OpenedModel { base, folder, spec: decoder, unread_config_keys, quantization })
        });
    for Unmatched { position, message, help } in unmatched {
        let place = file.place(&["quantization", "nf4", "keep", &position.to_string()]);
        file.report(Problem::new("quantization::keep", place, message).help(help));
    }
    match opened {
        Ok(opened) => Some(opened),
        Err(error) => {
            let key = match &error {
                model::Error::NoSuchKey { .. } => "ignore_config_keys",
                _ => "base",
            };
            let place = file.place(&["model", key]);
            let problem = match error {
                model::Error::Assets(assets::Error::BaseNotFound { message, fetch: Some(fetch) }) => {
                    Problem::new("model::unusable", place, message)
                        .help(format!("download it, or name a folder:\n  {fetch}"))
                }
                error => Problem::new("model::unusable", place, error.to_string()),
            };
            report_new(file, problem.label("this base"));
            None
        }
    }
}

/// A loss over experts needs some.
fn require_mixture(file: &mut RecipeFile, spec: &DecoderSpec) {
    let is_asked = file.parts().train.as_ref().is_some_and(|train| train.router_aux_loss_coef > 0.0);
    if is_asked && spec.layers.iter().all(|layer| layer.mixture().is_none()) {
        let place = file.place(&["train", "router_aux_loss_coef"]);
        let message = format!("this {} model has no mixture of experts", spec.family);
        file.report(Problem::new("train::mixtures", place, message).help("remove this key"));
    }
}

/// Adds a problem, unless something is known to be wrong at that very place already.
fn report_new(file: &mut RecipeFile, problem: Problem) {
    if !file.problems().iter().any(|known| known.place() == problem.place()) {
        file.report(problem);
    }
}

fn find_targets(file: &mut RecipeFile, spec: &DecoderSpec) -> Option<Vec<Target>> {
    match target::resolve(&file.parts().adapter, &spec.modules()) {
        Ok(targets) => Some(targets),
        Err(problems) => {
            let spec = file.parts().adapter.clone();
            for problem in problems {
                let key: Vec<String> = match problem.at {
                    At::Rank => vec!["rank".into()],
                    At::TargetModules => vec!["target_modules".into()],
                    At::TargetName(index) => vec!["target_modules".into(), index.to_string()],
                    At::RankPattern(index) => vec!["rank_pattern".into(), spec.rank_pattern[index].0.clone()],
                    At::AlphaPattern(index) => {
                        vec!["alpha_pattern".into(), spec.alpha_pattern[index].0.clone()]
                    }
                };
                let path: Vec<&str> =
                    ["adapter", "lora"].into_iter().chain(key.iter().map(String::as_str)).collect();
                let place = file.place(&path);
                file.report(Problem::new("adapter::targets", place, problem.message).help(problem.help));
            }
            None
        }
    }
}

/// The modules that `modules_to_save` names.
fn find_saved_modules(file: &mut RecipeFile, spec: &DecoderSpec) -> Option<Vec<SavedModule>> {
    let names = file.parts().adapter.modules_to_save.clone();
    if names.is_empty() {
        return Some(Vec::new());
    }
    let known = SavedKind::ALL.map(SavedKind::hf_name);
    if spec.tied && names.iter().any(|name| known.iter().any(|known| name.ends_with(known))) {
        let place = file.place(&["adapter", "lora", "modules_to_save"]);
        let message = "this model ties its output head to its embeddings: trained separately they would differ, and a \
                       program that ties them again would use one for both";
        let problem = Problem::new("adapter::modules_to_save", place, message).label("tied in this model");
        file.report(problem.help("remove `modules_to_save`, or choose a base with an untied head"));
        return None;
    }
    match saved::resolve(&names, &spec.saved_modules()) {
        Ok(saved_modules) => Some(saved_modules),
        Err(unknown) => {
            for position in unknown {
                let place = file.place(&["adapter", "lora", "modules_to_save", &position.to_string()]);
                let message = format!("`{}` cannot be trained in full", names[position]);
                let help = format!(
                    "supported are {}; `target_modules` adapts projections",
                    known.map(|name| format!("`{name}`")).join(" and ")
                );
                file.report(
                    Problem::new("adapter::modules_to_save", place, message).label("this name").help(help),
                );
            }
            None
        }
    }
}

/// The adapter named by `init_from`: `Some(None)` when none is named, `None` when it cannot be used.
fn open_start(
    file: &mut RecipeFile,
    targets: &[Target],
    spec: &DecoderSpec,
) -> Option<Option<peft::Adapter>> {
    let Some(folder) = file.parts().adapter.init_from.clone() else { return Some(None) };
    let opened = peft::Adapter::open_with_saved_modules(&folder).and_then(|adapter| {
        adapter.saved_modules(&spec.saved_modules())?;
        adapter.require_equal(&file.parts().adapter, targets, &spec.modules())?;
        Ok(adapter)
    });
    match opened {
        Ok(adapter) => Some(Some(adapter)),
        Err(error) => {
            let place = file.place(&["adapter", "lora", "init_from"]);
            report_new(
                file,
                Problem::new("adapter::init_from", place, error.to_string()).label("this adapter"),
            );
            None
        }
    }
}

/// Tokenizer and template, as far as the datasets need them.
struct Text {
    tokenizer: Option<Arc<Tokenizer>>,
    template: Option<Arc<ChatTemplate>>,
    /// There is a template, and it cannot be used; the problem is reported already.
    template_is_broken: bool,
}

fn open_text(file: &mut RecipeFile, folder: &ModelDir) -> Text {
    let formats: Vec<Format> = file.parts().datasets.iter().flatten().map(|dataset| dataset.format).collect();
    let needed =
        formats.iter().any(|format| *format != Format::Tokens) || !file.parts().sample.prompts.is_empty();
    if !folder.has_tokenizer() && !needed {
        return Text { tokenizer: None, template: None, template_is_broken: false };
    }
    let tokenizer = match Tokenizer::open(folder.root()) {
        Ok(tokenizer) => Arc::new(tokenizer),
        Err(error) => {
            let place = file.place(&["model", "base"]);
            let problem = Problem::new("model::tokenizer", place, error.to_string()).label("this base");
            file.report(problem.help("without a tokenizer, only `format = \"tokens\"` can be trained on"));
            return Text { tokenizer: None, template: None, template_is_broken: false };
        }
    };
    let choice = file.parts().data.chat_template.clone();
    let kwargs = file.parts().data.chat_template_kwargs.clone().unwrap_or_default();
    let template = match ChatTemplate::open(choice.as_ref(), folder.root(), &tokenizer) {
        Ok(template) => template.map(|template| Arc::new(template.with_kwargs(kwargs.0))),
        Err(error) => {
            let place = file.place(&["data", "chat_template"]);
            report_new(file, Problem::new("data::chat_template", place, error.to_string()));
            return Text { tokenizer: Some(tokenizer), template: None, template_is_broken: true };
        }
    };
    Text { tokenizer: Some(tokenizer), template, template_is_broken: false }
}

/// Opens every dataset by itself, so that a fault in one does not hide those of the others.
/// Opens the files of a `[[dataset]]`: those at its path, else those of a dataset of the hub in the cache.
pub(super) fn open_dataset(dataset: &DatasetSpec, hub_cache: &Path) -> Result<source::Dataset, String> {
    let (path, choice) = (Path::new(&dataset.path), &dataset.hub);
    let files = match path.is_dir() {
        true if *choice != Choice::default() => Some(files_of_folder(path, choice)),
        false if !path.exists() && is_dataset_id(&dataset.path) => {
            Some(resolve_dataset(&dataset.path, choice, hub_cache))
        }
        _ => None,
    };
    let opened = match files {
        Some(files) => source::Dataset::open_files(dataset, &files?),
        None => source::Dataset::open(dataset),
    };
    opened.map_err(|error| error.to_string())
}

fn open_corpus(file: &mut RecipeFile, model: &OpenedModel, text: &Text, hub_cache: &Path) -> Option<Corpus> {
    let datasets: Vec<Option<DatasetSpec>> = file.parts().datasets.clone();
    let (mut opened, mut faults) = (Vec::with_capacity(datasets.len()), false);
    for (index, dataset) in datasets.into_iter().enumerate() {
        let position = index.to_string();
        match dataset {
            None => faults = true,
            // A fault in the model folder that explains this one is reported already.
            Some(dataset) if dataset.format != Format::Tokens && text.tokenizer.is_none() => faults = true,
            Some(dataset)
                if (dataset.format == Format::Messages || dataset.prompt.chat) && text.template_is_broken =>
            {
                faults = true;
            }
            Some(dataset) => match open_dataset(&dataset, hub_cache) {
                Ok(files) => opened.push((dataset, files)),
                Err(error) => {
                    let place = file.place(&["dataset", &position, "path"]);
                    report_new(file, Problem::new("data::source", place, error).label("this dataset"));
                    faults = true;
                }
            },
        }
    }
    if faults {
        return None;
    }
    let paths: Vec<String> = opened.iter().map(|(dataset, _)| dataset.path.clone()).collect();
    let language = Language {
        tokenizer: text.tokenizer.clone(),
        template: text.template.clone(),
        vocabulary_size: Some(model.spec.vocab_size),
        positions: Some(model.spec.positions()),
        copies_prompts: !model.spec.takes_prefixes(),
    };
    match Corpus::of_opened(&file.parts().data, opened, file.parts().seed, language) {
        Ok(corpus) => {
            if !file.parts().gate.is_empty() && corpus.validation_rows() == 0 {
                let place = file.place(&["gate"]);
                let message =
                    "`[gate]` limits the held-out loss, and `val_split` holds out none of so few rows";
                let problem =
                    Problem::new("recipe::contradiction", place, message).label("nothing would be measured");
                report_new(file, problem.help("hold out a larger share, or a `[[dataset]]` of its own"));
            }
            Some(corpus)
        }
        Err(error) => {
            let place = match &error {
                DataError::NoTemplate { path }
                | DataError::NoTokenizer { path, .. }
                | DataError::TrainOn { path, .. } => {
                    let index = paths.iter().position(|known| known == path).unwrap_or_default();
                    file.place(&["dataset", &index.to_string(), "format"])
                }
                _ => file.place(&["dataset"]),
            };
            file.report(Problem::new("data::unusable", place, error.to_string()));
            None
        }
    }
}
