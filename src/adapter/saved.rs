//! Modules to save (PEFT's `modules_to_save`): embeddings and output head, trained whole beside the adapters.
//!
//! Their values are f32 masters, whatever the base is stored in. Where the output head is tied to the embeddings, training
//! one of them would silently untie them; that is refused.

use std::fmt;

use super::parameter::{Parameter, Part, key};

/// A module that can be trained whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SavedKind {
    /// Token ids to hidden states.
    Embedding,
    /// Hidden states to logits.
    Head,
}

impl SavedKind {
    /// Every kind, in order.
    pub const ALL: [Self; 2] = [Self::Embedding, Self::Head];

    /// The last component of the module path.
    pub fn hf_name(self) -> &'static str {
        match self {
            Self::Embedding => "embed_tokens",
            Self::Head => "lm_head",
        }
    }
}

impl fmt::Display for SavedKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.hf_name())
    }
}

/// A module to save of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedModule {
    /// What it is.
    pub kind: SavedKind,
    /// Module path in the Hugging Face model (`model.embed_tokens`).
    pub path: String,
    /// `[vocab, hidden]`.
    pub shape: [usize; 2],
}

impl SavedModule {
    /// Its elements.
    pub fn parameters(&self) -> u64 {
        self.shape[0] as u64 * self.shape[1] as u64
    }

    /// Its tensor.
    pub fn parameter(&self) -> Parameter {
        Parameter { name: key(&self.path, Part::Saved), part: Part::Saved, shape: self.shape }
    }
}

/// The modules that a list of names selects, by PEFT's rule: the path is the name, or ends in it after a dot.
///
/// # Errors
/// The positions of names that select none.
pub fn resolve(names: &[String], modules: &[SavedModule]) -> Result<Vec<SavedModule>, Vec<usize>> {
    let means =
        |name: &str, saved: &SavedModule| saved.path == name || saved.path.ends_with(&format!(".{name}"));
    let unknown: Vec<usize> = names
        .iter()
        .enumerate()
        .filter(|(_, name)| !modules.iter().any(|saved| means(name, saved)))
        .map(|(position, _)| position)
        .collect();
    match unknown.is_empty() {
        true => {
            Ok(modules.iter().filter(|saved| names.iter().any(|name| means(name, saved))).cloned().collect())
        }
        false => Err(unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_paths_and_their_ends() {
        let saved = |kind, path: &str| SavedModule { kind, path: path.into(), shape: [8, 4] };
        let modules = [saved(SavedKind::Embedding, "model.embed_tokens"), saved(SavedKind::Head, "lm_head")];
        let found = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            resolve(&names, &modules)
                .map(|found| found.into_iter().map(|saved| saved.kind).collect::<Vec<_>>())
        };
        assert_eq!(found(&["lm_head", "embed_tokens"]), Ok(vec![SavedKind::Embedding, SavedKind::Head]));
        assert_eq!(found(&["model.embed_tokens"]), Ok(vec![SavedKind::Embedding]));
        assert_eq!(found(&[]), Ok(vec![]));
        assert_eq!(found(&["tokens", "lm_head", "norm"]), Err(vec![0, 2]));
    }
}
