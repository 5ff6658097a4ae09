//! A pseudo-random permutation of `0..n` that needs no memory: any element of it is computed on its own.
//!
//! An alternating Feistel network over Z_a × Z_b with a·b ≥ n (the generalized Feistel cipher of Black and
//! Rogaway, "Ciphers with Arbitrary Finite Domains", 2002), walked along its cycle until the value falls
//! below n. Integer arithmetic only: the same on every machine. Not meant to withstand an adversary.

/// Rounds of the network, half of them on either side.
const ROUNDS: u64 = 8;

/// One permutation of `0..len`, chosen by a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permutation {
    len: u64,
    /// `columns · rows >= len`, as square as can be.
    columns: u64,
    rows: u64,
    key: u64,
}

impl Permutation {
    /// The permutation of `0..len` that belongs to `key`.
    pub fn new(len: u64, key: u64) -> Permutation {
        let root = len.isqrt();
        let columns = if root * root < len { root + 1 } else { root }.max(1);
        Permutation { len, columns, rows: len.div_ceil(columns).max(1), key }
    }

    /// Where `position` goes. A position at or behind the end stays where it is.
    pub fn at(&self, position: u64) -> u64 {
        if position >= self.len {
            return position;
        }
        // A cycle that starts below `len` comes back to it, so this ends; less than `columns` values lie
        // outside, so it nearly always ends at once.
        let mut value = position;
        loop {
            value = self.network(value);
            if value < self.len {
                return value;
            }
        }
    }

    fn network(&self, value: u64) -> u64 {
        let (mut left, mut right) = (value % self.columns, value / self.columns);
        for round in 0..ROUNDS {
            let round_key = self.key.wrapping_add(round.wrapping_mul(GOLDEN_RATIO));
            if round % 2 == 0 {
                left = add(left, below(mix(round_key ^ mix(right)), self.columns), self.columns);
            } else {
                right = add(right, below(mix(round_key ^ mix(left)), self.rows), self.rows);
            }
        }
        right * self.columns + left
    }
}

/// 2^64 divided by the golden ratio, odd: spreads consecutive integers.
const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;

/// A key from several numbers, each of which changes it: what it is for, the seed, the epoch, …
pub(super) fn derive_key(words: &[u64]) -> u64 {
    words
        .iter()
        .fold(GOLDEN_RATIO, |key, word| mix(key.rotate_left(23) ^ mix(word.wrapping_add(GOLDEN_RATIO))))
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood, 2014): a bijection of 64 bits in which every bit of
/// the input changes every bit of the output about half of the time.
pub(super) fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Maps 64 random bits to `0..bound`.
fn below(bits: u64, bound: u64) -> u64 {
    ((u128::from(bits) * u128::from(bound)) >> 64) as u64
}

/// `(a + b) mod modulus` for a, b below it.
fn add(a: u64, b: u64, modulus: u64) -> u64 {
    let until_wrap = modulus - b;
    if a >= until_wrap { a - until_wrap } else { a + b }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn assert_permutation(len: u64, key: u64) {
        let mut seen = vec![false; len as usize];
        for position in 0..len {
            let value = Permutation::new(len, key).at(position) as usize;
            assert!(!seen[value], "{len}: {value} comes twice");
            seen[value] = true;
        }
    }

    #[test]
    fn every_small_size_is_a_permutation() {
        (0..=400).for_each(|len| assert_permutation(len, mix(len)));
    }

    proptest! {
        #[test]
        fn every_size_and_key_is_a_permutation(len in 0_u64..5000, key: u64) {
            assert_permutation(len, key);
        }
    }

    #[test]
    fn small_permutations_are_all_reached_about_equally_often() {
        let mut counts: HashMap<Vec<u64>, u32> = HashMap::new();
        for seed in 0..24_000 {
            let permutation = Permutation::new(4, derive_key(&[seed]));
            *counts.entry((0..4).map(|position| permutation.at(position)).collect()).or_default() += 1;
        }
        assert_eq!(counts.len(), 24);
        // 1000 expected of each, standard deviation 31.
        assert!(counts.values().all(|count| (800..1200).contains(count)), "{counts:?}");
    }

    #[test]
    fn neighbours_part_and_keys_differ() {
        let (one, other) = (Permutation::new(100_000, 1), Permutation::new(100_000, 2));
        let adjacent = (1..100_000).filter(|&i| one.at(i).abs_diff(one.at(i - 1)) == 1).count();
        assert!(adjacent < 20, "{adjacent} of 100000 neighbours stayed neighbours; 2 expected");
        let equal = (0..100_000).filter(|&i| one.at(i) == other.at(i)).count();
        assert!(equal < 20, "{equal} of 100000 positions agree under two keys; 1 expected");
    }

    #[test]
    fn huge_sizes_do_not_overflow() {
        for len in [u64::MAX, u64::MAX - 1, 1 << 63, (1 << 32) + 1] {
            let permutation = Permutation::new(len, 7);
            assert!((0..100).map(|i| permutation.at(len - 1 - i)).all(|value| value < len));
        }
    }

    #[test]
    fn the_order_is_part_of_the_format_of_a_run() {
        // A resumed run must see the order that the interrupted one saw, whatever version wrote it.
        let permutation = Permutation::new(10, derive_key(&[42, 0]));
        let order: Vec<u64> = (0..10).map(|position| permutation.at(position)).collect();
        assert_eq!(order, [4, 0, 7, 2, 3, 6, 1, 9, 5, 8]);
    }
}
