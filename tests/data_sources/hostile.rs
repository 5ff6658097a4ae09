//! Files cut short, damaged, or made of anything: errors are fine, panics are not.

use std::path::Path;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray};
use arrow_ipc::CompressionType;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use proptest::prelude::*;
use tune::data::spec::Format;

use super::files::{every_kind, ipc, parquet_with};
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

/// Rows of which the first has a long answer, which compression makes short.
fn repetitive(rows: usize, long: usize) -> RecordBatch {
    let texts = |first: String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values((0..rows).map(|row| if row == 0 { &first } else { "same" })))
    };
    let columns = [("prompt", texts("same".into())), ("completion", texts("a".repeat(long)))];
    RecordBatch::try_from_iter(columns).unwrap()
}

/// What opening and reading the first row says.
fn said(path: &Path, bytes: &[u8]) -> String {
    std::fs::write(path, bytes).unwrap();
    match open(path, Format::PromptCompletion) {
        Err(error) => error.to_string(),
        Ok(dataset) => dataset.example(0).err().map_or(String::new(), |error| error.to_string()),
    }
}

/// Writes eight bytes in the place of eight others, wherever those stand.
fn replaced(bytes: &[u8], from: u64, to: u64) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    let places: Vec<usize> = bytes
        .windows(8)
        .enumerate()
        .filter(|(_, word)| *word == from.to_le_bytes())
        .map(|(at, _)| at)
        .collect();
    assert!(!places.is_empty(), "{from} stands nowhere");
    for at in places {
        changed[at..at + 8].copy_from_slice(&to.to_le_bytes());
    }
    changed
}

/// Memory is taken for every row before it is read, and time.
#[test]
fn more_rows_than_a_file_can_have_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let arrow = folder.path().join("a.arrow");
    for stream in [false, true] {
        let good = ipc(&[repetitive(977, 3)], stream, None);
        assert_eq!(said(&arrow, &good), "");
        for rows in [1 << 40, i64::MAX as u64] {
            let error = said(&arrow, &replaced(&good, 977, rows));
            assert!(error.contains("its header claims") && error.contains(&rows.to_string()), "{error}");
        }
    }
    // A value that is always the same takes no space in Parquet: so many rows a byte are no data.
    let properties = WriterProperties::builder()
        .set_data_page_row_count_limit(usize::MAX)
        .set_statistics_enabled(EnabledStatistics::None)
        .build();
    let bytes = parquet_with(&[repetitive(4_000_000, 3)], properties);
    let error = said(&folder.path().join("a.parquet"), &bytes);
    assert!(error.contains("claims 4000000 rows"), "{} bytes: {error}", bytes.len());
}

/// Memory for what a file says that it becomes is taken before it is unpacked.
#[test]
fn more_memory_than_a_file_justifies_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let long = 1_500_000;
    let arrow = folder.path().join("a.arrow");
    for compression in [CompressionType::ZSTD, CompressionType::LZ4_FRAME] {
        let good = ipc(&[repetitive(3, long)], false, Some(compression));
        assert_eq!(said(&arrow, &good), "");
        // The texts of the answers: the long one, and two of four bytes.
        let error = said(&arrow, &replaced(&good, long as u64 + 8, 1 << 29));
        assert!(error.contains("a record batch of 512") && error.contains("may take in memory"), "{error}");
    }
    let parquet = folder.path().join("a.parquet");
    let answers = repetitive(3, long).project(&[1, 0]).unwrap();
    for index in [EnabledStatistics::None, EnabledStatistics::Page] {
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_statistics_enabled(index)
            .build();
        let mut bytes = parquet_with(std::slice::from_ref(&answers), properties);
        assert_eq!(said(&parquet, &bytes), "");
        // Behind the magic, the head of the first page: its kind and its size in memory, both doubled, in bits of seven.
        assert_eq!((bytes[4], bytes[6]), (0x15, 0x15));
        assert!(bytes[7..10].iter().all(|byte| *byte >= 0x80) && bytes[10] < 0x80);
        bytes[7..11].copy_from_slice(&[0xfe, 0xff, 0xff, 0x7f]);
        // The decoder reserves that much, and finds out that the page is smaller before it writes there.
        let error = said(&parquet, &bytes);
        assert!(error.contains("doesn't match the expected one"), "{error}");
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
