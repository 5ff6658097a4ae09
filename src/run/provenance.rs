//! Where an adapter comes from, as safetensors metadata: what a run was made of, and nothing of how it went by.
//!
//! Two runs of one recipe on one machine write the same bytes, so there is no date, path, speed or host here, and no
//! trace of an interruption.

use std::collections::BTreeMap;

use crate::recipe::Recipe;
use crate::record::Lock;
use crate::train::fit::Summary;

/// Prefix of every key.
const PREFIX: &str = "tune.";

/// The facts of a finished run.
pub(super) struct Provenance<'a> {
    /// The recipe.
    pub recipe: &'a Recipe,
    /// What the run was made of.
    pub lock: &'a Lock,
    /// How the run went.
    pub summary: &'a Summary,
}

impl Provenance<'_> {
    /// Metadata keys and values.
    pub(super) fn metadata(&self) -> BTreeMap<String, String> {
        let mut metadata = BTreeMap::new();
        let mut put = |key: &str, value: String| metadata.insert(format!("{PREFIX}{key}"), value);
        put("version", self.lock.tune.clone());
        put("recipe_sha256", self.lock.recipe_sha256.clone());
        put("seed", self.recipe.seed.to_string());
        put("steps", self.summary.steps.to_string());
        put("tokens", self.summary.tokens.to_string());
        for file in self.lock.base_file.iter().chain(&self.lock.tokenizer_file) {
            put(&format!("base_sha256.{}", file.name), file.sha256.clone());
        }
        for file in &self.lock.start_file {
            put(&format!("start_sha256.{}", file.name), file.sha256.clone());
        }
        for (index, dataset) in self.lock.dataset.iter().enumerate() {
            put(&format!("dataset_sha256.{index}"), dataset.sha256.clone());
        }
        if let Some(template) = &self.lock.chat_template {
            put("chat_template_sha256", template.sha256.clone());
        }
        if let Some(loss) = self.summary.last_loss {
            put("loss", loss.to_string());
        }
        if let Some(evaluation) = &self.summary.first_evaluation {
            put("eval_loss_before", evaluation.eval_loss.to_string());
        }
        if let Some(evaluation) = &self.summary.last_evaluation {
            put("eval_loss", evaluation.eval_loss.to_string());
        }
        metadata
    }
}
