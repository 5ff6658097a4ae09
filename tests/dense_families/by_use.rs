//! Experts that come when they are used: the numbers of a decoder that holds them all, with those alone read that the
//! router chose.

use std::fs;
use std::path::Path;

use burn_flex::Flex;
use serde_json::Value;
use tune::assets::ModelDir;
use tune::model::fetch::Home;
use tune::model::load::{self, Layout, Streaming};
use tune::model::{Decoder, Error, FloatDtype, family};

fn streaming(folder: &Path, home: Home, slots: usize) -> Decoder<Flex> {
    let model = ModelDir::open(folder).unwrap();
    let spec = family::decoder_spec(model.config()).unwrap();
    let streaming = Streaming { home, resident_layers: 0, slots, packed: None };
    let (dtype, device) = (FloatDtype::F32, Default::default());
    let layout = Layout { host_embeddings: false, streaming: Some(streaming) };
    load::load_as(model.weights(), &spec, None, dtype, &device, layout, &mut |_| {}).unwrap()
}

/// Hidden states of a prompt, which reaches most experts, and of single tokens behind it, which reach two of twelve each.
fn hidden(decoder: &Decoder<Flex>, pieces: &[&[u32]]) -> Result<Vec<f32>, Error> {
    let mut cache = decoder.new_cache();
    let mut found = Vec::new();
    for piece in pieces {
        let hidden = decoder.hidden(piece, None, Some(&mut cache))?;
        found.extend(hidden.into_data().into_vec::<f32>().unwrap());
    }
    Ok(found)
}

#[test]
fn a_token_brings_the_experts_that_it_reaches_and_no_other() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mixture_experts/base");
    let prompt: Vec<u32> = (0..20).map(|at| at * 3 % 64).collect();
    let pieces: [&[u32]; 4] = [&prompt, &[7], &[41], &[12]];
    let held = {
        let model = ModelDir::open(&golden).unwrap();
        let spec = family::decoder_spec(model.config()).unwrap();
        let (dtype, device) = (FloatDtype::F32, Default::default());
        load::load::<Flex>(model.weights(), &spec, None, dtype, &device, &mut |_| {}).unwrap()
    };
    let expected = hidden(&held, &pieces).unwrap();
    for (home, slots) in [(Home::Disk, 1), (Home::Disk, 2), (Home::Host, 1)] {
        let found = hidden(&streaming(&golden, home, slots), &pieces).unwrap();
        assert!(found == expected, "{home:?}, {slots} slots");
    }

    // Each expert of the first layer in turn is lost: only a token that it is chosen for notices.
    let folder = tempfile::tempdir().unwrap();
    fs::copy(golden.join("config.json"), folder.path().join("config.json")).unwrap();
    let bytes = fs::read(golden.join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let token: [&[u32]; 1] = [&[7]];
    let expected = hidden(&held, &token).unwrap();
    let mut missed = 0;
    for expert in 0..12 {
        let name = format!("model.layers.0.mlp.experts.{expert}.down_proj.weight");
        let begin = 8 + length + header[&name]["data_offsets"][0].as_u64().unwrap() as usize;
        let mut damaged = bytes.clone();
        damaged[begin..begin + 2].copy_from_slice(&f32::NAN.to_le_bytes()[2..]);
        fs::write(folder.path().join("model.safetensors"), damaged).unwrap();
        let decoder = streaming(folder.path(), Home::Disk, 1);
        match hidden(&decoder, &token) {
            Ok(found) => assert!(found == expected, "expert {expert}"),
            Err(error) => {
                assert!(error.to_string().contains(&name), "{error}");
                missed += 1;
            }
        }
        // The prompt takes the layers whole.
        assert!(hidden(&decoder, &[&prompt]).is_err());
    }
    assert_eq!(missed, 2);
}
