//! Which projections a recipe adapts, and with which rank and alpha.
//!
//! The rules are PEFT's, so that a written `adapter_config.json` selects the same modules there: a name
//! matches a module whose path is the name or ends in `.name`; a pattern must match a whole path
//! (`re.fullmatch`); a rank or alpha pattern must match a whole path or the end of one after a dot
//! (`re.match(r"(.*\.)?(pattern)$")`), and the first that does decides. Unlike there, what matches nothing is
//! an error. Knows module paths and shapes; refuses to know tensors and files.

use std::collections::BTreeMap;
use std::fmt;

use regex::Regex;

use super::parameter::{Parameter, Part, key};
use super::projection::Module;
use super::spec::{Spec, TargetModules};

/// A projection that gets an adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The projection.
    pub module: Module,
    /// Rows of A, columns of B.
    pub rank: usize,
    /// Numerator of the scaling.
    pub alpha: f64,
    /// Factor on B·A: alpha/rank, or alpha/√rank with rsLoRA.
    pub scaling: f64,
    /// A magnitude for every row of the weight.
    pub use_dora: bool,
}

impl Target {
    /// Elements of A, B and magnitudes together.
    pub fn parameters(&self) -> u64 {
        let (input, out) = (self.module.in_features as u64, self.module.out_features as u64);
        let magnitudes = if self.use_dora { out } else { 0 };
        self.rank as u64 * (input + out) + magnitudes
    }

    /// Its tensors, in order, and their shapes.
    pub fn parts(&self) -> impl Iterator<Item = (Part, [usize; 2])> + use<> {
        let Module { in_features, out_features, .. } = self.module;
        let magnitude = self.use_dora.then_some((Part::Magnitude, [1, out_features]));
        let pair = [(Part::A, [self.rank, in_features]), (Part::B, [out_features, self.rank])];
        pair.into_iter().chain(magnitude)
    }
}

/// The tensors of all targets, in order.
pub fn tensors(targets: &[Target]) -> Vec<Parameter> {
    let parts = |target: &Target| {
        let path = target.module.path.clone();
        target.parts().map(move |(part, shape)| Parameter { name: key(&path, part), part, shape })
    };
    targets.iter().flat_map(parts).collect()
}

/// The factor on B·A (Hu et al. 2021, section 4.1; with rsLoRA, Kalajdzievski 2023).
pub fn scaling(alpha: f64, rank: usize, use_rslora: bool) -> f64 {
    match use_rslora {
        true => alpha / (rank as f64).sqrt(),
        false => alpha / rank as f64,
    }
}

/// A value of the adapter's table that does not fit the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The value it concerns.
    pub at: At,
    /// What is wrong.
    pub message: String,
    /// The remedy.
    pub help: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}; {}", self.message, self.help)
    }
}

/// A value of the adapter's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// `rank`.
    Rank,
    /// `target_modules` as a whole.
    TargetModules,
    /// One name in the list `target_modules`, from 0.
    TargetName(usize),
    /// One entry of `rank_pattern`, from 0 in the order written.
    RankPattern(usize),
    /// One entry of `alpha_pattern`, from 0 in the order written.
    AlphaPattern(usize),
}

/// The targets of a recipe, by layer and then by slot.
///
/// `modules` are all projections of the model.
///
/// # Errors
/// Every name and pattern that matches nothing, is not a regular expression, or gives a rank that cannot be
/// meant.
pub fn resolve(spec: &Spec, modules: &[Module]) -> Result<Vec<Target>, Vec<Problem>> {
    let mut problems = Vec::new();
    let chosen = choose(spec, modules, &mut problems);
    // With nothing chosen, patterns are checked against the whole model, so that one mistake is reported once.
    let candidates = if chosen.is_empty() { modules.iter().collect() } else { chosen };
    let rank_patterns = Patterns::new(&spec.rank_pattern, At::RankPattern, &mut problems);
    let alpha_patterns = Patterns::new(&spec.alpha_pattern, At::AlphaPattern, &mut problems);
    rank_patterns.check("rank_pattern", &candidates, modules, &mut problems);
    alpha_patterns.check("alpha_pattern", &candidates, modules, &mut problems);

    let mut targets = Vec::with_capacity(candidates.len());
    let mut unusable: BTreeMap<Option<usize>, (usize, usize, &Module)> = BTreeMap::new();
    for module in candidates {
        let (source, rank) = match rank_patterns.first(&module.path) {
            Some((position, rank)) => (Some(position), *rank),
            None => (None, spec.rank),
        };
        let alpha = alpha_patterns.first(&module.path).map_or(spec.alpha, |(_, alpha)| *alpha);
        if rank == 0 || rank > module.in_features.max(module.out_features) {
            let smaller = module.in_features.min(module.out_features);
            let entry = unusable.entry(source).or_insert((rank, smaller, module));
            if smaller < entry.1 {
                *entry = (rank, smaller, module);
            }
            continue;
        }
        let scaling = scaling(alpha, rank, spec.use_rslora);
        let use_dora = spec.use_dora;
        targets.push(Target { module: module.clone(), rank, alpha, scaling, use_dora });
    }
    for (source, (rank, smaller, module)) in unusable {
        problems.push(Problem {
            at: source.map_or(At::Rank, At::RankPattern),
            message: format!(
                "rank {rank} does not fit `{}`, which is {} by {}",
                module.path, module.out_features, module.in_features
            ),
            help: format!("a rank from 1 to {smaller} does; 8 to 64 is usual"),
        });
    }
    if let Some(expert) = targets.iter().find(|target| target.use_dora && target.module.role.is_routed()) {
        problems.push(Problem {
            at: At::TargetModules,
            message: format!(
                "`{}` is an expert that some tokens pass, which has no magnitudes",
                expert.module.path
            ),
            help: "leave `use_dora` out, or the experts".into(),
        });
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    targets.sort_by_key(|target| (target.module.layer, target.module.slot));
    Ok(targets)
}

/// The modules that `target_modules` means.
fn choose<'a>(spec: &Spec, modules: &'a [Module], problems: &mut Vec<Problem>) -> Vec<&'a Module> {
    match &spec.target_modules {
        // Experts that some tokens pass are many, and seldom what is meant.
        TargetModules::AllLinear => {
            modules.iter().filter(|module| spec.experts || !module.role.is_routed()).collect()
        }
        TargetModules::Names(names) => {
            if names.is_empty() {
                problems.push(Problem {
                    at: At::TargetModules,
                    message: "the list names no module, so there would be nothing to train".into(),
                    help: format!("name some of {}, or write \"all-linear\"", last_components(modules)),
                });
            }
            for (position, name) in names.iter().enumerate() {
                if let Some(problem) = unmatched_name(name, position, modules) {
                    problems.push(problem);
                }
            }
            modules
                .iter()
                .filter(|module| names.iter().any(|name| names_module(name, &module.path)))
                .collect()
        }
        TargetModules::Pattern(pattern) => match full_match(pattern) {
            Err(reason) => {
                problems.push(not_a_regex(At::TargetModules, pattern, &reason));
                Vec::new()
            }
            Ok(regex) => {
                let chosen: Vec<_> = modules.iter().filter(|module| regex.is_match(&module.path)).collect();
                if let Some(frozen) = FROZEN.iter().find(|frozen| regex.is_match(frozen)) {
                    problems.push(frozen_module(
                        At::TargetModules,
                        &format!("`{pattern}` also matches `{frozen}`"),
                        frozen,
                    ));
                } else if chosen.is_empty() {
                    problems.push(unmatched_pattern(pattern, modules));
                }
                chosen
            }
        },
    }
}

/// Modules outside the decoder layers that are often named as targets.
const FROZEN: [&str; 2] = ["lm_head", "model.embed_tokens"];

/// PEFT's rule for a name in a list.
pub fn names_module(name: &str, path: &str) -> bool {
    path.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

fn unmatched_name(name: &str, position: usize, modules: &[Module]) -> Option<Problem> {
    let at = At::TargetName(position);
    if modules.iter().any(|module| names_module(name, &module.path)) {
        return None;
    }
    if let Some(frozen) = FROZEN.iter().find(|frozen| names_module(name, frozen)) {
        return Some(frozen_module(at, &format!("`{name}` cannot get an adapter"), frozen));
    }
    let help = match name {
        "all-linear" => "write it as a string, not in a list: target_modules = \"all-linear\"".to_owned(),
        _ => available(name, modules),
    };
    Some(Problem { at, message: format!("`{name}` names no projection of this model"), help })
}

fn unmatched_pattern(pattern: &str, modules: &[Module]) -> Problem {
    let help = if modules.iter().any(|module| names_module(pattern, &module.path)) {
        format!(
            "a string is matched against whole paths; for a name write a list: target_modules = [\"{pattern}\"]"
        )
    } else {
        let example = modules.first().map_or(String::new(), |module| format!(", such as `{}`", module.path));
        format!("it must match whole module paths{example}; {}", available(pattern, modules))
    };
    Problem {
        at: At::TargetModules,
        message: format!("the pattern `{pattern}` matches no projection of this model"),
        help,
    }
}

fn frozen_module(at: At, message: &str, frozen: &str) -> Problem {
    let what = if frozen == "lm_head" { "the output head" } else { "the embedding" };
    Problem {
        at,
        message: message.to_owned(),
        help: format!(
            "{what} stays frozen: an adapter on it would be saved with a copy of the whole matrix, which vLLM and \
             llama.cpp refuse to load; target the projections of the decoder layers (\"all-linear\" is all of them)"
        ),
    }
}

fn not_a_regex(at: At, pattern: &str, reason: &str) -> Problem {
    Problem {
        at,
        message: format!("`{pattern}` is not a regular expression: {reason}"),
        help: "the syntax is that of Rust's regex crate: Python's, without look-around and back-references"
            .into(),
    }
}

/// The names that exist, the most similar one first.
pub(crate) fn available(name: &str, modules: &[Module]) -> String {
    let last = name.rsplit('.').next().unwrap_or(name);
    let known = distinct_last_components(modules);
    let nearest = known
        .iter()
        .map(|component| (strsim::normalized_damerau_levenshtein(last, component), *component))
        .filter(|(similarity, _)| (0.5..1.0).contains(similarity))
        .max_by(|left, right| left.0.total_cmp(&right.0));
    let suggestion = nearest.map_or(String::new(), |(_, component)| format!("did you mean `{component}`? "));
    let layers = modules.iter().map(|module| module.layer).max().unwrap_or(0);
    format!("{suggestion}there are {}, in layers 0 to {layers}", last_components(modules))
}

fn last_components(modules: &[Module]) -> String {
    distinct_last_components(modules).join(", ")
}

/// The last component of every path, once each, in the order of the modules.
fn distinct_last_components(modules: &[Module]) -> Vec<&str> {
    let mut components = Vec::new();
    for module in modules {
        let last = module.path.rsplit('.').next().unwrap_or(&module.path);
        if !components.contains(&last) {
            components.push(last);
        }
    }
    components
}

/// Python's `re.fullmatch`.
pub(super) fn full_match(pattern: &str) -> Result<Regex, String> {
    wrapped("^(?:", pattern, ")$")
}

/// PEFT's rule for the keys of `rank_pattern` and `alpha_pattern`.
pub(super) fn pattern_key(pattern: &str) -> Result<Regex, String> {
    wrapped(r"^(?:.*\.)?(?:", pattern, ")$")
}

fn wrapped(before: &str, pattern: &str, after: &str) -> Result<Regex, String> {
    // Alone first: `a)(b` is not a pattern, although it would be one between parentheses.
    Regex::new(pattern).and_then(|_| Regex::new(&format!("{before}{pattern}{after}"))).map_err(|error| {
        // The crate draws the pattern over several lines; its last one says what is wrong.
        let text = error.to_string();
        text.lines().last().unwrap_or(&text).trim_start_matches("error: ").to_owned()
    })
}

/// The compiled entries of `rank_pattern` or `alpha_pattern`, in order; `None`: not a regular expression.
struct Patterns<'a, T> {
    entries: Vec<(&'a str, Option<Regex>, &'a T)>,
    at: fn(usize) -> At,
}

impl<'a, T> Patterns<'a, T> {
    fn new(patterns: &'a [(String, T)], at: fn(usize) -> At, problems: &mut Vec<Problem>) -> Self {
        let compile = |(position, (pattern, value)): (usize, &'a (String, T))| {
            let regex = pattern_key(pattern);
            let regex = regex.map_err(|reason| problems.push(not_a_regex(at(position), pattern, &reason)));
            (pattern.as_str(), regex.ok(), value)
        };
        Self { entries: patterns.iter().enumerate().map(compile).collect(), at }
    }

    /// The first entry that matches, and its position.
    fn first(&self, path: &str) -> Option<(usize, &'a T)> {
        let matches =
            |(_, regex, _): &&(_, Option<Regex>, _)| regex.as_ref().is_some_and(|regex| regex.is_match(path));
        let (position, entry) = self.entries.iter().enumerate().find(|(_, entry)| matches(entry))?;
        Some((position, entry.2))
    }

    /// Reports every entry that decides for no target.
    fn check(&self, key: &str, targets: &[&Module], modules: &[Module], problems: &mut Vec<Problem>) {
        for (position, (pattern, regex, _)) in self.entries.iter().enumerate() {
            let Some(regex) = regex else { continue };
            let hits: Vec<_> = targets.iter().filter(|module| regex.is_match(&module.path)).collect();
            let first = hits
                .iter()
                .find_map(|module| self.first(&module.path).filter(|(first, _)| *first != position));
            let decides = hits
                .iter()
                .any(|module| self.first(&module.path).is_some_and(|(first, _)| first == position));
            let (message, help) = match (decides, first) {
                (true, _) => continue,
                (false, Some((earlier, _))) => (
                    format!(
                        "`{pattern}` in {key} never decides: `{}` before it matches first",
                        self.entries[earlier].0
                    ),
                    "the first match wins: put the narrower pattern first, or remove one".to_owned(),
                ),
                (false, None) => match modules.iter().find(|module| regex.is_match(&module.path)) {
                    Some(module) => (
                        format!("`{pattern}` in {key} matches no target"),
                        format!("it matches `{}`, which target_modules leaves out", module.path),
                    ),
                    None => (format!("`{pattern}` in {key} matches no target"), available(pattern, modules)),
                },
            };
            problems.push(Problem { at: (self.at)(position), message, help });
        }
    }
}

#[cfg(test)]
mod tests;
