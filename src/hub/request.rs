//! What is asked for: a repository at a revision, of which hub, with which token.

use std::fmt;
use std::time::Duration;

use super::Error;
use crate::assets::hub::{is_hub_id, is_revision};

/// A secret that gives access to private and gated models. It is sent to the hub alone, and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Takes a token; `None` for one that no header can hold (nothing, or with spaces or control characters inside).
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        plain.then(|| Self(text.to_owned()))
    }

    /// The value of the `Authorization` header.
    pub(super) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(…)")
    }
}

/// How long to wait, and how often to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For a connection, for an answer, and between two pieces of one.
    pub silence: Duration,
    /// Attempts without a new byte before giving up.
    pub attempts: u32,
    /// Before the second attempt; doubled for each further one.
    pub pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { silence: Duration::from_secs(30), attempts: 5, pause: Duration::from_secs(1) }
    }
}

/// A model to fetch.
#[derive(Clone, Debug)]
pub struct Request {
    /// `organization/name`, or a bare name.
    pub id: String,
    /// A branch, tag or commit.
    pub revision: String,
    /// The hub, `https://huggingface.co` or a mirror of it; without a slash at the end.
    pub endpoint: String,
    /// Access to private models.
    pub token: Option<Token>,
    /// How long to wait.
    pub patience: Patience,
    /// Files fetched at a time.
    pub parallel: usize,
}

impl Request {
    /// Reads `id` or `id@revision`.
    ///
    /// # Errors
    /// Not a hub id, a revision or an endpoint.
    pub fn new(model: &str, endpoint: &str, token: Option<Token>) -> Result<Self, Error> {
        let (id, revision) = model.split_once('@').unwrap_or((model, "main"));
        if !is_hub_id(id) {
            return Err(Error::Request(format!(
                "`{id}` is not a hub id: `organization/name`, perhaps with `@revision`"
            )));
        }
        if !is_revision(revision) {
            return Err(Error::Request(format!("`{revision}` is not a branch, tag or commit")));
        }
        let endpoint = endpoint.trim_end_matches('/');
        let known = ["https://", "http://"].iter().any(|scheme| endpoint.starts_with(scheme));
        if !known || endpoint.contains(['?', '#', '@']) {
            return Err(Error::Request(format!(
                "`{endpoint}` is not the address of a hub: `https://huggingface.co`, without a query or a user"
            )));
        }
        Ok(Self {
            id: id.to_owned(),
            revision: revision.to_owned(),
            endpoint: endpoint.to_owned(),
            token,
            patience: Patience::default(),
            parallel: 4,
        })
    }

    /// Where the repository's files are listed.
    pub(super) fn listing_url(&self) -> String {
        format!(
            "{}/api/models/{}/revision/{}?blobs=true",
            self.endpoint,
            self.id,
            escaped(&self.revision, false)
        )
    }

    /// Where one file lies.
    pub(super) fn file_url(&self, commit: &str, path: &str) -> String {
        format!("{}/{}/resolve/{commit}/{}", self.endpoint, self.id, escaped(path, true))
    }
}

/// Percent-encodes what has a meaning of its own in an address.
fn escaped(text: &str, keep_slashes: bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'/' if keep_slashes => escaped.push('/'),
            byte if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) => escaped.push(char::from(byte)),
            byte => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_read_with_and_without_a_revision() {
        let request = Request::new("org/name@refs/pr/1", "https://hub.example/", None).unwrap();
        assert_eq!((request.id.as_str(), request.revision.as_str()), ("org/name", "refs/pr/1"));
        assert_eq!(
            request.listing_url(),
            "https://hub.example/api/models/org/name/revision/refs%2Fpr%2F1?blobs=true"
        );
        assert_eq!(
            request.file_url("abc", "a b/ü.json"),
            "https://hub.example/org/name/resolve/abc/a%20b/%C3%BC.json"
        );
        assert_eq!(Request::new("gpt2", "http://localhost:1", None).unwrap().revision, "main");
        for (model, endpoint) in [
            ("../x", "https://h"),
            ("a/b/c", "https://h"),
            ("a/b@../x", "https://h"),
            ("a/b", "ftp://h"),
            ("a/b", "https://user@h"),
        ] {
            assert!(Request::new(model, endpoint, None).is_err(), "{model} {endpoint}");
        }
    }

    #[test]
    fn a_token_is_never_shown() {
        let token = Token::new(" hf_secret\n").unwrap();
        assert!(!format!("{token:?}").contains("secret"));
        assert_eq!(token.header(), "Bearer hf_secret");
        assert!(Token::new("").is_none() && Token::new("a\r\nHost: x").is_none());
    }
}
