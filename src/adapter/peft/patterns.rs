//! The names and patterns of `adapter_config.json`, chosen so that every reader resolves them alike.

use std::collections::BTreeSet;

use regex::Regex;

use crate::adapter::projection::Module;
use crate::adapter::target::{Target, names_module, pattern_key};

/// One entry of `rank_pattern` or `alpha_pattern`.
#[derive(Clone, Debug)]
pub(super) struct Pattern<T> {
    /// As written.
    pub(super) text: String,
    regex: Regex,
    /// The rank or alpha of the modules it matches.
    pub(super) value: T,
}

impl<T> Pattern<T> {
    /// Compiles an entry.
    pub(super) fn new(text: String, value: T) -> Result<Self, String> {
        Ok(Self { regex: pattern_key(&text)?, text, value })
    }
}

/// The value of the first pattern that matches.
pub(super) fn first<T: Copy>(patterns: &[Pattern<T>], path: &str) -> Option<T> {
    patterns.iter().find(|pattern| pattern.regex.is_match(path)).map(|pattern| pattern.value)
}

/// Names that mean exactly the targets, sorted.
pub(super) fn target_names(targets: &[Target], modules: &[Module]) -> Vec<String> {
    let paths: BTreeSet<&str> = targets.iter().map(|target| target.module.path.as_str()).collect();
    let last: BTreeSet<&str> = paths.iter().map(|path| path.rsplit('.').next().unwrap_or(path)).collect();
    let matched = modules.iter().filter(|module| last.iter().any(|name| names_module(name, &module.path)));
    let chosen = if matched.count() == paths.len() { last } else { paths };
    chosen.into_iter().map(str::to_owned).collect()
}

/// A default and sorted patterns from which every reader gets each target's value.
pub(super) fn portable<T: Copy + PartialEq>(
    default: T,
    written: &[(String, T)],
    targets: &[Target],
    value: impl Fn(&Target) -> T,
) -> (T, Vec<Pattern<T>>) {
    if let Some(first) = targets.first().map(&value)
        && targets.iter().all(|target| value(target) == first)
    {
        return (first, Vec::new());
    }
    let plain = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
    let own = written.iter().all(|(text, _)| plain(text)).then(|| written.to_vec());
    let each = |name: &dyn Fn(&str) -> String| -> Vec<(String, T)> {
        let differing = targets.iter().filter(|target| value(target) != default);
        differing.map(|target| (name(&target.module.path), value(target))).collect()
    };
    // Older versions of PEFT want something before a pattern: the path less its first component.
    let short = |path: &str| path.split_once('.').map_or(path, |(_, rest)| rest).to_owned();
    let candidates = [own, Some(each(&short)), Some(each(&|path| regex::escape(path)))];
    let compile = |mut entries: Vec<(String, T)>| -> Option<Vec<Pattern<T>>> {
        entries.sort_by(|left, right| left.0.cmp(&right.0));
        let pattern = |(text, value): (String, T)| Pattern::new(text, value).ok();
        entries.into_iter().map(pattern).collect()
    };
    let exact = |patterns: &Vec<Pattern<T>>| {
        targets.iter().all(|target| first(patterns, &target.module.path).unwrap_or(default) == value(target))
    };
    // The last candidate, escaped whole paths, is exact whatever the targets.
    let patterns = candidates.into_iter().flatten().filter_map(compile).find(exact);
    (default, patterns.unwrap_or_default())
}
