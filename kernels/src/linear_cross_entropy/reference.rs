//! The slow oracle of head and loss: all logits of a row, f32 in, f64 inside, f32 out.

/// The gradient of `head` `[vocabulary, width]` for upstream 1.
pub fn head_gradient(hidden: &[f32], head: &[f32], targets: &[Option<usize>], width: usize) -> Vec<f32> {
    let mut gradient = vec![0.0f64; head.len()];
    for (hidden, target) in hidden.chunks_exact(width).zip(targets) {
        let Some(target) = *target else { continue };
        let dot = |row: &[f32]| row.iter().zip(hidden).map(|(w, h)| f64::from(*w) * f64::from(*h)).sum();
        let logits: Vec<f64> = head.chunks_exact(width).map(dot).collect();
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.iter().map(|z| (z - max).exp()).sum();
        for (token, (z, gradient)) in logits.iter().zip(gradient.chunks_exact_mut(width)).enumerate() {
            let slope = (z - max).exp() / sum - if token == target { 1.0 } else { 0.0 };
            for (gradient, h) in gradient.iter_mut().zip(hidden) {
                *gradient += slope * f64::from(*h);
            }
        }
    }
    gradient.into_iter().map(|value| value as f32).collect()
}

/// Loss, and the gradient of `hidden` `[tokens, width]` for upstream 1. `head` is `[vocabulary, width]`; a target
/// of `None` is not supervised.
pub fn loss_and_gradient(
    hidden: &[f32],
    head: &[f32],
    targets: &[Option<usize>],
    width: usize,
) -> (f64, Vec<f32>) {
    let mut loss = 0.0;
    let mut gradient = vec![0.0f32; hidden.len()];
    for ((hidden, target), gradient) in
        hidden.chunks_exact(width).zip(targets).zip(gradient.chunks_exact_mut(width))
    {
        let Some(target) = *target else { continue };
        let logits: Vec<f64> = head
            .chunks_exact(width)
            .map(|row| row.iter().zip(hidden).map(|(w, h)| f64::from(*w) * f64::from(*h)).sum())
            .collect();
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.iter().map(|z| (z - max).exp()).sum();
        loss += max + sum.ln() - logits[target];
        for (i, gradient) in gradient.iter_mut().enumerate() {
            let mut total = 0.0;
            for (token, z) in logits.iter().enumerate() {
                let slope = (z - max).exp() / sum - if token == target { 1.0 } else { 0.0 };
                total += slope * f64::from(head[token * width + i]);
            }
            *gradient = total as f32;
        }
    }
    (loss, gradient)
}
