//! How the tokens of a mixture were spread over its experts: a cell for each expert of each layer, the darker the more.

use std::fmt::Write;

use super::html::escape;
use super::read::Run;
use crate::units::Grouped;

/// Width of the drawing, and of the numbers of layers at its left.
const WIDTH: f64 = 1080.0;
const LEFT: f64 = 40.0;
/// Largest height of a row.
const ROW: f64 = 18.0;
/// Tokens over the mean of the layer from which on a cell is darkest.
const DARKEST: f64 = 4.0;
/// Largest number of cells drawn; more are those of no model.
const MOST_CELLS: usize = 100_000;

/// The section; empty for a model without mixtures.
pub(super) fn experts(run: &Run) -> String {
    let layers: Vec<(usize, &[u64])> = run.expert_load.layers().collect();
    let cells: usize = layers.iter().map(|(_, experts)| experts.len()).sum();
    if cells == 0 || cells > MOST_CELLS {
        return String::new();
    }
    let widest = layers.iter().map(|(_, experts)| experts.len()).max().unwrap_or(1);
    let column = (WIDTH - LEFT) / widest as f64;
    let height = layers.len() as f64 * ROW;
    let mut svg = String::new();
    let mut draw = |text: std::fmt::Arguments<'_>| _ = svg.write_fmt(text);
    let mut unused = 0_usize;
    let mut busiest = (0.0, 0, 0);
    for (row, (layer, experts)) in layers.iter().enumerate() {
        let top = row as f64 * ROW;
        // Floats, since the numbers of a file may have any sum.
        let mean = experts.iter().map(|tokens| *tokens as f64).sum::<f64>() / experts.len() as f64;
        draw(format_args!(
            "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{layer}</text>\n",
            LEFT - 8.0,
            top + ROW - 5.0
        ));
        for (expert, tokens) in experts.iter().enumerate() {
            let load = if mean > 0.0 { *tokens as f64 / mean } else { 0.0 };
            unused += usize::from(*tokens == 0);
            if load > busiest.0 {
                busiest = (load, *layer, expert);
            }
            draw(format_args!(
                "<rect class=\"cell\" x=\"{:.2}\" y=\"{top:.0}\" width=\"{:.2}\" height=\"{:.0}\" fill-opacity=\"{:.3}\">\
                 <title>layer {layer}, expert {expert}: {} tokens, {load:.2} of the mean</title></rect>\n",
                LEFT + expert as f64 * column,
                column.max(1.0) - 0.5,
                ROW - 1.0,
                (load / DARKEST).min(1.0),
                Grouped(*tokens),
            ));
        }
    }
    let (load, layer, expert) = busiest;
    let summary = format!(
        "A row for each layer, a cell for each expert; the darkest have {DARKEST:.0} times the mean of their layer or more. \
         The busiest is expert {expert} of layer {layer}, with {load:.2} times the mean; {} of {} experts had no token.",
        Grouped(unused as u64),
        Grouped(cells as u64),
    );
    format!(
        "<h2>Experts</h2>\n<figure class=\"chart full\">\n<figcaption>Tokens by layer and expert</figcaption>\n\
         <svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{0}\">\n{svg}</svg>\n</figure>\n\
         <p class=\"soft\">{0}</p>\n",
        escape(&summary)
    )
}
