//! Logits of small random models of every family, against transformers; decoding with a cache; loading rules.

#![expect(clippy::unwrap_used, reason = "a helper outside the test functions may fail the test")]

use std::path::{Path, PathBuf};

use burn_flex::Flex;
use burn_tensor::{Tensor, TensorData};
use tune::adapter::projection::{LayerAdapters, LayerGradients};
use tune::assets::{ModelDir, SafetensorsFile};
use tune::model::layers::{Guard, Order};
use tune::model::{Decoder, DecoderSpec, FloatDtype, family, load, tensors};
use tune_kernels::attention::DocumentOffsets;
use tune_kernels::linear::Lora;

fn families() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families")
}

/// The folder of a golden model.
fn place(name: &str) -> PathBuf {
    let own = families().join(name);
    match own.exists() {
        true => own,
        false => families().with_file_name("recurrent").join(name).join("base"),
    }
}

fn decoder(folder: &Path, dtype: FloatDtype) -> Decoder<Flex> {
    let model = ModelDir::open(folder).unwrap();
    let spec = family::decoder_spec(model.config()).unwrap();
    let mut seen = Vec::new();
    let total = tensors::expected(&spec).len();
    let decoder = load::load(model.weights(), &spec, None, dtype, &Default::default(), &mut |progress| {
        seen.push(progress.done)
    })
    .unwrap();
    assert_eq!(seen, (1..=total).collect::<Vec<_>>());
    decoder
}

fn layer(decoder: &Decoder<Flex>, index: usize) -> Guard<Flex> {
    decoder.layers().walk(Order::Up(index..index + 1)).next().unwrap().unwrap().1
}

struct Golden {
    ids: Vec<u32>,
    logits: Vec<f32>,
}

fn golden(folder: &Path) -> Golden {
    let file = SafetensorsFile::open(&folder.join("golden.safetensors")).unwrap();
    let bytes = file.read("input_ids").unwrap();
    let ids =
        bytes.as_chunks::<8>().0.iter().map(|&id| u32::try_from(i64::from_le_bytes(id)).unwrap()).collect();
    Golden { ids, logits: file.read_floats("logits").unwrap() }
}

fn largest_difference(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    left.iter().zip(right).map(|(left, right)| (left - right).abs()).fold(0.0, f32::max)
}

fn values<const D: usize>(tensor: Tensor<Flex, D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().into_vec().unwrap()
}

fn assert_logits(name: &str) {
    let folder = place(name);
    let golden = golden(&folder);
    let logits = values(decoder(&folder, FloatDtype::F32).logits(&golden.ids, None).unwrap());
    let difference = largest_difference(&logits, &golden.logits);
    assert!(difference <= 1e-4, "{name}: logits differ by {difference}");
}

macro_rules! logits_agree {
    ($($name:ident),* $(,)?) => {
        mod logits_agree_with_transformers {
            $(#[test] fn $name() { super::assert_logits(stringify!($name)); })*
        }

        #[test]
        fn every_golden_has_its_test() {
            let listed = [$(stringify!($name)),*];
            for entry in std::fs::read_dir(families()).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                // Checkpoints of bitsandbytes have their own test file.
                assert!(name.starts_with("bnb_") || listed.contains(&name.as_str()), "{name} is not tested");
            }
        }
    };
}

logits_agree!(
    llama2,
    llama3,
    llama_theta,
    llama_linear,
    llama_dynamic,
    llama_yarn,
    llama_yarn_explicit,
    llama_bias,
    llama_f16,
    llama_bf16,
    llama_sharded,
    smollm2,
    mistral,
    mistral_full,
    qwen2,
    qwen2_sliding,
    qwen3,
    qwen3_5,
    lfm2,
);

#[test]
fn both_spellings_of_every_config_are_the_same_model() {
    let mut compared = 0;
    for entry in std::fs::read_dir(families()).unwrap() {
        let folder = entry.unwrap().path();
        let read = |name: &str| -> Option<DecoderSpec> {
            let text = std::fs::read(folder.join(name)).ok()?;
            Some(family::decoder_spec(&serde_json::from_slice(&text).unwrap()).unwrap())
        };
        let new = read("config.json").unwrap();
        if let Some(old) = read("config.v4.json") {
            assert_eq!(old, new, "{}", folder.display());
            compared += 1;
        }
    }
    assert!(compared >= 17, "only {compared} configurations compared");
}

#[test]
fn decoding_with_a_cache_equals_the_whole_sequence() {
    for name in ["llama3", "mistral", "qwen2_sliding", "qwen3", "qwen3_5", "lfm2", "llama_yarn"] {
        let folder = place(name);
        let ids = golden(&folder).ids;
        let decoder = decoder(&folder, FloatDtype::F32);
        let whole = values(decoder.logits(&ids, None).unwrap());
        let mut cache = decoder.new_cache();
        let mut pieces = Vec::new();
        // A prompt, a second prompt that continues it, then token by token.
        for piece in [&ids[..17], &ids[17..23]].into_iter().chain(ids[23..].chunks(1)) {
            let hidden = decoder.hidden(piece, None, Some(&mut cache)).unwrap();
            pieces.extend(values(decoder.logits_of(hidden)));
        }
        assert_eq!(cache.tokens(), ids.len());
        let difference = largest_difference(&whole, &pieces);
        // A recurrence passes on what rounding did to all tokens before, and these goldens are longer.
        let most = if matches!(name, "qwen3_5" | "lfm2") { 1e-4 } else { 2e-5 };
        assert!(difference <= most, "{name}: {difference}");
    }
}

#[test]
fn packed_documents_do_not_see_each_other() {
    for name in ["llama2", "mistral", "qwen3", "qwen3_5", "lfm2"] {
        let folder = place(name);
        let ids = golden(&folder).ids;
        let decoder = decoder(&folder, FloatDtype::F32);
        let (first, second) = ids.split_at(15);
        let positions: Vec<u32> = (0..15).chain(0..second.len() as u32).collect();
        let documents = DocumentOffsets::packed(&[0, 15, ids.len() as u32]);
        let inputs = decoder.inputs(&positions, documents).unwrap();
        let none = LayerAdapters::none();
        let x = decoder.embed(&ids).unwrap();
        let x = decoder.layers().up().fold(x, |x, step| step.unwrap().1.forward(x, &none, &inputs, None));
        let packed = values(decoder.logits_of(decoder.final_norm(&x)));
        let mut apart = values(decoder.logits(first, None).unwrap());
        apart.extend(values(decoder.logits(second, None).unwrap()));
        let difference = largest_difference(&packed, &apart);
        assert!(difference <= 2e-5, "{name}: {difference}");
    }
}

/// The backward pass of a layer against differences of its forward pass, along random directions of the input and of
/// every adapter matrix: with and without head norms, biases, windows, gates and grouped heads. Recurrent layers bend too much
/// for differences in f32; the unit tests of layers have theirs in f64.
#[test]
fn a_layers_backward_is_the_slope_of_its_forward() {
    for (name, index) in [
        ("llama3", 1),
        ("qwen2", 1),
        ("qwen2_sliding", 1),
        ("qwen3", 1),
        ("mistral", 1),
        ("smollm2", 1),
        ("qwen3_5", 3),
    ] {
        let folder = place(name);
        let ids = golden(&folder).ids;
        let decoder = decoder(&folder, FloatDtype::F32);
        let count = ids.len() as u32;
        let positions: Vec<u32> = (0..3).chain(0..count - 3).collect();
        let inputs = decoder.inputs(&positions, DocumentOffsets::packed(&[0, 3, count])).unwrap();
        let layer = layer(&decoder, index);
        let x = decoder.embed(&ids).unwrap();
        let random = |rows: usize, columns: usize, seed: u32| {
            let value = |i: u32| {
                let hash = (i ^ seed.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b).rotate_left(13);
                (hash.wrapping_mul(0xc2b2_ae35) >> 8) as f32 / (1 << 23) as f32 - 1.0
            };
            let values: Vec<f32> = (0..(rows * columns) as u32).map(value).collect();
            Tensor::<Flex, 2>::from_data(TensorData::new(values, [rows, columns]), &Default::default())
        };
        // Every projection moved along its own direction, by so much.
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
        let dy = random(ids.len(), decoder.spec().hidden_size, 100);
        let objective = |x: Tensor<Flex, 2>, adapters: &LayerAdapters<Flex>| -> f64 {
            let y = values(layer.forward(x, adapters, &inputs, None));
            y.iter().zip(values(dy.clone())).map(|(y, dy)| f64::from(*y) * f64::from(dy)).sum()
        };
        let along = |gradient: Tensor<Flex, 2>, direction: Tensor<Flex, 2>| -> f64 {
            let parts = values(gradient).into_iter().zip(values(direction));
            parts.map(|(gradient, direction)| f64::from(gradient) * f64::from(direction)).sum()
        };
        let still = adapters(None);
        let (y, tape) = layer.forward_with_tape(x.clone(), &still, &inputs);
        assert_eq!(values(y), values(layer.forward(x.clone(), &still, &inputs, None)), "{name}");
        let mut gradients = LayerGradients::default();
        let dx = layer.backward(tape, &still, &inputs, dy.clone(), true, &mut gradients).unwrap();
        let step = 1.0 / 512.0;
        let check = |what: &str, found: f64, expected: f64| {
            let error = (found - expected).abs();
            assert!(error <= 5e-3 * (1.0 + expected.abs()), "{name}, {what}: {found} instead of {expected}");
        };
        let direction = random(ids.len(), decoder.spec().hidden_size, 101) * 0.1;
        let moved = |step: f32| objective(x.clone() + direction.clone() * step, &still);
        let slope = (moved(step) - moved(-step)) / f64::from(2.0 * step);
        check("x", along(dx, direction), slope);
        for projection in layer.spec().projections() {
            let slot = projection.slot;
            let found = gradients.get(slot).unwrap();
            for (is_a, gradient) in [(true, &found.a), (false, &found.b)] {
                let moved = |step: f32| objective(x.clone(), &adapters(Some((slot, is_a, step))));
                let slope = (moved(step) - moved(-step)) / f64::from(2.0 * step);
                let [rows, columns] = gradient.dims();
                let seed = 10 * slot as u32 + if is_a { 1 } else { 3 };
                let found = along(gradient.clone(), random(rows, columns, seed));
                check(&format!("{}, A {is_a}", projection.path), found, slope);
            }
        }
    }
}

#[test]
fn half_precision_stays_close() {
    for (name, dtype) in [("llama_bf16", FloatDtype::Bf16), ("llama_f16", FloatDtype::F16)] {
        let folder = place(name);
        let golden = golden(&folder);
        let decoder = decoder(&folder, dtype);
        let logits = values(decoder.logits(&golden.ids, None).unwrap());
        let difference = largest_difference(&logits, &golden.logits);
        let spread = golden.logits.iter().fold(0f32, |spread, logit| spread.max(logit.abs()));
        assert!(difference < 0.03 * spread, "{name}: {difference} of {spread}");
    }
}

#[test]
fn a_tied_head_is_kept_once() {
    let folder = families().join("smollm2");
    let decoder = decoder(&folder, FloatDtype::F32);
    assert_eq!(decoder.frozen_bytes(), 4 * decoder.spec().parameters());
    let untied = families().join("llama2");
    let untied = self::decoder(&untied, FloatDtype::F32);
    assert_eq!(untied.frozen_bytes(), 4 * untied.spec().parameters());
}

#[test]
fn ids_outside_the_vocabulary_are_refused() {
    let decoder = decoder(&families().join("llama2"), FloatDtype::F32);
    let error = decoder.logits(&[1, 2, 64], None).unwrap_err().to_string();
    assert!(error.contains("64") && error.contains("position 2"), "{error}");
    assert!(decoder.logits(&[], None).is_err());
}

/// Behind an image tower the text model has other names, and the tower is left out.
#[test]
fn a_wrapper_is_its_text_model() {
    let base = place("qwen3_5");
    let wrapped = tempfile::tempdir().unwrap();
    std::fs::copy(base.with_file_name("wrapper.json"), wrapped.path().join("config.json")).unwrap();
    let bytes = std::fs::read(base.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut renamed: Vec<_> = tensors
        .iter()
        .map(|(name, view)| match name.strip_prefix("model.") {
            Some(inner) => (format!("model.language_model.{inner}"), view),
            None => (name.to_owned(), view),
        })
        .collect();
    let norm = tensors.tensor("model.norm.weight").unwrap();
    renamed.extend(
        ["model.visual.merger.norm.weight", "mtp.norm.weight"].map(|name| (name.to_owned(), norm.clone())),
    );
    safetensors::serialize_to_file(renamed, None, &wrapped.path().join("model.safetensors")).unwrap();
    let ids = golden(&base).ids;
    let [text, wrapper] = [base.as_path(), wrapped.path()]
        .map(|folder| decoder(folder, FloatDtype::F32).logits(&ids, None).unwrap());
    assert_eq!(values(text), values(wrapper));
}
