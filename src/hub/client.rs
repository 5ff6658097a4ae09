//! HTTP for a hub: redirects are checked before they are followed, the token is sent to the hub's own address only,
//! connections time out, and failures are either retried or final.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ureq::http::{HeaderMap, Uri};
use ureq::{Agent, Body};

use super::Error;
use super::request::{Patience, Request, Token};

/// Redirects followed for one request.
const REDIRECTS: usize = 10;
/// Longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A client of one hub.
pub(super) struct Client {
    agent: Agent,
    origin: Option<Origin>,
    token: Option<Token>,
    pub(super) patience: Patience,
}

/// Scheme, host and port: the origin that a token is valid for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

impl Origin {
    fn of(uri: &Uri) -> Option<Self> {
        let scheme = uri.scheme_str()?.to_ascii_lowercase();
        let port = uri.port_u16().or(match scheme.as_str() {
            "https" => Some(443),
            "http" => Some(80),
            _ => None,
        })?;
        Some(Self { host: uri.host()?.to_ascii_lowercase(), scheme, port })
    }
}

/// A server's answer.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
}

impl Answer {
    /// A header as text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// Why an attempt failed.
pub(super) enum Failure {
    /// Temporary: try again.
    Passing(String),
    /// Final.
    Final(Error),
}

/// Why a server gave no answer.
fn unreached(uri: &Uri, error: &ureq::Error) -> String {
    match (error, uri.host()) {
        (ureq::Error::Io(error), Some(host)) => format!("no connection to {host} ({error})"),
        _ => error.to_string(),
    }
}

impl Client {
    pub(super) fn new(request: &Request) -> Self {
        let silence = Some(request.patience.silence);
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("tune/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(silence)
            .timeout_connect(silence)
            .timeout_send_request(silence)
            .timeout_recv_response(silence)
            .timeout_per_read(silence)
            .build();
        let origin = request.endpoint.parse().ok().and_then(|uri: Uri| Origin::of(&uri));
        Self { agent: config.new_agent(), origin, token: request.token.clone(), patience: request.patience }
    }

    /// Ends all reads, in every thread.
    pub(super) fn shutdown(&self) {
        self.agent.clone().shutdown();
    }

    /// The hub's own answer about a file, without its content: redirects within the hub are followed, others are not.
    pub(super) fn head(&self, url: &str) -> Result<Answer, Failure> {
        self.send(url, |agent, url| agent.head(url), None, false)
    }

    /// A file from byte `start` on, following the hub's redirects.
    pub(super) fn get(&self, url: &str, start: u64) -> Result<Answer, Failure> {
        let range = (start > 0).then(|| format!("bytes={start}-"));
        self.send(url, |agent, url| agent.get(url), range, true)
    }

    fn send(
        &self,
        url: &str,
        method: impl Fn(&Agent, &str) -> ureq::RequestBuilder<ureq::typestate::WithoutBody>,
        range: Option<String>,
        leave: bool,
    ) -> Result<Answer, Failure> {
        let mut url = url.to_owned();
        for _ in 0..=REDIRECTS {
            let uri: Uri = url.parse().map_err(|_| answer(&url, "not an address"))?;
            let origin = Origin::of(&uri);
            let mut builder = method(&self.agent, &url).header("Accept-Encoding", "identity");
            let authorized = self.token.as_ref().filter(|_| origin.is_some() && origin == self.origin);
            if let Some(token) = authorized {
                builder = builder.header("Authorization", token.header());
            }
            if let Some(range) = &range {
                builder = builder.header("Range", range);
            }
            let response = builder.call().map_err(|error| Failure::Passing(unreached(&uri, &error)))?;
            let (parts, body) = response.into_parts();
            let answer = Answer { status: parts.status.as_u16(), headers: parts.headers, body };
            match answer.status {
                301 | 302 | 303 | 307 | 308 => {}
                200..=299 | 416 => return Ok(answer),
                408 | 425 | 429 | 500..=599 => {
                    return Err(Failure::Passing(format!("the hub answers {}", answer.status)));
                }
                status => {
                    let with_token = authorized.is_some();
                    return Err(Failure::Final(Error::Status { url: shown(&url), status, with_token }));
                }
            }
            let Some(location) = answer.header("location") else {
                return Err(self::answer(&url, "redirects without an address"));
            };
            let to = resolve(&uri, location)
                .ok_or_else(|| self::answer(&url, "redirects to an invalid address"))?;
            let target = to.parse().ok().and_then(|uri: Uri| Origin::of(&uri));
            let refuse =
                |reason| Err(Failure::Final(Error::Redirect { url: shown(&url), to: shown(&to), reason }));
            match (&origin, &target) {
                (_, None) => return refuse("only http and https are allowed"),
                (Some(from), Some(to)) if from.scheme == "https" && to.scheme == "http" => {
                    return refuse("it leaves an encrypted connection");
                }
                // The redirecting answer contains the file's description.
                (Some(from), Some(to)) if from != to && !leave => return Ok(answer),
                _ => url = to,
            }
        }
        Err(answer(&url, "redirects too often"))
    }

    /// Retries temporary failures, with pauses.
    pub(super) fn persist<T>(
        &self,
        url: &str,
        stop: &AtomicBool,
        attempt: impl Fn() -> Result<T, Failure>,
    ) -> Result<T, Error> {
        let mut failed = 0;
        loop {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped);
            }
            match attempt() {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(reason)) => {
                    failed += 1;
                    self.give_up_or_wait(url, failed, reason, stop)?;
                }
            }
        }
    }

    /// After the `failed`-th failure in a row: pauses, or returns the error.
    pub(super) fn give_up_or_wait(
        &self,
        url: &str,
        failed: u32,
        reason: String,
        stop: &AtomicBool,
    ) -> Result<(), Error> {
        if failed >= self.patience.attempts {
            return Err(Error::Connection { url: shown(url), reason, attempts: failed });
        }
        let pause = self.patience.pause * 2_u32.saturating_pow(failed - 1);
        let until = Instant::now() + pause.min(LONGEST_PAUSE);
        while Instant::now() < until {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped);
            }
            thread::sleep(Duration::from_millis(20).min(until.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }

    /// The content of a small file.
    pub(super) fn read(&self, url: &str, limit: u64, stop: &AtomicBool) -> Result<Vec<u8>, Error> {
        self.persist(url, stop, || {
            let mut bytes = Vec::new();
            let reader = self.get(url, 0)?.body.into_reader();
            let read = reader.take(limit + 1).read_to_end(&mut bytes);
            read.map_err(|error| Failure::Passing(error.to_string()))?;
            match bytes.len() as u64 > limit {
                true => Err(answer(url, "the answer is implausibly large")),
                false => Ok(bytes),
            }
        })
    }
}

fn answer(url: &str, reason: &str) -> Failure {
    Failure::Final(Error::Answer { url: shown(url), reason: reason.to_owned() })
}

/// An address without its query, which may contain a signature.
pub(super) fn shown(url: &str) -> String {
    url.split(['?', '#']).next().unwrap_or(url).to_owned()
}

/// Resolves a `Location` against `base`.
fn resolve(base: &Uri, location: &str) -> Option<String> {
    let scheme = base.scheme_str()?;
    let authority = base.authority()?;
    if location.contains("://")
        && location.split("://").next()?.bytes().all(|byte| byte.is_ascii_alphanumeric())
    {
        return Some(location.to_owned());
    }
    if let Some(rest) = location.strip_prefix("//") {
        return Some(format!("{scheme}://{rest}"));
    }
    if location.starts_with('/') {
        return Some(format!("{scheme}://{authority}{location}"));
    }
    let (folder, _) = base.path().rsplit_once('/')?;
    Some(format!("{scheme}://{authority}{folder}/{location}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_resolved() {
        let base: Uri = "https://hub.example/a/b?x=1".parse().unwrap();
        for (location, expected) in [
            ("https://cdn.example/f?s=1", "https://cdn.example/f?s=1"),
            ("//cdn.example/f", "https://cdn.example/f"),
            ("/c/d", "https://hub.example/c/d"),
            ("c", "https://hub.example/a/c"),
        ] {
            assert_eq!(resolve(&base, location).unwrap(), expected);
        }
        assert_eq!(shown("https://cdn.example/f?signature=secret"), "https://cdn.example/f");
    }

    #[test]
    fn a_port_or_scheme_makes_another_origin() {
        let origin = |text: &str| Origin::of(&text.parse().unwrap());
        assert_eq!(origin("https://Hub.example/x"), origin("https://hub.example:443"));
        assert_ne!(origin("https://hub.example"), origin("http://hub.example"));
        assert_ne!(origin("https://hub.example"), origin("https://hub.example:8443"));
        assert_ne!(origin("https://hub.example"), origin("https://hub.example.evil.example"));
    }
}
