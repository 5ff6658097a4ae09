//! Tables for people: the adapted projections, and the memory plan.

use super::style::{FAINT, STRONG, WARNING, paint};
use crate::adapter::table;
use crate::adapter::target::Target;
use crate::model::fetch::Home;
use crate::train::memory::{Plan, Term};
use crate::units::{Bytes, Grouped};

/// The adapted projections, one line per kind.
pub(super) fn targets(targets: &[Target]) -> Vec<String> {
    let rows = table::table(targets);
    let mut lines = vec![paint(STRONG, "adapter    layers      out × in    rank  scaling  parameters")];
    for row in &rows {
        let shape = format!("{} × {}", row.out_features, row.in_features);
        let warning = match row.exceeds_full_rank() {
            true => paint(WARNING, "  rank above full rank"),
            false => String::new(),
        };
        lines.push(format!(
            "{:<11}{:<8}{:>14}{:>8}{:>9.4}{:>12}{warning}",
            row.name,
            table::LayerRanges(&row.layers).to_string(),
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

/// A memory plan in one line.
pub(super) fn plan_line(plan: &Plan) -> String {
    let kept = match plan.layers - plan.kept_layers {
        0 => "all layers save their activations".to_owned(),
        again => format!("{again} of {} layers recompute theirs in the backward pass", plan.layers),
    };
    let held = plan.streaming.as_ref().map_or_else(String::new, |streaming| {
        let home = match streaming.home {
            Home::Host => "host memory",
            Home::Disk => "disk",
        };
        let (held, waiting) = (streaming.resident_layers, Bytes(streaming.streamed_bytes));
        format!("; {held} of {} layers held, the others fetched from {home} ({waiting})", plan.layers)
    });
    let table = if plan.host_embeddings { "; token embeddings off the device" } else { "" };
    let inputs = plan.host_inputs.map_or_else(String::new, |bytes| {
        format!("; the inputs of recomputed layers in host memory ({})", Bytes(bytes))
    });
    format!("{} planned; {kept}{held}{table}{inputs}", Bytes(plan.total()))
}

/// A memory plan, one line per term.
pub(super) fn plan(plan: &Plan) -> Vec<String> {
    let term = |term: &Term| format!("  {:<18}{:>12}", term.name, Bytes(term.bytes).to_string());
    plan.terms.iter().filter(|term| term.bytes > 0).map(term).collect()
}
