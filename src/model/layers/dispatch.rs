//! Which rows of a batch each expert computes: tokens sorted by expert, and the way back.

use std::ops::Range;
use std::sync::Arc;

use burn_tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::row_sum::{RowLists, row_sum};

/// The rows of experts: a token has one for each expert that it was sent to. Rows are sorted by expert, those of one
/// expert by token, so that every sum has one order.
#[derive(Clone, Debug)]
pub(super) struct Dispatch {
    /// For each token its experts, as the router chose them.
    pub(super) chosen: Arc<[u32]>,
    /// The experts that have rows, with these.
    pub(super) experts: Vec<(usize, Range<usize>)>,
    /// The token of each row.
    tokens: RowLists,
    /// The rows of each token.
    rows: RowLists,
    /// The place of each row in `chosen`.
    places: RowLists,
    /// The row of each place.
    back: RowLists,
}

impl Dispatch {
    /// Of `used` experts for each token.
    pub(super) fn new(chosen: Arc<[u32]>, used: usize, experts: usize) -> Self {
        let mut ends = vec![0; experts + 1];
        for expert in &*chosen {
            ends[*expert as usize + 1] += 1;
        }
        for expert in 0..experts {
            ends[expert + 1] += ends[expert];
        }
        let mut next = ends.clone();
        let mut order = vec![0; chosen.len()];
        for (place, expert) in chosen.iter().enumerate() {
            let at: &mut usize = &mut next[*expert as usize];
            order[*at] = place as u32;
            *at += 1;
        }
        let ranges = ends.windows(2).map(|ends| ends[0]..ends[1]).enumerate();
        let of_place = |divisor: u32| order.iter().map(move |place| place / divisor..place / divisor + 1);
        let tokens = RowLists::copies(of_place(used as u32), chosen.len() / used);
        let places = RowLists::copies(of_place(1), chosen.len());
        Self {
            experts: ranges.filter(|(_, rows)| !rows.is_empty()).collect(),
            rows: tokens.transposed(),
            back: places.transposed(),
            tokens,
            places,
            chosen,
        }
    }

    /// A copy of each token's row for each of its experts, `[tokens, width]` → `[rows, width]`.
    pub(super) fn to_rows<B: KernelBackend>(&self, x: &Tensor<B, 2>) -> Tensor<B, 2> {
        row_sum(x, &self.tokens)
    }

    /// The sum of each token's rows, `[rows, width]` → `[tokens, width]`.
    pub(super) fn to_tokens<B: KernelBackend>(&self, x: &Tensor<B, 2>) -> Tensor<B, 2> {
        row_sum(x, &self.rows)
    }

    /// A number for each expert of each token, `[tokens, used]`, by rows: `[rows]`.
    pub(super) fn numbers_to_rows<B: KernelBackend>(&self, numbers: Tensor<B, 2>) -> Tensor<B, 1> {
        let count = self.chosen.len();
        row_sum(&numbers.reshape([count, 1]), &self.places).reshape([count])
    }

    /// A number for each expert of each token, by all experts: `[tokens, experts]`, 0 where an expert is not chosen.
    pub(super) fn numbers_to_experts<B: KernelBackend>(
        &self,
        numbers: Tensor<B, 2>,
        experts: usize,
    ) -> Tensor<B, 2> {
        let ([tokens, _], count) = (numbers.dims(), self.chosen.len());
        let cells = self.cells(tokens, experts).transposed();
        row_sum(&numbers.reshape([count, 1]), &cells).reshape([tokens, experts])
    }

    /// Of a number for every expert of each token, `[tokens, experts]`, those of the chosen ones, `[tokens, used]`.
    pub(super) fn numbers_of_experts<B: KernelBackend>(&self, numbers: Tensor<B, 2>) -> Tensor<B, 2> {
        let [tokens, experts] = numbers.dims();
        let cells = self.cells(tokens, experts);
        let used = self.chosen.len() / tokens.max(1);
        row_sum(&numbers.reshape([tokens * experts, 1]), &cells).reshape([tokens, used])
    }

    /// The cell of each place in a table of tokens and experts.
    fn cells(&self, tokens: usize, experts: usize) -> RowLists {
        let used = self.chosen.len() / tokens.max(1);
        let cell = |(place, expert): (usize, &u32)| {
            let cell = (place / used * experts) as u32 + expert;
            cell..cell + 1
        };
        RowLists::copies(self.chosen.iter().enumerate().map(cell), tokens * experts)
    }

    /// The way back from [`Self::numbers_to_rows`].
    pub(super) fn numbers_to_tokens<B: KernelBackend>(
        &self,
        numbers: Tensor<B, 1>,
        used: usize,
    ) -> Tensor<B, 2> {
        let count = self.chosen.len();
        row_sum(&numbers.reshape([count, 1]), &self.back).reshape([count / used, used])
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;
    use burn_tensor::TensorData;

    use super::*;

    #[test]
    fn rows_are_sorted_by_expert_and_find_their_tokens_again() {
        let dispatch = Dispatch::new([2, 0, 4, 2, 0, 4].into(), 2, 5);
        let experts: Vec<_> = dispatch.experts.iter().map(|(expert, rows)| (*expert, rows.clone())).collect();
        assert_eq!(experts, [(0, 0..2), (2, 2..4), (4, 4..6)]);
        let tensor = |values: &[f32], shape: [usize; 2]| {
            Tensor::<Flex, 2>::from_data(TensorData::new(values.to_vec(), shape), &Default::default())
        };
        let values = |tensor: Tensor<Flex, 2>| tensor.into_data().into_vec::<f32>().unwrap();
        let rows = dispatch.to_rows(&tensor(&[1.0, 2.0, 3.0], [3, 1]));
        assert_eq!(values(rows.clone()), [1.0, 3.0, 1.0, 2.0, 2.0, 3.0]);
        assert_eq!(values(dispatch.to_tokens(&rows)), [2.0, 4.0, 6.0]);
        let numbers = tensor(&[0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [3, 2]);
        let sorted = dispatch.numbers_to_rows(numbers.clone());
        assert_eq!(sorted.to_data().to_vec::<f32>().unwrap(), [0.2, 0.5, 0.1, 0.4, 0.3, 0.6]);
        assert_eq!(values(dispatch.numbers_to_tokens(sorted, 2)), values(numbers.clone()));
        let table = dispatch.numbers_to_experts(numbers.clone(), 5);
        let expected = [0.2, 0.0, 0.1, 0.0, 0.0, 0.0, 0.0, 0.4, 0.0, 0.3, 0.5, 0.0, 0.0, 0.0, 0.6];
        assert_eq!(values(table.clone()), expected);
        assert_eq!(values(dispatch.numbers_of_experts(table)), values(numbers));
    }
}
