//! Products on all threads: their tiles are planned from the shapes, computed panel by panel, and handed on in f32.

use std::ops::Range;

use super::super::parallel;
use super::super::pool;
use super::super::scalar::Scalar;
use super::blocks::{BLOCK, Blocks, Tile, tile_range};
use super::columns::{Columns, PackedColumns};
use super::kernel::{Element, Kernel, Run};
use super::rows::PackedRows;
use super::select::Kernels;
use super::split::{self, Split};

/// Blocks whose steps fit one pass over the accumulators together: a long one and the short ones of adapters.
const MOST_RUNS: usize = 8;

/// One term of a product.
#[derive(Clone, Copy)]
pub(crate) struct Term<'a> {
    pub(crate) rows: &'a PackedRows,
    pub(crate) columns: Columns<'a>,
}

/// One product and what becomes of its tiles.
pub(crate) struct Product<'a> {
    /// All of the same rows and the same width. Never empty.
    pub(crate) terms: &'a [Term<'a>],
    /// Called once for each tile, from any thread, for what the terms are added onto; `None`: onto zero.
    pub(crate) begin: Option<&'a (dyn Fn(Tile<'_>) + Sync)>,
    /// Called once for each tile, from any thread.
    pub(crate) finish: &'a (dyn Fn(Tile<'_>) + Sync),
    /// Where `finish` will write, if to one matrix.
    pub(crate) place: Option<Place>,
}

/// Where a product's output lies: its lines are fetched while their tile is computed, for they are usually cold.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "prefetches on x86-64 alone"))]
pub(crate) struct Place {
    address: usize,
    stride: usize,
    size: usize,
}

impl Place {
    /// A matrix whose rows are `stride` values apart.
    pub(crate) fn of<T>(values: &[T], stride: usize) -> Self {
        Self { address: values.as_ptr().addr(), stride: stride * size_of::<T>(), size: size_of::<T>() }
    }

    #[inline]
    fn fetch(self, rows: Range<usize>, columns: Range<usize>) {
        #[cfg(target_arch = "x86_64")]
        for row in rows {
            use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
            let start = self.address.wrapping_add(row * self.stride + columns.start * self.size);
            for line in (0..columns.len() * self.size).step_by(64) {
                // SAFETY: a prefetch reads nothing, whatever the address.
                unsafe {
                    _mm_prefetch::<_MM_HINT_ET0>(std::ptr::without_provenance(start.wrapping_add(line)))
                };
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (self, rows, columns);
    }
}

/// Computes products whose columns are rounded to `C`, on all threads, in one fork.
pub(crate) fn multiply<C: Scalar>(products: &[Product<'_>]) {
    // Many products are tasks enough, and cutting one costs.
    let threads = (4 * parallel::threads() / products.len().max(1)).clamp(1, parallel::threads());
    let mut tasks = Vec::new();
    let mut work = 0;
    for product in products {
        let plan = Plan::new(product);
        if plan.rows == 0 || plan.width == 0 {
            continue;
        }
        work +=
            plan.rows * plan.width * product.terms.iter().map(|term| term.rows.depth()).sum::<usize>() / 16;
        let split = Split::new(plan.tiles, plan.width.div_ceil(plan.kernel.columns), threads);
        tasks.extend((0..split.count()).map(|index| (product, split.panels(index), split.tiles(index))));
    }
    parallel::for_each(tasks, work, |(product, panels, tiles)| {
        Plan::new(product).part::<C>(product, panels, tiles);
    });
}

/// Computes `rows · columns` on this thread and hands the tiles to `finish`. Both operands are one block long; the rows
/// may be shorter, the reduction then ends with them. `needed` says of a tile of rows how many columns are wanted, and
/// which indices of the reduction are not zero; the others may be left out.
pub(crate) fn multiply_packed(
    rows: &PackedRows,
    columns: &PackedColumns,
    needed: impl Fn(Range<usize>) -> (usize, Range<usize>),
    mut finish: impl FnMut(Tile<'_>),
) {
    let (depth, kernel) = (rows.depth(), columns.kernel);
    assert!(
        depth <= columns.depth() && depth <= BLOCK && rows.kernels().element() == kernel.element,
        "product: the operands do not fit each other"
    );
    let indices = kernel.element.indices();
    let mut accumulators = Accumulators([0.0; MOST_ROWS * MOST_COLUMNS]);
    let tiles = rows.rows().div_ceil(kernel.rows);
    for tile in 0..tiles {
        let range = tile_range(rows.rows(), tiles, tile);
        let (width, reduction) = needed(range.clone());
        assert!(width <= columns.width() && reduction.end <= depth, "product: more is needed than there is");
        let steps = reduction.start / indices..reduction.end.div_ceil(indices);
        let left = &rows.tile(&range, &(0..depth))[steps.start * range.len()..steps.end * range.len()];
        for start in (0..width).step_by(kernel.columns) {
            let panel = &columns.data[start / kernel.columns * columns.steps * kernel.columns..];
            let right = &panel[steps.start * kernel.columns..steps.end * kernel.columns];
            let run = Run { steps: steps.len(), rows: left.as_ptr(), columns: right.as_ptr() };
            let values = &mut accumulators.0[..range.len() * kernel.columns];
            // SAFETY: the kernel belongs to the set in use, which this machine has; both operands are as long as
            // `steps` asks for, and panels and accumulators begin at multiples of 64 bytes where kernels of 16
            // columns or more need it.
            unsafe { (kernel.multiply)(range.len(), &[run], values.as_mut_ptr(), false) };
            let columns = start..(start + kernel.columns).min(width);
            finish(Tile { rows: range.clone(), columns, values, stride: kernel.columns });
        }
    }
}

/// The largest tile of any kernel.
const MOST_ROWS: usize = 14;
const MOST_COLUMNS: usize = 32;

#[repr(align(64))]
struct Accumulators([f32; MOST_ROWS * MOST_COLUMNS]);

/// Runs the microkernel for operands rounded to `C` on one small tile, over and over. Returns the floating-point
/// operations done.
pub(crate) fn spin<C: Scalar>(times: usize) -> u64 {
    const STEPS: usize = 128;
    let kernel = Kernels::of::<C>().wide;
    let rows = pool::zeros::<u32>(STEPS * kernel.rows);
    let columns = pool::zeros::<u32>(STEPS * kernel.columns);
    let mut accumulators = Accumulators([0.0; MOST_ROWS * MOST_COLUMNS]);
    let run = Run { steps: STEPS, rows: rows.as_ptr(), columns: columns.as_ptr() };
    for _ in 0..times {
        // SAFETY: the kernel belongs to the set in use; the operands hold `STEPS` steps, the accumulators a tile.
        unsafe { (kernel.multiply)(kernel.rows, &[run], accumulators.0.as_mut_ptr(), true) };
    }
    std::hint::black_box(&accumulators.0);
    (2 * times * STEPS * kernel.element.indices() * kernel.rows * kernel.columns) as u64
}

/// Bytes of panels and accumulators of one task at its largest, for a product of `rows` rows.
pub(crate) fn task_bytes(rows: u64, element: Element) -> u64 {
    let (steps, width) = (BLOCK / element.indices() + 32, MOST_COLUMNS);
    let panels = split::MOST_PANELS * steps * width * size_of::<u32>();
    // All tiles of all panels, where the reduction is longer than a block.
    let accumulators = rows.div_ceil(MOST_ROWS as u64) * (MOST_ROWS * width * split::MOST_PANELS * 4) as u64;
    panels as u64 + accumulators
}

/// The fixed facts of a product.
struct Plan {
    kernel: &'static Kernel,
    rows: usize,
    width: usize,
    tiles: usize,
}

/// A block of one term.
struct Block<'a> {
    term: &'a Term<'a>,
    range: Range<usize>,
    steps: usize,
}

impl Plan {
    fn new(product: &Product<'_>) -> Self {
        let first = &product.terms[0];
        let (rows, width) = (first.rows.rows(), first.columns.width());
        for term in product.terms {
            assert!(
                term.rows.rows() == rows
                    && term.columns.width() == width
                    && term.rows.depth() == term.columns.depth()
                    && term.rows.kernels().element() == first.rows.kernels().element(),
                "product: the terms do not fit each other"
            );
        }
        let kernel = first.rows.kernels().for_columns(width);
        Self { kernel, rows, width, tiles: rows.div_ceil(kernel.rows) }
    }

    /// The blocks of all terms, gathered into passes over the accumulators.
    fn passes<'a>(&self, product: &Product<'a>) -> Vec<Vec<Block<'a>>> {
        let indices = self.kernel.element.indices();
        let mut passes: Vec<Vec<Block<'a>>> = Vec::new();
        for term in product.terms {
            for range in Blocks::new(term.rows.depth()).iter() {
                let steps = range.len().div_ceil(indices);
                let fits = passes.last().is_some_and(|pass| {
                    let held: usize = pass.iter().map(|block| block.steps).sum();
                    pass.len() < MOST_RUNS && held + steps <= BLOCK / indices + 32
                });
                let block = Block { term, range, steps };
                match passes.last_mut() {
                    Some(pass) if fits => pass.push(block),
                    _ => passes.push(vec![block]),
                }
            }
        }
        passes
    }

    /// Some panels of columns for some tiles of rows. Tiles outside, panels inside: a tile of rows stays in the
    /// first-level cache while the panels come from the second.
    fn part<C: Scalar>(&self, product: &Product<'_>, panels: Range<usize>, tiles: Range<usize>) {
        let width = self.kernel.columns;
        let passes = self.passes(product);
        // A reduction of length zero.
        if passes.is_empty() {
            return self.finish_zeros(product, panels, tiles);
        }
        let most =
            passes.iter().map(|pass| pass.iter().map(|block| block.steps).sum::<usize>()).max().unwrap_or(0);
        let mut columns = pool::take::<u32>(most * width * panels.len());
        let tile_length = self.kernel.rows * width;
        let kept = if passes.len() > 1 { tiles.len() * panels.len() } else { 1 };
        let mut accumulators = pool::take::<f32>(kept * tile_length);
        for (number, pass) in passes.iter().enumerate() {
            let steps: usize = pass.iter().map(|block| block.steps).sum();
            for (panel, out) in panels.clone().zip(columns.chunks_exact_mut(steps * width)) {
                let mut out = out;
                for block in pass {
                    let (here, rest) = out.split_at_mut(block.steps * width);
                    block.term.columns.panel::<C>(self.kernel, panel * width, block.range.clone(), here);
                    out = rest;
                }
            }
            let last = number + 1 == passes.len();
            let nothing = Run { steps: 0, rows: std::ptr::null(), columns: std::ptr::null() };
            let mut runs = [nothing; MOST_RUNS];
            for (index, tile) in tiles.clone().enumerate() {
                let rows = tile_range(self.rows, self.tiles, tile);
                for (place, panel) in panels.clone().enumerate() {
                    let slot = if kept > 1 { index * panels.len() + place } else { 0 };
                    let values = &mut accumulators[slot * tile_length..][..rows.len() * width];
                    let mut packed = &columns[place * steps * width..][..steps * width];
                    for (run, block) in runs.iter_mut().zip(pass) {
                        let (here, rest) = packed.split_at(block.steps * width);
                        let left = block.term.rows.tile(&rows, &block.range);
                        *run = Run { steps: block.steps, rows: left.as_ptr(), columns: here.as_ptr() };
                        packed = rest;
                    }
                    let across = panel * width..(panel * width + width).min(self.width);
                    if let (0, Some(begin)) = (number, product.begin) {
                        // What the next tile begins with; this one's was fetched by the one before.
                        let (tile, next) = match panel + 1 < panels.end {
                            true => (tile, panel + 1),
                            false => (tile + 1, panels.start),
                        };
                        if let (true, Some(place)) = (tile < self.tiles, product.place) {
                            let columns = next * width..(next * width + width).min(self.width);
                            place.fetch(tile_range(self.rows, self.tiles, tile), columns);
                        }
                        let (rows, columns) = (rows.clone(), across.clone());
                        begin(Tile { rows, columns, values, stride: width });
                    } else if let (true, Some(place)) = (last, product.place) {
                        place.fetch(rows.clone(), across.clone());
                    }
                    // SAFETY: the kernel is one of those of the set in use, which this machine has; each run's
                    // operands were cut to `steps · rows` and `steps · width` elements above, the accumulators to
                    // `rows · width`. Buffers of the pool begin at multiples of 64 bytes, and a panel, a run and a
                    // tile are multiples of `width` elements from there: 64 bytes for every kernel of 16 columns or
                    // more; the others load without alignment.
                    unsafe {
                        (self.kernel.multiply)(
                            rows.len(),
                            &runs[..pass.len()],
                            values.as_mut_ptr(),
                            number > 0 || product.begin.is_some(),
                        );
                    }
                    if last {
                        (product.finish)(Tile { rows: rows.clone(), columns: across, values, stride: width });
                    }
                }
            }
        }
    }

    fn finish_zeros(&self, product: &Product<'_>, panels: Range<usize>, tiles: Range<usize>) {
        let width = self.kernel.columns;
        for tile in tiles {
            let rows = tile_range(self.rows, self.tiles, tile);
            for panel in panels.clone() {
                let columns = panel * width..(panel * width + width).min(self.width);
                let values = &mut pool::zeros::<f32>(rows.len() * width);
                (product.finish)(Tile { rows: rows.clone(), columns, values, stride: width });
            }
        }
    }
}
