//! Objectives over answers that are compared or judged: which one a configuration trains, and its keys. The tools take their
//! losses from TRL and name them alike.

use super::draft::{Draft, Kind, NotTrained, Settings};
use super::source::{Node, Value};

/// An objective of ours over answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    Dpo,
    Orpo,
    SimPo,
    Kto,
}

/// How an objective is named, for messages.
pub(super) const SUPPORTED: &str = "supervised fine-tuning, DPO (ipo, hinge and robust with it), ORPO, SimPO and KTO have a \
                                    recipe";

impl Goal {
    /// By the name of a method, or of TRL's class for its settings.
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "dpo" | "ipo" => Some(Self::Dpo),
            "orpo" => Some(Self::Orpo),
            "simpo" => Some(Self::SimPo),
            "kto" => Some(Self::Kto),
            _ => None,
        }
    }

    fn table(self) -> &'static str {
        match self {
            Self::Dpo => "objective.dpo",
            Self::Orpo => "objective.orpo",
            Self::SimPo => "objective.simpo",
            Self::Kto => "objective.kto",
        }
    }

    /// The format of its rows.
    pub(super) fn format(self) -> &'static str {
        match self {
            Self::Kto => "feedback",
            Self::Dpo | Self::Orpo | Self::SimPo => "preference",
        }
    }

    /// Adds its table.
    pub(super) fn begin(self, draft: &mut Draft) {
        draft.table(self.table());
    }

    /// TRL's values of keys that the configuration has left out, where ours differ.
    pub(super) fn end(self, draft: &mut Draft) {
        if self == Self::SimPo {
            draft.set("objective.simpo.beta", 0.1);
            draft.set("objective.simpo.gamma", 0.5);
        }
    }

    /// Moves a setting to a key of the objective.
    pub(super) fn carry(self, key: &str, node: &Node, ours: &str, draft: &mut Draft) {
        draft.carry_as(key, node, &format!("{}.{ours}", self.table()));
    }

    /// Moves settings that are named in pairs with keys of ours. Those of other objectives are noted.
    pub(super) fn carry_all(
        self,
        settings: &mut Settings<'_>,
        keys: &[(Goal, &'static str, &'static str)],
        draft: &mut Draft,
    ) {
        for (goal, theirs, ours) in keys {
            if *goal == self
                && let Some(node) = settings.take(theirs)
            {
                self.carry(&settings.name(theirs), node, ours, draft);
            }
        }
        for (_, theirs, _) in keys {
            if let Some(node) = settings.take(theirs) {
                draft.left(&settings.name(theirs), node, "it belongs to another objective");
            }
        }
    }

    /// Chooses the loss by the name that the tools have for it; `weights` are those of several losses together, of which TRL's
    /// `sft` is the likelihood of the chosen answers.
    ///
    /// # Errors
    /// A loss that is not ours.
    pub(super) fn loss(
        self,
        key: &str,
        node: &Node,
        weights: Option<&Node>,
        draft: &mut Draft,
    ) -> Result<(), NotTrained> {
        let names = node.texts().unwrap_or_default();
        let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
        let weight = |at: usize| match weights.map(|weights| &weights.value) {
            Some(Value::List(weights)) => weights.get(at).and_then(Node::number),
            _ => Some(1.0),
        };
        if let (Self::Dpo, [_, "sft"], Some(1.0), Some(likelihood)) = (self, &names[..], weight(0), weight(1))
        {
            draft.set("objective.dpo.rpo_alpha", likelihood);
            let text = "the likelihood of chosen answers is a mean over the tokens of each pair here, and over those of a \
                        micro-batch there";
            draft.note(Kind::Changed, key, node, text);
            names.pop();
        } else if let Some(weights) = weights.filter(|_| weight(0) != Some(1.0) || names.len() != 1) {
            let reason = format!("`{key}` is `{node}` with weights of {weights}, and a recipe has one loss");
            return Err(NotTrained { line: node.line, reason });
        }
        let [name] = names[..] else {
            let reason = format!("`{key}` is `{node}`, and a recipe has one loss");
            return Err(NotTrained { line: node.line, reason });
        };
        match (self, name) {
            (Self::Dpo, "sigmoid" | "ipo" | "hinge" | "robust") => {
                draft.set("objective.dpo.loss", name);
            }
            (Self::Dpo, "sigmoid_norm") => draft.set("objective.dpo.length_normalized", true),
            (Self::Kto, "kto") | (Self::SimPo, "simpo") | (Self::Orpo, "orpo") => {}
            (Self::Kto, "apo_zero_unpaired") => draft.set("objective.kto.loss", "apo-zero-unpaired"),
            _ => {
                let reason = format!("`{key}` is `{node}`, and {SUPPORTED}");
                return Err(NotTrained { line: node.line, reason });
            }
        }
        Ok(())
    }

    /// The weight that CPO and SimPO of TRL give to the likelihood of chosen answers, 1 where nothing is said.
    pub(super) fn likelihood(self, settings: &mut Settings<'_>, draft: &mut Draft) {
        let node = settings.take("cpo_alpha");
        if self != Self::SimPo || node.is_some_and(|node| node.number() == Some(0.0)) {
            if let Some(node) = node.filter(|_| self != Self::SimPo) {
                draft.left("cpo_alpha", node, "it belongs to another objective");
            }
            return;
        }
        let text = "TRL's SimPO adds the likelihood of chosen answers unless `cpo_alpha` is 0; here SimPO is the paper's, \
                    without it";
        match node {
            Some(node) => draft.note(Kind::Changed, "cpo_alpha", node, text),
            None => draft.remark(Kind::Changed, "cpo_alpha", text),
        }
    }
}

/// Settings of losses and references that have no counterpart, with the reason. Those that change nothing need no note.
pub(super) fn others(settings: &mut Settings<'_>, draft: &mut Draft) {
    let unchanged = |node: &Node| match &node.value {
        Value::Truth(truth) => !truth,
        Value::Text(text) => matches!(text.as_str(), "reverse_kl" | "false"),
        _ => false,
    };
    for (keys, reason) in [
        (
            &["max_prompt_length", "max_completion_length", "max_target_length"][..],
            "`data.max_seq_len` bounds prompt and answer together",
        ),
        (
            &[
                "reference_free",
                "precompute_ref_log_probs",
                "precompute_ref_batch_size",
                "ref_model",
                "ref_model_adapters",
                "ref_model_quantization_bit",
                "ref_model_init_kwargs",
                "model_adapter_name",
                "ref_adapter_name",
                "force_use_ref_model",
                "sync_ref_model",
                "ref_model_sync_steps",
                "ref_model_mixup_alpha",
            ][..],
            "the reference is the base with the adapter as the run began, computed beside every step",
        ),
        (&["f_divergence_type", "f_alpha_divergence_coef"][..], "the divergence is the reverse KL"),
        (
            &["padding_free", "dpo_padding_free", "padding_value", "label_pad_token_id"][..],
            "nothing is padded",
        ),
        (
            &["use_logits_to_keep", "dpo_use_logits_to_keep", "use_liger_kernel", "dpo_use_liger_kernel"][..],
            "logits are computed for the answers alone, some rows at a time",
        ),
        (
            &["generate_during_eval", "dpo_generate_during_eval"][..],
            "`[sample]` asks prompts before and after",
        ),
    ] {
        for key in keys {
            if let Some(node) = settings.take(key).filter(|node| !unchanged(node)) {
                draft.left(key, node, reason);
            }
        }
    }
}
