//! Record shapes, from rows of JSON.

use std::path::Path;

use arrow::datatypes::DataType;
use serde_json::{Map, Value as Json, json};

use super::super::source::Error;
use super::super::spec::{DatasetSpec, Split};
use super::*;

fn fields(format: Format, mapping: &[(&str, &str)]) -> Result<Fields, Error> {
    let fields = mapping.iter().map(|(name, column)| ((*name).to_owned(), (*column).to_owned())).collect();
    let path = String::new();
    Fields::new(&DatasetSpec { path, format, weight: 1.0, split: Split::Train, train_on: None, fields })
}

fn read(format: Format, mapping: &[(&str, &str)], row: &Json) -> Result<Example, RowProblem> {
    fields(format, mapping).unwrap().example(Object::Json(row.as_object().unwrap()), 1 << 20)
}

/// "field: problem" of a row that is wrong.
fn said(format: Format, row: &Json) -> String {
    let fault = read(format, &[], row).unwrap_err();
    format!("{}: {}", fault.field, fault.problem)
}

fn message(role: &str, content: &str) -> Message {
    Message { role: role.to_owned(), content: content.to_owned(), extra: Map::new() }
}

fn prompt_completion(prompt: &str, completion: &str) -> Example {
    Example::PromptCompletion { prompt: prompt.to_owned(), completion: completion.to_owned() }
}

#[test]
fn messages_in_both_layouts() {
    let expected = Example::Messages(vec![
        message("system", "Be brief."),
        message("user", "Hi"),
        message("assistant", "Hello"),
    ]);
    let openai = json!({"messages": [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello", "name": null}]});
    assert_eq!(read(Format::Messages, &[], &openai).unwrap(), expected);
    let from_value = json!({"conversations": [
        {"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello"}]});
    assert_eq!(read(Format::Messages, &[], &from_value).unwrap(), expected);
    let mapped = json!({"dialog": [
        {"speaker": "system", "says": "Be brief."}, {"speaker": "user", "says": "Hi"},
        {"speaker": "assistant", "says": "Hello"}]});
    let mapping = [("messages", "dialog"), ("role", "speaker"), ("content", "says")];
    assert_eq!(read(Format::Messages, &mapping, &mapped).unwrap(), expected);
}

#[test]
fn parts_are_joined_and_other_keys_are_kept() {
    let row = json!({"messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Ann"},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "7", "tool_call_id": "1"}]});
    let Example::Messages(messages) = read(Format::Messages, &[], &row).unwrap() else { panic!() };
    assert_eq!(messages[0].content, "ab");
    assert_eq!(Json::Object(messages[0].extra.clone()), json!({"name": "Ann"}));
    assert_eq!(messages[1].content, "");
    assert_eq!(Json::Object(messages[1].extra.clone()), json!({"tool_calls": [{"id": "1"}]}));
    assert_eq!(messages[2].role, "tool");
}

#[test]
fn a_malformed_message_is_named() {
    let with = |message: Json| {
        said(Format::Messages, &json!({"messages": [{"role": "user", "content": "x"}, message]}))
    };
    assert_eq!(
        with(json!({"role": "user", "content": null})),
        "/messages/1/content: expected a string or a list of text parts, found null"
    );
    assert_eq!(with(json!({"content": "x"})), "/messages/1/role: expected a role, found null");
    assert_eq!(
        with(json!({"role": "human", "content": "x"})),
        "/messages/1/role: expected a role (system, user, assistant, tool), found \"human\""
    );
    assert_eq!(
        with(json!({"from": "bot", "value": "x"})),
        "/messages/1/from: expected a role (system, user, assistant, tool, human, gpt), found \"bot\""
    );
    assert_eq!(
        with(json!("x")),
        "/messages/1: expected a message with a role and a content, found the string \"x\""
    );
    assert_eq!(
        with(json!({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]})),
        "/messages/1/content/0/type: expected `text` (parts of other kinds are not trained on), \
         found the string \"image_url\""
    );
    assert_eq!(
        said(Format::Messages, &json!({"messages": []})),
        "/messages: expected a list of at least one message, found an empty list"
    );
    assert_eq!(
        said(Format::Messages, &json!({"conversations": "a/b"})),
        "/conversations: expected a list of at least one message, found the string \"a/b\""
    );
}

#[test]
fn alpaca_with_and_without_input() {
    let row = json!({"instruction": "Add.", "input": "1 2", "output": "3"});
    let with = "Below is an instruction that describes a task, paired with an input that provides further context. \
                Write a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n\
                ### Input:\n1 2\n\n### Response:";
    assert_eq!(read(Format::Alpaca, &[], &row).unwrap(), prompt_completion(with, "3"));
    let without = "Below is an instruction that describes a task. Write a response that appropriately completes \
                   the request.\n\n### Instruction:\nAdd.\n\n### Response:";
    for row in [
        json!({"instruction": "Add.", "input": "", "output": "3"}),
        json!({"instruction": "Add.", "input": null, "output": "3"}),
        json!({"instruction": "Add.", "output": "3"}),
    ] {
        assert_eq!(read(Format::Alpaca, &[], &row).unwrap(), prompt_completion(without, "3"));
    }
    assert_eq!(
        said(Format::Alpaca, &json!({"instruction": "Add.", "input": 3, "output": "3"})),
        "/input: expected a string, found the integer 3"
    );
}

#[test]
fn prompt_completion_and_text() {
    let mapping = [("prompt", "question"), ("completion", "a/b~c")];
    let row = json!({"question": "Q", "a/b~c": "A", "prompt": 1});
    assert_eq!(read(Format::PromptCompletion, &mapping, &row).unwrap(), prompt_completion("Q", "A"));
    let fault =
        read(Format::PromptCompletion, &mapping, &json!({"question": "Q", "a/b~c": ["A"]})).unwrap_err();
    assert_eq!(fault.field, "/a~1b~0c");
    assert_eq!(fault.problem, "expected a string, found a list of 1");
    assert_eq!(read(Format::Text, &[], &json!({"text": ""})).unwrap(), Example::Text(String::new()));
    assert_eq!(said(Format::Text, &json!({"txt": ""})), "/text: expected a string, found null");
}

#[test]
fn tokens() {
    let row = json!({"input_ids": [0, 4_294_967_295_u32], "labels": [-100, 7]});
    let expected = Example::Tokens { input_ids: vec![0, u32::MAX], labels: Some(vec![-100, 7]) };
    assert_eq!(read(Format::Tokens, &[], &row).unwrap(), expected);
    let expected = Example::Tokens { input_ids: vec![], labels: None };
    assert_eq!(read(Format::Tokens, &[], &json!({"input_ids": [], "labels": null})).unwrap(), expected);
    let ids = |ids: Json| said(Format::Tokens, &json!({ "input_ids": ids }));
    let expected = "expected a token id (0 to 4294967295), found";
    assert_eq!(ids(json!([1, -1])), format!("/input_ids/1: {expected} the integer -1"));
    assert_eq!(ids(json!([4_294_967_296_u64])), format!("/input_ids/0: {expected} the integer 4294967296"));
    assert_eq!(ids(json!([1.5])), format!("/input_ids/0: {expected} the number 1.5"));
    assert_eq!(ids(json!([null])), format!("/input_ids/0: {expected} null"));
    assert_eq!(ids(json!("1 2")), "/input_ids: expected a list of integers, found the string \"1 2\"");
    let labels = |labels: Json| said(Format::Tokens, &json!({"input_ids": [1, 2], "labels": labels}));
    assert_eq!(labels(json!([1])), "/labels: expected 2 labels, one for each token, found 1");
    assert_eq!(labels(json!([1, -1])), "/labels/1: expected a token id or -100, found the integer -1");
}

#[test]
fn a_mapping_of_an_unknown_name_says_the_known_ones() {
    let error = fields(Format::PromptCompletion, &[("promt", "question")]).unwrap_err().to_string();
    assert_eq!(
        error,
        "`fields` maps `promt`, which the format `prompt-completion` does not have; it has `prompt`, \
         `completion`; did you mean `prompt`?"
    );
}

#[test]
fn missing_columns_say_which_there_are() {
    let choose = |format, mapping: &[(&str, &str)], columns: &[&str]| {
        let columns: Vec<_> = columns.iter().map(|name| (*name, None)).collect();
        fields(format, mapping).unwrap().choose(Path::new("a.csv"), &columns)
    };
    assert_eq!(
        choose(Format::PromptCompletion, &[], &["question", "answer"]).unwrap_err().to_string(),
        "a.csv: no column `prompt`; it has `question`, `answer`; did you mean `fields = { prompt = \"question\" }`?"
    );
    assert_eq!(
        choose(Format::Text, &[("text", "body")], &["boby"]).unwrap_err().to_string(),
        "a.csv: no column `body`; it has `boby`; did you mean `boby`?"
    );
    assert_eq!(
        choose(Format::Text, &[], &["x"]).unwrap_err().to_string(),
        "a.csv: no column `text`; it has `x`; if another column holds it, add `fields = { text = \"…\" }`"
    );
    // An optional field may be absent, but not one that the recipe names.
    assert_eq!(choose(Format::Alpaca, &[], &["output", "instruction"]).unwrap(), [1, 0]);
    assert!(choose(Format::Alpaca, &[("input", "context")], &["output", "instruction"]).is_err());
    assert_eq!(choose(Format::Messages, &[], &["id", "conversations"]).unwrap(), [1]);
    assert_eq!(
        choose(Format::PromptCompletion, &[("prompt", "t"), ("completion", "t")], &["t"]).unwrap(),
        [0]
    );
}

#[test]
fn columns_of_the_wrong_type() {
    let choose = |format, column: &str, data_type: DataType| {
        fields(format, &[]).unwrap().choose(Path::new("a.parquet"), &[(column, Some(&data_type))])
    };
    let list_of =
        |item| DataType::List(std::sync::Arc::new(arrow::datatypes::Field::new("item", item, true)));
    assert_eq!(
        choose(Format::Text, "text", DataType::Int64).unwrap_err().to_string(),
        "a.parquet: column `text`: expected strings, found Int64"
    );
    assert!(choose(Format::Tokens, "input_ids", list_of(DataType::Float32)).is_err());
    assert!(choose(Format::Messages, "messages", DataType::Utf8).is_err());
    for (format, column, data_type) in [
        (Format::Text, "text", DataType::LargeUtf8),
        (Format::Text, "text", DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8))),
        (Format::Tokens, "input_ids", list_of(DataType::UInt8)),
        (Format::Messages, "messages", list_of(DataType::Struct(arrow::datatypes::Fields::empty()))),
    ] {
        assert_eq!(choose(format, column, data_type).unwrap(), [0]);
    }
}
