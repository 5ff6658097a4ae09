//! Dropout whose mask is a function of counters: the same for a recomputed layer, a resumed run and any number of
//! threads. Owns the random bits; [`crate::linear`] applies them.
//!
//! Philox4x32-10, Salmon et al., *Parallel random numbers: as easy as 1, 2, 3* (SC 2011).

/// The counters that a mask depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DropoutKey {
    /// The run's seed.
    pub seed: u64,
    /// Optimizer step.
    pub step: u64,
    /// Micro-batch within the step.
    pub micro_batch: u32,
    /// Decoder layer.
    pub layer: u32,
    /// Projection within the layer.
    pub projection: u32,
}

/// Dropout of a linear layer's adapter input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability that an element is zeroed, in [0, 1); the others are divided by `1 − probability`.
    pub probability: f32,
    /// Which mask.
    pub key: DropoutKey,
}

/// A mask ready to be drawn from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mask {
    pub(crate) key: [u32; 2],
    /// The last two words of every counter; the first two are the number of four elements.
    pub(crate) tail: [u32; 2],
    /// Elements whose word is below it are dropped.
    pub(crate) threshold: u64,
    pub(crate) factor: f32,
}

impl Mask {
    /// # Panics
    /// If the probability is not in [0, 1).
    pub(crate) fn new(dropout: &Dropout) -> Self {
        let Dropout { probability, key } = *dropout;
        assert!((0.0..1.0).contains(&probability), "dropout probability {probability} is not in [0, 1)");
        let (seed, step) = (halves(key.seed), halves(key.step));
        let first = philox([step[0], step[1], key.micro_batch, key.layer], seed);
        let second = philox([key.projection, first[2], first[3], 0], [first[0], first[1]]);
        Self {
            key: [second[0], second[1]],
            tail: [second[2], second[3]],
            threshold: (f64::from(probability) * 4_294_967_296.0).round() as u64,
            factor: 1.0 / (1.0 - probability),
        }
    }

    /// Multiplies `values`, which stand at `start..` of the flattened tensor, by 0 or `1 / (1 − probability)`.
    pub(crate) fn apply(&self, start: usize, values: &mut [f32]) {
        let mut index = start as u64;
        let mut values = values;
        while !values.is_empty() {
            let block = halves(index / 4);
            let skip = (index % 4) as usize;
            let words = philox([block[0], block[1], self.tail[0], self.tail[1]], self.key);
            let (here, rest) = values.split_at_mut((4 - skip).min(values.len()));
            for (value, word) in here.iter_mut().zip(&words[skip..]) {
                *value *= if u64::from(*word) < self.threshold { 0.0 } else { self.factor };
            }
            index += here.len() as u64;
            values = rest;
        }
    }
}

fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

/// Ten rounds of Philox over four words: 128 random bits, a function of counter and key alone.
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let left = u64::from(counter[0]) * 0xd251_1f53;
        let right = u64::from(counter[2]) * 0xcd9e_8d57;
        counter = [
            (right >> 32) as u32 ^ counter[1] ^ key[0],
            right as u32,
            (left >> 32) as u32 ^ counter[3] ^ key[1],
            left as u32,
        ];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> DropoutKey {
        DropoutKey { seed: 1, step: 2, micro_batch: 3, layer: 4, projection: 5 }
    }

    fn mask(dropout: &Dropout, range: std::ops::Range<usize>) -> Vec<f32> {
        let mut values = vec![1.0; range.len()];
        Mask::new(dropout).apply(range.start, &mut values);
        values
    }

    #[test]
    fn philox_gives_the_published_vectors() {
        let zeros = [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8];
        let ones = [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd];
        let digits_of_pi = [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1];
        assert_eq!(philox([0; 4], [0; 2]), zeros);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), ones);
        let counter = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(philox(counter, [0xa409_3822, 0x299f_31d0]), digits_of_pi);
    }

    #[test]
    fn a_part_of_the_mask_is_the_part_of_the_whole() {
        let dropout = Dropout { probability: 0.3, key: key() };
        let whole = mask(&dropout, 0..101);
        for (start, end) in [(0, 1), (1, 4), (3, 50), (7, 101), (99, 101)] {
            assert_eq!(mask(&dropout, start..end), whole[start..end]);
        }
    }

    #[test]
    fn mean_is_kept_and_every_part_of_the_key_counts() {
        let dropout = Dropout { probability: 0.1, key: key() };
        let whole = mask(&dropout, 0..100_000);
        let mean = whole.iter().sum::<f32>() / 1e5;
        assert!((mean - 1.0).abs() < 0.01, "mean {mean}");
        let others = [
            DropoutKey { seed: 9, ..key() },
            DropoutKey { step: 9, ..key() },
            DropoutKey { micro_batch: 9, ..key() },
            DropoutKey { layer: 9, ..key() },
            DropoutKey { projection: 9, ..key() },
        ];
        for other in others {
            let other = mask(&Dropout { probability: 0.1, key: other }, 0..100_000);
            // Independent masks at 10 % differ in 18 % of the places.
            let differing = whole.iter().zip(&other).filter(|(a, b)| a != b).count();
            assert!((17_000..19_000).contains(&differing), "{differing} of 100000 differ");
        }
    }

    #[test]
    fn probability_zero_keeps_everything() {
        assert_eq!(mask(&Dropout { probability: 0.0, key: key() }, 0..10), [1.0; 10]);
    }
}
