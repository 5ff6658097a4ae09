//! Ten LoRA steps from an adapter of PEFT's, on the dense base and on its NF4 form, through the public recipe.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tune::recipe::RecipeFile;
use tune::run::{self, Environment, Options};
use tune::train::event::{Event, Observer};

use crate::{dense, families};

pub(crate) struct Silent;

impl Observer for Silent {
    fn observe(&mut self, _: &Event<'_>) {}
}

pub(crate) fn environment() -> Environment<'static> {
    Environment { hub_cache: Path::new("no-such-cache"), stop: &|| false, save: &|| false }
}

pub(crate) fn fine_tune(recipe: &[u8], options: Options) {
    let file = RecipeFile::parse("test.toml", recipe, &[]);
    run::fine_tune(file, &environment(), options, &mut Silent).unwrap_or_else(|error| panic!("{error:?}"));
}

/// Where a trajectory starts, and what is special about it.
pub(crate) struct Start<'a> {
    pub(crate) base: PathBuf,
    pub(crate) adapter: PathBuf,
    pub(crate) rows: PathBuf,
    /// Further keys of the adapter's table.
    pub(crate) lora: &'a str,
    /// Further keys of training.
    pub(crate) train: &'a str,
}

impl Start<'_> {
    /// The losses of a run.
    pub(crate) fn losses(&self, quantization: &str, output_dir: &Path) -> Vec<f64> {
        let Self { base, adapter, rows, lora, train } = self;
        let recipe = format!(
            r#"
            version = 1
            output_dir = {output_dir:?}
            model = {{ base = {base:?}, compute_dtype = "f32" }}
            {quantization}
            adapter.lora = {{ rank = 2, alpha = 4, {lora} init_from = {adapter:?} }}
            data = {{ max_seq_len = 64, shuffle = false, packing = false }}
            dataset = [{{ path = {rows:?}, format = "tokens" }}]
            [train]
            max_steps = 10
            micro_batch_size = 2
            gradient_accumulation_steps = 1
            learning_rate = 2e-3
            lr_scheduler = "constant"
            warmup_steps = 0
            max_grad_norm = 0.0
            {train}
            "#,
        );
        fine_tune(recipe.as_bytes(), Options::default());
        let text = std::fs::read_to_string(output_dir.join("metrics.jsonl")).unwrap();
        let line = |line: &str| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64();
        text.lines().filter_map(line).collect()
    }

    /// Compares those with the ones that PEFT has, `[kind]` of its file, to 1e-4.
    pub(crate) fn assert_losses(&self, name: &str, kind: &str, expected: &Value, output_dir: &Path) {
        let quantization = match kind {
            "nf4" => "quantization.nf4 = { block_size = 64, double_quant = true }",
            _ => "",
        };
        let (ours, theirs) = (self.losses(quantization, output_dir), expected[kind].as_array().unwrap());
        assert_eq!((ours.len(), theirs.len()), (10, 10));
        let pairs = ours.iter().zip(theirs).map(|(ours, theirs)| (ours - theirs.as_f64().unwrap()).abs());
        let worst = pairs.fold(0.0, f64::max);
        println!("{name}, {kind}: losses within {worst:.1e}");
        assert!(worst <= 1e-4, "{name}, {kind}: a loss differs by {worst:e}");
    }
}

pub(crate) fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn losses_follow_peft_dense_and_in_four_bits() {
    for name in families() {
        let base = dense(&name);
        let expected = json(&base.join("losses.json"));
        let (adapter, rows) = (base.join("adapter"), dense("tokens.jsonl"));
        let start = Start { base, adapter, rows, lora: "", train: "weight_decay = 0.0" };
        for kind in ["dense", "nf4"] {
            let folder = tempfile::tempdir().unwrap();
            start.assert_losses(&name, kind, &expected, &folder.path().join("run"));
        }
    }
}
