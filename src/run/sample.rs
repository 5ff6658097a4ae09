//! Answers to the recipe's sample prompts, before, during and after training.
//!
//! A prompt is formatted as in the first training dataset: as a user turn, an Alpaca instruction, or the beginning of a
//! text.

use std::ops::ControlFlow;
use std::path::Path;

use tune_kernels::KernelBackend;

use super::Error;
use super::inference::end_tokens;
use super::open::Opened;
use crate::adapter::lora::LoraSet;
use crate::data::example::{Answer, Example, Message};
use crate::data::spec::{Format, Split};
use crate::files;
use crate::generate::{Finish, Sampling, generate};
use crate::model::Decoder;
use crate::train::event::{Event, Observer, Sample};

/// The sample prompts as token ids.
pub(super) struct Sampler<'a> {
    opened: &'a Opened,
    prompts: Vec<Vec<u32>>,
    sampling: Sampling,
}

impl<'a> Sampler<'a> {
    /// Tokenizes the prompts. There are none without a tokenizer or the template that their format needs.
    pub(super) fn new(opened: &'a Opened) -> Result<Self, Error> {
        let spec = &opened.recipe.sample;
        let mut prompts = Vec::new();
        for prompt in &spec.prompts {
            prompts.extend(encode(opened, prompt)?);
        }
        let ends = end_tokens(opened.tokenizer.as_deref(), opened.template.as_deref(), &opened.model);
        let sampling = Sampling::from_spec(spec, ends);
        Ok(Self { opened, prompts, sampling })
    }

    /// One answer for each prompt, with or without the adapter.
    pub(super) fn answers<B: KernelBackend>(
        &self,
        decoder: &Decoder<B>,
        adapters: Option<&LoraSet<B>>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<String>, Error> {
        let Some(tokenizer) = &self.opened.tokenizer else { return Ok(Vec::new()) };
        let mut answers = Vec::with_capacity(self.prompts.len());
        for prompt in &self.prompts {
            let listen = |_| if stop() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
            let generation = generate(decoder, adapters, prompt, &self.sampling, listen)?;
            if generation.finish == Finish::Interrupted {
                return Err(Error::Stopped);
            }
            answers
                .push(tokenizer.decode_plain(&generation.tokens).map_err(crate::data::error::Error::from)?);
        }
        Ok(answers)
    }

    /// Answers the prompts during training: appends the answers to the file `path`, and reports them. What goes wrong is a
    /// warning.
    pub(super) fn answer_under_way<B: KernelBackend>(
        &self,
        step: u64,
        decoder: &Decoder<B>,
        adapters: &LoraSet<B>,
        stop: &dyn Fn() -> bool,
        path: &Path,
        observer: &mut dyn Observer,
    ) {
        let answers = match self.answers(decoder, Some(adapters), stop) {
            Ok(answers) => answers,
            Err(Error::Stopped) => return,
            Err(error) => {
                observer.observe(&Event::Warning(format!("the sample prompts are not answered: {error}")));
                return;
            }
        };
        let prompts = self.opened.recipe.sample.prompts.iter().cloned();
        let answers: Vec<(String, String)> = prompts.zip(answers).collect();
        let line = |(prompt, answer): &(String, String)| {
            format!("{}\n", serde_json::json!({"step": step, "prompt": prompt, "answer": answer}))
        };
        let lines: String = answers.iter().map(line).collect();
        if let Err(error) = files::append_lines(path, &lines) {
            observer.observe(&Event::Warning(error.to_string()));
        }
        observer.observe(&Event::Sampled { step, answers: &answers });
    }

    /// Reports the answers of the untrained base.
    pub(super) fn report_before(&self, answers: &[String], observer: &mut dyn Observer) {
        let prompts = self.opened.recipe.sample.prompts.iter().cloned();
        let answered: Vec<(String, String)> = prompts.zip(answers.iter().cloned()).collect();
        observer.observe(&Event::Answered(&answered));
    }

    /// Combines the answers with their prompts.
    pub(super) fn pair(&self, before: Vec<String>, after: Vec<String>) -> Vec<Sample> {
        let prompts = self.opened.recipe.sample.prompts.iter().cloned();
        prompts
            .zip(before.into_iter().zip(after))
            .map(|(prompt, (before, after))| Sample { prompt, before, after })
            .collect()
    }
}

/// The ids of one prompt; `None` if the model cannot be prompted in this format.
fn encode(opened: &Opened, prompt: &str) -> Result<Option<Vec<u32>>, Error> {
    let Some(tokenizer) = &opened.tokenizer else { return Ok(None) };
    let datasets = &opened.recipe.datasets;
    let dataset = datasets.iter().find(|dataset| dataset.split == Split::Train);
    let is_conversation = match dataset.map(|dataset| dataset.format) {
        Some(Format::Messages) => true,
        Some(Format::Preference | Format::Feedback | Format::PromptCompletion) => {
            first_is_conversation(opened)
        }
        _ => dataset.is_some_and(|dataset| dataset.prompt.chat),
    };
    let text = dataset.map_or(prompt.to_owned(), |dataset| dataset.prompt.fill(dataset.format, prompt, ""));
    if let Some(template) = opened.template.as_ref().filter(|_| is_conversation) {
        let turn = Message { role: "user".into(), content: text, extra: Default::default() };
        let text = template.render(&vec![turn].into(), true).map_err(crate::data::error::Error::from)?;
        return Ok(Some(tokenizer.encode(&text).map_err(crate::data::error::Error::from)?.ids));
    }
    let mut ids = tokenizer.prefix().to_vec();
    ids.extend(tokenizer.encode(&text).map_err(crate::data::error::Error::from)?.ids);
    Ok(Some(ids))
}

/// Whether the first row that is trained on is a conversation.
fn first_is_conversation(opened: &Opened) -> bool {
    let datasets = opened.corpus.datasets().zip(&opened.recipe.datasets);
    let first = datasets.into_iter().find(|(_, spec)| spec.split == Split::Train);
    let answer = match first.and_then(|(dataset, _)| dataset.example(0).ok()) {
        Some(Example::Preference { chosen, .. }) => chosen,
        Some(Example::Feedback { answer, .. }) => answer,
        Some(Example::Conversation(_)) => return true,
        _ => return false,
    };
    matches!(answer, Answer::Messages(_))
}
