//! What every golden model is held to: logits, decoding with a cache, documents that share a batch, the slopes of layers.

#![expect(clippy::print_stdout, reason = "differences are shown")]

use std::ops::Range;
use std::path::Path;

use burn_flex::Flex;
use burn_tensor::{Tensor, TensorData};
use tune::adapter::projection::{LayerAdapters, LayerGradients};
use tune::assets::{ModelDir, SafetensorsFile};
use tune::model::layers::{LayerInputs, Order};
use tune::model::{Decoder, FloatDtype, family, load, tensors};
use tune::quant::spec::Spec;
use tune_kernels::attention::DocumentOffsets;
use tune_kernels::linear::Lora;

/// The decoder of a folder; loading tells of every tensor.
pub(crate) fn decoder(folder: &Path, quantization: Option<Spec>, dtype: FloatDtype) -> Decoder<Flex> {
    let model = ModelDir::open(folder).unwrap();
    let spec = family::decoder_spec(model.config()).unwrap();
    let (mut seen, total) = (Vec::new(), tensors::expected(&spec).len());
    let decoder =
        load::load(model.weights(), &spec, quantization, dtype, &Default::default(), &mut |progress| {
            seen.push(progress.done);
        })
        .unwrap();
    assert_eq!(seen, (1..=total).collect::<Vec<_>>());
    decoder
}

/// Token ids, and the values of a tensor beside them (`logits`: those of transformers).
pub(crate) fn golden(folder: &Path, tensor: &str) -> (Vec<u32>, Vec<f32>) {
    let file = SafetensorsFile::open(&folder.join("golden.safetensors")).unwrap();
    let bytes = file.read("input_ids").unwrap();
    let id = |id: &[u8; 8]| u32::try_from(i64::from_le_bytes(*id)).unwrap();
    (bytes.as_chunks().0.iter().map(id).collect(), file.read_floats(tensor).unwrap())
}

pub(crate) fn values<const D: usize>(tensor: Tensor<Flex, D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().into_vec().unwrap()
}

pub(crate) fn logits(decoder: &Decoder<Flex>, ids: &[u32]) -> Vec<f32> {
    values(decoder.logits(ids, None).unwrap())
}

pub(crate) fn largest_difference(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    left.iter().zip(right).map(|(left, right)| (left - right).abs()).fold(0.0, f32::max)
}

pub(crate) fn assert_logits(name: &str, folder: &Path) {
    let (ids, expected) = golden(folder, "logits");
    let found = logits(&decoder(folder, None, FloatDtype::F32), &ids);
    let difference = largest_difference(&found, &expected);
    println!("{name}: logits within {difference:.1e}");
    assert!(difference <= 1e-4, "{name}: logits differ by {difference}");
}

/// A prompt, a second prompt that continues it, then token by token: the logits of the whole sequence.
pub(crate) fn assert_decoding(name: &str, folder: &Path, tokens: Option<usize>, most: f32) {
    let (ids, _) = golden(folder, "logits");
    let ids = &ids[..tokens.unwrap_or(ids.len())];
    let decoder = decoder(folder, None, FloatDtype::F32);
    let whole = logits(&decoder, ids);
    let mut cache = decoder.new_cache();
    let mut pieces = Vec::new();
    for piece in [&ids[..17], &ids[17..20]].into_iter().chain(ids[20..].chunks(1)) {
        let hidden = decoder.hidden(piece, None, Some(&mut cache)).unwrap();
        pieces.extend(values(decoder.logits_of(hidden)));
    }
    assert_eq!(cache.tokens(), ids.len());
    let difference = largest_difference(&whole, &pieces);
    assert!(difference <= most, "{name}: {difference}");
}

/// What layers are given for the documents of `ids` that end at `ends`.
fn inputs(decoder: &Decoder<Flex>, ids: &[u32], ends: &[u32]) -> LayerInputs<Flex> {
    let positions: Vec<u32> = ends.windows(2).flat_map(|ends| 0..ends[1] - ends[0]).collect();
    let x = decoder.embed(ids).unwrap();
    decoder.inputs_of(ids, &x, &positions, DocumentOffsets::packed(ends)).unwrap()
}

/// A short document before a long one, whose rotary frequencies may differ: each as if it were alone.
pub(crate) fn assert_packed(name: &str, folder: &Path) {
    const CUT: usize = 11;
    let (ids, _) = golden(folder, "logits");
    let decoder = decoder(folder, None, FloatDtype::F32);
    let (first, second) = ids.split_at(CUT);
    let inputs = inputs(&decoder, &ids, &[0, CUT as u32, ids.len() as u32]);
    let none = LayerAdapters::none();
    let x = decoder.embed(&ids).unwrap();
    let x = decoder.layers().up().fold(x, |x, step| step.unwrap().1.forward(x, &none, &inputs, None));
    let packed = values(decoder.logits_of(decoder.final_norm(&x)));
    let apart = [logits(&decoder, first), logits(&decoder, second)].concat();
    let difference = largest_difference(&packed, &apart);
    assert!(difference <= 3e-5, "{name}: {difference}");
}

fn random(rows: usize, columns: usize, seed: u32) -> Tensor<Flex, 2> {
    let value = |i: u32| {
        let hash = (i ^ seed.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b).rotate_left(13);
        (hash.wrapping_mul(0xc2b2_ae35) >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..(rows * columns) as u32).map(value).collect();
    Tensor::from_data(TensorData::new(values, [rows, columns]), &Default::default())
}

/// The backward pass of layers against differences of their forward pass, along random directions of the input and of every
/// adapter matrix, to the share `most`.
pub(crate) fn assert_slopes(name: &str, folder: &Path, layers: Option<Range<usize>>, most: f64) {
    const STEP: f32 = 1.0 / 512.0;
    let (ids, _) = golden(folder, "logits");
    let decoder = decoder(folder, None, FloatDtype::F32);
    let inputs = inputs(&decoder, &ids, &[0, 3, ids.len() as u32]);
    let x = decoder.embed(&ids).unwrap() * (1.0 / decoder.spec().embedding_scale);
    let hidden = decoder.spec().hidden_size;
    let layers = layers.unwrap_or(0..decoder.spec().layers.len());
    for step in decoder.layers().walk(Order::Up(layers)) {
        let (index, layer) = step.unwrap();
        // Every projection has an adapter; the one in `moved` is moved along its own direction.
        let adapters = |moved: Option<(usize, bool, f32)>| {
            let mut adapters = LayerAdapters::none();
            for projection in layer.spec().projections() {
                let [out, input] = projection.shape;
                let seed = 10 * projection.slot as u32;
                let step = |is_a| match moved {
                    Some((at, a, step)) if at == projection.slot && a == is_a => step,
                    _ => 0.0,
                };
                let a = random(4, input, seed) * 0.2 + random(4, input, seed + 1) * step(true);
                let b = random(out, 4, seed + 2) * 0.2 + random(out, 4, seed + 3) * step(false);
                adapters.set(projection.slot, Lora { a, b, scaling: 0.5, dropout: None }.into());
            }
            adapters
        };
        let dy = random(ids.len(), hidden, 100);
        let objective = |x: Tensor<Flex, 2>, adapters: &LayerAdapters<Flex>| -> f64 {
            let y = values(layer.forward(x, adapters, &inputs, None));
            y.iter().zip(values(dy.clone())).map(|(y, dy)| f64::from(*y) * f64::from(dy)).sum()
        };
        let along = |gradient: Tensor<Flex, 2>, direction: Tensor<Flex, 2>| -> f64 {
            let parts = values(gradient).into_iter().zip(values(direction));
            parts.map(|(gradient, direction)| f64::from(gradient) * f64::from(direction)).sum()
        };
        let check = |what: &str, found: f64, expected: f64| {
            let (error, bound) = ((found - expected).abs(), most * (1.0 + expected.abs()));
            assert!(error <= bound, "{name} {index}, {what}: {found} instead of {expected}");
        };
        let still = adapters(None);
        let (y, tape) = layer.forward_with_tape(x.clone(), &still, &inputs);
        assert_eq!(values(y), values(layer.forward(x.clone(), &still, &inputs, None)), "{name}");
        let mut gradients = LayerGradients::default();
        let dx = layer.backward(tape, &still, &inputs, dy.clone(), true, &mut gradients).unwrap();
        let direction = random(ids.len(), hidden, 101) * 0.1;
        let moved = |step: f32| objective(x.clone() + direction.clone() * step, &still);
        check("x", along(dx, direction.clone()), (moved(STEP) - moved(-STEP)) / f64::from(2.0 * STEP));
        for projection in layer.spec().projections() {
            let slot = projection.slot;
            let found = gradients.get(slot).unwrap();
            for (is_a, gradient) in [(true, &found.a), (false, &found.b)] {
                let moved = |step: f32| objective(x.clone(), &adapters(Some((slot, is_a, step))));
                let slope = (moved(STEP) - moved(-STEP)) / f64::from(2.0 * STEP);
                let [rows, columns] = gradient.dims();
                let seed = 10 * slot as u32 + if is_a { 1 } else { 3 };
                let found = along(gradient.clone(), random(rows, columns, seed));
                check(&format!("{}, A {is_a}", projection.path), found, slope);
            }
        }
    }
}
