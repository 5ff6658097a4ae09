//! Errors of a download. No message contains the token.

use crate::{assets, files};

/// Why a download failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An invalid id, revision or endpoint.
    #[error("{0}")]
    Request(String),
    /// The hub answered with an error.
    #[error("{url}: the hub answers {status}{}", help(*status, *with_token))]
    Status {
        /// The address, without its query.
        url: String,
        /// The status code.
        status: u16,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// The connection failed repeatedly.
    #[error(
        "{url}: {reason} ({attempts} attempts without progress); run the command again to continue the download"
    )]
    Connection {
        /// The address, without its query.
        url: String,
        /// The last failure.
        reason: String,
        /// Number of attempts.
        attempts: u32,
    },
    /// An invalid answer.
    #[error("{url}: {reason}")]
    Answer {
        /// The address, without its query.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// A redirect that is not allowed.
    #[error("{url} redirects to {to}, which is refused: {reason}")]
    Redirect {
        /// Where from.
        url: String,
        /// Where to, without its query.
        to: String,
        /// Why it is not followed.
        reason: &'static str,
    },
    /// The content of a file does not match the hub's checksum.
    #[error(
        "{file} is damaged: its {algorithm} is {found}, expected {expected}; the file was removed. Run the command again"
    )]
    Content {
        /// The file in the repository.
        file: String,
        /// SHA-256, or the SHA-1 of a Git blob.
        algorithm: &'static str,
        /// The hash of the received file.
        found: String,
        /// The hub's hash.
        expected: String,
    },
    /// A repository without a usable model.
    #[error("{id} contains no model that tune can use: {reason}")]
    Nothing {
        /// The repository.
        id: String,
        /// The reason.
        reason: String,
    },
    /// The cache cannot be written.
    #[error(transparent)]
    File(#[from] files::Error),
    /// The cache cannot be read.
    #[error(transparent)]
    Read(#[from] assets::Error),
    /// A signal stopped the download.
    #[error("stopped; run the command again to continue the download")]
    Stopped,
}

fn help(status: u16, with_token: bool) -> &'static str {
    match (status, with_token) {
        // The hub answers so for ids that do not exist, too.
        (401 | 403, false) => {
            " (unauthorized): check the id for misspellings; a private or gated model needs a token (set HF_TOKEN, or log \
             in with `hf auth login`)"
        }
        (401 | 403, true) => {
            " (unauthorized): the token does not give access; accept the model's licence on its page, or use another \
             token"
        }
        (404, false) => " (not found): check id and revision; a private model needs a token in HF_TOKEN",
        (404, true) => " (not found): check id and revision, and that the token has access",
        (429, _) => " (too many requests): wait some minutes, then run the command again",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::help;

    #[test]
    fn unauthorized_without_a_token_may_be_a_misspelt_id() {
        let text = help(401, false);
        assert!(text.contains("check the id") && text.contains("HF_TOKEN"), "{text}");
        assert!(!help(401, true).contains("HF_TOKEN"));
    }
}
