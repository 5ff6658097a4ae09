//! Chat templates against transformers: what its own renderer wrote (`tests/golden/templates.py`), and what is
//! supervised in it.
#![expect(clippy::unwrap_used, reason = "helpers of tests stop where they fail")]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tune::data::example::{Context, Message};
use tune::data::spec::TrainOn;
use tune::data::template::{CHATML, ChatTemplate, TemplateError};

/// Special tokens that the templates write.
const SPECIAL: [&str; 39] = [
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|im_sep|>",
    "<|end|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|endoftext|>",
    "[INST]",
    "[/INST]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CALLS]",
    "[ARGS]",
    "<|start_of_role|>",
    "<|end_of_role|>",
    "<|end_of_text|>",
    "[gMASK]",
    "<sop>",
    "<|observation|>",
    "<|turn>",
    "<turn|>",
    "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|START_RESPONSE|>",
    "<|END_RESPONSE|>",
    "<|start|>",
    "<|channel|>",
    "<|message|>",
    "<|call|>",
    "<|return|>",
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/templates")
}

fn template(source: String, name: &str) -> ChatTemplate {
    let variables =
        [("bos_token", "<s>"), ("eos_token", "</s>")].map(|(name, token)| (name.into(), token.into()));
    ChatTemplate::new(source, name, variables, SPECIAL.map(str::to_owned)).unwrap()
}

/// Every template of a folder with its cases, in `cases/<name>.json`.
fn goldens(templates: &Path, cases: &Path) -> Vec<(String, ChatTemplate, Vec<Value>)> {
    let mut names: Vec<String> = fs::read_dir(templates)
        .unwrap()
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            name.strip_suffix(".jinja").map(str::to_owned)
        })
        .collect();
    names.sort();
    names
        .into_iter()
        .map(|name| {
            let source = fs::read_to_string(templates.join(format!("{name}.jinja"))).unwrap();
            let cases = fs::read_to_string(cases.join(format!("{name}.json"))).unwrap();
            let template = template(source, &name);
            (name, template, serde_json::from_str::<Vec<Value>>(&cases).unwrap())
        })
        .collect()
}

fn render(template: &ChatTemplate, case: &Value) -> Result<String, TemplateError> {
    let messages = case["messages"].as_array().unwrap();
    template.render_json(messages, &Context::default(), case["add_generation_prompt"].as_bool().unwrap())
}

/// The case's messages in the shape that a dataset gives them; `None` if a content is no string.
fn messages(case: &Value) -> Option<Vec<Message>> {
    let message = |message: &Value| {
        let mut extra = message.as_object().unwrap().clone();
        let mut take = |key| extra.shift_remove(key).and_then(|value| value.as_str().map(str::to_owned));
        Some(Message { role: take("role")?, content: take("content")?, extra })
    };
    case["messages"].as_array().unwrap().iter().map(message).collect()
}

#[test]
fn templates_render_as_transformers_renders_them() {
    let (mut count, mut faults) = (0, Vec::new());
    for (name, template, cases) in goldens(&folder(), &folder()) {
        for mut case in cases {
            count += 1;
            if name == "features_python" {
                // The engine has no tuples: they are lists, and print as such.
                case["rendered"] = case["rendered"].as_str().unwrap().replace("(1, 2)", "[1, 2]").into();
            }
            let case = &case;
            let rendered = render(&template, case);
            let agrees = match (&rendered, case.get("rendered"), case.get("error")) {
                (Ok(text), Some(expected), _) => Some(text.as_str()) == expected.as_str(),
                (Err(TemplateError::Refused { message, .. }), None, Some(expected)) => {
                    Some(message.as_str()) == expected.as_str()
                }
                _ => false,
            };
            if !agrees {
                let expected = case["rendered"].as_str().or(case["error"].as_str()).unwrap();
                let got = rendered.unwrap_or_else(|error| error.to_string());
                let same =
                    expected.chars().zip(got.chars()).take_while(|(left, right)| left == right).count();
                let part =
                    |text: &str| text.chars().skip(same.saturating_sub(20)).take(60).collect::<String>();
                let (expected, got) = (part(expected), part(&got));
                faults.push(format!(
                    "{name}, {}:\n  expected …{expected:?}…\n  got      …{got:?}…",
                    case["name"]
                ));
            }
        }
    }
    assert!(count > 430, "only {count} cases");
    assert!(faults.is_empty(), "{} of {count} cases differ:\n{}", faults.len(), faults.join("\n"));
}

/// In every conversation that a template renders, each assistant turn's span holds the content of the turn, ends in
/// the template's end token, and nothing of what others said is supervised.
#[test]
fn spans_are_the_assistants_words_and_their_end() {
    let mut turns = 0;
    for (name, template, cases) in goldens(&folder(), &folder()) {
        if name.starts_with("features") {
            continue;
        }
        let Some(end) = template.end_of_turn() else {
            // The role of the next turn ends one there.
            assert_eq!(name, "glm4", "ends its turns with nothing");
            continue;
        };
        for case in cases.iter().filter(|case| case["add_generation_prompt"] == false) {
            let (Some(messages), Some(_)) = (messages(case), case.get("rendered")) else { continue };
            let context = format!("{name}, {}", case["name"]);
            let rendered = template.supervise(&messages.clone().into(), TrainOn::Assistant);
            let rendered = rendered.unwrap_or_else(|error| panic!("{context}: {error}"));
            assert_eq!(Some(rendered.text.as_str()), case["rendered"].as_str(), "{context}");
            let assistant: Vec<&Message> =
                messages.iter().filter(|message| message.role == "assistant").collect();
            let shown = |message: &&Message| {
                !message.content.trim().is_empty() || message.extra.contains_key("tool_calls")
            };
            let assistant: Vec<&Message> = assistant.into_iter().filter(shown).collect();
            assert_eq!(rendered.spans.len(), assistant.len(), "{context}");
            for (span, message) in rendered.spans.iter().zip(assistant) {
                turns += 1;
                let text = &rendered.text[span.clone()];
                // One format has an end for answers that others follow, and one for calls.
                let others: &[&str] = if name == "gptoss" { &["<|end|>", "<|call|>"] } else { &[] };
                let said = [end.as_str()].iter().chain(others).find_map(|end| text.strip_suffix(end));
                let said = said.unwrap_or_else(|| panic!("{context}: {text:?}"));
                let content = message.content.rsplit("</think>").next().unwrap().trim();
                if message.extra.contains_key("tool_calls") {
                    assert!(said.contains(content), "{context}: {text:?}");
                } else {
                    assert!(said.trim_end().ends_with(content), "{context}: {text:?}");
                    let before = said.trim_end().strip_suffix(content).unwrap().trim();
                    let thought = before.is_empty()
                        || before.ends_with("</think>")
                        || (name == "cohere2" && before == "<|START_RESPONSE|>")
                        || (name == "gptoss" && before.ends_with("<|channel|>final<|message|>"));
                    assert!(thought, "{context}: {text:?} begins with more than the content");
                }
            }
        }
    }
    assert!(turns > 150, "only {turns} turns");
}

#[test]
fn the_built_in_chatml_is_chatml() {
    let cases = fs::read_to_string(folder().join("chatml.json")).unwrap();
    let built_in = template(CHATML.to_owned(), "chatml");
    for case in &serde_json::from_str::<Vec<Value>>(&cases).unwrap() {
        assert_eq!(render(&built_in, case).ok().as_deref(), case["rendered"].as_str(), "{}", case["name"]);
    }
}

/// Where templates mark the assistant's words themselves (`{% generation %}`), the spans found by comparing lie
/// within the marks, and hold everything in them but what follows the end token.
#[test]
fn spans_agree_with_generation_marks() {
    let mut marked = 0;
    for (name, template, cases) in goldens(&folder(), &folder()) {
        for case in &cases {
            let (Some(marks), Some(messages)) = (case.get("generation_spans"), messages(case)) else {
                continue;
            };
            if case["add_generation_prompt"] == true {
                continue;
            }
            let rendered = template.supervise(&messages.clone().into(), TrainOn::Assistant).unwrap();
            // transformers counts characters; we count bytes.
            let byte = |characters: &Value| {
                let at = characters.as_u64().unwrap() as usize;
                rendered.text.char_indices().nth(at).map_or(rendered.text.len(), |(byte, _)| byte)
            };
            // Blank answers are marked there, and not learned here.
            let assistant = messages.iter().filter(|message| message.role == "assistant");
            let marks: Vec<_> = marks.as_array().unwrap().iter().map(|m| byte(&m[0])..byte(&m[1])).collect();
            let marks = marks.into_iter().zip(assistant).filter(|(_, message)| {
                !message.content.trim().is_empty() || message.extra.contains_key("tool_calls")
            });
            let marks: Vec<_> = marks.map(|(mark, _)| mark).collect();
            assert_eq!(marks.len(), rendered.spans.len(), "{name}, {}", case["name"]);
            for (mark, span) in marks.iter().zip(&rendered.spans) {
                marked += 1;
                assert_eq!(mark.start, span.start, "{name}, {}", case["name"]);
                assert!(rendered.text[span.end.min(mark.end)..mark.end].trim().is_empty());
            }
        }
    }
    assert!(marked > 10, "only {marked} marked turns");
}

/// Conversations with tools, as transformers renders them, whether the arguments of calls are objects or their JSON text.
#[test]
fn tools_and_their_calls_render_as_transformers_renders_them() {
    let dumps = |value: &Value| {
        let context = Context { tools: value.clone(), ..Context::default() };
        template("{{ tools | tojson }}".to_owned(), "dumps").render_json(&[], &context, false).unwrap()
    };
    let mut count = 0;
    for name in ["gemma4", "glm4", "granite", "llama31", "ministral3", "qwen25", "qwen3", "smollm3"] {
        let source = fs::read_to_string(folder().join(format!("{name}.jinja"))).unwrap();
        let cases = fs::read_to_string(folder().join(format!("tools/{name}.json"))).unwrap();
        let template = template(source, name);
        for case in serde_json::from_str::<Vec<Value>>(&cases).unwrap() {
            let context = Context { tools: case["tools"].clone(), ..Context::default() };
            let mut messages = case["messages"].as_array().unwrap().clone();
            for form in ["objects", "JSON text"] {
                count += 1;
                let prompt = case["add_generation_prompt"].as_bool().unwrap();
                let rendered = template.render_json(&messages, &context, prompt);
                let said = match &rendered {
                    Ok(text) => text.as_str(),
                    Err(TemplateError::Refused { message, .. }) => message.as_str(),
                    Err(error) => panic!("{name}, {}, {form}: {error}", case["name"]),
                };
                let expected = case["rendered"].as_str().or(case["error"].as_str()).unwrap();
                assert_eq!(said, expected, "{name}, {}, {form}", case["name"]);
                let calls = messages.iter_mut().filter_map(|message| message.get_mut("tool_calls"));
                for call in calls.flat_map(|calls| calls.as_array_mut().unwrap()) {
                    let arguments = &mut call["function"]["arguments"];
                    *arguments = dumps(arguments).into();
                }
            }
        }
    }
    assert!(count > 30, "only {count} cases");
}
