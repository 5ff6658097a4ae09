//! The slow oracle of activations without a gate: f32 in, f64 inside, f32 out. GELU is written with tanh and the series of
//! the error function.

use super::Function;

/// `function(x)`.
pub fn forward(function: Function, x: &[f32]) -> Vec<f32> {
    x.iter().map(|x| value_and_slope(function, *x).0 as f32).collect()
}

/// The gradient of `x` for upstream `dy`.
pub fn backward(function: Function, x: &[f32], dy: &[f32]) -> Vec<f32> {
    x.iter().zip(dy).map(|(x, dy)| (value_and_slope(function, *x).1 * f64::from(*dy)) as f32).collect()
}

/// The function at `x`, and its derivative.
fn value_and_slope(function: Function, x: f32) -> (f64, f64) {
    let x = f64::from(x);
    match function {
        Function::Gelu => {
            let below = 0.5 * (1.0 + erf(x / 2f64.sqrt()));
            let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
            (x * below, below + x * density)
        }
        Function::GeluTanh => {
            let root = (2.0 / std::f64::consts::PI).sqrt();
            let t = (root * (x + 0.044715 * x.powi(3))).tanh();
            let slope = root * (1.0 + 3.0 * 0.044715 * x * x);
            (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope)
        }
        Function::ReluSquared => (x.max(0.0).powi(2), 2.0 * x.max(0.0)),
    }
}

/// 2/√π · e^(−x²) · Σ 2ⁿ x²ⁿ⁺¹ / (2n + 1)!!: all terms of one sign.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > 1e-18 * sum.abs() {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}
