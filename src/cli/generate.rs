//! `tune generate`.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

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
use crate::generate::answer::{Heard, Request};
use crate::generate::memory::Extent;
use crate::generate::together::MOST_TOGETHER;
use crate::generate::{Answer, Ending, Sampling};
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
    let extent = Extent { conversation, row: 0, lanes: records.len().min(MOST_TOGETHER) };
    let outcome = model.with_loaded(extent, console, |model, console| match &arguments.prompts {
        Some(path) => work.many(path, model, console),
        None => work.one(model, console),
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
    /// The answer to the only prompt on standard output, as events or as text.
    fn one(&self, model: &mut LoadedModel<'_>, console: &mut Console<'_>) -> Result<Exit, run::Error> {
        console.quiet();
        let is_terminal = io::stdout().is_terminal();
        for record in self.records {
            let mut fault: Option<io::Error> = None;
            let request = self.request(record, &self.sampling);
            let answer = model.answer(Side::Adapted, request, &mut |piece: &str| {
                if self.signals.raised() {
                    return ControlFlow::Break(());
                }
                if piece.is_empty() {
                    return ControlFlow::Continue(());
                }
                if console.json() {
                    console.event("text", &json!({"row": 0, "text": piece}));
                    return ControlFlow::Continue(());
                }
                let shown = if is_terminal { visible(piece) } else { piece.to_owned() };
                match write!(console.out(), "{shown}").and_then(|()| console.out().flush()) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(error) => {
                        fault = Some(error);
                        ControlFlow::Break(())
                    }
                }
            });
            if let Some(error) = fault {
                return Err(run::Error::Output(error));
            }
            let answer = answer?;
            if console.json() {
                let mut event = line(record, &answer);
                event.insert("row".into(), 0.into());
                console.event("answer", &event);
            } else {
                // A text that ends with a line end needs no second one.
                let end = if answer.text.ends_with('\n') { "" } else { "\n" };
                write!(console.out(), "{end}").map_err(run::Error::Output)?;
            }
            if self.arguments.verbose {
                speed::show("", &answer);
            }
            if answer.ending == Ending::Interrupted {
                return Err(run::Error::Stopped);
            }
        }
        self.finish(None, console)
    }

    /// The answers to a file of prompts, side by side: lines or events on standard output in the order of the prompts, as
    /// soon as those before are there; or a file, which is written once all answers are there.
    fn many(
        &self,
        path: &Path,
        model: &mut LoadedModel<'_>,
        console: &mut Console<'_>,
    ) -> Result<Exit, run::Error> {
        let out = self.arguments.out.as_deref();
        if out.is_none() {
            console.quiet();
        }
        // An answer depends on seed, row and prompt alone.
        let sampling = |row: usize| Sampling { answer: row as u64, ..self.sampling.clone() };
        let samplings: Vec<Sampling> = (0..self.records.len()).map(sampling).collect();
        let requests = self.records.iter().zip(&samplings);
        let requests: Vec<_> = requests.map(|(record, sampling)| self.request(record, sampling)).collect();
        let mut lines =
            Lines { work: self, console, out: out.map(|_| String::new()), next: 0, early: BTreeMap::new() };
        let mut fault: Option<run::Error> = None;
        let began = Instant::now();
        let mut tokens = 0;
        let answered = model.answer_together(Side::Adapted, &requests, &mut |row, heard| {
            let said = match heard {
                _ if self.signals.raised() => Err(run::Error::Stopped),
                Heard::Text(piece) => {
                    lines.text(row, piece);
                    Ok(())
                }
                Heard::Answer(answer) => {
                    tokens += answer.tokens;
                    lines.answer(row, answer)
                }
            };
            match said {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    fault.get_or_insert(error);
                    ControlFlow::Break(())
                }
            }
        });
        if let Some(error) = fault {
            return Err(error);
        }
        answered.map_err(|failed| {
            let (row, error) = *failed;
            let place = format!("{}, prompt {}", path.display(), row + 1);
            run::Error::Prompt { place, message: error.to_string() }
        })?;
        if self.arguments.verbose {
            speed::show_together(self.records.len(), tokens, began.elapsed());
        }
        let text = lines.out;
        console.quiet();
        if let (Some(path), Some(text)) = (out, text) {
            files::write_bytes(path, text.as_bytes())?;
        }
        self.finish(out, console)
    }

    fn request<'r>(&'r self, record: &'r Record, sampling: &'r Sampling) -> Request<'r> {
        Request { prompt: &record.ids, sampling, stops: &self.arguments.sampling.stop }
    }

    /// The result, once all prompts are answered.
    fn finish(&self, out: Option<&Path>, console: &mut Console<'_>) -> Result<Exit, run::Error> {
        let out = out.map(|path| path.display().to_string());
        console.event("result", &json!({"out": out, "rows": self.records.len()}));
        Ok(Exit::Done)
    }
}

/// The answers to a file of prompts, put into its order.
struct Lines<'w, 'c, 'o> {
    work: &'w Work<'w>,
    console: &'c mut Console<'o>,
    /// The lines of a file to be written, or `None` for standard output.
    out: Option<String>,
    /// The row whose answer comes next, and answers of later ones.
    next: usize,
    early: BTreeMap<usize, Answer>,
}

impl Lines<'_, '_, '_> {
    fn text(&mut self, row: usize, piece: &str) {
        if self.out.is_none() && self.console.json() && !piece.is_empty() {
            self.console.event("text", &json!({"row": row, "text": piece}));
        }
    }

    fn answer(&mut self, row: usize, answer: Answer) -> Result<(), run::Error> {
        self.early.insert(row, answer);
        while let Some(answer) = self.early.remove(&self.next) {
            self.write(self.next, &answer)?;
            self.next += 1;
        }
        if self.out.is_some() {
            let answered = self.next + self.early.len();
            self.console.count("answering", answered as u64, self.work.records.len() as u64);
        }
        Ok(())
    }

    fn write(&mut self, row: usize, answer: &Answer) -> Result<(), run::Error> {
        let fields = line(&self.work.records[row], answer);
        let text = Value::Object(fields.clone()).to_string();
        match &mut self.out {
            Some(out) => {
                out.push_str(&text);
                out.push('\n');
            }
            None if !self.console.json() => {
                let out = self.console.out();
                writeln!(out, "{text}").and_then(|()| out.flush()).map_err(run::Error::Output)?;
            }
            None => {}
        }
        let mut event = fields;
        event.insert("row".into(), row.into());
        self.console.event("answer", &event);
        if self.work.arguments.verbose {
            speed::show(&format!("{}: ", row + 1), answer);
        }
        Ok(())
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
