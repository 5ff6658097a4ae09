//! The `[sample]` table of a recipe, as a typed value.

use crate::document::{TableReader, Writer, integer, list, number, text};

/// Prompts answered before and after training, to see what it changed.
///
/// A prompt is put to the model as the first training dataset's format puts its own: as a user turn, an
/// Alpaca instruction, or the plain beginning of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// The prompts, in the order they are answered.
    pub prompts: Vec<String>,
    /// Longest answer, in tokens.
    pub max_new_tokens: usize,
    /// Divides the logits before sampling; 0: always the likeliest token.
    pub temperature: f64,
    /// Seeds the sampling.
    pub seed: u64,
}

impl Default for Spec {
    fn default() -> Self {
        Self { prompts: Vec::new(), max_new_tokens: 64, temperature: 0.0, seed: 42 }
    }
}

impl Spec {
    /// Reads the `[sample]` table; left out, nothing is asked.
    pub fn read(table: &mut TableReader<'_, '_>) -> Self {
        let default = Self::default();
        Self {
            prompts: table.key("prompts", list(text)).or(default.prompts),
            max_new_tokens: table.key("max_new_tokens", integer(1..=1_048_576)).or(default.max_new_tokens),
            temperature: table.key("temperature", number(0.0..=100.0)).or(default.temperature),
            seed: table.key("seed", integer(0..=i64::MAX as u64)).or(default.seed),
        }
    }

    /// Writes the table with every value. Asking changes no weight, so all of it is bookkeeping.
    pub fn write(&self, writer: &mut Writer) {
        writer.bookkeeping_table("sample");
        writer.key("prompts", &self.prompts);
        writer.key("max_new_tokens", self.max_new_tokens);
        writer.key("temperature", self.temperature);
        writer.key("seed", self.seed);
    }
}
