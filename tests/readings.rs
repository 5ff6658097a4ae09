//! How often a run makes the host wait for its device: once for each optimizer step, whatever it accumulates, and once for
//! each micro-batch of an evaluation. One test, for the count is of the whole process.

use std::fs;
use std::path::Path;

use tune::recipe::RecipeFile;
use tune::run::{Environment, Options, fine_tune};
use tune::train::event::{Event, Observer};
use tune_kernels::backend::readings;

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
        let environment = Environment { hub_cache: Path::new("no-such-cache"), stop: &|| false };
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
