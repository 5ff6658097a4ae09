//! What a merged model or a GGUF file keeps of what training gained: the rows it is measured on, and the result in words.

use std::io;
use std::path::Path;

use clap::Args;

use super::args::{BaseArguments, pair};
use super::console::Console;
use super::lines::{detail, line, warn};
use crate::data::spec::Format;
use crate::run::evaluate::dataset;
use crate::run::fidelity::{Fidelity, HeldOut};
use crate::run::inference::ModelChoice;
use crate::run::{Environment, Error};
use crate::units::Grouped;

/// Share of the gain of training from which on a loss of it is a warning.
const NOTABLE: f64 = 0.1;

/// How an adapter that was trained on 4-bit weights loses nothing to others.
pub(super) const ONTO_TRAINED: &str =
    "`--onto nf4` merges into the 4-bit weights that the adapter was trained on";

/// The warning where an adapter that was trained on 4-bit weights is merged into the full-precision ones; `how` is what
/// differs.
pub(super) fn other_weights(how: &str) -> String {
    format!(
        "the adapter was trained on 4-bit weights and is merged into the full-precision ones: {how}. {ONTO_TRAINED}"
    )
}

/// Rows that what is written is measured on.
#[derive(Debug, Args)]
pub struct RowsArguments {
    /// Skip the measurement on held-out rows: three passes over at most 2,048 tokens, slow for a large model on a CPU
    #[arg(long, conflicts_with = "data")]
    pub no_measure: bool,
    /// Measure what is written on these rows [default: the run's held-out rows, where there are any]
    #[arg(long, value_name = "PATH", requires = "format")]
    pub data: Option<String>,
    /// Record format of --data
    #[arg(long, value_enum, value_name = "FORMAT", requires = "data")]
    pub format: Option<Format>,
    /// Map a field of the format to another name: `--field completion=answer` (repeatable)
    #[arg(long, value_name = "OURS=THEIRS", requires = "data", value_parser = pair)]
    pub field: Vec<(String, String)>,
}

impl RowsArguments {
    /// Whether the run's held-out rows are the ones to measure on.
    pub(super) fn wants_run(&self) -> bool {
        self.data.is_none() && !self.no_measure
    }

    /// The rows for an adapter, or for a model alone; `None` where there are none, or nothing is to be measured.
    ///
    /// # Errors
    /// Those of `--data` cannot be used.
    pub(super) fn held_out(
        &self,
        (source, is_adapter): (&Path, bool),
        base: &BaseArguments,
        environment: &Environment<'_>,
    ) -> Result<Option<HeldOut>, Error> {
        if self.no_measure {
            return Ok(None);
        }
        let Some((data, format)) = self.data.as_deref().zip(self.format) else {
            return if is_adapter { HeldOut::of_run(source, environment) } else { Ok(None) };
        };
        let (named, name) = (base.choice(), source.to_string_lossy());
        let choice = ModelChoice {
            adapter: is_adapter.then_some(source),
            base: if is_adapter { named.base } else { Some(&name) },
            revision: named.revision,
            ..ModelChoice::default()
        };
        HeldOut::of_dataset(dataset(data, format, &self.field), choice, environment).map(Some)
    }
}

/// The result, where there is one. What was written stays where measuring it fails.
pub(super) fn measured(
    found: Option<Result<Fidelity, Error>>,
    console: &mut Console<'_>,
) -> io::Result<Option<Fidelity>> {
    match found.transpose() {
        Ok(found) => Ok(found),
        Err(error) => {
            warn(console, &format!("what is written is complete, and was not measured: {error}"))?;
            Ok(None)
        }
    }
}

/// Shows the result; `less` is how less would be lost, a sentence.
pub(super) fn show(found: &Fidelity, less: Option<&str>, console: &mut Console<'_>) -> io::Result<()> {
    let rows = Grouped(found.rows).of("row", "rows");
    let tokens = Grouped(found.supervised_tokens).of("supervised token", "supervised tokens");
    line(console.out(), "held out", &format!("{rows}, {tokens}: {}", found.origin))?;
    let Fidelity { base, written, .. } = found;
    let Some(trained) = found.trained else {
        return detail(console.out(), format!("loss {base:.4} as it was, {written:.4} in this file"));
    };
    detail(console.out(), format!("loss {base:.4} base, {trained:.4} as trained, {written:.4} here"))?;
    match found.lost() {
        None => detail(console.out(), "training gained too little on these rows to compare"),
        Some(lost) if lost < NOTABLE => {
            let kept = 100.0 * (1.0 - lost.max(0.0));
            detail(console.out(), format!("it keeps {kept:.0} % of what training gained"))
        }
        Some(lost) => {
            let (lost, less) = (100.0 * lost, less.map_or_else(String::new, |less| format!(". {less}")));
            warn(console, &format!("{lost:.0} % of what training gained on held-out rows is lost{less}"))
        }
    }
}
