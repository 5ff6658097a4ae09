//! `tune generate`.

use std::io::{self, IsTerminal, Read, Write};
use std::ops::ControlFlow;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::console::Console;
use super::environment::{Signals, hub_cache};
use super::exit::Exit;
use super::speed;
use super::style::visible;
use super::talk_args::GenerateArguments;
use crate::files;
use crate::generate::memory::Extent;
use crate::generate::{Answer, Ending, Sampling, answer::Request};
use crate::run::prompts::{Manner, Prompt, Record};
use crate::run::voice::{Speaker, Voice, Who};
use crate::run::{self, Environment};

/// Answers one prompt, or a file of them.
pub(super) fn generate(arguments: &GenerateArguments, console: &mut Console<'_>) -> io::Result<Exit> {
    if arguments.out.is_some() && arguments.prompts.is_none() {
        let message =
            "`--out` takes the lines that answer `--prompts`; redirect standard output for a single answer";
        console.error(message, None);
        return Ok(Exit::Recipe);
    }
    let signals = Signals::listen();
    let stop = || signals.raised();
    let cache = hub_cache();
    let environment = Environment { hub_cache: &cache, stop: &stop };
    let opened = Speaker::open(arguments.model.choice(), &environment)
        .and_then(|speaker| Ok((read(arguments, &speaker)?, speaker)));
    let (records, speaker) = match opened {
        Ok(opened) => opened,
        Err(error) => return Ok(console.failure(&error)),
    };
    let sampling = arguments.sampling.sampling(&speaker.end_tokens);
    let context = speaker.context();
    let longest = records.iter().map(|record| record.ids.len()).max().unwrap_or(0);
    let conversation = context.min(longest.saturating_add(sampling.max_new_tokens));
    let work = Work { arguments, signals: &signals, records: &records, sampling };
    let extent = Extent { conversation, row: 0, speakers: 1 };
    let outcome = speaker.speak(extent, console, |voice, console| match &arguments.out {
        Some(path) => work.to_file(path, voice, console),
        None => work.to_output(voice, console),
    });
    match outcome.unwrap_or_else(Err) {
        Ok(exit) => Ok(exit),
        Err(run::Error::Stopped) => {
            let written = match &arguments.out {
                Some(path) => format!("; {} was not written", path.display()),
                None => String::new(),
            };
            console.error(&format!("stopped before all prompts were answered{written}"), None);
            Ok(signals.exit())
        }
        Err(run::Error::Output(error)) => Err(error),
        Err(error) => Ok(console.failure(&error)),
    }
}

/// The prompts, as tokens.
fn read(arguments: &GenerateArguments, speaker: &Speaker) -> Result<Vec<Record>, run::Error> {
    let manner = Manner { raw: arguments.raw, system: arguments.system.as_deref() };
    if let Some(path) = &arguments.prompts {
        return speaker.read_prompts(path, manner);
    }
    let text = match &arguments.prompt {
        Some(text) => text.clone(),
        None => {
            if io::stdin().is_terminal() {
                let _ = writeln!(io::stderr(), "reading the prompt from standard input, to its end (Ctrl-D)");
            }
            let mut bytes = Vec::new();
            let unreadable = |error: String| run::Error::Choice(format!("standard input: {error}"));
            io::stdin().lock().read_to_end(&mut bytes).map_err(|error| unreadable(error.to_string()))?;
            let text = String::from_utf8(bytes).map_err(|_| unreadable("not UTF-8 text".into()))?;
            // The line end that a shell or an editor puts behind a text is not part of it.
            text.strip_suffix('\n').map_or(text.clone(), |text| text.trim_end_matches('\r').to_owned())
        }
    };
    let ids = speaker.encode(&Prompt::Text(text.clone()), manner)?;
    Ok(vec![Record { fields: Map::from_iter([("prompt".to_owned(), Value::from(text))]), ids }])
}

/// What is to be answered, and how.
struct Work<'a> {
    arguments: &'a GenerateArguments,
    signals: &'a Signals,
    records: &'a [Record],
    sampling: Sampling,
}

impl Work<'_> {
    /// To standard output: events, the answers' lines, or the text of the only answer.
    fn to_output(&self, voice: &mut Voice<'_>, console: &mut Console<'_>) -> Result<Exit, run::Error> {
        console.quiet();
        let streams = self.arguments.prompts.is_none() && !console.json();
        let is_terminal = io::stdout().is_terminal();
        for (row, record) in self.records.iter().enumerate() {
            let mut fault: Option<io::Error> = None;
            let answer = {
                let console = &mut *console;
                let fault = &mut fault;
                self.answer(voice, row, record, &mut |piece: &str| {
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
                // A text that ends its last line already needs no second end.
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

    /// To a file that is there when all answers are.
    fn to_file(
        &self,
        path: &Path,
        voice: &mut Voice<'_>,
        console: &mut Console<'_>,
    ) -> Result<Exit, run::Error> {
        let mut lines = String::new();
        for (row, record) in self.records.iter().enumerate() {
            console.count("answering", row as u64, self.records.len() as u64);
            let answer = self.answer(voice, row, record, &mut |_| ControlFlow::Continue(()))?;
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

    /// All is answered.
    fn finish(&self, out: Option<&Path>, console: &mut Console<'_>) -> Result<Exit, run::Error> {
        let out = out.map(|path| path.display().to_string());
        console.event("result", &json!({"out": out, "rows": self.records.len()}));
        Ok(Exit::Done)
    }

    /// The answer to one prompt; that to row n of a seed is always the same.
    fn answer(
        &self,
        voice: &mut Voice<'_>,
        row: usize,
        record: &Record,
        listen: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Answer, run::Error> {
        let sampling = Sampling { answer: row as u64, ..self.sampling.clone() };
        let request =
            Request { prompt: &record.ids, sampling: &sampling, stops: &self.arguments.sampling.stop };
        let answer = voice.answer(Who::Adapted, request, &mut |piece| match self.signals.raised() {
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
            speed::say(&name, answer);
        }
    }
}

/// A prompt's line with its answer.
fn line(record: &Record, answer: &Answer) -> Map<String, Value> {
    let mut line = record.fields.clone();
    line.insert("response".into(), answer.text.clone().into());
    line.insert("finish".into(), answer.ending.name().into());
    line.insert("prompt_tokens".into(), answer.prompt_tokens.into());
    line.insert("response_tokens".into(), answer.tokens.into());
    line
}
