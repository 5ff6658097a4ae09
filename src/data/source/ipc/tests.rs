//! Any rows of any batch, read alone, are what arrow's own reader sees in the whole.

use std::path::Path;

use arrow_array::builder::{MapBuilder, StringBuilder};
use arrow_array::types::{Int8Type, Int16Type, Int32Type};
use arrow_array::{
    Array, BinaryViewArray, BooleanArray, Decimal128Array, DictionaryArray, FixedSizeBinaryArray,
    FixedSizeListArray, Float32Array, Int8Array, Int32Array, LargeListArray, LargeListViewArray,
    LargeStringArray, ListArray, ListViewArray, NullArray, RunArray, StringArray, StringViewArray,
    StructArray, TimestampMicrosecondArray, UInt16Array, UnionArray,
};
use arrow_buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
use arrow_schema::{DataType, Field, UnionFields};
use proptest::prelude::*;

use super::*;

const ROWS: usize = 23;

fn item(kind: &DataType) -> Arc<Field> {
    Arc::new(Field::new("item", kind.clone(), true))
}

fn texts(salt: usize, rows: usize) -> StringArray {
    let text = |row: usize| (row % 5 != 3).then(|| format!("{row} ").repeat((row * salt) % 11));
    (0..rows).map(text).collect()
}

fn nulls(rows: usize, period: usize) -> Option<NullBuffer> {
    Some((0..rows).map(|row| row % period != 1).collect())
}

/// A column of every type that can be read, and between them some that are only skipped.
fn batch(salt: usize) -> RecordBatch {
    let strings: ArrayRef = Arc::new(texts(salt + 1, ROWS));
    let lengths = |step: usize| (0..ROWS).map(move |row| (row * step + salt) % 4);
    let total = |step: usize| lengths(step).sum::<usize>();
    let dictionary: DictionaryArray<Int8Type> =
        (0..ROWS).map(|row| (row % 6 != 2).then(|| ["x", "yy", "zzz"][(row + salt) % 3])).collect();
    let dictionary: ArrayRef = Arc::new(dictionary);
    let inner = StructArray::from(vec![
        (Arc::new(Field::new("role", DataType::Utf8, true)), Arc::new(texts(2, total(3))) as ArrayRef),
        (Arc::new(Field::new("ids", DataType::UInt16, true)), {
            Arc::new(UInt16Array::from_iter((0..total(3) as u16).map(|n| (n % 3 > 0).then_some(n))))
                as ArrayRef
        }),
    ]);
    let list = ListArray::new(
        item(inner.data_type()),
        OffsetBuffer::from_lengths(lengths(3)),
        Arc::new(inner),
        nulls(ROWS, 4),
    );
    let large_values: ArrayRef = Arc::new(Int8Array::from_iter_values((0..total(2)).map(|n| n as i8)));
    let large = LargeListArray::new(
        item(&DataType::Int8),
        OffsetBuffer::from_lengths(lengths(2)),
        large_values,
        None,
    );
    let fixed_values: ArrayRef = Arc::new(Int32Array::from_iter_values(0..3 * ROWS as i32));
    let fixed = FixedSizeListArray::new(item(&DataType::Int32), 3, fixed_values, nulls(ROWS, 5));
    // Lists in reverse order, overlapping.
    let offsets: ScalarBuffer<i32> = (0..ROWS as i32).rev().collect();
    let sizes: ScalarBuffer<i32> = (0..ROWS as i32).map(|row| if row == 0 { 1 } else { row % 3 }).collect();
    let view =
        ListViewArray::new(item(&DataType::Utf8), offsets.clone(), sizes.clone(), strings.clone(), None);
    let offsets: ScalarBuffer<i64> = offsets.iter().map(|&offset| offset.into()).collect();
    let sizes: ScalarBuffer<i64> = sizes.iter().map(|&size| size.into()).collect();
    let large_view =
        LargeListViewArray::new(item(dictionary.data_type()), offsets, sizes, dictionary.clone(), None);
    let mut map = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
    for row in 0..ROWS {
        for entry in 0..(row + salt) % 3 {
            map.keys().append_value(format!("key {entry}"));
            map.values().append_value(format!("value {row}"));
        }
        map.append(row % 7 != 6).unwrap();
    }
    let union_fields = UnionFields::from_fields([
        Field::new("a", DataType::Int32, true),
        Field::new("b", DataType::Utf8, true),
    ]);
    let union = UnionArray::try_new(
        union_fields,
        (0..ROWS).map(|row| (row % 2) as i8).collect(),
        None,
        vec![Arc::new(Int32Array::from_iter_values(0..ROWS as i32)), strings.clone()],
    )
    .unwrap();
    let runs: RunArray<Int16Type> = (0..ROWS).map(|row| ["one", "two"][row / 5 % 2]).collect();
    let views: StringViewArray = texts(3, ROWS).iter().collect();
    let long_views: BinaryViewArray = texts(7, ROWS).iter().map(|text| text.map(str::as_bytes)).collect();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("null", Arc::new(NullArray::new(ROWS))),
        ("bool", Arc::new(BooleanArray::new((0..ROWS).map(|row| row % 3 == 0).collect(), nulls(ROWS, 6)))),
        ("utf8", strings.clone()),
        ("union", Arc::new(union)),
        ("large", Arc::new(texts(4, ROWS).iter().collect::<LargeStringArray>())),
        ("list", Arc::new(list)),
        ("binary view", Arc::new(long_views)),
        ("view", Arc::new(views)),
        ("large list", Arc::new(large)),
        ("run", Arc::new(runs)),
        ("fixed list", Arc::new(fixed)),
        ("list view", Arc::new(view)),
        ("dictionary", dictionary),
        ("large list view", Arc::new(large_view)),
        ("map", Arc::new(map.finish())),
        ("float", Arc::new(Float32Array::from_iter_values((0..ROWS).map(|row| row as f32)))),
        ("time", Arc::new(TimestampMicrosecondArray::from_iter_values(0..ROWS as i64).with_timezone("UTC"))),
        ("decimal", Arc::new(Decimal128Array::from_iter_values(0..ROWS as i128))),
        ("fixed binary", {
            Arc::new(FixedSizeBinaryArray::try_from_iter((0..ROWS).map(|row| vec![row as u8; 3])).unwrap())
        }),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true)))
        .unwrap()
}

fn options(compression: Option<ipc::CompressionType>) -> IpcWriteOptions {
    IpcWriteOptions::default().try_with_compression(compression).unwrap()
}

fn write_file(path: &Path, batches: &[RecordBatch], compression: Option<ipc::CompressionType>) {
    let out = std::fs::File::create(path).unwrap();
    let mut writer =
        FileWriter::try_new_with_options(out, &batches[0].schema(), options(compression)).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.finish().unwrap();
}

fn write_stream(path: &Path, batches: &[RecordBatch], compression: Option<ipc::CompressionType>) {
    let out = std::fs::File::create(path).unwrap();
    let mut writer =
        StreamWriter::try_new_with_options(out, &batches[0].schema(), options(compression)).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.finish().unwrap();
}

fn open(path: &Path) -> IpcFile {
    IpcFile::open(Location::new(path.into()).unwrap()).unwrap()
}

/// Columns that `rows.rs` reads: all but the union and the runs.
fn readable(file: &IpcFile) -> Vec<usize> {
    let names = file.schema().fields().iter().enumerate();
    names.filter(|(_, field)| !["union", "run"].contains(&field.name().as_str())).map(|(at, _)| at).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_rows_of_any_columns(
        first in 0..ROWS, len in 1..=ROWS, second: bool, stream: bool,
        columns in prop::sample::subsequence((0..17).collect::<Vec<usize>>(), 1..=17),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.arrow");
        // A file may not replace a dictionary: its two batches share theirs.
        let batches = if stream { [batch(0), batch(1)] } else { [batch(0), batch(0)] };
        if stream { write_stream(&path, &batches, None) } else { write_file(&path, &batches, None) }
        let mut file = open(&path);
        prop_assert_eq!(file.rows(), 2 * ROWS as u64);
        prop_assert_eq!(file.units(), None);
        let readable = readable(&file);
        let projection: Vec<usize> = columns.iter().map(|&column| readable[column]).collect();
        file.project(projection.clone());
        let len = len.min(ROWS - first);
        let start = first + if second { ROWS } else { 0 };
        let read = file.load(start as u64..(start + len) as u64).unwrap();
        let expected = batches[usize::from(second)].slice(first, len).project(&projection).unwrap();
        for ((read, expected), field) in read.columns().iter().zip(expected.columns()).zip(read.schema().fields()) {
            prop_assert_eq!(read, expected, "{}", field.name());
        }
    }
}

#[test]
fn compressed_batches_are_units() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.arrow");
    for compression in [ipc::CompressionType::LZ4_FRAME, ipc::CompressionType::ZSTD] {
        for stream in [false, true] {
            let batches = [batch(0), batch(0)];
            if stream {
                write_stream(&path, &batches, Some(compression));
            } else {
                write_file(&path, &batches, Some(compression));
            }
            let mut file = open(&path);
            assert_eq!(file.units(), Some([0, ROWS as u64].as_slice()));
            assert_eq!(file.block_of(ROWS as u64 + 1), ROWS as u64..2 * ROWS as u64);
            file.project(vec![5, 12]);
            let read = file.load(file.block_of(30)).unwrap();
            assert_eq!(read, batches[1].project(&[5, 12]).unwrap());
        }
    }
}

#[test]
fn a_stream_may_replace_a_dictionary() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.arrow");
    let column = |values: [&str; 3]| {
        let array: DictionaryArray<Int32Type> = values.into_iter().collect();
        RecordBatch::try_from_iter([("text", Arc::new(array) as ArrayRef)]).unwrap()
    };
    let batches = [column(["a", "b", "a"]), column(["c", "d", "e"]), column(["c", "c", "f"])];
    write_stream(&path, &batches, None);
    let mut file = open(&path);
    file.project(vec![0]);
    for (index, batch) in batches.iter().enumerate() {
        assert_eq!(&file.load(file.block_of(index as u64 * 3)).unwrap(), batch);
    }
}

#[test]
fn a_large_batch_is_read_in_parts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.arrow");
    let rows = 5000;
    let strings: ArrayRef =
        Arc::new((0..rows).map(|row| Some(format!("{row} ").repeat(20))).collect::<StringArray>());
    write_file(&path, &[RecordBatch::try_from_iter([("text", strings.clone())]).unwrap()], None);
    let mut file = open(&path);
    file.project(vec![0]);
    let mut row = 0;
    let mut blocks = 0;
    while row < rows {
        let block = file.block_of(row);
        assert_eq!(block.start, row);
        assert_eq!(file.block_of(block.end - 1), block);
        let read = file.load(block.clone()).unwrap();
        assert!(read.get_array_memory_size() < 4 * BLOCK as usize);
        assert_eq!(**read.column(0), *strings.slice(row as usize, (block.end - row) as usize));
        row = block.end;
        blocks += 1;
    }
    assert!(blocks > 10, "{blocks}");
}
