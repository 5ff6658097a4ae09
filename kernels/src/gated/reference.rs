//! The slow oracle of the gated activation: f32 in, f64 inside, f32 out. GELU is written with tanh, as it is defined.

use super::{Activation, CLAMPED_FACTOR, CLAMPED_LIMIT};

/// `activation(gate) · up`.
pub fn forward(activation: Activation, gate: &[f32], up: &[f32]) -> Vec<f32> {
    let value = |(gate, up): (&f32, &f32)| {
        (value_and_slope(activation, *gate).0 * factor_and_slope(activation, *up).0) as f32
    };
    gate.iter().zip(up).map(value).collect()
}

/// Gradients of `gate` and `up` for upstream `dy`.
pub fn backward(activation: Activation, gate: &[f32], up: &[f32], dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let gradients = |((gate, up), dy): ((&f32, &f32), &f32)| {
        let (value, slope) = value_and_slope(activation, *gate);
        let (factor, slope_of_up) = factor_and_slope(activation, *up);
        let dy = f64::from(*dy);
        ((dy * factor * slope) as f32, (dy * value * slope_of_up) as f32)
    };
    gate.iter().zip(up).zip(dy).map(gradients).unzip()
}

/// What `up` is multiplied in as, and its derivative.
fn factor_and_slope(activation: Activation, up: f32) -> (f64, f64) {
    match activation {
        Activation::Clamped if up.abs() > CLAMPED_LIMIT => (1.0 + f64::from(CLAMPED_LIMIT.copysign(up)), 0.0),
        Activation::Clamped => (1.0 + f64::from(up), 1.0),
        _ => (f64::from(up), 1.0),
    }
}

/// The activation at `x`, and its derivative.
fn value_and_slope(activation: Activation, x: f32) -> (f64, f64) {
    let x = f64::from(x);
    match activation {
        Activation::Silu => {
            let s = 1.0 / (1.0 + (-x).exp());
            (x * s, s * (1.0 + x * (1.0 - s)))
        }
        Activation::Clamped => {
            let (limit, factor) = (f64::from(CLAMPED_LIMIT), f64::from(CLAMPED_FACTOR));
            let clamped = x.min(limit);
            let s = 1.0 / (1.0 + (-factor * clamped).exp());
            let slope = if x > limit { 0.0 } else { s * (1.0 + factor * x * (1.0 - s)) };
            (clamped * s, slope)
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
