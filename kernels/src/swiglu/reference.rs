//! The slow oracle of the gated activation: f32 in, f64 inside, f32 out.

/// `silu(gate) · up`.
pub fn forward(gate: &[f32], up: &[f32]) -> Vec<f32> {
    gate.iter()
        .zip(up)
        .map(|(gate, up)| (f64::from(*gate) * sigmoid(*gate) * f64::from(*up)) as f32)
        .collect()
}

/// Gradients of `gate` and `up` for upstream `dy`.
pub fn backward(gate: &[f32], up: &[f32], dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let mut gradients = (Vec::new(), Vec::new());
    for ((gate, up), dy) in gate.iter().zip(up).zip(dy) {
        let (s, x) = (sigmoid(*gate), f64::from(*gate));
        let (up, dy) = (f64::from(*up), f64::from(*dy));
        gradients.0.push((dy * up * s * (1.0 + x * (1.0 - s))) as f32);
        gradients.1.push((dy * x * s) as f32);
    }
    gradients
}

fn sigmoid(x: f32) -> f64 {
    1.0 / (1.0 + (-f64::from(x)).exp())
}
