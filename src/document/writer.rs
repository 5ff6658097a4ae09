//! Writing values back as TOML, in one canonical spelling, so that the text can be parsed again and hashed.
//!
//! Numbers are written as the shortest text that reads back to the same value; strings always in `"…"`.
//! The spelling must not change: recipe hashes are made from it.

use std::fmt::Write;

/// A document under way, table by table: whole, or its canonical text, which has only what can change the weights.
#[derive(Debug)]
pub struct Writer {
    text: String,
    is_canonical: bool,
}

impl Writer {
    /// A writer of everything.
    pub fn everything() -> Self {
        Self { text: String::new(), is_canonical: false }
    }

    /// A writer of the canonical text.
    pub fn canonical() -> Self {
        Self { text: String::new(), is_canonical: true }
    }

    /// Whether the text is the canonical one.
    pub(super) fn is_canonical(&self) -> bool {
        self.is_canonical
    }

    /// Adds a table: its header, if it has one, and its lines.
    pub(super) fn table(&mut self, header: &str, lines: &str) {
        if !header.is_empty() {
            let gap = if self.text.is_empty() { "" } else { "\n" };
            let _infallible = writeln!(self.text, "{gap}{header}");
        }
        self.text += lines;
    }

    /// The text.
    pub fn finish(self) -> String {
        self.text
    }
}

/// A type that can be written as a TOML value.
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

/// A value of JSON. TOML has no null: null members are left out, and null items are empty texts.
impl Written for serde_json::Value {
    fn written(&self) -> String {
        match self {
            Self::Null => "\"\"".to_owned(),
            Self::Bool(truth) => truth.written(),
            Self::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
                Some(float) => float.written(),
                None => number.to_string(),
            },
            Self::String(text) => text.written(),
            Self::Array(items) => items.written(),
            Self::Object(members) => {
                let members = members.iter().filter(|(_, member)| !member.is_null());
                let members: Vec<_> = members.map(|(name, member)| (name.clone(), member)).collect();
                members.as_slice().written()
            }
        }
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
