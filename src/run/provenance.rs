//! Where an adapter comes from, as safetensors metadata: what a run was made of, and nothing of how it went by.
//!
//! Two runs of one recipe on one machine write the same bytes, so there is no date, path, speed or host here, and no
//! trace of an interruption.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::assets::FileDigest;
use crate::recipe::Recipe;
use crate::train::fit::Summary;

/// Prefix of every key.
const PREFIX: &str = "tune.";

/// The facts of a finished run.
pub(super) struct Provenance<'a> {
    /// The recipe.
    pub recipe: &'a Recipe,
    /// The base model's files, those of its tokenizer included.
    pub base: &'a [FileDigest],
    /// The base model's family.
    pub family: &'a str,
    /// The chat template, where one was used.
    pub template: Option<&'a str>,
    /// One hash for each dataset, in the recipe's order.
    pub datasets: &'a [String],
    /// How the run went.
    pub summary: &'a Summary,
}

impl Provenance<'_> {
    /// Metadata keys and values.
    pub(super) fn metadata(&self) -> BTreeMap<String, String> {
        let mut metadata = BTreeMap::new();
        let mut put = |key: &str, value: String| metadata.insert(format!("{PREFIX}{key}"), value);
        put("version", env!("CARGO_PKG_VERSION").to_owned());
        put("recipe_sha256", self.recipe.sha256());
        put(
            "quantization",
            self.recipe.quantization.map_or_else(|| "none".to_owned(), |spec| spec.to_string()),
        );
        put("seed", self.recipe.seed.to_string());
        put("steps", self.summary.steps.to_string());
        put("tokens", self.summary.tokens.to_string());
        put("base_family", self.family.to_owned());
        for file in self.base {
            put(&format!("base_sha256.{}", file.name), file.sha256.clone());
        }
        for (index, sha256) in self.datasets.iter().enumerate() {
            put(&format!("dataset_sha256.{index}"), sha256.clone());
        }
        if let Some(template) = self.template {
            put("chat_template_sha256", sha256(template));
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

fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}
