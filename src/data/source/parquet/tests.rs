//! What is written is read, whatever the type and the encoding of a text; and what a dictionary holds is held once.

use std::path::Path;

use arrow_array::types::Int32Type;
use arrow_array::{
    ArrayRef, DictionaryArray, FixedSizeListArray, Int32Array, Int64Array, LargeStringArray, ListArray,
    MapArray, RecordBatch, StringArray, StringViewArray, StructArray,
};
use arrow_buffer::OffsetBuffer;
use arrow_schema::Field;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{WriterProperties, WriterVersion};

use super::*;
use crate::data::source::value::Value;
use crate::data::source::value::tests::json;

fn open(path: &Path) -> ParquetFile {
    let mut file = ParquetFile::open(Location::new(path.into()).unwrap()).unwrap();
    let columns = (0..file.schema().fields().len()).collect();
    file.project(columns).unwrap();
    file
}

fn field(name: &str, values: &ArrayRef) -> FieldRef {
    Arc::new(Field::new(name, values.data_type().clone(), true))
}

fn text(number: usize) -> Option<String> {
    match number % 7 {
        0 => None,
        1 => Some(String::new()),
        2 | 3 => Some("the same ".repeat(9)),
        _ => Some(format!("{}{number}", "beginning ".repeat(number % 5))),
    }
}

/// Texts of every type and in every kind of list, some of them absent.
fn table(rows: usize) -> RecordBatch {
    let flat: ArrayRef = Arc::new((0..rows).map(text).collect::<StringArray>());
    let large: ArrayRef = Arc::new((0..rows).map(|row| text(row / 3)).collect::<LargeStringArray>());
    let view: ArrayRef = Arc::new((0..rows).map(text).collect::<StringViewArray>());
    let dictionary: ArrayRef = Arc::new(
        (0..rows)
            .map(|row| ["one", "a text beyond twelve bytes"].get(row % 3).copied())
            .collect::<DictionaryArray<Int32Type>>(),
    );
    let lengths: Vec<usize> = (0..rows).map(|row| row * 5 % 4).collect();
    let total = lengths.iter().sum();
    let offsets = OffsetBuffer::from_lengths(lengths);
    let texts: ArrayRef = Arc::new((0..total).map(text).collect::<StringArray>());
    let parts: ArrayRef = Arc::new(StructArray::from(vec![(field("text", &texts), texts)]));
    let parts: ArrayRef = Arc::new(ListArray::new(field("item", &parts), offsets.clone(), parts, None));
    let pairs: ArrayRef = Arc::new((0..2 * rows).map(text).collect::<StringArray>());
    let fixed: ArrayRef = Arc::new(FixedSizeListArray::new(field("item", &pairs), 2, pairs, None));
    let keys: ArrayRef = Arc::new((0..total).map(|at| Some(format!("key {at}"))).collect::<StringArray>());
    let values: ArrayRef = Arc::new((0..total).map(text).collect::<LargeStringArray>());
    let key = Arc::new(Field::new("key", keys.data_type().clone(), false));
    let entries = StructArray::from(vec![(key, keys), (field("value", &values), values)]);
    let entry = Arc::new(Field::new("entries", entries.data_type().clone(), false));
    let map: ArrayRef = Arc::new(MapArray::new(entry, offsets, entries, None, false));
    let numbers: ArrayRef =
        Arc::new((0..rows as i64).map(|row| (row % 5 != 2).then_some(row)).collect::<Int64Array>());
    RecordBatch::try_from_iter([
        ("flat", flat),
        ("large", large),
        ("view", view),
        ("dictionary", dictionary),
        ("parts", parts),
        ("fixed", fixed),
        ("map", map),
        ("numbers", numbers),
    ])
    .unwrap()
}

#[test]
fn texts_of_every_type_and_encoding_are_read_as_written() {
    const ROWS: usize = 700;
    let written = table(ROWS);
    let encodings = [
        None,
        Some(Encoding::PLAIN),
        Some(Encoding::DELTA_LENGTH_BYTE_ARRAY),
        Some(Encoding::DELTA_BYTE_ARRAY),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
        for encoding in encodings {
            let mut properties = WriterProperties::builder()
                .set_writer_version(version)
                .set_compression(Compression::ZSTD(ZstdLevel::default()))
                .set_data_page_row_count_limit(97)
                .set_write_batch_size(50)
                .set_max_row_group_row_count(Some(400))
                .set_dictionary_enabled(encoding.is_none());
            if let Some(encoding) = encoding {
                properties = properties.set_column_encoding("flat".into(), encoding);
                properties = properties.set_column_encoding("parts.list.item.text".into(), encoding);
            }
            let mut writer =
                ArrowWriter::try_new(Vec::new(), written.schema(), Some(properties.build())).unwrap();
            writer.write(&written).unwrap();
            std::fs::write(&path, writer.into_inner().unwrap()).unwrap();
            let file = open(&path);
            let mut row = 0;
            for start in file.units() {
                let (batches, bytes) = file.load(file.block_of(*start)).unwrap();
                assert!(bytes > 0);
                for batch in batches {
                    for (column, expected) in batch.columns().iter().zip(written.columns()) {
                        assert!(
                            !format!("{}", column.data_type()).contains("Utf8,"),
                            "{}",
                            column.data_type()
                        );
                        for at in 0..batch.len() {
                            let read = json(Value::from_arrow(column, at));
                            let expected = json(Value::from_arrow(expected, row + at));
                            assert_eq!(read, expected, "{version:?} {encoding:?} row {}", row + at);
                        }
                    }
                    row += batch.len();
                }
            }
            assert_eq!(row, ROWS);
        }
    }
}

#[test]
fn a_value_of_a_dictionary_is_held_once() {
    const ROWS: usize = 4096;
    let long = "x".repeat(64 << 10);
    let keys = Int32Array::from(vec![0; ROWS]);
    let values = Arc::new(StringArray::from(vec![long.as_str()]));
    let column: ArrayRef = Arc::new(DictionaryArray::<Int32Type>::try_new(keys, values).unwrap());
    let batch = RecordBatch::try_from_iter([("text", column)]).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    std::fs::write(&path, writer.into_inner().unwrap()).unwrap();
    let file = open(&path);
    let (batches, bytes) = file.load(file.block_of(0)).unwrap();
    assert!(
        batches.iter().map(StructArray::len).sum::<usize>() >= BATCH_ROWS * 2,
        "several batches share it"
    );
    assert!(bytes < 2 * long.len(), "{bytes} bytes");
}
