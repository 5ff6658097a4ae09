//! A diagnostic as it is shown: the spaces in its backticks are unbreakable, so that commands are not broken.

use std::fmt;

use miette::{Diagnostic, LabeledSpan, Severity, SourceCode};

use super::style::unbreakable;

/// A diagnostic with the texts of another one, and its excerpts.
pub(super) struct Shown<'a> {
    of: &'a dyn Diagnostic,
    message: String,
    help: Option<String>,
    related: Vec<Shown<'a>>,
}

impl<'a> Shown<'a> {
    pub(super) fn of(of: &'a dyn Diagnostic) -> Self {
        Self {
            of,
            message: unbreakable(&of.to_string()),
            help: of.help().map(|help| unbreakable(&help.to_string())),
            related: of.related().into_iter().flatten().map(Shown::of).collect(),
        }
    }
}

impl fmt::Debug for Shown<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Shown<'_> {}

impl Diagnostic for Shown<'_> {
    fn code<'b>(&'b self) -> Option<Box<dyn fmt::Display + 'b>> {
        self.of.code()
    }

    fn severity(&self) -> Option<Severity> {
        self.of.severity()
    }

    fn help<'b>(&'b self) -> Option<Box<dyn fmt::Display + 'b>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.of.source_code()
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        self.of.labels()
    }

    fn related<'b>(&'b self) -> Option<Box<dyn Iterator<Item = &'b dyn Diagnostic> + 'b>> {
        match self.related.is_empty() {
            true => None,
            false => Some(Box::new(self.related.iter().map(|one| one as &dyn Diagnostic))),
        }
    }
}
