//! Record shapes with answers to learn, to compare or to judge.

use serde_json::json;

use super::*;

fn text_answer(prompt: &str, answer: &str) -> Answer {
    Answer::Text { prompt: prompt.to_owned(), answer: answer.to_owned() }
}

fn said_answer(answer: &str) -> Answer {
    let messages = vec![message("user", "Hi"), message("assistant", answer)];
    Answer::Messages(Conversation { messages, given: 1, ..Conversation::default() })
}

#[test]
fn pairs_of_texts_in_every_layout() {
    let expected = |prompt, chosen, rejected| Example::Preference {
        chosen: text_answer(prompt, chosen),
        rejected: text_answer(prompt, rejected),
    };
    let explicit = json!({"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"});
    assert_eq!(read(Format::Preference, &[], &explicit).unwrap(), expected("2 + 2 =", " 4", " 5"));
    // TRL's implicit prompt: all that both begin with, a space before the answers left to them.
    let implicit = json!({"chosen": "The sky is blue.", "rejected": "The sky is green."});
    let split = expected("The sky is", " blue.", " green.");
    assert_eq!(read(Format::Preference, &[], &implicit).unwrap(), split);
    // Anthropic's dialogues: the answers may begin alike.
    let dialogue = json!({
        "chosen": "\n\nHuman: Hi\n\nAssistant: Hello there", "rejected": "\n\nHuman: Hi\n\nAssistant: Hell no"});
    let split = expected("\n\nHuman: Hi\n\nAssistant:", " Hello there", " Hell no");
    assert_eq!(read(Format::Preference, &[], &dialogue).unwrap(), split);
    let mapped = json!({"question": "a", "good": "b", "bad": "c"});
    let mapping = [("prompt", "question"), ("chosen", "good"), ("rejected", "bad")];
    assert_eq!(read(Format::Preference, &mapping, &mapped).unwrap(), expected("a", "b", "c"));
}

#[test]
fn pairs_of_conversations_in_every_layout() {
    let expected = Example::Preference { chosen: said_answer("Hello"), rejected: said_answer("What?") };
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let (user, hello, what) = (turn("user", "Hi"), turn("assistant", "Hello"), turn("assistant", "What?"));
    for row in [
        json!({"prompt": [user], "chosen": [hello], "rejected": [what]}),
        json!({"chosen": [user, hello], "rejected": [user, what]}),
        // The prompt as a text beside whole conversations, as UltraFeedback has it.
        json!({"prompt": "Hi", "chosen": [user, hello], "rejected": [user, what]}),
        // LLaMA-Factory's two layouts.
        json!({"instruction": "Hi", "input": "", "chosen": "Hello", "rejected": "What?"}),
        json!({"conversations": [{"from": "human", "value": "Hi"}],
               "chosen": {"from": "gpt", "value": "Hello"}, "rejected": {"from": "gpt", "value": "What?"}}),
    ] {
        assert_eq!(read(Format::Preference, &[], &row).unwrap(), expected, "{row}");
    }
}

#[test]
fn d10_prompt_and_completion_may_be_messages() {
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let earlier =
        [turn("system", "Rhyme."), turn("user", "Hi"), turn("assistant", "Sky"), turn("user", "Go")];
    let tools = json!([{"name": "f"}]);
    let messages = vec![
        message("system", "Rhyme."),
        message("user", "Hi"),
        message("assistant", "Sky"),
        message("user", "Go"),
        message("assistant", "Fly"),
    ];
    let context = Context { tools: tools.clone(), ..Context::default() };
    let expected = Example::Conversation(Conversation { messages, context, given: 4 });
    for (prompt, completion) in [
        (json!(earlier), json!([turn("assistant", "Fly")])),
        (json!(earlier), json!("Fly")),
        (json!(json!(earlier).to_string()), json!({"from": "gpt", "value": "Fly"})),
    ] {
        let row = json!({"prompt": prompt, "completion": completion, "tools": tools});
        assert_eq!(read(Format::PromptCompletion, &[], &row).unwrap(), expected, "{row}");
    }
    // Texts that look like lists stay texts.
    let row = json!({"prompt": "[{\"a\": 1}]", "completion": "[1]"});
    let texts = prompt_completion("[{\"a\": 1}]", "[1]");
    assert_eq!(read(Format::PromptCompletion, &[], &row).unwrap(), texts);
    let missing = json!({"prompt": earlier});
    let problem = "/completion: expected a text or a list of messages, found null";
    assert_eq!(said(Format::PromptCompletion, &missing), problem);
}

#[test]
fn d1_pairs_and_single_answers_have_tools_and_documents() {
    let (user, answer) = (json!([{"role": "user", "content": "Hi"}]), json!("Hello"));
    let row = json!({"prompt": user, "chosen": answer, "rejected": "What?", "documents": [{"title": "t"}]});
    let Ok(Example::Preference { chosen: Answer::Messages(chosen), rejected: Answer::Messages(rejected) }) =
        read(Format::Preference, &[], &row)
    else {
        panic!()
    };
    assert_eq!(chosen.context.documents, json!([{"title": "t"}]));
    assert_eq!(chosen.context, rejected.context);
    let row = json!({"prompt": user, "completion": answer, "label": true, "tools": "[{\"name\": \"f\"}]"});
    let Ok(Example::Feedback { answer: Answer::Messages(answer), .. }) = read(Format::Feedback, &[], &row)
    else {
        panic!()
    };
    assert_eq!(answer.context.tools, json!([{"name": "f"}]));
    let texts = json!({"prompt": "a", "chosen": "b", "rejected": "c", "tools": [{"name": "f"}]});
    assert!(said(Format::Preference, &texts).starts_with("/tools: this column is not used"));
}

#[test]
fn pairs_that_cannot_be_compared_are_named() {
    let pair = |chosen: Json, rejected: Json| {
        said(Format::Preference, &json!({"prompt": "a", "chosen": chosen, "rejected": rejected}))
    };
    assert_eq!(pair(json!("b"), json!("b")), "/rejected: the chosen and the rejected answer are equal");
    assert_eq!(pair(json!(" "), json!("b")), "/chosen: the answer is empty");
    assert_eq!(pair(json!("b"), json!(null)), "/rejected: expected a text or a list of messages, found null");
    let mixed = pair(json!("b"), json!([{"role": "assistant", "content": "c"}]));
    assert_eq!(mixed, "/rejected: one answer is a text and the other a list of messages");
    let apart = json!({"chosen": "abc", "rejected": "xyz"});
    let message = "/chosen: there is no `prompt`, and the two answers do not begin alike";
    assert_eq!(said(Format::Preference, &apart), message);
    let turn = |content: &str| json!({"role": "user", "content": content});
    let answer = json!({"role": "assistant", "content": "x"});
    let prompts_differ = json!({"chosen": [turn("a"), answer], "rejected": [turn("b"), answer]});
    let message = "/chosen: the two conversations have no prompt in common that an assistant answers";
    assert_eq!(said(Format::Preference, &prompts_differ), message);
}

#[test]
fn single_answers_in_every_layout() {
    let expected = |wanted| Example::Feedback { answer: said_answer("Hello"), wanted };
    let (user, hello) =
        (json!({"role": "user", "content": "Hi"}), json!({"role": "assistant", "content": "Hello"}));
    for (row, wanted) in [
        (json!({"prompt": [user], "completion": [hello], "label": true}), true),
        (json!({"messages": [user, hello], "label": false}), false),
        (
            json!({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
                "kto_tag": true}),
            true,
        ),
        (json!({"prompt": [user], "completion": "Hello", "label": 0}), false),
    ] {
        assert_eq!(read(Format::Feedback, &[], &row).unwrap(), expected(wanted), "{row}");
    }
    let texts = json!({"prompt": "a", "completion": "b", "label": "True"});
    let expected = Example::Feedback { answer: text_answer("a", "b"), wanted: true };
    assert_eq!(read(Format::Feedback, &[], &texts).unwrap(), expected);
    let unlabelled = json!({"prompt": "a", "completion": "b", "label": "maybe"});
    assert_eq!(said(Format::Feedback, &unlabelled), "/label: expected true or false, found \"maybe\"");
}
