//! Lengths of texts, written as differences between neighbours (the format's DELTA_BINARY_PACKED). Decodes one after the
//! other, and takes no memory for them.

use super::numbers::{bits, varint, zigzag};

/// The lengths not yet read. `None` for good: there are no more, or the rest means nothing.
#[derive(Clone)]
pub(super) struct Delta<'a> {
    rest: &'a [u8],
    /// As the head says.
    left: u64,
    miniblocks: u64,
    per_miniblock: u64,
    is_first: bool,
    value: i32,
    least: i64,
    /// Bits of a difference, for each miniblock of this block not yet begun.
    widths: &'a [u8],
    packed: &'a [u8],
    width: u32,
    /// Bits read of this miniblock, and differences still in it.
    at: u64,
    in_miniblock: u64,
}

impl<'a> Delta<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Option<Delta<'a>> {
        let mut rest = bytes;
        let (block, miniblocks, left) = (varint(&mut rest)?, varint(&mut rest)?, varint(&mut rest)?);
        let value = zigzag(varint(&mut rest)?) as i32;
        let per_miniblock = block.checked_div(miniblocks).filter(|per| *per > 0 && per % 8 == 0)?;
        Some(Delta {
            rest,
            left,
            miniblocks,
            per_miniblock,
            is_first: true,
            value,
            least: 0,
            widths: &[],
            packed: &[],
            width: 0,
            at: 0,
            in_miniblock: 0,
        })
    }

    /// How many are left, as the head says.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// What follows the lengths. Reads them all.
    pub(super) fn behind(mut self) -> Option<&'a [u8]> {
        while self.left > 0 {
            self.next()?;
        }
        Some(self.rest)
    }

    fn begin_miniblock(&mut self) -> Option<()> {
        if self.widths.is_empty() {
            self.least = zigzag(varint(&mut self.rest)?);
            (self.widths, self.rest) = self.rest.split_at_checked(usize::try_from(self.miniblocks).ok()?)?;
        }
        let (width, widths) = self.widths.split_first()?;
        (self.width, self.widths) = (u32::from(*width), widths);
        if self.width > i32::BITS {
            return None;
        }
        // The last of all may be cut short.
        let len = (self.per_miniblock / 8).saturating_mul(self.width.into()).min(self.rest.len() as u64);
        (self.packed, self.rest) = self.rest.split_at_checked(len as usize)?;
        (self.at, self.in_miniblock) = (0, self.per_miniblock);
        Some(())
    }
}

/// A length below 0 is none.
impl Iterator for Delta<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        self.left = self.left.checked_sub(1)?;
        if !std::mem::take(&mut self.is_first) {
            if self.in_miniblock == 0 {
                self.begin_miniblock()?;
            }
            let difference = bits(self.packed, self.at, self.width)?;
            self.at += u64::from(self.width);
            self.in_miniblock -= 1;
            self.value = self.value.wrapping_add(self.least.wrapping_add(difference as i64) as i32);
        }
        u32::try_from(self.value).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_format() {
        // 1, 2, 3, 4, 5: all differences are 1, and take no bits. Blocks of 128 in four miniblocks.
        let steady = [0x80, 1, 4, 5, 2, 2, 0, 0, 0, 0, 0xaa];
        assert_eq!(Delta::new(&steady).unwrap().collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert_eq!(Delta::new(&steady).unwrap().behind().unwrap(), [0xaa]);
        // 7, 5, 3, 1, 2, 3, 4, 5: the least difference is -2, and over it 0, 0, 0, 3, 3, 3, 3 in two bits.
        let packed = [0x80, 1, 4, 8, 14, 3, 2, 0, 0, 0, 0b1100_0000, 0b0011_1111, 0, 0, 0, 0, 0, 0, 0xaa];
        assert_eq!(Delta::new(&packed).unwrap().collect::<Vec<_>>(), [7, 5, 3, 1, 2, 3, 4, 5]);
        assert_eq!(Delta::new(&packed).unwrap().behind().unwrap(), [0xaa]);
        // One alone has no block; none at all has a head.
        assert_eq!(Delta::new(&[0x80, 1, 4, 1, 18]).unwrap().collect::<Vec<_>>(), [9]);
        assert_eq!(Delta::new(&[0x80, 1, 4, 0, 0]).unwrap().count(), 0);
        assert!(Delta::new(&[0x80, 1, 0, 5, 2]).is_none());
        assert_eq!(Delta::new(&[0x80, 1, 4, 1, 1]).unwrap().next(), None, "-1");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..100)) {
            if let Some(delta) = Delta::new(&bytes) {
                let _ = delta.take(1000).count();
            }
        }
    }
}
