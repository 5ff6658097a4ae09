//! Configurations of other tools as recipes: what they say in our words, and every word that has none.
//!
//! A configuration is read as a tree (`source`), its tool is told from its keys (`tool`), and that tool's own file
//! here moves each key into a `draft`. Names that mean the same are taken from the recipe's own table of foreign names.
//! Nothing is dropped in silence: a key that set something ends in the recipe or in a [`Note`]. Opens no model and no
//! data; whether what the recipe names is there, `tune validate` tells.

mod axolotl;
mod draft;
mod hugging_face;
mod llama_factory;
mod source;
mod tool;
mod torchtune;
mod trl;

use std::path::Path;

pub use draft::{Kind, Note};
pub use source::Fault;
pub use tool::{Tool, Unclear};

use crate::document::Problems;
use crate::recipe::RecipeFile;

/// Why there is no recipe.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot be read.
    #[error("cannot read {name}: {fault}")]
    Unreadable {
        /// The file.
        name: String,
        /// What is wrong.
        fault: Fault,
    },
    /// Which tool it is of cannot be told.
    #[error("{name}: {unclear}")]
    Unclear {
        /// The file.
        name: String,
        /// Why not.
        unclear: Unclear,
    },
    /// The configuration trains something that no recipe does.
    #[error("{name}{}: {reason}", at_line(*.line))]
    NotTrained {
        /// The file.
        name: String,
        /// The line, from 1; 0 where it is not known.
        line: usize,
        /// What, and what to do.
        reason: String,
    },
    /// What came out is no recipe: the configuration says things that cannot be.
    #[error("{name} does not make a recipe:\n{}", told(problems))]
    Refused {
        /// The file.
        name: String,
        /// What is wrong with the recipe.
        problems: Problems,
    },
}

fn at_line(line: usize) -> String {
    if line == 0 { String::new() } else { format!(", line {line}") }
}

fn told(problems: &Problems) -> String {
    let told = problems.iter().map(|problem| match problem.way_out() {
        Some(help) => format!("  - {problem} ({help})"),
        None => format!("  - {problem}"),
    });
    told.collect::<Vec<_>>().join("\n")
}

/// A configuration as a recipe.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The tool it is of.
    pub tool: Tool,
    /// The recipe's text, with the notes as comments at its head. The recipe reader accepts it.
    pub recipe: String,
    /// What did not carry over, what means something else, what is left to decide.
    pub notes: Vec<Note>,
}

/// Makes a recipe of a configuration. `name` is the file's, for messages; `from` its tool, where it is known.
///
/// LLaMA-Factory keeps the files of its datasets in a `dataset_info.json`; it is looked for where that tool looks, from
/// the working directory.
///
/// # Errors
/// [`Error`]: not YAML or JSON, a tool that cannot be told, a configuration that trains something else, or values that
/// no recipe takes.
pub fn import(text: &str, name: &str, from: Option<Tool>) -> Result<Imported, Error> {
    let root =
        source::read(text, name).map_err(|fault| Error::Unreadable { name: name.to_owned(), fault })?;
    let tool = match from {
        Some(tool) => tool,
        None => tool::detect(&root).map_err(|unclear| Error::Unclear { name: name.to_owned(), unclear })?,
    };
    let mut draft = draft::Draft::default();
    let moved = match tool {
        Tool::Axolotl => axolotl::import(&root, &mut draft),
        Tool::LlamaFactory => llama_factory::import(&root, &mut draft),
        Tool::Trl => trl::import(&root, &mut draft),
        Tool::Torchtune => torchtune::import(&root, &mut draft),
    };
    moved.map_err(|draft::NotTrained { line, reason }| Error::NotTrained {
        name: name.to_owned(),
        line,
        reason,
    })?;
    let file = Path::new(name).file_name().map_or(name.into(), |file| file.to_string_lossy());
    let recipe = draft.recipe(&file, tool);
    RecipeFile::parse(name, recipe.as_bytes(), &[])
        .finish()
        .map_err(|problems| Error::Refused { name: name.to_owned(), problems })?;
    Ok(Imported { tool, recipe, notes: draft.notes })
}
