//! `tune bench`: how fast this machine trains a model of a given shape, and in how much memory.
//!
//! The steps are those of training, on the same code: forward, backward, clipping, update. The tokens are random; with a
//! shape by name the weights are too, and no file is read. Under a preference objective answers take a quarter of the
//! longest row, behind a prompt that both answers of a pair share.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use burn_tensor::{DType, Tensor};
use serde::Serialize;
use tune_kernels::KernelBackend;
use tune_kernels::ceiling;
use tune_kernels::isa::InstructionSet;
use tune_kernels::memory::DeviceMemory;

use super::open::{Opened, open};
use super::{Environment, Error, arithmetic, random_base, require_dtype};
use crate::adapter::lora::{DropoutStep, LoraSet};
use crate::adapter::saved::SavedModule;
use crate::adapter::spec::Spec as AdapterSpec;
use crate::adapter::target::{self, Target};
use crate::assets::{WeightFiles, json};
use crate::data::batch::{Counts, MicroBatch};
use crate::data::example::RowId;
use crate::data::sequence::{Group, Sequence, Side};
use crate::data::tokenize::IGNORED;
use crate::device::{Device, Failed, KernelTime, OnBackend, Profiler};
use crate::model::dtype::burn_dtype;
use crate::model::fetch::Home;
use crate::model::spec::{Embeddings, Offload};
use crate::model::{Decoder, DecoderSpec, FloatDtype, family, load, random, shapes};
use crate::objective::Objective;
use crate::quant;
use crate::recipe::{DeviceSpec, RecipeFile};
use crate::train::backward::{Gradients, Pass, forward_backward};
use crate::train::compare::compare;
use crate::train::event::{Event, Observer};
use crate::train::memory::{self, Plan, Workload};
use crate::train::optimizer::{Gradient, Optimizer, PendingNumbers, StepNumbers};
use crate::train::placement::{self, Placement, Streaming};
use crate::train::process;
use crate::train::saved_inputs::SavedInputs;

/// How long the ceiling is measured.
const CEILING_TIME: Duration = Duration::from_millis(600);

/// The model and micro-batches to bench.
pub enum Subject {
    /// A recipe: its base, its adapter, its micro-batches at their largest.
    Recipe(Box<RecipeFile>),
    /// A model of [`shapes`] in NF4 with double quantization, all its linear layers adapted.
    Shape {
        /// The model's name.
        name: String,
        /// Its config.json, where it is none of the named shapes.
        config: Option<PathBuf>,
        /// Rank of the adapters.
        rank: usize,
        /// Documents of a micro-batch.
        micro_batch_size: usize,
        /// Tokens of a document.
        seq_len: usize,
        /// What the matmuls run in; `None`: what is fastest here.
        compute_dtype: Option<FloatDtype>,
        /// What to compute on.
        device: DeviceSpec,
    },
}

/// Number of steps, and whether kernels are profiled.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// The file that GPU kernels are timed into, as set up by [`crate::device::configure`]. Each launch is then waited for,
    /// so the reported speeds are not those of training.
    pub profile: Option<&'a Path>,
    /// Steps that are timed.
    pub steps: usize,
    /// Steps before those.
    pub warmup: usize,
    /// Where layers wait; `None`: as the recipe says, else all are held.
    pub offload: Option<Offload>,
    /// Layers that are held although the others are fetched; `None`: as the recipe says.
    pub resident_layers: Option<usize>,
    /// Memory of the device; `None`: as the recipe says, else what is free.
    pub memory_budget: Option<u64>,
    /// The folder of a shape's packed weights, written if it is not there; layers are fetched from it.
    pub packed: Option<&'a Path>,
}

/// The result of a bench.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The recipe's base or the shape's name.
    pub model: String,
    /// Its size in parameters.
    pub parameters: u64,
    /// Of them, trained.
    pub trainable_parameters: u64,
    /// The device.
    pub device: String,
    /// What the matmuls ran in.
    pub compute_dtype: &'static str,
    /// The instruction set of the fast paths.
    pub instruction_set: &'static str,
    /// Threads.
    pub threads: usize,
    /// Timed steps.
    pub steps: usize,
    /// Tokens of one step.
    pub tokens_per_step: u64,
    /// Tokens of one document, its prompt included.
    pub seq_len: u64,
    /// Of the median step.
    pub tokens_per_second: f64,
    /// Of the fastest step.
    pub tokens_per_second_best: f64,
    /// Pairs of answers, of the median step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pairs_per_second: Option<f64>,
    /// Seconds of every timed step.
    pub step_seconds: Vec<f64>,
    /// On a GPU, the time the host takes to launch the median step; a step cannot be faster. `None` with a profile, whose
    /// launches are waited for.
    pub launch_seconds: Option<f64>,
    /// Seconds to load the weights.
    pub load_seconds: f64,
    /// Operations per second of the processor's microkernel alone, on all threads, which no step can exceed; on a GPU of the
    /// plain product of large square matrices.
    pub ceiling_flops: Option<f64>,
    /// Share of it that the median step reached: of the arithmetic of weights, adapters and visible scores.
    pub share_of_ceiling: Option<f64>,
    /// Largest resident memory of the process.
    pub peak_memory_bytes: Option<u64>,
    /// The most that a device with memory of its own was seen to hold for tensors between two steps.
    pub device_memory_bytes: Option<u64>,
    /// The most that it held at one time during a step; `None` with a profile.
    pub device_peak_bytes: Option<u64>,
    /// The most that was taken from it.
    pub device_reserved_bytes: Option<u64>,
    /// Total of the memory plan.
    pub planned_memory_bytes: u64,
    /// The plan, term by term.
    pub plan: Vec<memory::Term>,
    /// Layers whose forward pass was recomputed.
    pub recomputed_layers: usize,
    /// The layers that were fetched for each use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streaming: Option<Streaming>,
    /// With a profile: the time of each kernel over all timed steps, the longest first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernels: Option<Vec<KernelTime>>,
    /// With a profile: the time that one step's products with frozen weights take at the ceiling, recomputed layers
    /// included: a lower bound of a step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor_seconds: Option<f64>,
    /// Loss of the last step: a check that it is finite.
    pub loss: f64,
}

/// Benches training steps.
///
/// # Errors
/// [`Error`]: a recipe that cannot be opened, a shape without that name, a plan that does not fit.
pub fn bench(
    subject: Subject,
    options: Options<'_>,
    environment: &Environment<'_>,
    observer: &mut dyn Observer,
) -> Result<Report, Error> {
    let work = match subject {
        Subject::Recipe(file) => {
            let opened = open(*file, environment)?;
            let device = Device::choose(opened.recipe.device)?;
            let dtype = opened.compute_dtype(&device)?;
            let recipe = &opened.recipe;
            Work {
                device,
                objective: recipe.objective,
                model: recipe.model.base.clone(),
                spec: opened.spec.clone(),
                quantization: recipe.blocks(),
                targets: opened.targets.clone(),
                saved_modules: opened.saved_modules.clone(),
                dropout: recipe.adapter.dropout,
                documents: recipe.train.micro_batch_size,
                seq_len: recipe.data.max_seq_len,
                accumulation: recipe.train.gradient_accumulation_steps,
                offload: options.offload.unwrap_or(recipe.model.offload),
                resident_layers: options.resident_layers.unwrap_or(recipe.model.resident_layers),
                embeddings: recipe.model.embeddings,
                saved_inputs: recipe.train.saved_inputs,
                budget: options.memory_budget.or(recipe.train.memory_budget),
                dtype,
                opened: Some(opened),
                // Includes the libraries that device discovery loaded.
                program: process::resident_bytes().unwrap_or(0),
                options,
                environment,
                observer,
            }
        }
        Subject::Shape { name, config, rank, micro_batch_size, seq_len, compute_dtype, device } => {
            let spec = match (config, shapes::spec(&name)) {
                (Some(path), _) => family::decoder_spec(&json::read_object(&path, json::CONFIG_LIMIT)?)?,
                (None, Some(spec)) => spec?,
                (None, None) => return Err(Error::UnknownShape(name)),
            };
            let device = Device::choose(device)?;
            let native = |dtype| device.is_native(dtype);
            let fastest = if native(FloatDtype::Bf16) { FloatDtype::Bf16 } else { FloatDtype::F32 };
            let dtype = compute_dtype.unwrap_or(fastest);
            require_dtype(&device, dtype)?;
            let adapter = AdapterSpec { rank, alpha: 2.0 * rank as f64, ..AdapterSpec::default() };
            // Every model has linear layers.
            let targets = target::resolve(&adapter, &spec.modules()).unwrap_or_default();
            Work {
                device,
                objective: Objective::Sft,
                model: name,
                saved_modules: Vec::new(),
                spec,
                quantization: Some(quant::spec::Spec::Nf4 { block_size: 64, double_quant: true }),
                targets,
                dropout: 0.0,
                documents: micro_batch_size,
                seq_len,
                accumulation: 1,
                offload: options.offload.unwrap_or_default(),
                resident_layers: options.resident_layers.unwrap_or(0),
                embeddings: Embeddings::Auto,
                saved_inputs: SavedInputs::Auto,
                budget: options.memory_budget,
                dtype,
                opened: None,
                // Includes the libraries that device discovery loaded.
                program: process::resident_bytes().unwrap_or(0),
                options,
                environment,
                observer,
            }
        }
    };
    work.device.clone().run(work)?
}

struct Work<'a> {
    device: Device,
    objective: Objective,
    model: String,
    spec: DecoderSpec,
    quantization: Option<quant::spec::Spec>,
    targets: Vec<Target>,
    dropout: f64,
    documents: usize,
    seq_len: usize,
    accumulation: usize,
    budget: Option<u64>,
    offload: Offload,
    resident_layers: usize,
    embeddings: Embeddings,
    saved_inputs: SavedInputs,
    dtype: FloatDtype,
    /// Where the weights come from; random ones without it.
    saved_modules: Vec<SavedModule>,
    opened: Option<Opened>,
    program: u64,
    options: Options<'a>,
    environment: &'a Environment<'a>,
    observer: &'a mut dyn Observer,
}

impl OnBackend for Work<'_> {
    type Output = Result<Report, Error>;

    fn call<B: KernelBackend>(self, device: &B::Device) -> Self::Output {
        let Options { steps, warmup, profile, .. } = self.options;
        let batch = self.micro_batch();
        let tokens = batch.tokens() as u64;
        let on_device = self.device.has_own_memory();
        if profile.is_some() && !on_device {
            return Err(Error::NoProfile);
        }
        let mut profiler = profile.map(Profiler::new);
        // Compiling and autotuning are not part of a step.
        let warmup = if profile.is_some() { warmup.max(1) } else { warmup };
        let workload = Workload {
            spec: &self.spec,
            quantization: self.quantization,
            dtype: self.dtype,
            targets: &self.targets,
            saved_modules: &self.saved_modules,
            tokens,
            shares_prompts: self.objective.compares_answers(),
            program: if on_device { self.device.context_bytes() } else { self.program },
            on_device,
            host_embeddings: false,
            host_inputs: false,
        };
        workload.require_pieces(self.device.largest_buffer())?;
        let free = match on_device {
            true => self.device.memory_for_a_run(),
            // A bench has the machine to itself.
            false => process::available_bytes().map(|free| self.program + free),
        };
        let home = match self.offload {
            Offload::Disk => Some(Home::Disk),
            Offload::Host if on_device => Some(Home::Host),
            Offload::Host | Offload::Auto | Offload::None => None,
        };
        let placement = home.map(|home| Placement { home, resident_layers: self.resident_layers });
        let budget = self.budget.or(free).unwrap_or(u64::MAX);
        let plan = |workload: &Workload<'_>| Plan::with(workload, placement, budget);
        let plan = placement::chosen(&workload, self.embeddings, self.saved_inputs, plan)?;
        let began = Instant::now();
        let decoder = self.decoder::<B>(device, &plan)?;
        let load_seconds = began.elapsed().as_secs_f64();
        let unset = |saved: &SavedModule| Tensor::zeros(saved.shape, (device, DType::F32));
        let adapters = LoraSet::<B>::init(self.targets.clone(), self.dropout, 0, device);
        let mut adapters = adapters.with_saved_modules(self.saved_modules.clone(), unset);
        decoder.init_wholes(&mut adapters)?;
        decoder.init_magnitudes(&mut adapters)?;
        let mut optimizer = Optimizer::new(&adapters, 0.0, 1.0);
        let objective = self.objective;
        // As a run that begins with the base alone.
        let reference = LoraSet::<B>::init(Vec::new(), 0.0, 0, device);
        let reference = reference.until_update();
        let counts: Counts = std::iter::repeat_n(batch.counts(), self.accumulation).sum();
        let count = objective.divisor(&counts) as f64;
        let mut seconds = Vec::with_capacity(steps);
        let mut launching = Vec::with_capacity(steps);
        let mut loss = f64::NAN;
        // As in training: a step of a GPU is launched before the numbers of the one before are read.
        let mut launched: Option<PendingNumbers> = None;
        let mut since = Instant::now();
        let mut read_step = |launched: Option<PendingNumbers>| {
            let Some(numbers) = launched else { return Ok(()) };
            let numbers = numbers.wait();
            let numbers = numbers.map_err(|message| Failed::new(self.device.name(), &message))?;
            if let StepNumbers::Finite { loss: sum, .. } = numbers {
                loss = sum / count;
            }
            let now = Instant::now();
            seconds.push(now.duration_since(std::mem::replace(&mut since, now)).as_secs_f64());
            Ok::<(), Error>(())
        };
        let mut device_memory: Option<DeviceMemory> = None;
        let mut peak = None;
        // A step is timed until the next one is launched, so one more step follows the last; its peak memory is recorded.
        let extra = usize::from(on_device && profile.is_none());
        for step in 0..warmup + steps + extra {
            if (self.environment.stop)() {
                return Err(Error::Stopped);
            }
            if let Some(profiler) = profiler.as_mut().filter(|_| step == warmup) {
                self.times::<B>(profiler, device)?;
            }
            let began = Instant::now();
            let gradient = || {
                let mut gradients = Gradients::new(self.spec.layers.len());
                let mut losses = Vec::with_capacity(self.accumulation);
                let adapters = adapters.until_update();
                for micro_batch in 0..self.accumulation {
                    let dropout =
                        DropoutStep { seed: 0, step: step as u64 + 1, micro_batch: micro_batch as u32 };
                    let pass = Pass {
                        dropout,
                        keep: plan.kept_layers,
                        balance: 0.0,
                        parks: plan.host_inputs.is_some(),
                    };
                    let comparison = compare(&decoder, &adapters, Some(&reference), &objective, &batch)?;
                    let losses_of = forward_backward(
                        &decoder,
                        &adapters,
                        &objective,
                        &comparison,
                        &batch,
                        pass,
                        &mut gradients,
                    );
                    losses.push(losses_of?);
                }
                let scale = 1.0 / count;
                let values = gradients.by_parameter(adapters.set());
                drop(gradients);
                Ok::<_, Error>(Gradient::new(losses, values, scale, device))
            };
            let gradient = if step < warmup + steps {
                gradient()?
            } else {
                let (gradient, most) = B::peak_memory(gradient);
                peak = most;
                gradient?
            };
            let numbers = gradient.read_later();
            optimizer.step(&mut adapters, gradient, step as u64 + 1, &[], 1e-4, 1.0)?;
            if (warmup..warmup + steps).contains(&step) {
                launching.push(began.elapsed().as_secs_f64());
            }
            read_step(launched.replace(numbers))?;
            // With a profile every kernel is waited for anyway.
            if extra == 0 {
                read_step(launched.take())?;
            }
            if let Some(now) = B::device_memory(device) {
                device_memory = Some(device_memory.unwrap_or_default().max(now));
            }
            self.observer.observe(&Event::Step { step: step as u64 + 1, logged: None });
        }
        read_step(launched)?;
        let kernels = match &mut profiler {
            Some(profiler) => Some(self.times::<B>(profiler, device)?),
            None => None,
        };
        seconds.drain(..warmup.min(seconds.len()));
        seconds.truncate(steps);
        let peak_memory_bytes = process::peak_resident_bytes();
        let dtype = burn_dtype(self.dtype);
        let ceiling_flops = match on_device {
            false => Some(ceiling::matmul_flops(dtype, CEILING_TIME)),
            true => ceiling::device_matmul_flops::<B>(device, dtype, CEILING_TIME),
        };
        let tokens_per_step = tokens * self.accumulation as u64;
        let mut sorted = seconds.clone();
        sorted.sort_by(f64::total_cmp);
        launching.sort_by(f64::total_cmp);
        let median = |sorted: &[f64]| sorted.get(sorted.len() / 2).copied();
        let rate = |seconds: Option<&f64>| tokens_per_step as f64 / seconds.copied().unwrap_or(f64::NAN);
        let tokens_per_second = rate(median(&sorted).as_ref());
        let operations = arithmetic::operations(&self.spec, &self.targets, &batch) / tokens as f64;
        let (plan_layers, kept_layers) = (plan.layers, plan.kept_layers);
        Ok(Report {
            parameters: self.spec.parameters(),
            trainable_parameters: adapters.count(),
            device: self.device.name(),
            compute_dtype: self.dtype.name(),
            instruction_set: InstructionSet::best().name(),
            threads: rayon::current_num_threads(),
            steps,
            tokens_per_step,
            seq_len: self.seq_len as u64,
            tokens_per_second,
            tokens_per_second_best: rate(sorted.first()),
            pairs_per_second: objective
                .compares_answers()
                .then(|| counts.groups as f64 / median(&sorted).unwrap_or(f64::NAN)),
            step_seconds: seconds,
            launch_seconds: median(&launching).filter(|_| on_device && profile.is_none()),
            load_seconds,
            ceiling_flops,
            share_of_ceiling: ceiling_flops.map(|ceiling| tokens_per_second * operations / ceiling),
            peak_memory_bytes,
            device_memory_bytes: device_memory.map(|memory| memory.in_use),
            device_peak_bytes: peak.map(|memory| memory.in_use),
            device_reserved_bytes: device_memory.map(|memory| memory.reserved),
            planned_memory_bytes: plan.total(),
            recomputed_layers: plan_layers - kept_layers,
            streaming: plan.streaming,
            plan: plan.terms,
            floor_seconds: kernels.is_some().then_some(ceiling_flops).flatten().map(|ceiling| {
                let recomputed = self.spec.layers.iter().take(plan_layers - kept_layers);
                let again: u64 = recomputed.map(|layer| layer.projection_elements()).sum();
                tokens_per_step as f64 * (4 * multiplied_weights(&self.spec) + 2 * again) as f64 / ceiling
            }),
            kernels,
            loss,
            model: self.model,
        })
    }
}

/// Frozen weights that every token is multiplied by: all projections and the output head.
fn multiplied_weights(spec: &DecoderSpec) -> u64 {
    let layers = spec.layers.iter().map(|layer| layer.projection_elements());
    layers.sum::<u64>() + (spec.vocab_size * spec.hidden_size) as u64
}

impl Work<'_> {
    /// The time of each kernel since the last call.
    fn times<B: KernelBackend>(
        &self,
        profiler: &mut Profiler,
        device: &B::Device,
    ) -> Result<Vec<KernelTime>, Error> {
        let failed = |message: String| Failed::new(self.device.name(), &message);
        B::sync(device).map_err(|error| failed(error.to_string()))?;
        profiler.take().map_err(|error| failed(error.to_string()).into())
    }

    fn decoder<B: KernelBackend>(&self, device: &B::Device, plan: &Plan) -> Result<Decoder<B>, Error> {
        if plan.streaming.is_some() {
            let (spec, quantization, dtype) = (&self.spec, self.quantization, self.dtype);
            let folder = match (&self.opened, self.options.packed) {
                (Some(opened), _) => opened.model.root(),
                (None, Some(packed)) => packed,
                (None, None) => {
                    let message = "name the folder of the packed weights with `--packed FOLDER`";
                    return Err(Error::Choice(message.to_owned()));
                }
            };
            if !folder.exists() {
                random_base::write(spec, quantization, dtype, folder, self.environment.stop)?;
            }
            let weights = WeightFiles::open(folder)?;
            let progress = &mut |_: load::Progress<'_>| {};
            let layout = plan.layout(None);
            return Ok(load::load_as(&weights, spec, quantization, dtype, device, layout, progress)?);
        }
        match &self.opened {
            None => {
                let (spec, on_host) = (&self.spec, plan.host_embeddings);
                Ok(random::decoder(spec, self.quantization, self.dtype, device, on_host))
            }
            Some(opened) => {
                let weights = opened.model.weights();
                let (quantization, layout) = (self.quantization, plan.layout(None));
                Ok(load::load_as(weights, &self.spec, quantization, self.dtype, device, layout, &mut |_| {})?)
            }
        }
    }

    /// Rows of random ids at their longest. In supervised fine-tuning every token but the first of each is supervised; the
    /// prompt of an answer takes three quarters of it.
    fn micro_batch(&self) -> MicroBatch {
        let vocabulary = self.spec.vocab_size as u64;
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % vocabulary) as u32
        };
        let sides: &[&[Side]] = match self.objective {
            Objective::Sft | Objective::Dft => &[&[Side::Plain]],
            Objective::Preference(_) => &[&[Side::Chosen, Side::Rejected]],
            Objective::Feedback(_) => &[&[Side::Wanted], &[Side::Unwanted]],
        };
        let mut batch = MicroBatch::default();
        for (number, sides) in (0..self.documents as u64).zip(sides.iter().cycle()) {
            let prompt = match sides {
                [Side::Plain] => 1,
                _ => (self.seq_len * 3 / 4).max(1),
            };
            let shared: Vec<u32> = (0..prompt).map(|_| random()).collect();
            let document = |side: &Side| {
                let answer = (prompt..self.seq_len).map(|_| random());
                let input_ids: Vec<u32> = shared.iter().copied().chain(answer).collect();
                let learned = input_ids.iter().skip(prompt).map(|id| *id as i32);
                let labels = std::iter::repeat_n(IGNORED, prompt.min(self.seq_len)).chain(learned).collect();
                Sequence::new(RowId { dataset: 0, row: number }, *side, input_ids, labels)
            };
            let documents = sides.iter().map(document).collect();
            batch.push(if self.spec.takes_prefixes() { Group::new(documents) } else { Group(documents) });
        }
        batch
    }
}
