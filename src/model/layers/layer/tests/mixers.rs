//! Layers with a gated delta net or a short convolution against their formulas in f64, adapters included, and their
//! backward passes against slopes of those formulas: differences in f64 hold to nine digits where those of the forward
//! pass itself, in f32, hold to two.

use super::*;
use crate::model::parts::{DeltaNetSpec, ShortConvSpec};
use tune_kernels::rms_norm::NormWeight;

const HIDDEN: usize = 24;
const RANK: usize = 4;
const SCALING: f32 = 0.5;

/// A layer, and A and B of each projection by slot.
struct Formula<'a> {
    layer: &'a Layer<Flex>,
    adapters: Vec<[Vec<f64>; 2]>,
}

/// x · wᵀ for rows of `width` numbers.
fn times(x: &[f64], w: &[f64], width: usize) -> Vec<f64> {
    let dot = |row: &[f64], w: &[f64]| row.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
    x.chunks(width).flat_map(|row| w.chunks(width).map(move |w| dot(row, w))).collect()
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

fn product(x: &[f64], y: &[f64]) -> Vec<f64> {
    x.iter().zip(y).map(|(x, y)| x * y).collect()
}

impl Formula<'_> {
    fn project(&self, x: &[f64], spec: &ProjectionSpec) -> Vec<f64> {
        let FrozenWeight::Dense(weight) = &self.layer.projection(spec.slot).weight else { panic!("dense") };
        let [a, b] = &self.adapters[spec.slot];
        let up = times(&times(x, a, spec.shape[1]), b, RANK);
        let frozen = times(x, &host(weight), spec.shape[1]);
        frozen.iter().zip(up).map(|(frozen, up)| frozen + f64::from(SCALING) * up).collect()
    }

    fn norm(&self, x: &[f64], spec: &NormSpec) -> Vec<f64> {
        let weight = host(&self.layer.norms[spec.place].weight);
        let one = match spec.kind {
            crate::model::parts::NormKind::Rms(norm) if norm.weight == NormWeight::OnePlus => 1.0,
            _ => 0.0,
        };
        let row = |row: &[f64]| {
            let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
            let factor = 1.0 / (mean + spec.kind.epsilon()).sqrt();
            row.iter().zip(&weight).map(|(x, w)| x * factor * (one + w)).collect::<Vec<_>>()
        };
        x.chunks(spec.width).flat_map(row).collect()
    }

    fn convolved(&self, x: &[f64], spec: &ConstantSpec) -> Vec<f64> {
        let [channels, size] = spec.matrix();
        let weight = host(&self.layer.constants[spec.place]);
        let mut y = vec![0.0; x.len()];
        for ends in ENDS.windows(2).map(|ends| [ends[0] as usize, ends[1] as usize]) {
            for (token, channel) in (ends[0]..ends[1]).flat_map(|t| (0..channels).map(move |c| (t, c))) {
                let reach = (0..size).filter(|back| token >= ends[0] + back);
                let terms = reach.map(|back| {
                    weight[channel * size + size - 1 - back] * x[(token - back) * channels + channel]
                });
                y[token * channels + channel] = terms.sum();
            }
        }
        y
    }

    fn delta_net(&self, x: &[f64], spec: &DeltaNetSpec) -> Vec<f64> {
        let heads = spec.heads;
        let [raw, gate, write, decay] = spec.inner().map(|projection| self.project(x, projection));
        let mixed: Vec<f64> = self.convolved(&raw, &spec.conv).into_iter().map(silu).collect();
        let width: usize = heads.widths().iter().sum();
        let [log_rate, bias] = [&spec.log_rate, &spec.bias].map(|one| host(&self.layer.constants[one.place]));
        let unit = |x: &[f64]| -> Vec<f64> {
            let r = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() + 1e-6).sqrt();
            x.iter().map(|x| x * r).collect()
        };
        let mut read = vec![0.0; TOKENS * heads.values * heads.value_dim];
        for head in 0..heads.values {
            let own = head / (heads.values / heads.keys) * heads.key_dim;
            let (keys, values) = (heads.keys * heads.key_dim, head * heads.value_dim);
            for ends in ENDS.windows(2) {
                let mut state = vec![vec![0.0; heads.value_dim]; heads.key_dim];
                for token in ends[0] as usize..ends[1] as usize {
                    let row = &mixed[token * width..][..width];
                    let query = unit(&row[own..][..heads.key_dim]);
                    let key = unit(&row[keys + own..][..heads.key_dim]);
                    let value = &row[2 * keys + values..][..heads.value_dim];
                    let step = (decay[token * heads.values + head] + bias[head]).exp().ln_1p();
                    let kept = (-log_rate[head].exp() * step).exp();
                    let beta = 1.0 / (1.0 + (-write[token * heads.values + head]).exp());
                    state.iter_mut().flatten().for_each(|s| *s *= kept);
                    let known = |state: &[Vec<f64>], x: &[f64], j: usize| -> f64 {
                        state.iter().zip(x).map(|(row, x)| row[j] * x).sum()
                    };
                    let delta: Vec<f64> =
                        (0..heads.value_dim).map(|j| beta * (value[j] - known(&state, &key, j))).collect();
                    for (row, k) in state.iter_mut().zip(&key) {
                        row.iter_mut().zip(&delta).for_each(|(s, delta)| *s += k * delta);
                    }
                    let out = &mut read[(token * heads.values + head) * heads.value_dim..];
                    for (j, out) in out.iter_mut().take(heads.value_dim).enumerate() {
                        *out = known(&state, &query, j) / (heads.key_dim as f64).sqrt();
                    }
                }
            }
        }
        let gate: Vec<f64> = gate.into_iter().map(silu).collect();
        self.project(&product(&self.norm(&read, &spec.norm), &gate), &spec.output)
    }

    fn short_conv(&self, x: &[f64], spec: &ShortConvSpec) -> Vec<f64> {
        let thirds = self.project(x, &spec.input);
        let channels = spec.channels();
        let third = |at: usize| -> Vec<f64> {
            thirds.chunks(3 * channels).flat_map(|row| row[at * channels..][..channels].to_vec()).collect()
        };
        let convolved = self.convolved(&product(&third(0), &third(2)), &spec.conv);
        self.project(&product(&third(1), &convolved), &spec.output)
    }

    fn gated(&self, x: &[f64], spec: &GatedSpec) -> Vec<f64> {
        let GatedInner::Separate { gate, up } = &spec.inner else { panic!("one each") };
        let gate: Vec<f64> = self.project(x, gate).into_iter().map(silu).collect();
        self.project(&product(&gate, &self.project(x, up)), &spec.down)
    }

    fn forward(&self, mut x: Vec<f64>) -> Vec<f64> {
        for branch in self.layer.spec.blocks().iter().flat_map(|block| &block.branches) {
            let normed = self.norm(&x, branch.pre.as_ref().unwrap());
            let y = match &branch.body {
                BodySpec::DeltaNet(spec) => self.delta_net(&normed, spec),
                BodySpec::ShortConv(spec) => self.short_conv(&normed, spec),
                BodySpec::Gated(spec) => self.gated(&normed, spec),
                _ => unreachable!("no layer here has one"),
            };
            x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
        }
        x
    }
}

fn check(model: serde_json::Value) {
    let mut config = json!({"vocab_size": 40, "hidden_size": HIDDEN, "intermediate_size": 36,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1});
    config.as_object_mut().unwrap().extend(model.as_object().unwrap().clone());
    let decoder = decoder(&decoder_spec(&config).unwrap());
    let (_, layer) = decoder.layers().up().next().unwrap().unwrap();
    let matrices: Vec<[Tensor<Flex, 2>; 2]> = layer
        .spec
        .projections()
        .map(|projection| {
            let ([out, input], seed) = (projection.shape, 10 * projection.slot as u32 + 10);
            [random_values(RANK, input, seed) * 0.2, random_values(out, RANK, seed + 1) * 0.2]
        })
        .collect();
    let mut adapters = LayerAdapters::none();
    for (slot, [a, b]) in matrices.iter().enumerate() {
        let lora = Lora { a: a.clone(), b: b.clone(), scaling: SCALING, dropout: None };
        adapters.set(slot, lora.into());
    }
    let (x, dy) = (random_values(TOKENS, HIDDEN, 2), random_values(TOKENS, HIDDEN, 3));
    let inputs = inputs(&decoder);
    let (y, tape) = layer.forward_with_tape(x.clone(), &adapters, &inputs);
    let mut gradients = LayerGradients::default();
    let dx = layer.backward(tape, &adapters, &inputs, dy.clone(), true, &mut gradients).unwrap();

    let adapters = matrices.iter().map(|pair| pair.each_ref().map(host)).collect();
    let mut formula = Formula { layer: &layer, adapters };
    let (x, dy) = (host(&x), host(&dy));
    let expected = formula.forward(x.clone());
    let worst = host(&y).iter().zip(&expected).map(|(y, expected)| (y - expected).abs()).fold(0.0, f64::max);
    assert!(worst < 1e-5, "the forward pass is off by {worst:e}");

    const STEP: f64 = 1e-5;
    let objective = |y: Vec<f64>| product(&y, &dy).iter().sum::<f64>();
    let mut largest = 0.0_f64;
    let mut compare = |what: &str, found: &[f64], direction: &[f64], slope: f64| {
        let (found, size) = (
            product(found, direction).iter().sum::<f64>(),
            product(found, direction).iter().map(|term| term.abs()).sum::<f64>(),
        );
        let error = (found - slope).abs() / size;
        largest = largest.max(error);
        assert!(error <= 2e-6, "{what}: {found} instead of {slope}, of terms that sum to {size}");
    };
    let direction = host(&random_values(TOKENS, HIDDEN, 4));
    let moved =
        |step: f64| objective(formula.forward(x.iter().zip(&direction).map(|(x, d)| x + step * d).collect()));
    compare("x", &host(&dx), &direction, (moved(STEP) - moved(-STEP)) / (2.0 * STEP));
    for projection in layer.spec.projections() {
        let found = gradients.get(projection.slot).unwrap();
        for (side, gradient) in [&found.a, &found.b].into_iter().enumerate() {
            let [rows, columns] = gradient.dims();
            let direction = host(&random_values(rows, columns, 5 + side as u32));
            let still = formula.adapters[projection.slot][side].clone();
            let mut moved = |step: f64| {
                let moved = still.iter().zip(&direction).map(|(one, d)| one + step * d);
                formula.adapters[projection.slot][side] = moved.collect();
                objective(formula.forward(x.clone()))
            };
            let slope = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
            formula.adapters[projection.slot][side] = still;
            compare(&format!("{}, {side}", projection.path), &host(gradient), &direction, slope);
        }
    }
    println!("forward within {worst:.1e}, gradients within {largest:.1e} of their terms");
}

#[test]
fn a_delta_net_and_its_gradients_are_those_of_the_formula() {
    check(json!({"model_type": "qwen3_5_text", "layer_types": ["linear_attention"], "head_dim": 8,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6,
        "linear_value_head_dim": 10}));
}

#[test]
fn a_short_convolution_and_its_gradients_are_those_of_the_formula() {
    check(json!({"model_type": "lfm2", "layer_types": ["conv"], "block_auto_adjust_ff_dim": false}));
}
