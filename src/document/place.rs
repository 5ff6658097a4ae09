//! Places: a named text, and a range of bytes in it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use miette::NamedSource;

/// A text that values came from: the recipe file, or one `--set` of the command line.
pub struct Source {
    order: usize,
    text: NamedSource<String>,
}

impl Source {
    /// A text and its name for messages. `order` sorts the problems of several sources.
    pub fn new(order: usize, name: &str, text: String) -> Arc<Self> {
        Arc::new(Self { order, text: NamedSource::new(name, text) })
    }

    /// Its name for messages.
    pub fn name(&self) -> &str {
        self.text.name()
    }

    /// The whole text.
    pub fn text(&self) -> &str {
        self.text.inner()
    }

    /// The text with its name, as miette prints it.
    pub(super) fn named(&self) -> &NamedSource<String> {
        &self.text
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Source({:?})", self.name())
    }
}

/// A range of bytes in a [`Source`].
#[derive(Clone)]
pub struct Place {
    source: Arc<Source>,
    span: Range<usize>,
}

impl Place {
    /// The bytes `span` of `source`, clamped to what the text has and widened to whole characters.
    pub fn new(source: &Arc<Source>, span: Range<usize>) -> Self {
        let text = source.text();
        let mut start = span.start.min(text.len());
        while !text.is_char_boundary(start) {
            start -= 1;
        }
        let mut end = span.end.clamp(start, text.len());
        while !text.is_char_boundary(end) {
            end += 1;
        }
        Self { source: Arc::clone(source), span: start..end }
    }

    /// Just after the last thing written in `source`.
    pub fn end_of(source: &Arc<Source>) -> Self {
        let end = source.text().trim_end().len();
        Self::new(source, end..end)
    }

    /// The text that this place is in.
    pub fn source(&self) -> &Arc<Source> {
        &self.source
    }

    /// The bytes of that text.
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// The text at this place.
    pub fn text(&self) -> &str {
        self.source.text().get(self.span()).unwrap_or_default()
    }

    /// Line of the first byte, counted from 1.
    pub fn line(&self) -> usize {
        1 + self.source.text().bytes().take(self.span.start).filter(|&byte| byte == b'\n').count()
    }

    /// Column of the first byte, counted in characters from 1.
    pub fn column(&self) -> usize {
        position(self.source.text(), self.span.start).1
    }

    /// Line and column just behind the last byte, each counted from 1.
    pub fn end(&self) -> (usize, usize) {
        position(self.source.text(), self.span.end)
    }

    /// Sorts places: by source, then by where they start.
    pub(super) fn order(&self) -> (usize, usize, usize) {
        (self.source.order, self.span.start, self.span.end)
    }

    /// Whether both lie in one text.
    pub(super) fn same_source(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.source, &other.source)
    }
}

/// Line and column of a byte, each counted from 1; columns in characters.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.rsplit_once('\n').map_or(before, |(_, line)| line);
    (1 + before.matches('\n').count(), 1 + line.chars().count())
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.same_source(other) && self.span == other.span
    }
}

impl Eq for Place {}

impl fmt::Debug for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{:?}", self.source.name(), self.span)
    }
}
