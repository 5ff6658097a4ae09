//! Files read back as the weights of their model: without rounding they compute what their folder computes, and with it the
//! loss says what that cost.

use std::fs;
use std::path::Path;

use tune::data::spec::Format;
use tune::export::gguf::FileType;
use tune::export::merge::Options;
use tune::files::Existing;
use tune::recipe::DeviceSpec;
use tune::run::evaluate::dataset;
use tune::run::fidelity::{Fidelity, HeldOut};
use tune::run::gguf::Source;
use tune::run::inference::ModelChoice;

use super::support::{choice, environment, golden, golden_json, source, staged};

/// Rows of ids that all the small models have.
fn rows(folder: &Path) -> String {
    let row = |row: usize| {
        let ids: Vec<usize> = (0..24).map(|at| (row * 31 + at * 7 + 3) % 60).collect();
        serde_json::json!({"input_ids": ids}).to_string() + "\n"
    };
    let path = folder.join("rows.jsonl");
    fs::write(&path, (0..3).map(row).collect::<String>()).unwrap();
    path.to_str().unwrap().to_owned()
}

fn measured(source: &Path, base: Option<&Path>, file: FileType, out: &Path, rows: &str) -> Fidelity {
    let (data, environment) = (dataset(rows, Format::Tokens, &[]), environment());
    let named = base.unwrap_or(source).to_str();
    let adapter = base.is_some().then_some(source);
    let rows = HeldOut::of_dataset(
        data,
        ModelChoice { base: named, adapter, ..ModelChoice::default() },
        &environment,
    );
    let opened =
        Source::open(source, base.map(choice).unwrap_or_default(), Options::default(), &environment).unwrap();
    opened.export(file, out, Existing::Replace, &mut |_| {}, &environment).unwrap();
    opened.measure(file, out, &rows.unwrap(), DeviceSpec::Auto, &mut |_, _| {}, &environment).unwrap()
}

#[test]
fn a_file_without_rounding_computes_what_its_folder_computes() {
    let out = tempfile::tempdir().unwrap();
    let rows = rows(out.path());
    let mut compared = 0;
    for (name, _) in golden_json("files.json") {
        if name.contains(' ') {
            continue;
        }
        let into = out.path().join(name.replace('/', "-"));
        fs::create_dir(&into).unwrap();
        let folder = staged(&source(&name), &into);
        let found = measured(&folder, None, FileType::F32, &into.join("gguf"), &rows);
        assert_eq!((found.rows, found.trained), (3, None), "{name}");
        assert!(found.base > 1.0 && found.written == found.base, "{name}: {found:?}");
        compared += 1;
    }
    assert!(compared >= 18, "{compared}");
}

#[test]
fn what_rounding_costs_an_adapter_is_measured() {
    let out = tempfile::tempdir().unwrap();
    let rows = rows(out.path());
    let base = staged(&golden("peft/base"), out.path());
    let of = |file| measured(&golden("peft/all_linear"), Some(&base), file, &out.path().join("gguf"), &rows);
    let (exact, rounded) = (of(FileType::F32), of(FileType::Q4_0));
    let trained = exact.trained.unwrap();
    assert!((trained - exact.base).abs() > 1e-3, "the adapter does something: {exact:?}");
    // Merging adds in another order.
    assert!((exact.written - trained).abs() < 1e-4 * trained, "{exact:?}");
    assert_eq!(rounded.trained, exact.trained);
    assert!((rounded.written - trained).abs() > 10.0 * (exact.written - trained).abs(), "{rounded:?}");
}
