//! The slow oracle of scaled columns: f32 in, f64 inside, f32 out.

/// `u · factors + bias + residual`; `factors` has one value for each column.
pub fn forward(u: &[f32], factors: &[f32], bias: Option<&[f32]>, residual: Option<&[f32]>) -> Vec<f32> {
    let value = |(index, u): (usize, &f32)| {
        let column = index % factors.len();
        let bias = bias.map_or(0.0, |bias| f64::from(bias[column]));
        let residual = residual.map_or(0.0, |residual| f64::from(residual[index]));
        (f64::from(*u) * f64::from(factors[column]) + bias + residual) as f32
    };
    u.iter().enumerate().map(value).collect()
}

/// Gradients of `u` and of the factors for upstream `dy`.
pub fn backward(u: &[f32], factors: &[f32], dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let mut sums = vec![0.0f64; factors.len()];
    let mut du = Vec::with_capacity(u.len());
    for (index, (u, dy)) in u.iter().zip(dy).enumerate() {
        let column = index % factors.len();
        sums[column] += f64::from(*dy) * f64::from(*u);
        du.push((f64::from(*dy) * f64::from(factors[column])) as f32);
    }
    (du, sums.into_iter().map(|sum| sum as f32).collect())
}
