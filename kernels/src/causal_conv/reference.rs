//! The slow oracle of the causal convolution: f32 in, f64 inside, f32 out.

use std::ops::Range;

use crate::attention::DocumentOffsets;

/// One call.
#[derive(Clone, Copy, Debug)]
pub struct Conv<'a> {
    /// `[channels, size]`.
    pub weight: &'a [f32],
    /// Tokens that a sum reaches over.
    pub size: usize,
    /// Whether the sum goes through x · σ(x).
    pub silu: bool,
    /// Where documents begin and end.
    pub documents: &'a DocumentOffsets,
}

impl Conv<'_> {
    fn channels(&self) -> usize {
        self.weight.len() / self.size
    }

    fn sum(&self, x: &[f32], document: &Range<usize>, token: usize, channel: usize) -> f64 {
        let channels = self.channels();
        (0..self.size)
            .filter(|back| token >= document.start + back)
            .map(|back| {
                let weight = self.weight[channel * self.size + self.size - 1 - back];
                f64::from(weight) * f64::from(x[(token - back) * channels + channel])
            })
            .sum()
    }
}

/// `y` for `x` `[tokens, channels]`.
pub fn forward(x: &[f32], conv: Conv<'_>) -> Vec<f32> {
    let channels = conv.channels();
    let mut y = vec![0.0; x.len()];
    for (document, _) in conv.documents.documents() {
        for token in document.clone() {
            for channel in 0..channels {
                let u = conv.sum(x, &document, token, channel);
                let value = if conv.silu { u / (1.0 + (-u).exp()) } else { u };
                y[token * channels + channel] = value as f32;
            }
        }
    }
    y
}

/// The gradient of `x` for upstream `dy`.
pub fn backward(x: &[f32], conv: Conv<'_>, dy: &[f32]) -> Vec<f32> {
    let channels = conv.channels();
    let mut dx = vec![0.0f64; x.len()];
    for (document, _) in conv.documents.documents() {
        for token in document.clone() {
            for channel in 0..channels {
                let u = conv.sum(x, &document, token, channel);
                let s = 1.0 / (1.0 + (-u).exp());
                let slope = if conv.silu { s * (1.0 + u * (1.0 - s)) } else { 1.0 };
                let du = slope * f64::from(dy[token * channels + channel]);
                for back in (0..conv.size).filter(|back| token >= document.start + back) {
                    let weight = conv.weight[channel * conv.size + conv.size - 1 - back];
                    dx[(token - back) * channels + channel] += f64::from(weight) * du;
                }
            }
        }
    }
    dx.into_iter().map(|value| value as f32).collect()
}
