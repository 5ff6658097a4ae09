//! Numbers of a block: rounding to integers, and f16 in its bytes.

use half::f16;

/// Nearest integer, ties to even, for magnitudes below 2²²: adding 1.5·2²³ leaves it in the low bits.
pub(super) fn nearest(value: f32) -> i32 {
    const SHIFT: f32 = 12_582_912.0;
    ((value + SHIFT).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

pub(super) fn read_f16(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

pub(super) fn write_f16(bytes: &mut [u8], at: usize, value: f32) {
    bytes[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}
