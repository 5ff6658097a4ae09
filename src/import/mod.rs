//! Configurations of other tools as recipes, with a note on every setting that is different here.
//!
//! A configuration is read as a tree (`source`, `yaml`), its tool is recognised by its keys (`tool`), and that tool's own
//! file here moves each key into a `draft`. Names that mean the same come from the declarations of our keys. No setting is
//! dropped in silence: it ends in the recipe or in a [`Note`]. Opens no model and no data; `tune validate` checks whether
//! the files that the recipe names exist.

mod axolotl;
mod draft;
mod hugging_face;
mod llama_factory;
mod preference;
mod source;
mod template;
mod tool;
mod torchtune;
mod trl;
mod yaml;

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
    /// Its tool cannot be recognised.
    #[error("{name}: {unclear}")]
    Unclear {
        /// The file.
        name: String,
        /// Why not.
        unclear: Unclear,
    },
    /// The configuration trains something that no recipe can.
    #[error("{name}{}: {reason}", at_line(*.line))]
    NotTrained {
        /// The file.
        name: String,
        /// The line, from 1; 0 where it is not known.
        line: usize,
        /// What, and what to do.
        reason: String,
    },
    /// The recipe has problems: the configuration has values that no recipe takes.
    #[error("{name} does not make a recipe:\n{}", listed(problems))]
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

fn listed(problems: &Problems) -> String {
    let lines = problems.iter().map(|problem| match problem.way_out() {
        Some(help) => format!("  - {problem} ({help})"),
        None => format!("  - {problem}"),
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A configuration as a recipe.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The tool it is of.
    pub tool: Tool,
    /// The recipe's text, with the notes as comments at its head. The recipe reader accepts it.
    pub recipe: String,
    /// Settings that did not carry over, that mean something else, or that are left to decide.
    pub notes: Vec<Note>,
}

/// Makes a recipe of a configuration. `name` is the file's, for messages; `from` its tool, where it is known.
///
/// LLaMA-Factory keeps the files of its datasets in a `dataset_info.json`, which is read from where that tool reads it,
/// relative to the working directory.
///
/// # Errors
/// [`Error`]: not YAML or JSON, a tool that cannot be recognised, a configuration that trains something else, or values
/// that no recipe takes.
pub fn import(text: &str, name: &str, from: Option<Tool>) -> Result<Imported, Error> {
    let root =
        source::read(text, name).map_err(|fault| Error::Unreadable { name: name.to_owned(), fault })?;
    let tool = match from {
        Some(tool) => tool,
        None => tool::detect(&root).map_err(|unclear| Error::Unclear { name: name.to_owned(), unclear })?,
    };
    // These two read their files with OmegaConf.
    let root = match tool {
        Tool::LlamaFactory | Tool::Torchtune => source::resolved(&root, &root),
        Tool::Axolotl | Tool::Trl => root,
    };
    let mut draft = draft::Draft::default();
    let mut variables = Vec::new();
    source::variables(&root, "", &mut variables);
    for (key, node) in variables {
        draft.note(
            Kind::Decide,
            &key,
            node,
            format!("`{node}` has a variable of the environment: write its value"),
        );
    }
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
