//! `tune inspect`: rows exactly as training uses them.

use super::open::open;
use super::{Environment, Error};
use crate::data::inspect::InspectedRow;
use crate::recipe::RecipeFile;

/// An opened recipe whose rows can be read one at a time.
pub struct Inspection {
    corpus: crate::data::corpus::Corpus,
    template: Option<String>,
}

/// Opens a recipe for inspection.
///
/// # Errors
/// [`Error::Recipe`] with every problem of the recipe and of what it names.
pub fn inspect(file: RecipeFile, environment: &Environment<'_>) -> Result<Inspection, Error> {
    let opened = open(file, environment)?;
    let template = opened.template.as_ref().map(|template| template.origin().to_owned());
    Ok(Inspection { corpus: opened.corpus, template })
}

impl Inspection {
    /// Total number of rows of all datasets.
    pub fn rows(&self) -> u64 {
        self.corpus.rows()
    }

    /// Origin of the chat template, if there is one.
    pub fn template(&self) -> Option<&str> {
        self.template.as_deref()
    }

    /// Row `number`, from 0 over all datasets in the recipe's order.
    ///
    /// # Errors
    /// [`Error::Data`] if the row does not exist or cannot be read.
    pub fn row(&self, number: u64) -> Result<Vec<InspectedRow>, Error> {
        Ok(self.corpus.row(number)?)
    }
}
