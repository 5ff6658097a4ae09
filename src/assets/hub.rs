//! Resolves the `base` of a recipe to a folder: a path, or a hub id in the local cache.
//!
//! Never opens the network. Layout of the cache: `models--{org}--{name}/refs/{revision}` is a file that holds a
//! commit, `models--{org}--{name}/snapshots/{commit}/` the files of that commit.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::{Error, json};

/// A base model found on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// The model folder.
    pub folder: PathBuf,
    /// Its hub id and commit, if it is in the hub cache.
    pub hub: Option<HubSnapshot>,
}

/// The identity of a model on the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubSnapshot {
    /// `organization/name`, or a bare name.
    pub id: String,
    /// Commit of the snapshot.
    pub commit: String,
}

/// Finds the folder of a base model. `hub_cache` is the folder that holds `models--…` entries.
///
/// # Errors
/// The base is neither a folder nor a model in the cache, or a revision is given for a folder. The message names the
/// searched place and the command that downloads the model.
pub fn resolve_base(base: &str, revision: Option<&str>, hub_cache: &Path) -> Result<Base, Error> {
    let not_found = |message: String| Error::BaseNotFound { message, fetch: None };
    let folder = Path::new(base);
    if folder.is_dir() {
        return match revision {
            None => Ok(Base { folder: folder.to_path_buf(), hub: None }),
            Some(revision) => Err(not_found(format!(
                "`{base}` is a folder, which has no revisions: remove `revision = \"{revision}\"`"
            ))),
        };
    }
    if folder.is_file() {
        return Err(not_found(format!(
            "`{base}` is a file; a base model is a folder that holds config.json and safetensors weights"
        )));
    }
    if !is_hub_id(base) {
        return Err(not_found(format!(
            "`{base}` is neither an existing folder nor a hub id (`organization/name`)"
        )));
    }
    let repository = hub_cache.join(format!("models--{}", base.replace('/', "--")));
    let wanted = revision.unwrap_or("main");
    if !is_revision(wanted) {
        return Err(not_found(format!("`{wanted}` is not a branch, tag or commit")));
    }
    let at = revision.map(|revision| format!("@{revision}")).unwrap_or_default();
    let absent =
        |message: String| Error::BaseNotFound { message, fetch: Some(format!("tune download {base}{at}")) };
    if !repository.is_dir() {
        return Err(absent(format!(
            "`{base}` is neither a folder nor in the hub cache ({} does not exist)",
            repository.display()
        )));
    }
    let reference = repository.join("refs").join(wanted);
    let commit = match json::read_limited(&reference, 1 << 10) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).trim().to_owned(),
        // A full commit needs no reference.
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => wanted.to_owned(),
        Err(Error::NotAFile { .. }) => wanted.to_owned(),
        Err(error) => return Err(error),
    };
    if commit.is_empty() || !commit.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        let place = match reference.is_file() {
            true => format!("{} does not contain a commit", reference.display()),
            false => format!("revision `{wanted}` is not ({} does not exist)", reference.display()),
        };
        return Err(absent(format!("`{base}` is in the hub cache, but {place}")));
    }
    let snapshot = repository.join("snapshots").join(&commit);
    match fs::metadata(&snapshot) {
        Ok(metadata) if metadata.is_dir() => {
            Ok(Base { folder: snapshot, hub: Some(HubSnapshot { id: base.to_owned(), commit }) })
        }
        _ => Err(absent(format!(
            "`{base}` is in the hub cache, but revision `{wanted}` is not ({} does not exist)",
            snapshot.display()
        ))),
    }
}

/// The folder of a branch's newest snapshot in a repository of the cache, if it is there.
pub(super) fn snapshot_of(repository: &Path, revision: &str) -> Option<PathBuf> {
    let commit = json::read_limited(&repository.join("refs").join(revision), 1 << 10).ok()?;
    let commit = String::from_utf8_lossy(&commit).trim().to_owned();
    let is_plain = !commit.is_empty() && commit.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let folder = repository.join("snapshots").join(commit);
    (is_plain && folder.is_dir()).then_some(folder)
}

/// `name` or `organization/name`, of the characters the hub allows.
pub fn is_hub_id(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part.len() <= 96
            && !part.starts_with(['-', '.'])
            && !part.contains("--")
            && !part.contains("..")
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    match text.split_once('/') {
        Some((organization, name)) => part(organization) && part(name),
        None => part(text),
    }
}

/// A reference that stays inside the folder of references (`refs/pr/1` may nest).
pub fn is_revision(text: &str) -> bool {
    text.split('/').all(|part| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte))
    })
}
