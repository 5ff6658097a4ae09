//! The slow oracle of the router: f64 inside, a token at a time.

use super::{LEAST, Router, Score};

/// p of one token's logits.
fn scores(logits: &[f32], score: Score) -> Vec<f64> {
    let wide = || logits.iter().map(|z| f64::from(*z));
    match score {
        Score::Sigmoid => wide().map(|z| 1.0 / (1.0 + (-z).exp())).collect(),
        Score::Softmax => {
            let largest = wide().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = wide().map(|z| (z - largest).exp()).sum();
            wide().map(|z| (z - largest).exp() / sum).collect()
        }
    }
}

/// The experts of each token of `logits` `[tokens, experts]`.
pub fn choose(logits: &[f32], experts: usize, correction: Option<&[f32]>, router: Router) -> Vec<u32> {
    let of_token = |logits: &[f32]| {
        // A softmax keeps the order of its logits.
        let keys: Vec<f64> = match router.score {
            Score::Softmax => logits.iter().map(|z| f64::from(*z)).collect(),
            Score::Sigmoid => scores(logits, router.score),
        };
        let corrected =
            |expert: usize| keys[expert] + correction.map_or(0.0, |correction| f64::from(correction[expert]));
        let mut order: Vec<u32> = (0..experts as u32).collect();
        order.sort_by(|a, b| corrected(*b as usize).total_cmp(&corrected(*a as usize)));
        order.truncate(router.used);
        order
    };
    logits.chunks(experts).flat_map(of_token).collect()
}

/// The weights of the chosen experts, `[tokens, used]`.
pub fn weigh(logits: &[f32], experts: usize, chosen: &[u32], router: Router) -> Vec<f32> {
    let of_token = |(logits, chosen): (&[f32], &[u32])| {
        let scores = scores(logits, router.score);
        let picked: Vec<f64> = chosen.iter().map(|expert| scores[*expert as usize]).collect();
        let sum = if router.normalised { picked.iter().sum::<f64>() + f64::from(LEAST) } else { 1.0 };
        picked.into_iter().map(move |p| (f64::from(router.factor) * p / sum) as f32).collect::<Vec<_>>()
    };
    logits.chunks(experts).zip(chosen.chunks(router.used)).flat_map(of_token).collect()
}

/// The gradient of the logits for `dweights` `[tokens, used]`.
pub fn backward(
    logits: &[f32],
    experts: usize,
    chosen: &[u32],
    router: Router,
    dweights: &[f32],
) -> Vec<f32> {
    let mut slopes = Vec::with_capacity(logits.len());
    let tokens = logits.chunks(experts).zip(chosen.chunks(router.used)).zip(dweights.chunks(router.used));
    for ((logits, chosen), dweights) in tokens {
        let scores = scores(logits, router.score);
        // dL/dp.
        let mut dscores = vec![0.0; experts];
        let picked: Vec<f64> = chosen.iter().map(|expert| scores[*expert as usize]).collect();
        let sum: f64 = picked.iter().sum::<f64>() + f64::from(LEAST);
        let along: f64 = picked.iter().zip(dweights).map(|(p, dw)| p * f64::from(*dw)).sum();
        for (expert, dw) in chosen.iter().zip(dweights) {
            let slope = match router.normalised {
                true => (f64::from(*dw) - along / sum) / sum,
                false => f64::from(*dw),
            };
            dscores[*expert as usize] = f64::from(router.factor) * slope;
        }
        let along: f64 = scores.iter().zip(&dscores).map(|(p, dp)| p * dp).sum();
        slopes.extend(scores.iter().zip(&dscores).map(|(p, dp)| match router.score {
            Score::Sigmoid => (dp * p * (1.0 - p)) as f32,
            Score::Softmax => (p * (dp - along)) as f32,
        }));
    }
    slopes
}
