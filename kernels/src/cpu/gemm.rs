//! One single-threaded f32 matrix product over strided slices, with its bounds checked: a safe face for `gemm`.

/// A strided matrix inside a slice: element (r, c) stands at `r · row_stride + c · column_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) row_stride: usize,
    pub(crate) column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Rows of `row_stride` values each, of which the first few are meant.
    pub(crate) fn rows(values: &'a [f32], row_stride: usize) -> Self {
        Self { values, row_stride, column_stride: 1 }
    }

    /// The same values with rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        Self { values: self.values, row_stride: self.column_stride, column_stride: self.row_stride }
    }

    fn holds(&self, rows: usize, columns: usize) -> bool {
        (rows - 1) * self.row_stride + (columns - 1) * self.column_stride < self.values.len()
    }
}

/// What becomes of the values already in the destination.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Destination {
    /// Overwritten.
    Replace,
    /// Added to.
    Add,
}

/// `dst = factor · left · right` or `dst += …`, with `left` `[rows, inner]`, `right` `[inner, columns]` and `dst`
/// `[rows, columns]` in rows of `dst_row_stride`. The order of summation depends on the shapes alone.
pub(crate) fn gemm(
    shape: [usize; 3],
    dst: &mut [f32],
    dst_row_stride: usize,
    destination: Destination,
    factor: f32,
    left: Matrix<'_>,
    right: Matrix<'_>,
) {
    let [rows, inner, columns] = shape;
    if rows == 0 || columns == 0 {
        return;
    }
    assert!(
        columns <= dst_row_stride && (rows - 1) * dst_row_stride + columns <= dst.len(),
        "gemm: destination"
    );
    if inner == 0 {
        if destination == Destination::Replace {
            dst.chunks_mut(dst_row_stride).take(rows).for_each(|row| row[..columns].fill(0.0));
        }
        return;
    }
    assert!(left.holds(rows, inner) && right.holds(inner, columns), "gemm: {shape:?} is out of bounds");
    // SAFETY: the assertions above bound every element that the strides reach in the three slices; `dst` is
    // borrowed mutably, so it overlaps neither operand; all element types are f32.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            dst.as_mut_ptr(),
            1,
            dst_row_stride as isize,
            destination == Destination::Add,
            left.values.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.values.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            1.0f32,
            factor,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
