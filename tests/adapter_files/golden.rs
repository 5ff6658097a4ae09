//! Adapters that PEFT wrote: read as what they are, and computing what PEFT computes.

use std::fs;

use burn_flex::Flex;
use tune::adapter::lora::LoraSet;
use tune::adapter::peft::{Adapter, TENSORS_FILE};
use tune::assets::{ModelDir, SafetensorsFile};
use tune::files::safetensors::Dtype;
use tune::model::{Decoder, FloatDtype, family, load};

use crate::common::{golden, golden_specs, modules, resolved, saved_modules};

#[test]
fn adapters_of_peft_equal_the_recipes_that_would_train_them() {
    for (name, spec) in golden_specs() {
        let adapter = Adapter::open_with_saved_modules(&golden(name)).unwrap();
        assert_eq!(adapter.config().base_model.as_deref(), Some("tune-golden/peft-base"));
        let targets = resolved(&spec);
        adapter.require_equal(&spec, &targets, &modules()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(adapter.targets(&modules()).unwrap(), targets, "{name}");

        let values = adapter.values(&targets).unwrap();
        let bytes = fs::read(golden(name).join(TENSORS_FILE)).unwrap();
        let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let set: LoraSet<Flex> = LoraSet::from_values(targets, 0.0, values, &Default::default()).unwrap();
        let own = adapter.saved_modules(&saved_modules()).unwrap();
        assert_eq!(own, adapter.own_saved_modules());
        let set = adapter.with_own_saved_modules(set, own, &Default::default()).unwrap();
        assert_eq!(set.parameters().len(), reference.len(), "{name}");
        for (number, parameter) in set.parameters().iter().enumerate() {
            let view = reference.tensor(&parameter.name).unwrap();
            assert_eq!(view.shape(), parameter.part.file_shape(parameter.shape));
            let expected: Vec<f32> = match view.dtype() {
                Dtype::F32 => {
                    view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
                }
                // The upper half of an f32.
                Dtype::BF16 => view
                    .data()
                    .as_chunks()
                    .0
                    .iter()
                    .map(|[a, b]| f32::from_le_bytes([0, 0, *a, *b]))
                    .collect(),
                other => panic!("{other}"),
            };
            assert_eq!(set.values(number).unwrap(), expected, "{name} {}", parameter.name);
        }
    }
}

#[test]
fn base_and_adapter_of_peft_give_its_logits() {
    let model = ModelDir::open(&golden("base")).unwrap();
    let decoder_spec = family::decoder_spec(model.config()).unwrap();
    assert_eq!(decoder_spec.modules(), modules());
    let decoder: Decoder<Flex> =
        load::load(model.weights(), &decoder_spec, None, FloatDtype::F32, &Default::default(), &mut |_| {})
            .unwrap();
    for (name, _) in golden_specs() {
        let adapter = Adapter::open_with_saved_modules(&golden(name)).unwrap();
        let targets = adapter.targets(&modules()).unwrap();
        let values = adapter.values(&targets).unwrap();
        let set = LoraSet::from_values(targets, 0.0, values, decoder.device()).unwrap();
        let own = adapter.saved_modules(&decoder_spec.saved_modules()).unwrap();
        let set = adapter.with_own_saved_modules(set, own, decoder.device()).unwrap();
        let decoder = decoder.adopting(&set);
        let layers: Vec<_> = (0..2).map(|layer| set.layer(layer, None)).collect();

        let file = SafetensorsFile::open(&golden(name).join("golden.safetensors")).unwrap();
        let ids = file.read("input_ids").unwrap();
        let ids: Vec<u32> = ids.as_chunks().0.iter().map(|id| i64::from_le_bytes(*id) as u32).collect();
        let expected = file.read_floats::<f32>("logits").unwrap();
        let logits: Vec<f32> = decoder.logits(&ids, Some(&layers)).unwrap().into_data().into_vec().unwrap();
        let difference =
            logits.iter().zip(&expected).map(|(ours, theirs)| (ours - theirs).abs()).fold(0.0, f32::max);
        println!("{name}: {difference:.1e}");
        assert_eq!(logits.len(), expected.len());
        assert!(difference <= 1e-4, "{name}: logits differ by {difference}");
    }
}
