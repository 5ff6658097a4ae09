//! A download request: repository, revision, hub and token.

use std::fmt;
use std::time::Duration;

use super::Error;
use crate::assets::hub::{is_hub_id, is_revision};

/// A secret that gives access to private and gated models. It is sent only to the hub, and never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Checks a token; `None` if it is empty or contains spaces or control characters.
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

/// Timeouts and retries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Timeout of connecting, and of waiting for data.
    pub silence: Duration,
    /// Number of attempts without progress before giving up.
    pub attempts: u32,
    /// Pause before the second attempt; doubled for each further one.
    pub pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { silence: Duration::from_secs(30), attempts: 5, pause: Duration::from_secs(1) }
    }
}

/// What is downloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A model: weights and text.
    Model,
    /// A dataset: its files of rows, all of them or those of one configuration or split.
    Dataset {
        /// The configuration; `None`: all.
        config: Option<String>,
        /// The split; `None`: all.
        split: Option<String>,
    },
}

/// A repository to download.
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
    /// Timeouts and retries.
    pub patience: Patience,
    /// Number of files to download at the same time.
    pub parallel: usize,
    /// A model or a dataset.
    pub content: Content,
}

impl Request {
    /// Reads `id` or `id@revision`.
    ///
    /// # Errors
    /// An invalid hub id, revision or endpoint.
    pub fn new(model: &str, endpoint: &str, token: Option<Token>) -> Result<Self, Error> {
        let (id, revision) = model.split_once('@').unwrap_or((model, "main"));
        if !is_hub_id(id) {
            return Err(Error::Request(format!(
                "`{id}` is not a hub id; expected `organization/name` or `organization/name@revision`"
            )));
        }
        if !is_revision(revision) {
            return Err(Error::Request(format!("`{revision}` is not a branch, tag or commit")));
        }
        let endpoint = endpoint.trim_end_matches('/');
        let known = ["https://", "http://"].iter().any(|scheme| endpoint.starts_with(scheme));
        if !known || endpoint.contains(['?', '#', '@']) {
            return Err(Error::Request(format!(
                "`{endpoint}` is not a hub's address; expected one like `https://huggingface.co`, without query or user"
            )));
        }
        Ok(Self {
            id: id.to_owned(),
            revision: revision.to_owned(),
            endpoint: endpoint.to_owned(),
            token,
            patience: Patience::default(),
            parallel: 4,
            content: Content::Model,
        })
    }

    /// The address of the repository's listing.
    pub(super) fn listing_url(&self) -> String {
        format!(
            "{}/api/{}/{}/revision/{}?blobs=true",
            self.endpoint,
            self.kind(),
            self.id,
            escaped(&self.revision, false)
        )
    }

    /// The address of a file.
    pub(super) fn file_url(&self, commit: &str, path: &str) -> String {
        let kind = if self.content == Content::Model { "" } else { "datasets/" };
        format!("{}/{kind}{}/resolve/{commit}/{}", self.endpoint, self.id, escaped(path, true))
    }

    /// The kind of repository, in addresses and in the names of the cache.
    pub(super) fn kind(&self) -> &'static str {
        if self.content == Content::Model { "models" } else { "datasets" }
    }
}

/// Percent-encodes reserved characters of an address.
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
