//! What the rows of a file take, as it is counted before they are decoded, against what they take once they are.

use std::sync::Arc;

use arrow::array::cast::AsArray;
use arrow::array::{Array, ArrayRef, Int64Array, LargeStringArray, ListArray, StringArray, StructArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{WriterProperties, WriterVersion};

use super::*;

/// Rows of which some are absent, some empty, and some say what others said: flat texts, lists of texts, lists of integers.
fn table(rows: usize) -> RecordBatch {
    let text = |number: usize| match number % 7 {
        0 => None,
        1 => Some(String::new()),
        2 | 3 => Some("the same ".repeat(9)),
        _ => Some(format!("{}{number}", "beginning ".repeat(number % 5))),
    };
    let flat: ArrayRef = Arc::new((0..rows).map(text).collect::<StringArray>());
    let there: ArrayRef =
        Arc::new((0..rows).map(|row| Some(format!("row {}", row / 3))).collect::<LargeStringArray>());
    let lengths: Vec<usize> = (0..rows).map(|row| row * 5 % 4).collect();
    let total = lengths.iter().sum();
    let list = |values: ArrayRef| -> ArrayRef {
        let item = Arc::new(Field::new("item", values.data_type().clone(), true));
        let nulls = (0..rows).map(|row| row % 11 != 3).collect::<Vec<bool>>();
        let lengths = lengths.iter().zip(&nulls).map(|(length, there)| if *there { *length } else { 0 });
        let offsets = OffsetBuffer::from_lengths(lengths);
        Arc::new(ListArray::new(item, offsets, values, Some(nulls.into())))
    };
    let texts: ArrayRef = Arc::new((0..total).map(text).collect::<StringArray>());
    let parts =
        Arc::new(StructArray::from(vec![(Arc::new(Field::new("text", DataType::Utf8, true)), texts)]));
    let integers =
        Arc::new((0..total as i64).map(|at| (at % 5 != 2).then_some(at % 9)).collect::<Int64Array>());
    RecordBatch::try_from_iter([
        ("flat", flat),
        ("there", there),
        ("parts", list(parts)),
        ("ids", list(integers)),
    ])
    .unwrap()
}

/// Bytes of all texts in an array, and its values at the bottom, an empty or absent list counting for one.
fn contents(array: &ArrayRef) -> (u64, u64) {
    let texts = |lengths: &mut dyn Iterator<Item = Option<usize>>| lengths.flatten().sum::<usize>() as u64;
    let count = array.len() as u64;
    match array.data_type() {
        DataType::Utf8 => (texts(&mut array.as_string::<i32>().iter().map(|text| text.map(str::len))), count),
        DataType::LargeUtf8 => {
            (texts(&mut array.as_string::<i64>().iter().map(|text| text.map(str::len))), count)
        }
        DataType::Struct(_) => contents(array.as_struct().column(0)),
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let sums = list.iter().map(|values| values.map_or((0, 0), |values| contents(&values)));
            sums.fold((0, 0), |sum, (bytes, count)| (sum.0 + bytes, sum.1 + count.max(1)))
        }
        _ => (0, count),
    }
}

fn written(properties: WriterProperties, rows: usize) -> (tempfile::TempDir, ParquetFile) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let table = table(rows);
    let mut writer = ArrowWriter::try_new(Vec::new(), table.schema(), Some(properties)).unwrap();
    writer.write(&table).unwrap();
    std::fs::write(&path, writer.into_inner().unwrap()).unwrap();
    (folder, open(&path))
}

fn open(path: &std::path::Path) -> ParquetFile {
    let mut file = ParquetFile::open(Location::new(path.into()).unwrap()).unwrap();
    file.project(vec![0, 1, 2, 3]).unwrap();
    file
}

#[test]
fn what_is_counted_is_what_is_decoded() {
    const ROWS: usize = 3000;
    let encodings = [
        None,
        Some(Encoding::PLAIN),
        Some(Encoding::DELTA_LENGTH_BYTE_ARRAY),
        Some(Encoding::DELTA_BYTE_ARRAY),
    ];
    let mut seen = 0;
    for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
        // The second: a dictionary that soon is full, and plain pages behind it.
        for (encoding, full) in
            encodings.into_iter().map(|encoding| (encoding, 1 << 20)).chain([(None, 2000)])
        {
            for index_off in [false, true] {
                let mut properties = WriterProperties::builder()
                    .set_writer_version(version)
                    .set_compression(Compression::ZSTD(ZstdLevel::default()))
                    .set_dictionary_page_size_limit(full)
                    .set_data_page_row_count_limit(317)
                    .set_write_batch_size(64)
                    .set_max_row_group_row_count(Some(1100))
                    .set_offset_index_disabled(index_off)
                    .set_dictionary_enabled(encoding.is_none());
                if let Some(encoding) = encoding {
                    for column in ["flat", "there", "parts.list.item.text", "parts.list.element.text"] {
                        properties = properties.set_column_encoding(column.into(), encoding);
                    }
                }
                let (_folder, mut file) = written(properties.build(), ROWS);
                for columns in [vec![0], vec![1], vec![2], vec![3], vec![0, 1, 2, 3]] {
                    file.project(columns.clone()).unwrap();
                    // Units of a few rows, cut inside of pages.
                    (file.units, file.starts) = small_units(&file, 97);
                    seen +=
                        compare(&file, &format!("{version:?} {encoding:?} {full} {index_off} {columns:?}"));
                }
            }
        }
    }
    assert_eq!(seen, 2 * 5 * 2 * 5 * (12 + 12 + 9));
}

/// Cuts the units of a file anew.
fn small_units(file: &ParquetFile, rows: u64) -> (Vec<Unit>, Vec<u64>) {
    let (mut units, mut starts) = (Vec::new(), vec![0]);
    for (row_group, group) in file.metadata.metadata().row_groups().iter().enumerate() {
        let of_group = group.num_rows() as u64;
        for skip in (0..of_group).step_by(rows as usize) {
            units.push(Unit { row_group, skip, rows: rows.min(of_group - skip) });
            starts.push(starts[starts.len() - 1] + rows.min(of_group - skip));
        }
    }
    (units, starts)
}

/// Counts and decodes every unit. How many there are.
fn compare(file: &ParquetFile, what: &str) -> usize {
    let input = file.location.open().unwrap();
    let metadata = file.metadata.metadata();
    let mut units = 0;
    for (row_group, group) in metadata.row_groups().iter().enumerate() {
        let index = metadata.page_index_for_row_group(row_group);
        let (mut most, mut exactly) = (file.takes(row_group), file.takes(row_group));
        let mut each = Vec::new();
        for (leaf, chunk) in projected(group, &file.projection) {
            let (column, index) = (Column::new(chunk, group.num_rows() as u64), index.offset_index(leaf));
            let heads = pages::heads(&file.location, &input, &column, index).unwrap();
            pages::bound(&heads, &column, &mut most, || column.longest(&input, index)).unwrap();
            column.measure(&input, index, &mut exactly).unwrap_or_else(|fault| panic!("{what}: {fault}"));
            each.push(column.each());
        }
        let first = file.units.partition_point(|unit| unit.row_group < row_group);
        // Left open where texts share their beginnings.
        let is_open = !most.all_fit();
        for (unit, (most, exactly)) in most.bytes().iter().zip(exactly.bytes()).enumerate() {
            let batch = file.load(file.starts[first + unit]..file.starts[first + unit + 1]).unwrap();
            let decoded = batch.columns().iter().zip(&each).map(|(column, each)| {
                let (bytes, count) = contents(column);
                bytes + count * each
            });
            assert_eq!(*exactly, decoded.sum::<u64>(), "{what}: unit {unit} of group {row_group}");
            assert!(
                is_open || most >= exactly,
                "{what}: unit {unit} of group {row_group}: {most} < {exactly}"
            );
            units += 1;
        }
    }
    units
}

#[test]
fn what_an_index_says_of_rows_is_not_believed() {
    let properties =
        WriterProperties::builder().set_data_page_row_count_limit(100).set_write_batch_size(50).build();
    let (folder, file) = written(properties, 250);
    assert!(file.load(0..250).is_ok());
    let path = folder.path().join("a.parquet");
    let good = std::fs::read(&path).unwrap();
    let index = file.metadata.metadata().page_index_for_row_group(0);
    // The last of the first column's pages begins with row 200, which the index has as 400 in zigzag: two bytes.
    let range = file.metadata.metadata().row_group(0).column(0).offset_index_range().unwrap();
    assert_eq!(index.offset_index(0).unwrap().page_locations().last().unwrap().first_row_index, 200);
    let range = range.start as usize..range.end as usize;
    let at = good[range.clone()].windows(2).rposition(|word| word == [0x90, 3]).unwrap() + range.start;
    let mut bytes = good.clone();
    bytes[at..at + 2].copy_from_slice(&[0x92, 3]);
    std::fs::write(&path, bytes).unwrap();
    let file = open(&path);
    let fault = file.load(0..250).unwrap_err().to_string();
    assert!(fault.contains("column `flat` begins with row 201 of its group; it is row 200"), "{fault}");
}
