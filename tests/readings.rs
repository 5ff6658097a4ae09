//! How often a run makes the host wait for its device: once for each optimizer step, whatever it accumulates, and once for
//! each micro-batch of an evaluation. One test runs anything, for the count is of the whole process; the other reads the
//! sources for what is not counted.
#![expect(clippy::unwrap_used, reason = "helpers of tests stop where they fail")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use tune::recipe::RecipeFile;
use tune::run::{Environment, Options, fine_tune};
use tune::train::event::{Event, Observer};
use tune_kernels::device::readings;

use source_code::{code, sources};

#[path = "support/source_code.rs"]
mod source_code;

struct Silent;

impl Observer for Silent {
    fn observe(&mut self, _: &Event<'_>) {}
}

#[test]
fn a_step_is_read_once() {
    let folder = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/trajectory");
    let train = |name: &str, data: &str, runs_ahead: bool| {
        let recipe = format!(
            r#"
            version = 1
            output_dir = {out:?}
            model = {{ base = {base:?}, compute_dtype = "f32" }}
            quantization.nf4 = {{}}
            adapter.lora = {{ rank = 4, dropout = 0.1 }}
            data = {{ max_seq_len = 64 {data} }}
            dataset = [{{ path = {rows:?}, format = "tokens" }}]
            [train]
            max_steps = 6
            learning_rate = 1e-3
            micro_batch_size = 2
            gradient_accumulation_steps = 3
            logging_steps = 4
            eval_steps = 3
            "#,
            out = folder.path().join(name),
            base = golden.join("base"),
            rows = golden.join("tokens.jsonl"),
        );
        let file = RecipeFile::parse("test.toml", recipe.as_bytes(), &[]);
        let environment =
            Environment { hub_cache: Path::new("no-such-cache"), stop: &|| false, save: &|| false };
        let options = Options { runs_ahead, ..Options::default() };
        let before = readings();
        let outcome = fine_tune(file, &environment, options, &mut Silent).unwrap();
        assert_eq!(outcome.steps, 6);
        let adapter = folder.path().join(name).join("adapter/adapter_model.safetensors");
        (readings() - before, fs::read(adapter).unwrap())
    };
    let (known, adapter) = train("known", "", false);
    assert_eq!(known, 6);
    let (ahead, same) = train("ahead", "", true);
    assert_eq!(ahead, 6);
    assert!(adapter == same);
    let evaluates = ", val_split = 0.375";
    let (known, adapter) = train("known-evaluated", evaluates, false);
    let (ahead, same) = train("ahead-evaluated", evaluates, true);
    // Before the first step, behind the third and the last.
    assert!(ahead == known && ahead > 6 && (ahead - 6).is_multiple_of(3), "{ahead} and {known}");
    assert!(adapter == same);
}

/// Whatever brings numbers from a device or waits for it stands in these places, and no step of training passes them but
/// for `read_later`.
#[test]
fn nothing_else_waits_for_a_device() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["src/train", "src/model", "src/objective", "src/adapter", "kernels/src"];
    let mut found = BTreeMap::new();
    for path in folders.into_iter().flat_map(|folder| sources(&root.join(folder))) {
        let text = fs::read_to_string(&path).unwrap();
        let code: String = code(&text).into_iter().map(|(_, line)| line).collect();
        let waits = ["into_data(", ".to_data(", "into_scalar(", "::sync(", "client.sync(", "block_on("];
        let count: usize = waits.iter().map(|wait| code.matches(wait).count()).sum();
        let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        if count > 0 && !name.ends_with("/tests.rs") {
            found.insert(name, count);
        }
    }
    let expected = [
        // A checkpoint, or the adapter at the end.
        ("src/train/state.rs", 1),
        ("src/adapter/lora.rs", 1),
        // `read_later`, of which each step has one; on a GPU its second half, when the numbers are wanted.
        ("kernels/src/device.rs", 1),
        ("kernels/src/cube/read.rs", 1),
        // A mark behind launched work, which the thread that fetches layers waits for.
        ("kernels/src/cube/device.rs", 1),
        // The thread that places weights, before it fills a buffer of its own.
        ("kernels/src/gpu/pinned.rs", 2),
        // Once for each shape of a run: which of two ways is faster here.
        ("kernels/src/linear/choice.rs", 2),
        // Before a run, or in none: what there is, how fast it is, whether it is right.
        ("kernels/src/gpu/start.rs", 1),
        ("kernels/src/gpu/wgpu.rs", 1),
        ("kernels/src/ceiling.rs", 2),
        ("kernels/src/check/measure.rs", 1),
    ];
    let expected: BTreeMap<_, _> = expected.map(|(name, count)| (name.to_owned(), count)).into();
    assert_eq!(found, expected);
}
