//! Downloads all files of a model or a dataset, several at a time: text first, then the weights that its index names, or
//! the rows. The snapshot's
//! links come last and the branch's commit after those, so that a visible snapshot is complete.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::Error;
use super::cache::Repository;
use super::client::Client;
use super::fetch::{Remote, describe, fetch};
use super::listing::{INDEX, Listing};
use super::request::{Content, Request};
use crate::assets::dataset::CONVERTED;

/// Longest listing accepted.
const LISTING_LIMIT: u64 = 64 << 20;
/// Longest index accepted.
const INDEX_LIMIT: u64 = 128 << 20;
/// Time between progress reports.
const REPORT: Duration = Duration::from_millis(50);

/// Progress of a download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Whether these are the weights of a model or the rows of a dataset; the small files come first.
    pub weights: bool,
    /// Bytes on disk.
    pub done: u64,
    /// Total bytes.
    pub total: u64,
}

/// The result of a download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Downloaded {
    /// The snapshot's folder.
    pub folder: PathBuf,
    /// Its commit.
    pub commit: String,
    /// Number of its files.
    pub files: usize,
    /// Their total size in bytes.
    pub bytes: u64,
}

/// Downloads a model or a dataset into the cache; `stop` is polled.
///
/// # Errors
/// [`Error`]; the data received so far is kept, and the next call continues from it.
pub fn download(
    request: &Request,
    hub_cache: &Path,
    progress: &mut dyn FnMut(Progress),
    stop: &dyn Fn() -> bool,
) -> Result<Downloaded, Error> {
    match &request.content {
        Content::Model => repository(request, hub_cache, progress, stop, model),
        Content::Dataset { .. } => {
            let found = repository(request, hub_cache, progress, stop, dataset);
            match found {
                // Only scripts or archives there: the hub has nearly every dataset as Parquet too.
                Err(Error::Nothing { .. }) if request.revision == "main" => {
                    let converted = Request { revision: CONVERTED.to_owned(), ..request.clone() };
                    repository(&converted, hub_cache, progress, stop, dataset)
                }
                found => found,
            }
        }
    }
}

/// Finds and fetches the files of a repository.
type Files =
    fn(&mut Work<'_>, &str, &mut dyn FnMut(Progress), &dyn Fn() -> bool) -> Result<Vec<Remote>, Error>;

/// Downloads a repository, of which `files` fetches the content.
fn repository(
    request: &Request,
    hub_cache: &Path,
    progress: &mut dyn FnMut(Progress),
    stop: &dyn Fn() -> bool,
    files: Files,
) -> Result<Downloaded, Error> {
    let client = Client::new(request);
    let stopped = AtomicBool::new(false);
    let url = request.listing_url();
    let shown = super::client::shown(&url);
    let bytes = client.read(&url, LISTING_LIMIT, &stopped)?;
    let listing: Listing = serde_json::from_slice(&bytes).map_err(|error| Error::Answer {
        url: shown.clone(),
        reason: format!("not the listing of a repository: {error}"),
    })?;
    listing.check(&shown)?;
    let repository = Repository::open(hub_cache, request.kind(), &request.id)?;
    let mut work =
        Work { request, client: &client, repository: &repository, listing: &listing, stopped: &stopped };

    let files = files(&mut work, &shown, progress, stop)?;
    for file in &files {
        repository.link(&listing.commit, &file.path, &file.etag)?;
    }
    repository.set_ref(&request.revision, &listing.commit)?;
    Ok(Downloaded {
        folder: repository.snapshot(&listing.commit),
        commit: listing.commit.clone(),
        files: files.len(),
        bytes: files.iter().map(|file| file.size).sum(),
    })
}

/// The texts of a model, then the weights that its index names.
fn model(
    work: &mut Work<'_>,
    shown: &str,
    progress: &mut dyn FnMut(Progress),
    stop: &dyn Fn() -> bool,
) -> Result<Vec<Remote>, Error> {
    let mut files = work.get(work.listing.texts(), false, progress, stop)?;
    let index = match files.iter().find(|file| file.path == INDEX) {
        Some(file) => {
            let path = work.repository.blob(&file.etag);
            Some(crate::assets::json::read_limited(&path, INDEX_LIMIT)?)
        }
        None => None,
    };
    let weights = work.listing.weights(&work.request.id, index.as_deref(), shown)?;
    files.extend(work.get(weights, true, progress, stop)?);
    Ok(files)
}

/// The description of a dataset, then its files of rows.
fn dataset(
    work: &mut Work<'_>,
    _: &str,
    progress: &mut dyn FnMut(Progress),
    stop: &dyn Fn() -> bool,
) -> Result<Vec<Remote>, Error> {
    let Content::Dataset { config, split } = &work.request.content else { return Ok(Vec::new()) };
    let mut files = work.get(work.listing.about(), false, progress, stop)?;
    let readme = files.iter().find(|file| file.path == "README.md");
    let readme = readme.and_then(|file| std::fs::read_to_string(work.repository.blob(&file.etag)).ok());
    let is_converted = work.request.revision == CONVERTED;
    let data = work.listing.data(readme.as_deref(), config.as_deref(), split.as_deref(), is_converted);
    let data = data.map_err(|reason| Error::Nothing { id: work.request.id.clone(), reason })?;
    files.extend(work.get(data, true, progress, stop)?);
    Ok(files)
}

struct Work<'a> {
    request: &'a Request,
    client: &'a Client,
    repository: &'a Repository,
    listing: &'a Listing,
    stopped: &'a AtomicBool,
}

impl Work<'_> {
    /// Queries and then downloads files, a few at a time.
    fn get(
        &mut self,
        paths: Vec<String>,
        weights: bool,
        progress: &mut dyn FnMut(Progress),
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<Remote>, Error> {
        let describe = |path: &String| {
            let url = self.request.file_url(&self.listing.commit, path);
            describe(self.client, url, path.clone(), self.stopped)
        };
        let files = self.each(&paths, describe, &mut || {}, stop)?;
        let total = files.iter().map(|file| file.size).sum();
        let arrived = AtomicU64::new(0);
        let get = |file: &Remote| fetch(self.client, file, self.repository, &arrived, self.stopped);
        let mut report = || progress(Progress { weights, done: arrived.load(Ordering::Relaxed), total });
        self.each(&files, get, &mut report, stop)?;
        progress(Progress { weights, done: total, total });
        Ok(files)
    }

    /// Processes each item on a few threads; this thread reports progress. The first error ends all.
    fn each<I: Sync, O: Send>(
        &self,
        items: &[I],
        work: impl Fn(&I) -> Result<O, Error> + Sync,
        report: &mut dyn FnMut(),
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<O>, Error> {
        let next = AtomicUsize::new(0);
        let results: Mutex<Vec<(usize, Result<O, Error>)>> = Mutex::new(Vec::new());
        let threads = self.request.parallel.clamp(1, items.len().max(1));
        thread::scope(|scope| {
            let worker = || {
                while !self.stopped.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(index) else { break };
                    let result = work(item);
                    if result.is_err() {
                        self.stopped.store(true, Ordering::Relaxed);
                    }
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
                }
            };
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
            let mut asked = false;
            while workers.iter().any(|worker| !worker.is_finished()) {
                if !asked && (stop() || self.stopped.load(Ordering::Relaxed)) {
                    asked = true;
                    self.stopped.store(true, Ordering::Relaxed);
                    self.client.shutdown();
                }
                report();
                thread::sleep(REPORT);
            }
        });
        let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        results.sort_by_key(|(index, _)| *index);
        // After the first error, the other threads only report that they were stopped.
        let mut fault = None;
        let mut done = Vec::with_capacity(items.len());
        for (_, result) in results {
            match result {
                Ok(value) => done.push(value),
                Err(error) if fault.is_none() || matches!(fault, Some(Error::Stopped)) => fault = Some(error),
                Err(_) => {}
            }
        }
        match fault {
            Some(error) => Err(error),
            None if self.stopped.load(Ordering::Relaxed) => Err(Error::Stopped),
            None => Ok(done),
        }
    }
}
