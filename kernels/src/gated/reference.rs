//! The slow oracle of the gated activation: f32 in, f64 inside, f32 out. GELU is written with tanh, as it is defined.

use super::Activation;

/// `activation(gate) · up`.
pub fn forward(activation: Activation, gate: &[f32], up: &[f32]) -> Vec<f32> {
    let value = |(gate, up): (&f32, &f32)| (value_and_slope(activation, *gate).0 * f64::from(*up)) as f32;
    gate.iter().zip(up).map(value).collect()
}

/// Gradients of `gate` and `up` for upstream `dy`.
pub fn backward(activation: Activation, gate: &[f32], up: &[f32], dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let gradients = |((gate, up), dy): ((&f32, &f32), &f32)| {
        let (value, slope) = value_and_slope(activation, *gate);
        let dy = f64::from(*dy);
        ((dy * f64::from(*up) * slope) as f32, (dy * value) as f32)
    };
    gate.iter().zip(up).zip(dy).map(gradients).unzip()
}

/// The activation at `x`, and its derivative.
fn value_and_slope(activation: Activation, x: f32) -> (f64, f64) {
    let x = f64::from(x);
    match activation {
        Activation::Silu => {
            let s = 1.0 / (1.0 + (-x).exp());
            (x * s, s * (1.0 + x * (1.0 - s)))
        }
        Activation::Sigmoid => {
            let s = 1.0 / (1.0 + (-x).exp());
            (s, s * (1.0 - s))
        }
        Activation::GeluTanh => {
            let root = (2.0 / std::f64::consts::PI).sqrt();
            let t = (root * (x + 0.044715 * x.powi(3))).tanh();
            let slope = root * (1.0 + 3.0 * 0.044715 * x * x);
            (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope)
        }
    }
}
