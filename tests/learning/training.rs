//! Properties of training that hold whatever the numbers are: accumulation, determinism, learning.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{golden, metrics, relative_difference, run, series, tensors, try_run};

/// Sixteen rows of different lengths, some of whose tokens are not supervised.
fn token_rows(folder: &Path) -> PathBuf {
    let mut text = String::new();
    for row in 0..16_u32 {
        let length = 5 + (row * 7) % 19;
        let ids: Vec<u32> = (0..length).map(|at| (row * 131 + at * 29 + at * at * 3) % 512).collect();
        let labels: Vec<i64> = ids
            .iter()
            .enumerate()
            .map(|(at, &id)| if (at as u32 + row).is_multiple_of(4) { -100 } else { id.into() })
            .collect();
        writeln!(text, "{}", serde_json::json!({"input_ids": ids, "labels": labels})).unwrap();
    }
    let path = folder.join("rows.jsonl");
    fs::write(&path, text).unwrap();
    path
}

/// A recipe on the golden base, with `settings` appended to `[train]`.
fn recipe(output_dir: &Path, data: &Path, adapter: &str, data_settings: &str, settings: &str) -> String {
    format!(
        r#"
        version = 1
        output_dir = {output_dir:?}
        model = {{ base = {base:?}, compute_dtype = "f32" }}
        quantization.nf4 = {{}}
        adapter.lora = {{ rank = 4, alpha = 8{adapter} }}
        data = {{ max_seq_len = 64{data_settings} }}
        dataset = [{{ path = {data:?}, format = "tokens" }}]
        [train]
        learning_rate = 1e-3
        lr_scheduler = "constant"
        warmup_steps = 0
        {settings}
        "#,
        base = golden("trajectory/base"),
    )
}

fn adapter_bytes(output_dir: &Path) -> Vec<u8> {
    fs::read(output_dir.join("adapter/adapter_model.safetensors")).unwrap()
}

#[test]
fn eight_micro_batches_of_one_equal_one_of_eight() {
    let folder = tempfile::tempdir().unwrap();
    let data = token_rows(folder.path());
    let [many, one] = ["many", "one"].map(|name| folder.path().join(name));
    let plain = ", packing = false, shuffle = false";
    run(&recipe(
        &many,
        &data,
        "",
        plain,
        "micro_batch_size = 1\ngradient_accumulation_steps = 8\nmax_steps = 4",
    ));
    run(&recipe(&one, &data, "", plain, "micro_batch_size = 8\nmax_steps = 4"));
    for (a, b) in series(&many, "loss").iter().zip(series(&one, "loss")) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
    let [many, one] = [many, one].map(|path| tensors(&path.join("adapter/adapter_model.safetensors")));
    for (name, values) in &many {
        let difference = relative_difference(values, &one[name]);
        assert!(difference < 1e-3, "{name}: {difference:e}");
    }
}

#[test]
fn the_same_recipe_gives_the_same_bytes_whatever_the_threads() {
    let folder = tempfile::tempdir().unwrap();
    let data = token_rows(folder.path());
    let settings = "micro_batch_size = 2\ngradient_accumulation_steps = 2\nepochs = 2";
    let mut seen: Vec<Vec<u8>> = Vec::new();
    for threads in [1, 2, 3, 2] {
        let output_dir = folder.path().join(format!("run-{}", seen.len()));
        let recipe = recipe(&output_dir, &data, ", dropout = 0.1", ", val_split = 0.2", settings);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(&recipe));
        seen.push(adapter_bytes(&output_dir));
    }
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "adapters differ");
}

#[test]
fn another_seed_gives_another_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let data = token_rows(folder.path());
    let bytes = [1, 2].map(|seed| {
        let output_dir = folder.path().join(format!("seed-{seed}"));
        run(&format!("seed = {seed}\n{}", recipe(&output_dir, &data, "", "", "max_steps = 2")));
        adapter_bytes(&output_dir)
    });
    assert_ne!(bytes[0], bytes[1]);
}

#[test]
fn one_batch_is_learned_by_heart() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("one.jsonl");
    fs::write(&data, "{\"input_ids\": [5, 17, 300, 42, 8, 99, 256, 31, 77, 401]}\n").unwrap();
    let output_dir = folder.path().join("run");
    let settings = "max_steps = 80\nmicro_batch_size = 1\nlearning_rate = 1e-2";
    let recipe = recipe(&output_dir, &data, "", ", packing = false", "max_steps = 80\nmicro_batch_size = 1");
    run(&recipe.replace("learning_rate = 1e-3", "learning_rate = 1e-2"));
    let losses = series(&output_dir, "loss");
    assert_eq!(losses.len(), 80, "{settings}");
    assert!(losses[0] > 5.0 && losses[79] < 0.01, "{} → {}", losses[0], losses[79]);
}

#[test]
fn packed_and_unpacked_losses_agree() {
    let folder = tempfile::tempdir().unwrap();
    let data = token_rows(folder.path());
    // One step over all rows: the same examples whichever way they are laid out.
    let [packed, plain] = ["packed", "plain"].map(|name| folder.path().join(name));
    run(&recipe(&packed, &data, "", ", packing = true", "micro_batch_size = 16\nepochs = 1"));
    run(&recipe(&plain, &data, "", ", packing = false", "micro_batch_size = 16\nepochs = 1"));
    let (packed, plain) = (series(&packed, "loss"), series(&plain, "loss"));
    assert_eq!((packed.len(), plain.len()), (1, 1));
    assert!((packed[0] - plain[0]).abs() < 1e-5, "{} {}", packed[0], plain[0]);
}

#[test]
fn metrics_tell_what_they_promise() {
    let folder = tempfile::tempdir().unwrap();
    let data = token_rows(folder.path());
    let output_dir = folder.path().join("run");
    let settings = "micro_batch_size = 2\nmax_steps = 7\nlogging_steps = 3\neval_steps = 2\nsave_steps = 2\nsave_total_limit = 2";
    run(&recipe(&output_dir, &data, "", ", packing = false, val_split = 0.3", settings));
    let lines = metrics(&output_dir);
    let steps: Vec<u64> =
        lines.iter().filter(|l| l.get("loss").is_some()).map(|l| l["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [3, 6, 7]);
    let evaluations: Vec<u64> =
        lines.iter().filter(|l| l.get("eval_loss").is_some()).map(|l| l["step"].as_u64().unwrap()).collect();
    assert_eq!(evaluations, [0, 2, 4, 6, 7]);
    assert!(lines.iter().all(|line| line.get("loss").is_some() != line.get("eval_loss").is_some()));
    for key in ["epoch", "grad_norm", "learning_rate", "tokens", "tokens_per_second"] {
        assert!(
            lines.iter().filter(|line| line.get("loss").is_some()).all(|line| line[key].is_number()),
            "{key}"
        );
    }
    let mut checkpoints: Vec<String> = fs::read_dir(output_dir.join("checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    checkpoints.sort();
    assert_eq!(checkpoints, ["best", "step-6", "step-7"]);
    for name in &checkpoints {
        let folder = output_dir.join("checkpoints").join(name);
        assert!(!folder.join("adapter_model.safetensors").exists());
        tune::checkpoint::read(&folder).unwrap();
    }
    let again = fs::read_to_string(output_dir.join("recipe.toml")).unwrap();
    tune::recipe::RecipeFile::parse("recipe.toml", again.as_bytes(), &[]).finish().unwrap();
}

#[test]
fn divergence_names_the_step_and_its_rows_and_keeps_what_was_good() {
    let folder = tempfile::tempdir().unwrap();
    let data = token_rows(folder.path());
    let output_dir = folder.path().join("run");
    // Weights that grow by one a step leave the range of f16 within a few steps.
    let settings = "max_steps = 50\nmicro_batch_size = 2\nmax_grad_norm = 0.0\nsave_steps = 1000";
    let recipe = recipe(&output_dir, &data, "", ", packing = false, shuffle = false", settings)
        .replace("learning_rate = 1e-3", "learning_rate = 1.0")
        .replace("compute_dtype = \"f32\"", "compute_dtype = \"f16\"");
    let error = try_run(&recipe).unwrap_err();
    let tune::run::Error::Diverged { fault, checkpoint } = &error else { panic!("{error:?}") };
    assert!(error.to_string().contains("optimizer step"), "{error}");
    assert_eq!(fault.rows.len(), 2);
    assert!(fault.rows.iter().all(|row| row.contains("rows.jsonl:")), "{fault:?}");
    let kept = checkpoint.as_ref().unwrap();
    let (tensors, _) = tune::checkpoint::read(kept).unwrap();
    assert!(tensors.iter().flat_map(|tensor| &tensor.values).all(|value| value.is_finite()));
    assert!(!output_dir.join("adapter").exists());
}
