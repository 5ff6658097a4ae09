//! Fetching a model from a hub into the Hugging Face cache: the only room that opens the network, and only `tune
//! download` enters it.
//!
//! | file | owns |
//! |---|---|
//! | `request` | what is asked for: id, revision, endpoint, token |
//! | `client` | HTTP: retries, and redirects that never carry the token to another host |
//! | `listing` | a repository's files, and which of them a model needs |
//! | `cache` | blobs, snapshots and refs, as the hub's own tools lay them out |
//! | `fetch` | one file: resumed, checked, whole or absent |
//! | `download` | all of them, several at a time |

mod cache;
mod client;
pub mod download;
pub mod error;
mod fetch;
mod listing;
mod request;

pub use download::{Downloaded, Progress, download};
pub use error::Error;
pub use request::{Patience, Request, Token};
