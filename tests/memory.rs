//! Memory is what was planned: the measured peak of training within a tenth of its plan, and no later step that takes
//! memory of its own.
#![expect(clippy::unwrap_used, reason = "helpers of tests stop where they fail")]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tune::model::{FloatDtype, family, tensors};
use tune::run::Environment;
use tune::run::bench::{Options, Subject, bench};
use tune::train::event::{Event, Observer};
use tune_kernels::pool::pool_use;

#[cfg(feature = "vulkan")]
#[path = "support/vulkan.rs"]
mod vulkan;

fn measured(arguments: &[&str]) -> Value {
    let output =
        Command::new(env!("CARGO_BIN_EXE_tune")).arg("bench").args(arguments).arg("--json").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let events = String::from_utf8(output.stdout).unwrap();
    let events = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    events.into_iter().find(|event| event["event"] == "result").unwrap()
}

/// A process of its own for each, so that each has a peak of its own.
#[test]
fn the_measured_peak_is_within_a_tenth_of_the_plan() {
    let shape = ["--shape", "stories-15m", "--steps", "2", "--device", "cpu"];
    for more in [
        ["--micro-batch-size", "4", "--seq-len", "256", "--compute-dtype", "bf16"],
        ["--micro-batch-size", "4", "--seq-len", "256", "--compute-dtype", "f32"],
        ["--micro-batch-size", "2", "--seq-len", "1024", "--compute-dtype", "bf16"],
    ] {
        let arguments: Vec<&str> = shape.iter().copied().chain(more).collect();
        let report = measured(&arguments);
        let Some(peak) = report["peak_memory_bytes"].as_f64() else {
            println!("skipped: the system does not tell the peak memory of a process");
            return;
        };
        let planned = report["planned_memory_bytes"].as_f64().unwrap();
        println!("{more:?}: {peak} measured, {planned} planned");
        assert!((0.9..1.1).contains(&(peak / planned)), "{more:?}: {peak} measured, {planned} planned");
        assert!(report["loss"].as_f64().unwrap().is_finite());
    }
}

/// A model whose layers take more than four times the budget trains from disk. Beside the plan there is the code, which is
/// read into memory as it runs and counts little in larger models.
#[test]
fn layers_fetched_from_disk_take_the_memory_of_their_slots() {
    const CODE: f64 = (40 << 20) as f64;
    let folder = tempfile::tempdir().unwrap();
    let config = serde_json::json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": 36, "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 512,
        "tie_word_embeddings": true, "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    });
    let (path, packed) = (folder.path().join("config.json"), folder.path().join("packed"));
    std::fs::write(&path, config.to_string()).unwrap();
    let budget = 72 << 20;
    let run = || {
        let model =
            ["--config", path.to_str().unwrap(), "--packed", packed.to_str().unwrap(), "--device", "cpu"];
        let size = ["--micro-batch-size", "1", "--seq-len", "16", "--rank", "1", "--compute-dtype", "f32"];
        let how =
            ["--offload", "disk", "--memory-budget", &format!("{budget} B"), "--steps", "1", "--warmup", "0"];
        measured(&[&model[..], &size, &how].concat())
    };
    // The first one writes the weights.
    run();
    let report = run();
    assert!(report["loss"].as_f64().unwrap().is_finite());
    let layers = report["streaming"]["streamed_bytes"].as_f64().unwrap();
    let planned = report["planned_memory_bytes"].as_f64().unwrap();
    assert!(planned <= f64::from(budget) && layers > 4.0 * f64::from(budget), "{planned} planned, {layers}");
    let Some(peak) = report["peak_memory_bytes"].as_f64() else { return };
    println!("{peak} measured, {planned} planned, layers of {layers}");
    assert!((0.9 * planned..1.1 * planned + CODE).contains(&peak), "{peak} measured, {planned} planned");
}

/// A folder with a model of a family, its weights small numbers, and rows of tokens; the recipe that trains it.
fn model_of(config: Value, folder: &Path) -> PathBuf {
    let spec = family::decoder_spec(&config).unwrap();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let numbers = |expected: &tensors::Expected| -> Vec<u8> {
        let count: usize = expected.shape.iter().product();
        let number = |i: u32| (i.wrapping_mul(0x9e37_79b9) >> 8) as f32 / (1 << 24) as f32 * 0.1 - 0.05;
        (0..count as u32).flat_map(|i| half::bf16::from_f32(number(i)).to_le_bytes()).collect()
    };
    let tensors: Vec<_> = tensors::expected(&spec).into_iter().map(|one| (numbers(&one), one)).collect();
    let views = tensors.iter().map(|(bytes, one)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, one.shape.clone(), bytes);
        (one.name.clone(), view.unwrap())
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
    let row =
        |row: u32| json!({ "input_ids": (0..512).map(|i| (i * 31 + row) % 1000).collect::<Vec<u32>>() });
    let rows: String = (0..8).map(|number| format!("{}\n", row(number))).collect();
    std::fs::write(folder.join("rows.jsonl"), rows).unwrap();
    let recipe = folder.join("recipe.toml");
    let text = format!(
        r#"
        version = 1
        output_dir = {out:?}
        model = {{ base = {folder:?}, compute_dtype = "bf16" }}
        quantization.nf4 = {{}}
        adapter.lora = {{ rank = 8 }}
        data = {{ max_seq_len = 512 }}
        dataset = [{{ path = {rows:?}, format = "tokens" }}]
        train = {{ max_steps = 2, learning_rate = 1e-4, micro_batch_size = 4 }}
        "#,
        out = folder.join("out"),
        rows = folder.join("rows.jsonl"),
    );
    std::fs::write(&recipe, text).unwrap();
    recipe
}

/// Of layers with norms on both sides and stacked gates, with branches side by side and no gate, with two norms and capped
/// scores, with norms behind and over all heads; of heads of two widths whose values are keys; of gates on attention, whose
/// norms have no weight; of hybrids: recurrent layers and short convolutions beside attention; of layers that read the keys
/// and values of others, with embeddings of their own; of experts.
#[test]
fn the_peak_of_every_kind_of_layer_is_within_a_tenth_of_the_plan() {
    let alternating = ["sliding_attention", "full_attention"].repeat(3);
    let by_kind = json!({ "full_attention": { "rope_type": "proportional", "rope_theta": 1e6 },
                          "sliding_attention": { "rope_type": "default", "rope_theta": 1e4 } });
    for (model_type, more) in [
        ("gemma2", json!({ "head_dim": 64, "sliding_window": 100 })),
        ("glm4", json!({ "head_dim": 64 })),
        ("gpt_neox", json!({})),
        ("phi", json!({})),
        (
            "qwen3_5_text",
            json!({ "head_dim": 64, "linear_num_key_heads": 3, "linear_num_value_heads": 6,
                    "linear_key_head_dim": 64, "linear_value_head_dim": 64 }),
        ),
        ("lfm2", json!({ "full_attn_idxs": [2, 5], "block_auto_adjust_ff_dim": false })),
        (
            "gemma4_text",
            json!({ "head_dim": 64, "global_head_dim": 64, "hidden_size_per_layer_input": 64, "sliding_window": 100,
                    "vocab_size_per_layer_input": 1000, "num_kv_shared_layers": 3, "use_double_wide_mlp": true,
                    "layer_types": alternating, "rope_parameters": by_kind }),
        ),
        (
            "gemma4_unified_text",
            json!({ "head_dim": 64, "global_head_dim": 128, "attention_k_eq_v": true, "sliding_window": 100,
                    "num_global_key_value_heads": 3, "layer_types": alternating, "rope_parameters": by_kind }),
        ),
        ("olmo2", json!({})),
        ("muse_glimmer_text", json!({ "head_dim": 64, "sliding_window": 100, "layer_types": alternating })),
        (
            "qwen2_moe",
            json!({
                "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 512,
                "shared_expert_intermediate_size": 768,
            }),
        ),
    ] {
        let mut config = json!({
            "model_type": model_type, "vocab_size": 1000, "hidden_size": 384, "intermediate_size": 1536,
            "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 6,
            "max_position_embeddings": 512,
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let folder = tempfile::tempdir().unwrap();
        let recipe = model_of(config, folder.path());
        let report = measured(&[recipe.to_str().unwrap(), "--steps", "2", "--warmup", "0"]);
        let Some(peak) = report["peak_memory_bytes"].as_f64() else {
            println!("skipped: the system does not tell the peak memory of a process");
            return;
        };
        let planned = report["planned_memory_bytes"].as_f64().unwrap();
        println!("{model_type} {more}: {peak} measured, {planned} planned");
        assert!((0.9..1.1).contains(&(peak / planned)), "{model_type} {more}: {peak} of {planned} planned");
        assert!(report["loss"].as_f64().unwrap().is_finite());
    }
}

/// Of pairs of answers, whose prompts are computed once and whose reference is computed beside them.
#[test]
fn the_measured_peak_of_pairs_is_within_a_tenth_of_the_plan() {
    let folder = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/preference");
    let config = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 1000, "hidden_size": 384,
        "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 6,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": true,
    });
    let recipe = model_of(config, folder.path());
    for file in ["tokenizer.json", "tokenizer_config.json", "pairs.jsonl"] {
        std::fs::copy(golden.join(file), folder.path().join(file)).unwrap();
    }
    let of_rows = std::fs::read_to_string(&recipe).unwrap();
    let of_pairs = of_rows
        .replace("rows.jsonl", "pairs.jsonl")
        .replace("format = \"tokens\"", "format = \"preference\"")
        .replace("quantization.nf4 = {}", "quantization.nf4 = {}\nobjective.dpo = {}");
    // All layers keep what their backward pass needs, then one runs forward again.
    let mut budget = "8GiB".to_owned();
    for recomputed in 0..2 {
        let text = of_pairs.replace("max_steps = 2", &format!("max_steps = 2, memory_budget = {budget:?}"));
        std::fs::write(&recipe, text).unwrap();
        let report = measured(&[recipe.to_str().unwrap(), "--steps", "2", "--warmup", "0"]);
        assert_eq!(report["recomputed_layers"], recomputed);
        let Some(peak) = report["peak_memory_bytes"].as_f64() else { return };
        let planned = report["planned_memory_bytes"].as_f64().unwrap();
        println!("{peak} measured, {planned} planned");
        assert!((0.9..1.1).contains(&(peak / planned)), "{peak} measured, {planned} planned");
        budget = format!("{} B", report["planned_memory_bytes"].as_u64().unwrap() - (16 << 20));
    }
}

/// The same on a GPU, of what tensors hold; and a buffer that was taken is used again: no later step takes another.
#[cfg(feature = "vulkan")]
#[test]
fn the_measured_peak_on_vulkan_is_within_a_tenth_of_the_plan() {
    let Some(_) = vulkan::devices() else { return };
    let cases = [("f32", "128"), ("f16", "256")];
    // Of the second there is time by night.
    let every = std::env::var_os("TUNE_EVERY_VARIANT").is_some();
    for (dtype, tokens) in &cases[..if every { 2 } else { 1 }] {
        let number = |report: &Value, key: &str| report[key].as_f64().unwrap();
        let after = |steps: &str| {
            let shape = ["--shape", "stories-15m", "--micro-batch-size", "1", "--seq-len", tokens];
            let how = ["--device", "vulkan", "--compute-dtype", dtype, "--steps", steps, "--warmup", "0"];
            measured(&[&shape[..], &how[..]].concat())
        };
        let report = after("1");
        let (peak, planned) = (number(&report, "device_peak_bytes"), number(&report, "planned_memory_bytes"));
        println!("{dtype}: {peak} measured, {planned} planned");
        assert!((0.9..1.1).contains(&(peak / planned)), "{dtype}: {peak} measured, {planned} planned");
        // Buffers have the sizes of their tensors, so that pools hold hardly more than tensors at the largest moment.
        let reserved = number(&report, "device_reserved_bytes");
        assert!(reserved <= 1.05 * peak, "{dtype}: {reserved} reserved, {peak} held at most");
        // Between steps: weights in allocations of their own size, adapters and optimizer.
        let terms = report["plan"].as_array().unwrap().iter();
        let stays = ["packed weights", "scales", "dense weights", "adapters", "optimizer"];
        let stays = terms.filter(|term| stays.contains(&term["name"].as_str().unwrap()));
        let stays: f64 = stays.map(|term| number(term, "bytes")).sum();
        let held = number(&report, "device_memory_bytes");
        assert!(
            (0.98..1.02).contains(&(held / stays)),
            "{dtype}: {held} held between steps, {stays} planned"
        );
        // What a step does with buffers does not depend on the dtype: more steps in the one that takes less time.
        if *dtype == "f32" {
            let longer = after("3");
            for key in ["device_peak_bytes", "device_memory_bytes", "device_reserved_bytes"] {
                assert_eq!(report[key], longer[key], "{key}");
            }
        }
    }
}

/// Micro-batches of many lengths take no more of a device than the longest alone: before each, buffers of other sizes go back.
#[cfg(feature = "vulkan")]
#[test]
fn pools_take_no_more_for_many_lengths_than_for_the_longest() {
    let Some(_) = vulkan::devices() else { return };
    let folder = tempfile::tempdir().unwrap();
    let row = |length: u32| {
        format!("{}\n", json!({ "input_ids": (0..length).map(|i| i * 31 % 400).collect::<Vec<_>>() }))
    };
    std::fs::write(folder.path().join("rows.jsonl"), [128, 125, 60, 128, 17, 101].map(row).concat()).unwrap();
    let (out, recipe) = (folder.path().join("out"), folder.path().join("recipe.toml"));
    let text = format!(
        r#"
        version = 1
        output_dir = {out:?}
        device = "vulkan"
        model = {{ base = {base:?}, compute_dtype = "f32" }}
        quantization.nf4 = {{}}
        adapter.lora = {{ rank = 8 }}
        data = {{ max_seq_len = 128, packing = false }}
        dataset = [{{ path = {rows:?}, format = "tokens" }}]
        train = {{ max_steps = 6, learning_rate = 1e-3, micro_batch_size = 1 }}
        "#,
        base = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/quickstart/base"),
        rows = folder.path().join("rows.jsonl"),
    );
    std::fs::write(&recipe, text).unwrap();
    let longest = measured(&[recipe.to_str().unwrap(), "--steps", "1", "--warmup", "0"]);
    let ran = Command::new(env!("CARGO_BIN_EXE_tune")).arg("run").arg(&recipe).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let lines = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let reserved = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let most = reserved.filter_map(|line| line["device_reserved_bytes"].as_u64()).max().unwrap();
    let alone = longest["device_reserved_bytes"].as_u64().unwrap();
    println!("{most} reserved for many lengths, {alone} for the longest");
    assert!(most as f64 <= 1.01 * alone as f64, "{most} reserved for many lengths, {alone} for the longest");
}

/// Where the budget does not hold all activations, layers are run forward again, and the peak is lower.
#[test]
fn a_smaller_budget_runs_layers_forward_again() {
    let folder = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/trajectory/base");
    let recipe = |budget: &str| {
        let path = folder.path().join("recipe.toml");
        let text = format!(
            r#"
            version = 1
            output_dir = "out"
            model = {{ base = {golden:?}, compute_dtype = "f32" }}
            quantization.nf4 = {{}}
            adapter.lora = {{ rank = 4 }}
            data = {{ max_seq_len = 4096 }}
            dataset = [{{ path = {data:?}, format = "tokens" }}]
            train = {{ max_steps = 1, learning_rate = 1e-4, micro_batch_size = 4, memory_budget = {budget:?} }}
            "#,
            data = golden.parent().unwrap().join("tokens.jsonl"),
        );
        std::fs::write(&path, text).unwrap();
        path
    };
    let run = |budget: &str| measured(&[recipe(budget).to_str().unwrap(), "--steps", "1", "--warmup", "0"]);
    let all = run("8GiB");
    assert_eq!(all["recomputed_layers"], 0);
    let planned = all["planned_memory_bytes"].as_u64().unwrap();
    // The program's own memory differs a little from process to process.
    let less = run(&format!("{} B", planned - (8 << 20)));
    assert!(less["recomputed_layers"].as_u64().unwrap() > 0, "{less}");
    assert!(less["planned_memory_bytes"].as_u64().unwrap() < planned);
    assert_eq!(less["loss"], all["loss"]);
    let output = Command::new(env!("CARGO_BIN_EXE_tune"))
        .args(["bench", recipe("1MiB").to_str().unwrap()])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{told}");
    assert!(told.contains("memory_budget") && told.contains("micro_batch_size"), "{told}");
}

/// What the pool holds after each step, in bytes.
#[derive(Default)]
struct Held(Vec<usize>);

impl Observer for Held {
    fn observe(&mut self, event: &Event<'_>) {
        if let Event::Step { .. } = event {
            self.0.push(pool_use().held);
        }
    }
}

/// Buffers of the first two steps serve the later ones. How many scratch buffers the threads want at one moment is a
/// matter of chance: a fiftieth more is allowed for those.
#[test]
fn later_steps_take_no_memory_of_their_own() {
    let subject = Subject::Shape {
        name: "stories-15m".into(),
        config: None,
        rank: 8,
        micro_batch_size: 3,
        seq_len: 100,
        compute_dtype: Some(FloatDtype::Bf16),
        device: tune::recipe::DeviceSpec::Auto,
    };
    let environment = Environment { hub_cache: Path::new("no-such-cache"), stop: &|| false, save: &|| false };
    let mut held = Held::default();
    bench(
        subject,
        Options {
            steps: 6,
            warmup: 0,
            profile: None,
            offload: None,
            resident_layers: None,
            memory_budget: None,
            packed: None,
        },
        &environment,
        &mut held,
    )
    .unwrap();
    let held = held.0;
    println!("bytes in the pool after each step: {held:?}");
    assert!(held[1] > 1 << 20 && held[5] <= held[1] + held[1] / 50, "{held:?}");
}
