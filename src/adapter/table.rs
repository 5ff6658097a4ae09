//! The adapted projections as a short table: one row for all layers whose numbers agree. Refuses to know how a table is
//! drawn.

use std::borrow::Cow;
use std::fmt;

use super::projection::Module;
use super::target::Target;

/// One row: a projection, over the layers in which all its numbers agree.
#[derive(Clone, Debug, PartialEq)]
pub struct TableRow {
    /// The last component of the module paths (`q_proj`); of all experts of a layer, `experts.*.` before it.
    pub name: String,
    /// Its layers, ascending.
    pub layers: Vec<usize>,
    /// Rows of the weight.
    pub out_features: usize,
    /// Columns of the weight.
    pub in_features: usize,
    /// Rows of A.
    pub rank: usize,
    /// Numerator of the scaling.
    pub alpha: f64,
    /// Factor on B·A.
    pub scaling: f64,
    /// Elements of A and B in all these layers.
    pub parameters: u64,
}

impl TableRow {
    /// Whether the rank is higher than that of any update the weight could take: legal, and a waste.
    pub fn exceeds_full_rank(&self) -> bool {
        self.rank > self.in_features.min(self.out_features)
    }
}

/// The rows: usually one for each projection.
pub fn table(targets: &[Target]) -> Vec<TableRow> {
    let mut rows: Vec<((Cow<'_, str>, usize), TableRow)> = Vec::new();
    for target in targets {
        let module = &target.module;
        let path = place(module);
        let same = |((known, _), row): &&mut ((Cow<'_, str>, usize), TableRow)| {
            *known == path
                && (row.out_features, row.in_features) == (module.out_features, module.in_features)
                && (row.rank, row.alpha, row.scaling) == (target.rank, target.alpha, target.scaling)
        };
        match rows.iter_mut().find(same) {
            Some((_, row)) => {
                if row.layers.last() != Some(&module.layer) {
                    row.layers.push(module.layer);
                }
                row.parameters += target.parameters();
            }
            None => {
                let name = module.name();
                let row = TableRow {
                    name: if module.role.is_routed() { format!("experts.*.{name}") } else { name.to_owned() },
                    layers: vec![module.layer],
                    out_features: module.out_features,
                    in_features: module.in_features,
                    rank: target.rank,
                    alpha: target.alpha,
                    scaling: target.scaling,
                    parameters: target.parameters(),
                };
                rows.push(((path, module.slot), row));
            }
        }
    }
    rows.sort_by_key(|((_, slot), row)| (*slot, row.layers[0]));
    rows.into_iter().map(|(_, row)| row).collect()
}

/// The path in a layer, the same for all experts.
fn place(module: &Module) -> Cow<'_, str> {
    let path = module.path_in_layer();
    match (module.role.is_routed(), path.split_once(".experts.")) {
        (true, Some((before, _))) => Cow::Owned(format!("{before}.experts.*.{}", module.name())),
        _ => Cow::Borrowed(path),
    }
}

/// Layer numbers as ranges: `0-11, 14`.
#[derive(Clone, Copy, Debug)]
pub struct LayerRanges<'a>(pub &'a [usize]);

impl fmt::Display for LayerRanges<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, run) in self.0.chunk_by(|left, right| left + 1 == *right).enumerate() {
            let comma = if position == 0 { "" } else { ", " };
            match run {
                [only] => write!(formatter, "{comma}{only}")?,
                [first, .., last] => write!(formatter, "{comma}{first}-{last}")?,
                [] => {}
            }
        }
        Ok(())
    }
}
