//! Writing values back as TOML, in one canonical spelling, so that the text can be parsed again and hashed.
//!
//! Numbers are written as the shortest text that reads back to the same value; strings always in `"…"`.
//! The spelling is this module's own and must not change: recipe hashes are made from it.

use std::fmt::Write;

/// Builds a document table by table.
///
/// A key is written with [`key`](Self::key) when it can change the result of a run and with
/// [`bookkeeping`](Self::bookkeeping) when it cannot; a writer made for hashing leaves the second kind out.
#[derive(Debug)]
pub struct Writer {
    text: String,
    with_bookkeeping: bool,
    in_bookkeeping_table: bool,
}

impl Writer {
    /// Writes everything.
    pub fn everything() -> Self {
        Self { text: String::new(), with_bookkeeping: true, in_bookkeeping_table: false }
    }

    /// Writes only what can change the result of a run.
    pub fn essentials() -> Self {
        Self { text: String::new(), with_bookkeeping: false, in_bookkeeping_table: false }
    }

    /// Begins `[path]`.
    pub fn table(&mut self, path: &str) {
        self.header(&format!("[{path}]"), false);
    }

    /// Begins one `[[path]]`.
    pub fn repeated_table(&mut self, path: &str) {
        self.header(&format!("[[{path}]]"), false);
    }

    /// Begins `[path]`, nothing in which can change the result of a run.
    pub fn bookkeeping_table(&mut self, path: &str) {
        self.header(&format!("[{path}]"), true);
    }

    /// Writes `key = value`.
    pub fn key(&mut self, key: &str, value: impl Written) {
        if self.with_bookkeeping || !self.in_bookkeeping_table {
            let _infallible = writeln!(self.text, "{key} = {}", value.written());
        }
    }

    /// Writes `key = value` when there is a value.
    pub fn optional(&mut self, key: &str, value: Option<impl Written>) {
        if let Some(value) = value {
            self.key(key, value);
        }
    }

    /// Writes `key = value`, which cannot change the result of a run.
    pub fn bookkeeping(&mut self, key: &str, value: impl Written) {
        if self.with_bookkeeping {
            self.key(key, value);
        }
    }

    /// The text.
    pub fn finish(self) -> String {
        self.text
    }

    fn header(&mut self, header: &str, is_bookkeeping: bool) {
        self.in_bookkeeping_table = is_bookkeeping;
        if self.with_bookkeeping || !is_bookkeeping {
            let gap = if self.text.is_empty() { "" } else { "\n" };
            let _infallible = writeln!(self.text, "{gap}{header}");
        }
    }
}

/// What can stand behind an `=`.
pub trait Written {
    /// Its TOML.
    fn written(&self) -> String;
}

impl<T: Written + ?Sized> Written for &T {
    fn written(&self) -> String {
        (**self).written()
    }
}

impl Written for str {
    fn written(&self) -> String {
        let mut text = String::with_capacity(self.len() + 2);
        text.push('"');
        for character in self.chars() {
            match character {
                '"' => text.push_str("\\\""),
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\t' => text.push_str("\\t"),
                '\r' => text.push_str("\\r"),
                control if control.is_control() => {
                    let _infallible = write!(text, "\\u{:04X}", u32::from(control));
                }
                other => text.push(other),
            }
        }
        text.push('"');
        text
    }
}

impl Written for String {
    fn written(&self) -> String {
        self.as_str().written()
    }
}

impl Written for std::path::Path {
    /// A recipe's paths come from TOML, so they are always text.
    fn written(&self) -> String {
        self.to_string_lossy().as_ref().written()
    }
}

impl Written for std::path::PathBuf {
    fn written(&self) -> String {
        self.as_path().written()
    }
}

impl Written for bool {
    fn written(&self) -> String {
        self.to_string()
    }
}

impl Written for f64 {
    fn written(&self) -> String {
        format!("{self:?}")
    }
}

impl Written for usize {
    fn written(&self) -> String {
        self.to_string()
    }
}

impl Written for u64 {
    fn written(&self) -> String {
        self.to_string()
    }
}

impl Written for u32 {
    fn written(&self) -> String {
        self.to_string()
    }
}

impl<T: Written> Written for [T] {
    fn written(&self) -> String {
        format!("[{}]", self.iter().map(Written::written).collect::<Vec<_>>().join(", "))
    }
}

impl<T: Written> Written for Vec<T> {
    fn written(&self) -> String {
        self.as_slice().written()
    }
}

/// An inline table.
impl<T: Written> Written for [(String, T)] {
    fn written(&self) -> String {
        let bare = |key: &str| {
            !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
        };
        let pairs = self.iter().map(|(key, value)| {
            let key = if bare(key) { key.clone() } else { key.written() };
            format!("{key} = {}", value.written())
        });
        let pairs = pairs.collect::<Vec<_>>().join(", ");
        if pairs.is_empty() { "{}".into() } else { format!("{{ {pairs} }}") }
    }
}
