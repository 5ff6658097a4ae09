//! The layers of the toy family against the formula written out in f64, and backward passes against differences of forward
//! passes.

use burn_flex::Flex;
use burn_tensor::{Device, TensorData};
use serde_json::json;
use tune_kernels::linear::{FrozenWeight, Lora};

use super::*;
use crate::model::family::decoder_spec;
use crate::model::parts::{AttentionSpec, GatedInner, GatedSpec, Inner};
use crate::model::{Decoder, DecoderSpec, FloatDtype, random};

mod mixers;

/// Documents of 5 and 9 tokens.
const ENDS: [u32; 3] = [0, 5, 14];
const TOKENS: usize = 14;

fn spec() -> DecoderSpec {
    let config = json!({"model_type": "toy", "vocab_size": 40, "hidden_size": 24, "intermediate_size": 36,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6});
    decoder_spec(&config).unwrap()
}

fn decoder(spec: &DecoderSpec) -> Decoder<Flex> {
    random::decoder(spec, None, FloatDtype::F32, &Device::<Flex>::default(), false)
}

fn inputs(decoder: &Decoder<Flex>) -> LayerInputs<Flex> {
    let positions: Vec<u32> = ENDS.windows(2).flat_map(|ends| 0..ends[1] - ends[0]).collect();
    decoder.inputs(&positions, DocumentOffsets::packed(&ENDS)).unwrap()
}

fn host<const D: usize>(tensor: &Tensor<Flex, D>) -> Vec<f64> {
    tensor.clone().into_data().convert::<f64>().into_vec().unwrap()
}

/// Numbers in [−1, 1), another set for each seed.
fn random_values(rows: usize, columns: usize, seed: u32) -> Tensor<Flex, 2> {
    let value = |i: u32| {
        let hash = (i ^ seed.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b).rotate_left(13);
        (hash.wrapping_mul(0xc2b2_ae35) >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..(rows * columns) as u32).map(value).collect();
    Tensor::from_data(TensorData::new(values, [rows, columns]), &Default::default())
}

/// The layer's formula, row by row and in f64.
struct Oracle<'a> {
    layer: &'a Layer<Flex>,
    theta: f64,
}

impl Oracle<'_> {
    fn product(&self, x: &[f64], spec: &ProjectionSpec) -> Vec<f64> {
        let FrozenWeight::Dense(weight) = &self.layer.projection(spec.slot).weight else { panic!("dense") };
        let weight = host(weight);
        let [out, width] = spec.shape;
        let dot = |row: &[f64], at: usize| -> f64 {
            row.iter().zip(&weight[at * width..][..width]).map(|(x, w)| x * w).sum()
        };
        x.chunks(width)
            .flat_map(|row| (0..out).map(move |at| (row, at)))
            .map(|(row, at)| dot(row, at))
            .collect()
    }

    fn norm(&self, x: &[f64], spec: &NormSpec) -> Vec<f64> {
        let weight = host(&self.layer.norms[spec.place].weight);
        let row = |row: &[f64]| {
            let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
            let factor = 1.0 / (mean + spec.kind.epsilon()).sqrt();
            row.iter().zip(&weight).map(|(x, w)| x * factor * (1.0 + w)).collect::<Vec<_>>()
        };
        x.chunks(spec.width).flat_map(row).collect()
    }

    fn rotate(&self, head: &mut [f64], position: usize) {
        let half = head.len() / 2;
        for i in 0..half {
            let angle = position as f64 * self.theta.powf(-(2.0 * i as f64) / head.len() as f64);
            let (first, second) = (head[i], head[i + half]);
            head[i] = first * angle.cos() - second * angle.sin();
            head[i + half] = second * angle.cos() + first * angle.sin();
        }
    }

    fn attention(&self, x: &[f64], spec: &AttentionSpec) -> Vec<f64> {
        let (heads, dim) = (spec.heads, spec.heads.dim);
        let [queries, keys, _] = heads.widths();
        let rows: Vec<Vec<f64>> = match &spec.inner {
            Inner::Fused(all) => {
                self.product(x, all).chunks(queries + 2 * keys).map(<[f64]>::to_vec).collect()
            }
            Inner::ByHead(_) | Inner::SharedKey { .. } => unreachable!("no layer here has one"),
            Inner::Separate { query, key, value } => {
                let parts = [query, key, value].map(|part| (self.product(x, part), part.shape[0]));
                let row =
                    |at: usize| parts.iter().flat_map(|(y, out)| y[at * out..][..*out].to_vec()).collect();
                (0..TOKENS).map(row).collect()
            }
        };
        let mut mixed = Vec::new();
        for ends in ENDS.windows(2) {
            let mut rows = rows[ends[0] as usize..ends[1] as usize].to_vec();
            for (position, row) in rows.iter_mut().enumerate() {
                row[..queries + keys].chunks_mut(dim).for_each(|head| self.rotate(head, position));
            }
            for (position, row) in rows.iter().enumerate() {
                for head in 0..heads.queries {
                    let (query, group) = (&row[head * dim..][..dim], head / (heads.queries / heads.keys));
                    let key = |at: usize| &rows[at][queries + group * dim..][..dim];
                    let value = |at: usize| &rows[at][queries + keys + group * dim..][..dim];
                    let score = |at: usize| -> f64 {
                        let dot: f64 = query.iter().zip(key(at)).map(|(q, k)| q * k).sum();
                        (dot / (dim as f64).sqrt()).exp()
                    };
                    let scores: Vec<f64> = (0..=position).map(score).collect();
                    let sum: f64 = scores.iter().sum();
                    mixed.extend((0..dim).map(|i| {
                        scores.iter().enumerate().map(|(at, score)| score / sum * value(at)[i]).sum::<f64>()
                    }));
                }
            }
        }
        self.product(&mixed, &spec.output)
    }

    fn gated(&self, x: &[f64], spec: &GatedSpec) -> Vec<f64> {
        let width = spec.intermediate();
        let (gate, up) = match &spec.inner {
            GatedInner::Separate { gate, up } => (self.product(x, gate), self.product(x, up)),
            GatedInner::Fused(both) => {
                let both = self.product(x, both);
                let part = |start: usize| {
                    both.chunks(2 * width).flat_map(|row| row[start..][..width].to_vec()).collect()
                };
                (part(0), part(width))
            }
        };
        let gelu = |x: f64| {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        };
        let activated: Vec<f64> = gate.iter().zip(&up).map(|(gate, up)| gelu(*gate) * up).collect();
        self.product(&activated, &spec.down)
    }

    fn forward(&self, x: Vec<f64>) -> Vec<f64> {
        self.layer.spec.blocks().iter().fold(x, |x, block| {
            let mut sum = vec![0.0; x.len()];
            for branch in &block.branches {
                let normed = branch.pre.as_ref().map_or_else(|| x.clone(), |norm| self.norm(&x, norm));
                let y = match &branch.body {
                    BodySpec::Attention(spec) => self.attention(&normed, spec),
                    BodySpec::Gated(spec) => self.gated(&normed, spec),
                    BodySpec::Reading(_) | BodySpec::DeltaNet(_) | BodySpec::ShortConv(_) => {
                        unreachable!("mixers have oracles of their own")
                    }
                    BodySpec::Mixture(_) | BodySpec::Plain(_) | BodySpec::PerLayerInput(_) => {
                        unreachable!("no layer here has one")
                    }
                };
                let y = branch.post.as_ref().map_or_else(|| y.clone(), |norm| self.norm(&y, norm));
                sum.iter_mut().zip(y).for_each(|(sum, y)| *sum += y);
            }
            x.iter().zip(sum).map(|(x, y)| x + f64::from(block.scale) * y).collect()
        })
    }
}

/// The toy's two kinds of layers; one whose attention and feed-forward block see the same input, of which one has no norm
/// before it and the other none behind it; and one of Llama's order over stacked projections.
fn specs() -> Vec<LayerSpec> {
    let layers = spec().layers;
    let branches = |layer: &LayerSpec| -> Vec<BranchSpec> {
        layer.blocks().iter().flat_map(|block| block.branches.clone()).collect()
    };
    let [mut attention, mut gated] = <[BranchSpec; 2]>::try_from(branches(&layers[0])).unwrap();
    (attention.post, gated.pre) = (None, None);
    let parallel = BlockSpec { branches: vec![attention.clone(), gated], scale: 1.0, post: None };
    let [_, mut gated] = <[BranchSpec; 2]>::try_from(branches(&layers[1])).unwrap();
    gated.post = None;
    let plain = [attention, gated].map(|branch| BlockSpec { branches: vec![branch], scale: 1.0, post: None });
    let width = layers[0].width();
    let own = layers.iter().map(|layer| (**layer).clone());
    own.chain([LayerSpec::of(width, [parallel]), LayerSpec::of(width, plain)]).collect()
}

fn each(check: impl Fn(&Decoder<Flex>, &Layer<Flex>)) {
    let layers = specs().into_iter().map(Arc::new).collect();
    let decoder = decoder(&DecoderSpec { layers, ..spec() });
    for step in decoder.layers().up() {
        check(&decoder, &step.unwrap().1);
    }
}

#[test]
fn a_layer_is_its_formula() {
    each(|decoder, layer| {
        let x = random_values(TOKENS, 24, 1);
        let expected = Oracle { layer, theta: decoder.spec().rotaries[0].theta }.forward(host(&x));
        let found = host(&layer.forward(x, &LayerAdapters::none(), &inputs(decoder), None));
        let worst = found.iter().zip(&expected).map(|(found, expected)| (found - expected).abs());
        let worst = worst.fold(0.0, f64::max);
        assert!(worst < 2e-5, "{:?}: off by {worst:e}", layer.spec);
    });
}

/// Along random directions of the input and of every adapter matrix.
#[test]
fn a_backward_pass_is_the_slope_of_the_forward_pass() {
    each(|decoder, layer| {
        let inputs = inputs(decoder);
        let adapters = |moved: Option<(Slot, bool, f32)>| {
            let mut adapters = LayerAdapters::none();
            for projection in layer.spec.projections() {
                let ([out, input], slot) = (projection.shape, projection.slot);
                let step = |is_a| match moved {
                    Some((at, a, step)) if at == slot && a == is_a => step,
                    _ => 0.0,
                };
                let seed = 10 * slot as u32 + 10;
                let a = random_values(4, input, seed) * 0.2 + random_values(4, input, seed + 1) * step(true);
                let b = random_values(out, 4, seed + 2) * 0.2 + random_values(out, 4, seed + 3) * step(false);
                adapters.set(slot, Lora { a, b, scaling: 0.5, dropout: None }.into());
            }
            adapters
        };
        let (x, dy) = (random_values(TOKENS, 24, 2), random_values(TOKENS, 24, 3));
        let objective = |x: Tensor<Flex, 2>, adapters: &LayerAdapters<Flex>| -> f64 {
            let y = host(&layer.forward(x, adapters, &inputs, None));
            y.iter().zip(host(&dy)).map(|(y, dy)| y * dy).sum()
        };
        let along = |gradient: &Tensor<Flex, 2>, direction: Tensor<Flex, 2>| -> f64 {
            host(gradient)
                .iter()
                .zip(host(&direction))
                .map(|(gradient, direction)| gradient * direction)
                .sum()
        };
        let check = |what: &str, found: f64, objective: &dyn Fn(f32) -> f64| {
            const STEP: f32 = 1.0 / 512.0;
            let slope = (objective(STEP) - objective(-STEP)) / f64::from(2.0 * STEP);
            let error = (found - slope).abs();
            assert!(error <= 5e-3 * (1.0 + slope.abs()), "{what}: {found} instead of {slope}");
        };
        let still = adapters(None);
        let (y, tape) = layer.forward_with_tape(x.clone(), &still, &inputs);
        let (again, choices) = layer.forward_with_choices(x.clone(), &still, &inputs);
        assert_eq!(host(&y), host(&again));
        assert_eq!(host(&y), host(&layer.forward(x.clone(), &still, &inputs, None)));
        let mut gradients = LayerGradients::default();
        let dx = layer.backward(tape, &still, &inputs, dy.clone(), true, &mut gradients).unwrap();
        let direction = random_values(TOKENS, 24, 4) * 0.1;
        let moved = |step: f32| objective(x.clone() + direction.clone() * step, &still);
        check("x", along(&dx, direction.clone()), &moved);
        for projection in layer.spec.projections() {
            let slot = projection.slot;
            let found = gradients.get(slot).unwrap();
            for (is_a, gradient) in [(true, &found.a), (false, &found.b)] {
                let [rows, columns] = gradient.dims();
                let seed = 10 * slot as u32 + 10 + if is_a { 1 } else { 3 };
                let found = along(gradient, random_values(rows, columns, seed));
                let moved = |step: f32| objective(x.clone(), &adapters(Some((slot, is_a, step))));
                check(&format!("{}, A {is_a}", projection.path), found, &moved);
            }
        }
        // A tape without the last product serves the backward pass in the same bits, and so does one for no dx.
        let tape = layer.tape(x.clone(), &still, &inputs, choices);
        let mut again = LayerGradients::default();
        assert!(layer.backward(tape, &still, &inputs, dy.clone(), false, &mut again).is_none());
        for projection in layer.spec.projections() {
            let [one, other] = [&gradients, &again].map(|sums| sums.get(projection.slot).unwrap());
            assert_eq!((host(&one.a), host(&one.b)), (host(&other.a), host(&other.b)), "{}", projection.path);
        }
    });
}
