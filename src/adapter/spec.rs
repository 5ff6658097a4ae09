//! The `[adapter.lora]` table of a recipe, as a typed value, and the meaning of its patterns.
//!
//! Knows no module of any model; whether a pattern matches one is for those who have the model to say.

use std::ops::Bound;
use std::path::PathBuf;

use regex::{Regex, RegexBuilder};

use crate::document::{
    Kind, Misfit, TableReader, Value, Writer, integer, list, number, one_of, pairs, path, text, truth,
};

/// Above the size of any matrix worth adapting; a rank near it is a slip.
const LARGEST_RANK: usize = 65_536;

/// The paper tries ratios up to 64; far beyond, B's rate is a slip.
const LARGEST_RATIO: f64 = 1e6;

/// Memory a compiled pattern may take, in bytes: patterns come from files we did not write.
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
    /// Modules outside the layers that are trained as a whole, by name.
    pub modules_to_save: Vec<String>,
    /// A PEFT adapter folder to start from.
    pub init_from: Option<PathBuf>,
}

/// Which projections get an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetModules {
    /// Every linear projection of the decoder layers; never the output head.
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

impl Spec {
    /// Reads the `[adapter]` table; left out, every value is its default.
    pub fn read(adapter: &mut TableReader<'_, '_>) -> Self {
        adapter.table("lora", |lora| {
            let default = Self::default();
            let positive = (Bound::Excluded(0.0), Bound::Unbounded);
            Self {
                rank: lora.key("rank", integer(1..=LARGEST_RANK)).or(default.rank),
                alpha: lora.key("alpha", number(positive)).or(default.alpha),
                dropout: lora.key("dropout", number(0.0..1.0)).or(default.dropout),
                target_modules: lora.key("target_modules", target_modules).or(default.target_modules),
                use_rslora: lora.key("use_rslora", truth).or(default.use_rslora),
                use_dora: lora.key("use_dora", truth).or(default.use_dora),
                learning_rate_ratio: lora
                    .key("learning_rate_ratio", number(1.0..=LARGEST_RATIO))
                    .or(default.learning_rate_ratio),
                rank_pattern: lora
                    .key("rank_pattern", patterns(integer(1..=LARGEST_RANK)))
                    .or(default.rank_pattern),
                alpha_pattern: lora
                    .key("alpha_pattern", patterns(number(positive)))
                    .or(default.alpha_pattern),
                modules_to_save: lora.key("modules_to_save", list(module_name)).or(Vec::new()),
                init_from: lora.key("init_from", path).optional(),
            }
        })
    }

    /// Writes the table with every value.
    pub fn write(&self, writer: &mut Writer) {
        writer.table("adapter.lora");
        writer.key("rank", self.rank);
        writer.key("alpha", self.alpha);
        writer.key("dropout", self.dropout);
        match &self.target_modules {
            TargetModules::AllLinear => writer.key("target_modules", ALL_LINEAR),
            TargetModules::Names(names) => writer.key("target_modules", names),
            TargetModules::Pattern(pattern) => writer.key("target_modules", pattern),
        }
        writer.key("use_rslora", self.use_rslora);
        writer.key("use_dora", self.use_dora);
        writer.key("learning_rate_ratio", self.learning_rate_ratio);
        writer.key("rank_pattern", self.rank_pattern.as_slice());
        writer.key("alpha_pattern", self.alpha_pattern.as_slice());
        writer.key("modules_to_save", &self.modules_to_save);
        writer.optional("init_from", self.init_from.as_ref());
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

fn target_modules(value: &Value) -> Result<TargetModules, Vec<Misfit>> {
    let expected = "\"all-linear\", a list of module names, or a regular expression";
    one_of(expected, |value| match &value.kind {
        Kind::String(written) if written == ALL_LINEAR => Some(Ok(TargetModules::AllLinear)),
        Kind::String(_) => Some(text(value).and_then(|pattern| target_pattern(value, pattern))),
        Kind::Array(items) if items.is_empty() => {
            let help = "name modules, or write \"all-linear\"";
            Some(Err(vec![Misfit::new(value, "names no module", "empty").help(help)]))
        }
        Kind::Array(_) => Some(list(module_name)(value).map(TargetModules::Names)),
        _ => None,
    })(value)
}

fn target_pattern(value: &Value, pattern: String) -> Result<TargetModules, Vec<Misfit>> {
    let misfit =
        |message: &str, label: &str, help: String| Err(vec![Misfit::new(value, message, label).help(help)]);
    if strsim::damerau_levenshtein(&pattern.to_lowercase(), ALL_LINEAR) <= 2 {
        return misfit("unknown word", "unknown word", format!("did you mean \"{ALL_LINEAR}\"?"));
    }
    let is_name =
        |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if pattern.split(',').all(|name| is_name(name.trim())) {
        let names =
            pattern.split(',').map(|name| format!("\"{}\"", name.trim())).collect::<Vec<_>>().join(", ");
        return misfit(
            "a string is a regular expression over whole module paths, and this one matches none",
            "a name, not a path",
            format!("to name modules, write a list: [{names}]"),
        );
    }
    match target_regex(&pattern) {
        Ok(_) => Ok(TargetModules::Pattern(pattern)),
        Err(error) => Err(vec![bad_pattern(value, &error)]),
    }
}

fn module_name(value: &Value) -> Result<String, Vec<Misfit>> {
    let name = text(value)?;
    if name == ALL_LINEAR {
        let help = "write target_modules = \"all-linear\", without the list";
        return Err(vec![Misfit::new(value, "`all-linear` is not a module name", "not a name").help(help)]);
    }
    if let Some(character) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || "._-".contains(*c))) {
        let message = format!("a module name holds no `{character}`");
        let help = "entries of a list are names; for a regular expression write a single string, no list";
        return Err(vec![Misfit::new(value, message, "not a name").help(help)]);
    }
    Ok(name)
}

/// Pairs of pattern and value, each pattern checked.
fn patterns<T>(
    element: impl Fn(&Value) -> Result<T, Vec<Misfit>>,
) -> impl Fn(&Value) -> Result<Vec<(String, T)>, Vec<Misfit>> {
    let pairs = pairs(element);
    move |value| {
        let shaped = pairs(value);
        let Kind::Table(table) = &value.kind else { return shaped };
        let mut misfits = Vec::new();
        for entry in table.entries() {
            if let Err(error) = pattern_regex(&entry.key) {
                let key = Value { kind: Kind::String(entry.key.clone()), place: entry.key_place.clone() };
                misfits.push(bad_pattern(&key, &error));
            }
        }
        match shaped {
            Ok(shaped) if misfits.is_empty() => Ok(shaped),
            Ok(_) => Err(misfits),
            Err(more) => Err(misfits.into_iter().chain(more).collect()),
        }
    }
}

fn bad_pattern(value: &Value, error: &regex::Error) -> Misfit {
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
    Misfit::new(value, format!("not a regular expression: {reason}"), "this pattern").help(help)
}
