//! Adapters of experts as other tools read them: all experts of a layer in one pair of tensors, as PEFT has them since
//! transformers stacks experts in one parameter, or every expert with a pair for each projection.
//!
//! ```text
//! A of gate and up   [experts · (r_gate + r_up), hidden]      B   [2 · width, (r_gate + r_up) · experts]
//! ```
//!
//! Gate and up of an expert are one product there: their As lie one below the other, and B is zero where the A of one meets
//! the rows of the other.

use std::collections::BTreeMap;

use crate::adapter::parameter::{Parameter, Part, key};
use crate::adapter::peft::{Config, PARAMETERS};
use crate::adapter::projection::{Module, Role};
use crate::adapter::spec::TargetModules;
use crate::adapter::target::{Target, names_module, tensors};
use crate::model::DecoderSpec;

/// Families whose projections of feed-forward blocks PEFT takes for those of experts, by their names.
const MISTAKEN: [&str; 1] = ["qwen3_moe"];

/// Whether an adapter has pairs on experts that some tokens pass.
pub fn has_experts(targets: &[Target]) -> bool {
    targets.iter().any(|target| target.module.role.is_routed())
}

/// Whether PEFT needs another spelling than module names for some targets.
pub fn is_mistaken(spec: &DecoderSpec, target: &Target) -> bool {
    let role = target.module.role;
    MISTAKEN.contains(&spec.family) && matches!(role, Role::Gate | Role::Up | Role::Down)
}

/// A parameter with an adapter, as `target_parameters` names it.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapted {
    /// Its path.
    pub path: String,
    /// Rank of each expert.
    pub rank: usize,
    /// Alpha of each expert.
    pub alpha: f64,
}

/// An adapter whose experts are stacked.
#[derive(Clone, Debug, Default)]
pub struct Stacked {
    /// The targets that stay by themselves, and their values.
    pub targets: Vec<Target>,
    /// A, then B, of each of them.
    pub values: Vec<Vec<f32>>,
    /// The tensors of the stacks.
    pub parameters: Vec<Parameter>,
    /// Their values.
    pub stacks: Vec<Vec<f32>>,
    /// The parameters that they belong to.
    pub adapted: Vec<Adapted>,
}

impl Stacked {
    /// All tensors, and their values.
    pub fn tensors(self) -> (Vec<Parameter>, Vec<Vec<f32>>) {
        let (mut parameters, mut values) = (tensors(&self.targets), self.values);
        parameters.extend(self.parameters);
        values.extend(self.stacks);
        (parameters, values)
    }

    /// `config`, which names the targets that stay by themselves, with the parameters; and with those targets as parameters
    /// that PEFT would take for experts.
    pub fn config(&self, mut config: Config, spec: &DecoderSpec) -> Config {
        let weight = |target: &Target| format!("{}.weight", target.module.path);
        let mistaken = self.targets.iter().filter(|target| is_mistaken(spec, target));
        let mistaken = mistaken.map(|target| (weight(target), target.rank, target.alpha));
        let adapted = self.adapted.iter().map(|one| (one.path.clone(), one.rank, one.alpha));
        let all: Vec<_> = adapted.chain(mistaken).collect();
        if let TargetModules::Names(names) = &mut config.target_modules {
            let is_left = |name: &String| {
                let mut own = self.targets.iter().filter(|target| !is_mistaken(spec, target));
                own.any(|target| names_module(name, &target.module.path))
            };
            names.retain(is_left);
        }
        let has = |layer: usize, name: &str| {
            let modules = || spec.modules_of(layer).into_iter();
            let module = name.strip_suffix(".weight");
            match module {
                Some(module) => modules().any(|own| own.path_in_layer() == module),
                None => modules().any(|own| own.role.is_routed()),
            }
        };
        let paths: Vec<String> = all.iter().map(|(path, ..)| path.clone()).collect();
        let named = names(spec, &paths, has).into_iter().filter_map(|name| {
            let (_, rank, alpha) = all.iter().find(|(path, ..)| names_module(&name, path))?;
            Some((name, *rank, *alpha))
        });
        config.with_parameters(named.collect::<Vec<_>>())
    }
}

/// The path of an expert's projection as Mixtral's files have it.
pub fn named_as_mixtral(path: &str) -> String {
    let path = path.replacen(".mlp.experts.", ".block_sparse_moe.experts.", 1);
    let olds = [(".gate_proj", ".w1"), (".down_proj", ".w2"), (".up_proj", ".w3")];
    let old = olds.iter().find_map(|(new, old)| Some(format!("{}{old}", path.strip_suffix(new)?)));
    old.unwrap_or(path)
}

/// Ranks and scaling of one of PEFT's parameters, the same in every layer.
struct Kind {
    name: &'static str,
    projections: &'static [&'static str],
    /// Of each projection.
    ranks: Vec<usize>,
    /// `None`: they differ, and are multiplied into B.
    scaling: Option<f64>,
}

impl Kind {
    fn of(name: &'static str, projections: &'static [&'static str], targets: &[Target]) -> Option<Self> {
        let own = |projection: &str| {
            let routed = targets.iter().filter(|target| target.module.role.is_routed());
            routed.filter(move |target| target.module.name() == projection).collect::<Vec<_>>()
        };
        let rank = |projection: &&str| own(projection).iter().map(|target| target.rank).max().unwrap_or(0);
        let ranks: Vec<usize> = projections.iter().map(rank).collect();
        let all: Vec<&Target> = projections.iter().flat_map(|projection| own(projection)).collect();
        let first = all.first()?.scaling;
        let scaling = Some(first).filter(|first| all.iter().all(|target| target.scaling == *first));
        Some(Self { name, projections, ranks, scaling })
    }

    fn rank(&self) -> usize {
        self.ranks.iter().sum()
    }

    fn alpha(&self, use_rslora: bool) -> f64 {
        let rank = self.rank() as f64;
        self.scaling.unwrap_or(1.0) * if use_rslora { rank.sqrt() } else { rank }
    }

    /// A and B of one layer: `pairs` gives those of an expert's projection, with the target.
    fn stack<'a>(
        &self,
        experts: usize,
        sizes: impl Fn(&str) -> [usize; 2],
        alternates: bool,
        pair: impl Fn(usize, &str) -> Option<(&'a Target, [&'a [f32]; 2])>,
    ) -> [([usize; 2], Vec<f32>); 2] {
        let ([width, inputs], rank) = (sizes(self.projections[0]), self.rank());
        let (count, columns) = (self.projections.len(), rank * experts);
        let (mut a, mut b) = (vec![0.0; columns * inputs], vec![0.0; count * width * columns]);
        for expert in 0..experts {
            let mut offset = 0;
            for (index, projection) in self.projections.iter().enumerate() {
                if let Some((target, [own_a, own_b])) = pair(expert, projection) {
                    let first = (expert * rank + offset) * inputs;
                    a[first..first + own_a.len()].copy_from_slice(own_a);
                    let factor = if self.scaling.is_some() { 1.0 } else { target.scaling };
                    for (output, row) in own_b.chunks_exact(target.rank).enumerate() {
                        let output = if alternates { output * count + index } else { index * width + output };
                        for (place, value) in row.iter().enumerate() {
                            let value = (f64::from(*value) * factor) as f32;
                            b[output * columns + (offset + place) * experts + expert] = value;
                        }
                    }
                }
                offset += self.ranks[index];
            }
        }
        [([columns, inputs], a), ([count * width, columns], b)]
    }
}

/// Stacks the pairs on experts; `values` has A, then B, of each target.
pub fn stack(spec: &DecoderSpec, targets: &[Target], values: &[Vec<f32>], use_rslora: bool) -> Stacked {
    let mut found = Stacked::default();
    let mut layers: BTreeMap<usize, BTreeMap<String, usize>> = BTreeMap::new();
    for (index, target) in targets.iter().enumerate() {
        if target.module.role.is_routed() {
            layers.entry(target.module.layer).or_default().insert(target.module.path.clone(), index);
        } else {
            found.targets.push(target.clone());
            found.values.extend_from_slice(&values[2 * index..2 * index + 2]);
        }
    }
    let kinds: Vec<Kind> =
        PARAMETERS.iter().filter_map(|(name, projections)| Kind::of(name, projections, targets)).collect();
    for (layer, paths) in layers {
        let modules = experts_of(spec, layer);
        let Some(holder) = modules.first().and_then(|module| holder(&module.path)) else { continue };
        let pair = |expert: usize, projection: &str| {
            let index = *paths.get(&format!("{holder}.{expert}.{projection}"))?;
            Some((&targets[index], [&values[2 * index][..], &values[2 * index + 1][..]]))
        };
        let sizes = |projection: &str| {
            let of = modules.iter().find(|module| module.name() == projection);
            of.map_or([0, 0], |module| [module.out_features, module.in_features])
        };
        let experts = spec.layers[layer].mixture().map_or(0, |mixture| mixture.experts.len());
        let is_there = |kind: &&Kind| {
            (0..experts).any(|expert| kind.projections.iter().any(|name| pair(expert, name).is_some()))
        };
        let own: Vec<&Kind> = kinds.iter().filter(is_there).collect();
        let alternates = modules.iter().any(|module| module.alternates);
        for (index, kind) in own.iter().enumerate() {
            // PEFT wraps the first parameter first.
            let path = format!("{holder}{}", ".base_layer".repeat(own.len() - 1 - index));
            let halves = kind.stack(experts, sizes, alternates, pair);
            for (part, (shape, values)) in [Part::A, Part::B].into_iter().zip(halves) {
                found.parameters.push(Parameter { name: key(&path, part), part, shape });
                found.stacks.push(values);
            }
            let path = format!("{holder}.{}", kind.name);
            found.adapted.push(Adapted { path, rank: kind.rank(), alpha: kind.alpha(use_rslora) });
        }
    }
    found
}

/// Pairs of zeros for every projection of every expert in layers where some have a pair, and the pairs there are; all of
/// one rank, alpha and scaling.
pub fn complete(
    spec: &DecoderSpec,
    targets: &[Target],
    values: Vec<Vec<f32>>,
) -> (Vec<Target>, Vec<Vec<f32>>) {
    let mut pairs: BTreeMap<String, (Target, Vec<Vec<f32>>)> = BTreeMap::new();
    let mut values = values.into_iter();
    for target in targets {
        let pair = values.by_ref().take(2).collect();
        pairs.insert(target.module.path.clone(), (target.clone(), pair));
    }
    let routed = targets.iter().filter(|target| target.module.role.is_routed());
    let layers: BTreeMap<usize, &Target> = routed.map(|target| (target.module.layer, target)).collect();
    for (layer, target) in layers {
        for module in experts_of(spec, layer) {
            let path = module.path.clone();
            let zeros = || {
                let Module { in_features, out_features, .. } = module;
                let pair = vec![vec![0.0; target.rank * in_features], vec![0.0; out_features * target.rank]];
                (Target { module, ..target.clone() }, pair)
            };
            pairs.entry(path).or_insert_with(zeros);
        }
    }
    let mut found: Vec<_> = pairs.into_values().collect();
    found.sort_by_key(|(target, _)| (target.module.layer, target.module.slot));
    let (targets, pairs): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    (targets, pairs.into_iter().flatten().collect())
}

/// The projections of the experts of a layer.
fn experts_of(spec: &DecoderSpec, layer: usize) -> Vec<Module> {
    spec.modules_of(layer).into_iter().filter(|module| module.role.is_routed()).collect()
}

/// The module that holds all experts.
fn holder(path: &str) -> Option<String> {
    let (before, _) = path.rsplit_once(".experts.")?;
    Some(format!("{before}.experts"))
}

/// Paths as names in a list that mean those of these layers alone: without what stands before the number of the layer, and
/// that, where all layers that have the path are meant.
fn names(spec: &DecoderSpec, paths: &[String], has: impl Fn(usize, &str) -> bool) -> Vec<String> {
    let mut by_name: BTreeMap<String, Vec<&String>> = BTreeMap::new();
    for path in paths {
        let inside = path.split_once(spec.paths.layers).and_then(|(_, rest)| rest[1..].split_once('.'));
        let name = inside.map_or(path.as_str(), |(_, inside)| inside);
        by_name.entry(name.to_owned()).or_default().push(path);
    }
    let mut names = Vec::new();
    for (name, own) in by_name {
        match own.len() == (0..spec.layers.len()).filter(|layer| has(*layer, &name)).count() {
            true => names.push(name),
            false => names.extend(own.into_iter().cloned()),
        }
    }
    names.sort();
    names
}
