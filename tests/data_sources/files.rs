//! The same rows as every kind of file, in memory.

use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, LargeStringArray, RecordBatch, StringArray};
use arrow_ipc::CompressionType;
use arrow_ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
use parquet::arrow::ArrowWriter;
use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use parquet::file::properties::WriterProperties;
use serde_json::json;
use tune::data::example::Example;

pub(crate) fn prompt(row: u64) -> String {
    format!("What is \"{row}\",\nsquared? {}", "ü".repeat((row * 31 % 300) as usize))
}

pub(crate) fn pairs(rows: u64) -> Vec<Example> {
    let pair = |row| Example::PromptCompletion { prompt: prompt(row), completion: (row * row).to_string() };
    (0..rows).map(pair).collect()
}

/// Prompts and completions, and a column that nobody reads.
pub(crate) fn table(rows: std::ops::Range<u64>) -> RecordBatch {
    let prompts: ArrayRef = Arc::new(rows.clone().map(|row| Some(prompt(row))).collect::<StringArray>());
    let completions: ArrayRef =
        Arc::new(rows.clone().map(|row| Some((row * row).to_string())).collect::<LargeStringArray>());
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(rows.map(|row| row as i64)));
    RecordBatch::try_from_iter([("prompt", prompts), ("id", ids), ("completion", completions)]).unwrap()
}

pub(crate) fn batches(rows: u64, size: usize) -> Vec<RecordBatch> {
    (0..rows).step_by(size).map(|start| table(start..(start + size as u64).min(rows))).collect()
}

pub(crate) fn ipc(batches: &[RecordBatch], stream: bool, compression: Option<CompressionType>) -> Vec<u8> {
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

pub(crate) fn parquet_with(batches: &[RecordBatch], properties: WriterProperties) -> Vec<u8> {
    let mut writer = ArrowWriter::try_new(Vec::new(), batches[0].schema(), Some(properties)).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.into_inner().unwrap()
}

pub(crate) fn parquet(batches: &[RecordBatch], compression: Compression, group: usize) -> Vec<u8> {
    let properties = WriterProperties::builder()
        .set_compression(compression)
        .set_max_row_group_row_count(Some(group))
        .build();
    parquet_with(batches, properties)
}

pub(crate) fn json_rows(rows: u64) -> Vec<serde_json::Value> {
    let row = |row: u64| json!({"id": row, "prompt": prompt(row), "completion": (row * row).to_string()});
    (0..rows).map(row).collect()
}

pub(crate) fn json_lines(rows: u64) -> Vec<u8> {
    json_rows(rows).iter().flat_map(|row| format!("{row}\r\n").into_bytes()).collect()
}

pub(crate) fn csv(rows: u64) -> Vec<u8> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(["prompt", "completion"]).unwrap();
    for row in 0..rows {
        writer.write_record([prompt(row), (row * row).to_string()]).unwrap();
    }
    writer.into_inner().unwrap()
}

/// The same rows as every kind of file, by file name.
pub(crate) fn every_kind(rows: u64) -> Vec<(&'static str, Vec<u8>)> {
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
