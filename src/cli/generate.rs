//! `tune generate`.

use std::io::{self, IsTerminal, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Map, Value, json};

use super::args::{ModelArguments, SamplingArguments};
use super::console::Console;
use super::environment::{Context, Signals};
use super::exit::Exit;
use super::failure::Failure;
use super::speed;
use super::style::visible;
use crate::files::{self, shell::command};
use crate::generate::memory::Extent;
use crate::generate::{Answer, Ending, Sampling, answer::Request};
use crate::run;
use crate::run::inference::{LoadedModel, OpenedModel, Side};
use crate::run::prompts::{Prompt, PromptStyle, Record};

/// Arguments of `tune generate`.
#[derive(Debug, Args)]
pub struct GenerateArguments {
    /// A run, an adapter, or a base model, and the prompt; with --adapter or --base the prompt alone [default of the
    /// prompt: all of standard input]
    #[arg(value_name = "MODEL] [PROMPT", num_args = 0..=2)]
    pub words: Vec<String>,
    /// A file with one JSON object per line that has `prompt` or `messages`; each gets one line of output
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// Write the answers to --prompts into this file; it appears when all are there
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Continue the text as it is, without a chat template
    #[arg(long)]
    pub raw: bool,
    /// A system message before each `prompt`
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    pub system: Option<String>,
    /// Print the speed to standard error
    #[arg(short, long)]
    pub verbose: bool,
    /// The model.
    #[command(flatten, next_help_heading = "Model")]
    pub model: ModelArguments,
    /// The answer.
    #[command(flatten, next_help_heading = "Answer")]
    pub sampling: SamplingArguments,
}

/// The model and the prompt among the words of a command.
type Words<'a> = (Option<&'a str>, Option<&'a str>);

impl GenerateArguments {
    /// The words, or what is wrong with them and what to type instead.
    fn words(&self) -> Result<Words<'_>, (String, String)> {
        let is_named = self.model.adapter.is_some() || self.model.base.is_some();
        let (named, prompt) = match self.words.as_slice() {
            [] => (None, None),
            [prompt] if is_named => (None, Some(prompt.as_str())),
            [named] => (Some(named.as_str()), None),
            [named, prompt, ..] if !is_named => (Some(named.as_str()), Some(prompt.as_str())),
            [named, prompt, ..] => {
                let message =
                    "the model is named twice: by the first argument, and by `--adapter` or `--base`";
                let help = format!("leave one out:\n  {}", command(["tune", "generate", named, prompt]));
                return Err((message.to_owned(), help));
            }
        };
        match (prompt, &self.prompts) {
            (Some(prompt), Some(_)) => {
                let message = format!("`{prompt}` and `--prompts` both give prompts");
                Err((message, "leave one of them out".to_owned()))
            }
            _ => Ok((named, prompt)),
        }
    }
}

/// Answers one prompt, or a file of them.
pub(super) fn generate(
    arguments: &GenerateArguments,
    context: &Context<'_>,
    console: &mut Console<'_>,
) -> Result<Exit, Failure> {
    if arguments.out.is_some() && arguments.prompts.is_none() {
        console.error("`--out` requires `--prompts`", Some("redirect standard output for a single answer"));
        return Ok(Exit::Recipe);
    }
    let (named, prompt) = match arguments.words() {
        Ok(words) => words,
        Err((message, help)) => {
            console.error(&message, Some(&help));
            return Ok(Exit::Recipe);
        }
    };
    let model = arguments.model.naming(named, context.environment.hub_cache)?;
    let model = OpenedModel::open(model.choice(), &context.environment)?;
    let records = read(arguments, prompt, &model)?;
    let sampling = arguments.sampling.sampling(&model.end_tokens);
    let longest = records.iter().map(|record| record.ids.len()).max().unwrap_or(0);
    let conversation = model.context().min(longest.saturating_add(sampling.max_new_tokens));
    let work = Work { arguments, signals: context.signals, records: &records, sampling };
    let extent = Extent { conversation, row: 0, models: 1 };
    let outcome = model.with_loaded(extent, console, |model, console| match &arguments.out {
        Some(path) => work.to_file(path, model, console),
        None => work.to_output(model, console),
    });
    match outcome.unwrap_or_else(Err) {
        Err(run::Error::Stopped) => {
            let written = match &arguments.out {
                Some(path) => format!("; {} was not written", path.display()),
                None => String::new(),
            };
            console.error(&format!("stopped before all prompts were answered{written}"), None);
            Ok(context.signals.exit())
        }
        outcome => Ok(outcome?),
    }
}

/// The prompts, as tokens.
fn read(
    arguments: &GenerateArguments,
    prompt: Option<&str>,
    model: &OpenedModel,
) -> Result<Vec<Record>, run::Error> {
    let style = PromptStyle { raw: arguments.raw, system: arguments.system.as_deref() };
    if let Some(path) = &arguments.prompts {
        return model.read_prompts(path, style);
    }
    let text = match prompt {
        Some(text) => text.to_owned(),
        None => {
            if io::stdin().is_terminal() {
                let _ = writeln!(io::stderr(), "reading the prompt from standard input; end it with Ctrl-D");
            }
            let mut bytes = Vec::new();
            let unreadable = |error: String| run::Error::Choice(format!("standard input: {error}"));
            io::stdin().lock().read_to_end(&mut bytes).map_err(|error| unreadable(error.to_string()))?;
            let text = String::from_utf8(bytes).map_err(|_| unreadable("not UTF-8 text".into()))?;
            // The line end that a shell or an editor appends is not part of the prompt.
            text.strip_suffix('\n').map_or(text.clone(), |text| text.trim_end_matches('\r').to_owned())
        }
    };
    let ids = model.encode(&Prompt::Text(text.clone()), style)?;
    Ok(vec![Record { fields: Map::from_iter([("prompt".to_owned(), Value::from(text))]), ids }])
}

/// The prompts, and how to answer them.
struct Work<'a> {
    arguments: &'a GenerateArguments,
    signals: &'a Signals,
    records: &'a [Record],
    sampling: Sampling,
}

impl Work<'_> {
    /// Answers to standard output: as events, as lines, or as the text of the only answer.
    fn to_output(&self, model: &mut LoadedModel<'_>, console: &mut Console<'_>) -> Result<Exit, run::Error> {
        console.quiet();
        let streams = self.arguments.prompts.is_none() && !console.json();
        let is_terminal = io::stdout().is_terminal();
        for (row, record) in self.records.iter().enumerate() {
            let mut fault: Option<io::Error> = None;
            let answer = {
                let console = &mut *console;
                let fault = &mut fault;
                self.answer(model, row, record, &mut |piece: &str| {
                    if piece.is_empty() {
                        return ControlFlow::Continue(());
                    }
                    if console.json() {
                        console.event("text", &json!({"row": row, "text": piece}));
                    } else if streams {
                        let shown = if is_terminal { visible(piece) } else { piece.to_owned() };
                        let written = write!(console.out(), "{shown}").and_then(|()| console.out().flush());
                        if let Err(error) = written {
                            *fault = Some(error);
                            return ControlFlow::Break(());
                        }
                    }
                    ControlFlow::Continue(())
                })
            };
            if let Some(error) = fault {
                return Err(run::Error::Output(error));
            }
            let answer = answer?;
            let line = line(record, &answer);
            if console.json() {
                let mut event = line;
                event.insert("row".into(), row.into());
                console.event("answer", &event);
            } else if streams {
                // A text that ends with a line end needs no second one.
                let end = if answer.text.ends_with('\n') { "" } else { "\n" };
                write!(console.out(), "{end}").map_err(run::Error::Output)?;
            } else {
                let line = Value::Object(line).to_string();
                let written = writeln!(console.out(), "{line}").and_then(|()| console.out().flush());
                written.map_err(run::Error::Output)?;
            }
            self.say(&answer, row);
            if answer.ending == Ending::Interrupted {
                return Err(run::Error::Stopped);
            }
        }
        self.finish(None, console)
    }

    /// Answers into a file, which is written once all answers are there.
    fn to_file(
        &self,
        path: &Path,
        model: &mut LoadedModel<'_>,
        console: &mut Console<'_>,
    ) -> Result<Exit, run::Error> {
        let mut lines = String::new();
        for (row, record) in self.records.iter().enumerate() {
            console.count("answering", row as u64, self.records.len() as u64);
            let answer = self.answer(model, row, record, &mut |_| ControlFlow::Continue(()))?;
            if answer.ending == Ending::Interrupted {
                return Err(run::Error::Stopped);
            }
            let line = line(record, &answer);
            lines.push_str(&Value::Object(line.clone()).to_string());
            lines.push('\n');
            let mut event = line;
            event.insert("row".into(), row.into());
            console.event("answer", &event);
            self.say(&answer, row);
        }
        console.quiet();
        files::write_bytes(path, lines.as_bytes())?;
        self.finish(Some(path), console)
    }

    /// The result, once all prompts are answered.
    fn finish(&self, out: Option<&Path>, console: &mut Console<'_>) -> Result<Exit, run::Error> {
        let out = out.map(|path| path.display().to_string());
        console.event("result", &json!({"out": out, "rows": self.records.len()}));
        Ok(Exit::Done)
    }

    /// The answer to one prompt. It depends on seed, row and prompt alone.
    fn answer(
        &self,
        model: &mut LoadedModel<'_>,
        row: usize,
        record: &Record,
        listen: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Answer, run::Error> {
        let sampling = Sampling { answer: row as u64, ..self.sampling.clone() };
        let request =
            Request { prompt: &record.ids, sampling: &sampling, stops: &self.arguments.sampling.stop };
        let answer = model.answer(Side::Adapted, request, &mut |piece| match self.signals.raised() {
            true => ControlFlow::Break(()),
            false => listen(piece),
        });
        answer.map_err(|error| match &self.arguments.prompts {
            Some(path) => {
                let place = format!("{}, prompt {}", path.display(), row + 1);
                run::Error::Prompt { place, message: error.to_string() }
            }
            None => error,
        })
    }

    fn say(&self, answer: &Answer, row: usize) {
        if self.arguments.verbose {
            let name = if self.records.len() > 1 { format!("{}: ", row + 1) } else { String::new() };
            speed::show(&name, answer);
        }
    }
}

/// The fields of a prompt, with those of its answer added.
fn line(record: &Record, answer: &Answer) -> Map<String, Value> {
    let mut line = record.fields.clone();
    line.insert("response".into(), answer.text.clone().into());
    line.insert("finish".into(), answer.ending.name().into());
    line.insert("prompt_tokens".into(), answer.prompt_tokens.into());
    line.insert("response_tokens".into(), answer.tokens.into());
    line
}
