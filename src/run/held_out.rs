//! Rows to compare two models on: the user's prompts, held-out rows of a recipe, or built-in texts.

use std::path::{Path, PathBuf};

use super::open::open;
use super::{Environment, Error};
use crate::data::tokenize::Tokenizer;
use crate::export::check::Rows;
use crate::recipe::RecipeFile;

/// Largest number of rows.
const ROWS: usize = 8;
/// Largest number of tokens per row.
const ROW_TOKENS: usize = 64;

/// The source of the rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// The recipe beside the adapter, else built-in texts.
    #[default]
    Any,
    /// A file with one prompt per line.
    Prompts(PathBuf),
    /// Held-out rows of a recipe.
    Recipe(PathBuf),
}

/// Texts of many kinds, so that many parts of a model are used.
const TEXT: [&str; 6] = [
    "The harbour lay quiet in the early light, and the boats that had come in overnight were still wet. A woman in a \
     blue coat counted crates on the quay while her brother tied the last rope.",
    "Question: A train leaves at 9:40 and arrives at 13:05. How long is the journey?\nAnswer: It takes 3 hours and 25 \
     minutes.",
    "def median(values):\n    ordered = sorted(values)\n    middle = len(ordered) // 2\n    return ordered[middle]\n",
    "To make the soup, soften two onions in butter, add a litre of stock and four potatoes, and let it simmer until \
     they fall apart. Season with salt, pepper and a little nutmeg.",
    "{\"name\": \"Ada\", \"born\": 1815, \"works\": [\"Notes\", \"Letters\"], \"alive\": false}",
    "Water boils at 100 degrees Celsius at sea level; on a mountain of 3,000 metres it boils at about 90, because the \
     air presses on it less.",
];

/// Finds rows, each truncated to the model's context.
///
/// `adapter` is the adapter's folder; `positions` is the model's context length in tokens.
pub(super) fn rows(
    source: &Source,
    adapter: &Path,
    tokenizer: Option<&Tokenizer>,
    vocabulary: usize,
    positions: usize,
    environment: &Environment<'_>,
) -> Result<Rows, Error> {
    let limit = ROW_TOKENS.min(positions);
    let mut rows = match source {
        Source::Prompts(path) => prompts(path, tokenizer)?,
        Source::Recipe(path) => of_recipe(path, environment)?,
        Source::Any => match recipe_beside(adapter).map(|recipe| of_recipe(&recipe, environment)) {
            Some(Ok(rows)) => rows,
            Some(Err(Error::Stopped)) => return Err(Error::Stopped),
            Some(Err(_)) => {
                let mut rows = own(tokenizer, vocabulary)?;
                rows.origin.push_str(" (the recipe beside the adapter has no held-out rows)");
                rows
            }
            None => own(tokenizer, vocabulary)?,
        },
    };
    rows.ids.truncate(ROWS);
    for row in &mut rows.ids {
        row.truncate(limit);
    }
    rows.ids.retain(|row| !row.is_empty());
    match rows.ids.is_empty() {
        true => Err(Error::NoRows { origin: rows.origin }),
        false => Ok(rows),
    }
}

/// The recipe of the run folder that an adapter is in; its data may have been moved.
pub(super) fn recipe_beside(adapter: &Path) -> Option<PathBuf> {
    let beside = match adapter.parent().filter(|above| !above.as_os_str().is_empty()) {
        Some(above) => above.join("recipe.toml"),
        None => adapter.join("../recipe.toml"),
    };
    beside.is_file().then_some(beside)
}

fn prompts(path: &Path, tokenizer: Option<&Tokenizer>) -> Result<Rows, Error> {
    let Some(tokenizer) = tokenizer else {
        return Err(Error::NoRows { origin: format!("{} (the model has no tokenizer)", path.display()) });
    };
    let text =
        std::fs::read_to_string(path).map_err(crate::files::Error::io(crate::files::Action::Read, path))?;
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let ids = lines.take(ROWS).map(|line| encode(tokenizer, line)).collect::<Result<_, _>>()?;
    Ok(Rows { ids, origin: format!("prompts of {}", path.display()) })
}

fn of_recipe(path: &Path, environment: &Environment<'_>) -> Result<Rows, Error> {
    let opened = open(RecipeFile::open(path, &[])?, environment)?;
    let corpus = &opened.corpus;
    if corpus.validation_rows() == 0 {
        return Err(Error::NoRows { origin: format!("{} (it has no held-out rows)", path.display()) });
    }
    let mut ids = Vec::new();
    for batch in corpus.validation(1)? {
        let batch = batch?;
        ids.extend((0..batch.rows.len()).map(|document| batch.ids(document)));
        if ids.len() >= ROWS || (environment.stop)() {
            break;
        }
    }
    Ok(Rows { ids, origin: format!("held-out rows of {}", path.display()) })
}

/// Rows of the built-in texts; without a tokenizer, of ids spread over the vocabulary.
fn own(tokenizer: Option<&Tokenizer>, vocabulary: usize) -> Result<Rows, Error> {
    match tokenizer {
        Some(tokenizer) => {
            let ids = TEXT.iter().map(|text| encode(tokenizer, text)).collect::<Result<_, _>>()?;
            Ok(Rows { ids, origin: "built-in texts".into() })
        }
        None => {
            // A step without common factors with usual vocabulary sizes visits ids everywhere in it.
            let id = |row: usize, at: usize| ((row * 7919 + at * 104_729 + 1) % vocabulary) as u32;
            let ids = (0..4).map(|row| (0..32).map(|at| id(row, at)).collect()).collect();
            Ok(Rows { ids, origin: "token ids spread over the vocabulary (there is no tokenizer)".into() })
        }
    }
}

fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, Error> {
    let mut ids = tokenizer.prefix().to_vec();
    ids.extend(tokenizer.encode(text).map_err(crate::data::error::Error::from)?.ids);
    Ok(ids)
}
