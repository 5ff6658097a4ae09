//! Combines several adapters of one base into one: weighted sum, concatenation, or TIES and DARE merging.
//!
//! The rules are those of PEFT's `add_weighted_adapter`. With `w` the weight of an adapter times its scaling:
//!
//! | combination | A and B of a module |
//! |---|---|
//! | `cat` | rows `w·A` below each other, columns `B` beside each other: the exact sum `Σ w·B·A` |
//! | `linear` | `Σ ±√|w|·A` and `Σ √|w|·B`: keeps the rank, adds cross terms |
//! | `ties` | the largest values of each tensor, then per element the mean of those with the elected sign |
//! | `dare-linear` | each value kept with probability `density` and divided by it, then as `linear` |
//! | `dare-ties` | the same random pruning, then as `ties` without its own |
//!
//! A module that only some adapters target is combined from those. The result has scaling 1. Random pruning is drawn
//! from a counter keyed by seed, tensor and the adapter's index.
//!
//! Yadav et al., *TIES-Merging* (<https://arxiv.org/abs/2306.01708>); Yu et al., *DARE*
//! (<https://arxiv.org/abs/2311.03099>).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use sha2::{Digest, Sha256};
use tune_kernels::dropout::philox;

use super::Error;
use super::base::{HASH_PREFIX, QUANTIZATION_KEY};
use super::portable;
use crate::adapter::parameter::{Part, key};
use crate::adapter::peft::{self, Config, TENSORS_FILE};
use crate::adapter::projection::{Module, Role};
use crate::adapter::target::Target;
use crate::assets::folder::digest;

/// How adapters are combined.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Combination {
    /// Weighted sums of A and of B.
    Linear,
    /// Concatenation: ranks add up.
    Cat,
    /// Keeps this share of the values, the largest ones, then merges by elected sign.
    Ties(f64),
    /// Keeps about this share of the values at random, rescales, then sums.
    DareLinear(f64),
    /// Keeps about this share of the values at random, rescales, then merges by elected sign.
    DareTies(f64),
}

impl Combination {
    fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Cat => "cat",
            Self::Ties(_) => "ties",
            Self::DareLinear(_) => "dare-linear",
            Self::DareTies(_) => "dare-ties",
        }
    }

    /// The share of values kept, for combinations that prune.
    fn density(self) -> Option<f64> {
        match self {
            Self::Linear | Self::Cat => None,
            Self::Ties(density) | Self::DareLinear(density) | Self::DareTies(density) => Some(density),
        }
    }
}

impl fmt::Display for Combination {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())?;
        match self.density() {
            Some(density) => write!(formatter, ", density {density}"),
            None => Ok(()),
        }
    }
}

/// An adapter and its weight in the combination.
#[derive(Debug)]
pub struct Weighted {
    /// The adapter.
    pub adapter: peft::Adapter,
    /// Factor on its delta; a negative one subtracts it.
    pub weight: f64,
}

/// The combined adapter.
#[derive(Clone, Debug)]
pub struct Combined {
    /// Its PEFT configuration.
    pub config: Config,
    /// Its targets.
    pub targets: Vec<Target>,
    /// A, then B, of each target.
    pub values: Vec<Vec<f32>>,
    /// Provenance metadata.
    pub metadata: BTreeMap<String, String>,
}

/// Combines adapters. `modules` are all projections of their base, if it is known; `any_base` accepts adapters that
/// name different bases.
///
/// # Errors
/// [`Error::DifferentBases`]; [`Error::Choice`] for different ranks or DoRA; tensors that cannot be read.
pub fn combine(
    adapters: &[Weighted],
    combination: Combination,
    seed: u64,
    modules: Option<&[Module]>,
    any_base: bool,
) -> Result<Combined, Error> {
    let Some(first) = adapters.first() else { return refuse("no adapters given".into()) };
    for Weighted { adapter, .. } in adapters {
        if adapter.config().use_dora {
            return refuse(format!(
                "{} is a DoRA adapter, and DoRA magnitudes cannot be combined; merge it into the base first",
                adapter.folder().display()
            ));
        }
    }
    if !any_base {
        same_base(adapters)?;
    }
    let mut parts = Vec::with_capacity(adapters.len());
    for Weighted { adapter, weight } in adapters {
        let targets = match modules {
            Some(modules) => adapter.targets(modules)?,
            None => adapter.targets(&adapter.modules()?)?,
        };
        parts.push((adapter, *weight, targets));
    }
    let chosen = all_modules(&parts)?;
    let ranks: Vec<usize> = parts.iter().map(|(_, _, targets)| largest_rank(targets)).collect();
    if combination != Combination::Cat && ranks.iter().any(|rank| *rank != ranks[0]) {
        return refuse(different_ranks(&parts, &ranks, combination));
    }
    let (mut targets, mut values) = (Vec::with_capacity(chosen.len()), Vec::with_capacity(2 * chosen.len()));
    for module in chosen {
        let mut pieces = Vec::with_capacity(parts.len());
        for (place, (adapter, weight, targets)) in parts.iter().enumerate() {
            let Some(target) = targets.iter().find(|target| target.module.path == module.path) else {
                continue;
            };
            let mut values = adapter.values(std::slice::from_ref(target))?.into_iter();
            let (a, b) = (values.next().unwrap_or_default(), values.next().unwrap_or_default());
            pieces.push(Piece { place, weight: *weight, scaling: target.scaling, rank: target.rank, a, b });
        }
        let rank = match combination {
            Combination::Cat => ranks.iter().sum(),
            _ => pieces[0].rank,
        };
        if combination != Combination::Cat && pieces.iter().any(|piece| piece.rank != rank) {
            return refuse(format!(
                "the adapters have different ranks on `{}`, and {} needs equal ranks; `--combine cat` accepts any",
                module.path,
                combination.name()
            ));
        }
        let [a, b] = match combination {
            Combination::Cat => beside_each_other(&pieces, &module, rank),
            _ => merged(pieces, combination, seed, &module.path),
        };
        values.extend([a, b]);
        targets.push(Target { module, rank, alpha: rank as f64, scaling: 1.0, use_dora: false });
    }
    let lattice = modules.map_or_else(|| portable::lattice(&targets), <[Module]>::to_vec);
    let config = portable::config(first.adapter.config(), &targets, &lattice, false);
    Ok(Combined { config, targets, values, metadata: provenance(adapters, combination, seed)? })
}

fn refuse<T>(message: String) -> Result<T, Error> {
    Err(Error::Choice { message })
}

fn largest_rank(targets: &[Target]) -> usize {
    targets.iter().map(|target| target.rank).max().unwrap_or(0)
}

fn different_ranks(
    parts: &[(&peft::Adapter, f64, Vec<Target>)],
    ranks: &[usize],
    combination: Combination,
) -> String {
    let each =
        parts.iter().zip(ranks).map(|((adapter, ..), rank)| format!("{} {rank}", adapter.folder().display()));
    format!(
        "{} needs adapters of equal rank; given are: {}; `--combine cat` accepts any",
        combination.name(),
        each.collect::<Vec<_>>().join(", ")
    )
}

/// The union of the adapters' modules, sorted by layer, role and path.
fn all_modules(parts: &[(&peft::Adapter, f64, Vec<Target>)]) -> Result<Vec<Module>, Error> {
    let mut modules: BTreeMap<(usize, Role, String), Module> = BTreeMap::new();
    for (adapter, _, targets) in parts {
        for target in targets {
            let module = &target.module;
            let place = (module.layer, module.role, module.path.clone());
            let known = modules.entry(place).or_insert_with(|| module.clone());
            if known != module {
                return refuse(format!(
                    "`{}` is {} × {} in {} and {} × {} in another adapter: they belong to different models",
                    module.path,
                    module.out_features,
                    module.in_features,
                    adapter.folder().display(),
                    known.out_features,
                    known.in_features
                ));
            }
        }
    }
    Ok(modules.into_values().collect())
}

/// The hashes of weights and config.json that an adapter records of its base.
fn recorded(adapter: &peft::Adapter) -> BTreeMap<&str, &str> {
    let metadata = adapter.metadata().iter();
    let files = metadata.filter_map(|(key, hash)| Some((key.strip_prefix(HASH_PREFIX)?, hash.as_str())));
    files.filter(|(file, _)| file.ends_with(".safetensors") || *file == "config.json").collect()
}

/// Checks that all adapters have one base: by recorded hashes, else by name.
fn same_base(adapters: &[Weighted]) -> Result<(), Error> {
    let Some((first, others)) = adapters.split_first() else { return Ok(()) };
    let (first, name) = (&first.adapter, |adapter: &peft::Adapter| adapter.config().base_model.clone());
    let mut differences = Vec::new();
    for Weighted { adapter, .. } in others {
        let (one, other) = (recorded(first), recorded(adapter));
        let differ = match one.is_empty() || other.is_empty() {
            true => name(first) != name(adapter),
            false => one != other,
        };
        if differ {
            let shown = |adapter: &peft::Adapter| name(adapter).unwrap_or_else(|| "an unnamed base".into());
            differences.push(format!(
                "{} was trained on {}, {} on {}{}",
                first.folder().display(),
                shown(first),
                adapter.folder().display(),
                shown(adapter),
                if name(first) == name(adapter) { " with other files" } else { "" }
            ));
        }
    }
    match differences.is_empty() {
        true => Ok(()),
        false => Err(Error::DifferentBases { differences }),
    }
}

/// Metadata common to all adapters, and how they were combined. Adapters are identified by the hash of their tensors.
fn provenance(
    adapters: &[Weighted],
    combination: Combination,
    seed: u64,
) -> Result<BTreeMap<String, String>, Error> {
    let mut metadata: BTreeMap<String, String> = adapters[0].adapter.metadata().clone();
    // Only what all adapters record alike is true of the combination.
    let of_base = |key: &str| {
        key.starts_with("tune.base_") || key.starts_with("tune.original") || key == QUANTIZATION_KEY
    };
    metadata.retain(|key, value| {
        of_base(key) && adapters.iter().all(|other| other.adapter.metadata().get(key) == Some(value))
    });
    metadata.insert("tune.version".into(), env!("CARGO_PKG_VERSION").into());
    metadata.insert("tune.combined".into(), combination.to_string());
    if matches!(combination, Combination::DareLinear(_) | Combination::DareTies(_)) {
        metadata.insert("tune.combined_seed".into(), seed.to_string());
    }
    for (number, Weighted { adapter, weight }) in adapters.iter().enumerate() {
        let file = digest(&adapter.folder().join(TENSORS_FILE))?;
        metadata
            .insert(format!("tune.combined_from.{}", number + 1), format!("{} times {weight}", file.sha256));
    }
    Ok(metadata)
}

/// One adapter's pair for a module.
struct Piece {
    /// The adapter's index.
    place: usize,
    weight: f64,
    scaling: f64,
    rank: usize,
    a: Vec<f32>,
    b: Vec<f32>,
}

/// `w·A` stacked by rows and `B` by columns, padded with zeros up to `rank`.
fn beside_each_other(pieces: &[Piece], module: &Module, rank: usize) -> [Vec<f32>; 2] {
    let mut a = Vec::with_capacity(rank * module.in_features);
    let mut b = vec![0.0; module.out_features * rank];
    let mut first = 0;
    for piece in pieces {
        let (weight, scaling) = (piece.weight as f32, piece.scaling as f32);
        a.extend(piece.a.iter().map(|value| value * weight * scaling));
        for (row, source) in b.chunks_exact_mut(rank).zip(piece.b.chunks_exact(piece.rank)) {
            row[first..first + piece.rank].copy_from_slice(source);
        }
        first += piece.rank;
    }
    a.resize(rank * module.in_features, 0.0);
    [a, b]
}

/// Combines A and B of a module from those of all adapters.
fn merged(pieces: Vec<Piece>, combination: Combination, seed: u64, path: &str) -> [Vec<f32>; 2] {
    let weights = |part: Part| -> Vec<f32> {
        let weight = |piece: &Piece| {
            let whole = piece.weight * piece.scaling;
            // The sign goes into A alone: in both it would cancel.
            let sign = if part == Part::A && whole < 0.0 { -1.0 } else { 1.0 };
            (whole.abs().sqrt() * sign) as f32
        };
        pieces.iter().map(weight).collect()
    };
    let (for_a, for_b) = (weights(Part::A), weights(Part::B));
    let (mut all_a, mut all_b) = (Vec::new(), Vec::new());
    for Piece { place, a, b, .. } in pieces {
        for (part, values, all) in [(Part::A, a, &mut all_a), (Part::B, b, &mut all_b)] {
            all.push(match combination {
                Combination::Linear | Combination::Cat => values,
                Combination::Ties(density) => largest(values, density),
                Combination::DareLinear(density) | Combination::DareTies(density) => {
                    drawn(values, density, seed, place, &key(path, part))
                }
            });
        }
    }
    [(all_a, for_a), (all_b, for_b)].map(|(tensors, weights)| match combination {
        Combination::Linear | Combination::Cat | Combination::DareLinear(_) => sum(&tensors, &weights),
        Combination::Ties(_) | Combination::DareTies(_) => elected(&tensors, &weights),
    })
}

/// Keeps the share `density` of the values with the largest magnitude; among equals, the first.
fn largest(mut values: Vec<f32>, density: f64) -> Vec<f32> {
    let count = (density * values.len() as f64) as usize;
    if count >= values.len() {
        return values;
    }
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|left, right| values[*right].abs().total_cmp(&values[*left].abs()));
    for index in &order[count..] {
        values[*index] = 0.0;
    }
    values
}

/// Keeps each value with probability `density` and divides it by that.
fn drawn(mut values: Vec<f32>, density: f64, seed: u64, place: usize, name: &str) -> Vec<f32> {
    if density >= 1.0 {
        return values;
    }
    let hash = Sha256::digest(name);
    let word = u32::from_le_bytes([hash[0], hash[1], hash[2], hash[3]]);
    let key = [seed as u32, (seed >> 32) as u32];
    let kept = (density * 4_294_967_296.0) as u64;
    for (block, values) in values.chunks_mut(4).enumerate() {
        let counter = [block as u32, (block as u64 >> 32) as u32, word, place as u32];
        for (value, draw) in values.iter_mut().zip(philox(counter, key)) {
            *value = if u64::from(draw) < kept { *value / density as f32 } else { 0.0 };
        }
    }
    values
}

/// Σ weight · tensor.
fn sum(tensors: &[Vec<f32>], weights: &[f32]) -> Vec<f32> {
    let element =
        |index: usize| tensors.iter().zip(weights).map(|(values, weight)| values[index] * weight).sum();
    (0..tensors[0].len()).map(element).collect()
}

/// Per element: elects the sign of the sum and returns the weighted mean of the values with that sign.
fn elected(tensors: &[Vec<f32>], weights: &[f32]) -> Vec<f32> {
    let element = |index: usize| {
        let sum: f32 = tensors.iter().map(|values| values[index]).sum();
        let agrees = |value: f32| if sum >= 0.0 { value > 0.0 } else { value < 0.0 };
        let mut total = 0.0;
        let mut voters = 0_u32;
        for (values, weight) in tensors.iter().zip(weights) {
            if agrees(values[index]) {
                total += values[index] * weight;
                voters += 1;
            }
        }
        total / voters.max(1) as f32
    };
    (0..tensors[0].len()).map(element).collect()
}

/// The adapters whose tokenizer differs from that of the first.
///
/// # Errors
/// A file that cannot be read.
pub fn other_tokenizers(adapters: &[Weighted]) -> Result<Vec<String>, Error> {
    let of = |adapter: &peft::Adapter| -> Result<BTreeSet<(String, String)>, Error> {
        let mut files = BTreeSet::new();
        for path in crate::assets::folder::tokenizer_files(adapter.folder())? {
            let file = digest(&path)?;
            files.insert((file.name, file.sha256));
        }
        Ok(files)
    };
    let Some((first, others)) = adapters.split_first() else { return Ok(Vec::new()) };
    let first = of(&first.adapter)?;
    let mut different = Vec::new();
    for Weighted { adapter, .. } in others {
        if of(adapter)? != first {
            different.push(adapter.folder().display().to_string());
        }
    }
    Ok(different)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_values_stay() {
        let values = vec![0.5, -3.0, 1.0, 2.0, -1.0];
        assert_eq!(largest(values.clone(), 0.4), [0.0, -3.0, 0.0, 2.0, 0.0]);
        // Of equals the first; a share is rounded down.
        assert_eq!(largest(values.clone(), 0.79), [0.0, -3.0, 1.0, 2.0, 0.0]);
        assert_eq!(largest(values.clone(), 1.0), values);
    }

    #[test]
    fn the_elected_sign_decides() {
        let tensors = [vec![1.0, -1.0, 0.0, 2.0], vec![3.0, 4.0, 0.0, -2.0], vec![-1.0, -1.0, 0.0, 0.0]];
        // Sums 3, 2, 0, 0; a draw goes to the positive.
        assert_eq!(elected(&tensors, &[1.0, 0.5, 2.0]), [1.25, 2.0, 0.0, 2.0]);
    }

    #[test]
    fn what_is_drawn_is_a_fair_share_and_keeps_the_mean() {
        let count = 200_000;
        let ones = vec![1.0; count];
        let draw = |seed, place, name| drawn(ones.clone(), 0.3, seed, place, name);
        let values = draw(7, 0, "x");
        let kept = values.iter().filter(|value| **value != 0.0).count() as f64;
        // Five standard deviations.
        let deviation = (count as f64 * 0.3 * 0.7).sqrt();
        assert!((kept - 0.3 * count as f64).abs() < 5.0 * deviation, "{kept}");
        assert!(values.iter().all(|value| *value == 0.0 || *value == 1.0 / 0.3));
        // Neighbours do not hang together.
        let both = values.windows(2).filter(|pair| pair[0] != 0.0 && pair[1] != 0.0).count() as f64;
        assert!((both / count as f64 - 0.09).abs() < 0.005, "{both}");
        assert_eq!(values, draw(7, 0, "x"));
        for other in [draw(8, 0, "x"), draw(7, 1, "x"), draw(7, 0, "y")] {
            let same = values.iter().zip(&other).filter(|(left, right)| left == right).count() as f64;
            assert!((same / count as f64 - 0.58).abs() < 0.01, "{same}");
        }
    }
}
