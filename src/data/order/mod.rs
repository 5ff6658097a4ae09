//! In which order the rows of an epoch are visited: a bijection computed from seed and epoch, any position on
//! its own, so that seeking costs nothing and no order is ever stored. Knows row counts; reads no file.
//!
//! An epoch mixes its datasets in windows. Each window takes from every dataset its share (so the mixture is
//! the same from the first step to the last), and its positions are permuted. What a dataset gives, one after
//! the other, are its rows permuted; where rows are cheap to read only together (a row group of a Parquet
//! file), these units are permuted, and the rows inside each, so that every unit is decoded once an epoch.

mod held_out;
mod permutation;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::example::RowId;
pub use held_out::{HeldOut, is_held_out};
pub use permutation::Permutation;
use permutation::derive_key;

/// Positions per window, if no dataset's units are smaller: a window should touch few units at a time.
const WINDOW: u64 = 4096;
/// The smallest window: many units of fewer rows fit into memory.
const SMALLEST_WINDOW: u64 = 64;

/// What a derived key is for. `1` is the hold-out draw.
#[derive(Clone, Copy)]
enum Purpose {
    Window = 2,
    Units = 3,
    Rows = 4,
    Extra = 5,
}

/// One dataset's part in an epoch.
#[derive(Clone, Debug)]
pub struct Source {
    /// Position of the `[[dataset]]` entry.
    pub dataset: u32,
    /// First row of each unit that is read as one, ending with the number of rows: `[0, rows]` if any row
    /// is as cheap as any other.
    pub units: Arc<[u64]>,
    /// How often each example is seen: `floor(weight)` times, and once more for the nearest whole number to
    /// `fract(weight)` of all rows, drawn again in each epoch.
    pub weight: f64,
    /// The rows that are not trained on.
    pub held_out: Arc<HeldOut>,
}

/// An epoch that cannot be ordered.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum OrderError {
    /// A weight that is no number of times.
    #[error("dataset {dataset}: a weight of {weight} is not a number from 0 up")]
    Weight {
        /// Position of the `[[dataset]]` entry.
        dataset: u32,
        /// As given.
        weight: f64,
    },
    /// More examples than can be counted.
    #[error("dataset {dataset}: a weight of {weight} makes an epoch of more than 2^63 examples")]
    TooLong {
        /// Position of the `[[dataset]]` entry.
        dataset: u32,
        /// As given.
        weight: f64,
    },
}

/// The order of one epoch: positions `0..len()`, each an example.
#[derive(Clone, Debug)]
pub struct EpochPlan {
    lanes: Vec<Lane>,
    len: u64,
    /// Number of windows; 0 without shuffling.
    windows: u64,
    seed: u64,
    epoch: u64,
}

impl EpochPlan {
    /// Plans `epoch` (from 0). Without `shuffle`: datasets in turn, rows in file order, each epoch alike (a
    /// fractional weight then takes rows at equal distances). Takes time and memory for each unit, not for
    /// each row.
    ///
    /// # Errors
    /// A weight that is negative or not finite, or an epoch too long to count.
    pub fn new(sources: &[Source], seed: u64, epoch: u64, shuffle: bool) -> Result<EpochPlan, OrderError> {
        let mut len = 0_u64;
        let mut lanes = Vec::with_capacity(sources.len());
        let mut window = WINDOW;
        for source in sources {
            let lane = Lane::new(source, seed, epoch, shuffle)?;
            len = len
                .checked_add(lane.len())
                .filter(|&len| len <= 1 << 63)
                .ok_or(OrderError::TooLong { dataset: source.dataset, weight: source.weight })?;
            if lane.units() > 1 {
                window = window.min(lane.len() / lane.units());
            }
            lanes.push(lane);
        }
        let windows = if shuffle { (len / window.max(SMALLEST_WINDOW)).max(1) } else { 0 };
        Ok(EpochPlan { lanes, len, windows, seed, epoch })
    }

    /// Examples in this epoch, each counted as often as it is seen.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// An epoch without examples.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The example at `position`; `None` behind the end.
    pub fn at(&self, position: u64) -> Option<RowId> {
        if position >= self.len {
            return None;
        }
        if self.windows == 0 {
            let mut rest = position;
            for lane in &self.lanes {
                match rest.checked_sub(lane.len()) {
                    Some(behind) => rest = behind,
                    None => return lane.at(rest),
                }
            }
            return None;
        }
        // `start(w) <= len·w / windows`, short of it by less than one for each lane: the estimate is never
        // too far, and at most a few windows short.
        let mut window = proportion(position, self.windows, self.len);
        while window + 1 < self.windows && self.start(window + 1) <= position {
            window += 1;
        }
        let start = self.start(window);
        let key = derive_key(&[Purpose::Window as u64, self.seed, self.epoch, window]);
        let mut slot = Permutation::new(self.start(window + 1) - start, key).at(position - start);
        for lane in &self.lanes {
            let first = proportion(lane.len(), window, self.windows);
            let share = proportion(lane.len(), window + 1, self.windows) - first;
            match slot.checked_sub(share) {
                Some(behind) => slot = behind,
                None => return lane.at(first + slot),
            }
        }
        None
    }

    /// The first position of a window.
    fn start(&self, window: u64) -> u64 {
        self.lanes.iter().map(|lane| proportion(lane.len(), window, self.windows)).sum()
    }
}

/// `⌊a·b / c⌋` without overflow.
fn proportion(a: u64, b: u64, c: u64) -> u64 {
    (u128::from(a) * u128::from(b) / u128::from(c)) as u64
}

/// One dataset's examples of one epoch, in its own order.
#[derive(Clone, Debug)]
struct Lane {
    source: Source,
    /// Full passes over all rows.
    copies: u64,
    /// Rows seen once more.
    extra: u64,
    /// Kept rows before each unit, ending with their number; empty where units do not matter.
    kept_firsts: Vec<u64>,
    /// Where each unit's examples begin, in the order in which units are visited, ending with their number.
    starts: Vec<u64>,
    seed: u64,
    epoch: u64,
    shuffle: bool,
}

impl Lane {
    fn new(source: &Source, seed: u64, epoch: u64, shuffle: bool) -> Result<Lane, OrderError> {
        let Source { dataset, weight, .. } = *source;
        if !(weight.is_finite() && weight >= 0.0) {
            return Err(OrderError::Weight { dataset, weight });
        }
        let kept = source.held_out.kept();
        let extra = (weight.fract() * kept as f64).round() as u64;
        // The cast saturates, and what it saturates to is too long for any row count.
        let copies = weight.trunc() as u64;
        let too_long = OrderError::TooLong { dataset, weight };
        let len = copies.checked_mul(kept).and_then(|full| full.checked_add(extra)).ok_or(too_long)?;
        if len > 1 << 63 {
            return Err(too_long);
        }
        let source = source.clone();
        let mut lane =
            Lane { source, copies, extra, kept_firsts: Vec::new(), starts: vec![0], seed, epoch, shuffle };
        if lane.units() <= 1 || !shuffle {
            lane.starts.push(len);
            return Ok(lane);
        }
        let held_out = &lane.source.held_out;
        lane.kept_firsts = lane.source.units.iter().map(|&row| held_out.kept_before(row)).collect();
        let order = lane.unit_order();
        let (mut start, mut rows_before) = (0, 0);
        for slot in 0..lane.units() {
            let (_, rows) = lane.kept_of_unit(order.at(slot));
            // The extra rows, spread over the units by their size; the roundings add up to exactly `extra`.
            start += copies * rows + lane.extra_up_to(rows_before + rows) - lane.extra_up_to(rows_before);
            rows_before += rows;
            lane.starts.push(start);
        }
        Ok(lane)
    }

    fn len(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    fn units(&self) -> u64 {
        self.source.units.len().saturating_sub(1) as u64
    }

    fn at(&self, index: u64) -> Option<RowId> {
        let held_out = &self.source.held_out;
        let kept = held_out.kept();
        let kept_index = if !self.shuffle {
            match index.checked_sub(self.copies * kept) {
                None => index % kept,
                // The smallest k with ⌊(k+1)·extra / kept⌋ > index: equal distances, in file order.
                Some(behind) => {
                    let product = (u128::from(behind) + 1) * u128::from(kept);
                    product.div_ceil(u128::from(self.extra)) as u64 - 1
                }
            }
        } else {
            let slot = self.starts.partition_point(|&start| start <= index) - 1;
            let (unit, first, rows) = if self.units() <= 1 {
                (0, 0, kept)
            } else {
                let unit = self.unit_order().at(slot as u64);
                let (first, rows) = self.kept_of_unit(unit);
                (unit, first, rows)
            };
            let (start, end) = (self.starts[slot], self.starts[slot + 1]);
            let seen = Permutation::new(end - start, self.key(Purpose::Rows, unit)).at(index - start);
            first
                + match seen.checked_sub(self.copies * rows) {
                    None => seen % rows,
                    Some(behind) => Permutation::new(rows, self.key(Purpose::Extra, unit)).at(behind),
                }
        };
        Some(RowId { dataset: self.source.dataset, row: held_out.kept_row(kept_index)? })
    }

    fn unit_order(&self) -> Permutation {
        Permutation::new(self.units(), self.key(Purpose::Units, 0))
    }

    fn key(&self, purpose: Purpose, unit: u64) -> u64 {
        derive_key(&[purpose as u64, self.seed, self.epoch, u64::from(self.source.dataset), unit])
    }

    /// The first kept row of a unit, and how many there are.
    fn kept_of_unit(&self, unit: u64) -> (u64, u64) {
        let unit = unit as usize;
        (self.kept_firsts[unit], self.kept_firsts[unit + 1] - self.kept_firsts[unit])
    }

    fn extra_up_to(&self, rows: u64) -> u64 {
        match self.source.held_out.kept() {
            0 => 0,
            kept => proportion(self.extra, rows, kept),
        }
    }
}
