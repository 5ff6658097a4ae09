//! Chooses the next token: the most likely one, or a sample.
//!
//! Logits pass through the enabled steps in transformers' order:
//!
//! ```text
//! repetition penalty   z[t] / penalty where z[t] > 0, else z[t] · penalty, for every token t seen so far
//! temperature          z / temperature
//! top-k                the k highest, and ties with the last of them
//! top-p                the smallest set of those with this total probability (Holtzman et al. 2020)
//! min-p                those with at least this share of the highest probability
//! ```
//!
//! Random numbers are counter-based (Philox, keyed by seed, answer and position in the answer), so that the same logits
//! give the same answer everywhere.

use tune_kernels::dropout::philox;

use super::spec::Spec;

/// The sampling settings of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Longest answer, in tokens.
    pub max_new_tokens: usize,
    /// Divisor of the logits; 0: always the most likely token.
    pub temperature: f64,
    /// Sample from this many of the most likely tokens; 0: from all.
    pub top_k: usize,
    /// Sample from the smallest set of tokens with this total probability, in (0, 1]; 1: from all.
    pub top_p: f64,
    /// Sample from tokens with at least this share of the highest probability, in [0, 1]; 0: from all.
    pub min_p: f64,
    /// Makes tokens of prompt and answer less likely (above 1) or more likely (below 1), at temperature 0 too.
    pub repetition_penalty: f64,
    /// Seed of the sampling.
    pub seed: u64,
    /// Number of the answer: answers of one seed are sampled independently.
    pub answer: u64,
    /// Tokens that end the answer; they are not part of it.
    pub stop_tokens: Vec<u32>,
}

impl Sampling {
    /// Always the most likely token.
    pub fn greedy(max_new_tokens: usize, stop_tokens: Vec<u32>) -> Self {
        Self {
            max_new_tokens,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
            answer: 0,
            stop_tokens,
        }
    }

    /// The settings of a recipe.
    pub fn from_spec(spec: &Spec, stop_tokens: Vec<u32>) -> Self {
        let greedy = Self::greedy(spec.max_new_tokens, stop_tokens);
        Self { temperature: spec.temperature, seed: spec.seed, ..greedy }
    }

    /// Penalizes each distinct token of `seen` once.
    pub fn penalize(&self, logits: &mut [f32], seen: &[u32]) {
        if self.repetition_penalty == 1.0 {
            return;
        }
        let penalty = self.repetition_penalty as f32;
        let mut ids = seen.to_vec();
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
            }
        }
    }

    /// The token at a position of an answer, from 0, for penalized logits; `None` if no logit is finite.
    pub fn pick(&self, logits: &[f32], place: u64) -> Option<u32> {
        let (likeliest, highest) = likeliest(logits)?;
        if self.temperature <= 0.0 {
            return u32::try_from(likeliest).ok();
        }
        let candidates = self.candidates(logits, highest);
        let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
        let mut left = self.uniform(place) * total;
        let drawn = candidates.iter().find(|(_, weight)| {
            left -= weight;
            left < 0.0
        });
        // Rounding may leave a small rest after the last candidate.
        u32::try_from(drawn.or(candidates.last()).map_or(likeliest, |(id, _)| *id)).ok()
    }

    /// The candidate tokens and their relative weights.
    fn candidates(&self, logits: &[f32], highest: f32) -> Vec<(usize, f64)> {
        let lowest = match self.top_k {
            k if k > 0 && k < logits.len() => {
                let mut sorted = logits.to_vec();
                *sorted.select_nth_unstable_by(k - 1, |left, right| right.total_cmp(left)).1
            }
            _ => f32::NEG_INFINITY,
        };
        let weight = |logit: f32| (f64::from(logit - highest) / self.temperature).exp();
        let kept = logits.iter().enumerate().filter(|(_, logit)| **logit >= lowest);
        let mut candidates: Vec<(usize, f64)> = kept.map(|(id, &logit)| (id, weight(logit))).collect();
        if self.top_p < 1.0 {
            keep_likeliest(&mut candidates, self.top_p);
        }
        if self.min_p > 0.0 {
            // The most likely one weighs 1.
            candidates.retain(|(_, weight)| *weight >= self.min_p);
        }
        candidates
    }

    /// The random number at a position, in [0, 1), with 53 random bits.
    fn uniform(&self, place: u64) -> f64 {
        let counter = [place as u32, (place >> 32) as u32, self.answer as u32, (self.answer >> 32) as u32];
        let [high, low, ..] = philox(counter, [self.seed as u32, (self.seed >> 32) as u32]);
        let bits = (u64::from(high) << 32 | u64::from(low)) >> 11;
        bits as f64 / (1_u64 << 53) as f64
    }
}

/// The most likely token and its logit; `None` if it is infinite or any logit is NaN.
fn likeliest(logits: &[f32]) -> Option<(usize, f32)> {
    let (id, highest) = logits.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (id, &logit)| {
        // The lower id wins a tie.
        if logit > best.1 { (id, logit) } else { best }
    });
    // An infinite or missing maximum, or a NaN anywhere, means that the forward pass failed.
    (highest.is_finite() && !logits.iter().any(|logit| logit.is_nan())).then_some((id, highest))
}

/// Keeps the smallest set of candidates with `share` of the total weight, most likely first.
fn keep_likeliest(candidates: &mut Vec<(usize, f64)>, share: f64) {
    let enough = share * candidates.iter().map(|(_, weight)| weight).sum::<f64>();
    let order =
        |left: &(usize, f64), right: &(usize, f64)| right.1.total_cmp(&left.1).then(left.0.cmp(&right.0));
    // Usually a few suffice: the whole vocabulary is sorted only if they do not.
    let mut sorted = 64;
    loop {
        if sorted < candidates.len() {
            candidates.select_nth_unstable_by(sorted - 1, order);
        }
        sorted = sorted.min(candidates.len());
        candidates[..sorted].sort_unstable_by(order);
        let mut kept = 0.0;
        let last = candidates[..sorted].iter().position(|(_, weight)| {
            kept += weight;
            kept >= enough
        });
        match last {
            Some(last) => return candidates.truncate(last + 1),
            None if sorted == candidates.len() => return,
            None => sorted *= 8,
        }
    }
}

#[cfg(test)]
mod tests;
