//! The tool that a configuration is for, recognised by keys that only its configurations have.

use std::fmt;

use super::source::Node;

/// A tool whose configurations are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// Axolotl.
    Axolotl,
    /// LLaMA-Factory.
    LlamaFactory,
    /// The configurations of TRL's trainers, `ModelConfig` and script arguments, as TRL and Unsloth take them.
    Trl,
    /// torchtune.
    Torchtune,
}

impl Tool {
    /// All of them.
    pub const ALL: [Tool; 4] = [Tool::Axolotl, Tool::LlamaFactory, Tool::Trl, Tool::Torchtune];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Tool::Axolotl => "axolotl",
            Tool::LlamaFactory => "llama-factory",
            Tool::Trl => "trl",
            Tool::Torchtune => "torchtune",
        }
    }

    /// Keys that only this tool's configurations have.
    fn own_keys(self) -> &'static [&'static str] {
        match self {
            Tool::Axolotl => &[
                "base_model",
                "sequence_len",
                "sample_packing",
                "lora_target_linear",
                "val_set_size",
                "evals_per_epoch",
                "saves_per_epoch",
                "dataset_prepared_path",
                "micro_batch_size",
            ],
            Tool::LlamaFactory => &[
                "finetuning_type",
                "stage",
                "cutoff_len",
                "lora_target",
                "lora_rank",
                "quantization_bit",
                "dataset_dir",
                "neat_packing",
                "val_size",
                "pref_beta",
                "pref_loss",
            ],
            Tool::Trl => &[
                "use_peft",
                "dataset_name",
                "max_length",
                "max_seq_length",
                "assistant_only_loss",
                "completion_only_loss",
                "dataset_text_field",
                "model_name",
                "random_state",
                "max_prompt_length",
                "max_completion_length",
                "precompute_ref_log_probs",
                "loss_type",
                "desirable_weight",
                "undesirable_weight",
            ],
            Tool::Torchtune => &[COMPONENT],
        }
    }
}

/// What torchtune calls the class that a table is for.
pub(super) const COMPONENT: &str = "_component_";

/// Why the tool cannot be recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unclear {
    /// Tools that it may be for, each with the keys that say so.
    candidates: Vec<(Tool, Vec<&'static str>)>,
    is_mlx: bool,
}

impl fmt::Display for Unclear {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = Tool::ALL.iter().map(|tool| tool.name()).collect();
        if self.is_mlx {
            return write!(
                formatter,
                "this is a configuration of mlx-lm, which `tune import` does not read; it reads those of {}",
                names.join(", ")
            );
        }
        if self.candidates.is_empty() {
            return write!(
                formatter,
                "no key says which tool this configuration is for; name the tool: `--from {}`",
                names.join("|")
            );
        }
        let listed =
            self.candidates.iter().map(|(tool, keys)| format!("{} (`{}`)", tool.name(), keys.join("`, `")));
        let listed: Vec<String> = listed.collect();
        write!(
            formatter,
            "it may be for {}; name the tool: `--from {}`",
            listed.join(" or "),
            self.candidates.iter().map(|(tool, _)| tool.name()).collect::<Vec<_>>().join("|")
        )
    }
}

/// The one tool that a configuration can be for.
pub(super) fn detect(root: &Node) -> Result<Tool, Unclear> {
    // Keys of mlx-lm's `lora_config.yaml`, some others of which TRL has too.
    if ["fine_tune_type", "iters", "steps_per_eval"].iter().any(|key| root.get(key).is_some()) {
        return Err(Unclear { candidates: Vec::new(), is_mlx: true });
    }
    // Only these two put their keys into tables.
    let is_nested = |tool| matches!(tool, Tool::Trl | Tool::Torchtune);
    let has = |tool, key: &str| {
        let within = || root.entries().iter().any(|(_, node)| node.get(key).is_some());
        root.get(key).is_some() || is_nested(tool) && within()
    };
    let candidates: Vec<(Tool, Vec<&str>)> = Tool::ALL
        .into_iter()
        .map(|tool| (tool, tool.own_keys().iter().copied().filter(|key| has(tool, key)).collect::<Vec<_>>()))
        .filter(|(_, keys)| !keys.is_empty())
        .collect();
    match candidates.as_slice() {
        [(tool, _)] => Ok(*tool),
        _ => Err(Unclear { candidates, is_mlx: false }),
    }
}
