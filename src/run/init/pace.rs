//! How a drafted recipe deals rows out to optimizer steps: enough steps for few rows to be learned, larger ones for many.

/// Fewest optimizer steps of a run: with fewer an adapter hardly changes.
const ENOUGH_STEPS: u64 = 60;
/// Fewest rows of a run, each counted as often as it is seen.
const ENOUGH_ROWS: u64 = 100;
/// Most passes over the rows; with more the model learns them by heart.
const MOST_EPOCHS: u64 = 10;
/// Rows from which on a step has up to 16 sequences instead of up to 8.
const MANY_ROWS: u64 = 500;

/// Passes over the rows, and what an optimizer step has of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    pub(super) epochs: u64,
    /// Whether short rows share a sequence.
    pub(super) packing: bool,
    pub(super) micro_batch_size: u64,
    pub(super) accumulation: u64,
    /// Optimizer steps, about.
    pub(super) steps: u64,
}

impl Pace {
    /// For so many rows that are trained on, of `mean` tokens.
    pub(super) fn of(rows: u64, mean: f64, max_seq_len: usize) -> Self {
        let epochs = match rows {
            0..34 => ENOUGH_ROWS.div_ceil(rows.max(1)).min(MOST_EPOCHS),
            34..MANY_ROWS => 3,
            MANY_ROWS..5000 => 2,
            _ => 1,
        };
        let packed = (rows as f64 * mean / max_seq_len as f64).ceil() as u64;
        let most = if rows < MANY_ROWS { 4 } else { 8 };
        let of = |packing, (micro_batch_size, accumulation)| {
            let sequences = if packing { packed.clamp(1, rows.max(1)) } else { rows.max(1) };
            let steps = epochs * sequences.div_ceil(micro_batch_size * accumulation);
            Self { epochs, packing, micro_batch_size, accumulation, steps }
        };
        let sizes = [(2, 8), (2, 4), (2, 2), (2, 1), (1, 1)].into_iter().filter(|(_, often)| *often <= most);
        let sizes = sizes.collect::<Vec<_>>();
        let ways =
            [true, false].into_iter().flat_map(|packing| sizes.iter().map(move |size| (packing, *size)));
        let mut ways = ways.map(|(packing, size)| of(packing, size));
        ways.find(|pace| pace.steps >= ENOUGH_STEPS).unwrap_or_else(|| of(false, (1, 1)))
    }

    /// Sequences of an optimizer step.
    pub(super) fn sequences(&self) -> u64 {
        self.micro_batch_size * self.accumulation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_rows_get_small_steps_and_many_rows_large_ones() {
        let of = |rows, mean| {
            let pace = Pace::of(rows, mean, 1024);
            (pace.epochs, pace.packing, pace.sequences(), pace.steps)
        };
        assert_eq!(of(0, 0.0), (10, false, 1, 10));
        assert_eq!(of(8, 60.0), (10, false, 1, 80));
        assert_eq!(of(33, 40.0), (4, false, 2, 68));
        assert_eq!(of(40, 40.0), (3, false, 2, 60));
        assert_eq!(of(200, 1000.0), (3, true, 8, 75), "long rows are sequences of their own");
        assert_eq!(of(200, 100.0), (3, true, 1, 60));
        assert_eq!(of(200, 50.0), (3, false, 8, 75), "packed they would be too few");
        assert_eq!(of(1000, 400.0), (2, true, 8, 98));
        assert_eq!(of(100_000, 100.0), (1, true, 16, 611));
    }
}
