//! The slow oracle of AdamW: f32 state, f64 inside.

use super::AdamWConfig;

/// One update in place of parameter, first and second moment.
pub fn update(
    parameter: &mut [f32],
    gradient: &[f32],
    moments: (&mut [f32], &mut [f32]),
    config: &AdamWConfig,
    learning_rate: f64,
    step: u64,
) {
    let AdamWConfig { beta_1, beta_2, epsilon, weight_decay } = *config;
    let correction_1 = 1.0 - beta_1.powf(step as f64);
    let correction_2 = 1.0 - beta_2.powf(step as f64);
    for i in 0..parameter.len() {
        let g = f64::from(gradient[i]);
        let m = beta_1 * f64::from(moments.0[i]) + (1.0 - beta_1) * g;
        let v = beta_2 * f64::from(moments.1[i]) + (1.0 - beta_2) * g * g;
        let decayed = f64::from(parameter[i]) * (1.0 - learning_rate * weight_decay);
        let denominator = v.sqrt() / correction_2.sqrt() + epsilon;
        parameter[i] = (decayed - learning_rate / correction_1 * m / denominator) as f32;
        moments.0[i] = m as f32;
        moments.1[i] = v as f32;
    }
}

/// Σ x².
pub fn sum_of_squares(x: &[f32]) -> f64 {
    x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum()
}
