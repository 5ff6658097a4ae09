//! Lanes: into how many sums the micro-batches of a step are dealt, and which rank computes which.
//!
//! Micro-batch i of a step belongs to lane i mod `train.lanes`. Within a lane, gradients are added one after the other;
//! the lanes are added as a binary tree ([`tune_ranks::tree`]). One of several ranks has neighbouring lanes, a power of
//! two of them, and so a whole subtree: what the ranks add up is the rest of the same tree, and the sum has the same bits
//! for every number of ranks. Lanes without a micro-batch, in a short step, add nothing.

use std::ops::Range;

/// The lanes of a run and those of each rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lanes {
    count: usize,
    each: usize,
}

impl Lanes {
    /// `lanes` dealt out to `ranks`; `None` where each would not have a whole subtree.
    pub fn new(lanes: usize, ranks: usize) -> Option<Self> {
        let each = lanes / ranks.max(1);
        let is_subtree = each.is_power_of_two() || ranks == 1;
        (each * ranks == lanes && is_subtree).then_some(Self { count: lanes, each })
    }

    /// How many there are.
    pub(super) fn count(self) -> usize {
        self.count
    }

    /// The numbers of ranks that `lanes` can be dealt out to.
    pub fn ranks(lanes: usize) -> Vec<usize> {
        (1..=lanes).filter(|ranks| Self::new(lanes, *ranks).is_some()).collect()
    }

    /// The lanes of `rank` that have any of `count` micro-batches.
    pub(super) fn of(self, rank: usize, count: usize) -> Range<usize> {
        let end = ((rank + 1) * self.each).min(count);
        (rank * self.each).min(end)..end
    }

    /// The micro-batches of a lane, of `count` in all.
    pub(super) fn micro_batches(self, lane: usize, count: usize) -> impl Iterator<Item = usize> + Clone {
        (lane..count).step_by(self.count)
    }

    /// The micro-batches of `rank` in the order in which it computes them, of `count` in all.
    pub(super) fn order(self, rank: usize, count: usize) -> impl Iterator<Item = usize> {
        self.of(rank, count).flat_map(move |lane| self.micro_batches(lane, count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_that_have_whole_subtrees_are_those_that_can_share() {
        for (lanes, ranks) in [
            (1, vec![1]),
            (4, vec![1, 2, 4]),
            (6, vec![1, 3, 6]),
            (8, vec![1, 2, 4, 8]),
            (12, vec![1, 3, 6, 12]),
        ] {
            assert_eq!(Lanes::ranks(lanes), ranks, "{lanes}");
        }
    }

    #[test]
    fn each_micro_batch_has_one_rank() {
        for (lanes, ranks) in [(4, 1), (4, 2), (4, 4), (6, 3)] {
            let lanes = Lanes::new(lanes, ranks).unwrap();
            for count in 1..15 {
                let mut dealt: Vec<usize> = (0..ranks).flat_map(|rank| lanes.order(rank, count)).collect();
                dealt.sort_unstable();
                assert!(dealt.into_iter().eq(0..count), "{lanes:?} {count}");
            }
        }
        assert!(Lanes::new(6, 1).unwrap().order(0, 8).eq([0, 6, 1, 7, 2, 3, 4, 5]));
    }
}
