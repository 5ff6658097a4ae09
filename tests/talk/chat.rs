//! `tune chat` from a pipe: turns, commands, limits, signals.

use crate::support::{base, base_without_template, lines, said, text, tune_with};

#[test]
fn a_piped_chat_answers_line_by_line() {
    let folder = tempfile::tempdir().unwrap();
    let base = base().display().to_string();
    let chat = |input: &str| said(&tune_with(folder.path(), &["chat", "--base", &base], input));
    let both = chat("What is a drum for?\n\nWhat is a garden for?\n");
    let answers: Vec<&str> = both.lines().collect();
    assert_eq!(answers.len(), 2, "{both:?}");
    assert!(!both.contains('>') && !both.contains('\u{1b}'), "{both:?}");
    // The second question is answered in the light of the first, unless that is forgotten.
    assert_eq!(chat("What is a drum for?\n").lines().next(), Some(answers[0]));
    let forgotten = chat("What is a drum for?\n/reset\nWhat is a garden for?\n");
    let alone = chat("What is a garden for?");
    assert_eq!(forgotten, format!("{}\n{alone}", answers[0]));
    assert_eq!(chat("/exit\nWhat is a drum for?\n"), "");
    assert_eq!(chat(""), "");
}

#[test]
fn a_system_message_is_heard() {
    let folder = tempfile::tempdir().unwrap();
    let base = base().display().to_string();
    let question = "What is a drum for?\n";
    let tokens = |arguments: &[&str], input: &str| {
        let arguments = [&["chat", "--base", &base, "--json"][..], arguments].concat();
        let events = lines(&said(&tune_with(folder.path(), &arguments, input)));
        assert_eq!(events.first().unwrap()["command"], "chat");
        assert_eq!(events.last().unwrap()["exit_code"], 0);
        let answers = events.into_iter().filter(|event| event["event"] == "answer");
        answers.map(|answer| answer["prompt_tokens"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    let plain = tokens(&[], question)[0];
    let under = tokens(&["--system", "Speak like a pirate."], question)[0];
    assert!(under > plain);
    assert_eq!(
        tokens(&[], &format!("/system Speak like a pirate.\n{question}/system\n{question}")),
        [under, plain]
    );
}

#[test]
fn what_cannot_go_on_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let base = base().display().to_string();
    let refused = |arguments: &[&str], input: &str, code: i32| {
        let run = tune_with(folder.path(), &[&["chat"], arguments].concat(), input);
        assert_eq!(run.status.code(), Some(code), "{}", text(&run.stderr));
        (text(&run.stdout), text(&run.stderr))
    };
    let long = format!("What is a drum for?\n{}\nWhat is a garden for?\n", "word ".repeat(2000));
    let (answers, error) = refused(&["--base", &base], &long, 1);
    assert_eq!(answers.lines().count(), 1);
    assert!(error.contains("context is 1024") && error.contains("/reset"), "{error}");
    assert!(refused(&["--base", &base], "/restart\n", 2).1.contains("`/restart`"));
    let plain = base_without_template(folder.path()).display().to_string();
    assert!(refused(&["--base", &plain], "Hello.\n", 2).1.contains("no chat template"));
    // A slash that is meant.
    assert_eq!(
        said(&tune_with(folder.path(), &["chat", "--base", &base], "//etc is what?\n")).lines().count(),
        1
    );
}

#[cfg(unix)]
#[test]
fn an_interrupt_stops_an_answer_and_not_the_chat() {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::process::{Command, Stdio};

    let base = base().display().to_string();
    let mut child = Command::new(env!("CARGO_BIN_EXE_tune"))
        .args(["chat", "--base", &base, "--json", "--temperature", "3", "--max-new-tokens", "900"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    writeln!(input, "Tell me everything.").unwrap();
    let mut line = String::new();
    let mut next = |event: &str| loop {
        line.clear();
        assert!(output.read_line(&mut line).unwrap() > 0, "no `{event}`");
        let found: serde_json::Value = serde_json::from_str(&line).unwrap();
        if found["event"] == event {
            return found;
        }
    };
    next("text");
    // The shell's own `kill`: a program of that name is not on every machine.
    let killed = Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(killed.success());
    let finish = next("answer")["finish"].clone();
    assert!(finish == "interrupted" || finish == "stop", "{finish}");
    writeln!(input, "What is a drum for?").unwrap();
    assert_eq!(next("answer")["turn"], 1);
    drop(input);
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
