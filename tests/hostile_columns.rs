//! Columnar files that say a value once and mean it thousands of times: such a value stays shared, or the file is refused
//! for the memory that it would take; files in which it repeats for good reason are read.
//!
//! One test alone, since memory is measured for the whole process.

#![expect(clippy::unwrap_used, reason = "a helper outside the test functions may fail the test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::types::Int32Type;
use arrow_array::{
    Array, ArrayRef, DictionaryArray, FixedSizeListArray, Int32Array, Int64Array, ListArray, NullArray,
    RecordBatch, StringArray, StructArray,
};
use arrow_buffer::OffsetBuffer;
use arrow_ipc::writer::FileWriter;
use arrow_schema::{DataType, Field};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{WriterProperties, WriterVersion};
use peak_alloc::PeakAlloc;
use tune::data::example::Example;
use tune::data::source::Dataset;
use tune::data::spec::{DatasetSpec, Format};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Memory that a file may take whatever its length, and that its reader takes beside that.
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

/// The file with a footer that claims that its long texts have no bytes, all together.
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
    Dataset::open(&DatasetSpec::new(path.to_str().unwrap(), format)).map_err(|error| error.to_string())
}

/// A file, its first row, and the memory that reading it took at most.
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

/// The file is refused for the memory that it would take, which it never does take.
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
fn a_value_that_stands_once_is_shared_or_the_file_is_refused() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path();

    // From row to row, in a dictionary: shared, whatever the file says of its length.
    let flat = batch(&[("prompt", repeated(TIMES, 4)), ("completion", repeated(TIMES, LONG))]);
    let turns = batch(&[("messages", conversations(&[1; TIMES], repeated(TIMES, LONG), None))]);
    let v2 = Written { version: WriterVersion::PARQUET_2_0, ..PLAINLY };
    let as_dictionary = Written { as_texts: false, ..PLAINLY };
    for (how, written) in [("1", PLAINLY), ("2", v2), ("dictionary", as_dictionary)] {
        for (name, batch, format) in
            [("flat", &flat, Format::PromptCompletion), ("turns", &turns, Format::Messages)]
        {
            let bytes = parquet(batch, written);
            for (what, bytes) in [("lying", lying(&bytes)), ("true", bytes)] {
                let read = read(folder, &format!("{name}-{how}-{what}.parquet"), bytes, format);
                assert!(read.said.is_ok(), "{name}-{how}-{what}: {:?}", read.said);
                assert!(read.peak < BESIDE, "{name}-{how}-{what}: {} bytes in memory", read.peak);
            }
        }
    }
    // Values that share their beginnings are copied: few rows at a time where the file says how long they are. Where it
    // lies, it is refused.
    let beginnings = parquet(&flat, Written { encoding: Some(Encoding::DELTA_BYTE_ARRAY), ..v2 });
    let liar = lying(&beginnings);
    let honest = read(folder, "beginnings.parquet", beginnings, Format::PromptCompletion);
    assert!(honest.said.is_ok() && honest.peak < ANY_BLOCK + BESIDE, "{:?}, {}", honest.said, honest.peak);
    let parts = ["rows 0 to ", "fewer rows in a row group"];
    refused(folder, "beginnings-lying.parquet", liar, Format::PromptCompletion, &parts);
    // Values that take no space at all, in one row.
    let ids = batch(&[("input_ids", list(&[4_000_000], Arc::new(Int64Array::from(vec![7; 4_000_000]))))]);
    let read_ids = read(folder, "ids.parquet", parquet(&ids, PLAINLY), Format::Tokens);
    let error = read_ids.said.unwrap_err();
    assert!(error.contains("claims 4000000 values in column `input_ids.list.item`"), "{error}");
    assert!(read_ids.peak < BESIDE);

    // Within one row, where every message has a copy of its own.
    let row = "the row takes more than ";
    let one = batch(&[("messages", conversations(&[TIMES], repeated(TIMES, LONG), None))]);
    refused(
        folder,
        "one.parquet",
        parquet(&one, PLAINLY),
        Format::Messages,
        &[row, "/messages/", "/content"],
    );
    refused(folder, "one.arrow", ipc(&one), Format::Messages, &[row, "[0]: /messages/", "/content"]);
    let item = Arc::new(Field::new("item", DataType::Null, true));
    let nothing: ArrayRef = Arc::new(
        FixedSizeListArray::try_new_with_length(item, 1 << 28, Arc::new(NullArray::new(1 << 28)), None, 1)
            .unwrap(),
    );
    let hello: ArrayRef = Arc::new(StringArray::from(vec!["Hello."]));
    let nothing = batch(&[("messages", conversations(&[1], hello, Some(nothing)))]);
    refused(folder, "nothing.arrow", ipc(&nothing), Format::Messages, &[row, "/messages/0"]);

    // A system prompt in every row, as pyarrow writes it, which does not say how long texts are: 300 MiB of them.
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/parquet/system_prompt.parquet");
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let dataset = open(&path, Format::Messages).unwrap();
    assert_eq!(dataset.rows(), 20_000);
    for row in (0..20_000).step_by(499) {
        let Ok(Example::Conversation(conversation)) = dataset.example(row) else { panic!("row {row}") };
        let messages = conversation.messages;
        assert!(messages[0].content.starts_with("You are a careful assistant. You"));
        assert_eq!(messages[0].content.len(), 16_384);
        assert_eq!(messages[2].content, (row * row).to_string());
    }
    let peak = MEMORY.peak_usage().saturating_sub(before);
    println!("system_prompt.parquet: {} units, {} KiB in memory", dataset.units().len() - 1, peak >> 10);
    assert!(peak < ANY_BLOCK, "{peak} bytes in memory");
}
