//! Tokenizers and tokenized examples.

use serde_json::json;

use super::*;
use crate::data::example::{Answer, Example, RowProblem};
use crate::data::sequence::Side;
use crate::data::spec::TrainOn;

/// A byte-level BPE with one merge (`h` + `e`) and three special tokens; ids 0 to 255 are the bytes as GPT-2 spells
/// them.
fn byte_level(post_processor: Value) -> Vec<u8> {
    let spelled = |byte: u8| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => {
            let before = (0..byte).filter(|b| !matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)).count();
            char::from_u32(256 + before as u32).unwrap()
        }
    };
    let mut vocabulary: serde_json::Map<String, Value> =
        (0..=255).map(|byte| (spelled(byte).to_string(), json!(byte))).collect();
    vocabulary.insert("he".into(), json!(256));
    let special = |id: u32, content: &str, rstrip: bool| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": rstrip,
               "normalized": false, "special": true})
    };
    json!({
        "version": "1.0", "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": null,
        "added_tokens": [special(257, "<s>", false), special(258, "</s>", false), special(259, "<|a|>", true)],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": post_processor,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "vocab": vocabulary, "merges": [["h", "e"]]}
    })
    .to_string()
    .into_bytes()
}

fn adds_bos() -> Value {
    json!({"type": "Sequence", "processors": [
        {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        {"type": "TemplateProcessing",
         "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
         "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
         "special_tokens": {"<s>": {"id": "<s>", "ids": [257], "tokens": ["<s>"]}}}]})
}

fn config() -> Value {
    json!({"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>", "add_bos_token": true})
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_bytes(&byte_level(adds_bos()), config(), &Value::Null, "tokenizer.json").unwrap()
}

fn examples(tokenizer: Tokenizer) -> Examples {
    Examples { tokenizer: Some(tokenizer.into()), template: None, vocabulary_size: Some(260) }
}

#[test]
fn special_tokens_are_strings_or_objects_and_in_the_vocabulary() {
    let tokenizer = tokenizer();
    assert_eq!(tokenizer.bos(), Some(&SpecialToken { text: "<s>".into(), id: 257 }));
    assert_eq!(tokenizer.eos().unwrap().id, 258);
    assert_eq!(tokenizer.vocabulary_size(), 260);
    let missing = json!({"eos_token": "<|end|>"});
    let error =
        Tokenizer::from_bytes(&byte_level(adds_bos()), missing, &Value::Null, "tokenizer.json").unwrap_err();
    assert_eq!(
        error.to_string(),
        "tokenizer_config.json: `eos_token` is `<|end|>`, which is not in the vocabulary of tokenizer.json"
    );
    let map = json!({"eos_token": {"content": "</s>"}});
    let from_map =
        Tokenizer::from_bytes(&byte_level(adds_bos()), Value::Null, &map, "tokenizer.json").unwrap();
    assert_eq!((from_map.eos().unwrap().id, from_map.bos()), (258, None));
}

#[test]
fn what_it_adds_by_itself_is_learned_by_asking() {
    assert_eq!(tokenizer().prefix(), [257]);
    assert!(tokenizer().suffix().is_empty());
    let open = |post, config| Tokenizer::from_bytes(&byte_level(post), config, &Value::Null, "t").unwrap();
    // The post-processor decides; only where there is none does the declaration.
    let byte_level_only =
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    assert!(open(byte_level_only, config()).prefix().is_empty());
    assert_eq!(open(Value::Null, config()).prefix(), [257]);
    assert!(open(Value::Null, json!({"bos_token": "<s>"})).prefix().is_empty());
}

#[test]
fn offsets_are_true_places_and_nothing_is_cut() {
    let encoding = tokenizer().encode("<s>he é</s>").unwrap();
    assert_eq!(encoding.ids, [257, 256, b' '.into(), 0xc3, 0xa9, 258]);
    // White space is not trimmed off, the two bytes of é share it, and the file's truncation to 3 is ignored.
    assert_eq!(encoding.offsets, [0..3, 3..5, 5..6, 6..8, 6..8, 8..12]);
    assert_eq!(tokenizer().decode(&encoding.ids).unwrap(), "<s>he é</s>");
    assert_eq!(tokenizer().decode_plain(&encoding.ids).unwrap(), "he é");
    assert_eq!(tokenizer().pieces(&encoding.ids), ["<s>", "he", " ", "", "é", "</s>"]);
}

#[test]
fn a_prompt_and_its_completion() {
    let example = Example::PromptCompletion { prompt: "a h".into(), completion: "e!".into() };
    let tokenized = examples(tokenizer()).tokenize(&example, TrainOn::Completion).unwrap().remove(0);
    // `he` straddles the border, so it counts as completion.
    assert_eq!(tokenized.input_ids, [257, b'a'.into(), b' '.into(), 256, b'!'.into(), 258]);
    assert_eq!(tokenized.labels, [-100, -100, -100, 256, 33, 258]);
    let all = examples(tokenizer()).tokenize(&example, TrainOn::All).unwrap().remove(0);
    assert_eq!(all.labels, [257, 97, 32, 256, 33, 258]);
    assert!(examples(tokenizer()).round_trips(&all) && examples(tokenizer()).round_trips(&tokenized));
}

#[test]
fn a_pair_is_two_documents_whose_answers_are_supervised() {
    let answer = |answer: &str| Answer::Text { prompt: "a ".into(), answer: answer.into() };
    let pair = |chosen, rejected| Example::Preference { chosen: answer(chosen), rejected: answer(rejected) };
    let documents = examples(tokenizer()).tokenize(&pair("b", "cd"), TrainOn::Completion).unwrap();
    assert_eq!(
        documents.iter().map(|document| document.side).collect::<Vec<_>>(),
        [Side::Chosen, Side::Rejected]
    );
    assert_eq!(documents[0].input_ids, [257, b'a'.into(), b' '.into(), b'b'.into(), 258]);
    assert_eq!(documents[0].labels, [-100, -100, -100, 98, 258]);
    assert_eq!(documents[1].labels, [-100, -100, -100, 99, 100, 258]);
    let equal = examples(tokenizer()).tokenize(&pair("b", "b"), TrainOn::Completion).unwrap_err();
    assert!(equal.problem.contains("same tokens"), "{}", equal.problem);
    let feedback = Example::Feedback { answer: answer("b"), wanted: false };
    let documents = examples(tokenizer()).tokenize(&feedback, TrainOn::Completion).unwrap();
    assert_eq!((documents.len(), documents[0].side), (1, Side::Unwanted));
}

#[test]
fn a_blank_answer_supervises_nothing() {
    let labels = |example: &Example, train_on| {
        examples(tokenizer()).tokenize(example, train_on).unwrap()[0].labels.clone()
    };
    for completion in ["", " "] {
        let example = Example::PromptCompletion { prompt: "ab".into(), completion: completion.into() };
        let completion = labels(&example, TrainOn::Completion);
        assert!(completion.iter().all(|label| *label == IGNORED), "{completion:?}");
        // Where everything is supervised, the prompt is, and the end of the blank answer is not.
        let all = labels(&example, TrainOn::All);
        assert_eq!((all[..3].to_vec(), all.last()), (vec![IGNORED, 97, 98], Some(&IGNORED)));
    }
    assert_eq!(labels(&Example::Text(String::new()), TrainOn::All), [IGNORED, IGNORED]);
}

#[test]
fn text_is_supervised_whole_and_ends() {
    let tokenized =
        examples(tokenizer()).tokenize(&Example::Text("hé".into()), TrainOn::All).unwrap().remove(0);
    assert_eq!(tokenized.input_ids, [257, 104, 0xc3, 0xa9, 258]);
    assert_eq!(tokenized.labels, [257, 104, 0xc3, 0xa9, 258]);
    let twice = examples(tokenizer()).tokenize(&Example::Text("<s>hi".into()), TrainOn::All).unwrap_err();
    assert!(twice.problem.contains("begins with <s>"), "{}", twice.problem);
    let silent = Tokenizer::from_bytes(&byte_level(adds_bos()), Value::Null, &Value::Null, "t").unwrap();
    let error = examples(silent).tokenize(&Example::Text("hi".into()), TrainOn::All).unwrap_err();
    assert!(error.problem.contains("eos_token"), "{}", error.problem);
}

#[test]
fn given_tokens_are_taken_as_they_are() {
    let tokens = |input_ids: &[u32], labels: Option<&[i64]>| {
        let example = Example::Tokens { input_ids: input_ids.to_vec(), labels: labels.map(<[i64]>::to_vec) };
        let examples = Examples { tokenizer: None, template: None, vocabulary_size: Some(10) };
        examples.tokenize(&example, TrainOn::Assistant).map(|mut documents| documents.remove(0))
    };
    let message = |result: Result<Tokenized, RowProblem>| {
        let problem = result.unwrap_err();
        format!("{}: {}", problem.field, problem.problem)
    };
    assert_eq!(tokens(&[1, 2, 3], None).unwrap().labels, [1, 2, 3]);
    assert_eq!(tokens(&[1, 2, 3], Some(&[-100, 9, -100])).unwrap().labels, [-100, 9, -100]);
    assert_eq!(message(tokens(&[1, 2], Some(&[1]))), "/labels: 1 labels for 2 tokens");
    assert_eq!(
        message(tokens(&[1, 10], None)),
        "/input_ids/1: id 10 is outside the model's vocabulary of 10"
    );
    assert_eq!(
        message(tokens(&[1, 2], Some(&[0, 10]))),
        "/labels/1: label 10 is outside the model's vocabulary of 10"
    );
    assert_eq!(message(tokens(&[1, 2], Some(&[0, -1]))), "/labels/1: -1 is neither a token id nor -100");
    assert_eq!(message(tokens(&[u32::MAX], None)), "/input_ids/0: 4294967295 is not a token id");
}

#[test]
fn an_id_outside_of_the_model_is_named() {
    let examples =
        Examples { tokenizer: Some(tokenizer().into()), template: None, vocabulary_size: Some(257) };
    let problem = examples.tokenize(&Example::Text("a".into()), TrainOn::All).unwrap_err();
    assert_eq!(problem.problem, "id 257 is outside the model's vocabulary of 257 (the token `<s>`)");
}

#[test]
fn merges_are_never_dropped_by_chance() {
    let text =
        String::from_utf8(byte_level(adds_bos())).unwrap().replace("\"dropout\":null", "\"dropout\":1.0");
    let tokenizer = Tokenizer::from_bytes(text.as_bytes(), config(), &Value::Null, "t").unwrap();
    assert_eq!(tokenizer.encode("he").unwrap().ids, [256]);
}

#[test]
fn hostile_files_are_errors() {
    let open = |bytes: &[u8]| Tokenizer::from_bytes(bytes, Value::Null, &Value::Null, "tokenizer.json");
    let good = byte_level(adds_bos());
    assert!(open(&good).is_ok());
    for bytes in [&b""[..], b"{}", b"null", b"[1]", &good[..good.len() / 2], b"\xff\xfe"] {
        assert!(matches!(open(bytes), Err(TokenizerError::Malformed { .. })));
    }
    let text = String::from_utf8(good).unwrap();
    for (from, to) in [
        ("\"he\":256", "\"hx\":256"),
        ("\"ids\":[257]", "\"ids\":[]"),
        ("\"id\":257,", "\"id\":99999999,"),
        ("\"type\":\"BPE\"", "\"type\":\"Unigram\""),
    ] {
        assert!(text.contains(from), "{from}");
        // An error or a tokenizer, never a panic.
        let _outcome = open(text.replace(from, to).as_bytes());
    }
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(open(nested.as_bytes()).is_err());
}
