//! What the system says about this process's memory, and what a decoder layer's kept activations would cost.

use crate::model::DecoderSpec;

/// Largest resident set of this process so far in bytes; `None` where the system does not tell.
pub fn peak_resident_bytes() -> Option<u64> {
    kilobytes_field("/proc/self/status", "VmHWM:")
}

/// Memory that can be had without swapping, in bytes; `None` where the system does not tell.
pub fn available_bytes() -> Option<u64> {
    kilobytes_field("/proc/meminfo", "MemAvailable:")
}

fn kilobytes_field(path: &str, field: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(field))?;
    let kilobytes: u64 = line.split_ascii_whitespace().nth(1)?.parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// Bytes that one layer's autodiff graph holds for a micro-batch of `tokens`, when it is kept for the backward pass.
///
/// Per token: the layer's input and the two sums of the residual stream, two normed states, queries, keys, values
/// before and after rotation, the attention output, gate, up and their product, each in the compute dtype.
pub fn kept_layer_bytes(spec: &DecoderSpec, tokens: u64, compute_bytes: u64) -> u64 {
    let hidden = spec.hidden_size as u64;
    let queries = (spec.attention_heads * spec.head_dim) as u64;
    let keys = (spec.key_value_heads * spec.head_dim) as u64;
    let intermediate = spec.intermediate_size as u64;
    tokens * compute_bytes * (6 * hidden + 3 * queries + 5 * keys + 3 * intermediate)
}

/// How many of the top layers may keep their activations within `budget` bytes; the others are recomputed.
pub fn layers_to_keep(spec: &DecoderSpec, tokens: u64, compute_bytes: u64, budget: u64) -> usize {
    let each = kept_layer_bytes(spec, tokens, compute_bytes).max(1);
    spec.layers.min(usize::try_from(budget / each).unwrap_or(usize::MAX))
}
