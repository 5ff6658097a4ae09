//! Super-blocks of 256 numbers: the scales of their sub-blocks are quantized too.
//!
//! Each sub-block's scale (and minimum) is searched: codes for a few slightly different scales, for each the best
//! scale by weighted least squares, and the one with the smallest error kept. Then the scales are rounded to 6 or 8
//! bits under one f16, and the codes are taken anew with the rounded ones.

use super::numbers::{nearest, read_f16, write_f16};

/// Numbers in a super-block.
const SIZE: usize = 256;
/// Numbers under one scale and minimum.
const SUB: usize = 32;
const SUBS: usize = SIZE / SUB;
/// Below it a group of numbers counts as zero.
const NOTHING: f32 = 1e-15;

/// Where the scale of a q6_K block stands: behind low bits, high bits and sub-scales.
pub(super) const Q6_K_SCALE: usize = 208;

/// How a scale and a minimum are searched.
struct Search {
    /// The largest code.
    levels: i32,
    /// What is added to `levels` in the first attempt.
    first: f32,
    /// Further attempts, each a tenth higher.
    steps: i32,
}

/// What was found for 32 numbers: `scale·code − minimum`.
struct Affine {
    scale: f32,
    minimum: f32,
    codes: [u8; SUB],
}

/// Minimises `Σ w (scale·q + min − x)²` over codes, scale and a minimum that is at most 0; w = RMS + |x|.
fn affine(values: &[f32], search: &Search) -> Affine {
    let mut square = 0.0_f32;
    for value in values {
        square += value * value;
    }
    let mean = (square / SUB as f32).sqrt();
    let mut weights = [0.0_f32; SUB];
    for (weight, value) in weights.iter_mut().zip(values) {
        *weight = mean + value.abs();
    }
    let (mut least, mut most) = (values[0], values[0]);
    let (mut sum_weight, mut sum_value) = (weights[0], weights[0] * values[0]);
    for (value, weight) in values.iter().zip(&weights).skip(1) {
        if *value < least {
            least = *value;
        }
        if *value > most {
            most = *value;
        }
        sum_weight += weight;
        sum_value += weight * value;
    }
    if least > 0.0 {
        least = 0.0;
    }
    let mut codes = [0_u8; SUB];
    if most == least {
        return Affine { scale: 0.0, minimum: -least, codes };
    }
    let levels = search.levels;
    let coded =
        |inverse: f32, least: f32, value: f32| nearest(inverse * (value - least)).clamp(0, levels) as u8;
    let error = |codes: &[u8; SUB], scale: f32, minimum: f32| {
        let mut sum = 0.0_f32;
        for ((code, value), weight) in codes.iter().zip(values).zip(&weights) {
            let difference = scale * f32::from(*code) + minimum - value;
            sum += weight * (difference * difference);
        }
        sum
    };
    let inverse = levels as f32 / (most - least);
    let (mut scale, mut minimum) = (1.0 / inverse, least);
    for (code, value) in codes.iter_mut().zip(values) {
        *code = coded(inverse, least, *value);
    }
    let mut best = error(&codes, scale, minimum);
    for step in 0..=search.steps {
        // Each attempt starts from the best minimum so far.
        let inverse = (search.first + 0.1 * step as f32 + levels as f32) / (most - minimum);
        let mut attempt = [0_u8; SUB];
        let (mut sum_code, mut sum_square, mut sum_product) = (0.0_f32, 0.0_f32, 0.0_f32);
        for ((code, value), weight) in attempt.iter_mut().zip(values).zip(&weights) {
            *code = coded(inverse, minimum, *value);
            let level = f32::from(*code);
            sum_code += weight * level;
            sum_square += weight * level * level;
            sum_product += weight * level * value;
        }
        let determinant = sum_weight * sum_square - sum_code * sum_code;
        if determinant > 0.0 {
            let mut own_scale = (sum_weight * sum_product - sum_value * sum_code) / determinant;
            let mut own_minimum = (sum_square * sum_value - sum_code * sum_product) / determinant;
            if own_minimum > 0.0 {
                own_minimum = 0.0;
                own_scale = sum_product / sum_square;
            }
            let own = error(&attempt, own_scale, own_minimum);
            if own < best {
                (codes, best, scale, minimum) = (attempt, own, own_scale, own_minimum);
            }
        }
    }
    Affine { scale, minimum: -minimum, codes }
}

/// Scale and minimum of sub-block `at`, six bits each, out of their twelve bytes.
fn packed_scale(bytes: &[u8], at: usize) -> (u8, u8) {
    match at {
        0..4 => (bytes[at] & 63, bytes[at + 4] & 63),
        _ => ((bytes[at + 4] & 15) | (bytes[at - 4] >> 6) << 4, (bytes[at + 4] >> 4) | (bytes[at] >> 6) << 4),
    }
}

/// Writes d, dmin and the twelve bytes of scales, and returns the codes under the rounded scales.
fn encode_affine(values: &[f32], bytes: &mut [u8], search: &Search) -> [u8; SIZE] {
    let mut codes = [0_u8; SIZE];
    let (mut scales, mut minima) = ([0.0_f32; SUBS], [0.0_f32; SUBS]);
    let (mut most_scale, mut most_minimum) = (0.0_f32, 0.0_f32);
    for (at, values) in values.chunks_exact(SUB).enumerate() {
        let found = affine(values, search);
        codes[at * SUB..][..SUB].copy_from_slice(&found.codes);
        (scales[at], minima[at]) = (found.scale, found.minimum);
        if found.scale > most_scale {
            most_scale = found.scale;
        }
        if found.minimum > most_minimum {
            most_minimum = found.minimum;
        }
    }
    let inverse = |most: f32| if most > 0.0 { 63.0 / most } else { 0.0 };
    let (inverse_scale, inverse_minimum) = (inverse(most_scale), inverse(most_minimum));
    for at in 0..SUBS {
        let scale = (nearest(inverse_scale * scales[at]) as u8).min(63);
        let minimum = (nearest(inverse_minimum * minima[at]) as u8).min(63);
        let packed = &mut bytes[4..16];
        match at {
            0..4 => (packed[at], packed[at + 4]) = (scale, minimum),
            _ => {
                packed[at + 4] = (scale & 15) | (minimum & 15) << 4;
                packed[at - 4] |= scale >> 4 << 6;
                packed[at] |= minimum >> 4 << 6;
            }
        }
    }
    write_f16(bytes, 0, most_scale / 63.0);
    write_f16(bytes, 2, most_minimum / 63.0);
    let (all_scales, all_minima) = (read_f16(bytes, 0), read_f16(bytes, 2));
    for at in 0..SUBS {
        let (scale, minimum) = packed_scale(&bytes[4..16], at);
        let scale = all_scales * f32::from(scale);
        if scale == 0.0 {
            continue;
        }
        let minimum = all_minima * f32::from(minimum);
        for (code, value) in codes[at * SUB..][..SUB].iter_mut().zip(&values[at * SUB..]) {
            *code = nearest((value + minimum) / scale).clamp(0, search.levels) as u8;
        }
    }
    codes
}

/// d·s and dmin·m of a sub-block.
fn decoded_scale(bytes: &[u8], at: usize) -> (f32, f32) {
    let (scale, minimum) = packed_scale(&bytes[4..16], at);
    (read_f16(bytes, 0) * f32::from(scale), read_f16(bytes, 2) * f32::from(minimum))
}

/// d, dmin, scales, nibbles: 64 numbers in 32 bytes, the first 32 low.
pub(super) fn encode_q4_k(values: &[f32], bytes: &mut [u8]) {
    let codes = encode_affine(values, bytes, &Search { levels: 15, first: -1.0, steps: 20 });
    for (packed, codes) in bytes[16..].chunks_exact_mut(SUB).zip(codes.chunks_exact(2 * SUB)) {
        for (at, packed) in packed.iter_mut().enumerate() {
            *packed = codes[at] | codes[SUB + at] << 4;
        }
    }
}

pub(super) fn decode_q4_k(bytes: &[u8], values: &mut [f32]) {
    for (at, values) in values.chunks_exact_mut(SUB).enumerate() {
        let (scale, minimum) = decoded_scale(bytes, at);
        let packed = &bytes[16 + at / 2 * SUB..][..SUB];
        for (value, packed) in values.iter_mut().zip(packed) {
            *value = scale * f32::from(packed >> (4 * (at % 2)) & 15) - minimum;
        }
    }
}

/// As [`encode_q4_k`], with 32 bytes of fifth bits before the nibbles: bit k of byte i is that of number 32·k + i.
pub(super) fn encode_q5_k(values: &[f32], bytes: &mut [u8]) {
    let codes = encode_affine(values, bytes, &Search { levels: 31, first: -0.5, steps: 15 });
    let (fifth, nibbles) = bytes[16..].split_at_mut(SUB);
    fifth.fill(0);
    for (at, codes) in codes.chunks_exact(SUB).enumerate() {
        for (fifth, code) in fifth.iter_mut().zip(codes) {
            *fifth |= (code >> 4) << at;
        }
    }
    for (packed, codes) in nibbles.chunks_exact_mut(SUB).zip(codes.chunks_exact(2 * SUB)) {
        for (at, packed) in packed.iter_mut().enumerate() {
            *packed = (codes[at] & 15) | (codes[SUB + at] & 15) << 4;
        }
    }
}

pub(super) fn decode_q5_k(bytes: &[u8], values: &mut [f32]) {
    let (fifth, nibbles) = bytes[16..].split_at(SUB);
    for (at, values) in values.chunks_exact_mut(SUB).enumerate() {
        let (scale, minimum) = decoded_scale(bytes, at);
        let packed = &nibbles[at / 2 * SUB..][..SUB];
        for ((value, packed), fifth) in values.iter_mut().zip(packed).zip(fifth) {
            let code = packed >> (4 * (at % 2)) & 15 | (fifth >> at & 1) << 4;
            *value = scale * f32::from(code) - minimum;
        }
    }
}

/// Numbers under one scale in q6_K.
const GROUP: usize = 16;
const GROUPS: usize = SIZE / GROUP;

/// Minimises `Σ x² (scale·q − x)²` over q in −32..31; the codes are 32 above.
fn symmetric(values: &[f32]) -> (f32, [u8; GROUP]) {
    const LEVELS: i32 = 32;
    let (mut magnitude, mut extreme) = (0.0_f32, 0.0_f32);
    for value in values {
        if value.abs() > magnitude {
            (magnitude, extreme) = (value.abs(), *value);
        }
    }
    let mut codes = [0_u8; GROUP];
    if magnitude < NOTHING {
        return (0.0, codes);
    }
    let level = |inverse: f32, value: f32| nearest(inverse * value).clamp(-LEVELS, LEVELS - 1);
    let sums = |inverse: f32| {
        let (mut product, mut square) = (0.0_f32, 0.0_f32);
        for value in values {
            let level = level(inverse, *value) as f32;
            let weight = value * value;
            product += weight * value * level;
            square += weight * level * level;
        }
        (product, square)
    };
    let mut take = |inverse: f32| {
        for (code, value) in codes.iter_mut().zip(values) {
            *code = (level(inverse, *value) + LEVELS) as u8;
        }
    };
    let inverse = -LEVELS as f32 / extreme;
    take(inverse);
    let (product, square) = sums(inverse);
    let mut scale = if square == 0.0 { 0.0 } else { product / square };
    let mut best = scale * product;
    for step in (-9..=9).filter(|step| *step != 0) {
        let inverse = -(LEVELS as f32 + 0.1 * step as f32) / extreme;
        let (product, square) = sums(inverse);
        if square > 0.0 && product * product > best * square {
            take(inverse);
            scale = product / square;
            best = scale * product;
        }
    }
    (scale, codes)
}

/// Low nibbles, high pairs of bits, signed sub-scales, d.
pub(super) fn encode_q6_k(values: &[f32], bytes: &mut [u8]) {
    let mut codes = [0_u8; SIZE];
    let mut scales = [0.0_f32; GROUPS];
    let (mut magnitude, mut extreme) = (0.0_f32, 0.0_f32);
    for (at, values) in values.chunks_exact(GROUP).enumerate() {
        let (scale, found) = symmetric(values);
        codes[at * GROUP..][..GROUP].copy_from_slice(&found);
        scales[at] = scale;
        if scale.abs() > magnitude {
            (magnitude, extreme) = (scale.abs(), scale);
        }
    }
    bytes.fill(0);
    if magnitude < NOTHING {
        return;
    }
    let inverse = -128.0 / extreme;
    write_f16(bytes, Q6_K_SCALE, 1.0 / inverse);
    let all = read_f16(bytes, Q6_K_SCALE);
    for (at, scale) in scales.iter().enumerate() {
        let scale = nearest(inverse * scale).min(127) as i8;
        bytes[192 + at] = scale as u8;
        let scale = all * f32::from(scale);
        if scale == 0.0 {
            continue;
        }
        for (code, value) in codes[at * GROUP..][..GROUP].iter_mut().zip(&values[at * GROUP..]) {
            *code = (nearest(value / scale).clamp(-32, 31) + 32) as u8;
        }
    }
    for half in 0..2 {
        let codes = &codes[128 * half..][..128];
        for at in 0..32 {
            let quarter = |number: usize| codes[32 * number + at];
            bytes[64 * half + at] = (quarter(0) & 15) | (quarter(2) & 15) << 4;
            bytes[64 * half + 32 + at] = (quarter(1) & 15) | (quarter(3) & 15) << 4;
            bytes[128 + 32 * half + at] =
                quarter(0) >> 4 | quarter(1) >> 4 << 2 | quarter(2) >> 4 << 4 | quarter(3) >> 4 << 6;
        }
    }
}

pub(super) fn decode_q6_k(bytes: &[u8], values: &mut [f32]) {
    let all = read_f16(bytes, Q6_K_SCALE);
    for (at, value) in values.iter_mut().enumerate() {
        let (half, quarter, inside) = (at / 128, at % 128 / 32, at % 32);
        let low = bytes[64 * half + 32 * (quarter % 2) + inside] >> (4 * (quarter / 2)) & 15;
        let high = bytes[128 + 32 * half + inside] >> (2 * quarter) & 3;
        let scale = all * f32::from(bytes[192 + at / GROUP] as i8);
        *value = scale * f32::from((low | high << 4) as i8 - 32);
    }
}
