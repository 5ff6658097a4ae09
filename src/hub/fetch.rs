//! Downloads one file: queries its checksum and size, collects its bytes in `<etag>.incomplete` over as many
//! connections as needed, verifies the checksum, and only then gives it its name.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::Error;
use super::cache::Repository;
use super::client::{Answer, Client, Failure, shown};
use crate::files::{self, Action};

/// Bytes read at a time.
const CHUNK: usize = 1 << 18;

/// A file as the hub describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Remote {
    /// Its path in the repository.
    pub(super) path: String,
    /// Its address.
    pub(super) url: String,
    /// Its checksum: SHA-256 (64 digits), or the SHA-1 of its Git blob (40 digits).
    pub(super) etag: String,
    /// Its length.
    pub(super) size: u64,
}

/// Queries checksum and size of a file.
pub(super) fn describe(
    client: &Client,
    url: String,
    path: String,
    stop: &AtomicBool,
) -> Result<Remote, Error> {
    let answer = client.persist(&url, stop, || client.head(&url))?;
    let fail = |reason: String| Err(Error::Answer { url: shown(&url), reason });
    let etag = answer.header("x-linked-etag").or_else(|| answer.header("etag")).unwrap_or_default();
    let etag = etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"').to_ascii_lowercase();
    let hexadecimal = etag.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !hexadecimal || !matches!(etag.len(), 40 | 64) {
        return fail(format!(
            "the server sends no checksum (its ETag is `{}`); check that HF_ENDPOINT is a hub",
            etag.chars().take(80).collect::<String>().escape_debug()
        ));
    }
    let size = answer.header("x-linked-size").or_else(|| answer.header("content-length"));
    match size.and_then(|size| size.parse().ok()) {
        Some(size) => Ok(Remote { path, url, etag, size }),
        None => fail("the server does not send the file's size".into()),
    }
}

/// Downloads one file into the cache; `arrived` counts its bytes.
pub(super) fn fetch(
    client: &Client,
    remote: &Remote,
    repository: &Repository,
    arrived: &AtomicU64,
    stop: &AtomicBool,
) -> Result<(), Error> {
    let blob = repository.blob(&remote.etag);
    let whole = || fs::metadata(&blob).is_ok_and(|about| about.is_file() && about.len() == remote.size);
    if !whole() {
        let _lock = repository.lock(&remote.etag, stop)?;
        // The previous holder of the lock may have downloaded it.
        if !whole() {
            let path = repository.incomplete(&remote.etag);
            let mut partial = Partial::open(&path, arrived)?;
            partial.gather(client, remote, stop)?;
            partial.check(remote)?;
            partial.file.sync_all().map_err(files::Error::io(Action::Write, &path))?;
            fs::rename(&path, &blob).map_err(files::Error::io(Action::Write, &blob))?;
            return Ok(());
        }
    }
    arrived.fetch_add(remote.size, Ordering::Relaxed);
    Ok(())
}

/// An incomplete file.
struct Partial<'a> {
    path: &'a Path,
    file: File,
    length: u64,
    arrived: &'a AtomicU64,
}

impl<'a> Partial<'a> {
    fn open(path: &'a Path, arrived: &'a AtomicU64) -> Result<Self, Error> {
        let file = files::open_or_create(path).map_err(files::Error::io(Action::Create, path))?;
        let length = file.metadata().map_err(files::Error::io(Action::Read, path))?.len();
        arrived.fetch_add(length, Ordering::Relaxed);
        Ok(Self { path, file, length, arrived })
    }

    /// Truncates the file to `length`.
    fn truncate(&mut self, length: u64) -> Result<(), Error> {
        self.file.set_len(length).map_err(files::Error::io(Action::Write, self.path))?;
        self.arrived.fetch_sub(self.length - length, Ordering::Relaxed);
        self.length = length;
        Ok(())
    }

    /// Connects until all bytes are there. Attempts without progress are counted; progress resets the count.
    fn gather(&mut self, client: &Client, remote: &Remote, stop: &AtomicBool) -> Result<(), Error> {
        if self.length > remote.size {
            self.truncate(0)?;
        }
        let mut failed = 0;
        let mut most = self.length;
        // An empty file is requested too, to check that the hub has it.
        while self.length < remote.size {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped);
            }
            let outcome = match client.get(&remote.url, self.length) {
                Ok(answer) => self.take(answer, remote, stop)?,
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(reason)) => Some(reason),
            };
            let Some(reason) = outcome else { continue };
            match self.length > most {
                true => (failed, most) = (0, self.length),
                false => failed += 1,
            }
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped);
            }
            if failed > 0 {
                client.give_up_or_wait(&remote.url, failed, reason, stop)?;
            }
        }
        Ok(())
    }

    /// Appends the content of one answer; `Some` is the reason if it is incomplete.
    fn take(&mut self, answer: Answer, remote: &Remote, stop: &AtomicBool) -> Result<Option<String>, Error> {
        match answer.status {
            206 => {
                let range = answer.header("content-range").unwrap_or_default().to_owned();
                if begin_and_total(&range) != Some((self.length, remote.size)) {
                    let asked = self.length;
                    self.truncate(0)?;
                    return Ok(Some(format!("requested bytes from {asked} on, got `{range}`")));
                }
            }
            // The server restarts from the beginning: discard the collected bytes.
            200 => self.truncate(0)?,
            status => {
                self.truncate(0)?;
                return Ok(Some(format!("status {status} for the rest of the file")));
            }
        }
        self.file.seek(SeekFrom::Start(self.length)).map_err(files::Error::io(Action::Write, self.path))?;
        let mut reader = answer.body.into_reader();
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Ok(Some(error.to_string())),
            };
            if self.length + count as u64 > remote.size {
                self.truncate(0)?;
                let reason = format!("received more than the announced {} bytes", remote.size);
                return Err(Error::Answer { url: shown(&remote.url), reason });
            }
            self.file.write_all(&buffer[..count]).map_err(files::Error::io(Action::Write, self.path))?;
            self.length += count as u64;
            self.arrived.fetch_add(count as u64, Ordering::Relaxed);
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped);
            }
        }
        Ok((self.length < remote.size)
            .then(|| format!("the connection ended after {} of {} bytes", self.length, remote.size)))
    }

    /// Verifies the checksum; a file that differs is removed.
    fn check(&mut self, remote: &Remote) -> Result<(), Error> {
        let failed = files::Error::io(Action::Read, self.path);
        let (algorithm, found) = self.hash(remote).map_err(failed)?;
        if found == remote.etag {
            return Ok(());
        }
        self.truncate(0)?;
        fs::remove_file(self.path).map_err(files::Error::io(Action::Remove, self.path))?;
        let (file, expected) = (remote.path.clone(), remote.etag.clone());
        Err(Error::Content { file, algorithm, found, expected })
    }

    fn hash(&mut self, remote: &Remote) -> std::io::Result<(&'static str, String)> {
        self.file.seek(SeekFrom::Start(0))?;
        match remote.etag.len() {
            64 => Ok(("SHA-256", digest(Sha256::new(), &mut self.file)?)),
            _ => {
                let mut hasher = Sha1::new();
                hasher.update(format!("blob {}\0", self.length));
                Ok(("Git SHA-1", digest(hasher, &mut self.file)?))
            }
        }
    }
}

fn digest(mut hasher: impl Digest, file: &mut File) -> std::io::Result<String> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => hasher.update(&buffer[..count]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// First byte and total length of `bytes 5-9/10`.
fn begin_and_total(range: &str) -> Option<(u64, u64)> {
    let (span, total) = range.strip_prefix("bytes ")?.split_once('/')?;
    Some((span.split_once('-')?.0.parse().ok()?, total.parse().ok()?))
}
