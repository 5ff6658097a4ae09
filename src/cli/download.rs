//! `tune download`.

use clap::Args;
use serde_json::json;

use super::console::Console;
use super::environment::{Context, hub_endpoint, hub_token, is_offline};
use super::exit::Exit;
use super::failure::Failure;
use super::lines::line;
use super::style::{GOOD, STRONG, paint};
use crate::hub::{self, Content, Error, Request};
use crate::units::Bytes;

/// Arguments of `tune download`.
#[derive(Debug, Args)]
pub struct DownloadArguments {
    /// Download a dataset: its Parquet, JSON and CSV files
    #[arg(long)]
    pub dataset: bool,
    /// With --dataset: only this configuration (subset) [default: all]
    #[arg(long, value_name = "NAME", requires = "dataset")]
    pub config: Option<String>,
    /// With --dataset: only this split [default: all]
    #[arg(long, value_name = "NAME", requires = "dataset")]
    pub split: Option<String>,
    /// A hub id, with an optional branch, tag or commit: `organization/name@revision`
    #[arg(value_name = "ID[@REVISION]")]
    pub model: String,
    /// Number of files to download at the same time
    #[arg(long, value_name = "COUNT", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub parallel: u8,
}

/// Downloads a model or a dataset into the Hugging Face cache.
pub(super) fn download(
    arguments: &DownloadArguments,
    context: &Context<'_>,
    console: &mut Console<'_>,
) -> Result<Exit, Failure> {
    if is_offline() {
        console.error("offline mode is on: HF_HUB_OFFLINE is set", Some("unset HF_HUB_OFFLINE to download"));
        return Ok(Exit::Recipe);
    }
    let mut request = match Request::new(&arguments.model, &hub_endpoint(), hub_token()) {
        Ok(request) => request,
        Err(error) => {
            console.error(&error.to_string(), None);
            return Ok(Exit::Recipe);
        }
    };
    request.parallel = usize::from(arguments.parallel);
    if arguments.dataset {
        request.content =
            Content::Dataset { config: arguments.config.clone(), split: arguments.split.clone() };
    }
    let mut show = |event: hub::Progress| {
        let name = match (event.weights, arguments.dataset) {
            (false, _) => "text",
            (true, false) => "weights",
            (true, true) => "rows",
        };
        console.bytes(name, event.done, event.total);
    };
    let environment = &context.environment;
    let outcome = hub::download(&request, environment.hub_cache, &mut show, environment.stop);
    console.quiet();
    match outcome {
        Ok(found) => {
            let about =
                format!("{} at {} ({} files, {})", request.id, found.commit, found.files, Bytes(found.bytes));
            console.event(
                "result",
                &json!({
                    "id": request.id,
                    "commit": found.commit,
                    "folder": found.folder.display().to_string(),
                    "files": found.files,
                    "bytes": found.bytes,
                }),
            );
            let out = console.out();
            line(out, if arguments.dataset { "dataset" } else { "model" }, &about)?;
            line(out, "folder", &paint(GOOD, found.folder.display()))?;
            let revision = match request.revision.as_str() {
                "main" => String::new(),
                revision => format!("\nrevision = \"{revision}\""),
            };
            let table = match &request.content {
                Content::Model => format!("[model]\nbase = \"{}\"{revision}", request.id),
                Content::Dataset { config, split } => {
                    let key = |name: &str, value: &Option<String>| {
                        value.as_ref().map_or_else(String::new, |value| format!("\n{name} = \"{value}\""))
                    };
                    let choice = key("hub_config", config) + &key("hub_split", split);
                    format!("[[dataset]]\npath = \"{}\"{choice}\nformat = \"messages\"", request.id)
                }
            };
            writeln!(out, "\nNext, in a recipe:\n{}", paint(STRONG, table))?;
            Ok(Exit::Done)
        }
        Err(error) => {
            console.error(&error.to_string(), None);
            Ok(match error {
                Error::Stopped => context.signals.exit(),
                Error::Request(_) => Exit::Recipe,
                Error::File(_) => Exit::Resources,
                _ => Exit::Other,
            })
        }
    }
}
