//! Downloads a model or a dataset from a hub into the Hugging Face cache. The only room that opens the network; only `tune download`
//! uses it.
//!
//! | file | owns |
//! |---|---|
//! | `request` | the request: id, revision, endpoint, token |
//! | `client` | HTTP: retries, and redirects that never carry the token to another host |
//! | `listing` | a repository's files, and which of them a model or a dataset needs |
//! | `cache` | blobs, snapshots and refs, in huggingface_hub's layout |
//! | `fetch` | one file: resumed, verified, complete or absent |
//! | `download` | all files, several at a time |

mod cache;
mod client;
pub mod download;
pub mod error;
mod fetch;
mod listing;
mod request;

pub use download::{Downloaded, Progress, download};
pub use error::Error;
pub use request::{Content, Patience, Request, Token};
