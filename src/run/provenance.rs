//! The provenance of an adapter as safetensors metadata: the inputs of its run, and nothing that varies between runs.
//!
//! Two runs of one recipe on one machine write the same bytes, so there is no date, path, speed, host or interruption
//! here. Deviations from the recipe are recorded: `ended_by` names the budget that ended the run, `changes` lists the
//! changed inputs.

use std::collections::BTreeMap;

use crate::recipe::Recipe;
use crate::train::fit::Summary;
use crate::train::state::Ended;

/// Prefix of every key.
const PREFIX: &str = "tune.";
/// Key of the number of optimizer steps.
pub(super) const STEPS: &str = "tune.steps";

/// Key of the variables, as JSON, that the chat template got beside those of each conversation.
pub(super) const CHAT_TEMPLATE_KWARGS: &str = "tune.chat_template_kwargs";

/// Key of the budget that ended a run.
pub(super) const ENDED_BY: &str = "tune.ended_by";

/// The facts of a finished run.
pub(super) struct Provenance<'a> {
    /// The recipe.
    pub recipe: &'a Recipe,
    /// The base model's family.
    pub family: &'a str,
    /// Hashes of all inputs by name.
    pub inputs: &'a BTreeMap<String, String>,
    /// The state at the end of the run.
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
            self.recipe.quantization.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string),
        );
        put("seed", self.recipe.seed.to_string());
        if let Some(kwargs) = &self.recipe.data.chat_template_kwargs {
            put("chat_template_kwargs", serde_json::Value::from(kwargs.0.clone()).to_string());
        }
        let ignored = &self.recipe.model.ignore_config_keys;
        if !ignored.is_empty() {
            put("ignored_config_keys", serde_json::Value::from(ignored.clone()).to_string());
        }
        put("base_family", self.family.to_owned());
        let Summary { state, ended } = self.summary;
        put("steps", state.step.to_string());
        put("tokens", state.tokens.to_string());
        for (name, sha256) in self.inputs {
            put(name, sha256.clone());
        }
        if let Some(loss) = state.last_loss {
            put("loss", loss.to_string());
        }
        if let Some(evaluation) = &state.first_evaluation {
            put("eval_loss_before", evaluation.eval_loss.to_string());
        }
        if let Some(evaluation) = &state.last_evaluation {
            put("eval_loss", evaluation.eval_loss.to_string());
        }
        if let Ended::Budget(spent) = ended {
            put("ended_by", spent.key().to_owned());
        }
        if !state.origin.changes.is_empty() {
            put("changes", state.origin.changes.join("\n"));
        }
        metadata
    }
}
