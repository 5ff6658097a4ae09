//! `adapter_config.json`: the fields of PEFT's `LoraConfig`, written with sorted keys and read strictly.
//!
//! A field that changes the mathematics and is not understood is an error, never a default. Knows how PEFT
//! reads each field; refuses to know tensors.

use std::collections::BTreeMap;

use serde_json::{Map, Number, Value, json};

use super::patterns::{Pattern, first, portable, target_names};
use crate::adapter::projection::Module;
use crate::adapter::saved::SavedKind;
use crate::adapter::spec::{Spec, TargetModules};
use crate::adapter::target::{Target, full_match, names_module, scaling};

/// The configuration of an adapter folder.
#[derive(Clone, Debug)]
pub struct Config {
    /// `base_model_name_or_path`: reported, never enforced.
    pub base_model: Option<String>,
    /// `revision` of the base.
    pub revision: Option<String>,
    /// `r`: the rank where no pattern matches.
    pub rank: usize,
    /// `lora_alpha`: the alpha where no pattern matches.
    pub alpha: f64,
    /// `lora_dropout`.
    pub dropout: f64,
    /// `use_rslora`.
    pub use_rslora: bool,
    /// `use_dora`.
    pub use_dora: bool,
    /// `modules_to_save`: names of modules that are trained whole.
    pub modules_to_save: Vec<String>,
    /// `ensure_weight_tying`: output head and embeddings are one table.
    pub ties_tables: bool,
    /// `target_modules`.
    pub target_modules: TargetModules,
    /// `target_parameters`: names of parameters that are no linear modules of their own.
    pub target_parameters: Vec<String>,
    /// `rank_pattern`, in file order.
    rank_pattern: Vec<Pattern<usize>>,
    /// `alpha_pattern`, in file order.
    alpha_pattern: Vec<Pattern<f64>>,
    /// `layers_to_transform` or `exclude_modules` narrows the targets further.
    narrowed: bool,
}

impl Config {
    /// The configuration of a trained adapter.
    ///
    /// PEFT, and tools that rewrite the file with sorted keys, read the same modules, ranks and alphas from it: targets
    /// become names (last components where those mean the same modules, else whole paths), and
    /// patterns whose order matters, or whose syntax Python may not share, become one entry per module.
    pub fn new(
        spec: &Spec,
        targets: &[Target],
        modules: &[Module],
        base_model: &str,
        revision: Option<&str>,
    ) -> Self {
        let ranks = |target: &Target| target.rank;
        let alphas = |target: &Target| target.alpha;
        let (rank, rank_pattern) = portable(spec.rank, &spec.rank_pattern, targets, ranks);
        let (alpha, alpha_pattern) = portable(spec.alpha, &spec.alpha_pattern, targets, alphas);
        Self {
            base_model: Some(base_model.to_owned()),
            revision: revision.map(str::to_owned),
            rank,
            alpha,
            dropout: spec.dropout,
            use_rslora: spec.use_rslora,
            use_dora: spec.use_dora,
            modules_to_save: sorted(&spec.modules_to_save),
            ties_tables: false,
            target_modules: TargetModules::Names(target_names(targets, modules)),
            target_parameters: Vec::new(),
            rank_pattern,
            alpha_pattern,
            narrowed: false,
        }
    }

    /// The same with adapters on parameters, each with a name, a rank and an alpha.
    #[must_use]
    pub fn with_parameters(mut self, parameters: impl IntoIterator<Item = (String, usize, f64)>) -> Self {
        for (name, rank, alpha) in parameters {
            // A name of identifiers is a pattern of itself.
            if rank != self.rank {
                self.rank_pattern.extend(Pattern::new(name.clone(), rank).ok());
            }
            if alpha != self.alpha {
                self.alpha_pattern.extend(Pattern::new(name.clone(), alpha).ok());
            }
            self.target_parameters.push(name);
        }
        self.target_parameters.sort();
        // PEFT computes no dropout of a parameter's input.
        self.dropout = 0.0;
        self
    }

    /// The text of the file: PEFT's classic fields, sorted, two spaces deep.
    pub fn to_json(&self) -> String {
        let modules_to_save = match self.modules_to_save.as_slice() {
            [] => Value::Null,
            names => json!(names),
        };
        let target_modules = match &self.target_modules {
            TargetModules::Names(names) => json!(names),
            TargetModules::Pattern(pattern) => json!(pattern),
            TargetModules::AllLinear => json!("all-linear"),
        };
        let fields = [
            ("alpha_pattern", object(&self.alpha_pattern, number)),
            ("auto_mapping", Value::Null),
            ("base_model_name_or_path", json!(self.base_model)),
            ("bias", json!("none")),
            ("fan_in_fan_out", json!(false)),
            ("inference_mode", json!(true)),
            ("init_lora_weights", json!(true)),
            ("layer_replication", Value::Null),
            ("layers_pattern", Value::Null),
            ("layers_to_transform", Value::Null),
            ("loftq_config", json!({})),
            ("lora_alpha", number(self.alpha)),
            ("lora_dropout", json!(self.dropout)),
            ("megatron_config", Value::Null),
            ("megatron_core", json!("megatron.core")),
            ("modules_to_save", modules_to_save),
            ("peft_type", json!("LORA")),
            ("r", json!(self.rank)),
            ("rank_pattern", object(&self.rank_pattern, |rank| json!(rank))),
            ("revision", json!(self.revision)),
            ("target_modules", target_modules),
            ("task_type", json!("CAUSAL_LM")),
            ("use_dora", json!(self.use_dora)),
            ("use_rslora", json!(self.use_rslora)),
        ];
        let mut fields: BTreeMap<String, Value> =
            fields.map(|(key, value)| (key.to_owned(), value)).into_iter().collect();
        if !self.target_parameters.is_empty() {
            fields.insert("target_parameters".to_owned(), json!(self.target_parameters));
        }
        let fields = fields.into_iter().collect();
        format!("{:#}", Value::Object(fields))
    }

    /// Whether some modules have another rank or alpha than `r` and `lora_alpha`.
    pub fn has_patterns(&self) -> bool {
        !self.rank_pattern.is_empty() || !self.alpha_pattern.is_empty()
    }

    /// Reads the fields; adds fields that cannot be used to `problems`.
    pub(super) fn parse(fields: &Map<String, Value>, problems: &mut Vec<String>) -> Option<Self> {
        let before = problems.len();
        check_kind(fields, problems);
        for (key, value) in fields {
            check_field(key, value, problems);
        }
        let mut fields = Fields { fields, problems };
        let rank = fields.required("r", "a positive whole number", positive);
        let alpha = fields.required("lora_alpha", "a number", finite);
        let dropout = fields.optional("lora_dropout", "a number", finite);
        let use_rslora = fields.optional("use_rslora", "true or false", Value::as_bool);
        let use_dora = fields.optional("use_dora", "true or false", Value::as_bool);
        let modules_to_save = fields.optional("modules_to_save", "a list of names", names);
        let ties_tables = fields.optional("ensure_weight_tying", "true or false", Value::as_bool);
        let target_parameters =
            fields.optional("target_parameters", "a list of names", names).unwrap_or_default();
        let no_modules = fields.fields.get("target_modules").is_none_or(Value::is_null);
        let target_modules = match no_modules && !target_parameters.is_empty() {
            true => Some(TargetModules::Names(Vec::new())),
            false => fields.required("target_modules", "a list of names, or a pattern", targets_of),
        };
        let base_model = fields.optional("base_model_name_or_path", "a string", owned);
        let revision = fields.optional("revision", "a string", owned);
        let rank_pattern = fields.patterns("rank_pattern", "a positive whole number", positive);
        let alpha_pattern = fields.patterns("alpha_pattern", "a number", finite);
        let narrowed = ["layers_to_transform", "exclude_modules"]
            .iter()
            .any(|key| fields.fields.get(*key).is_some_and(|value| !is_empty(value)));
        let config = Self {
            base_model,
            revision,
            rank: rank?,
            alpha: alpha?,
            dropout: dropout.unwrap_or(0.0),
            use_rslora: use_rslora.unwrap_or(false),
            use_dora: use_dora.unwrap_or(false),
            modules_to_save: modules_to_save.unwrap_or_default(),
            ties_tables: ties_tables.unwrap_or(false),
            target_modules: target_modules?,
            target_parameters,
            rank_pattern,
            alpha_pattern,
            narrowed,
        };
        (fields.problems.len() == before).then_some(config)
    }

    /// Whether `modules_to_save` names a module, or ties it to one that it names.
    pub(super) fn saves(&self, module: &str) -> bool {
        let is_table =
            |path: &str| SavedKind::ALL.iter().any(|kind| path.rsplit('.').next() == Some(kind.hf_name()));
        let mut names = self.modules_to_save.iter();
        names.any(|name| {
            names_module(name, module) || (self.ties_tables && is_table(name) && is_table(module))
        })
    }

    /// Whether `target_parameters` names the parameter at a path.
    pub(super) fn names_parameter(&self, path: &str) -> bool {
        self.target_parameters.iter().any(|name| names_module(name, path))
    }

    /// Rank, alpha and scaling of the module at a path.
    pub(super) fn strength(&self, path: &str) -> (usize, f64, f64) {
        let rank = first(&self.rank_pattern, path).unwrap_or(self.rank);
        let alpha = first(&self.alpha_pattern, path).unwrap_or(self.alpha);
        (rank, alpha, scaling(alpha, rank, self.use_rslora))
    }

    /// The modules that PEFT would adapt; `None` where that follows from the tensors alone.
    pub(super) fn named<'a>(&self, modules: &'a [Module]) -> Option<Vec<&'a Module>> {
        let filter =
            |keep: &dyn Fn(&str) -> bool| modules.iter().filter(|module| keep(&module.path)).collect();
        match &self.target_modules {
            _ if self.narrowed => None,
            TargetModules::AllLinear => {
                Some(modules.iter().filter(|module| !module.role.is_routed()).collect())
            }
            TargetModules::Names(names) => {
                let weight = |path: &str| self.names_parameter(&format!("{path}.weight"));
                Some(filter(&|path| names.iter().any(|name| names_module(name, path)) || weight(path)))
            }
            // Python's look-around is not supported here: then the tensors decide alone.
            TargetModules::Pattern(pattern) => {
                full_match(pattern).ok().map(|regex| filter(&|path| regex.is_match(path)))
            }
        }
    }
}

/// A whole number without a fraction, as Python would write it.
fn number(value: f64) -> Value {
    match value {
        whole if whole.fract() == 0.0 && whole.abs() < 9e15 => json!(whole as i64),
        other => Number::from_f64(other).map_or(Value::Null, Value::Number),
    }
}

fn object<T: Copy>(patterns: &[Pattern<T>], value: impl Fn(T) -> Value) -> Value {
    Value::Object(patterns.iter().map(|pattern| (pattern.text.clone(), value(pattern.value))).collect())
}

/// `peft_type` and `task_type`: is this a LoRA for a language model at all?
fn check_kind(fields: &Map<String, Value>, problems: &mut Vec<String>) {
    match fields.get("peft_type").and_then(Value::as_str) {
        Some("LORA") => {}
        Some(other) => problems.push(format!("peft_type is {other}; only LORA can be used")),
        None => problems.push("adapter_config.json has no peft_type; only LORA can be used".into()),
    }
    match fields.get("task_type") {
        None | Some(Value::Null) => {}
        Some(Value::String(task)) if task == "CAUSAL_LM" => {}
        Some(other) => problems.push(format!("task_type is {}; only CAUSAL_LM can be used", shown(other))),
    }
}

/// Fields that must have their empty value, and what they mean otherwise.
const UNSUPPORTED: [(&str, &str); 13] = [
    ("alora_invocation_tokens", "an activated LoRA"),
    ("arrow_config", "Arrow routing"),
    ("bias", "trained biases"),
    ("fan_in_fan_out", "transposed base weights"),
    ("kasa_config", "KaSA"),
    ("layer_replication", "replicated layers"),
    ("lora_bias", "a bias on B"),
    ("megatron_config", "Megatron layers"),
    ("monteclora_config", "MonteCLoRA"),
    ("trainable_token_indices", "trained token embeddings"),
    ("use_bdlora", "block-diagonal LoRA"),
    ("use_qalora", "QA-LoRA"),
    ("velora_config", "VeLoRA"),
];

/// Fields that are read elsewhere, or that do not change what the adapter computes.
const UNDERSTOOD: [&str; 29] = [
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "target_parameters",
    "task_type",
    "use_dora",
    "use_rslora",
];

fn check_field(key: &str, value: &Value, problems: &mut Vec<String>) {
    if key == "init_lora_weights" {
        // The others start from changed base weights, which the adapter then needs.
        let base_unchanged = match value {
            Value::Null | Value::Bool(_) => true,
            Value::String(kind) => matches!(kind.as_str(), "gaussian" | "eva" | "orthogonal"),
            _ => false,
        };
        if !base_unchanged {
            problems.push(format!(
                "init_lora_weights is {}: such an adapter belongs to changed base weights; convert it to a plain LoRA \
                 with PEFT first (path_initial_model_for_weight_conversion)",
                shown(value)
            ));
        }
    } else if let Some((_, meaning)) = UNSUPPORTED.iter().find(|(known, _)| *known == key) {
        if !is_empty(value) {
            problems.push(format!("{key} is {}: {meaning} cannot be used", shown(value)));
        }
    } else if !UNDERSTOOD.contains(&key) && !is_empty(value) {
        problems.push(format!(
            "adapter_config.json has `{key}`, which is not understood and may change the result"
        ));
    }
}

/// A value as it stands in the file, cut where it is long.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Null, false, an empty collection, or PEFT's `"none"`.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty() || text == "none",
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

fn positive(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|number| usize::try_from(number).ok()).filter(|number| *number > 0)
}

fn finite(value: &Value) -> Option<f64> {
    value.as_f64().filter(|number| number.is_finite())
}

fn owned(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn names(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(owned).collect()
}

fn sorted(names: &[String]) -> Vec<String> {
    let mut names = names.to_vec();
    names.sort();
    names
}

fn targets_of(value: &Value) -> Option<TargetModules> {
    match value {
        Value::String(text) if text.eq_ignore_ascii_case("all-linear") => Some(TargetModules::AllLinear),
        Value::String(text) => Some(TargetModules::Pattern(text.clone())),
        Value::Array(_) => names(value).map(TargetModules::Names),
        _ => None,
    }
}

/// The fields being read, and their problems.
struct Fields<'a> {
    fields: &'a Map<String, Value>,
    problems: &'a mut Vec<String>,
}

impl Fields<'_> {
    /// A field that may be missing or null.
    fn optional<T>(&mut self, key: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Option<T> {
        let value = self.fields.get(key).filter(|value| !value.is_null())?;
        let read = read(value);
        if read.is_none() {
            self.problems
                .push(format!("{key} in adapter_config.json must be {expected}, not {}", shown(value)));
        }
        read
    }

    fn required<T>(&mut self, key: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Option<T> {
        if self.fields.get(key).is_none_or(Value::is_null) {
            self.problems.push(format!("adapter_config.json has no {key}; it must be {expected}"));
        }
        self.optional(key, expected, read)
    }

    fn patterns<T>(
        &mut self,
        key: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Vec<Pattern<T>> {
        let entries = self.optional(key, "an object", |value| value.as_object().cloned()).unwrap_or_default();
        let mut patterns = Vec::with_capacity(entries.len());
        for (text, value) in entries {
            let Some(value) = read(&value) else {
                self.problems.push(format!("`{text}` in {key} must be {expected}, not {}", shown(&value)));
                continue;
            };
            match Pattern::new(text.clone(), value) {
                Ok(pattern) => patterns.push(pattern),
                Err(reason) => self.problems.push(format!("`{text}` in {key} cannot be matched: {reason}")),
            }
        }
        patterns
    }
}
