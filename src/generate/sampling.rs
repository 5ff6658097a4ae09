//! Which token comes next: the likeliest, or one drawn from the likely ones.
//!
//! Logits pass through the steps in transformers' order, and through those alone that are switched on:
//!
//! ```text
//! repetition penalty   z[t] / penalty where z[t] > 0, else z[t] · penalty, for every token t seen so far
//! temperature          z / temperature
//! top-k                the k highest, and whatever ties with the last of them
//! top-p                the fewest that together have this probability among those (Holtzman et al. 2020)
//! min-p                those with at least this share of the likeliest one's probability
//! ```
//!
//! Draws are counter-based (Philox, keyed by seed, answer and place in the answer), so that the same logits give the
//! same answer anywhere. Knows logits; refuses to know where they come from.

use tune_kernels::dropout::philox;

use super::spec::Spec;

/// How an answer is drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Longest answer, in tokens.
    pub max_new_tokens: usize,
    /// Divides the logits; 0: always the likeliest token.
    pub temperature: f64,
    /// Draw from so many tokens; 0: from all.
    pub top_k: usize,
    /// Draw from the fewest tokens that together have this probability, in (0, 1]; 1: from all.
    pub top_p: f64,
    /// Draw from tokens that have this share of the likeliest one's probability, in [0, 1]; 0: from all.
    pub min_p: f64,
    /// Makes the tokens of prompt and answer less likely (above 1) or more; 1: neither. Also where nothing is drawn.
    pub repetition_penalty: f64,
    /// Seeds the draws.
    pub seed: u64,
    /// Number of the answer: those of one seed are drawn independently of each other.
    pub answer: u64,
    /// Tokens that end the answer; they are not part of it.
    pub stop_tokens: Vec<u32>,
}

impl Sampling {
    /// Always the likeliest token.
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

    /// What a recipe asks for.
    pub fn from_spec(spec: &Spec, stop_tokens: Vec<u32>) -> Self {
        let greedy = Self::greedy(spec.max_new_tokens, stop_tokens);
        Self { temperature: spec.temperature, seed: spec.seed, ..greedy }
    }

    /// Penalizes the tokens of `seen`, each once, however often it was.
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

    /// The token at one place of an answer, from 0, of penalized logits; `None` if no logit is a usable number.
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
        // Rounding may leave a trifle after the last candidate.
        u32::try_from(drawn.or(candidates.last()).map_or(likeliest, |(id, _)| *id)).ok()
    }

    /// The tokens that may be drawn, and how likely each is beside the others.
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
            // The likeliest one weighs 1.
            candidates.retain(|(_, weight)| *weight >= self.min_p);
        }
        candidates
    }

    /// The draw at one place, in [0, 1), with 53 random bits.
    fn uniform(&self, place: u64) -> f64 {
        let counter = [place as u32, (place >> 32) as u32, self.answer as u32, (self.answer >> 32) as u32];
        let [high, low, ..] = philox(counter, [self.seed as u32, (self.seed >> 32) as u32]);
        let bits = (u64::from(high) << 32 | u64::from(low)) >> 11;
        bits as f64 / (1_u64 << 53) as f64
    }
}

/// The likeliest token and its logit; `None` if that is no number, or any is not.
fn likeliest(logits: &[f32]) -> Option<(usize, f32)> {
    let (id, highest) = logits.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (id, &logit)| {
        // The lower id wins a tie.
        if logit > best.1 { (id, logit) } else { best }
    });
    // An infinite or absent maximum, or a NaN anywhere, means that the forward pass went wrong.
    (highest.is_finite() && !logits.iter().any(|logit| logit.is_nan())).then_some((id, highest))
}

/// Keeps the fewest candidates that together have `share` of the whole weight, likeliest first.
fn keep_likeliest(candidates: &mut Vec<(usize, f64)>, share: f64) {
    let enough = share * candidates.iter().map(|(_, weight)| weight).sum::<f64>();
    let order =
        |left: &(usize, f64), right: &(usize, f64)| right.1.total_cmp(&left.1).then(left.0.cmp(&right.0));
    // Few are enough as a rule: a whole vocabulary is sorted only where they are not.
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
