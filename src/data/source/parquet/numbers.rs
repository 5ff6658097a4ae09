//! How Parquet writes whole numbers: in groups of seven bits, with the sign in the lowest bit, or packed bit by bit.

/// A number in groups of seven bits, the lowest first. `None`: the bytes end too early, or it is too large.
pub(super) fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, behind) = rest.split_first()?;
        *rest = behind;
        value |= u64::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// A number whose lowest bit is its sign.
pub(super) fn zigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// `width` bits (at most 57) from bit `at` on, the lowest first.
pub(super) fn bits(bytes: &[u8], at: u64, width: u32) -> Option<u64> {
    let (first, shift) = (usize::try_from(at / 8).ok()?, (at % 8) as u32);
    let bytes = bytes.get(first..first.checked_add((shift + width).div_ceil(8) as usize)?)?;
    let word = bytes.iter().rev().fold(0_u64, |word, byte| (word << 8) | u64::from(*byte));
    Some((word >> shift) & ((1 << width) - 1))
}
