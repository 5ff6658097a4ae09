//! Folders that hold a text decoder in other ways: beside towers, and in 8-bit floats.

use std::path::{Path, PathBuf};

use tune::adapter::lora::LoraSet;
use tune::adapter::peft::Adapter;
use tune::assets::{Base, Dtype, ModelDir, SafetensorsFile};
use tune::export::base::OpenedBase;
use tune::export::consumer::{Consumer, export};
use tune::export::merge::Options;
use tune::export::quantize;
use tune::export::shards::SHARD_BYTES;
use tune::files::Existing;
use tune::model::{FloatDtype, family, tensors};
use tune::quant::spec::Spec;
use tune::recipe::DeviceSpec;
use tune::run::Environment;
use tune::run::adapters::{BaseChoice, Merge};
use tune::run::held_out::Source;

use crate::golden::{assert_logits, decoder, golden, largest_difference, logits};

/// Text decoders beside towers.
const WRAPPERS: [&str; 6] =
    ["mistral3", "mistral_small", "gemma3", "gemma4_unified", "muse_glimmer", "qwen3_5"];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/dense_folders").join(name)
}

#[test]
fn logits_agree_with_transformers() {
    for name in WRAPPERS.into_iter().chain(["mistral3_fp8", "qwen3_fp8"]) {
        assert_logits(name, &folder(name));
    }
}

#[test]
fn eight_bit_floats_are_held_in_bf16_or_quantized_to_four_bits() {
    for name in ["mistral3_fp8", "qwen3_fp8"] {
        let folder = folder(name);
        let (ids, expected) = golden(&folder, "logits");
        let spread = expected.iter().fold(0f32, |spread, logit| spread.max(logit.abs()));
        let held = largest_difference(&logits(&decoder(&folder, None, FloatDtype::Bf16), &ids), &expected);
        assert!(held < 0.05 * spread, "{name}: {held} of {spread}");
        let packed = decoder(&folder, Some(Spec::USUAL), FloatDtype::F32);
        let packed = largest_difference(&logits(&packed, &ids), &expected);
        assert!(packed > held && packed < spread, "{name}: {packed} of {spread}");
    }
}

/// PEFT makes one over the model with towers, and another over the text decoder's own class, where transformers has one.
#[test]
fn adapters_of_both_spellings_are_read() {
    for name in WRAPPERS {
        let folder = folder(name);
        let (ids, expected) = golden(&folder, "adapted");
        for adapter in ["adapter", "adapter_text"].map(|name| folder.join(name)) {
            if !adapter.exists() {
                assert_eq!(name, "muse_glimmer");
                continue;
            }
            let decoder = decoder(&folder, None, FloatDtype::F32);
            let adapter = Adapter::open(&adapter).unwrap();
            let targets = adapter.targets(&decoder.spec().modules()).unwrap();
            assert!(targets.len() >= 13, "{name}: {}", targets.len());
            let values = adapter.values(&targets).unwrap();
            let set = LoraSet::from_values(targets, 0.0, values, decoder.device()).unwrap();
            let layers: Vec<_> = (0..decoder.layers().len()).map(|layer| set.layer(layer, None)).collect();
            let found = decoder.logits(&ids, Some(&layers)).unwrap().into_data().into_vec::<f32>().unwrap();
            let difference = largest_difference(&found, &expected);
            println!("{name}: adapted logits within {difference:.1e}");
            assert!(difference <= 1e-4, "{name}: logits differ by {difference}");
        }
    }
}

#[test]
fn exported_adapters_have_the_paths_that_each_reader_loads() {
    let out = tempfile::tempdir().unwrap();
    for name in WRAPPERS {
        let base = OpenedBase::open(Base { folder: folder(name), hub: None }).unwrap();
        let own = folder(name).join("adapter_text");
        let adapter = Adapter::open(&if own.exists() { own } else { folder(name).join("adapter") }).unwrap();
        let targets = adapter.targets(&base.spec.modules()).unwrap();
        let wrapped = "base_model.model.model.language_model.layers.";
        for (consumer, file, first) in [
            (Consumer::Vllm, "adapter_model.safetensors", wrapped),
            (Consumer::Peft, "adapter_model.safetensors", wrapped),
            (Consumer::MistralRs, "adapter_model.safetensors", wrapped),
            (Consumer::Mlx, "adapters.safetensors", "language_model.model.layers."),
        ] {
            let folder = out.path().join(format!("{name}-{}", consumer.word()));
            export(&adapter, &targets, Some(&base), consumer, &folder, Existing::Refuse).unwrap();
            let written = SafetensorsFile::open(&folder.join(file)).unwrap();
            assert!(written.names().all(|name| name.starts_with(first)), "{name}, {consumer}");
            assert!(written.names().count() >= 2 * targets.len());
        }
    }
}

/// In 4 bits the text decoder computes what it computes when it is quantized while it is loaded.
#[test]
fn four_bit_folders_keep_their_towers() {
    for name in WRAPPERS {
        let out = tempfile::tempdir().unwrap();
        let (base, quantized) = (folder(name), out.path().join("quantized"));
        let opened = OpenedBase::open(Base { folder: base.clone(), hub: None }).unwrap();
        let options = quantize::Options {
            quantization: Spec::USUAL.into(),
            shard_bytes: SHARD_BYTES,
            existing: Existing::Refuse,
        };
        quantize::quantize(&opened, &quantized, options, &mut |_| {}, &|| false).unwrap();
        let (ids, _) = golden(&base, "logits");
        let loaded = logits(&decoder(&base, Some(Spec::USUAL), FloatDtype::F32), &ids);
        let difference =
            largest_difference(&logits(&decoder(&quantized, None, FloatDtype::F32), &ids), &loaded);
        assert!(difference <= 1e-5, "{name}: {difference}");
        let beside = |folder: &Path| {
            let model = ModelDir::open(folder).unwrap();
            let spec = family::decoder_spec(model.config()).unwrap();
            tensors::check(&spec, model.weights(), None).unwrap().skipped
        };
        assert_eq!(beside(&quantized), beside(&base), "{name}");
    }
}

/// What the text decoder is beside is copied, under the names that it had.
#[test]
fn merged_models_keep_their_towers() {
    for name in WRAPPERS {
        let out = tempfile::tempdir().unwrap();
        let (base, merged) = (folder(name), out.path().join("merged"));
        let choice = BaseChoice { base: Some(base.to_str().unwrap()), revision: None };
        let environment = Environment { hub_cache: Path::new("no-cache"), stop: &|| false, save: &|| false };
        let options = Options { dtype: Some(FloatDtype::F32), ..Options::default() };
        let merge = Merge::open(&base.join("adapter"), choice, options, &Source::Any, &environment).unwrap();
        merge.run(&merged, &mut |_| {}, DeviceSpec::Auto, &environment).unwrap();
        let (ids, expected) = golden(&base, "adapted");
        let found = logits(&decoder(&merged, None, FloatDtype::F32), &ids);
        let difference = largest_difference(&found, &expected);
        assert!(difference <= 1e-4, "{name}: logits differ by {difference}");
        let names = |folder: &Path| -> Vec<String> {
            let file = SafetensorsFile::open(&folder.join("model.safetensors")).unwrap();
            file.names().map(str::to_owned).collect()
        };
        assert_eq!(names(&merged), names(&base));
        let checked = |folder: &Path| {
            let model = ModelDir::open(folder).unwrap();
            let spec = family::decoder_spec(model.config()).unwrap();
            let skipped = tensors::check(&spec, model.weights(), None).unwrap().skipped;
            assert!(skipped.iter().all(|name| model.weights().info(name).unwrap().dtype == Dtype::BF16));
            skipped.len()
        };
        assert_eq!(checked(&merged), checked(&base));
        assert!(checked(&base) > 2, "{name}");
    }
}
