//! The names of experts' weights. Checkpoints store them apart or all experts in one tensor, under old names or new ones;
//! here each weight is seen by itself, under one name.
//!
//! ```text
//! mlp.experts.gate_up_proj  [experts, 2 · width, hidden]   ─▶  mlp.experts.E.gate_proj.weight, mlp.experts.E.up_proj.weight
//! mlp.experts.down_proj     [experts, hidden, width]       ─▶  mlp.experts.E.down_proj.weight
//! block_sparse_moe.experts.E.w1.weight                     ─▶  mlp.experts.E.gate_proj.weight      (w3: up, w2: down)
//! ```
//!
//! gpt-oss, whose stacked experts have biases, stores weights transposed, `[experts, in, out]`, and gate and up in turns.

use std::ops::Range;

/// One weight or bias of a stacked tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// The name that it has by itself.
    pub(super) name: String,
    /// Its expert.
    pub(super) expert: usize,
    /// Which of the expert's numbers it is.
    pub(super) take: Take,
}

/// Some of the numbers of an expert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Take {
    /// Rows of a matrix.
    Rows(Range<usize>),
    /// Columns of a matrix, as rows; or numbers of a vector.
    Columns(Columns),
}

/// Every `step`th of `count` columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Columns {
    first: usize,
    step: usize,
    count: usize,
}

impl Columns {
    /// How many they are.
    pub(super) fn len(self) -> usize {
        self.count / self.step
    }

    /// Of a row-major matrix, each column one behind the other.
    pub(super) fn of<T: Copy>(self, matrix: &[T]) -> Vec<T> {
        let columns = (self.first..self.count).step_by(self.step);
        columns.flat_map(|column| matrix.iter().skip(column).step_by(self.count).copied()).collect()
    }
}

/// The weights in a tensor of this name and shape, where it is one of stacked experts; `alternates` where those of the
/// module are gpt-oss'.
pub(super) fn parts(name: &str, shape: &[usize], alternates: bool) -> Option<Vec<Part>> {
    let (stem, part) = match name.strip_suffix("_bias") {
        Some(stem) if alternates => (stem, "bias"),
        _ => (name, "weight"),
    };
    let (module, projections): (&str, &[&str]) = match stem.strip_suffix(".gate_up_proj") {
        Some(module) => (module, &["gate_proj", "up_proj"]),
        None => (stem.strip_suffix(".down_proj")?, &["down_proj"]),
    };
    let (experts, rows, columns) = match *shape {
        [experts, rows, columns] if part == "weight" => (experts, rows, columns),
        [experts, numbers] if part == "bias" => (experts, 1, numbers),
        _ => return None,
    };
    let outputs = if alternates { columns } else { rows };
    // What has no numbers has no parts, however many experts its shape names.
    let is_empty = rows == 0 || columns == 0;
    if is_empty || !module.ends_with(".experts") || !outputs.is_multiple_of(projections.len()) {
        return None;
    }
    let height = outputs / projections.len();
    let take = |index: usize| match alternates {
        true => Take::Columns(Columns { first: index, step: projections.len(), count: columns }),
        false => Take::Rows(index * height..(index + 1) * height),
    };
    let one = |expert: usize, index: usize| Part {
        name: format!("{module}.{expert}.{}.{part}", projections[index]),
        expert,
        take: take(index),
    };
    let of_expert = |expert| (0..projections.len()).map(move |index| one(expert, index));
    Some((0..experts).flat_map(of_expert).collect())
}

/// The tensor whose presence says that experts are stacked as gpt-oss stacks them.
pub(super) fn sign_of_alternation(name: &str) -> Option<String> {
    let (module, _) = name.rsplit_once(".experts.")?;
    Some(format!("{module}.experts.gate_up_proj_bias"))
}

/// The name that Mixtral's tensors have today.
pub fn renamed(name: &str) -> Option<String> {
    const OLD: &str = ".block_sparse_moe.";
    let (before, inside) = name.split_once(OLD)?;
    if inside.starts_with("gate.") {
        return Some(format!("{before}.mlp.{inside}"));
    }
    let (expert, rest) = inside.strip_prefix("experts.")?.split_once('.')?;
    let projections = [("w1.", "gate_proj."), ("w3.", "up_proj."), ("w2.", "down_proj.")];
    projections.into_iter().find_map(|(old, new)| {
        let ending = rest.strip_prefix(old)?;
        Some(format!("{before}.mlp.experts.{expert}.{new}{ending}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacked_experts_are_weights_of_their_own() {
        let found = parts("model.layers.0.mlp.experts.gate_up_proj", &[2, 6, 5], false).unwrap();
        let rows = |part: &Part| match &part.take {
            Take::Rows(rows) => rows.clone(),
            Take::Columns(columns) => panic!("{columns:?}"),
        };
        let names: Vec<_> = found.iter().map(|part| (&*part.name, part.expert, rows(part))).collect();
        assert_eq!(
            names,
            [
                ("model.layers.0.mlp.experts.0.gate_proj.weight", 0, 0..3),
                ("model.layers.0.mlp.experts.0.up_proj.weight", 0, 3..6),
                ("model.layers.0.mlp.experts.1.gate_proj.weight", 1, 0..3),
                ("model.layers.0.mlp.experts.1.up_proj.weight", 1, 3..6),
            ]
        );
        let down = parts("model.layers.0.mlp.experts.down_proj", &[1, 5, 3], false).unwrap();
        assert_eq!((down.len(), rows(&down[0])), (1, 0..5));
        assert_eq!(parts("model.layers.0.mlp.down_proj", &[1, 5, 3], false), None);
        assert_eq!(parts("model.layers.0.mlp.experts.down_proj", &[5, 3], false), None);
        assert_eq!(parts("model.layers.0.mlp.experts.down_proj", &[usize::MAX, 0, 3], false), None);
    }

    #[test]
    fn gate_and_up_in_turns_are_columns() {
        let found = parts("l.experts.gate_up_proj", &[1, 2, 4], true).unwrap();
        let taken = |part: &Part, matrix: &[u8]| match &part.take {
            Take::Columns(columns) => (part.name.clone(), columns.len(), columns.of(matrix)),
            Take::Rows(rows) => panic!("{rows:?}"),
        };
        let matrix = [1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(taken(&found[0], &matrix), ("l.experts.0.gate_proj.weight".into(), 2, vec![1, 5, 3, 7]));
        assert_eq!(taken(&found[1], &matrix), ("l.experts.0.up_proj.weight".into(), 2, vec![2, 6, 4, 8]));
        let bias = parts("l.experts.gate_up_proj_bias", &[1, 4], true).unwrap();
        assert_eq!(taken(&bias[1], &matrix[..4]), ("l.experts.0.up_proj.bias".into(), 2, vec![2, 4]));
    }

    #[test]
    fn old_names_of_mixtral_are_todays() {
        let of = |name: &str| renamed(&format!("model.layers.3.block_sparse_moe.{name}"));
        let is = |name: &str| Some(format!("model.layers.3.mlp.{name}"));
        assert_eq!(of("gate.weight"), is("gate.weight"));
        assert_eq!(of("experts.7.w1.weight"), is("experts.7.gate_proj.weight"));
        assert_eq!(of("experts.7.w2.weight.absmax"), is("experts.7.down_proj.weight.absmax"));
        assert_eq!(of("experts.7.w3.weight"), is("experts.7.up_proj.weight"));
        assert_eq!(of("input_linear.weight"), None);
        assert_eq!(renamed("model.layers.3.mlp.gate.weight"), None);
    }
}
