//! The slow oracle of the linear op: triple loops, f32 in, f64 sums, f32 out.

/// Sizes of one call.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Rows of `x`.
    pub tokens: usize,
    /// Columns of `x`.
    pub input: usize,
    /// Rows of `W`.
    pub out: usize,
}

/// An adapter with the mask written out.
#[derive(Clone, Copy, Debug)]
pub struct LoraSlices<'a> {
    /// `[rank, in]`.
    pub a: &'a [f32],
    /// `[out, rank]`.
    pub b: &'a [f32],
    /// Rank.
    pub rank: usize,
    /// Factor of the adapter's output.
    pub scaling: f32,
    /// `[tokens, in]`, what each element of x is multiplied by: 0 or 1/(1 − p).
    pub mask: &'a [f32],
}

/// `[rows, inner] · [columns, inner]ᵀ`.
fn times_transposed(a: &[f32], b: &[f32], rows: usize, inner: usize, columns: usize) -> Vec<f64> {
    let mut out = vec![0.0; rows * columns];
    for row in 0..rows {
        for column in 0..columns {
            for i in 0..inner {
                out[row * columns + column] +=
                    f64::from(a[row * inner + i]) * f64::from(b[column * inner + i]);
            }
        }
    }
    out
}

fn masked(x: &[f32], mask: &[f32]) -> Vec<f32> {
    x.iter().zip(mask).map(|(x, mask)| x * mask).collect()
}

/// `y = x Wᵀ + bias + scaling · (mask∘x Aᵀ) Bᵀ`; `weight` `[out, in]` dense.
pub fn forward(
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    lora: Option<LoraSlices<'_>>,
    sizes: Sizes,
) -> Vec<f32> {
    let Sizes { tokens, input, out } = sizes;
    let mut y = times_transposed(x, weight, tokens, input, out);
    for token in 0..tokens {
        for column in 0..out {
            if let Some(bias) = bias {
                y[token * out + column] += f64::from(bias[column]);
            }
        }
    }
    if let Some(lora) = lora {
        let t = times_transposed(&masked(x, lora.mask), lora.a, tokens, input, lora.rank);
        for token in 0..tokens {
            for column in 0..out {
                for r in 0..lora.rank {
                    let product = t[token * lora.rank + r] * f64::from(lora.b[column * lora.rank + r]);
                    y[token * out + column] += f64::from(lora.scaling) * product;
                }
            }
        }
    }
    y.into_iter().map(|value| value as f32).collect()
}

/// Gradients of `x`, `A` and `B` (the latter two empty without an adapter) for upstream `dy` `[tokens, out]`.
pub fn backward(
    x: &[f32],
    weight: &[f32],
    lora: Option<LoraSlices<'_>>,
    dy: &[f32],
    sizes: Sizes,
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let Sizes { tokens, input, out } = sizes;
    let mut dx = vec![0.0f64; tokens * input];
    for token in 0..tokens {
        for column in 0..input {
            for o in 0..out {
                dx[token * input + column] +=
                    f64::from(dy[token * out + o]) * f64::from(weight[o * input + column]);
            }
        }
    }
    let (mut da, mut db) = (Vec::new(), Vec::new());
    if let Some(LoraSlices { a, b, rank, scaling, mask }) = lora {
        let dropped = masked(x, mask);
        let t = times_transposed(&dropped, a, tokens, input, rank);
        let mut dt = vec![0.0f64; tokens * rank];
        da = vec![0.0f64; rank * input];
        db = vec![0.0f64; out * rank];
        for token in 0..tokens {
            for r in 0..rank {
                for o in 0..out {
                    let dy = f64::from(scaling) * f64::from(dy[token * out + o]);
                    dt[token * rank + r] += dy * f64::from(b[o * rank + r]);
                    db[o * rank + r] += dy * t[token * rank + r];
                }
                for column in 0..input {
                    let dt = dt[token * rank + r];
                    da[r * input + column] += dt * f64::from(dropped[token * input + column]);
                    let mask = f64::from(mask[token * input + column]);
                    dx[token * input + column] += mask * dt * f64::from(a[r * input + column]);
                }
            }
        }
    }
    let single = |values: Vec<f64>| values.into_iter().map(|value| value as f32).collect();
    (single(dx), single(da), single(db))
}
