//! Runs of small numbers, packed in bits, in which Parquet keeps levels and a dictionary's indices: the same number many
//! times in a row, or eight at a time. Decodes one number after the other, and takes no memory for them.

use super::numbers::{bits, varint};

/// The numbers not yet read.
pub(super) struct Runs<'a> {
    rest: &'a [u8],
    /// Bits of a number: at most 32.
    width: u32,
    run: Run<'a>,
}

enum Run<'a> {
    Same { value: u32, left: u64 },
    Packed { bytes: &'a [u8], at: u64, left: u64 },
}

impl<'a> Runs<'a> {
    pub(super) fn new(bytes: &'a [u8], width: u32) -> Runs<'a> {
        Runs { rest: bytes, width: width.min(32), run: Run::Same { value: 0, left: 0 } }
    }

    /// Bits that numbers up to `most` take.
    pub(super) fn width_of(most: u16) -> u32 {
        u16::BITS - most.leading_zeros()
    }

    fn begin(&mut self) -> Option<()> {
        let head = varint(&mut self.rest)?;
        let count = head >> 1;
        self.run = if head & 1 == 0 {
            let (bytes, rest) = self.rest.split_at_checked(self.width.div_ceil(8) as usize)?;
            self.rest = rest;
            let value = bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
            Run::Same { value, left: count }
        } else {
            // Eight numbers take as many bytes as one takes bits. The last run may be cut short.
            let len = count.saturating_mul(self.width.into()).min(self.rest.len() as u64);
            let (bytes, rest) = self.rest.split_at_checked(len as usize)?;
            self.rest = rest;
            Run::Packed { bytes, at: 0, left: count.saturating_mul(8) }
        };
        Some(())
    }
}

/// `None` for good: there are no more.
impl Iterator for Runs<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        loop {
            match &mut self.run {
                Run::Same { left: 0, .. } | Run::Packed { left: 0, .. } => self.begin()?,
                Run::Same { value, left } => {
                    *left -= 1;
                    return Some(*value);
                }
                Run::Packed { bytes, at, left } => {
                    let value = bits(bytes, *at, self.width)?;
                    (*at, *left) = (*at + u64::from(self.width), *left - 1);
                    return Some(value as u32);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_format() {
        // 0 to 7 in three bits each, as the format's documentation packs them.
        let packed = [0x03, 0b1000_1000, 0b1100_0110, 0b1111_1010];
        assert_eq!(Runs::new(&packed, 3).collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
        // Nine times 300, in nine bits: two bytes; then five times 1.
        let same = [18, 0x2c, 0x01, 10, 1, 0];
        let expected = [vec![300; 9], vec![1; 5]].concat();
        assert_eq!(Runs::new(&same, 9).collect::<Vec<_>>(), expected);
        // No bits: all are 0, as many as the head says.
        assert_eq!(Runs::new(&[6], 0).count(), 3);
        assert_eq!(Runs::new(&[3], 0).count(), 8);
        // Cut short: what is there.
        assert_eq!(Runs::new(&packed[..3], 3).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert_eq!([0, 1, 2, 3, 4, 255].map(Runs::width_of), [0, 1, 2, 2, 3, 8]);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..100), width in 0_u32..=32) {
            let _ = Runs::new(&bytes, width).take(1000).count();
        }
    }
}
