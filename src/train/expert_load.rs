//! How the tokens of a mixture are spread over its experts: what a run reports of routers that it does not train.

use serde::{Deserialize, Serialize};

/// Tokens sent to each expert, by layer; layers without experts are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExpertLoad(Vec<Vec<u64>>);

/// What a logged line says of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Tokens of the busiest expert over the mean of its layer, in the layer where that is largest.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expert_load_max: Option<f64>,
    /// Experts of all layers that no token was sent to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub experts_unused: Option<u64>,
}

impl ExpertLoad {
    /// Of counts by layer and expert.
    pub fn of(layers: Vec<Vec<u64>>) -> Self {
        match layers.iter().all(Vec::is_empty) {
            true => Self::default(),
            false => Self(layers),
        }
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// By layer: its number, and the tokens of each expert.
    pub fn layers(&self) -> impl Iterator<Item = (usize, &[u64])> {
        self.0.iter().map(Vec::as_slice).enumerate().filter(|(_, experts)| !experts.is_empty())
    }

    /// Adds other counts of the same layers.
    pub fn add(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), Vec::new());
        }
        for (sum, more) in self.0.iter_mut().zip(&other.0) {
            sum.resize(sum.len().max(more.len()), 0);
            sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        }
    }

    /// For another rank: of each layer the number of its experts, and their tokens.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let layer = |layer: &Vec<u64>| [&[layer.len() as u64], layer.as_slice()].concat();
        self.0.iter().flat_map(layer).flat_map(u64::to_le_bytes).collect()
    }

    /// The counts of [`Self::to_bytes`]; of bytes that are cut off those that are whole.
    pub(super) fn of_bytes(bytes: &[u8]) -> Self {
        let mut numbers = bytes.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
        let mut layers = Vec::new();
        while let Some(experts) = numbers.next() {
            layers.push(numbers.by_ref().take(experts.try_into().unwrap_or(usize::MAX)).collect());
        }
        Self::of(layers)
    }

    /// What a line says of it.
    pub fn spread(&self) -> Spread {
        let over_mean = |layer: &Vec<u64>| {
            let all: u64 = layer.iter().sum();
            let most = layer.iter().max()?;
            (all > 0).then(|| *most as f64 * layer.len() as f64 / all as f64)
        };
        let unused = |layer: &Vec<u64>| layer.iter().filter(|tokens| **tokens == 0).count() as u64;
        Spread {
            expert_load_max: self.0.iter().filter_map(over_mean).reduce(f64::max),
            experts_unused: (!self.is_empty()).then(|| self.0.iter().map(unused).sum()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_expert_and_those_without_tokens_are_reported() {
        let mut load = ExpertLoad::of(vec![vec![], vec![2, 0, 1, 1]]);
        load.add(&ExpertLoad::of(vec![vec![], vec![6, 0, 0, 2]]));
        let spread = load.spread();
        assert_eq!((spread.expert_load_max, spread.experts_unused), (Some(8.0 / 3.0), Some(1)));
        assert_eq!(ExpertLoad::of_bytes(&load.to_bytes()), load);
        assert!(ExpertLoad::of_bytes(&ExpertLoad::default().to_bytes()).is_empty());
        assert_eq!(ExpertLoad::of(vec![vec![], vec![]]).spread(), Spread::default());
    }
}
