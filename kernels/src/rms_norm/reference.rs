//! The slow oracle of RMS normalisation: f32 in, f64 inside, rounded once to f32.

use super::{NormWeight, RmsNorm};

/// `y` for `x` `[rows, width]`, onto `onto` if there is one.
pub fn forward(x: &[f32], weight: &[f32], norm: impl Into<RmsNorm>, onto: Option<&[f32]>) -> Vec<f32> {
    let norm = norm.into();
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks_exact(weight.len()) {
        let r = inverse_rms(row, norm.epsilon);
        for (x, weight) in row.iter().zip(weight) {
            let onto = onto.map_or(0.0, |onto| f64::from(onto[y.len()]));
            y.push((onto + f64::from(*x) * r * factor(*weight, norm)) as f32);
        }
    }
    y
}

/// Gradient of `x` for upstream `dy`.
pub fn backward(x: &[f32], weight: &[f32], norm: impl Into<RmsNorm>, dy: &[f32]) -> Vec<f32> {
    let norm = norm.into();
    let width = weight.len();
    let mut dx = Vec::with_capacity(x.len());
    for (row, dy) in x.chunks_exact(width).zip(dy.chunks_exact(width)) {
        let r = inverse_rms(row, norm.epsilon);
        let g = |i: usize| f64::from(dy[i]) * factor(weight[i], norm);
        let mean = (0..width).map(|i| g(i) * f64::from(row[i])).sum::<f64>() / width as f64;
        for (i, x) in row.iter().enumerate() {
            dx.push((r * (g(i) - f64::from(*x) * r * r * mean)) as f32);
        }
    }
    dx
}

fn factor(weight: f32, norm: RmsNorm) -> f64 {
    match norm.weight {
        NormWeight::Plain => f64::from(weight),
        NormWeight::OnePlus => 1.0 + f64::from(weight),
    }
}

fn inverse_rms(row: &[f32], epsilon: f64) -> f64 {
    let mean = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>() / row.len() as f64;
    1.0 / (mean + epsilon).sqrt()
}
