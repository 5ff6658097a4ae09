//! Files cut short, damaged, or made of anything: errors are fine, panics are not.

use std::path::Path;

use proptest::prelude::*;
use tune::data::spec::Format;

use super::files::every_kind;
use super::open;

/// Opens what may be anything, and reads some rows of it: errors are fine, panics are not. Whether all was well.
fn survive(path: &Path, bytes: &[u8], format: Format) -> bool {
    std::fs::write(path, bytes).unwrap();
    let Ok(dataset) = open(path, format) else { return false };
    let rows = dataset.rows();
    let _ = dataset.units();
    let mut whole = true;
    for row in (0..rows.min(40)).chain(rows.saturating_sub(5)..rows) {
        whole &= dataset.example(row).is_ok();
        let _ = dataset.place(row).to_string();
    }
    whole
}

#[test]
fn truncated_at_every_length() {
    let folder = tempfile::tempdir().unwrap();
    // One of the five Parquet codecs: what differs between them lies inside the pages.
    let kinds =
        every_kind(3).into_iter().filter(|(name, _)| !name.ends_with(".parquet") || *name == "zstd.parquet");
    for (name, bytes) in kinds {
        let path = folder.path().join(name);
        assert!(survive(&path, &bytes, Format::PromptCompletion), "{name}");
        let binary = !name.contains("json") && !name.contains("csv");
        for len in 0..bytes.len() {
            let whole = survive(&path, &bytes[..len], Format::PromptCompletion);
            // A text may end after any row, and a stream before its end marker. Nothing else is whole.
            let end_marker = name == "stream.arrow" || name == "zstd.arrow";
            let may_be_whole = !binary || end_marker && len >= bytes.len() - 8;
            assert!(!whole || may_be_whole, "{name} cut at {len} of {} seems whole", bytes.len());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Bytes overwritten anywhere: one byte, or the words that lengths and offsets are made of.
    #[test]
    fn damaged_anywhere(
        kind in 0_usize..15,
        damages in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![
            any::<u8>().prop_map(|byte| vec![byte]),
            any::<u32>().prop_map(|word| word.to_le_bytes().to_vec()),
            prop::sample::select(vec![i64::MAX, -1, i64::MIN, 1 << 40, 1 << 31])
                .prop_map(|word| word.to_le_bytes().to_vec()),
        ]), 1..4),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let (name, mut bytes) = every_kind(5).swap_remove(kind);
        for (at, damage) in damages {
            let at = at.index(bytes.len());
            let end = (at + damage.len()).min(bytes.len());
            bytes[at..end].copy_from_slice(&damage[..end - at]);
        }
        survive(&folder.path().join(name), &bytes, Format::PromptCompletion);
    }

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200), arrow: bool) {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.arrow", "a.parquet", "a.jsonl", "a.json", "a.csv"] {
            let magic: &[u8] = if arrow { b"ARROW1\0\0" } else { b"PAR1" };
            let framed = [magic, &bytes, magic].concat();
            survive(&folder.path().join(name), &bytes, Format::Text);
            survive(&folder.path().join(name), &framed, Format::Text);
        }
    }
}

#[test]
fn a_file_that_changes_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in every_kind(1000) {
        let path = folder.path().join(name);
        std::fs::write(&path, &bytes).unwrap();
        let dataset = open(&path, Format::PromptCompletion).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let said = dataset.example(999).unwrap_err().to_string();
        assert!(said.contains("has changed since it was opened"), "{name}: {said}");
    }
}
