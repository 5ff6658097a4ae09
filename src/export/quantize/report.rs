//! How far a base in 4 bits is from the dense one: the error of each weight, and the losses of both over the same rows.

use serde::{Deserialize, Serialize};
use tune_kernels::nf4::Quantized;

use crate::export::delta::{square_of, square_of_difference};

/// Name of the file with a [`Report`] in a run folder.
pub const FILE: &str = "quantization.json";

/// The distance of a base in 4 bits from the dense one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The quantization, as the metadata of files have it.
    pub quantization: String,
    /// Relative error over all quantized weights: norm of the error over the norm of the weights.
    pub error: f64,
    /// Each quantized weight, in the order of the model.
    pub tensors: Vec<TensorError>,
    /// The losses over rows, where there are any.
    pub held_out: Option<HeldOut>,
}

/// The error of one weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorError {
    /// Its name.
    pub tensor: String,
    /// Its numbers.
    pub parameters: u64,
    /// Relative error: root mean square of the error over that of the weight.
    pub error: f64,
}

/// Losses of the dense base and of that in 4 bits, over the supervised tokens of the same rows, in f32.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldOut {
    /// Where the rows come from.
    pub origin: String,
    /// Rows.
    pub rows: u64,
    /// Their supervised tokens.
    pub supervised_tokens: u64,
    /// Loss of the dense base.
    pub dense_loss: f64,
    /// Loss of the base in 4 bits.
    pub quantized_loss: f64,
    /// The second less the first.
    pub difference: f64,
    /// Half the width of its 95 % confidence interval over rows like these; `None` for a single row.
    pub margin: Option<f64>,
}

/// The weights of one kind: the same module of every layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Kind<'a> {
    /// Module path behind the layer's number, other numbers as stars.
    pub name: String,
    /// Weights of the kind.
    pub tensors: u64,
    /// Root mean square of their errors.
    pub error: f64,
    /// The one with the largest error.
    pub worst: &'a TensorError,
}

impl TensorError {
    /// The layer, as the name has it.
    pub fn layer(&self) -> Option<&str> {
        self.tensor.split('.').find(|part| is_number(part))
    }

    /// [`Kind::name`].
    fn kind(&self) -> String {
        let module = self.tensor.strip_suffix(".weight").unwrap_or(&self.tensor);
        let mut parts = module.split('.');
        if self.layer().is_some() {
            parts.find(|part| is_number(part));
        }
        parts.map(|part| if is_number(part) { "*" } else { part }).collect::<Vec<_>>().join(".")
    }
}

fn is_number(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit())
}

/// Weights by kind, in the order in which kinds first appear.
pub fn kinds(tensors: &[TensorError]) -> Vec<Kind<'_>> {
    let mut kinds: Vec<Kind<'_>> = Vec::new();
    for tensor in tensors {
        let (name, square) = (tensor.kind(), tensor.error.powi(2));
        match kinds.iter_mut().find(|kind| kind.name == name) {
            Some(kind) => {
                kind.tensors += 1;
                kind.error += square;
                if tensor.error > kind.worst.error {
                    kind.worst = tensor;
                }
            }
            None => kinds.push(Kind { name, tensors: 1, error: square, worst: tensor }),
        }
    }
    for kind in &mut kinds {
        kind.error = (kind.error / kind.tensors as f64).sqrt();
    }
    kinds
}

/// Errors as they are measured.
#[derive(Clone, Debug, Default)]
pub struct Errors {
    /// Each weight.
    pub tensors: Vec<TensorError>,
    weights: f64,
    changed: f64,
}

impl Errors {
    pub(super) fn add(&mut self, name: &str, values: &[f32], quantized: &Quantized) {
        let (weights, changed) = (square_of(values), square_of_difference(values, &quantized.dequantize()));
        self.weights += weights;
        self.changed += changed;
        self.tensors.push(TensorError {
            tensor: name.to_owned(),
            parameters: values.len() as u64,
            error: (changed / weights.max(f64::MIN_POSITIVE)).sqrt(),
        });
    }

    /// [`Report::error`].
    pub fn together(&self) -> f64 {
        (self.changed / self.weights.max(f64::MIN_POSITIVE)).sqrt()
    }

    /// The weight with the largest error, and that error.
    pub fn worst(&self) -> Option<(String, f64)> {
        let worst = self.tensors.iter().max_by(|one, other| one.error.total_cmp(&other.error))?;
        Some((worst.tensor.clone(), worst.error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_grouped_by_module_whatever_their_layer_and_expert() {
        let tensor = |tensor: &str, error| TensorError { tensor: tensor.to_owned(), parameters: 4, error };
        let tensors = [
            tensor("model.layers.0.self_attn.q_proj.weight", 0.03),
            tensor("model.layers.0.mlp.experts.7.up_proj.weight", 0.1),
            tensor("model.layers.11.self_attn.q_proj.weight", 0.04),
            tensor("model.layers.11.mlp.experts.2.up_proj.weight", 0.1),
        ];
        let kinds = kinds(&tensors);
        let names: Vec<_> = kinds.iter().map(|kind| (kind.name.as_str(), kind.tensors)).collect();
        assert_eq!(names, [("self_attn.q_proj", 2), ("mlp.experts.*.up_proj", 2)]);
        assert_eq!(kinds[0].worst.layer(), Some("11"));
        assert!((kinds[0].error - (0.0025_f64 / 2.0).sqrt()).abs() < 1e-12);
    }
}
