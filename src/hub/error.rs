//! Why a model could not be fetched. No message ever holds the token.

use crate::{assets, files};

/// What stopped a download.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not an id, revision or endpoint.
    #[error("{0}")]
    Request(String),
    /// The hub answered with an error.
    #[error("{url}: the hub answers {status}{}", help(*status, *with_token))]
    Status {
        /// What was asked for, without its query.
        url: String,
        /// The status code.
        status: u16,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// The connection failed, again and again.
    #[error(
        "{url}: {reason} ({attempts} attempts without progress); what arrived so far is kept: run the command again"
    )]
    Connection {
        /// What was asked for, without its query.
        url: String,
        /// The last failure.
        reason: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// An answer that cannot be right.
    #[error("{url}: {reason}")]
    Answer {
        /// What was asked for, without its query.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// A redirect that must not be followed.
    #[error("{url} redirects to {to}, which is refused: {reason}")]
    Redirect {
        /// Where from.
        url: String,
        /// Where to, without its query.
        to: String,
        /// Why it is not followed.
        reason: &'static str,
    },
    /// A file whose content is not what the hub says it is.
    #[error(
        "{file} arrived damaged: it has {algorithm} {found}, the hub says {expected}; it was removed: run the command again"
    )]
    Content {
        /// The file in the repository.
        file: String,
        /// SHA-256, or the SHA-1 of a Git blob.
        algorithm: &'static str,
        /// What arrived.
        found: String,
        /// What should have.
        expected: String,
    },
    /// A repository without anything to fetch.
    #[error("{id} holds nothing to fetch: {reason}")]
    Nothing {
        /// The repository.
        id: String,
        /// What it holds instead.
        reason: String,
    },
    /// The cache cannot be written.
    #[error(transparent)]
    File(#[from] files::Error),
    /// The cache cannot be read.
    #[error(transparent)]
    Read(#[from] assets::Error),
    /// The work was asked to stop.
    #[error("stopped; what arrived so far is kept: run the command again to go on")]
    Stopped,
}

fn help(status: u16, with_token: bool) -> &'static str {
    match (status, with_token) {
        (401 | 403, false) => {
            " (unauthorized): for a private or gated model, put a token into HF_TOKEN or log in with `hf auth login`"
        }
        (401 | 403, true) => {
            " (unauthorized): the token does not give access; accept the model's licence on its page, or use another \
             token"
        }
        (404, false) => " (not found): check id and revision; a private model needs a token in HF_TOKEN",
        (404, true) => " (not found): check id and revision, and that the token may see it",
        (429, _) => " (too many requests): wait a while and run the command again",
        _ => "",
    }
}
