//! Ten LoRA steps from an adapter of PEFT's, on the dense base and on its NF4 form, through the public recipe.

use std::path::Path;

use serde_json::Value;
use tune::recipe::RecipeFile;
use tune::run::{self, Environment, Options};
use tune::train::event::{Event, Observer};

use crate::{dense, families};

pub(crate) struct Silent;

impl Observer for Silent {
    fn observe(&mut self, _: &Event<'_>) {}
}

/// The losses of a run from the family's adapter.
fn losses(base: &Path, quantization: &str, output_dir: &Path) -> Vec<f64> {
    let recipe = format!(
        r#"
        version = 1
        output_dir = {output_dir:?}
        model = {{ base = {base:?}, compute_dtype = "f32" }}
        {quantization}
        adapter.lora = {{ rank = 2, alpha = 4, init_from = {adapter:?} }}
        data = {{ max_seq_len = 64, shuffle = false, packing = false }}
        dataset = [{{ path = {rows:?}, format = "tokens" }}]
        [train]
        max_steps = 10
        micro_batch_size = 2
        gradient_accumulation_steps = 1
        learning_rate = 2e-3
        lr_scheduler = "constant"
        warmup_steps = 0
        weight_decay = 0.0
        max_grad_norm = 0.0
        "#,
        adapter = base.join("adapter"),
        rows = dense("tokens.jsonl"),
    );
    let file = RecipeFile::parse("test.toml", recipe.as_bytes(), &[]);
    let environment = Environment { hub_cache: Path::new("no-such-cache"), stop: &|| false, save: &|| false };
    run::fine_tune(file, &environment, Options::default(), &mut Silent)
        .unwrap_or_else(|error| panic!("{base:?}: {error:?}"));
    let text = std::fs::read_to_string(output_dir.join("metrics.jsonl")).unwrap();
    let line = |line: &str| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64();
    text.lines().filter_map(line).collect()
}

#[test]
fn losses_follow_peft_dense_and_in_four_bits() {
    for name in families() {
        let base = dense(&name);
        let expected: Value =
            serde_json::from_slice(&std::fs::read(base.join("losses.json")).unwrap()).unwrap();
        let nf4 = "quantization.nf4 = { block_size = 64, double_quant = true }";
        for (kind, quantization) in [("dense", ""), ("nf4", nf4)] {
            let folder = tempfile::tempdir().unwrap();
            let ours = losses(&base, quantization, &folder.path().join("run"));
            let theirs = expected[kind].as_array().unwrap();
            assert_eq!((ours.len(), theirs.len()), (10, 10));
            let pairs = ours.iter().zip(theirs).map(|(ours, theirs)| (ours - theirs.as_f64().unwrap()).abs());
            let worst = pairs.fold(0.0, f64::max);
            println!("{name}, {kind}: losses within {worst:.1e}");
            assert!(worst <= 1e-4, "{name}, {kind}: a loss differs by {worst:e}");
        }
    }
}
