//! `tune quantize`: saves a base model in 4 bits.

use std::path::Path;

use super::adapters::keep_sources;
use super::{Environment, Error};
use crate::assets::resolve_base;
use crate::export::base::OpenedBase;
use crate::export::quantize::{self, Options, Outcome, Progress};
use crate::model;

/// Opens and checks a base: a folder, or a hub id in the local cache. Reads no tensor data.
///
/// # Errors
/// It does not exist, or its architecture is not supported.
pub fn open(base: &str, revision: Option<&str>, environment: &Environment<'_>) -> Result<OpenedBase, Error> {
    let found = resolve_base(base, revision, environment.hub_cache).map_err(model::Error::from)?;
    Ok(OpenedBase::open(found)?)
}

/// Writes it in 4 bits to the folder `out`, which is complete or absent.
///
/// # Errors
/// As [`quantize::quantize`]; `out` contains the base.
pub fn quantize(
    base: &OpenedBase,
    out: &Path,
    options: Options,
    progress: &mut dyn FnMut(Progress),
    environment: &Environment<'_>,
) -> Result<Outcome, Error> {
    keep_sources(out, &[base.folder.root()])?;
    Ok(quantize::quantize(base, out, options, progress, environment.stop)?)
}
