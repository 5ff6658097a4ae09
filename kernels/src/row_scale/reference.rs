//! The slow oracle of scaled rows: f64 inside.

/// `x` `[rows, width]` with each row times its factor.
pub fn forward(x: &[f32], factors: &[f32]) -> Vec<f32> {
    let width = x.len() / factors.len().max(1);
    let value = |(index, x): (usize, &f32)| (f64::from(*x) * f64::from(factors[index / width])) as f32;
    x.iter().enumerate().map(value).collect()
}

/// The gradients of `x` and of the factors for upstream `dy`.
pub fn backward(x: &[f32], factors: &[f32], dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let width = (x.len() / factors.len().max(1)).max(1);
    let product = |(x, dy): (&[f32], &[f32])| {
        x.iter().zip(dy).map(|(x, dy)| f64::from(*x) * f64::from(*dy)).sum::<f64>() as f32
    };
    (forward(dy, factors), x.chunks(width).zip(dy.chunks(width)).map(product).collect())
}
