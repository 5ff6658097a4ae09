//! `tune init`: a recipe for a file of rows, from what is in it. Reads the rows once and trains nothing.

use std::fmt::Write;
use std::path::Path;

mod pace;

use pace::Pace;

use super::Error;
use super::open::open_dataset;
use crate::assets::{ModelDir, resolve_base};
use crate::data::error::Error as DataError;
use crate::data::example::{Answer, Example};
use crate::data::guess::{Guess, guess};
use crate::data::source::{self, Dataset};
use crate::data::spec::{Choice, DatasetSpec, Format};
use crate::data::tokenize::Tokenizer;
use crate::document::Word;
use crate::model::family::decoder_spec;
use crate::recipe::RecipeFile;
use crate::units::{Bytes, Grouped};

/// Rows looked at; of a larger file evenly spread ones.
const MOST_ROWS: u64 = 2000;
/// Bytes of text in a token where there is no tokenizer to count them.
const BYTES_PER_TOKEN: usize = 3;
/// Longest sequence that is proposed.
const MOST_TOKENS: usize = 2048;
/// Shortest.
const FEWEST_TOKENS: usize = 256;
/// Longest sample prompt, in characters.
const LONGEST_PROMPT: usize = 200;
/// Parameters from which the base is held in 4 bits.
const LARGE: u64 = 300_000_000;
/// Parameters below which the rate of learning is that of a toy.
const TINY: u64 = 50_000_000;

/// A recipe, and what it was made from.
#[derive(Clone, Debug)]
pub struct Drafted {
    /// The recipe's text.
    pub recipe: String,
    /// The format of the rows.
    pub format: Format,
    /// Number of rows.
    pub rows: u64,
    /// Whether the base is on this machine.
    pub has_base: bool,
}

/// What was found in the rows.
struct Found {
    guess: Guess,
    rows: u64,
    /// Tokens of each row that was looked at, ascending.
    lengths: Vec<usize>,
    is_counted: bool,
    prompts: Vec<String>,
}

/// The recipe for `data`, a path, a glob or a dataset of the hub in the cache, on `base`, whose run is called `name`.
///
/// # Errors
/// The data cannot be read, or its format cannot be told; the message says what rows must have.
pub fn draft(data: &str, base: &str, name: &str, hub_cache: &Path) -> Result<Drafted, Error> {
    let folder =
        resolve_base(base, None, hub_cache).ok().and_then(|found| ModelDir::open(&found.folder).ok());
    let tokenizer = folder.as_ref().and_then(|folder| Tokenizer::open(folder.root()).ok());
    let found = look(data, tokenizer.as_ref(), hub_cache)?;
    let spec = folder.as_ref().and_then(|folder| decoder_spec(folder.config()).ok());
    let parameters = spec.map(|spec| spec.parameters());
    let recipe = written(data, base, name, &found, parameters);
    RecipeFile::parse(name, recipe.as_bytes(), &[])
        .finish()
        .map_err(|problems| Error::Recipe(problems.into()))?;
    Ok(Drafted { recipe, format: found.guess.format, rows: found.rows, has_base: folder.is_some() })
}

/// The format of `data`, as its columns tell it.
///
/// # Errors
/// The data cannot be read, or the columns belong to no format.
pub(super) fn guess_format(data: &str, hub_cache: &Path) -> Result<Guess, Error> {
    let files = match Path::new(data).exists() || data.contains(['*', '?', '[']) {
        true => vec![data.to_owned()],
        false => {
            let choice = Choice::default();
            match crate::assets::dataset::is_dataset_id(data) {
                true => crate::assets::dataset::resolve_dataset(data, &choice, hub_cache)
                    .map_err(Error::Choice)?
                    .iter()
                    .map(|path| path.to_string_lossy().into_owned())
                    .collect(),
                false => vec![data.to_owned()],
            }
        }
    };
    let first = files.first().map_or(data, String::as_str);
    let columns = source::columns(first).map_err(DataError::from)?;
    guess(&columns).ok_or_else(|| {
        Error::Choice(format!(
            "{data}: the columns {} belong to no format; rows have `messages`, or `prompt` and `completion`, or `text` \
             (`tune keys dataset` lists all formats, and `fields` maps other names)",
            columns.iter().map(|column| format!("`{column}`")).collect::<Vec<_>>().join(", ")
        ))
    })
}

fn look(data: &str, tokenizer: Option<&Tokenizer>, hub_cache: &Path) -> Result<Found, Error> {
    let guess = guess_format(data, hub_cache)?;
    let spec = DatasetSpec { fields: guess.fields.clone(), ..DatasetSpec::new(data, guess.format) };
    let dataset = open_dataset(&spec, hub_cache).map_err(Error::Choice)?;
    let rows = dataset.rows();
    let every = rows.div_ceil(MOST_ROWS).max(1);
    let (mut lengths, mut prompts) = (Vec::new(), Vec::new());
    for row in (0..rows).step_by(usize::try_from(every).unwrap_or(usize::MAX)) {
        let example = example(&dataset, row)?;
        let text = text_of(&example);
        lengths.push(match (&example, tokenizer) {
            (Example::Tokens { input_ids, .. }, _) => input_ids.len(),
            (_, Some(tokenizer)) => {
                tokenizer.encode(&text).map_or(text.len() / BYTES_PER_TOKEN, |found| found.ids.len())
            }
            (_, None) => text.len() / BYTES_PER_TOKEN,
        });
        let prompt = prompt_of(&example).filter(|prompt| prompt.chars().count() <= LONGEST_PROMPT);
        let prompt = prompt.filter(|prompt| prompts.len() < 2 && !prompts.contains(prompt));
        prompts.extend(prompt);
    }
    lengths.sort_unstable();
    Ok(Found { guess, rows, lengths, is_counted: tokenizer.is_some(), prompts })
}

fn example(dataset: &Dataset, row: u64) -> Result<Example, Error> {
    dataset.example(row).map_err(|error| Error::Data(DataError::Row(error)))
}

/// All text of an example.
fn text_of(example: &Example) -> String {
    let answer = |answer: &Answer| match answer {
        Answer::Text { prompt, answer } => format!("{prompt}{answer}"),
        Answer::Messages(conversation) => {
            conversation.messages.iter().map(|message| message.content.as_str()).collect()
        }
    };
    match example {
        Example::Conversation(conversation) => {
            // A turn has about a handful of tokens around its text.
            conversation
                .messages
                .iter()
                .map(|message| format!("{} {}\n\n\n", message.role, message.content))
                .collect()
        }
        Example::PromptCompletion { prompt, completion } => format!("{prompt}{completion}"),
        Example::Preference { chosen, rejected } => {
            let (chosen, rejected) = (answer(chosen), answer(rejected));
            if chosen.len() > rejected.len() { chosen } else { rejected }
        }
        Example::Feedback { answer: one, .. } => answer(one),
        Example::Text(text) => text.clone(),
        Example::Tokens { .. } => String::new(),
    }
}

/// What a user asks in an example.
fn prompt_of(example: &Example) -> Option<String> {
    let asked = |messages: &[crate::data::example::Message]| {
        messages.iter().find(|message| message.role == "user").map(|message| message.content.clone())
    };
    let prompt = match example {
        Example::Conversation(conversation) => asked(&conversation.messages)?,
        Example::PromptCompletion { prompt, .. } => prompt.clone(),
        Example::Preference { chosen: Answer::Text { prompt, .. }, .. } => prompt.clone(),
        Example::Preference { chosen: Answer::Messages(conversation), .. } => asked(&conversation.messages)?,
        _ => return None,
    };
    Some(prompt).filter(|prompt| !prompt.trim().is_empty())
}

/// The recipe's text.
fn written(data: &str, base: &str, name: &str, found: &Found, parameters: Option<u64>) -> String {
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let Found { guess, rows, lengths, is_counted, prompts } = found;
    let rows = *rows;
    let longest = lengths.last().copied().unwrap_or(0);
    let max_seq_len = longest.next_power_of_two().clamp(FEWEST_TOKENS, MOST_TOKENS);
    let fitting = lengths.partition_point(|length| *length <= max_seq_len);
    let val_split = match rows {
        0..50 => 0.2,
        50..500 => 0.1,
        500..5000 => 0.05,
        _ => 0.02,
    };
    let trained = (rows as f64 * (1.0 - val_split)).round() as u64;
    let mean = lengths.iter().sum::<usize>() as f64 / lengths.len().max(1) as f64;
    let pace = Pace::of(trained, mean, max_seq_len);
    let interval = (pace.steps / 10).max(1);
    let is_large = parameters.is_none_or(|parameters| parameters >= LARGE);
    let rate = match parameters {
        Some(0..TINY) => "2e-3",
        Some(TINY..LARGE) => "5e-4",
        _ => "2e-4",
    };
    let is_paired = matches!(guess.format, Format::Preference | Format::Feedback);
    let count = if *is_counted { "" } else { " about" };

    let mut text = String::new();
    let mut line = |line: &str| {
        let _infallible = writeln!(text, "{line}");
    };
    line(&format!("# Made by `tune init` for {data}: {}.", Grouped(rows).of("row", "rows")));
    line("# Every key: `tune keys`. Check it with `tune validate`, look at the rows with `tune inspect`.\n");
    line("version = 1");
    line(&format!("output_dir = {}\n", quoted(&format!("runs/{name}"))));
    line("[model]");
    match parameters {
        Some(parameters) => line(&format!("# {} parameters.", Grouped(parameters))),
        None => line(&format!("# Not on this machine yet: `tune download {base}`.")),
    }
    line(&format!("base = {}\n", quoted(base)));
    if is_large {
        line("# QLoRA: the base is held in 4 bits while the adapter is trained.");
        line("[quantization.nf4]\n");
    } else {
        line("# No [quantization]: a base this small fits as it is, and trains faster.\n");
    }
    line("[adapter.lora]");
    line("# Size of the adapter: 8 for a style, 16 to 64 for new knowledge.");
    line("rank = 16");
    line("alpha = 32\n");
    match guess.format {
        Format::Preference => line("[objective.dpo]\nbeta = 0.1\n"),
        Format::Feedback => line("[objective.kto]\nbeta = 0.1\n"),
        _ => {}
    }
    line("[data]");
    let what = if is_paired { " with its prompt" } else { "" };
    line(&format!(
        "# The longest row{what} has{count} {}; {fitting} of {} looked at fit.",
        Grouped(longest as u64).of("token", "tokens"),
        Grouped(lengths.len() as u64).of("row", "rows")
    ));
    line("# Memory grows with it: the first thing to lower when memory runs out.");
    line(&format!("max_seq_len = {max_seq_len}"));
    line("# Longer rows are left out, counted and named; \"error\" would end the run.");
    line("on_overflow = \"drop\"");
    line(&format!(
        "# About {} held out: the loss on held-out rows tells learning from memorising.",
        Grouped(rows - trained.min(rows)).of("row is", "rows are")
    ));
    line(&format!("val_split = {val_split}"));
    if !pace.packing {
        line("# Short rows do not share a sequence: so few rows are learned better in more steps.");
        line("packing = false");
    }
    line("");
    line("[[dataset]]");
    line(&format!("path = {}", quoted(data)));
    line("# Recognised by its columns.");
    line(&format!("format = {}", quoted(guess.format.word())));
    if !guess.fields.is_empty() {
        let pairs: Vec<String> =
            guess.fields.iter().map(|(ours, theirs)| format!("{ours} = {}", quoted(theirs))).collect();
        line(&format!("fields = {{ {} }}", pairs.join(", ")));
    }
    if guess.format == Format::PromptCompletion {
        line("# Prompt and completion become a user and an assistant turn, as a chat model expects.");
        line("chat = true");
    }
    line("\n[train]");
    line(&format!(
        "# Passes over the rows: {}.",
        if pace.epochs > 1 { "few rows are seen more than once" } else { "so many rows need one" }
    ));
    line(&format!("epochs = {}", pace.epochs));
    let unit =
        if pace.packing { ("sequence of short rows", "sequences of short rows") } else { ("row", "rows") };
    line(&format!(
        "# {} in an optimizer step, {} at a time; `--fit` chooses what is fastest in memory.",
        Grouped(pace.sequences()).of(unit.0, unit.1),
        pace.micro_batch_size
    ));
    line(&format!("micro_batch_size = {}", pace.micro_batch_size));
    line(&format!("gradient_accumulation_steps = {}", pace.accumulation));
    line(&format!("learning_rate = {rate}"));
    let steps = Grouped(pace.steps).of("step", "steps");
    line(&format!("# About {steps}: about ten evaluations and checkpoints."));
    line(&format!("eval_steps = {interval}"));
    line(&format!("save_steps = {interval}"));
    if let Some(parameters) = parameters {
        let weights = if is_large { parameters * 6 / 10 } else { parameters * 2 };
        line(&format!("# Memory: the base takes about {}; `tune validate` shows all of it.", Bytes(weights)));
    }
    if !prompts.is_empty() && guess.format != Format::Text {
        line("\n# Answered before and after training.");
        line("[sample]");
        let prompts: Vec<String> = prompts.iter().map(|prompt| quoted(prompt)).collect();
        line(&format!("prompts = [{}]", prompts.join(", ")));
    }
    text
}
