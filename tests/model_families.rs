//! Logits of small random models of every family, against transformers; decoding with a cache; loading rules.

#![expect(clippy::unwrap_used, reason = "a helper outside the test functions may fail the test")]

use std::path::{Path, PathBuf};

use tune::model::{DecoderSpec, FloatDtype, family};

#[path = "support/forward.rs"]
mod forward;

use forward::{assert_decoding, assert_packed, assert_slopes, decoder, golden, largest_difference, logits};

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

fn assert_logits(name: &str) {
    forward::assert_logits(name, &place(name));
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
        // A recurrence passes on what rounding did to all tokens before, and these goldens are longer.
        let most = if matches!(name, "qwen3_5" | "lfm2") { 1e-4 } else { 2e-5 };
        assert_decoding(name, &place(name), None, most);
    }
}

#[test]
fn packed_documents_do_not_see_each_other() {
    for name in ["llama2", "mistral", "qwen3", "qwen3_5", "lfm2"] {
        assert_packed(name, &place(name));
    }
}

/// With and without head norms, biases, windows, gates and grouped heads. Recurrent layers bend too much for differences in
/// f32; the unit tests of layers have theirs in f64.
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
        assert_slopes(name, &place(name), Some(index..index + 1), 5e-3);
    }
}

#[test]
fn half_precision_stays_close() {
    for (name, dtype) in [("llama_bf16", FloatDtype::Bf16), ("llama_f16", FloatDtype::F16)] {
        let folder = place(name);
        let (ids, expected) = golden(&folder, "logits");
        let difference = largest_difference(&logits(&decoder(&folder, None, dtype), &ids), &expected);
        let spread = expected.iter().fold(0f32, |spread, logit| spread.max(logit.abs()));
        assert!(difference < 0.03 * spread, "{name}: {difference} of {spread}");
    }
}

#[test]
fn a_tied_head_is_kept_once() {
    let folder = families().join("smollm2");
    let decoder = decoder(&folder, None, FloatDtype::F32);
    assert_eq!(decoder.frozen_bytes(), 4 * decoder.spec().parameters());
    let untied = families().join("llama2");
    let untied = self::decoder(&untied, None, FloatDtype::F32);
    assert_eq!(untied.frozen_bytes(), 4 * untied.spec().parameters());
}

#[test]
fn ids_outside_the_vocabulary_are_refused() {
    let decoder = decoder(&families().join("llama2"), None, FloatDtype::F32);
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
    let (ids, _) = golden(&base, "logits");
    let of = |folder: &Path| logits(&decoder(folder, None, FloatDtype::F32), &ids);
    assert_eq!(of(&base), of(wrapped.path()));
}
