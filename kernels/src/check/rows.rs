//! Sums over segments of rows, scaled rows and columns, and sums of rows.

use burn_tensor::DType;

use super::measure::{Deviation, On, random, tolerance, values};
use crate::KernelBackend;
use crate::column_scale::{self, column_scale, column_scale_backward};
use crate::row_scale::{self, row_scale, row_scale_backward};
use crate::row_sum::{self, RowLists, row_sum};
use crate::segment_sum::{self, segment_sum};

pub(super) fn all_segment_sum<B: KernelBackend>(on: On<'_, B>) -> Vec<Deviation> {
    check_segment_sum(on, &[0, 1, 1, 300, 364])
}

pub(super) fn all_row_scale<B: KernelBackend>(on: On<'_, B>) -> Vec<Deviation> {
    [(1, 1), (3, 173)].into_iter().flat_map(|(rows, width)| check_row_scale(on, rows, width)).collect()
}

pub(super) fn all_column_scale<B: KernelBackend>(on: On<'_, B>) -> Vec<Deviation> {
    [(1, 1), (7, 173)].into_iter().flat_map(|(rows, width)| check_column_scale(on, rows, width)).collect()
}

pub(super) fn all_row_sum<B: KernelBackend>(on: On<'_, B>) -> Vec<Deviation> {
    let copies = RowLists::copies([0..9, 3..9, 3..4, 11..12], 12);
    [1, 173].into_iter().flat_map(|width| check_row_sum(on, &copies, width)).collect()
}

/// [`row_sum()`] by lists, and by the same lists transposed.
pub fn check_row_sum<B: KernelBackend>(on: On<'_, B>, lists: &RowLists, width: usize) -> Vec<Deviation> {
    let one = |part: &'static str, lists: &RowLists| {
        let x = on.random(lists.sources() * width, 1, 2.0);
        let found = row_sum(&on.tensor::<2>(&x, [lists.sources(), width]), lists);
        let expected = row_sum::reference::forward(&x, lists);
        let case = format!("{} of [{}, {width}]", lists.results(), lists.sources());
        Deviation::new(part, &case, &values(&found), &expected, on.tolerance())
    };
    vec![one("y", lists), one("dx", &lists.transposed())]
}

/// [`segment_sum()`] of as many rows as the offsets end at.
pub fn check_segment_sum<B: KernelBackend>(on: On<'_, B>, offsets: &[u32]) -> Vec<Deviation> {
    let rows = offsets.last().map_or(0, |last| *last as usize);
    let numbers = random(rows, 1, 3.0);
    let expected = segment_sum::reference::forward(&numbers, offsets);
    let found = values(&segment_sum(&on.single::<1>(&numbers, [rows]), offsets));
    vec![Deviation::new("sums", &format!("segments {offsets:?}"), &found, &expected, tolerance(DType::F32))]
}

/// [`row_scale()`], in place and beside a tensor that is still held, and its backward.
pub fn check_row_scale<B: KernelBackend>(on: On<'_, B>, rows: usize, width: usize) -> Vec<Deviation> {
    let case = format!("[{rows}, {width}]");
    let (numbers, factors) = (on.random(rows * width, 1, 2.0), random(rows, 2, 1.5));
    let expected = row_scale::reference::forward(&numbers, &factors);
    let x = on.tensor::<2>(&numbers, [rows, width]);
    let factors = on.single::<1>(&factors, [rows]);
    let beside = values(&row_scale(x.clone(), &factors));
    let held = values(&x);
    let in_place = values(&row_scale(on.tensor::<2>(&numbers, [rows, width]), &factors));
    let dy = on.random(rows * width, 3, 1.0);
    let (dx, dfactors) = row_scale::reference::backward(&numbers, &values(&factors), &dy);
    let (found_dx, found) = row_scale_backward(&x, &factors, on.tensor::<2>(&dy, [rows, width]));
    vec![
        Deviation::new("dx", &case, &values(&found_dx), &dx, on.tolerance()),
        Deviation::new("dfactors", &case, &values(&found), &dfactors, on.tolerance()),
        Deviation::new("y", &case, &beside, &expected, on.tolerance()),
        Deviation::new("x, held", &case, &held, &numbers, 0.0),
        Deviation::new("y, in place", &case, &in_place, &beside, 0.0),
    ]
}

/// [`column_scale()`] with and without a bias and a residual, and its backward.
pub fn check_column_scale<B: KernelBackend>(on: On<'_, B>, rows: usize, width: usize) -> Vec<Deviation> {
    use column_scale::reference;
    let case = format!("[{rows}, {width}]");
    let [u, residual, dy] = [1, 4, 5].map(|seed| on.random(rows * width, seed, 2.0));
    let (factors, bias) = (random(width, 2, 1.5), on.random(width, 3, 1.0));
    let slopes = reference::backward(&u, &factors, &dy);
    let [on_u, on_residual, on_dy] =
        [&u, &residual, &dy].map(|numbers| on.tensor::<2>(numbers, [rows, width]));
    let on_factors = on.single::<2>(&factors, [1, width]);
    let on_bias = on.tensor::<1>(&bias, [width]);
    let forward = |part: &'static str, biased: bool, added: bool| {
        let (bias, on_bias) = (biased.then_some(bias.as_slice()), biased.then_some(&on_bias));
        let (residual, on_residual) = (added.then_some(residual.as_slice()), added.then_some(&on_residual));
        let expected = reference::forward(&u, &factors, bias, residual);
        let found = column_scale(&on_u, &on_factors, on_bias, on_residual);
        assert_eq!(found.dtype(), on.dtype, "scaled columns keep their dtype");
        Deviation::new(part, &case, &values(&found), &expected, on.tolerance())
    };
    let (du, dfactors) = column_scale_backward(&on_u, &on_factors, &on_dy);
    vec![
        forward("y", false, false),
        forward("y + bias", true, false),
        forward("y + residual", false, true),
        forward("y + bias + residual", true, true),
        Deviation::new("du", &case, &values(&du), &slopes.0, on.tolerance()),
        Deviation::new("dfactors", &case, &values(&dfactors), &slopes.1, 5.0 * tolerance(DType::F32)),
    ]
}
