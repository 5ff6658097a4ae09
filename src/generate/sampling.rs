//! Which token comes next: the likeliest, or one drawn from the likely ones.
//!
//! Draws are counter-based (Philox, keyed by seed and place in the answer), so that the same logits give the
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
    /// Draw from the fewest tokens that together have this probability (Holtzman et al. 2020), in (0, 1].
    pub top_p: f64,
    /// Seeds the draws.
    pub seed: u64,
    /// Tokens that end the answer; they are not part of it.
    pub stop_tokens: Vec<u32>,
}

impl Sampling {
    /// Always the likeliest token.
    pub fn greedy(max_new_tokens: usize, stop_tokens: Vec<u32>) -> Self {
        Self { max_new_tokens, temperature: 0.0, top_p: 1.0, seed: 0, stop_tokens }
    }

    /// What a recipe asks for.
    pub fn from_spec(spec: &Spec, stop_tokens: Vec<u32>) -> Self {
        Self {
            max_new_tokens: spec.max_new_tokens,
            temperature: spec.temperature,
            top_p: 1.0,
            seed: spec.seed,
            stop_tokens,
        }
    }

    /// The token at one place of an answer, from 0; `None` if no logit is a usable number.
    pub fn pick(&self, logits: &[f32], place: u64) -> Option<u32> {
        let (likeliest, highest) =
            logits.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (id, &logit)| {
                // The lower id wins a tie.
                if logit > best.1 { (id, logit) } else { best }
            });
        // An infinite or absent maximum, or a NaN anywhere, means that the forward pass went wrong.
        if !highest.is_finite() || logits.iter().any(|logit| logit.is_nan()) {
            return None;
        }
        if self.temperature <= 0.0 {
            return u32::try_from(likeliest).ok();
        }
        let weight = |logit: f32| (f64::from(logit - highest) / self.temperature).exp();
        let mut candidates: Vec<(usize, f64)> =
            logits.iter().enumerate().map(|(id, &logit)| (id, weight(logit))).collect();
        let mut total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
        if self.top_p < 1.0 {
            candidates.sort_by(|left, right| right.1.total_cmp(&left.1).then(left.0.cmp(&right.0)));
            let mut kept = 0.0;
            let enough = candidates.iter().position(|(_, weight)| {
                kept += weight;
                kept >= self.top_p * total
            });
            candidates.truncate(enough.map_or(candidates.len(), |last| last + 1));
            total = candidates.iter().map(|(_, weight)| weight).sum();
        }
        let mut left = uniform(self.seed, place) * total;
        let drawn = candidates.iter().find(|(_, weight)| {
            left -= weight;
            left < 0.0
        });
        // Rounding may leave a trifle after the last candidate.
        u32::try_from(drawn.or(candidates.last()).map_or(likeliest, |(id, _)| *id)).ok()
    }
}

/// The draw at one place, in [0, 1), with 53 random bits.
fn uniform(seed: u64, place: u64) -> f64 {
    let counter = [place as u32, (place >> 32) as u32, 0, 0];
    let [high, low, ..] = philox(counter, [seed as u32, (seed >> 32) as u32]);
    let bits = (u64::from(high) << 32 | u64::from(low)) >> 11;
    bits as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sampling(temperature: f64, top_p: f64) -> Sampling {
        Sampling { temperature, top_p, seed: 9, ..Sampling::greedy(1, Vec::new()) }
    }

    /// How often each token is drawn in `draws` places.
    fn shares(sampling: &Sampling, logits: &[f32], draws: u64) -> Vec<f64> {
        let mut counts = vec![0_u32; logits.len()];
        for place in 0..draws {
            counts[sampling.pick(logits, place).unwrap() as usize] += 1;
        }
        counts.into_iter().map(|count| f64::from(count) / draws as f64).collect()
    }

    #[test]
    fn greedy_takes_the_first_of_the_highest() {
        let greedy = sampling(0.0, 1.0);
        assert_eq!(greedy.pick(&[1.0, 3.0, 3.0, f32::NEG_INFINITY], 0), Some(1));
    }

    #[test]
    fn logits_that_are_no_numbers_are_refused() {
        for bad in [&[][..], &[f32::NAN, 1.0], &[1.0, f32::NAN], &[f32::INFINITY, 1.0], &[f32::NEG_INFINITY]]
        {
            assert_eq!(sampling(0.0, 1.0).pick(bad, 0), None);
            assert_eq!(sampling(1.0, 0.5).pick(bad, 0), None);
        }
    }

    #[test]
    fn shares_follow_the_softmax() {
        let logits = [0.0, 2.0_f32.ln(), f32::NEG_INFINITY, 5.0_f32.ln()];
        let warm = shares(&sampling(1.0, 1.0), &logits, 20_000);
        for (share, expected) in warm.iter().zip([0.125, 0.25, 0.0, 0.625]) {
            assert!((share - expected).abs() < 0.012, "{share} {expected}");
        }
        // Halving the temperature squares the odds.
        let cool = shares(&sampling(0.5, 1.0), &logits, 20_000);
        for (share, expected) in cool.iter().zip([1.0 / 30.0, 4.0 / 30.0, 0.0, 25.0 / 30.0]) {
            assert!((share - expected).abs() < 0.012, "{share} {expected}");
        }
    }

    #[test]
    fn top_p_keeps_the_fewest_that_are_enough() {
        let logits = [0.0, 2.0_f32.ln(), 5.0_f32.ln()];
        assert_eq!(shares(&sampling(1.0, 0.6), &logits, 500), [0.0, 0.0, 1.0]);
        let two = shares(&sampling(1.0, 0.7), &logits, 20_000);
        assert_eq!(two[0], 0.0);
        assert!((two[1] - 2.0 / 7.0).abs() < 0.012, "{}", two[1]);
    }

    #[test]
    fn draws_depend_on_seed_and_place_alone() {
        let logits: Vec<f32> = (0..50).map(|id| (id % 7) as f32 / 3.0).collect();
        let draw = |seed, place| Sampling { seed, ..sampling(1.0, 1.0) }.pick(&logits, place);
        let first: Vec<_> = (0..40).map(|place| draw(1, place)).collect();
        assert_eq!(first, (0..40).map(|place| draw(1, place)).collect::<Vec<_>>());
        assert_ne!(first, (0..40).map(|place| draw(2, place)).collect::<Vec<_>>());
        assert!((0..1000).all(|place| (0.0..1.0).contains(&uniform(3, place))));
    }

    proptest! {
        #[test]
        fn only_possible_tokens_are_drawn(
            logits in proptest::collection::vec(-50.0_f32..50.0, 1..20),
            temperature in 0.0_f64..3.0,
            top_p in 0.01_f64..=1.0,
            place in any::<u64>(),
        ) {
            let id = sampling(temperature, top_p).pick(&logits, place).unwrap();
            prop_assert!((id as usize) < logits.len());
        }
    }
}
