//! `tune chat`: turns of a conversation, from a terminal or a pipe.

use std::io::{self, BufRead, IsTerminal, Write};
use std::ops::ControlFlow;

use serde_json::{Value, json};

use super::console::Console;
use super::environment::{Interrupts, hub_cache};
use super::exit::Exit;
use super::speed;
use super::style::{FAINT, STRONG, WARNING, paint, visible};
use super::talk_args::ChatArguments;
use crate::generate::memory::Extent;
use crate::generate::{Answer, Ending, Sampling, answer::Request};
use crate::run::prompts::{Manner, Prompt};
use crate::run::voice::{Speaker, Voice, Who};
use crate::run::{self, Environment};

const HELP: &str = "\
/reset          forget the conversation
/system TEXT    begin anew under this system message; without TEXT, under none
/help           this
/exit           leave, as Ctrl-D does

Ctrl-C stops an answer. A line that begins with // is said with one slash.";

/// Tokens of a conversation that memory is planned for.
const CONVERSATION: usize = 2048;

/// Talks until the other end has nothing more to say.
pub(super) fn chat(arguments: &ChatArguments, console: &mut Console<'_>) -> io::Result<Exit> {
    let cache = hub_cache();
    let environment = Environment { hub_cache: &cache, stop: &|| false };
    let speaker = match Speaker::open(arguments.model.choice(), &environment) {
        Ok(speaker) => speaker,
        Err(error) => return Ok(console.failure(&error)),
    };
    // Whether the template takes a conversation at all is told before minutes of loading.
    if let Err(error) = speaker.encode(&Prompt::Text("Hello.".into()), Manner::default()) {
        return Ok(console.failure(&error));
    }
    // How long a talk becomes, nobody knows: there is to be room for so much of it, and for one answer at least.
    let conversation = speaker.context().min(CONVERSATION.max(2 * arguments.sampling.max_new_tokens));
    let extent = Extent { conversation, row: 0, speakers: 1 };
    let outcome = speaker.speak(extent, console, |voice, console| {
        console.quiet();
        let people = io::stdin().is_terminal() && io::stdout().is_terminal() && !console.json();
        let mut conversation = Conversation {
            speaker: &speaker,
            arguments,
            sampling: arguments.sampling.sampling(&speaker.end_tokens),
            interrupts: Interrupts::listen(),
            system: arguments.system.clone(),
            turns: Vec::new(),
            answered: 0,
            people,
        };
        let exit = conversation.run(voice, console)?;
        if exit == Exit::Done {
            console.event("result", &json!({"turns": conversation.answered}));
        }
        Ok(exit)
    });
    match outcome {
        Ok(exit) => exit,
        Err(error) => Ok(console.failure(&error)),
    }
}

/// Who said what so far, and how it goes on.
struct Conversation<'a> {
    speaker: &'a Speaker,
    arguments: &'a ChatArguments,
    sampling: Sampling,
    interrupts: Interrupts,
    system: Option<String>,
    /// Messages of users and the model, in turn.
    turns: Vec<Value>,
    /// How many turns were answered, the forgotten ones included.
    answered: u64,
    /// A person sits at both ends.
    people: bool,
}

/// What a line asks for.
enum Line<'a> {
    Nothing,
    Say(String),
    Reset,
    System(Option<String>),
    Help,
    Exit,
    Unknown(&'a str),
}

impl<'a> Line<'a> {
    fn of(line: &'a str) -> Self {
        let line = line.trim_end_matches(['\n', '\r']);
        let Some(command) = line.strip_prefix('/') else {
            return if line.trim().is_empty() { Self::Nothing } else { Self::Say(line.to_owned()) };
        };
        if command.starts_with('/') {
            return Self::Say(command.to_owned());
        }
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        match (name, rest.is_empty()) {
            ("system", is_empty) => Self::System((!is_empty).then(|| rest.to_owned())),
            ("reset", true) => Self::Reset,
            ("help" | "?", true) => Self::Help,
            ("exit" | "quit" | "bye", true) => Self::Exit,
            _ => Self::Unknown(line),
        }
    }
}

impl Conversation<'_> {
    fn run(&mut self, voice: &mut Voice<'_>, console: &mut Console<'_>) -> io::Result<Exit> {
        self.greet();
        let mut number = 0;
        loop {
            self.prompt(console)?;
            let mut bytes = Vec::new();
            if io::stdin().lock().read_until(b'\n', &mut bytes)? == 0 {
                if self.people {
                    writeln!(console.out())?;
                }
                return Ok(Exit::Done);
            }
            let Ok(line) = String::from_utf8(bytes) else {
                console.error("standard input: a line that is not UTF-8 text", None);
                if self.people {
                    continue;
                }
                return Ok(Exit::Data);
            };
            match Line::of(&line) {
                Line::Nothing => {}
                Line::Say(text) => {
                    if let Some(exit) = self.say(&text, number, voice, console)? {
                        return Ok(exit);
                    }
                    number += 1;
                }
                Line::Reset => {
                    self.turns.clear();
                    self.note("the conversation is forgotten");
                }
                Line::System(text) => {
                    self.turns.clear();
                    self.note(match &text {
                        Some(_) => "begins anew under this system message",
                        None => "begins anew under no system message",
                    });
                    self.system = text;
                }
                Line::Help => self.note(HELP),
                Line::Exit => return Ok(Exit::Done),
                Line::Unknown(line) => {
                    let message = format!(
                        "there is no command `{}`; `/help` lists them, and `//` says a slash",
                        visible(line)
                    );
                    console.error(&message, None);
                    if !self.people {
                        return Ok(Exit::Recipe);
                    }
                }
            }
        }
    }

    fn greet(&self) {
        if self.people {
            let adapter = match &self.speaker.adapter {
                Some((adapter, _)) => format!(" with {}", adapter.folder().display()),
                None => String::new(),
            };
            self.note(&format!("{}{adapter}; /help for commands, Ctrl-D to leave", self.speaker.base.name()));
        }
    }

    /// Something for people at a terminal.
    fn note(&self, text: &str) {
        if self.people {
            let _ = writeln!(anstream::stderr(), "{}", paint(FAINT, text));
        }
    }

    fn prompt(&self, console: &mut Console<'_>) -> io::Result<()> {
        if self.people {
            write!(console.out(), "{} ", paint(STRONG, ">"))?;
            console.out().flush()?;
        }
        Ok(())
    }

    /// One turn. An exit ends the conversation.
    fn say(
        &mut self,
        text: &str,
        number: u64,
        voice: &mut Voice<'_>,
        console: &mut Console<'_>,
    ) -> io::Result<Option<Exit>> {
        self.turns.push(json!({"role": "user", "content": text}));
        let system = self.system.iter().map(|content| json!({"role": "system", "content": content}));
        let messages: Vec<Value> = system.chain(self.turns.iter().cloned()).collect();
        let answer = self
            .speaker
            .encode(&Prompt::Messages(messages), Manner::default())
            .and_then(|ids| self.answer(&ids, number, voice, console));
        match answer {
            Ok(answer) => {
                self.turns.push(json!({"role": "assistant", "content": answer.text}));
                self.told(&answer, number, console)?;
                self.answered += 1;
                Ok(None)
            }
            Err(run::Error::Output(error)) => Err(error),
            Err(error) => {
                // What was not answered was not said: the conversation goes on from before it.
                self.turns.pop();
                let exit = match &error {
                    run::Error::Generate(crate::generate::Error::PromptTooLong { prompt, context }) => {
                        let message = format!(
                            "the conversation has {prompt} tokens with this, and the model sees at most {context}: \
                             it cannot go on"
                        );
                        console.error(&message, Some("`/reset` begins anew; nothing is dropped in silence"));
                        Exit::Other
                    }
                    error => console.failure(error),
                };
                Ok((!self.people).then_some(exit))
            }
        }
    }

    fn answer(
        &self,
        ids: &[u32],
        number: u64,
        voice: &mut Voice<'_>,
        console: &mut Console<'_>,
    ) -> Result<Answer, run::Error> {
        self.interrupts.forget();
        let sampling = Sampling { answer: number, ..self.sampling.clone() };
        let request = Request { prompt: ids, sampling: &sampling, stops: &self.arguments.sampling.stop };
        let mut fault = None;
        let answer = voice.answer(Who::Adapted, request, &mut |piece| {
            if self.interrupts.raised() {
                return ControlFlow::Break(());
            }
            if !piece.is_empty() {
                if console.json() {
                    console.event("text", &json!({"turn": number, "text": piece}));
                    return ControlFlow::Continue(());
                }
                let shown = if io::stdout().is_terminal() { visible(piece) } else { piece.to_owned() };
                if let Err(error) = write!(console.out(), "{shown}").and_then(|()| console.out().flush()) {
                    fault = Some(error);
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        });
        match fault {
            Some(error) => Err(run::Error::Output(error)),
            None => answer,
        }
    }

    /// What is to be said behind an answer.
    fn told(&self, answer: &Answer, number: u64, console: &mut Console<'_>) -> io::Result<()> {
        if console.json() {
            console.event(
                "answer",
                &json!({
                    "turn": number,
                    "response": answer.text,
                    "finish": answer.ending.name(),
                    "prompt_tokens": answer.prompt_tokens,
                    "response_tokens": answer.tokens,
                }),
            );
        } else {
            writeln!(console.out())?;
            console.out().flush()?;
        }
        let cut = match answer.ending {
            Ending::Length => Some("the answer was cut at --max-new-tokens"),
            Ending::ContextFull => {
                Some("the answer was cut: the conversation fills what the model sees; /reset begins anew")
            }
            Ending::Interrupted => Some("stopped"),
            Ending::Stop | Ending::StopString(_) => None,
        };
        if let (Some(text), false) = (cut, console.json()) {
            let _ = writeln!(anstream::stderr(), "{}", paint(WARNING, text));
        }
        if self.arguments.verbose {
            speed::say("", answer);
        }
        Ok(())
    }
}
