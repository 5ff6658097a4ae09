//! Adapters of other tools with LoRA on the output head or on the embeddings.

use std::fs;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize_to_file};
use tune::adapter::peft::Adapter;
use tune::assets::SafetensorsFile;

use super::support::{f32_options, golden, merge};

/// The golden adapter `plain_qv` with `more` tensors.
fn with_tensors(folder: &Path, more: &[(&str, [usize; 2], Vec<f32>)]) {
    fs::create_dir_all(folder).unwrap();
    let own = golden("peft/plain_qv");
    fs::copy(own.join("adapter_config.json"), folder.join("adapter_config.json")).unwrap();
    let bytes = fs::read(own.join("adapter_model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let more: Vec<(String, Vec<usize>, Vec<u8>)> = more
        .iter()
        .map(|(name, shape, values)| {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            (format!("base_model.model.{name}"), shape.to_vec(), bytes)
        })
        .collect();
    let mut views: Vec<(String, TensorView<'_>)> = file.tensors();
    for (name, shape, bytes) in &more {
        views.push((name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    }
    serialize_to_file(views, None, &folder.join("adapter_model.safetensors")).unwrap();
}

fn values(count: usize, step: f32) -> Vec<f32> {
    (0..count).map(|at| ((at * 37 % 101) as f32 / 50.0 - 1.0) * step).collect()
}

fn table(folder: &Path, name: &str) -> (Vec<usize>, Vec<f32>) {
    let file = SafetensorsFile::open(&folder.join("model.safetensors")).unwrap();
    (file.info(name).unwrap().shape.clone(), file.read_floats(name).unwrap())
}

#[test]
fn lora_on_head_and_embeddings_is_folded_into_the_tables_of_an_untied_base() {
    let outer = tempfile::tempdir().unwrap();
    let (adapter, out, base) = (outer.path().join("adapter"), outer.path().join("out"), golden("peft/base"));
    let (shape, head) = table(&base, "lm_head.weight");
    let (vocab, hidden) = (shape[0], shape[1]);
    let config = Adapter::open(&golden("peft/plain_qv")).unwrap().config().clone();
    let (rank, scaling) = (config.rank, (config.alpha / config.rank as f64) as f32);
    let (head_a, head_b) = (values(rank * hidden, 0.02), values(vocab * rank, 0.03));
    let (table_a, table_b) = (values(rank * vocab, 0.05), values(hidden * rank, 0.01));
    with_tensors(
        &adapter,
        &[
            ("lm_head.lora_A.weight", [rank, hidden], head_a.clone()),
            ("lm_head.lora_B.weight", [vocab, rank], head_b.clone()),
            ("lm_head.base_layer.weight", [vocab, hidden], head.clone()),
            ("model.embed_tokens.lora_embedding_A", [rank, vocab], table_a.clone()),
            ("model.embed_tokens.lora_embedding_B", [hidden, rank], table_b.clone()),
        ],
    );
    merge(&adapter, &base, f32_options(), &out).unwrap();
    let (_, embeddings) = table(&base, "model.embed_tokens.weight");
    let (_, merged_head) = table(&out, "lm_head.weight");
    let (_, merged_embeddings) = table(&out, "model.embed_tokens.weight");
    for row in 0..vocab {
        for column in 0..hidden {
            let at = row * hidden + column;
            let delta = |product: &dyn Fn(usize) -> f32| scaling * (0..rank).map(product).sum::<f32>();
            let expected = head[at] + delta(&|r| head_b[row * rank + r] * head_a[r * hidden + column]);
            assert!((merged_head[at] - expected).abs() < 1e-6, "head {row} {column}");
            let expected = embeddings[at] + delta(&|r| table_a[r * vocab + row] * table_b[column * rank + r]);
            assert!((merged_embeddings[at] - expected).abs() < 1e-6, "embeddings {row} {column}");
        }
    }
}

#[test]
fn lora_on_tables_is_refused_with_its_reason_where_it_is_not_used() {
    let outer = tempfile::tempdir().unwrap();
    let (adapter, out) = (outer.path().join("adapter"), outer.path().join("out"));
    let base = golden("peft/base");
    let (shape, _) = table(&base, "lm_head.weight");
    let rank = Adapter::open(&golden("peft/plain_qv")).unwrap().config().rank;
    let head_a = ("lm_head.lora_A.weight", [rank, shape[1]], values(rank * shape[1], 0.1));
    with_tensors(
        &adapter,
        &[head_a.clone(), ("lm_head.lora_B.weight", [shape[0], rank], vec![0.0; shape[0] * rank])],
    );
    let error = Adapter::open(&adapter).unwrap_err().to_string();
    assert!(error.contains("LoRA on lm_head") && error.contains("`tune merge`"), "{error}");
    let tied = outer.path().join("tied");
    with_tensors(&outer.path().join("half"), &[head_a]);
    let error = merge(&outer.path().join("half"), &base, f32_options(), &out).unwrap_err().to_string();
    assert!(error.contains("lm_head.lora_B.weight` is missing"), "{error}");
    fs::create_dir_all(&tied).unwrap();
    let config = fs::read_to_string(base.join("config.json")).unwrap();
    let config = config.replace("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
    fs::write(tied.join("config.json"), config).unwrap();
    let bytes = fs::read(base.join("model.safetensors")).unwrap();
    let mut views = SafeTensors::deserialize(&bytes).unwrap().tensors();
    views.retain(|(name, _)| name != "lm_head.weight");
    serialize_to_file(views, None, &tied.join("model.safetensors")).unwrap();
    let error = merge(&adapter, &tied, f32_options(), &out).unwrap_err().to_string();
    assert!(error.contains("ties its output head") && error.contains("merge_and_unload"), "{error}");
}
