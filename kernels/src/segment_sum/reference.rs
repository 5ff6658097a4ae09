//! The slow oracle of sums over segments: f64 inside.

/// The sum of each segment of `rows`.
pub fn forward(rows: &[f32], offsets: &[u32]) -> Vec<f32> {
    let segment = |ends: &[u32]| &rows[ends[0] as usize..ends[1] as usize];
    let sum = |rows: &[f32]| rows.iter().map(|row| f64::from(*row)).sum::<f64>() as f32;
    offsets.windows(2).map(|ends| sum(segment(ends))).collect()
}
