//! A run on its backend: loads the base, trains, and writes the adapter. Of several ranks, the first alone writes and
//! samples.

use std::collections::BTreeSet;
use std::path::PathBuf;

use tune_kernels::KernelBackend;

use super::advice::advice;
use super::inputs::{self, Inputs};
use super::open::Opened;
use super::provenance::Provenance;
use super::sample::Sampler;
use super::survey::Extent;
use super::{Environment, Error, Outcome};
use crate::adapter::lora::LoraSet;
use crate::adapter::peft;
use crate::data::batch::Batching;
use crate::data::template::ChatTemplate;
use crate::device::OnBackend;
use crate::files::{self, Existing};
use crate::model::{Decoder, FloatDtype, load};
use crate::train::budget::Clock;
use crate::train::event::{Event, Observer, Start};
use crate::train::fit::{Fit, Position, Sample as Answering};
use crate::train::folder::RunFolder;
use crate::train::lanes::Lanes;
use crate::train::memory::Plan;
use crate::train::optimizer::Optimizer;
use crate::train::schedule::Schedule;
use crate::train::state::{Ended, Origin, Saved, State};
use crate::train::team::Team;

/// Runs training on a backend.
pub(super) struct Training<'a> {
    pub(super) opened: &'a Opened,
    pub(super) environment: &'a Environment<'a>,
    pub(super) inputs: &'a Inputs,
    pub(super) team: &'a Team,
    pub(super) lanes: Lanes,
    /// `None` on all ranks but the first.
    pub(super) folder: Option<&'a mut RunFolder>,
    pub(super) batching: Batching,
    pub(super) origin: Origin,
    pub(super) extent: Extent,
    /// The checkpoint to continue from.
    pub(super) saved: Option<Saved>,
    pub(super) clock: Clock,
    pub(super) compute: String,
    pub(super) dtype: FloatDtype,
    pub(super) plan: Plan,
    /// Where layers are fetched from that the base's own files do not have in 4 bits.
    pub(super) packed: Option<PathBuf>,
    pub(super) device_name: String,
    pub(super) runs_ahead: bool,
    pub(super) observer: &'a mut dyn Observer,
}

impl OnBackend for Training<'_> {
    type Output = Result<Outcome, Error>;

    fn call<B: KernelBackend>(self, device: &B::Device) -> Self::Output {
        let Self { opened, environment, inputs, team, mut folder, extent, saved, observer, .. } = self;
        let recipe = &opened.recipe;
        let mut adapters = opened.adapters::<B>(device)?;
        let mut optimizer =
            Optimizer::new(&adapters, recipe.train.weight_decay, recipe.adapter.learning_rate_ratio);
        let goes_on = saved.is_some();
        let Extent { steps: total_steps, largest_micro_batch } = extent;
        let position = match saved {
            None => {
                let state = State::fresh(Default::default(), total_steps);
                let state = State { largest_micro_batch, origin: self.origin, ..state };
                Position { state, kept: None, saved: None }
            }
            Some(mut saved) => {
                saved.state.total_steps = total_steps;
                saved.state.largest_micro_batch = largest_micro_batch;
                let path = saved.path.clone();
                let (state, kept) = saved.restore(&mut adapters, &mut optimizer, device)?;
                Position { state, kept, saved: Some(path) }
            }
        };
        let progress = &mut |progress: load::Progress<'_>| {
            let (done, total) = (progress.done as u64, progress.total as u64);
            observer.observe(&Event::Loading { done, total });
        };
        let (weights, spec, quantization) = (opened.model.weights(), &opened.spec, recipe.blocks());
        let layout = self.plan.layout(self.packed.as_deref());
        let decoder: Decoder<B> =
            load::load_as(weights, spec, quantization, self.dtype, device, layout, progress)?;
        inputs.require_unchanged()?;
        if !goes_on && opened.start.is_none() {
            decoder.init_magnitudes(&mut adapters)?;
            decoder.init_wholes(&mut adapters)?;
        }

        let reference = match (recipe.objective.needs_reference(), &opened.start) {
            (false, _) => None,
            (true, None) => Some(LoraSet::init(Vec::new(), 0.0, recipe.seed, device)),
            (true, Some(_)) => Some(opened.adapters(device)?),
        };
        let reference = reference.as_ref().map(LoraSet::until_update);

        let sampler = Sampler::new(opened)?;
        let mut before = Vec::new();
        if let Some(folder) = folder.as_deref_mut() {
            before = sampler.answers(&decoder, None, environment.stop)?;
            sampler.report_before(&before, observer);
            // Nothing but the lock is written before this point.
            folder.begin(goes_on)?;
            if let Some(path) = &position.saved {
                folder.set_aside(position.state.step, path)?;
            }
            files::write_bytes(&folder.recipe(), recipe.to_toml().as_bytes())?;
            inputs.lock().write(folder.root())?;
            files::write_bytes(&folder.memory_plan(), self.plan.to_json().as_bytes())?;
        }
        let folder = folder.as_deref();
        let corpus = &opened.corpus;
        if !goes_on {
            let rows = recipe.train.micro_batch_size * recipe.train.gradient_accumulation_steps;
            let epochs = recipe.train.epochs.unwrap_or_else(|| {
                // With packing a step has more rows than this.
                (total_steps * rows as u64) as f64 / corpus.examples_per_epoch().max(1) as f64
            });
            for note in advice(recipe, total_steps, epochs, corpus.validation_rows()) {
                observer.observe(&Event::Note(note));
            }
        }
        let start = Start {
            total_steps,
            done_steps: position.state.step,
            trainable_parameters: adapters.count(),
            base_parameters: opened.spec.parameters(),
            frozen_bytes: decoder.frozen_bytes(),
            training_examples: corpus.examples_per_epoch(),
            held_out_examples: corpus.validation_rows(),
            output_dir: recipe.output_dir.clone(),
            compute: self.compute,
            plan: self.plan.clone(),
            eval_steps: recipe.train.eval_steps,
            ranks: team.size(),
        };
        if team.is_first() {
            observer.observe(&Event::Start(&start));
        }

        let held_out = || corpus.validation(recipe.train.micro_batch_size);
        let place = |id| opened.place(id);
        let path = folder.map(RunFolder::samples);
        let sample = |step: u64, adapters: &LoraSet<B>, observer: &mut dyn Observer| {
            if let Some(path) = &path {
                sampler.answer_under_way(step, &decoder, adapters, environment.stop, path, observer);
            }
        };
        let fit = Fit {
            decoder: &decoder,
            objective: &recipe.objective,
            reference: reference.as_ref(),
            spec: &recipe.train,
            seed: recipe.seed,
            schedule: Schedule::new(&recipe.train, total_steps),
            held_out: (corpus.validation_rows() > 0).then_some(&held_out),
            held_out_examples: corpus.validation_rows(),
            team,
            lanes: self.lanes,
            folder,
            stop: environment.stop,
            save: environment.save,
            clock: self.clock,
            place: &place,
            device: &self.device_name,
            kept_layers: self.plan.kept_layers,
            parks_inputs: self.plan.host_inputs.is_some(),
            runs_ahead: self.runs_ahead,
            sample: recipe.sample.every.map(|every| (every, &sample as Answering<'_, B>)),
        };
        let steps = corpus.steps(&self.batching, position.state.cursor)?;
        let fitted = fit.run(&mut adapters, &mut optimizer, position, steps, observer);
        let changed = inputs.changed(opened);
        report_changed(&changed, opened, observer);
        let summary = match fitted {
            Ok(summary) => summary,
            Err(error) => {
                if let Some(folder) = folder {
                    note_how_to_resume(folder, observer);
                }
                return Err(error.into());
            }
        };

        let outcome = Outcome::of(opened, &summary.state, summary.ended);
        let Some(folder) = folder.filter(|_| summary.ended != Ended::Stopped) else { return Ok(outcome) };
        inputs.require_same_tokenizer(&changed, opened)?;
        let template = opened.template.as_deref().map(ChatTemplate::source);
        let family = opened.spec.family;
        let provenance = Provenance { recipe, family, inputs: inputs.hashes(), summary: &summary }.metadata();
        peft::write(
            &folder.adapter(),
            // A resumed run has already announced the adapter that it replaces.
            if goes_on { Existing::Replace } else { Existing::Refuse },
            &adapters,
            &opened.peft_config(),
            &provenance,
            &opened.model.tokenizer_files()?,
            template.filter(|_| recipe.data.chat_template.is_some()),
        )?;
        let mut outcome = outcome.deliver(folder, &recipe.gate, observer);
        match sampler.answers(&decoder, Some(&adapters), environment.stop) {
            Ok(after) => outcome.samples = sampler.pair(before, after),
            // The adapter is on disk: the run is finished even if sampling fails.
            Err(Error::Stopped) => {}
            Err(error) => return Err(error),
        }
        Ok(outcome)
    }
}

/// Reports the inputs that changed on disk during the run, of which the record keeps the names.
fn report_changed(changed: &BTreeSet<&str>, opened: &Opened, observer: &mut dyn Observer) {
    let datasets: Vec<String> = opened.recipe.datasets.iter().map(|dataset| dataset.path.clone()).collect();
    for name in changed {
        let what = inputs::what(name, &datasets);
        let text = format!(
            "{what} changed on disk during the run; the adapter is made from what was read before, which is what recipe.lock \
             names"
        );
        observer.observe(&Event::InputChanged(what));
        observer.observe(&Event::Warning(text));
    }
}

/// After a failure: names the newest checkpoint, if there is one.
fn note_how_to_resume(folder: &RunFolder, observer: &mut dyn Observer) {
    // The original error is the one to report.
    if let Some(step) = folder.checkpoint_steps().ok().and_then(|steps| steps.last().copied()) {
        let path = folder.checkpoint(step);
        observer.observe(&Event::Note(format!(
            "fix the cause, then continue from {} with `--resume`",
            path.display()
        )));
    }
}
