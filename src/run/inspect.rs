//! `tune inspect`: rows exactly as the model will see them.

use super::open::open;
use super::{Environment, Error};
use crate::data::inspect::InspectedRow;
use crate::recipe::RecipeFile;

/// Rows to look at, one at a time.
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
    /// Rows of all datasets together.
    pub fn rows(&self) -> u64 {
        self.corpus.rows()
    }

    /// Where the chat template comes from, where there is one.
    pub fn template(&self) -> Option<&str> {
        self.template.as_deref()
    }

    /// The row of that number, from 0, through the datasets in the recipe's order.
    ///
    /// # Errors
    /// [`Error::Data`] when there is no such row or it cannot be read.
    pub fn row(&self, number: u64) -> Result<InspectedRow, Error> {
        Ok(self.corpus.row(number)?)
    }
}
