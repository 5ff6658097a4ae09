//! A hub on loopback: lists a repository, describes and serves its files, redirects as the real one does, and makes
//! whatever trouble it is told to.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The commit of the branch that has a dataset as Parquet.
pub(crate) const CONVERTED: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// What goes wrong with one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The connection ends after so many bytes of an answer.
    BreakAfter(usize),
    /// Silence after so many.
    StallAfter(usize),
    /// The whole file, whatever range was asked for.
    IgnoreRange,
    /// A range that begins elsewhere than asked.
    ShiftRange,
    /// Bytes of the right number, not the right ones.
    OtherContent,
    /// More bytes than were announced.
    Longer,
    /// Fewer.
    Shorter,
    /// An ETag that is no checksum.
    NoChecksum,
    /// An error.
    Status(u16),
}

/// A file of the repository.
pub(crate) struct File {
    path: String,
    content: Vec<u8>,
    lfs: bool,
}

impl File {
    /// A small file, known by the SHA-1 of its Git blob.
    pub(crate) fn text(path: &str, content: &str) -> Self {
        Self { path: path.into(), content: content.into(), lfs: false }
    }

    /// A large file, known by its SHA-256.
    pub(crate) fn lfs(path: &str, bytes: usize) -> Self {
        let content = (0..bytes).map(|at| (at * 31 % 251) as u8).collect();
        Self { path: path.into(), content, lfs: true }
    }

    fn etag(&self) -> String {
        let digest = match self.lfs {
            true => Sha256::digest(&self.content).to_vec(),
            false => {
                let mut hasher = Sha1::new();
                hasher.update(format!("blob {}\0", self.content.len()));
                hasher.update(&self.content);
                hasher.finalize().to_vec()
            }
        };
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[derive(Default)]
struct State {
    files: Vec<File>,
    /// Of a dataset the files of the branch that has it as Parquet.
    converted: Vec<File>,
    troubles: Mutex<BTreeMap<String, Trouble>>,
    redirects: Mutex<BTreeMap<String, String>>,
    starts: Mutex<Vec<(String, u64)>>,
    authorizations: Mutex<Vec<Option<String>>>,
    bodies: AtomicUsize,
    closed: AtomicBool,
}

/// A running hub; it ends when dropped.
pub(crate) struct Hub {
    port: u16,
    state: Arc<State>,
}

impl Hub {
    pub(crate) fn new(files: Vec<File>) -> Self {
        Self::of_dataset(files, Vec::new())
    }

    pub(crate) fn of_dataset(files: Vec<File>, converted: Vec<File>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State { files, converted, ..State::default() });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.closed.load(Ordering::Relaxed) {
                    break;
                }
                let state = Arc::clone(&shared);
                // A client that hangs up is no fault of the server's.
                thread::spawn(move || stream.and_then(|stream| state.serve(stream)));
            }
        });
        Self { port, state }
    }

    pub(crate) fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn trouble(&self, path: &str, trouble: Trouble) {
        self.state.troubles.lock().unwrap().insert(path.into(), trouble);
    }

    pub(crate) fn honest(&self) {
        self.state.troubles.lock().unwrap().clear();
    }

    pub(crate) fn redirect(&self, path: &str, to: &str) {
        self.state.redirects.lock().unwrap().insert(path.into(), to.into());
    }

    pub(crate) fn content(&self, path: &str) -> Vec<u8> {
        self.state.file(path).unwrap().content.clone()
    }

    pub(crate) fn etag(&self, path: &str) -> String {
        self.state.file(path).unwrap().etag()
    }

    /// First bytes that were asked for of a file, in order.
    pub(crate) fn starts(&self, path: &str) -> Vec<u64> {
        let starts = self.state.starts.lock().unwrap();
        starts.iter().filter(|(file, _)| file == path).map(|(_, start)| *start).collect()
    }

    /// The `Authorization` header of every request.
    pub(crate) fn authorizations(&self) -> Vec<Option<String>> {
        self.state.authorizations.lock().unwrap().clone()
    }

    /// Answers that had a body.
    pub(crate) fn bodies(&self) -> usize {
        self.state.bodies.load(Ordering::Relaxed)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.state.closed.store(true, Ordering::Relaxed);
        _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl State {
    fn file(&self, path: &str) -> Option<&File> {
        self.files.iter().chain(&self.converted).find(|file| file.path == path)
    }

    fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut out = stream.try_clone()?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let mut words = line.split(' ');
        let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or("").to_owned());
        let (mut start, mut authorization) = (0, None);
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
                break;
            }
            let (name, value) = header.trim().split_once(": ").unwrap_or((header.trim(), ""));
            match name.to_ascii_lowercase().as_str() {
                "authorization" => authorization = Some(value.to_owned()),
                "range" => start = value["bytes=".len()..].trim_end_matches('-').parse().unwrap(),
                _ => {}
            }
        }
        if method.is_empty() {
            return Ok(());
        }
        self.authorizations.lock().unwrap().push(authorization);
        let path = target.split('?').next().unwrap();
        let is_converted = path.ends_with("/refs%2Fconvert%2Fparquet");
        if path.starts_with("/api/models/org/model/revision/")
            || path.starts_with("/api/datasets/org/rows/revision/")
        {
            let (files, commit) =
                if is_converted { (&self.converted, CONVERTED) } else { (&self.files, COMMIT) };
            let listed: Vec<_> =
                files.iter().map(|file| serde_json::json!({"rfilename": file.path})).collect();
            let body = serde_json::json!({"sha": commit, "siblings": listed}).to_string();
            self.bodies.fetch_add(1, Ordering::Relaxed);
            return write!(
                out,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
        }
        let mut places = vec![format!("/org/model/resolve/{COMMIT}/"), "/cdn/".to_owned()];
        places.extend([COMMIT, CONVERTED].map(|commit| format!("/datasets/org/rows/resolve/{commit}/")));
        let name = places.iter().find_map(|place| path.strip_prefix(place.as_str())).unwrap_or("");
        let Some(file) = self.file(name) else {
            return write!(out, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        };
        self.answer(&mut out, method == "HEAD", file, start)
    }

    fn answer(&self, out: &mut TcpStream, head: bool, file: &File, start: u64) -> std::io::Result<()> {
        let trouble = self.troubles.lock().unwrap().get(&file.path).copied();
        let total = file.content.len();
        let etag = match trouble {
            Some(Trouble::NoChecksum) => "latest".to_owned(),
            _ => file.etag(),
        };
        let about = match file.lfs {
            true => format!("ETag: \"unlike\"\r\nX-Linked-ETag: \"{etag}\"\r\nX-Linked-Size: {total}\r\n"),
            false => format!("ETag: \"{etag}\"\r\n"),
        };
        if let Some(Trouble::Status(status)) = trouble {
            return write!(out, "HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
        if let Some(to) = self.redirects.lock().unwrap().get(&file.path) {
            return write!(
                out,
                "HTTP/1.1 302 Found\r\n{about}Location: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
        }
        if head {
            return write!(
                out,
                "HTTP/1.1 200 OK\r\n{about}Content-Length: {total}\r\nConnection: close\r\n\r\n"
            );
        }
        self.bodies.fetch_add(1, Ordering::Relaxed);
        self.starts.lock().unwrap().push((file.path.clone(), start));
        let mut from = start as usize;
        let mut content = file.content.clone();
        match trouble {
            Some(Trouble::IgnoreRange) => from = 0,
            Some(Trouble::ShiftRange) if from > 0 => from += 1,
            Some(Trouble::OtherContent) => content[0] ^= 1,
            Some(Trouble::Longer) => content.extend([0; 50]),
            Some(Trouble::Shorter) => content.truncate(total - 50),
            _ => {}
        }
        let body = &content[from..];
        let status = match from {
            0 => "200 OK".to_owned(),
            _ => format!("206 Partial Content\r\nContent-Range: bytes {from}-{}/{total}", total - 1),
        };
        write!(
            out,
            "HTTP/1.1 {status}\r\n{about}Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        )?;
        match trouble {
            Some(Trouble::BreakAfter(bytes)) => out.write_all(&body[..bytes.min(body.len())]),
            Some(Trouble::StallAfter(bytes)) => {
                out.write_all(&body[..bytes.min(body.len())])?;
                out.flush()?;
                if bytes < body.len() {
                    thread::sleep(Duration::from_secs(2));
                }
                Ok(())
            }
            _ => out.write_all(body),
        }
    }
}
