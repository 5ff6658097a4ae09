//! `tune ls` and `tune cp`.

use std::io::{self, Write};

use super::args::CopyArguments;
use super::exit::Exit;
use super::report;
use super::style::{FAINT, STRONG, paint};
use crate::bundled::{self, BUNDLES, CopyError};
use crate::units::Bytes;

/// Lists the bundled recipes.
pub(super) fn ls(out: &mut impl Write) -> io::Result<Exit> {
    let width = BUNDLES.iter().map(|bundle| bundle.name.len()).max().unwrap_or(0);
    for bundle in BUNDLES {
        let size: u64 = bundle.files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        let carried = match size {
            0 => String::new(),
            _ => paint(FAINT, format!(" (with model and data, {})", Bytes(size))),
        };
        let name = paint(STRONG, format!("{:width$}", bundle.name));
        writeln!(out, "{name}  {}{carried}", bundle.summary())?;
    }
    Ok(Exit::Done)
}

/// Copies a bundled recipe out.
pub(super) fn cp(arguments: &CopyArguments, out: &mut impl Write) -> io::Result<Exit> {
    let Some(bundle) = bundled::find(&arguments.name) else {
        let names: Vec<&str> = BUNDLES.iter().map(|bundle| bundle.name).collect();
        report::error(
            &format!("there is no bundled recipe `{}`", arguments.name),
            Some(&format!("the bundled recipes are: {}", names.join(", "))),
        );
        return Ok(Exit::Recipe);
    };
    let folder = &arguments.folder;
    match bundled::copy(bundle, folder) {
        Ok(written) => {
            for path in &written {
                writeln!(out, "{}", path.display())?;
            }
            let change = match folder.as_os_str() {
                folder if folder == "." => String::new(),
                folder => format!("cd {} && ", folder.display()),
            };
            writeln!(out, "\nNext: {}", paint(STRONG, format!("{change}tune run {}", bundle.file_name())))?;
            Ok(Exit::Done)
        }
        Err(error @ CopyError::Exists(_)) => {
            report::error(&error.to_string(), None);
            Ok(Exit::Recipe)
        }
        Err(error @ CopyError::Io { .. }) => {
            report::error(&error.to_string(), None);
            Ok(Exit::Resources)
        }
    }
}
