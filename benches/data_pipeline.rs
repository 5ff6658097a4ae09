//! How fast examples become micro-batches: read, render, tokenize, mask, pack, on all cores, through the stream that
//! training takes them from. The matmuls of training are not part of it.
//!
//! ```text
//! cargo bench --bench data_pipeline
//! TUNE_BENCH_DATA=rows.jsonl TUNE_BENCH_PROMPT=question TUNE_BENCH_COMPLETION=answer TUNE_BENCH_BASE=folder-of-a-model \
//!     cargo bench --bench data_pipeline
//! ```
//!
//! Without variables, the quickstart's conversations. With them, prompts and completions of your own: the same work as
//! `tests/golden/pipeline_bench.py` does with Hugging Face `datasets` and `tokenizers`, to compare with. With
//! `TUNE_BENCH_FORMAT=messages` the rows are conversations; with `TUNE_BENCH_ONCE=1` one epoch is timed and told as JSON,
//! for `benches/data_peers.py`.
#![expect(clippy::unwrap_used, reason = "a bench")]

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use criterion::{Criterion, Throughput, criterion_group};
use tune::data::batch::{Batching, Cursor};
use tune::data::corpus::{Corpus, Language};
use tune::data::spec::{DatasetSpec, Format, OnEmpty, OnOverflow, Spec};
use tune::data::template::ChatTemplate;
use tune::data::tokenize::Tokenizer;
use tune::train::process::peak_resident_bytes;

fn corpus(base: &Path, path: String, format: Format, fields: BTreeMap<String, String>) -> Corpus {
    let tokenizer = Arc::new(Tokenizer::open(base).unwrap());
    let template = ChatTemplate::open(None, base, &tokenizer).unwrap().map(Arc::new);
    let spec = Spec {
        max_seq_len: env::var("TUNE_BENCH_TOKENS").map_or(4096, |tokens| tokens.parse().unwrap()),
        packing: true,
        on_overflow: OnOverflow::Drop,
        on_empty: OnEmpty::Drop,
        train_on: None,
        val_split: 0.0,
        shuffle: true,
        ..Spec::default()
    };
    let dataset = DatasetSpec { fields, ..DatasetSpec::new(path, format) };
    let language = Language { tokenizer: Some(tokenizer), template, ..Language::default() };
    Corpus::open(&spec, &[dataset], 42, language).unwrap()
}

/// Runs one epoch through the stream; how many examples and tokens came out.
fn one_epoch(corpus: &Corpus) -> (u64, u64) {
    let batching =
        Batching { micro_batch_size: 1, gradient_accumulation_steps: 1, epochs: Some(1.0), max_steps: None };
    corpus
        .steps(&batching, Cursor::default())
        .unwrap()
        .map(Result::unwrap)
        .flat_map(|step| step.micro_batches)
        .fold((0, 0), |(examples, tokens), batch| {
            (examples + batch.rows.len() as u64, tokens + batch.tokens() as u64)
        })
}

/// The rows that the environment names.
fn chosen() -> Corpus {
    let quickstart = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/quickstart");
    let base = env::var_os("TUNE_BENCH_BASE").map_or(quickstart.join("base"), PathBuf::from);
    let is_messages = env::var("TUNE_BENCH_FORMAT").is_ok_and(|format| format == "messages");
    match env::var("TUNE_BENCH_DATA") {
        Ok(path) if is_messages => corpus(&base, path, Format::Messages, BTreeMap::new()),
        Err(_) => {
            let path = quickstart.join("train.arrow").display().to_string();
            corpus(&base, path, Format::Messages, BTreeMap::new())
        }
        Ok(path) => {
            let column =
                |name: &str, field: &str| (field.to_owned(), env::var(name).unwrap_or(field.to_owned()));
            let fields =
                [column("TUNE_BENCH_PROMPT", "prompt"), column("TUNE_BENCH_COMPLETION", "completion")].into();
            corpus(&base, path, Format::PromptCompletion, fields)
        }
    }
}

fn data_pipeline(criterion: &mut Criterion) {
    let corpus = chosen();
    let (examples, tokens) = one_epoch(&corpus);
    let mut group = criterion.benchmark_group("data_pipeline");
    group.sample_size(10);
    group.throughput(Throughput::Elements(examples));
    group.bench_function("examples", |bencher| bencher.iter(|| one_epoch(&corpus)));
    group.throughput(Throughput::Elements(tokens));
    group.bench_function("tokens", |bencher| bencher.iter(|| one_epoch(&corpus)));
    group.finish();
}

criterion_group!(benches, data_pipeline);

#[expect(clippy::print_stdout, reason = "a bench")]
fn main() {
    if env::var_os("TUNE_BENCH_ONCE").is_none() {
        benches();
        return Criterion::default().configure_from_args().final_summary();
    }
    let corpus = chosen();
    let began = Instant::now();
    let (examples, tokens) = one_epoch(&corpus);
    let seconds = began.elapsed().as_secs_f64();
    let peak = peak_resident_bytes().unwrap_or(0);
    println!(
        "{{\"seconds\": {seconds}, \"examples\": {examples}, \"tokens\": {tokens}, \"peak_memory_bytes\": {peak}}}"
    );
}
