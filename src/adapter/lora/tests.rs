//! Initialization, layer views and updates of a [`LoraSet`] on the CPU backend.

use burn_flex::Flex;
use burn_tensor::Device;
use tune_kernels::linear::FrozenWeight;

use super::*;
use crate::adapter::projection::{Module, Role};
use crate::adapter::target::scaling;

fn device() -> Device<Flex> {
    Device::<Flex>::default()
}

fn target(layer: usize, role: Role, [out_features, in_features]: [usize; 2], rank: usize) -> Target {
    let name = if role == Role::Query { "q_proj" } else { "v_proj" };
    let path = format!("model.layers.{layer}.self_attn.{name}");
    let module =
        Module { path, layer, role, slot: role as usize, out_features, in_features, alternates: false };
    Target { module, rank, alpha: 8.0, scaling: scaling(8.0, rank, false), use_dora: false }
}

/// Layers 0 and 2 adapted, layer 1 not; handed over out of order.
fn targets() -> Vec<Target> {
    vec![
        target(2, Role::Value, [5, 12], 2),
        target(0, Role::Query, [12, 12], 4),
        target(2, Role::Query, [12, 12], 4),
    ]
}

fn set(seed: u64, dropout: f64) -> LoraSet<Flex> {
    LoraSet::init(targets(), dropout, seed, &device())
}

#[test]
fn parameters_stand_in_one_order() {
    let set = set(1, 0.0);
    let names: Vec<_> = set.parameters().iter().map(|parameter| parameter.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
            "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight",
            "base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight",
            "base_model.model.model.layers.2.self_attn.q_proj.lora_B.weight",
            "base_model.model.model.layers.2.self_attn.v_proj.lora_A.weight",
            "base_model.model.model.layers.2.self_attn.v_proj.lora_B.weight",
        ]
    );
    assert_eq!(set.parameters()[4].shape, [2, 12]);
    assert_eq!(set.parameters()[5].shape, [5, 2]);
    assert_eq!([0, 1, 2, 3].map(|layer| set.layer_parameters(layer)), [0..2, 2..2, 2..6, 6..6]);
    assert_eq!(set.count(), (4 * 24 + 4 * 24 + 2 * 17) as u64);
    assert_eq!(set.bytes(), 4 * set.count());
}

#[test]
fn a_is_uniform_within_its_bound_and_b_is_zero() {
    let wide = target(0, Role::Query, [64, 4096], 16);
    let set: LoraSet<Flex> = LoraSet::init(vec![wide], 0.0, 7, &device());
    let a = set.values(0).unwrap();
    let bound = 1.0 / 64.0;
    assert!(a.iter().all(|value| value.abs() <= bound));
    let mean = a.iter().map(|value| f64::from(*value)).sum::<f64>() / a.len() as f64;
    let variance = a.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / a.len() as f64;
    let expected = f64::from(bound).powi(2) / 3.0;
    assert!(mean.abs() < f64::from(bound) / 100.0, "{mean}");
    assert!((variance / expected - 1.0).abs() < 0.02, "{variance} {expected}");
    assert!(set.values(1).unwrap().iter().all(|value| *value == 0.0));
}

#[test]
fn a_depends_on_seed_and_path_alone() {
    let first = set(1, 0.0);
    let alone: LoraSet<Flex> = LoraSet::init(vec![targets().remove(0)], 0.0, 1, &device());
    assert_eq!(alone.values(0).unwrap(), first.values(4).unwrap());
    assert_eq!(set(1, 0.1).values(2).unwrap(), first.values(2).unwrap());
    assert_ne!(set(2, 0.0).values(2).unwrap(), first.values(2).unwrap());
    assert_ne!(set(1 << 32 | 1, 0.0).values(2).unwrap(), first.values(2).unwrap());
    assert_ne!(first.values(0).unwrap(), first.values(2).unwrap());
}

#[test]
fn the_first_values_stay_what_they_are() {
    // From an independent computation. A change here changes every run that starts from a seed.
    let expected = [-0.129_834_840_7_f64, -0.269_981_270_9, -0.211_176_819_6, -0.030_861_229_37]
        .map(|value| value as f32);
    assert_eq!(set(42, 0.0).values(0).unwrap()[..4], expected);
}

#[test]
fn a_layer_holds_its_adapters_and_no_others() {
    let set = set(1, 0.25);
    let layer = set.layer(2, None);
    let value = layer.get(2).unwrap();
    assert_eq!((value.lora.a.dims(), value.lora.b.dims()), ([2, 12], [5, 2]));
    assert_eq!(value.lora.scaling, 4.0);
    assert!(value.lora.dropout.is_none());
    assert!(layer.get(1).is_none());
    assert!((0..7).all(|slot| set.layer(1, None).get(slot).is_none()));
    assert!((0..7).all(|slot| set.layer(9, None).get(slot).is_none()));
}

#[test]
fn a_layer_names_its_masks() {
    let set = set(1, 0.25);
    let step = DropoutStep { seed: 3, step: 4, micro_batch: 5 };
    let key = DropoutKey { seed: 3, step: 4, micro_batch: 5, layer: 2, projection: 2 };
    let dropout = set.layer(2, Some(step)).get(2).unwrap().lora.dropout;
    assert_eq!(set.until_update().layer(2, Some(step)).get(2).unwrap().lora.dropout, dropout);
    assert_eq!(dropout, Some(Dropout { probability: 0.25, key }));
    let without = LoraSet::<Flex>::init(targets(), 0.0, 1, &device());
    assert!(without.layer(2, Some(step)).get(2).unwrap().lora.dropout.is_none());
}

#[test]
fn an_update_checks_number_and_shapes() {
    let mut set = set(1, 0.0);
    let before = set.clone();
    set.update(|tensors| tensors.into_iter().map(|tensor| tensor * 2.0).collect()).unwrap();
    assert_eq!(
        set.values(0).unwrap(),
        before.values(0).unwrap().iter().map(|value| value * 2.0).collect::<Vec<_>>()
    );
    let mut other = set.clone();
    assert!(matches!(other.update(|_| Vec::new()), Err(Error::WrongCount { expected: 6, found: 0 })));
    let swapped = set.update(|mut tensors| {
        tensors.swap(4, 5);
        tensors
    });
    assert!(matches!(swapped, Err(Error::WrongLength { .. })));
}

#[test]
fn given_values_come_back() {
    let set = set(1, 0.0);
    let values: Vec<_> = (0..6).map(|index| set.values(index).unwrap()).collect();
    let again: LoraSet<Flex> = LoraSet::from_values(targets(), 0.0, values.clone(), &device()).unwrap();
    for (index, values) in values.iter().enumerate() {
        assert_eq!(again.values(index).unwrap(), *values);
    }
    assert!(LoraSet::<Flex>::from_values(targets(), 0.0, values[1..].to_vec(), &device()).is_err());
    let short = values.iter().map(|values| values[1..].to_vec()).collect();
    let error = LoraSet::<Flex>::from_values(targets(), 0.0, short, &device()).unwrap_err();
    assert!(error.to_string().contains("layers.0.self_attn.q_proj.lora_A.weight"), "{error}");
}

#[test]
fn magnitudes_stand_behind_their_pair() {
    let targets = targets().into_iter().map(|target| Target { use_dora: true, ..target }).collect();
    let mut set: LoraSet<Flex> = LoraSet::init(targets, 0.0, 1, &device());
    let names: Vec<_> = set.parameters()[..3].iter().map(|parameter| parameter.name.as_str()).collect();
    let module = "base_model.model.model.layers.0.self_attn.q_proj";
    let expected = [".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"];
    assert_eq!(names, expected.map(|suffix| format!("{module}{suffix}")));
    assert_eq!([0, 1, 2, 3].map(|layer| set.layer_parameters(layer)), [0..3, 3..3, 3..9, 9..9]);
    assert_eq!(set.count(), (4 * 24 + 12 + 4 * 24 + 12 + 2 * 17 + 5) as u64);
    // NaN until they are computed from the weights: training on anything else would be wrong.
    assert!(set.values(2).unwrap().iter().all(|value| value.is_nan()));
    set.set_magnitudes(2, |target, lora| {
        assert_eq!(lora.a.dims(), [target.rank, target.module.in_features]);
        Tensor::ones([1, target.module.out_features], &device()) * target.rank as f32
    });
    assert!(set.values(2).unwrap().iter().all(|value| value.is_nan()), "another layer's");
    assert_eq!(set.values(8).unwrap(), [2.0; 5]);
    let layer = set.layer(2, None);
    let dora = layer.get(2).unwrap().dora.as_ref().unwrap();
    assert_eq!(dora.magnitude.dims(), [1, 5]);
}

#[test]
fn norms_are_computed_once_between_two_updates() {
    let targets = targets().into_iter().map(|target| Target { use_dora: true, ..target }).collect();
    let set: LoraSet<Flex> = LoraSet::init(targets, 0.25, 1, &device());
    let weight = FrozenWeight::Dense(Tensor::ones([5, 12], &device()));
    let step = set.until_update();
    let layer = step.layer(2, None);
    let adapter = layer.get(2).unwrap();
    let squares = || Tensor::ones([1, 5], &device());
    adapter.dora.as_ref().unwrap().scale(&weight, squares, &adapter.lora);
    // Another micro-batch has other masks, and the same norms.
    let dropout = DropoutStep { seed: 3, step: 4, micro_batch: 5 };
    let layer = step.layer(2, Some(dropout));
    let adapter = layer.get(2).unwrap();
    assert!(adapter.lora.dropout.is_some());
    adapter.dora.as_ref().unwrap().scale(&weight, || panic!("computed again"), &adapter.lora);
}
