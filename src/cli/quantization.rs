//! What 4 bits cost a base, as a table: errors of weights by module, and both losses.

use std::io::{self, Write};

use super::lines::line;
use super::style::{FAINT, STRONG, paint};
use crate::export::quantize::report::{HeldOut, Report, kinds};
use crate::units::Grouped;

/// Rows that losses are compared on unless told otherwise.
pub(super) const REPORT_ROWS: u64 = 64;

/// Prints the table.
pub(super) fn show(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let head = format!("{:<36}{:>8}{:>10}{:>10}{:>10}", "module", "weights", "error", "largest", "in layer");
    writeln!(out, "{}", paint(STRONG, head))?;
    for kind in kinds(&report.tensors) {
        let (layer, largest) = (kind.worst.layer().unwrap_or("-"), percent(kind.worst.error));
        let (name, error) = (&kind.name, percent(kind.error));
        writeln!(out, "{name:<36}{:>8}{error:>10}{largest:>10}{layer:>10}", kind.tensors)?;
    }
    let together = format!("{:<36}{:>8}{:>10}", "together", report.tensors.len(), percent(report.error));
    writeln!(out, "{}", paint(STRONG, together))?;
    writeln!(
        out,
        "{}",
        paint(FAINT, "error: root mean square of what 4 bits change, over that of the weights")
    )?;
    match &report.held_out {
        Some(held_out) => losses(held_out, out),
        None => line(out, "loss", "no rows to compare on: the recipe holds none out"),
    }
}

fn losses(held_out: &HeldOut, out: &mut dyn Write) -> io::Result<()> {
    let HeldOut { origin, rows, supervised_tokens, dense_loss, quantized_loss, difference, margin } =
        held_out;
    writeln!(out)?;
    let rows = format!("{}, {} supervised tokens: {origin}", Grouped(*rows), Grouped(*supervised_tokens));
    line(out, "rows", &rows)?;
    line(out, "dense", &format!("loss {dense_loss:.4}"))?;
    let margin = margin.map_or(String::new(), |margin| format!(" ± {margin:.4}"));
    let perplexity = 100.0 * (difference.exp() - 1.0);
    let change =
        format!("loss {quantized_loss:.4} ({difference:+.4}{margin}; perplexity {perplexity:+.2} %)");
    line(out, "4-bit", &change)
}

fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}
