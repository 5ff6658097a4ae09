//! Adapters on the experts of a mixture: PEFT's trajectory, in which an expert that no token of a step reached is not
//! stepped; the same bytes after a resume; gradients that no micro-batch split changes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tune::assets::SafetensorsFile;
use tune::recipe::RecipeFile;
use tune::run::{self, Environment, Options};

use crate::trajectory::Silent;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mixture_experts").join(name)
}

/// A run from PEFT's adapter, over all experts or by the names that mean them.
fn train(output_dir: &Path, quantization: &str, targets: &str, more: &str) -> Vec<f64> {
    let recipe = format!(
        r#"
        version = 1
        output_dir = {output_dir:?}
        model = {{ base = {base:?}, compute_dtype = "f32" }}
        {quantization}
        adapter.lora = {{ rank = 2, alpha = 4, {targets}, init_from = {adapter:?} }}
        data = {{ max_seq_len = 64, shuffle = false, packing = false }}
        dataset = [{{ path = {rows:?}, format = "tokens" }}]
        [train]
        max_steps = 10
        micro_batch_size = 2
        learning_rate = 2e-3
        lr_scheduler = "constant"
        warmup_steps = 0
        weight_decay = 0.1
        max_grad_norm = 0.0
        save_steps = 5
        {more}
        "#,
        base = golden("base"),
        adapter = golden("adapter"),
        rows = golden("tokens.jsonl"),
    );
    let file = RecipeFile::parse("test.toml", recipe.as_bytes(), &[]);
    let environment = Environment { hub_cache: Path::new("no-such-cache"), stop: &|| false, save: &|| false };
    run::fine_tune(file, &environment, Options::default(), &mut Silent)
        .unwrap_or_else(|error| panic!("{error:?}"));
    let text = std::fs::read_to_string(output_dir.join("metrics.jsonl")).unwrap();
    let line = |line: &str| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64();
    text.lines().filter_map(line).collect()
}

fn tensors(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let file = SafetensorsFile::open(path).unwrap();
    file.names().map(|name| (name.to_owned(), file.read_floats(name).unwrap())).collect()
}

#[test]
fn experts_follow_peft_and_rest_while_no_token_reaches_them() {
    let expected: Value = serde_json::from_slice(&std::fs::read(golden("losses.json")).unwrap()).unwrap();
    for (kind, quantization) in [("dense", ""), ("nf4", "quantization.nf4 = { block_size = 64 }")] {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let ours = train(&run, quantization, "experts = true", "");
        let theirs = expected[kind].as_array().unwrap();
        assert_eq!((ours.len(), theirs.len()), (10, 10));
        let pairs = ours.iter().zip(theirs).map(|(ours, theirs)| (ours - theirs.as_f64().unwrap()).abs());
        let worst = pairs.fold(0.0, f64::max);
        println!("{kind}: losses within {worst:.1e}");
        assert!(worst <= 1e-4, "{kind}: a loss differs by {worst:e}");
        if kind == "nf4" {
            continue;
        }
        let (ours, theirs) = (
            tensors(&run.join("adapter/adapter_model.safetensors")),
            tensors(&golden("final_adapter.safetensors")),
        );
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
        for (name, ours) in &ours {
            let pairs = ours.iter().zip(&theirs[name]).map(|(ours, theirs)| (ours - theirs).abs());
            let worst = pairs.fold(0.0, f32::max);
            assert!(worst <= 2e-4, "{name} differs by {worst:e}");
        }
    }
}

/// transformers' loss over experts, through routers that stay as they are.
#[test]
fn the_loss_that_spreads_tokens_over_experts_is_that_of_transformers() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/expert_balance.json");
    let expected: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let key = format!("router_aux_loss_coef = {}", expected["coefficient"]);
    let ours = train(&folder.path().join("run"), "", "experts = true", &key);
    let theirs = expected["losses"].as_array().unwrap();
    let pairs = ours.iter().zip(theirs).map(|(ours, theirs)| (ours - theirs.as_f64().unwrap()).abs());
    let worst = pairs.fold(0.0, f64::max);
    println!("losses within {worst:.1e}");
    assert!(worst <= 1e-4, "a loss differs by {worst:e}");
}

/// Names mean experts too; a run that stopped half way goes on to the same bytes.
#[test]
fn names_mean_experts_and_a_resumed_run_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let names =
        r#"target_modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]"#;
    let (whole, named) = (folder.path().join("whole"), folder.path().join("named"));
    train(&whole, "", "experts = true", "");
    train(&named, "", names, "");
    let adapter = |run: &Path| tensors(&run.join("adapter/adapter_model.safetensors"));
    let found = adapter(&whole);
    assert!(found == adapter(&named));
    // What follows the checkpoint after step 5 is done again.
    std::fs::remove_dir_all(whole.join("checkpoints/step-10")).unwrap();
    std::fs::remove_dir_all(whole.join("adapter")).unwrap();
    resume(&whole);
    assert!(found == adapter(&whole));
}

fn resume(run: &Path) {
    let recipe = std::fs::read(run.join("recipe.toml")).unwrap();
    let file = RecipeFile::parse("recipe.toml", &recipe, &[]);
    let environment = Environment { hub_cache: Path::new("no-such-cache"), stop: &|| false, save: &|| false };
    let options = Options { resume: true, ..Options::default() };
    run::fine_tune(file, &environment, options, &mut Silent).unwrap_or_else(|error| panic!("{error:?}"));
}
