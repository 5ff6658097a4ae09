//! What the first argument of a command names: a run, an adapter, or a base model.

use std::path::{Path, PathBuf};

use super::Error;
use crate::adapter::peft;
use crate::assets::hub::is_hub_id;

/// File of a run folder.
const RECIPE: &str = "recipe.toml";
/// File of a model folder.
const CONFIG: &str = "config.json";
/// Folder of a run's adapter.
const ADAPTER: &str = "adapter";

/// A model as one word of a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// The folder of a run.
    Run(PathBuf),
    /// The folder of an adapter.
    Adapter(PathBuf),
    /// A base model: a folder, or a hub id.
    Base(String),
}

impl Named {
    /// What `text` names; `None` if it is neither a folder nor a hub id `organization/name`, and is not in the cache.
    pub fn of(text: &str, hub_cache: &Path) -> Option<Self> {
        let folder = Path::new(text);
        if is_run(folder) {
            return Some(Self::Run(folder.to_owned()));
        }
        if folder.join(peft::CONFIG_FILE).is_file() {
            return Some(Self::Adapter(folder.to_owned()));
        }
        let is_model = folder.join(CONFIG).is_file()
            || (is_hub_id(text) && text.contains('/') && !folder.exists())
            || (is_hub_id(text) && hub_cache.join(format!("models--{text}")).is_dir());
        match (is_model, folder.is_dir()) {
            (true, _) => Some(Self::Base(text.to_owned())),
            // Opening it names what is missing.
            (false, true) => Some(Self::Adapter(folder.to_owned())),
            (false, false) => None,
        }
    }
}

/// Whether a folder is a run folder.
pub fn is_run(folder: &Path) -> bool {
    folder.join(RECIPE).is_file()
}

/// The adapter's folder: the named folder, or the one inside a finished run.
///
/// # Errors
/// [`Error::Unfinished`] for a run without an adapter.
pub fn adapter_folder(named: &Path) -> Result<PathBuf, Error> {
    let inside = named.join(ADAPTER);
    match (is_run(named), inside.is_dir()) {
        (false, _) => Ok(named.to_path_buf()),
        (true, true) => Ok(inside),
        (true, false) => Err(Error::Unfinished(named.to_path_buf())),
    }
}

/// The run's folder: the named folder, or the one around the adapter of a run.
pub fn run_folder(named: &Path) -> PathBuf {
    match named.parent() {
        Some(above) if named.ends_with(ADAPTER) && !is_run(named) => {
            let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
            if is_run(above) { above.to_path_buf() } else { named.to_path_buf() }
        }
        _ => named.to_path_buf(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_adapters_and_bases_are_told_apart() {
        let outer = tempfile::tempdir().unwrap();
        let path = |name: &str| outer.path().join(name);
        for file in
            ["run/recipe.toml", "run/adapter/adapter_config.json", "base/config.json", "begun/recipe.toml"]
        {
            std::fs::create_dir_all(path(file).parent().unwrap()).unwrap();
            std::fs::write(path(file), "").unwrap();
        }
        std::fs::create_dir(path("models--gpt2")).unwrap();
        let named = |text: &str| Named::of(text, outer.path());
        let word = |name: &str| path(name).to_str().unwrap().to_owned();
        assert_eq!(named(&word("run")), Some(Named::Run(path("run"))));
        assert_eq!(named(&word("run/adapter")), Some(Named::Adapter(path("run/adapter"))));
        assert_eq!(named(&word("base")), Some(Named::Base(word("base"))));
        assert_eq!(named("org/name"), Some(Named::Base("org/name".into())));
        assert_eq!(named("gpt2"), Some(Named::Base("gpt2".into())));
        assert_eq!((named("Hello."), named("What is a drum for?")), (None, None));
        assert_eq!(adapter_folder(&path("run")).unwrap(), path("run/adapter"));
        assert_eq!(adapter_folder(&path("base")).unwrap(), path("base"));
        assert!(matches!(adapter_folder(&path("begun")), Err(Error::Unfinished(_))));
        assert_eq!(run_folder(&path("run/adapter")), path("run"));
        assert_eq!(run_folder(&path("run")), path("run"));
        assert_eq!(run_folder(&path("base")), path("base"));
    }
}
