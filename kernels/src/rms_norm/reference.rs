//! The slow oracle of RMS normalisation: f32 in, f64 sums, f32 out.

/// `y` for `x` `[rows, width]`.
pub fn forward(x: &[f32], weight: &[f32], epsilon: f64) -> Vec<f32> {
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks_exact(weight.len()) {
        let r = inverse_rms(row, epsilon);
        for (x, weight) in row.iter().zip(weight) {
            y.push((f64::from(*x) * r * f64::from(*weight)) as f32);
        }
    }
    y
}

/// Gradient of `x` for upstream `dy`.
pub fn backward(x: &[f32], weight: &[f32], epsilon: f64, dy: &[f32]) -> Vec<f32> {
    let width = weight.len();
    let mut dx = Vec::with_capacity(x.len());
    for (row, dy) in x.chunks_exact(width).zip(dy.chunks_exact(width)) {
        let r = inverse_rms(row, epsilon);
        let g = |i: usize| f64::from(dy[i]) * f64::from(weight[i]);
        let mean = (0..width).map(|i| g(i) * f64::from(row[i])).sum::<f64>() / width as f64;
        for (i, x) in row.iter().enumerate() {
            dx.push((r * (g(i) - f64::from(*x) * r * r * mean)) as f32);
        }
    }
    dx
}

fn inverse_rms(row: &[f32], epsilon: f64) -> f64 {
    let mean = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>() / row.len() as f64;
    1.0 / (mean + epsilon).sqrt()
}
