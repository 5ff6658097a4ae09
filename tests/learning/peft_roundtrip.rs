//! A trained adapter as other tools meet it: the files of the run folder, and the logits they stand for.
//!
//! Leaves the adapter and its logits in `target/tmp/peft_check/`, where `tests/golden/check_adapter.py` compares them
//! with PEFT's (see `tests/golden/README.md`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{golden, run, tensors};
use serde_json::{Value, json};
use tune::adapter::lora::LoraSet;
use tune::adapter::peft::Adapter;
use tune::assets::ModelDir;
use tune::device::Cpu;
use tune::files::safetensors::{Dtype, Layout, TensorHeader, write_f32};
use tune::model::{FloatDtype, family, load};
use tune::quant;

/// Largest difference of a logit from PEFT's.
const TOLERANCE: f32 = 1e-4;

/// Logits `[tokens, vocabulary]` of the first rows of the golden tokens through base + adapter.
fn logits(adapter: &Path, rows: usize) -> Vec<Vec<f32>> {
    let folder = ModelDir::open(&golden("trajectory/base")).unwrap();
    let spec = family::decoder_spec(folder.config()).unwrap();
    let adapter = Adapter::open(adapter).unwrap();
    let targets = adapter.targets(&spec.modules()).unwrap();
    let values = adapter.values(&targets).unwrap();
    let device = Default::default();
    let adapters = LoraSet::<Cpu>::from_values(targets, 0.0, values, &device).unwrap();
    let nf4 = quant::spec::Spec::Nf4 { block_size: 64, double_quant: true };
    let decoder =
        load::load::<Cpu>(folder.weights(), &spec, Some(nf4), FloatDtype::F32, &device, &mut |_| {}).unwrap();
    let layers: Vec<_> = (0..spec.layers.len()).map(|layer| adapters.layer(layer, None)).collect();
    let text = fs::read_to_string(golden("trajectory/tokens.jsonl")).unwrap();
    text.lines()
        .take(rows)
        .map(|line| {
            let row: Value = serde_json::from_str(line).unwrap();
            let ids: Vec<u32> = serde_json::from_value(row["input_ids"].clone()).unwrap();
            decoder.logits(&ids, Some(&layers)).unwrap().into_data().into_vec().unwrap()
        })
        .collect()
}

#[test]
fn logits_of_a_peft_adapter_are_pefts() {
    let theirs = tensors(&golden("trajectory/logits.safetensors"));
    for (row, ours) in logits(&golden("trajectory/adapter"), 2).iter().enumerate() {
        let theirs = &theirs[&format!("logits.{row}")];
        assert_eq!(ours.len(), theirs.len());
        let worst = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < TOLERANCE, "row {row}: a logit differs by {worst:e}");
    }
}

#[test]
fn a_run_writes_what_peft_would_write() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("peft_check");
    let _ = fs::remove_dir_all(&folder);
    let output_dir = folder.join("run");
    run(&format!(
        r#"
        version = 1
        output_dir = {output_dir:?}
        model = {{ base = {base:?}, compute_dtype = "f32" }}
        quantization.nf4 = {{}}
        adapter.lora = {{ rank = 8, alpha = 16 }}
        data = {{ max_seq_len = 128, shuffle = false, packing = false }}
        dataset = [{{ path = {data:?}, format = "tokens" }}]
        train = {{ max_steps = 20, learning_rate = 5e-3 }}
        "#,
        base = golden("trajectory/base"),
        data = golden("trajectory/tokens.jsonl"),
    ));
    let adapter = output_dir.join("adapter");

    // Names and shapes are those of the adapter that PEFT saved for the same targets.
    let shapes = |path: &Path| -> BTreeMap<String, (Vec<usize>, String)> {
        let bytes = fs::read(path.join("adapter_model.safetensors")).unwrap();
        let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let shape = |view: &safetensors::tensor::TensorView<'_>| {
            (view.shape().to_vec(), format!("{:?}", view.dtype()))
        };
        parsed.iter().map(|(name, view)| (name.to_owned(), shape(&view))).collect()
    };
    assert_eq!(shapes(&adapter), shapes(&golden("trajectory/adapter")));

    let config = |path: &Path| -> Value {
        serde_json::from_slice(&fs::read(path.join("adapter_config.json")).unwrap()).unwrap()
    };
    let (ours, theirs) = (config(&adapter), config(&golden("trajectory/adapter")));
    for key in
        ["peft_type", "task_type", "r", "lora_alpha", "use_rslora", "use_dora", "bias", "fan_in_fan_out"]
    {
        assert_eq!(ours[key], theirs[key], "{key}");
    }
    let ours_keys = ours.as_object().unwrap().keys();
    assert!(ours_keys.into_iter().all(|key| theirs.get(key).is_some()), "a key PEFT does not know");
    assert_eq!(
        ours["target_modules"],
        json!(["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"])
    );

    // For the comparison by hand.
    let logits = logits(&adapter, 8);
    let header = |(row, values): (usize, &Vec<f32>)| TensorHeader {
        name: format!("logits.{row}"),
        dtype: Dtype::F32,
        shape: vec![values.len() / 512, 512],
    };
    let layout = Layout::new(&BTreeMap::new(), logits.iter().enumerate().map(header).collect()).unwrap();
    let mut file = fs::File::create(folder.join("ours.safetensors")).unwrap();
    let by_name = |name: &str| &logits[name.strip_prefix("logits.").unwrap().parse::<usize>().unwrap()];
    layout.write(&mut file, |tensor, out| write_f32(out, by_name(&tensor.name))).unwrap();
}
