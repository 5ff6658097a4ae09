//! In which order the tiles of a product are made: so that those made at the same time read as little as they can.
//!
//! Tiles of one row share a strip of the left operand, tiles of one column a strip of the right one; what several read at
//! the same time comes from memory once. As many tiles as a device works on together, a wave, therefore cover a patch
//! that is about as high as it is wide, in elements. cubek's `SwizzleRow(4)` covers four rows of tiles, or a single one
//! where 4 does not divide their number, as in most packed batches.

use cubek::std::cube_count::GlobalOrder;

/// Widths of the strips of columns that tiles may be made along. More widths save little, and each is a kernel more.
const WIDTHS: [u32; 3] = [1, 8, 16];

/// The order of rows × columns `tiles` of `tile` elements, of which `wave` are worked on together.
pub(super) fn order(tiles: [u32; 2], tile: [u32; 2], wave: u32) -> GlobalOrder {
    let [rows, columns] = tiles;
    // cubek takes widths that divide the tiles.
    let widths = WIDTHS.into_iter().filter(|width| columns.is_multiple_of(*width));
    let down = widths.map(|width| {
        let patch = [rows.min(wave.div_ceil(width)), columns.min(width.max(wave.div_ceil(rows)))];
        (patch, GlobalOrder::SwizzleCol(width).canonicalize())
    });
    let along = [rows.min(wave.div_ceil(columns)), columns.min(wave)];
    let read = |[high, wide]: [u32; 2]| high * tile[0] + wide * tile[1];
    let best = down.chain([(along, GlobalOrder::RowMajor)]).min_by_key(|(patch, _)| read(*patch));
    best.map_or(GlobalOrder::ColMajor, |(_, order)| order)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Tiles of the tensor-core routine.
    const TILE: [u32; 2] = [128, 64];

    /// Where cubek's `swizzle` puts tile `index`: the step and the place in it.
    fn swizzled(index: u32, steps: u32, width: u32) -> (u32, u32) {
        let (strip, place) = (index / (steps * width), index % (steps * width));
        let (step, at) = (place / width, place % width);
        let at = if step % 2 == 1 { width - 1 - at } else { at };
        (if strip % 2 == 1 { steps - 1 - step } else { step }, strip * width + at)
    }

    /// Rows and columns of operands that the waves of a product read, each counted once a wave.
    fn read(order: GlobalOrder, [rows, columns]: [u32; 2], wave: u32) -> u32 {
        let tiles: Vec<_> = (0..rows * columns)
            .map(|index| match order {
                GlobalOrder::RowMajor => (index / columns, index % columns),
                GlobalOrder::ColMajor => (index % rows, index / rows),
                GlobalOrder::SwizzleCol(width) => swizzled(index, rows, width),
                GlobalOrder::SwizzleRow(width) => {
                    let (column, row) = swizzled(index, columns, width);
                    (row, column)
                }
            })
            .collect();
        assert_eq!(tiles.iter().collect::<BTreeSet<_>>().len(), tiles.len(), "{order:?} makes a tile twice");
        let distinct = |of: Vec<u32>| of.into_iter().collect::<BTreeSet<_>>().len() as u32;
        let strips = |tiles: &[(u32, u32)]| {
            distinct(tiles.iter().map(|tile| tile.0).collect()) * TILE[0]
                + distinct(tiles.iter().map(|tile| tile.1).collect()) * TILE[1]
        };
        tiles.chunks(wave as usize).map(strips).sum()
    }

    /// What cubek would do.
    fn before([rows, _]: [u32; 2]) -> GlobalOrder {
        if rows.is_multiple_of(4) { GlobalOrder::SwizzleRow(4) } else { GlobalOrder::RowMajor }
    }

    #[test]
    fn tiles_that_are_made_together_read_less() {
        println!("rows × columns, tiles together: strips read by cubek's order, by ours");
        let mut sums = [0, 0];
        for together in [56, 256, 264] {
            for tokens in [512u32, 1920, 2048, 2100, 6100, 8192] {
                for out in [576u32, 1024, 1536, 4096, 14336] {
                    let tiles = [tokens.div_ceil(TILE[0]), out.div_ceil(TILE[1])];
                    let orders = [before(tiles), order(tiles, TILE, together)];
                    let [old, new] = orders.map(|order| read(order, tiles, together));
                    println!("{tokens} × {out}, {together}: {old} {new} {:?}", orders[1]);
                    assert!(f64::from(new) < 1.2 * f64::from(old), "{tiles:?}: {orders:?} {old} {new}");
                    sums[0] += old;
                    sums[1] += new;
                }
            }
        }
        println!("all: {sums:?}");
        assert!(10 * sums[1] < 7 * sums[0], "{sums:?}");
    }
}
