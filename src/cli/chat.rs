//! `tune chat`: a conversation on a terminal or through a pipe.

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;

use clap::Args;
use serde_json::{Value, json};

use super::args::{ModelArguments, SamplingArguments};
use super::chat_input::{Entered, Input};
use super::console::Console;
use super::environment::{self, Context, Interrupts};
use super::exit::Exit;
use super::failure::Failure;
use super::speed;
use super::style::{FAINT, WARNING, error_width, paint, visible, wrapped};
use crate::generate::memory::Extent;
use crate::generate::{Answer, Ending, Sampling, answer::Request};
use crate::run;
use crate::run::inference::{LoadedModel, OpenedModel, Side};
use crate::run::prompts::{Prompt, PromptStyle};

/// Arguments of `tune chat`.
#[derive(Debug, Args)]
pub struct ChatArguments {
    /// A run, an adapter, or a base model: a folder, or a hub id in the local cache
    #[arg(value_name = "MODEL")]
    pub named: Option<String>,
    /// The system message
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Print the speed of each answer to standard error
    #[arg(short, long)]
    pub verbose: bool,
    /// Keep no history of what is typed at the prompt [default: the last 1,000 lines, in ~/.local/state/tune/chat_history
    /// or under $XDG_STATE_HOME, readable by you alone]
    #[arg(long)]
    pub no_history: bool,
    /// The model.
    #[command(flatten, next_help_heading = "Model")]
    pub model: ModelArguments,
    /// The answers.
    #[command(flatten, next_help_heading = "Answers")]
    pub sampling: SamplingArguments,
}

const HELP: &str = "\
/reset          start a new conversation
/system TEXT    start a new conversation with this system message, or with none
/help           show this help
/exit           leave, as Ctrl-D does

Ctrl-C stops an answer. A line that starts with // is sent with one slash.";

/// Added to the help where there is a history.
const HISTORY_HELP: &str = "Up and Down show earlier lines, Ctrl-R searches them. A line that starts with a space is not kept; \
                            `--no-history` keeps none. They are in";

/// Tokens of a conversation that memory is reserved for.
const CONVERSATION: usize = 2048;

/// Answers line by line until the input ends.
pub(super) fn chat(
    arguments: &ChatArguments,
    context: &Context<'_>,
    console: &mut Console<'_>,
) -> Result<Exit, Failure> {
    let model = arguments.model.naming(arguments.named.as_deref(), context.environment.hub_cache)?;
    let opened = OpenedModel::open(model.choice(), &context.environment)?;
    // A template that cannot render a conversation fails here, before minutes of loading.
    opened.encode(&Prompt::Text("Hello.".into()), PromptStyle::default())?;
    // Conversations have no known length: reserve room for a usual one, or at least for one answer.
    let conversation = opened.context().min(CONVERSATION.max(2 * arguments.sampling.max_new_tokens));
    let extent = Extent { conversation, row: 0, lanes: 1 };
    let outcome = opened.with_loaded(extent, console, |model, console| {
        console.quiet();
        let interactive = io::stdin().is_terminal() && io::stdout().is_terminal() && !console.json();
        let history = if arguments.no_history { None } else { environment::chat_history() };
        let input = match interactive {
            true => Input::terminal(history.as_deref())?,
            false => Input::Piped,
        };
        let mut conversation = Conversation {
            opened: &opened,
            arguments,
            sampling: arguments.sampling.sampling(&opened.end_tokens),
            interrupts: Interrupts::listen(),
            system: arguments.system.clone(),
            turns: Vec::new(),
            answered: 0,
            interactive,
            input,
        };
        let exit = conversation.run(model, console)?;
        if exit == Exit::Done {
            console.event("result", &json!({"turns": conversation.answered}));
        }
        Ok(exit)
    });
    outcome?
}

/// The messages so far, and the settings of further answers.
struct Conversation<'a> {
    opened: &'a OpenedModel,
    arguments: &'a ChatArguments,
    sampling: Sampling,
    interrupts: Interrupts,
    system: Option<String>,
    /// Messages of users and the model, in turn.
    turns: Vec<Value>,
    /// Number of answered turns, before resets too.
    answered: u64,
    /// Input and output are a terminal.
    interactive: bool,
    input: Input,
}

/// What a line of input asks for.
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
    fn run(&mut self, model: &mut LoadedModel<'_>, console: &mut Console<'_>) -> Result<Exit, Failure> {
        self.greet();
        let mut number = 0;
        loop {
            console.out().flush()?;
            let line = match self.input.next(&self.interrupts, console.out()) {
                Ok(Entered::Line(line)) => line,
                Ok(Entered::End) => return Ok(Exit::Done),
                Err(error) => {
                    console.error(&format!("cannot read the next line: {error}"), None);
                    return Ok(Exit::Other);
                }
                Ok(Entered::NotText) => {
                    console.error("standard input: a line is not UTF-8 text", None);
                    if self.interactive {
                        continue;
                    }
                    return Ok(Exit::Data);
                }
            };
            let entered = Line::of(&line);
            if !matches!(entered, Line::Nothing | Line::Exit) {
                self.input.remember(line.trim_end());
            }
            match entered {
                Line::Nothing => {}
                Line::Say(text) => {
                    if let Some(exit) = self.say(&text, number, model, console)? {
                        return Ok(exit);
                    }
                    number += 1;
                }
                Line::Reset => {
                    self.turns.clear();
                    self.note("new conversation");
                }
                Line::System(text) => {
                    self.turns.clear();
                    self.note(match &text {
                        Some(_) => "new conversation with this system message",
                        None => "new conversation without a system message",
                    });
                    self.system = text;
                }
                Line::Help => {
                    self.note(HELP);
                    if let Some(file) = self.input.history() {
                        self.note(&format!("{HISTORY_HELP} {}.", file.display()));
                    }
                }
                Line::Exit => return Ok(Exit::Done),
                Line::Unknown(line) => {
                    let message = format!("unknown command `{}`", visible(line));
                    let help = "`/help` lists the commands; to send a line that starts with a slash, start it with `//`";
                    console.error(&message, Some(help));
                    if !self.interactive {
                        return Ok(Exit::Recipe);
                    }
                }
            }
        }
    }

    fn greet(&self) {
        if self.interactive {
            let adapter = match &self.opened.adapter {
                Some((adapter, _)) => format!(" with {}", adapter.folder().display()),
                None => String::new(),
            };
            self.note(&format!("{}{adapter}; /help lists commands, Ctrl-D leaves", self.opened.base.name()));
        }
    }

    /// A remark, shown on a terminal only.
    fn note(&self, text: &str) {
        if self.interactive {
            let text = wrapped(&paint(FAINT, text), error_width(), "");
            let _ = writeln!(anstream::stderr(), "{text}");
        }
    }

    /// One turn. An exit ends the conversation.
    fn say(
        &mut self,
        text: &str,
        number: u64,
        model: &mut LoadedModel<'_>,
        console: &mut Console<'_>,
    ) -> Result<Option<Exit>, Failure> {
        self.turns.push(json!({"role": "user", "content": text}));
        let system = self.system.iter().map(|content| json!({"role": "system", "content": content}));
        let messages: Vec<Value> = system.chain(self.turns.iter().cloned()).collect();
        let answer = self
            .opened
            .encode(&Prompt::Messages(messages, Default::default()), PromptStyle::default())
            .and_then(|ids| self.answer(&ids, number, model, console));
        match answer {
            Ok(answer) => {
                self.turns.push(json!({"role": "assistant", "content": answer.text}));
                self.show(&answer, number, console)?;
                self.answered += 1;
                Ok(None)
            }
            Err(error @ run::Error::Output(_)) => Err(error.into()),
            Err(error) => {
                // An unanswered message is removed: the conversation continues from before it.
                self.turns.pop();
                let exit = match &error {
                    run::Error::Generate(crate::generate::Error::PromptTooLong { prompt, context }) => {
                        let message = format!(
                            "with this message the conversation has {prompt} tokens; the model's context is {context}"
                        );
                        console.error(&message, Some("`/reset` starts a new conversation"));
                        Exit::Other
                    }
                    error => console.failure(error),
                };
                Ok((!self.interactive).then_some(exit))
            }
        }
    }

    fn answer(
        &self,
        ids: &[u32],
        number: u64,
        model: &mut LoadedModel<'_>,
        console: &mut Console<'_>,
    ) -> Result<Answer, run::Error> {
        self.interrupts.forget();
        let sampling = Sampling { answer: number, ..self.sampling.clone() };
        let request = Request { prompt: ids, sampling: &sampling, stops: &self.arguments.sampling.stop };
        let mut fault = None;
        let answer = model.answer(Side::Adapted, request, &mut |piece| {
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

    /// Everything shown after the text of an answer.
    fn show(&self, answer: &Answer, number: u64, console: &mut Console<'_>) -> io::Result<()> {
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
            Ending::ContextFull => Some(
                "the answer was cut: the conversation fills the model's context; /reset starts a new one",
            ),
            Ending::Interrupted => Some("stopped"),
            Ending::Stop | Ending::StopString(_) => None,
        };
        if let (Some(text), false) = (cut, console.json()) {
            let _ = writeln!(anstream::stderr(), "{}", paint(WARNING, text));
        }
        if self.arguments.verbose {
            speed::show("", answer);
        }
        Ok(())
    }
}
