//! What the tests here share: running a recipe in-process, reading what it wrote, reading goldens.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tune::recipe::RecipeFile;
use tune::run::{self, Environment, Options, Outcome};
use tune::train::event::{Event, Observer};

/// The folder of the goldens.
pub(crate) fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

/// Watches nothing.
struct Silent;

impl Observer for Silent {
    fn observe(&mut self, _: &Event<'_>) {}
}

/// Runs a recipe.
pub(crate) fn try_run(recipe: &str) -> Result<Outcome, run::Error> {
    let file = RecipeFile::parse("test.toml", recipe.as_bytes(), &[]);
    let environment = Environment { hub_cache: Path::new("no-such-cache"), stop: &|| false, save: &|| false };
    run::fine_tune(file, &environment, Options::default(), &mut Silent)
}

/// Runs a recipe that must succeed.
pub(crate) fn run(recipe: &str) -> Outcome {
    try_run(recipe).unwrap_or_else(|error| panic!("{error:?}"))
}

/// The lines of a run's metrics.
pub(crate) fn metrics(output_dir: &Path) -> Vec<Value> {
    let text = fs::read_to_string(output_dir.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The values of one key over all metrics lines that have it.
pub(crate) fn series(output_dir: &Path, key: &str) -> Vec<f64> {
    metrics(output_dir).iter().filter_map(|line| line.get(key)?.as_f64()).collect()
}

/// The F32 tensors of a safetensors file by name.
pub(crate) fn tensors(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    parsed
        .iter()
        .filter(|(_, view)| view.dtype() == safetensors::Dtype::F32)
        .map(|(name, view)| {
            let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            (name.to_owned(), values.collect())
        })
        .collect()
}

/// ‖a − b‖ / ‖b‖.
pub(crate) fn relative_difference(ours: &[f32], theirs: &[f32]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = square(&mut ours.iter().zip(theirs).map(|(a, b)| f64::from(a - b)));
    difference / square(&mut theirs.iter().map(|&b| f64::from(b))).max(f64::MIN_POSITIVE)
}

/// The one number of a loss.
pub(crate) fn number<B: tune_kernels::KernelBackend>(loss: burn_tensor::Tensor<B, 1>) -> f64 {
    let numbers = B::read_later(loss).wait().unwrap();
    assert_eq!(numbers.len(), 1);
    f64::from(numbers[0])
}
