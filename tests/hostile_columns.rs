//! Columnar files that say a value once and mean it thousands of times: never more memory than the file justifies, whether
//! the value repeats from row to row or within one; and files in which it repeats for good reason are read.
//!
//! One test alone, since memory is measured for the whole process.

#![expect(clippy::unwrap_used, reason = "a helper outside the test functions may fail the test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, DictionaryArray, FixedSizeListArray, Int32Array, Int64Array, ListArray, NullArray,
    RecordBatch, StringArray, StructArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Int32Type};
use arrow::ipc::writer::FileWriter;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{WriterProperties, WriterVersion};
use peak_alloc::PeakAlloc;
use tune::data::example::Example;
use tune::data::source::Dataset;
use tune::data::spec::{DatasetSpec, Format, Split};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// What a file may take in memory whatever its length, and what its reader takes beside that.
const ANY_BLOCK: usize = 64 << 20;
const BESIDE: usize = 8 << 20;

/// A value of so many bytes, so many times: four times what a file of some kilobytes may take.
const LONG: usize = 64 << 10;
const TIMES: usize = 4096;

/// The long value, over and over, standing once.
fn repeated(times: usize, long: usize) -> ArrayRef {
    let long = "x".repeat(long);
    let values = StringArray::from(vec!["user", long.as_str()]);
    let keys = Int32Array::from(vec![1; times]);
    Arc::new(DictionaryArray::<Int32Type>::try_new(keys, Arc::new(values)).unwrap())
}

/// Conversations of so many messages each, whose contents are given.
fn conversations(lengths: &[usize], contents: ArrayRef, extra: Option<ArrayRef>) -> ArrayRef {
    let roles: ArrayRef = Arc::new(StringArray::from(vec!["user"; contents.len()]));
    let columns =
        [("role", roles), ("content", contents)].into_iter().chain(extra.map(|extra| ("extra", extra)));
    let columns =
        columns.map(|(name, column)| (Arc::new(Field::new(name, column.data_type().clone(), true)), column));
    let messages: ArrayRef = Arc::new(StructArray::from(columns.collect::<Vec<_>>()));
    list(lengths, messages)
}

fn list(lengths: &[usize], values: ArrayRef) -> ArrayRef {
    let item = Arc::new(Field::new("item", values.data_type().clone(), true));
    let offsets = OffsetBuffer::from_lengths(lengths.iter().copied());
    Arc::new(ListArray::new(item, offsets, values, None))
}

fn batch(columns: &[(&str, ArrayRef)]) -> RecordBatch {
    RecordBatch::try_from_iter(columns.iter().cloned()).unwrap()
}

/// How a Parquet file is written.
#[derive(Clone, Copy)]
struct Written {
    version: WriterVersion,
    encoding: Option<Encoding>,
    as_texts: bool,
}

const PLAINLY: Written = Written { version: WriterVersion::PARQUET_1_0, encoding: None, as_texts: true };

fn parquet(batch: &RecordBatch, written: Written) -> Vec<u8> {
    let mut properties = WriterProperties::builder()
        .set_writer_version(written.version)
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_data_page_row_count_limit(usize::MAX)
        .set_dictionary_enabled(written.encoding.is_none());
    if let Some(encoding) = written.encoding {
        properties = properties.set_encoding(encoding);
    }
    let options = ArrowWriterOptions::new()
        .with_properties(properties.build())
        .with_skip_arrow_metadata(written.as_texts);
    let mut writer = ArrowWriter::try_new_with_options(Vec::new(), batch.schema(), options).unwrap();
    writer.write(batch).unwrap();
    writer.into_inner().unwrap()
}

/// The file, which says of its long texts that they have no length, all together.
fn lying(bytes: &[u8]) -> Vec<u8> {
    // Their length, doubled, in groups of seven bits.
    assert_eq!(TIMES * LONG, 1 << 28);
    let (truth, lie) = ([0x80, 0x80, 0x80, 0x80, 2], [0x80, 0x80, 0x80, 0x80, 0]);
    let places: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(&truth)).collect();
    assert!(!places.is_empty(), "their length stands nowhere");
    let mut changed = bytes.to_vec();
    places.iter().for_each(|at| changed[*at..*at + 5].copy_from_slice(&lie));
    changed
}

fn ipc(batch: &RecordBatch) -> Vec<u8> {
    let mut writer = FileWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    writer.write(batch).unwrap();
    writer.into_inner().unwrap()
}

fn open(path: &Path, format: Format) -> Result<Dataset, String> {
    let (path, fields) = (path.to_str().unwrap().to_owned(), BTreeMap::new());
    Dataset::open(&DatasetSpec { path, format, weight: 1.0, split: Split::Train, train_on: None, fields })
        .map_err(|error| error.to_string())
}

/// A file, what reading its first row comes to, and the memory that it took at most.
struct Read {
    path: PathBuf,
    said: Result<Example, String>,
    peak: usize,
}

fn read(folder: &Path, name: &str, bytes: Vec<u8>, format: Format) -> Read {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let said = open(&path, format).and_then(|rows| rows.example(0).map_err(|error| error.to_string()));
    let peak = MEMORY.peak_usage().saturating_sub(before);
    Read { path, said, peak }
}

/// The file is refused for what it would take, before it takes that.
#[track_caller]
fn refused(folder: &Path, name: &str, bytes: Vec<u8>, format: Format, parts: &[&str]) {
    let len = bytes.len();
    assert!(len < 200 << 10, "{name}: {len} bytes");
    let read = read(folder, name, bytes, format);
    let error = read.said.unwrap_err();
    let file = read.path.display().to_string();
    for part in [&[file.as_str(), "in memory"], parts].concat() {
        assert!(error.contains(part), "{name}: {error:?} does not say {part:?}");
    }
    assert!(read.peak < ANY_BLOCK + 64 * len + BESIDE, "{name}: {} bytes in memory", read.peak);
}

#[test]
fn what_stands_once_and_is_meant_a_thousand_times_takes_no_more_memory_than_its_file_justifies() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path();

    // From row to row, in Parquet: flat and in lists, pages of both versions, all ways in which a text repeats. Where the file
    // says how long all texts are, few rows are decoded at a time; where it lies, none.
    let flat = batch(&[("prompt", repeated(TIMES, 4)), ("completion", repeated(TIMES, LONG))]);
    let turns = batch(&[("messages", conversations(&[1; TIMES], repeated(TIMES, LONG), None))]);
    let one = batch(&[("messages", conversations(&[TIMES], repeated(TIMES, LONG), None))]);
    let v2 = Written { version: WriterVersion::PARQUET_2_0, ..PLAINLY };
    let shared = Written { encoding: Some(Encoding::DELTA_BYTE_ARRAY), ..v2 };
    let as_dictionary = Written { as_texts: false, ..PLAINLY };
    for (how, written) in [("1", PLAINLY), ("2", v2), ("shared", shared), ("dictionary", as_dictionary)] {
        let cases = [
            (format!("flat-{how}"), &flat, Format::PromptCompletion, "column `completion` says"),
            (format!("turns-{how}"), &turns, Format::Messages, ".content` says"),
        ];
        for (name, batch, format, column) in cases {
            let bytes = parquet(batch, written);
            let liar = lying(&bytes);
            let good = read(folder, &format!("{name}.parquet"), bytes, format);
            assert!(good.said.is_ok(), "{name}: {:?}", good.said);
            assert!(good.peak < ANY_BLOCK + BESIDE, "{name}: {} bytes in memory", good.peak);
            let parts = ["rows 0 to 4095 take more than 64", column];
            refused(folder, &format!("{name}-lying.parquet"), liar, format, &parts);
        }
        let parts = ["rows 0 to 0 take more than 64", ".content` says"];
        refused(folder, &format!("one-{how}.parquet"), parquet(&one, written), Format::Messages, &parts);
    }
    // Values that take no space at all, in one row.
    let ids = batch(&[("input_ids", list(&[4_000_000], Arc::new(Int64Array::from(vec![7; 4_000_000]))))]);
    let read_ids = read(folder, "ids.parquet", parquet(&ids, PLAINLY), Format::Tokens);
    let error = read_ids.said.unwrap_err();
    assert!(error.contains("`input_ids.list.item` has 4000000 values"), "{error}");
    assert!(read_ids.peak < BESIDE);

    // Within one row, in Arrow, where the value stands once even in memory.
    let row = "the row takes more than ";
    refused(folder, "one.arrow", ipc(&one), Format::Messages, &[row, "[0]: /messages/", "/content"]);
    let parts = {
        let kind: ArrayRef = Arc::new(StringArray::from(vec!["text"; TIMES]));
        let columns = [("type", kind), ("text", repeated(TIMES, LONG))]
            .map(|(name, column)| (Arc::new(Field::new(name, column.data_type().clone(), true)), column));
        list(&[TIMES], Arc::new(StructArray::from(columns.to_vec())))
    };
    let parts = batch(&[("messages", conversations(&[1], parts, None))]);
    refused(folder, "parts.arrow", ipc(&parts), Format::Messages, &[row, "/messages/0/content/"]);
    let item = Arc::new(Field::new("item", DataType::Null, true));
    let nothing: ArrayRef = Arc::new(
        FixedSizeListArray::try_new_with_length(item, 1 << 28, Arc::new(NullArray::new(1 << 28)), None, 1)
            .unwrap(),
    );
    let hello: ArrayRef = Arc::new(StringArray::from(vec!["Hello."]));
    let nothing = batch(&[("messages", conversations(&[1], hello, Some(nothing)))]);
    refused(folder, "nothing.arrow", ipc(&nothing), Format::Messages, &[row, "/messages/0"]);

    // A system prompt in every row, as honest files have it.
    let rows = 20_000;
    let prompt = "x".repeat(16 << 10);
    let contents: Vec<String> =
        (0..rows).map(|row| format!("What is {row} squared? {}", row * row)).collect();
    let texts: Vec<&str> = [prompt.as_str()].into_iter().chain(contents.iter().map(String::as_str)).collect();
    let keys = (0..rows as i32).flat_map(|row| [0, row + 1]).collect::<Vec<_>>();
    let contents =
        DictionaryArray::<Int32Type>::try_new(Int32Array::from(keys), Arc::new(StringArray::from(texts)))
            .unwrap();
    let honest = batch(&[("messages", conversations(&vec![2; rows], Arc::new(contents), None))]);
    for (name, written) in [("honest-1.parquet", PLAINLY), ("honest-2.parquet", v2)] {
        let path = folder.join(name);
        fs::write(&path, parquet(&honest, written)).unwrap();
        let dataset = open(&path, Format::Messages).unwrap();
        for row in [0, 1, 8191, 8192, 19_999_u64] {
            let Ok(Example::Messages(messages)) = dataset.example(row) else { panic!("{name}: row {row}") };
            assert_eq!(messages[0].content, prompt);
            assert_eq!(messages[1].content, format!("What is {row} squared? {}", row * row));
        }
    }
    // The same as pyarrow writes it, which says nothing of how long texts are: more than 300 MiB of them.
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/parquet/system_prompt.parquet");
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let dataset = open(&path, Format::Messages).unwrap();
    assert_eq!(dataset.rows(), 20_000);
    for row in (0..20_000).step_by(499) {
        let Ok(Example::Messages(messages)) = dataset.example(row) else { panic!("row {row}") };
        assert!(messages[0].content.starts_with("You are a careful assistant. You"));
        assert_eq!(messages[0].content.len(), 16_384);
        assert_eq!(messages[2].content, (row * row).to_string());
    }
    let peak = MEMORY.peak_usage().saturating_sub(before);
    println!("system_prompt.parquet: {} units, {} KiB in memory", dataset.units().len() - 1, peak >> 10);
    // What is kept of units read before, and one being read.
    assert!(peak < 2 * ANY_BLOCK, "{peak} bytes in memory");
}
