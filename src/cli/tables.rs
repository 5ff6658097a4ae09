//! Tables for people: what matched the target patterns.

use super::style::{FAINT, STRONG, WARNING, paint};
use crate::adapter::target::{self, Target};
use crate::units::Grouped;

/// The projections that get an adapter, one line for each kind.
pub(super) fn targets(targets: &[Target]) -> Vec<String> {
    let rows = target::table(targets);
    let mut lines = vec![paint(STRONG, "adapter    layers      out × in    rank  scaling  parameters")];
    for row in &rows {
        let shape = format!("{} × {}", row.out_features, row.in_features);
        let warning = match row.exceeds_full_rank() {
            true => paint(WARNING, "  rank above full rank"),
            false => String::new(),
        };
        lines.push(format!(
            "{:<11}{:<8}{:>14}{:>8}{:>9.4}{:>12}{warning}",
            row.projection.hf_name(),
            target::LayerRanges(&row.layers).to_string(),
            shape,
            row.rank,
            row.scaling,
            Grouped(row.parameters).to_string(),
        ));
    }
    let total: u64 = rows.iter().map(|row| row.parameters).sum();
    lines.push(paint(FAINT, format!("{:<11}{:>51}", "total", Grouped(total).to_string())));
    lines
}
