//! How a product is cut into tasks: by panels of columns, and by tiles of rows where that balances better.
//!
//! Cutting by columns unpacks each panel once; cutting by rows unpacks it once for each part. The cut changes who
//! computes a tile, never how.

use std::ops::Range;

/// Most panels of one task: together they stay in the second-level cache.
pub(super) const MOST_PANELS: usize = 8;
/// What unpacking a panel costs, in tiles of rows multiplied by it.
const UNPACKING: usize = 2;

/// A grid of tasks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Split {
    panels: usize,
    tiles: usize,
    column_parts: usize,
    row_parts: usize,
}

impl Split {
    /// The cut with the shortest estimated time on `threads` threads.
    pub(super) fn new(tiles: usize, panels: usize, threads: usize) -> Self {
        let fewest = panels.div_ceil(MOST_PANELS);
        let most = panels.min(fewest.max(4 * threads));
        let mut best = (usize::MAX, 1, 1);
        for column_parts in fewest..=most.max(fewest) {
            for row_parts in 1..=threads.min(tiles) {
                let cost = panels.div_ceil(column_parts) * (tiles.div_ceil(row_parts) + UNPACKING);
                let time = (column_parts * row_parts).div_ceil(threads) * cost;
                if time < best.0 {
                    best = (time, column_parts, row_parts);
                }
            }
        }
        Self { panels, tiles, column_parts: best.1, row_parts: best.2 }
    }

    /// Number of tasks.
    pub(super) fn count(&self) -> usize {
        self.column_parts * self.row_parts
    }

    /// The panels of task `index`.
    pub(super) fn panels(&self, index: usize) -> Range<usize> {
        part(self.panels, self.column_parts, index / self.row_parts)
    }

    /// The tiles of task `index`.
    pub(super) fn tiles(&self, index: usize) -> Range<usize> {
        part(self.tiles, self.row_parts, index % self.row_parts)
    }
}

fn part(length: usize, parts: usize, index: usize) -> Range<usize> {
    index * length / parts..(index + 1) * length / parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tile_of_every_panel_is_in_one_task() {
        for (tiles, panels, threads) in [(1, 1, 1), (74, 18, 2), (1, 100, 16), (5, 3, 16), (74, 4748, 2)] {
            let split = Split::new(tiles, panels, threads);
            let mut seen = vec![0; tiles * panels];
            for index in 0..split.count() {
                assert!(split.panels(index).len() <= MOST_PANELS);
                for panel in split.panels(index) {
                    for tile in split.tiles(index) {
                        seen[panel * tiles + tile] += 1;
                    }
                }
            }
            assert!(seen.iter().all(|count| *count == 1), "{split:?}");
        }
    }
}
