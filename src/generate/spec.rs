//! The `[sample]` table of a recipe: its keys, and their values as a [`Spec`].

use crate::document::{Key, KeyTable, Limits, TableReader, Writer, text};

/// Prompts that the model answers before and after training, and during it if `every` says so, to show what training changed.
///
/// A prompt takes the format of the first training dataset: a user turn, an Alpaca instruction, or the beginning of a
/// plain text.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// The prompts, in the order in which they are answered.
    pub prompts: Vec<String>,
    /// Longest answer, in tokens.
    pub max_new_tokens: usize,
    /// Divides the logits before sampling; 0: always the most likely token.
    pub temperature: f64,
    /// Seed of the sampling.
    pub seed: u64,
    /// Optimizer steps between two rounds of answers during training; `None`: before and after it alone.
    pub every: Option<u64>,
}

impl Default for Spec {
    fn default() -> Self {
        Self { prompts: Vec::new(), max_new_tokens: 64, temperature: 0.0, seed: 42, every: None }
    }
}

type K = Key<Spec>;

/// Sampling changes no weight.
pub(crate) static TABLE: KeyTable<Spec> = KeyTable {
    path: "sample",
    meaning: "Prompts that the model answers before and after training.",
    keys: &[
        K::list("prompts", text, |sample| &mut sample.prompts)
            .bookkeeping()
            .means("The prompts, as a user would write them.")
            .also(&["sample_prompts", "eval_prompts"]),
        K::count("max_new_tokens", 1..=1_048_576, |sample| &mut sample.max_new_tokens)
            .bookkeeping()
            .means("Longest answer, in tokens.")
            .also(&["max_tokens", "max_completion_length", "num_predict"]),
        K::number("temperature", Limits::from(0.0).to(100.0), |sample| &mut sample.temperature)
            .bookkeeping()
            .means("Randomness of the answers; 0 always takes the most likely token."),
        K::integer("seed", 0..=i64::MAX as u64, |sample| &mut sample.seed)
            .bookkeeping()
            .means("Seed of the sampling."),
        K::integer("every", 1..=1_000_000_000_000, |sample| &mut sample.every)
            .bookkeeping()
            .optional("before and after training alone")
            .means("Optimizer steps between two rounds of answers during training, kept in samples.jsonl.")
            .also(&["sample_every", "sample_steps"])
            .added(),
    ],
    ..KeyTable::NEW
};

impl Spec {
    /// Reads the `[sample]` table; absent, there are no prompts.
    pub fn read(table: &mut TableReader<'_, '_>) -> Self {
        TABLE.read(table)
    }

    /// Writes the table.
    pub fn write(&self, writer: &mut Writer) {
        TABLE.write(&mut self.clone(), writer);
    }
}
