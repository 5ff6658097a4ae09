//! The slow oracle of rotary embedding: f32 in, f64 inside, f32 out.

use super::Pairs;

/// Sizes of one call.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Heads per token.
    pub heads: usize,
    /// Dimensions per head.
    pub head_dim: usize,
    /// Columns of the table.
    pub width: usize,
    /// Which dimensions are rotated together.
    pub pairs: Pairs,
}

/// `y` for `x` `[tokens, heads, head_dim]`; `cos` and `sin` `[positions, width]`.
pub fn forward(x: &[f32], cos: &[f32], sin: &[f32], position_ids: &[usize], sizes: Sizes) -> Vec<f32> {
    rotate(x, cos, sin, position_ids, sizes, 1.0)
}

/// Gradient of `x` for upstream `dy`.
pub fn backward(cos: &[f32], sin: &[f32], position_ids: &[usize], dy: &[f32], sizes: Sizes) -> Vec<f32> {
    rotate(dy, cos, sin, position_ids, sizes, -1.0)
}

fn rotate(x: &[f32], cos: &[f32], sin: &[f32], position_ids: &[usize], sizes: Sizes, sign: f64) -> Vec<f32> {
    let Sizes { heads, head_dim, width, pairs } = sizes;
    let mut y = x.to_vec();
    for (token, position) in position_ids.iter().enumerate() {
        for head in 0..heads {
            let start = (token * heads + head) * head_dim;
            for i in 0..width {
                let (first, second) = match pairs {
                    Pairs::Halves => (start + i, start + i + width),
                    Pairs::Neighbours => (start + 2 * i, start + 2 * i + 1),
                };
                let (left, right) = (f64::from(x[first]), f64::from(x[second]));
                let cos = f64::from(cos[position * width + i]);
                let sin = sign * f64::from(sin[position * width + i]);
                y[first] = (left * cos - right * sin) as f32;
                y[second] = (right * cos + left * sin) as f32;
            }
        }
    }
    y
}
