//! A run of an earlier release, stopped in the middle: this one goes on with it and accepts what it locked.

use std::fs;
use std::path::Path;

use super::fixture::{events, expect, files_below, named};

/// Where the committed run was stopped, and its last step.
const STOPPED: u64 = 33;
const STEPS: u64 = 100;

#[test]
fn a_run_of_an_earlier_release_is_resumed_and_reproduced() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let folder = tempfile::tempdir().unwrap();
    let begun = golden.join("earlier_run");
    let base = golden.join("trajectory/base");
    for (from, to) in [(&begun, folder.path().to_owned()), (&base, folder.path().join("base"))] {
        for path in files_below(from).into_iter().filter(|path| path.is_file()) {
            let copy = to.join(path.strip_prefix(from).unwrap());
            fs::create_dir_all(copy.parent().unwrap()).unwrap();
            fs::copy(path, copy).unwrap();
        }
    }
    fs::copy(golden.join("trajectory/tokens.jsonl"), folder.path().join("rows.jsonl")).unwrap();

    let resumed = events(&expect(0, folder.path(), &["run", "recipe.toml", "--resume", "--json"]));
    assert_eq!(named(&resumed, "result")[0]["steps"], STEPS);
    let run = fs::read_to_string(folder.path().join("run/run.json")).unwrap();
    let run: serde_json::Value = serde_json::from_str(&run).unwrap();
    assert_eq!(run["sessions"][1]["from_step"], STOPPED);
    let metrics = fs::read_to_string(folder.path().join("run/metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().count() as u64, STEPS);

    // Its first steps were made on a machine with AVX2: elsewhere the last bits may differ (exit 1), but recipe, base
    // and data are those that it locked.
    let again = super::fixture::tune(folder.path(), &["reproduce", "run", "--json"]);
    assert!(matches!(again.status.code(), Some(0 | 1)), "{again:?}");
    assert!(named(&events(&again), "result")[0]["found_sha256"].is_string());
}
