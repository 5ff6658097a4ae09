//! Datasets as a stranger's files hold them: every kind of file gives the same rows, any row can be asked for
//! from any thread, and files that are wrong say so.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod files;
mod hostile;
mod oddities;

use std::path::Path;
use std::sync::Arc;

use arrow_array::types::Int32Type;
use arrow_array::{
    Array, ArrayRef, DictionaryArray, Int8Array, Int16Array, Int32Array, Int64Array, ListArray, RecordBatch,
    StringArray, StringViewArray, StructArray, UInt8Array, UInt16Array, UInt32Array, UInt64Array,
};
use arrow_buffer::OffsetBuffer;
use arrow_ipc::CompressionType;
use arrow_schema::{DataType, Field};
use files::{batches, csv, every_kind, ipc, json_lines, pairs, parquet, parquet_with, table};
use parquet::basic::Compression;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use rayon::prelude::*;
use serde_json::json;
use tune::data::example::{Example, Message, RowId};
use tune::data::order::{EpochPlan, HeldOut, Permutation, Source};
use tune::data::source::{BadRows, Dataset, Error, Place, Position, RowError};
use tune::data::spec::{DatasetSpec, Format};

fn spec(path: &Path, format: Format) -> DatasetSpec {
    DatasetSpec::new(path.to_string_lossy(), format)
}

fn open(path: &Path, format: Format) -> Result<Dataset, Error> {
    Dataset::open(&spec(path, format))
}

fn examples(dataset: &Dataset) -> Vec<Example> {
    (0..dataset.rows()).map(|row| dataset.example(row).unwrap()).collect()
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
        Example::Conversation(
            vec![
                message("user", "Hi", json!({"name": "Ann"})),
                message("assistant", "Hello, this one is longer than twelve bytes", json!({})),
            ]
            .into(),
        ),
        Example::Conversation(
            vec![message("user", "?", json!({})), message("assistant", "!", json!({}))].into(),
        ),
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
    let ids_of_every_width: [ArrayRef; 8] = [
        Arc::new(Int8Array::from(vec![1, 2, 3])),
        Arc::new(Int16Array::from(vec![1, 2, 3])),
        Arc::new(Int32Array::from(vec![1, 2, 3])),
        Arc::new(Int64Array::from(vec![1, 2, 3])),
        Arc::new(UInt8Array::from(vec![1, 2, 3])),
        Arc::new(UInt16Array::from(vec![1, 2, 3])),
        Arc::new(UInt32Array::from(vec![1, 2, 3])),
        Arc::new(UInt64Array::from(vec![1, 2, 3])),
    ];
    for ids in ids_of_every_width {
        let kind = ids.data_type().clone();
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
    assert!(said("a.json", b"{\n\"text\": [1").contains("line 1: an object begins here and never ends"));
    let columns = "no column `text`; it has `prompt`, `id`, `completion`";
    assert!(said("a.arrow", &ipc(&[table(0..3)], true, None)).contains(columns));
    assert!(said("a.jsonl", b"{\"txt\": 1}").contains("did you mean `fields = { text = \"txt\" }`?"));
    std::fs::write(folder.path().join("a.arrow"), ipc(&[table(0..3)], false, None)).unwrap();
    let fields = [("text".to_owned(), "id".to_owned())].into();
    let error = Dataset::open(&DatasetSpec { fields, ..spec(&folder.path().join("a.arrow"), Format::Text) });
    assert!(error.unwrap_err().to_string().contains("column `id`: expected strings, found Int64"));
}
