//! Datasets in a temporary folder, and a tokenizer that spells any text: GPT-2's 256 bytes, a few merges, and the
//! special tokens `<s>`, `</s>`, `<|im_start|>`, `<|im_end|>`. It puts `<s>` before plain text.
#![expect(clippy::unwrap_used, reason = "test helpers")]

use std::fs;
use std::sync::Arc;

use serde_json::{Value, json};
use tune::data::batch::StepBatch;
use tune::data::corpus::{Corpus, Language};
use tune::data::error::Error;
use tune::data::example::RowId;
use tune::data::spec::{DatasetSpec, Format, Spec, Split, TrainOn};
use tune::data::template::{CHATML, ChatTemplate};
use tune::data::tokenize::Tokenizer;

/// Rows of the pretended embedding; no token of the tokenizer is beyond it.
const VOCABULARY_SIZE: usize = 270;

/// Data files in a folder that goes when it is dropped.
pub(crate) struct Folder {
    folder: tempfile::TempDir,
    tokenizer: Arc<Tokenizer>,
}

impl Folder {
    pub(crate) fn new() -> Folder {
        Folder { folder: tempfile::tempdir().unwrap(), tokenizer: Arc::new(tokenizer()) }
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    pub(crate) fn write(&self, name: &str, rows: &[String]) {
        fs::write(self.path(name), rows.join("\n") + "\n").unwrap();
    }

    pub(crate) fn corpus(&self, spec: &Spec, datasets: &[(&str, Format)]) -> Corpus {
        let entries: Vec<DatasetSpec> =
            datasets.iter().map(|(name, format)| self.entry(name, *format)).collect();
        Corpus::open(spec, &entries, 42, self.language(true, true)).unwrap()
    }

    pub(crate) fn corpus_weighted(
        &self,
        spec: &Spec,
        datasets: &[(&str, Format)],
        weights: &[f64],
    ) -> Corpus {
        let entry = |((name, format), weight): (&(&str, Format), &f64)| DatasetSpec {
            weight: *weight,
            ..self.entry(name, *format)
        };
        let entries: Vec<DatasetSpec> = datasets.iter().zip(weights).map(entry).collect();
        Corpus::open(spec, &entries, 42, self.language(true, true)).unwrap()
    }

    pub(crate) fn corpus_split(&self, spec: &Spec, datasets: &[(&str, Format)], splits: &[Split]) -> Corpus {
        let entry = |((name, format), split): (&(&str, Format), &Split)| DatasetSpec {
            split: *split,
            ..self.entry(name, *format)
        };
        let entries: Vec<DatasetSpec> = datasets.iter().zip(splits).map(entry).collect();
        Corpus::open(spec, &entries, 42, self.language(true, true)).unwrap()
    }

    pub(crate) fn try_corpus(
        &self,
        spec: &Spec,
        name: &str,
        format: Format,
        train_on: Option<TrainOn>,
        tokenizer: bool,
        template: bool,
    ) -> Result<Corpus, Error> {
        let entry = DatasetSpec { train_on, ..self.entry(name, format) };
        Corpus::open(spec, &[entry], 42, self.language(tokenizer, template))
    }

    fn entry(&self, name: &str, format: Format) -> DatasetSpec {
        DatasetSpec::new(self.path(name), format)
    }

    fn language(&self, tokenizer: bool, template: bool) -> Language {
        let chatml = || {
            let variables = self.tokenizer.template_variables();
            ChatTemplate::new(CHATML.to_owned(), "chatml", variables, self.tokenizer.special_texts()).unwrap()
        };
        Language {
            tokenizer: tokenizer.then(|| Arc::clone(&self.tokenizer)),
            template: template.then(|| Arc::new(chatml())),
            vocabulary_size: Some(VOCABULARY_SIZE),
            positions: None,
            copies_prompts: false,
        }
    }
}

/// A `tokens` record whose ids tell it from others.
pub(crate) fn tokens_row(row: u32, length: usize, labels: Option<&[i64]>) -> String {
    let ids: Vec<u32> = (0..length as u32).map(|position| (row * 31 + position * 7) % 250).collect();
    match labels {
        Some(labels) => json!({"input_ids": ids, "labels": labels}).to_string(),
        None => json!({"input_ids": ids}).to_string(),
    }
}

/// A `messages` record.
pub(crate) fn conversation_row(turns: &[(String, String)]) -> String {
    let messages: Vec<Value> =
        turns.iter().map(|(role, content)| json!({"role": role, "content": content})).collect();
    json!({"messages": messages}).to_string()
}

/// All rows of some steps, in order.
pub(crate) fn rows_of(steps: &[StepBatch]) -> Vec<RowId> {
    steps.iter().flat_map(|step| &step.micro_batches).flat_map(|batch| batch.rows.clone()).collect()
}

fn tokenizer() -> Tokenizer {
    let plain = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let spelled = |byte: u8| match plain(&byte) {
        true => char::from(byte),
        false => char::from_u32(256 + (0..byte).filter(|byte| !plain(byte)).count() as u32).unwrap(),
    };
    let mut vocabulary: serde_json::Map<String, Value> =
        (0..=255).map(|byte| (spelled(byte).to_string(), json!(byte))).collect();
    let merges = [("h", "e"), ("a", "b"), ("Ġ", "a"), ("Ã", "©"), ("<", "|")];
    for (id, (left, right)) in (256..).zip(merges) {
        vocabulary.insert(format!("{left}{right}"), json!(id));
    }
    let special = |(id, content): (u32, &str)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let specials = [(261, "<s>"), (262, "</s>"), (263, "<|im_start|>"), (264, "<|im_end|>")].map(special);
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": specials, "normalizer": null,
        "pre_tokenizer": byte_level, "decoder": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [261], "tokens": ["<s>"]}}},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "vocab": vocabulary, "merges": merges.map(|(left, right)| [left, right])}
    });
    let config = json!({"bos_token": "<s>", "eos_token": "</s>"});
    Tokenizer::from_bytes(file.to_string().as_bytes(), config, &Value::Null, "tokenizer.json").unwrap()
}
