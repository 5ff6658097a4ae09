//! Record shapes, from rows of JSON.

use std::path::Path;

use arrow_schema::DataType;
use serde_json::{Map, Value as Json, json};

use super::super::example::Message;
use super::super::source::Error;
use super::super::spec::DatasetSpec;
use super::*;
use crate::data::example::{Answer, Context};

mod answers;

fn fields(format: Format, mapping: &[(&str, &str)]) -> Result<Fields, Error> {
    let fields = mapping.iter().map(|(name, column)| ((*name).to_owned(), (*column).to_owned())).collect();
    Fields::new(&DatasetSpec { fields, ..DatasetSpec::new("", format) })
}

fn read(format: Format, mapping: &[(&str, &str)], row: &Json) -> Result<Example, RowProblem> {
    fields(format, mapping).unwrap().example(Object::Json(row.as_object().unwrap()), 1 << 20, &mut |_| {})
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
    let expected = Example::Conversation(
        vec![message("system", "Be brief."), message("user", "Hi"), message("assistant", "Hello")].into(),
    );
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
fn d9_messages_as_columns_are_read() {
    let expected = Example::Conversation(vec![message("user", "Hi"), message("assistant", "Ho")].into());
    for row in [
        json!({"messages": {"role": ["user", "assistant"], "content": ["Hi", "Ho"]}}),
        json!({"conversations": {"from": ["human", "gpt"], "value": ["Hi", "Ho"]}}),
    ] {
        assert_eq!(read(Format::Messages, &[], &row).unwrap(), expected);
    }
    let problem = "/messages: expected a list of at least one message, found an object";
    for broken in [json!({"role": ["user"], "content": []}), json!({"role": "user"}), json!({})] {
        assert_eq!(said(Format::Messages, &json!({"messages": broken})), problem);
    }
}

#[test]
fn parts_are_joined_and_other_keys_are_kept() {
    let row = json!({"messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Ann"},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "7", "tool_call_id": "1"}]});
    let Example::Conversation(conversation) = read(Format::Messages, &[], &row).unwrap() else { panic!() };
    let messages = conversation.messages;
    assert_eq!(messages[0].content, "ab");
    assert_eq!(Json::Object(messages[0].extra.clone()), json!({"name": "Ann"}));
    assert_eq!(messages[1].content, "");
    assert_eq!(Json::Object(messages[1].extra.clone()), json!({"tool_calls": [{"id": "1"}]}));
    assert_eq!(messages[2].role, "tool");
}

fn context(row: Json) -> Context {
    let Example::Conversation(conversation) = read(Format::Messages, &[], &row).unwrap() else { panic!() };
    conversation.context
}

/// The same tools, documents and variables, as structure and as JSON text.
#[test]
fn the_context_of_a_conversation_is_read() {
    let messages = json!([{"role": "user", "content": "x"}]);
    let function = json!({"name": "f", "parameters": {"default": null}});
    let tool = json!({"type": "function", "function": function});
    for tools in [
        json!({"tools": [tool]}),
        json!({"tools": [tool.to_string()]}),
        json!({"tools": json!([tool]).to_string()}),
        json!({"functions": [function]}),
        json!({"tools": null, "functions": json!([function]).to_string()}),
    ] {
        let mut row = tools.clone();
        row["messages"] = messages.clone();
        assert_eq!(context(row).tools, json!([tool]), "{tools}");
    }
    for nothing in [
        json!({"tools": null}),
        json!({"tools": []}),
        json!({"tools": ""}),
        json!({"tools": " "}),
        json!({"documents": []}),
    ] {
        let mut row = nothing.clone();
        row["messages"] = messages.clone();
        assert_eq!(context(row), Context::default(), "{nothing}");
    }
    let (documents, kwargs) = (json!([{"title": "T"}]), json!({"enable_thinking": false}));
    for (documents_row, kwargs_row) in
        [(documents.clone(), kwargs.clone()), (documents.to_string().into(), kwargs.to_string().into())]
    {
        let row =
            json!({"messages": messages, "documents": documents_row, "chat_template_kwargs": kwargs_row});
        let context = context(row);
        assert_eq!(context.documents, documents);
        assert_eq!(Json::Object(context.template_kwargs), kwargs);
    }
    let said = |key: &str, value: Json| said(Format::Messages, &json!({"messages": messages, key: value}));
    assert_eq!(said("tools", json!({"a": 1})), "/tools: expected a list of tools, found an object");
    assert!(said("tools", json!("search")).starts_with("/tools: expected JSON text, found \"search\""));
    assert_eq!(
        said("chat_template_kwargs", json!({"messages": []})),
        "/chat_template_kwargs/messages: every template is given `messages`; it cannot be set here"
    );
}

#[test]
fn tool_calls_keep_their_nulls_and_may_be_json_text() {
    let calls = json!([{"function": {"name": "f", "arguments": {"unit": null, "n": 1}}}]);
    let messages = |tool_calls: Json| {
        let row = json!({"messages": [{"role": "assistant", "content": null, "tool_calls": tool_calls}]});
        let Example::Conversation(conversation) = read(Format::Messages, &[], &row).unwrap() else {
            panic!()
        };
        conversation.messages[0].extra["tool_calls"].clone()
    };
    for given in [calls.clone(), calls.to_string().into(), json!([calls[0].to_string()])] {
        assert_eq!(messages(given), calls);
    }
    let text = json!([{"function": calls[0]["function"].to_string()}]);
    assert_eq!(messages(text), calls);
}

#[test]
fn the_mark_of_a_turn_may_have_another_name() {
    let row = json!({"messages": [{"role": "assistant", "content": "x", "learn_this": false}]});
    let Example::Conversation(conversation) =
        read(Format::Messages, &[("train", "learn_this")], &row).unwrap()
    else {
        panic!()
    };
    assert_eq!(conversation.messages[0].is_learned(), Some(("train", false)));
}

#[test]
fn marks_of_what_is_learned_are_checked() {
    let with = |role: &str, key: &str, mark: Json| {
        read(Format::Messages, &[], &json!({"messages": [{"role": role, "content": "x", key: mark}]}))
            .map_err(|fault| format!("{}: {}", fault.field, fault.problem))
    };
    assert!(with("assistant", "weight", json!(0)).is_ok() && with("user", "train", json!(false)).is_ok());
    assert_eq!(
        with("assistant", "weight", json!(0.5)).unwrap_err(),
        "/messages/0/weight: expected true, false, 1 or 0 (whether the turn is learned), found the number 0.5"
    );
    assert_eq!(
        with("user", "train", json!(true)).unwrap_err(),
        "/messages/0/train: only assistant turns can be supervised, and this is a user turn; remove `train`"
    );
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
        with(json!({"role": "narrator", "content": "x"})),
        "/messages/1/role: unknown role \"narrator\"; tune knows system, user, assistant, tool and their usual other names: \
         say which one it is, as in `roles = { user = \"narrator\" }`, in the `[[dataset]]`"
    );
    assert_eq!(
        with(json!("x")),
        "/messages/1: expected a message with a role and a content, found the string \"x\""
    );
    assert_eq!(
        with(json!({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]})),
        "/messages/1/content/0/type: expected `text` (training takes text alone: leave parts of other kinds, or the row, \
         out), found the string \"image_url\""
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
    assert_eq!(fault.field, "/a~1b~0c/0");
    assert_eq!(fault.problem, "expected a message with a role and a content, found the string \"A\"");
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
         `completion`, `tools`, `documents`, `chat_template_kwargs`, `role`, `content`; did you mean `prompt`?"
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
        "a.csv: no column `prompt`, `completion`; it has `question`, `answer`; did you mean `fields = { prompt = \"question\", \
         completion = \"answer\" }`?"
    );
    assert_eq!(
        choose(Format::Text, &[("text", "body")], &["boby"]).unwrap_err().to_string(),
        "a.csv: no column `body`; it has `boby`; did you mean `fields = { text = \"boby\" }`?"
    );
    assert_eq!(
        choose(Format::Text, &[], &["x"]).unwrap_err().to_string(),
        "a.csv: no column `text`; it has `x`; name the columns that hold them: `fields = { text = \"…\" }`"
    );
    // What the suggestion says works.
    let said = choose(Format::Alpaca, &[("instruction", "question")], &["question", "answer"]).unwrap_err();
    let suggested = "`fields = { instruction = \"question\", output = \"answer\" }`";
    assert!(said.to_string().contains(suggested), "{said}");
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
    let list_of = |item| DataType::List(std::sync::Arc::new(arrow_schema::Field::new("item", item, true)));
    assert_eq!(
        choose(Format::Text, "text", DataType::Int64).unwrap_err().to_string(),
        "a.parquet: column `text`: expected strings, found Int64"
    );
    assert!(choose(Format::Tokens, "input_ids", list_of(DataType::Float32)).is_err());
    assert!(choose(Format::Messages, "messages", DataType::Int64).is_err());
    for (format, column, data_type) in [
        (Format::Text, "text", DataType::LargeUtf8),
        (Format::Messages, "messages", DataType::Utf8),
        (Format::Tokens, "input_ids", DataType::Utf8View),
        (Format::Text, "text", DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8))),
        (Format::Tokens, "input_ids", list_of(DataType::UInt8)),
        (Format::Messages, "messages", list_of(DataType::Struct(arrow_schema::Fields::empty()))),
    ] {
        assert_eq!(choose(format, column, data_type).unwrap(), [0]);
    }
}

/// The roles and contents of the messages of a row.
fn turns(row: &Json) -> Vec<(String, String)> {
    let Ok(Example::Conversation(conversation)) = read(Format::Messages, &[], row) else {
        panic!("{}", said(Format::Messages, row))
    };
    conversation.messages.into_iter().map(|message| (message.role, message.content)).collect()
}

#[test]
fn d7_roles_go_by_many_names() {
    for (name, role) in [
        ("User", "user"),
        ("human", "user"),
        ("model", "assistant"),
        ("chatgpt", "assistant"),
        ("developer", "system"),
        ("function", "tool"),
        ("observation", "tool"),
        ("ipython", "tool"),
    ] {
        for row in [
            json!({"messages": [{"role": name, "content": "x"}]}),
            json!({"conversations": [{"from": name, "value": "x"}]}),
        ] {
            assert_eq!(turns(&row), [(role.to_owned(), "x".to_owned())]);
        }
    }
    let mut spec = DatasetSpec::new("", Format::Messages);
    spec.roles = [("user".to_owned(), vec!["narrator".to_owned(), "model".to_owned()])].into();
    let row = json!({"messages": [{"role": "narrator", "content": "x"}, {"role": "model", "content": "y"}]});
    let object = Object::Json(row.as_object().unwrap());
    let Ok(Example::Conversation(conversation)) =
        Fields::new(&spec).unwrap().example(object, 1 << 20, &mut |_| {})
    else {
        panic!()
    };
    assert!(conversation.messages.iter().all(|message| message.role == "user"));
}

#[test]
fn d7_calls_of_tools_in_other_layouts() {
    let call = json!({"name": "search", "arguments": {"q": "rice"}});
    let expected = json!([{"type": "function", "function": call}]);
    for message in [
        json!({"from": "function_call", "value": call.to_string()}),
        json!({"from": "function_call", "value": json!([call]).to_string()}),
        json!({"role": "assistant", "content": null, "function_call": call}),
        json!({"role": "assistant", "content": null, "tool_calls": expected.to_string()}),
    ] {
        let row = json!({"messages": [message]});
        let Ok(Example::Conversation(conversation)) = read(Format::Messages, &[], &row) else {
            panic!("{row}")
        };
        let messages = conversation.messages;
        assert_eq!((messages[0].role.as_str(), messages[0].content.as_str()), ("assistant", ""));
        assert_eq!(Json::Object(messages[0].extra.clone()), json!({"tool_calls": expected}));
    }
    let fault =
        said(Format::Messages, &json!({"messages": [{"from": "function_call", "value": "search rice"}]}));
    assert!(
        fault.starts_with("/messages/0/value: this column holds a structure as JSON text; not valid JSON"),
        "{fault}"
    );
}

#[test]
fn d1_a_system_column_is_the_first_turn() {
    let turn = json!([{"role": "user", "content": "Hi"}]);
    for column in ["system", "system_prompt"] {
        let row = json!({column: "Rhyme.", "messages": turn});
        assert_eq!(turns(&row)[0], ("system".to_owned(), "Rhyme.".to_owned()), "{column}");
    }
    assert_eq!(turns(&json!({"system": "", "messages": turn})).len(), 1);
    let both = |column: &str| json!({"system": column, "messages": [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "Hi"}]});
    assert_eq!(turns(&both("Rhyme.")).len(), 2);
    assert!(
        said(Format::Messages, &both("Be brief."))
            .starts_with("/system: this column and the first message both")
    );
}

#[test]
fn d9_structures_as_json_text() {
    let list = json!([{"role": "user", "content": "Hi"}]);
    let expected = vec![("user".to_owned(), "Hi".to_owned())];
    assert_eq!(turns(&json!({"messages": list.to_string()})), expected);
    assert_eq!(turns(&json!({"messages": [list[0].to_string()]})), expected);
    let tokens = read(Format::Tokens, &[], &json!({"input_ids": "[1, 2]", "labels": " [-100, 2]"})).unwrap();
    assert_eq!(tokens, Example::Tokens { input_ids: vec![1, 2], labels: Some(vec![-100, 2]) });
    let python = said(Format::Messages, &json!({"messages": "[{'role': 'user', 'content': 'Hi'}]"}));
    assert!(python.starts_with("/messages: ") && python.contains("json.dumps"), "{python}");
}

#[test]
fn d13_parts_of_other_makers() {
    for content in [
        json!(["a", "b"]),
        json!([{"text": "a"}, {"text": "b"}]),
        json!([{"type": "input_text", "text": "a"}, {"type": "output_text", "text": "b"}]),
        json!([{"type": "text", "value": "a"}, "b"]),
    ] {
        let row = json!({"messages": [{"role": "user", "content": content}]});
        assert_eq!(turns(&row), [("user".to_owned(), "ab".to_owned())]);
    }
}

/// What is reported of a row, and its error.
fn reported(format: Format, ignore: &[&str], row: &Json) -> (Vec<String>, String) {
    let mut spec = DatasetSpec::new("", format);
    spec.ignore = ignore.iter().map(|name| (*name).to_owned()).collect();
    let mut names = Vec::new();
    let object = Object::Json(row.as_object().unwrap());
    let read = Fields::new(&spec).unwrap().example(object, 1 << 20, &mut |name| names.push(name.to_owned()));
    (names, read.map_or_else(|fault| format!("{}: {}", fault.field, fault.problem), |_| String::new()))
}

#[test]
fn d1_columns_that_are_not_used_are_named() {
    let row = json!({"prompt": "a", "completion": "b", "id": 7, "tags": [], "note": "", "score": null, "source": "web"});
    assert_eq!(reported(Format::PromptCompletion, &[], &row).0, ["id", "source"]);
    assert_eq!(reported(Format::PromptCompletion, &["source"], &row).0, ["id"]);
    let chat = json!([{"role": "user", "content": "Hi"}]);
    let pair = |column: &str, value: Json| json!({"prompt": "a", "completion": "b", column: value});
    for (format, column, row) in [
        (Format::Messages, "images", json!({"messages": chat, "images": ["cat.png"]})),
        (Format::Messages, "weight", json!({"messages": chat, "weight": 0})),
        (Format::PromptCompletion, "tools", pair("tools", json!("[{}]"))),
        (Format::PromptCompletion, "system", pair("system", json!("Rhyme."))),
        (Format::Alpaca, "history", json!({"instruction": "a", "output": "b", "history": [["c", "d"]]})),
        (Format::Tokens, "attention_mask", json!({"input_ids": [1, 2], "attention_mask": [1, 0]})),
        (Format::Tokens, "completion_mask", json!({"input_ids": [1, 2], "completion_mask": [0, 1]})),
    ] {
        let (_, fault) = reported(format, &[], &row);
        assert!(fault.starts_with(&format!("/{column}: this column is not used")), "{fault}");
        assert!(fault.contains(&format!("`ignore = [\"{column}\"]`")), "{fault}");
        assert_eq!(reported(format, &[column], &row), (Vec::new(), String::new()), "{column}");
    }
    // What says nothing is nothing.
    for (format, row) in [
        (Format::Messages, json!({"messages": chat, "images": [], "weight": 1.0})),
        (Format::Tokens, json!({"input_ids": [1, 2], "attention_mask": [1, 1]})),
        (Format::PromptCompletion, pair("tools", json!(null))),
    ] {
        assert_eq!(reported(format, &[], &row), (Vec::new(), String::new()));
    }
}

/// The example of a row with a prompt of its own.
fn prompted(format: Format, prompt: PromptSpec, row: &Json) -> Example {
    let fields = Fields { prompt, ..fields(format, &[]).unwrap() };
    fields.example(Object::Json(row.as_object().unwrap()), 1 << 20, &mut |_| {}).unwrap()
}

#[test]
fn a_prompt_of_the_recipe_is_filled_in_once_and_may_be_a_turn() {
    let text = |text: &str| Some(text.to_owned());
    let own = PromptSpec {
        template: text("{x} {instruction}|{input}\n"),
        without_input: text("{instruction}!"),
        chat: false,
    };
    let row = json!({"instruction": "say {input}", "input": "1", "output": "3"});
    assert_eq!(prompted(Format::Alpaca, own.clone(), &row), prompt_completion("{x} say {input}|1\n", "3"));
    let row = json!({"instruction": "Add.", "output": "3"});
    assert_eq!(prompted(Format::Alpaca, own.clone(), &row), prompt_completion("Add.!", "3"));
    let turns = Example::Conversation(vec![message("user", "Add.!"), message("assistant", "3")].into());
    assert_eq!(prompted(Format::Alpaca, PromptSpec { chat: true, ..own }, &row), turns);
    let row = json!({"prompt": "Hi", "completion": "Ho"});
    let framed = PromptSpec { template: text("Q: {prompt}\nA:"), ..PromptSpec::default() };
    assert_eq!(prompted(Format::PromptCompletion, framed, &row), prompt_completion("Q: Hi\nA:", "Ho"));
    let turns = Example::Conversation(vec![message("user", "Hi"), message("assistant", "Ho")].into());
    let chat = PromptSpec { chat: true, ..PromptSpec::default() };
    // What LLaMA-Factory's layout of Alpaca has beside them.
    let mut spec = DatasetSpec::new("", Format::Alpaca);
    spec.prompt = PromptSpec { template: text("{instruction}"), ..chat.clone() };
    let whole = json!({"instruction": "Go", "output": "Fly", "system": "Rhyme.", "history": [["Hi", "Sky"]],
        "tools": "[{\"name\": \"f\"}]"});
    let read =
        Fields::new(&spec).unwrap().example(Object::Json(whole.as_object().unwrap()), 1 << 20, &mut |_| {});
    let Ok(Example::Conversation(conversation)) = read else { panic!("{read:?}") };
    let said: Vec<&str> = conversation.messages.iter().map(|message| message.content.as_str()).collect();
    assert_eq!(said, ["Rhyme.", "Hi", "Sky", "Go", "Fly"]);
    assert_eq!(conversation.context.tools, json!([{"name": "f"}]));
    assert_eq!(prompted(Format::PromptCompletion, chat, &row), turns);
}
