//! Sums over segments on the CPU: in f64, from the first row to the last.

use burn_flex::Flex;
use burn_tensor::Tensor;

use super::SegmentOps;
use crate::cpu::tensor;

impl SegmentOps for Flex {
    fn segment_sum(rows: &Tensor<Self, 1>, offsets: &[u32]) -> Tensor<Self, 1> {
        let rows = tensor::primitive(rows.clone());
        let rows = rows.storage::<f32>();
        let sum = |ends: &[u32]| {
            let rows = &rows[ends[0] as usize..ends[1] as usize];
            rows.iter().map(|row| f64::from(*row)).sum::<f64>() as f32
        };
        let sums: Vec<f32> = offsets.windows(2).map(sum).collect();
        let segments = sums.len();
        tensor::from_vec(sums, [segments])
    }
}
