//! Blocks of 32 numbers under one scale. Element i and i + 16 share a byte; the fifth bits stand in one word.

use super::numbers::{read_f16, write_f16};

/// Numbers in a block.
const SIZE: usize = 32;
const HALF: usize = SIZE / 2;

/// The number of largest magnitude, with its sign; of several the first.
fn extreme(values: &[f32]) -> f32 {
    let (mut magnitude, mut extreme) = (0.0_f32, 0.0);
    for value in values {
        if magnitude < value.abs() {
            (magnitude, extreme) = (value.abs(), *value);
        }
    }
    extreme
}

fn reciprocal(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// `d·(q − 8)`: d is chosen so that the extreme becomes q = 0 exactly.
pub(super) fn encode_q4_0(values: &[f32], bytes: &mut [u8]) {
    let scale = extreme(values) / -8.0;
    let inverse = reciprocal(scale);
    write_f16(bytes, 0, scale);
    // The offset rounds: half a step, then towards zero.
    let code = |value: f32| ((value * inverse + 8.5) as i8 as u8).min(15);
    for at in 0..HALF {
        bytes[2 + at] = code(values[at]) | code(values[HALF + at]) << 4;
    }
}

pub(super) fn decode_q4_0(bytes: &[u8], values: &mut [f32]) {
    let scale = read_f16(bytes, 0);
    for at in 0..HALF {
        let packed = bytes[2 + at];
        values[at] = (i32::from(packed & 15) - 8) as f32 * scale;
        values[HALF + at] = (i32::from(packed >> 4) - 8) as f32 * scale;
    }
}

/// Packs 32 five-bit codes: the word of fifth bits, then the nibbles.
fn pack_five(codes: impl Fn(usize) -> u8, bytes: &mut [u8]) {
    let mut fifth = 0_u32;
    for at in 0..HALF {
        let (low, high) = (codes(at), codes(HALF + at));
        bytes[4 + at] = (low & 15) | (high & 15) << 4;
        fifth |= u32::from(low >> 4 & 1) << at | u32::from(high >> 4 & 1) << (at + HALF);
    }
    bytes[..4].copy_from_slice(&fifth.to_le_bytes());
}

fn unpack_five(bytes: &[u8], at: usize) -> i32 {
    let fifth = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) >> at & 1;
    let packed = bytes[4 + at % HALF];
    let nibble = if at < HALF { packed & 15 } else { packed >> 4 };
    i32::from(nibble) | (fifth << 4) as i32
}

/// `d·(q − 16)`, as [`encode_q4_0`] with a bit more.
pub(super) fn encode_q5_0(values: &[f32], bytes: &mut [u8]) {
    let scale = extreme(values) / -16.0;
    let inverse = reciprocal(scale);
    write_f16(bytes, 0, scale);
    pack_five(|at| ((values[at] * inverse + 16.5) as i8 as u8).min(31), &mut bytes[2..]);
}

pub(super) fn decode_q5_0(bytes: &[u8], values: &mut [f32]) {
    let scale = read_f16(bytes, 0);
    for (at, value) in values.iter_mut().enumerate() {
        *value = (unpack_five(&bytes[2..], at) - 16) as f32 * scale;
    }
}

/// `d·q + m` from the smallest number to the largest.
pub(super) fn encode_q5_1(values: &[f32], bytes: &mut [u8]) {
    let least =
        values.iter().copied().fold(f32::MAX, |least, value| if value < least { value } else { least });
    let most = values.iter().copied().fold(-f32::MAX, |most, value| if value > most { value } else { most });
    let scale = (most - least) / 31.0;
    let inverse = reciprocal(scale);
    write_f16(bytes, 0, scale);
    write_f16(bytes, 2, least);
    pack_five(|at| ((values[at] - least) * inverse + 0.5) as u8, &mut bytes[4..]);
}

pub(super) fn decode_q5_1(bytes: &[u8], values: &mut [f32]) {
    let (scale, least) = (read_f16(bytes, 0), read_f16(bytes, 2));
    for (at, value) in values.iter_mut().enumerate() {
        *value = unpack_five(&bytes[4..], at) as f32 * scale + least;
    }
}

/// `d·q`, symmetric, halves away from zero.
pub(super) fn encode_q8_0(values: &[f32], bytes: &mut [u8]) {
    let scale = extreme(values).abs() / 127.0;
    let inverse = reciprocal(scale);
    write_f16(bytes, 0, scale);
    for (code, value) in bytes[2..].iter_mut().zip(values) {
        *code = (value * inverse).round() as i8 as u8;
    }
}

pub(super) fn decode_q8_0(bytes: &[u8], values: &mut [f32]) {
    let scale = read_f16(bytes, 0);
    for (value, code) in values.iter_mut().zip(&bytes[2..]) {
        *value = f32::from(*code as i8) * scale;
    }
}

/// E2M1 twice: a sign, two bits of exponent, one of mantissa.
const LEVELS: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

/// 2^(e − 128), the unit of [`LEVELS`].
fn unit(exponent: u8) -> f32 {
    match exponent {
        0 | 1 => f32::from_bits(0x0020_0000 << exponent),
        _ => f32::from_bits(u32::from(exponent - 1) << 23),
    }
}

/// The nearest of 16 levels; the exponent is that of the largest magnitude less two. Numbers that were decoded from such
/// blocks are coded without loss.
pub(super) fn encode_mxfp4(values: &[f32], bytes: &mut [u8]) {
    let magnitude = extreme(values).abs();
    let exponent = if magnitude > 0.0 { (magnitude.log2().floor() + 125.0) as u8 } else { 0 };
    let unit = unit(exponent);
    let code = |value: f32| {
        let error = |code: usize| (LEVELS[code] * unit - value).abs();
        (1..16).fold(0, |best, code| if error(code) < error(best) { code } else { best }) as u8
    };
    bytes[0] = exponent;
    for at in 0..HALF {
        bytes[1 + at] = code(values[at]) | code(values[HALF + at]) << 4;
    }
}

pub(super) fn decode_mxfp4(bytes: &[u8], values: &mut [f32]) {
    let unit = unit(bytes[0]);
    for at in 0..HALF {
        let packed = usize::from(bytes[1 + at]);
        values[at] = LEVELS[packed & 15] * unit;
        values[HALF + at] = LEVELS[packed >> 4] * unit;
    }
}
