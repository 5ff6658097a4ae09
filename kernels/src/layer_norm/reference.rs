//! The slow oracle of layer normalisation: f32 in, f64 inside, rounded once to f32.

/// `y` for `x` `[rows, width]`, onto `onto` if there is one.
pub fn forward(
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    epsilon: f64,
    onto: Option<&[f32]>,
) -> Vec<f32> {
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks_exact(weight.len()) {
        let (normalised, _) = normalised(row, epsilon);
        for (i, n) in normalised.into_iter().enumerate() {
            let onto = onto.map_or(0.0, |onto| f64::from(onto[y.len()]));
            let bias = bias.map_or(0.0, |bias| f64::from(bias[i]));
            y.push((onto + n * f64::from(weight[i]) + bias) as f32);
        }
    }
    y
}

/// Gradient of `x` for upstream `dy`.
pub fn backward(x: &[f32], weight: &[f32], epsilon: f64, dy: &[f32]) -> Vec<f32> {
    let width = weight.len();
    let mut dx = Vec::with_capacity(x.len());
    for (row, dy) in x.chunks_exact(width).zip(dy.chunks_exact(width)) {
        let (n, r) = normalised(row, epsilon);
        let g: Vec<f64> =
            dy.iter().zip(weight).map(|(dy, weight)| f64::from(*dy) * f64::from(*weight)).collect();
        let mean = g.iter().sum::<f64>() / width as f64;
        let along = g.iter().zip(&n).map(|(g, n)| g * n).sum::<f64>() / width as f64;
        dx.extend(g.iter().zip(&n).map(|(g, n)| (r * (g - mean - n * along)) as f32));
    }
    dx
}

/// The row normalised, and 1 / √(variance + ε).
fn normalised(row: &[f32], epsilon: f64) -> (Vec<f64>, f64) {
    let width = row.len() as f64;
    let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / width;
    let variance = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / width;
    let r = 1.0 / (variance + epsilon).sqrt();
    (row.iter().map(|x| (f64::from(*x) - mean) * r).collect(), r)
}
