//! The `[adapter.lora]` table of a recipe: its keys, their values as a [`Spec`], and the meaning of its patterns.
//!
//! Knows no module of any model; whether a pattern matches one is checked against the model later.

use std::path::PathBuf;

use regex::{Regex, RegexBuilder};

use serde_json::{Value as Json, json};

use crate::document::{
    Key, KeyTable, Kind, Limits, Parsed, Shaped, TableReader, Value, ValueError, Writer, Written, integer,
    list, number, one_of, pairs, text,
};

/// Above the size of any matrix; a rank near it is a mistake.
const LARGEST_RANK: usize = 65_536;

/// The paper tries ratios up to 64.
const LARGEST_RATIO: f64 = 1e6;

/// Memory that a compiled pattern may take, in bytes: adapters of others bring patterns.
const PATTERN_SIZE_LIMIT: usize = 1 << 20;

/// LoRA as Hu et al. 2021 define it, with the options PEFT gives it.
///
/// DoRA: Liu et al. 2024 (<https://arxiv.org/abs/2402.09353>). LoRA+: Hayou et al. 2024 (<https://arxiv.org/abs/2402.12354>).
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Rows of A, columns of B.
    pub rank: usize,
    /// Numerator of the scaling.
    pub alpha: f64,
    /// Probability of zeroing an input element of A, in `[0, 1)`.
    pub dropout: f64,
    /// The projections that get an adapter.
    pub target_modules: TargetModules,
    /// Whether "all-linear" takes in the experts that some tokens pass.
    pub experts: bool,
    /// Scaling alpha/√rank instead of alpha/rank.
    pub use_rslora: bool,
    /// A magnitude for every row of an adapted weight, apart from its direction.
    pub use_dora: bool,
    /// B's learning rate over A's, at least 1: λ of LoRA+.
    pub learning_rate_ratio: f64,
    /// Module pattern → rank, in the order written; the first match wins.
    pub rank_pattern: Vec<(String, usize)>,
    /// Module pattern → alpha, in the order written; the first match wins.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Names of modules outside the layers that are trained in full and saved.
    pub modules_to_save: Vec<String>,
    /// A PEFT adapter folder to start from.
    pub init_from: Option<PathBuf>,
}

/// Which projections get an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetModules {
    /// Every linear projection of the decoder layers; never the output head, experts that some tokens pass only with
    /// [`Spec::experts`].
    AllLinear,
    /// Module names: exact paths, or their last components.
    Names(Vec<String>),
    /// A regular expression that must match a whole module path.
    Pattern(String),
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            target_modules: TargetModules::AllLinear,
            experts: false,
            use_rslora: false,
            use_dora: false,
            learning_rate_ratio: 1.0,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            modules_to_save: Vec::new(),
            init_from: None,
        }
    }
}

type K = Key<Spec>;

pub(crate) static TABLE: KeyTable<Spec> = KeyTable {
    path: "adapter.lora",
    meaning: "The adapter that is trained.",
    also: &["lora", "peft", "peft_config", "lora_config", "lora_parameters", "lora_model"],
    keys: &[
        K::count("rank", 1..=LARGEST_RANK, |lora| &mut lora.rank)
            .means("Rows of A and columns of B.")
            .also(&["r", "lora_r", "lora_rank", "peft_lora_r"]),
        K::number("alpha", Limits::above(0.0), |lora| &mut lora.alpha)
            .means("Numerator of the scaling, alpha / rank.")
            .also(&["lora_alpha", "alpha_lora"]),
        K::number("dropout", Limits::from(0.0).below(1.0), |lora| &mut lora.dropout)
            .means("Probability of zeroing an element of A's input.")
            .also(&["lora_dropout", "drop_out"]),
        K::parsed("target_modules", |lora| &mut lora.target_modules)
            .means("The projections that get an adapter.")
            .also(&[
                "lora_target_modules",
                "lora_target",
                "targets",
                "modules",
                "lora_attn_modules",
                "lora_target_linear",
                "apply_lora_to_mlp",
                "lora_modules",
                "lora_layers",
                "keys",
            ]),
        K::flag("experts", |lora| &mut lora.experts)
            .added()
            .means("Adapt every expert of a mixture too, where target_modules is \"all-linear\"."),
        K::flag("use_rslora", |lora| &mut lora.use_rslora)
            .means("Scale by alpha / √rank instead of alpha / rank.")
            .also(&["rslora", "peft_use_rslora", "use_rs_lora"]),
        K::flag("use_dora", |lora| &mut lora.use_dora)
            .means("Train a magnitude for every row of an adapted weight too (DoRA).")
            .also(&["peft_use_dora", "dora"]),
        K::number("learning_rate_ratio", Limits::from(1.0).to(LARGEST_RATIO), |lora| {
            &mut lora.learning_rate_ratio
        })
        .means("B's learning rate over A's (LoRA+).")
        .also(&[
            "loraplus_lr_ratio",
            "loraplus_ratio",
            "lora_plus_ratio",
            "lora_plus_lr_ratio",
            "lr_ratio",
            "loraplus",
        ]),
        K::parsed("rank_pattern", |lora| &mut lora.rank_pattern)
            .means("Ranks of single modules: a pattern for the end of a module's path, and its rank; the first match wins."),
        K::parsed("alpha_pattern", |lora| &mut lora.alpha_pattern)
            .means("Alphas of single modules: a pattern for the end of a module's path, and its alpha; the first match wins."),
        K::list("modules_to_save", module_name, |lora| &mut lora.modules_to_save)
            .means("Modules outside the layers that are trained in full: \"lm_head\", \"embed_tokens\".")
            .also(&["lora_modules_to_save", "additional_target", "modules_to_train"]),
        K::path("init_from", |lora| &mut lora.init_from)
            .optional("a new adapter that changes nothing at first")
            .means("A PEFT adapter folder to start from.")
            .also(&["lora_model_dir", "adapter_name_or_path", "resume_adapter_file", "init_adapter"]),
    ],
    ..KeyTable::NEW
};

impl Spec {
    /// Reads the `[adapter]` table; absent, every key has its default.
    pub fn read(adapter: &mut TableReader<'_, '_>) -> Self {
        adapter.table("lora", |lora| TABLE.read(lora))
    }

    /// Writes the table.
    pub fn write(&self, writer: &mut Writer) {
        TABLE.write(&mut self.clone(), writer);
    }
}

/// A `target_modules` pattern: it must match a module's whole path, as PEFT's `re.fullmatch` does.
///
/// # Errors
/// When it is not a regular expression, or one too large to compile.
pub fn target_regex(pattern: &str) -> Result<Regex, regex::Error> {
    anchored(pattern, "")
}

/// A key of `rank_pattern` or `alpha_pattern`: it must match the end of a module's path, from the beginning
/// of a component on, as PEFT's `(.*\.)?(pattern)$` does.
///
/// # Errors
/// When it is not a regular expression, or one too large to compile.
pub fn pattern_regex(pattern: &str) -> Result<Regex, regex::Error> {
    anchored(pattern, r"(?:.*\.)?")
}

fn anchored(pattern: &str, prefix: &str) -> Result<Regex, regex::Error> {
    let compile = |text: &str| RegexBuilder::new(text).size_limit(PATTERN_SIZE_LIMIT).build();
    // On its own first: an unbalanced bracket could otherwise pair with one of ours.
    compile(pattern)?;
    compile(&format!("^{prefix}(?:{pattern})$"))
}

pub(crate) const ALL_LINEAR: &str = "all-linear";

impl Parsed for TargetModules {
    fn expected() -> String {
        "\"all-linear\", a list of module names, or a regular expression".to_owned()
    }

    fn schema() -> Json {
        let name = json!({"type": "string", "pattern": "^[A-Za-z0-9._-]+$"});
        json!({"anyOf": [
            {"type": "string", "minLength": 1},
            {"type": "array", "items": name, "minItems": 1},
        ]})
    }

    fn read(value: &Value) -> Shaped<Self> {
        let expected = "\"all-linear\", a list of module names, or a regular expression";
        one_of(expected, |value| match &value.kind {
            Kind::String(written) if written == ALL_LINEAR => Some(Ok(Self::AllLinear)),
            Kind::String(_) => Some(text(value).and_then(|pattern| target_pattern(value, pattern))),
            Kind::Array(items) if items.is_empty() => {
                let help = "name modules, or write \"all-linear\"";
                Some(Err(vec![ValueError::new(value, "must not be empty", "empty").help(help)]))
            }
            Kind::Array(_) => Some(list(module_name)(value).map(Self::Names)),
            _ => None,
        })(value)
    }

    fn written(&self) -> String {
        match self {
            Self::AllLinear => ALL_LINEAR.written(),
            Self::Names(names) => names.written(),
            Self::Pattern(pattern) => pattern.written(),
        }
    }
}

impl Parsed for Vec<(String, usize)> {
    fn expected() -> String {
        "table of pattern = rank".to_owned()
    }

    fn schema() -> Json {
        let rank = json!({"type": "integer", "minimum": 1, "maximum": LARGEST_RANK});
        json!({"type": "object", "additionalProperties": rank})
    }

    fn read(value: &Value) -> Shaped<Self> {
        patterns(integer(1..=LARGEST_RANK))(value)
    }

    fn written(&self) -> String {
        self.as_slice().written()
    }
}

impl Parsed for Vec<(String, f64)> {
    fn expected() -> String {
        "table of pattern = alpha".to_owned()
    }

    fn schema() -> Json {
        json!({"type": "object", "additionalProperties": {"type": "number", "exclusiveMinimum": 0}})
    }

    fn read(value: &Value) -> Shaped<Self> {
        patterns(number(Limits::above(0.0)))(value)
    }

    fn written(&self) -> String {
        self.as_slice().written()
    }
}

fn target_pattern(value: &Value, pattern: String) -> Result<TargetModules, Vec<ValueError>> {
    let error = |message: &str, label: &str, help: String| {
        Err(vec![ValueError::new(value, message, label).help(help)])
    };
    if strsim::damerau_levenshtein(&pattern.to_lowercase(), ALL_LINEAR) <= 2 {
        return error("unknown word", "unknown word", format!("did you mean \"{ALL_LINEAR}\"?"));
    }
    let is_name =
        |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if pattern.split(',').all(|name| is_name(name.trim())) {
        let names =
            pattern.split(',').map(|name| format!("\"{}\"", name.trim())).collect::<Vec<_>>().join(", ");
        return error(
            "a string is a regular expression for whole module paths, and this one matches none",
            "a name, not a path",
            format!("to name modules, write a list: [{names}]"),
        );
    }
    match target_regex(&pattern) {
        Ok(_) => Ok(TargetModules::Pattern(pattern)),
        Err(error) => Err(vec![bad_pattern(value, &error)]),
    }
}

fn module_name(value: &Value) -> Result<String, Vec<ValueError>> {
    let name = text(value)?;
    if name == ALL_LINEAR {
        let help = "write target_modules = \"all-linear\", without the list";
        return Err(vec![
            ValueError::new(value, "`all-linear` is not a module name", "not a name").help(help),
        ]);
    }
    if let Some(character) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || "._-".contains(*c))) {
        let message = format!("`{character}` cannot be part of a module name");
        let help = "entries of a list are names; for a regular expression write a single string, no list";
        return Err(vec![ValueError::new(value, message, "not a name").help(help)]);
    }
    Ok(name)
}

/// Pairs of pattern and value, each pattern checked.
fn patterns<T>(
    element: impl Fn(&Value) -> Result<T, Vec<ValueError>>,
) -> impl Fn(&Value) -> Result<Vec<(String, T)>, Vec<ValueError>> {
    let pairs = pairs(element);
    move |value| {
        let shaped = pairs(value);
        let Kind::Table(table) = &value.kind else { return shaped };
        let mut errors = Vec::new();
        for entry in table.entries() {
            if let Err(error) = pattern_regex(&entry.key) {
                let key = Value { kind: Kind::String(entry.key.clone()), place: entry.key_place.clone() };
                errors.push(bad_pattern(&key, &error));
            }
        }
        match shaped {
            Ok(shaped) if errors.is_empty() => Ok(shaped),
            Ok(_) => Err(errors),
            Err(more) => Err(errors.into_iter().chain(more).collect()),
        }
    }
}

fn bad_pattern(value: &Value, error: &regex::Error) -> ValueError {
    let reason = match error {
        regex::Error::CompiledTooBig(_) => "it is too large".to_owned(),
        other => {
            let text = other.to_string();
            let last = text.lines().last().unwrap_or_default();
            last.strip_prefix("error: ").unwrap_or(last).to_owned()
        }
    };
    let help = match reason.contains("look-around") || reason.contains("backreferences") {
        true => "list the modules by name instead",
        false => "the syntax is that of the regex crate; a literal dot is written \\. inside '…'",
    };
    ValueError::new(value, format!("not a regular expression: {reason}"), "this pattern").help(help)
}
