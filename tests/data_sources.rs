//! Datasets as a stranger's files hold them: every kind of file gives the same rows, any row can be asked for
//! from any thread, and files that are wrong say so.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, DictionaryArray, Int64Array, LargeStringArray, ListArray, RecordBatch, StringArray,
    StringViewArray, StructArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Int32Type};
use arrow::ipc::CompressionType;
use arrow::ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
use parquet::arrow::ArrowWriter;
use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use proptest::prelude::*;
use rayon::prelude::*;
use serde_json::json;
use tune::data::example::{Example, Message, RowId};
use tune::data::order::{EpochPlan, HeldOut, Permutation, Source};
use tune::data::source::{BadRows, Dataset, Error, Place, Position, RowError};
use tune::data::spec::{DatasetSpec, Format, Split};

fn spec(path: &Path, format: Format) -> DatasetSpec {
    let path = path.to_string_lossy().into_owned();
    DatasetSpec { path, format, weight: 1.0, split: Split::Train, train_on: None, fields: BTreeMap::new() }
}

fn open(path: &Path, format: Format) -> Result<Dataset, Error> {
    Dataset::open(&spec(path, format))
}

fn examples(dataset: &Dataset) -> Vec<Example> {
    (0..dataset.rows()).map(|row| dataset.example(row).unwrap()).collect()
}

fn prompt(row: u64) -> String {
    format!("What is \"{row}\",\nsquared? {}", "ü".repeat((row * 31 % 300) as usize))
}

fn pairs(rows: u64) -> Vec<Example> {
    let pair = |row| Example::PromptCompletion { prompt: prompt(row), completion: (row * row).to_string() };
    (0..rows).map(pair).collect()
}

/// Prompts and completions, and a column that nobody reads.
fn table(rows: std::ops::Range<u64>) -> RecordBatch {
    let prompts: ArrayRef = Arc::new(rows.clone().map(|row| Some(prompt(row))).collect::<StringArray>());
    let completions: ArrayRef =
        Arc::new(rows.clone().map(|row| Some((row * row).to_string())).collect::<LargeStringArray>());
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(rows.map(|row| row as i64)));
    RecordBatch::try_from_iter([("prompt", prompts), ("id", ids), ("completion", completions)]).unwrap()
}

fn batches(rows: u64, size: usize) -> Vec<RecordBatch> {
    (0..rows).step_by(size).map(|start| table(start..(start + size as u64).min(rows))).collect()
}

fn ipc(batches: &[RecordBatch], stream: bool, compression: Option<CompressionType>) -> Vec<u8> {
    let options = IpcWriteOptions::default().try_with_compression(compression).unwrap();
    let schema = batches[0].schema();
    if stream {
        let mut writer = StreamWriter::try_new_with_options(Vec::new(), &schema, options).unwrap();
        batches.iter().for_each(|batch| writer.write(batch).unwrap());
        writer.into_inner().unwrap()
    } else {
        let mut writer = FileWriter::try_new_with_options(Vec::new(), &schema, options).unwrap();
        batches.iter().for_each(|batch| writer.write(batch).unwrap());
        writer.into_inner().unwrap()
    }
}

fn parquet_with(batches: &[RecordBatch], properties: WriterProperties) -> Vec<u8> {
    let mut writer = ArrowWriter::try_new(Vec::new(), batches[0].schema(), Some(properties)).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.into_inner().unwrap()
}

fn parquet(batches: &[RecordBatch], compression: Compression, group: usize) -> Vec<u8> {
    let properties = WriterProperties::builder()
        .set_compression(compression)
        .set_max_row_group_row_count(Some(group))
        .build();
    parquet_with(batches, properties)
}

fn json_rows(rows: u64) -> Vec<serde_json::Value> {
    let row = |row: u64| json!({"id": row, "prompt": prompt(row), "completion": (row * row).to_string()});
    (0..rows).map(row).collect()
}

fn json_lines(rows: u64) -> Vec<u8> {
    json_rows(rows).iter().flat_map(|row| format!("{row}\r\n").into_bytes()).collect()
}

fn csv(rows: u64) -> Vec<u8> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(["prompt", "completion"]).unwrap();
    for row in 0..rows {
        writer.write_record([prompt(row), (row * row).to_string()]).unwrap();
    }
    writer.into_inner().unwrap()
}

/// The same rows as every kind of file, by file name.
fn every_kind(rows: u64) -> Vec<(&'static str, Vec<u8>)> {
    let batches = batches(rows, 300);
    let lz4 = Some(CompressionType::LZ4_FRAME);
    let zstd = Some(CompressionType::ZSTD);
    vec![
        ("file.arrow", ipc(&batches, false, None)),
        ("stream.arrow", ipc(&batches, true, None)),
        ("lz4.arrow", ipc(&batches, false, lz4)),
        ("zstd.arrow", ipc(&batches, true, zstd)),
        ("plain.parquet", parquet(&batches, Compression::UNCOMPRESSED, 1 << 20)),
        ("snappy.parquet", parquet(&batches, Compression::SNAPPY, 700)),
        ("zstd.parquet", parquet(&batches, Compression::ZSTD(ZstdLevel::default()), 250)),
        ("gzip.parquet", parquet(&batches, Compression::GZIP(GzipLevel::default()), 250)),
        ("brotli.parquet", parquet(&batches, Compression::BROTLI(BrotliLevel::default()), 250)),
        ("lz4.parquet", parquet(&batches, Compression::LZ4_RAW, 250)),
        ("rows.jsonl", json_lines(rows)),
        ("pretty.json", serde_json::to_vec_pretty(&json_rows(rows)).unwrap()),
        ("compact.json", serde_json::to_vec(&json_rows(rows)).unwrap()),
        ("lines.json", json_lines(rows)),
        ("rows.csv", csv(rows)),
    ]
}

#[test]
fn every_kind_of_file_gives_the_same_rows() {
    let folder = tempfile::tempdir().unwrap();
    let expected = pairs(1000);
    for (name, bytes) in every_kind(1000) {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let dataset = open(&path, Format::PromptCompletion).unwrap();
        assert_eq!(dataset.rows(), 1000, "{name}");
        assert!(examples(&dataset) == expected, "{name}");
        // From many threads, in no order.
        let order = Permutation::new(1000, 7);
        (0..1000_u64).into_par_iter().for_each(|position| {
            let row = order.at(position);
            assert_eq!(dataset.example(row).unwrap(), expected[row as usize], "{name} {row}");
        });
        let units = dataset.units();
        assert_eq!((units[0], units[units.len() - 1]), (0, 1000), "{name}");
        assert!(units.is_sorted_by(|a, b| a < b), "{name} {units:?}");
        assert!(dataset.example(1000).unwrap_err().to_string().contains("no such row: there are 1000"));
    }
}

#[test]
fn a_glob_is_one_sequence_of_rows() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("b.jsonl", &json_lines(5));
    write("c.parquet", &parquet(&batches(900, 900), Compression::SNAPPY, 300));
    write("a.csv", &csv(7));
    write("notes.txt", b"not data");
    let pattern = folder.path().join("[abc].*");
    let dataset = open(&pattern, Format::PromptCompletion).unwrap();
    let names: Vec<_> = dataset.files().iter().map(|file| file.file_name().unwrap().to_owned()).collect();
    assert_eq!(names, ["a.csv", "b.jsonl", "c.parquet"]);
    assert!(examples(&dataset) == [pairs(7), pairs(5), pairs(900)].concat());
    assert_eq!(*dataset.units(), [0, 7, 12, 312, 612, 912]);
    let place = |row: u64| {
        let place = dataset.place(row).to_string();
        place.rsplit_once(['/', '\\']).unwrap().1.to_owned()
    };
    // A prompt has a line break, so the third CSV record begins on line 6.
    assert_eq!(place(2), "a.csv:6");
    assert_eq!(place(8), "b.jsonl:2");
    assert_eq!(place(12 + 333), "c.parquet[333]");

    // Every row comes once in a shuffled epoch over such a mixture.
    let source = Source {
        dataset: 0,
        units: dataset.units(),
        weight: 1.0,
        held_out: Arc::new(HeldOut::nothing(dataset.rows())),
    };
    let plan = EpochPlan::new(&[source], 1, 0, true).unwrap();
    let mut rows: Vec<u64> = (0..plan.len()).map(|position| plan.at(position).unwrap().row).collect();
    assert!(!rows.is_sorted());
    rows.sort_unstable();
    assert!(rows.into_iter().eq(0..912));

    // The hash covers names' order and bytes, not the folder.
    let hash = dataset.sha256().unwrap();
    assert_eq!(hash.len(), 64);
    assert_eq!(hash, open(&pattern, Format::PromptCompletion).unwrap().sha256().unwrap());
    write("b.jsonl", &json_lines(6));
    assert_ne!(hash, open(&pattern, Format::PromptCompletion).unwrap().sha256().unwrap());
}

#[test]
fn a_large_row_group_is_read_in_units() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let rows = 150_000_u64;
    let texts: ArrayRef = Arc::new((0..rows).map(|row| Some(format!("text {row}"))).collect::<StringArray>());
    let batch = RecordBatch::try_from_iter([("text", texts)]).unwrap();
    for (statistics, disabled) in [(EnabledStatistics::Page, false), (EnabledStatistics::None, true)] {
        let properties = WriterProperties::builder()
            .set_statistics_enabled(statistics)
            .set_offset_index_disabled(disabled)
            .build();
        std::fs::write(&path, parquet_with(std::slice::from_ref(&batch), properties)).unwrap();
        let dataset = open(&path, Format::Text).unwrap();
        assert_eq!(*dataset.units(), [0, 50_000, 100_000, 150_000]);
        for row in [149_999, 0, 50_000, 99_999, 100_000, 49_999] {
            assert_eq!(dataset.example(row).unwrap(), Example::Text(format!("text {row}")));
        }
    }
}

fn item(kind: &DataType) -> Arc<Field> {
    Arc::new(Field::new("item", kind.clone(), true))
}

#[test]
fn messages_of_every_binary_kind() {
    let folder = tempfile::tempdir().unwrap();
    let roles: DictionaryArray<Int32Type> = ["user", "assistant", "user", "assistant"].into_iter().collect();
    let contents: StringViewArray =
        ["Hi", "Hello, this one is longer than twelve bytes", "?", "!"].into_iter().map(Some).collect();
    let names: StringArray = [Some("Ann"), None, None, None].into_iter().collect();
    let turns = StructArray::from(vec![
        (Arc::new(Field::new("role", roles.data_type().clone(), false)), Arc::new(roles) as ArrayRef),
        (Arc::new(Field::new("content", DataType::Utf8View, true)), Arc::new(contents) as ArrayRef),
        (Arc::new(Field::new("name", DataType::Utf8, true)), Arc::new(names) as ArrayRef),
    ]);
    let offsets = OffsetBuffer::from_lengths([2, 2]);
    let lists = ListArray::new(item(turns.data_type()), offsets, Arc::new(turns), None);
    let batches = [RecordBatch::try_from_iter([("messages", Arc::new(lists) as ArrayRef)]).unwrap()];
    let message = |role: &str, content: &str, extra: serde_json::Value| Message {
        role: role.to_owned(),
        content: content.to_owned(),
        extra: extra.as_object().unwrap().clone(),
    };
    let expected = [
        Example::Messages(vec![
            message("user", "Hi", json!({"name": "Ann"})),
            message("assistant", "Hello, this one is longer than twelve bytes", json!({})),
        ]),
        Example::Messages(vec![message("user", "?", json!({})), message("assistant", "!", json!({}))]),
    ];
    for (name, bytes) in [
        ("m.arrow", ipc(&batches, false, None)),
        ("z.arrow", ipc(&batches, true, Some(CompressionType::ZSTD))),
        ("m.parquet", parquet(&batches, Compression::SNAPPY, 1)),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(examples(&open(&path, Format::Messages).unwrap()), expected, "{name}");
    }
}

#[test]
fn tokens_of_every_width() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = [
        Example::Tokens { input_ids: vec![1, 2, 3], labels: Some(vec![-100, 2, 3]) },
        Example::Tokens { input_ids: vec![], labels: None },
    ];
    let list = |values: ArrayRef, valid: [bool; 2]| -> ArrayRef {
        let offsets = OffsetBuffer::from_lengths([3, 0]);
        Arc::new(ListArray::new(item(values.data_type()), offsets, values, Some(valid.to_vec().into())))
    };
    use DataType::{Int8, Int16, Int32, Int64, UInt8, UInt16, UInt32, UInt64};
    for kind in [Int8, Int16, Int32, Int64, UInt8, UInt16, UInt32, UInt64] {
        let ids = arrow::compute::cast(&Int64Array::from(vec![1, 2, 3]), &kind).unwrap();
        let labels: ArrayRef = Arc::new(Int64Array::from(vec![-100, 2, 3]));
        let batch = RecordBatch::try_from_iter_with_nullable([
            ("input_ids", list(ids, [true, true]), true),
            ("labels", list(labels, [true, false]), true),
        ])
        .unwrap();
        for (name, bytes) in [
            ("t.arrow", ipc(std::slice::from_ref(&batch), false, None)),
            ("t.parquet", parquet(std::slice::from_ref(&batch), Compression::SNAPPY, 9)),
        ] {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(examples(&open(&path, Format::Tokens).unwrap()), tokens, "{kind} {name}");
        }
    }
    let path = folder.path().join("t.csv");
    std::fs::write(&path, "input_ids,labels\n\"[1,2,3]\",\"[-100,2,3]\"\n[],\n").unwrap();
    assert_eq!(examples(&open(&path, Format::Tokens).unwrap()), tokens);
}

#[test]
fn bad_rows_say_where_and_what() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    let deep = "[".repeat(100_000);
    let text =
        format!("{{\"text\": \"fine\"}}\n\n{{\"text\": null}}\n{{\"text\": \"a\n[1]\n{{\"text\": {deep}\n");
    std::fs::write(&path, text).unwrap();
    let dataset = open(&path, Format::Text).unwrap();
    let said: Vec<String> = (0..dataset.rows())
        .map(|row| match dataset.example(row) {
            Ok(_) => "fine".to_owned(),
            Err(error) => error.to_string().replace(&*path.to_string_lossy(), "a.jsonl"),
        })
        .collect();
    assert_eq!(said[0], "fine");
    assert_eq!(said[1], "a.jsonl:3: /text: expected a string, found null");
    assert!(said[2].starts_with("a.jsonl:4: not valid JSON at line 4, column "), "{}", said[2]);
    assert_eq!(said[3], "a.jsonl:5: expected an object, found an array");
    assert!(said[4].contains("recursion limit exceeded"), "{}", said[4]);
}

#[test]
fn bad_rows_are_counted_and_the_first_are_kept_in_order() {
    let error = |row: u64| RowError {
        place: Place { file: Path::new("a.parquet").into(), position: Position::Row(row) },
        field: "/text".into(),
        problem: "expected a string, found null".into(),
    };
    let (mut one, mut other) = (BadRows::default(), BadRows::default());
    for row in (0..60).rev() {
        let part = if row % 2 == 0 { &mut one } else { &mut other };
        if row % 3 == 0 { part.good() } else { part.bad(RowId { dataset: 0, row }, error(row)) }
    }
    one.merge(other);
    assert_eq!((one.count(), one.seen(), one.is_empty()), (40, 60, false));
    let rows: Vec<u64> = one.first().map(|(id, _)| id.row).collect();
    assert_eq!(rows, (0..30).filter(|row| row % 3 != 0).collect::<Vec<_>>());
    let said = one.to_string();
    assert!(said.starts_with("40 of 60 rows cannot be used\n  a.parquet[1]: /text: expected"), "{said}");
    assert!(said.ends_with("and 20 more"), "{said}");
}

#[test]
fn datasets_that_cannot_be_opened() {
    let folder = tempfile::tempdir().unwrap();
    let said = |name: &str, bytes: &[u8]| {
        std::fs::write(folder.path().join(name), bytes).unwrap();
        open(&folder.path().join(name), Format::Text).unwrap_err().to_string()
    };
    for name in ["a.jsonl", "a.csv", "a.json", "a.arrow", "a.parquet"] {
        assert!(said(name, b"").contains("holds no rows"), "{name}");
    }
    assert!(said("a.jsonl", b"\n \n").contains("holds no rows"));
    assert!(said("a.json", b"[]").contains("holds no rows"));
    assert!(said("a.csv", b"text\n").contains("holds no rows"));
    assert!(said("a.arrow", &ipc(&[table(0..0)], false, None)).contains("holds no rows"));
    assert!(said("a.parquet", &parquet(&[table(0..0)], Compression::SNAPPY, 9)).contains("holds no rows"));
    assert!(said("a.arrow", b"{\"text\": 1}").contains("neither an Arrow file"));
    assert!(said("a.parquet", &json_lines(9)).contains("corrupt Parquet data"));
    assert!(said("a.json", b"{\n\"text\": 1}").contains("expected an array of objects"));
    let columns = "no column `text`; it has `prompt`, `id`, `completion`";
    assert!(said("a.arrow", &ipc(&[table(0..3)], true, None)).contains(columns));
    assert!(said("a.jsonl", b"{\"txt\": 1}").contains("did you mean `fields = { text = \"txt\" }`?"));
    std::fs::write(folder.path().join("a.arrow"), ipc(&[table(0..3)], false, None)).unwrap();
    let fields = [("text".to_owned(), "id".to_owned())].into();
    let error = Dataset::open(&DatasetSpec { fields, ..spec(&folder.path().join("a.arrow"), Format::Text) });
    assert!(error.unwrap_err().to_string().contains("column `id`: expected strings, found Int64"));
}

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
    for (name, bytes) in every_kind(3) {
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
