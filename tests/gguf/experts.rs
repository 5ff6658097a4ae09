//! Adapters of experts: one pair of tensors for all experts of a layer. llama.cpp computed the logits of PEFT from the file
//! of `mixture_experts/adapter` to 4e-6.

use std::fs;

use serde_json::{Value, json};
use tune::assets::SafetensorsFile;

use super::reader::read;
use super::support::{export_adapter, golden};

/// By expert; of rank 1 for one expert of one projection, and none for another.
#[test]
fn the_pairs_of_experts_lie_one_behind_the_other() {
    let out = tempfile::tempdir().unwrap();
    let (base, adapter) = (golden("mixture_experts/base"), golden("mixture_experts/adapter"));
    let own = SafetensorsFile::open(&adapter.join("adapter_model.safetensors")).unwrap();
    let outcome = export_adapter(&adapter, &base, &out.path().join("all")).unwrap();
    let file = read(&out.path().join("all").join(outcome.file));
    assert_eq!(file.keys["adapter.lora.alpha"], json!(4.0));
    let pairs = [("gate_proj", "ffn_gate_exps"), ("up_proj", "ffn_up_exps"), ("down_proj", "ffn_down_exps")];
    for (layer, (projection, name)) in (0..2).flat_map(|layer| pairs.map(|pair| (layer, pair))) {
        for (half, part) in [("lora_a", "lora_A"), ("lora_b", "lora_B")] {
            let tensor = &file.tensors[&format!("blk.{layer}.{name}.weight.{half}")];
            let of_expert = |expert: usize| {
                let module =
                    format!("base_model.model.model.layers.{layer}.mlp.experts.{expert}.{projection}");
                own.read_floats::<f32>(&format!("{module}.{part}.weight")).unwrap()
            };
            let expected: Vec<f32> = (0..12).flat_map(of_expert).collect();
            assert_eq!((tensor.shape[0], tensor.values()), (12, expected), "{layer} {name} {half}");
        }
    }

    // Where one has a smaller rank, it is filled up with zeros; its scaling stays.
    let small = out.path().join("small");
    fs::create_dir(&small).unwrap();
    let text = fs::read_to_string(adapter.join("adapter_config.json")).unwrap();
    let mut fields: Value = serde_json::from_str(&text).unwrap();
    let module = "model.layers.1.mlp.experts.5.down_proj";
    fields["rank_pattern"] = json!({ "layers.1.mlp.experts.5.down_proj": 1 });
    fs::write(small.join("adapter_config.json"), fields.to_string()).unwrap();
    let mut tensors = crate::tensors::read_tensors(&adapter.join("adapter_model.safetensors"));
    tensors.retain(|tensor| !tensor.name.contains("layers.1.mlp.experts.7.down_proj"));
    let mut b_of_small = Vec::new();
    for tensor in tensors.iter_mut().filter(|tensor| tensor.name.contains(module)) {
        let rows: Vec<u8> = match tensor.name.contains("lora_A") {
            true => tensor.data[..tensor.data.len() / 2].to_vec(),
            false => tensor.data.chunks_exact(8).flat_map(|row| row[..4].to_vec()).collect(),
        };
        let rank = if tensor.name.contains("lora_A") { 0 } else { 1 };
        if rank == 1 {
            b_of_small = rows.as_chunks().0.iter().map(|number| f32::from_le_bytes(*number)).collect();
        }
        tensor.shape[rank] = 1;
        tensor.data = rows;
    }
    crate::tensors::write_safetensors(&small.join("adapter_model.safetensors"), &tensors);
    fields["target_modules"] = json!("all-linear");
    fs::write(small.join("adapter_config.json"), fields.to_string()).unwrap();
    let outcome = export_adapter(&small, &base, &out.path().join("some")).unwrap();
    let file = read(&out.path().join("some").join(outcome.file));
    let b = file.tensors["blk.1.ffn_down_exps.weight.lora_b"].values();
    let each = b.len() / 12;
    assert!(b[7 * each..8 * each].iter().all(|number| *number == 0.0));
    // Its alpha / rank is 4, and 2 for the others: llama.cpp multiplies by 1, and B has the rest.
    assert_eq!(file.keys["adapter.lora.alpha"], json!(2.0));
    let expected: Vec<f32> = b_of_small.iter().flat_map(|number| [number * 4.0, 0.0]).collect();
    assert_eq!(&b[5 * each..6 * each], expected);
}
