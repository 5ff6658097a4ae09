//! Problems: what is wrong, where, and the remedy; one, or all of a document.

use std::fmt;

use miette::{Diagnostic, LabeledSpan, Severity, SourceCode};

use super::Place;

/// One problem of a document, as a miette diagnostic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    code: &'static str,
    message: String,
    label: Note,
    others: Vec<Note>,
    elsewhere: Vec<Note>,
    help: Option<String>,
}

impl Problem {
    /// A problem at `place`. `code` names its kind (`recipe::unknown_key`), `message` says what is wrong.
    pub fn new(code: &'static str, place: Place, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            label: Note { place, text: "here".into() },
            others: Vec::new(),
            elsewhere: Vec::new(),
            help: None,
        }
    }

    /// A few words beside the underlined place.
    #[must_use]
    pub fn label(mut self, text: impl Into<String>) -> Self {
        self.label.text = text.into();
        self
    }

    /// A second place that belongs to the problem.
    #[must_use]
    pub fn also(mut self, place: Place, text: impl Into<String>) -> Self {
        let note = Note { text: text.into(), place };
        if note.place.same_source(&self.label.place) {
            self.others.push(note);
        } else {
            self.elsewhere.push(note);
        }
        self
    }

    /// Sets the remedy.
    #[must_use]
    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.help = Some(text.into());
        self
    }

    /// The code of its kind.
    pub fn kind(&self) -> &'static str {
        self.code
    }

    /// Its place.
    pub fn place(&self) -> &Place {
        &self.label.place
    }

    /// The remedy, if there is one.
    pub fn way_out(&self) -> Option<&str> {
        self.help.as_deref()
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

impl Diagnostic for Problem {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.code))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.label.source_code()
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let first =
            LabeledSpan::new_primary_with_span(Some(self.label.text.clone()), self.label.place.span());
        Some(Box::new(std::iter::once(first).chain(self.others.iter().map(Note::labelled))))
    }

    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        if self.elsewhere.is_empty() {
            return None;
        }
        Some(Box::new(self.elsewhere.iter().map(|note| note as &dyn Diagnostic)))
    }
}

/// A place with a few words: a label, or a diagnostic of its own if it is in another text.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Note {
    place: Place,
    text: String,
}

impl Note {
    fn labelled(&self) -> LabeledSpan {
        LabeledSpan::new_with_span(Some(self.text.clone()), self.place.span())
    }
}

impl fmt::Display for Note {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl std::error::Error for Note {}

impl Diagnostic for Note {
    fn severity(&self) -> Option<Severity> {
        Some(Severity::Advice)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(self.place.source().named())
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        Some(Box::new(std::iter::once(LabeledSpan::new_with_span(Some("here".into()), self.place.span()))))
    }
}

/// All problems of a document, in the order of their places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    name: String,
    problems: Vec<Problem>,
}

impl Problems {
    /// The problems of the document `name`, sorted by place and without repetitions.
    pub fn new(name: impl Into<String>, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| problem.place().order());
        problems.dedup();
        Self { name: name.into(), problems }
    }

    /// Their number.
    pub fn len(&self) -> usize {
        self.problems.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// The problems, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.len() {
            1 => write!(formatter, "one problem in {}", self.name),
            count => write!(formatter, "{count} problems in {}", self.name),
        }
    }
}

impl std::error::Error for Problems {}

impl Diagnostic for Problems {
    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        Some(Box::new(self.problems.iter().map(|problem| problem as &dyn Diagnostic)))
    }
}
