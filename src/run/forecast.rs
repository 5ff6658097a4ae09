//! `tune plan`: the memory of a run and what fetched layers cost it, from shapes alone. Nothing is loaded, and no device
//! is started.
//!
//! A micro-batch fetches its layers once on the way up and once on the way down, while it computes; each way takes as long
//! as the slower of both ([`Link`]).

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use super::open::open;
use super::{Environment, Error, plan};
use crate::adapter::saved::SavedModule;
use crate::adapter::spec::Spec as AdapterSpec;
use crate::adapter::target::{self, Target};
use crate::assets::json;
use crate::device::{CUDA_CONTEXT, SHARE};
use crate::model::fetch::{Home, pass_seconds};
use crate::model::parts::LayerSpec;
use crate::model::spec::Embeddings;
use crate::model::{DecoderSpec, FloatDtype, family, shapes};
use crate::quant;
use crate::recipe::{DeviceId, DeviceSpec, RecipeFile};
use crate::train::memory::{Plan, Term, Workload, most_tokens, most_tokens_with};
use crate::train::placement::{Placement, chosen, most_resident, smallest};
use crate::train::process;
use crate::train::saved_inputs::SavedInputs;

/// Memory of common cards, in GiB.
const CARDS: [u64; 6] = [8, 12, 16, 24, 48, 80];
/// Links, and the bytes per second that large copies over them reach.
const LINKS: [(&str, f64); 4] =
    [("NVMe disk", 5e9), ("PCIe 3.0 x16", 12e9), ("PCIe 4.0 x16", 24e9), ("PCIe 5.0 x16", 48e9)];
/// Operations per second that the rate is estimated from where none is named: what products in bf16 reach on a card with
/// 165 TFLOP/s of peak.
pub const ASSUMED_FLOPS: f64 = 1e14;

/// What to plan for.
pub enum Subject {
    /// A recipe: its base, its adapter, its micro-batches at their largest.
    Recipe(Box<RecipeFile>),
    /// A model of [`shapes`].
    Shape(String),
    /// The model that a config.json describes.
    Config(PathBuf),
}

/// What a run would be like, where no recipe says it, and the machine.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Rank of the adapters on all linear layers.
    pub rank: usize,
    /// Documents of a micro-batch.
    pub micro_batch_size: usize,
    /// Tokens of a document.
    pub seq_len: usize,
    /// What the matmuls run in; `None`: as the recipe says, else bf16.
    pub compute_dtype: Option<FloatDtype>,
    /// Whether projections are quantized to NF4.
    pub is_quantized: bool,
    /// What it runs on; a GPU unless the processor is named.
    pub device: Option<DeviceSpec>,
    /// Memory of the device.
    pub memory_budget: Option<u64>,
    /// Speed with all layers held, in tokens per second.
    pub tokens_per_second: Option<f64>,
}

/// The memory and speed to expect.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The recipe's base, the shape's name or the config's path.
    pub model: String,
    /// Its size in parameters.
    pub parameters: u64,
    /// Trained parameters.
    pub trainable_parameters: u64,
    /// `gpu` or `cpu`.
    pub device: &'static str,
    /// What the matmuls run in.
    pub compute_dtype: &'static str,
    /// How projections are stored.
    pub quantization: String,
    /// Documents of a micro-batch.
    pub micro_batch_size: usize,
    /// Tokens of a document.
    pub seq_len: usize,
    /// Tokens of a micro-batch.
    pub tokens: u64,
    /// Layers in all.
    pub layers: usize,
    /// The budget that `held` and `streamed` are planned for.
    pub memory_budget: u64,
    /// The plan that holds all layers.
    pub held: Outlook,
    /// The plan that holds as many layers as fit and fetches the others from host memory.
    pub streamed: Outlook,
    /// What fits common cards.
    pub cards: Vec<Card>,
    /// Speed with all layers held, in tokens per second.
    pub tokens_per_second: f64,
    /// Whether that is an estimate.
    pub is_estimated: bool,
    /// Seconds for a million tokens, all layers held.
    pub million_tokens_seconds: f64,
    /// What each link costs the streamed plan.
    pub links: Vec<Link>,
}

/// A plan within a budget.
#[derive(Clone, Debug, Serialize)]
pub struct Outlook {
    /// Whether it fits.
    pub fits: bool,
    /// Its total on the device.
    pub device_bytes: u64,
    /// Term by term.
    pub device: Vec<Term>,
    /// Its total in host memory, beside the program.
    pub host_bytes: u64,
    /// Term by term.
    pub host: Vec<Term>,
    /// Layers held on the device.
    pub resident_layers: usize,
    /// Layers whose forward pass is run again in the backward pass.
    pub recomputed_layers: usize,
    /// Whether the token embeddings are off the device.
    pub host_embeddings: bool,
    /// Whether the inputs of recomputed layers are off the device.
    pub host_inputs: bool,
    /// The longest document that a micro-batch of one can have.
    pub max_context: Option<u64>,
}

/// What fits a card.
#[derive(Clone, Debug, Serialize)]
pub struct Card {
    /// Its memory in GiB.
    pub gib: u64,
    /// What a run may use of it.
    pub memory_budget: u64,
    /// With all layers held.
    pub held: Fit,
    /// With as many layers held as fit.
    pub streamed: Fit,
}

/// How a plan fits a card.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Fit {
    /// Whether it does.
    pub fits: bool,
    /// Layers held on the device.
    pub resident_layers: usize,
    /// Layers whose forward pass is run again.
    pub recomputed_layers: usize,
    /// The longest document that a micro-batch of one can have.
    pub max_context: Option<u64>,
}

/// What fetching over a link costs.
#[derive(Clone, Debug, Serialize)]
pub struct Link {
    /// Its name.
    pub name: &'static str,
    /// Bytes per second.
    pub bytes_per_second: f64,
    /// Seconds that the copies of a micro-batch take: it cannot be faster.
    pub floor_seconds: f64,
    /// Tokens of a micro-batch from which on the copies are hidden.
    pub tokens_to_hide: u64,
    /// Tokens per second with the planned micro-batch.
    pub tokens_per_second: f64,
    /// Seconds for a million tokens.
    pub million_tokens_seconds: f64,
}

/// A model and a run of it.
struct Planned {
    model: String,
    spec: DecoderSpec,
    targets: Vec<Target>,
    saved_modules: Vec<SavedModule>,
    quantization: Option<quant::spec::Spec>,
    dtype: FloatDtype,
    micro_batch_size: usize,
    seq_len: usize,
    /// Tokens of the largest micro-batch.
    tokens: u64,
    shares_prompts: bool,
    on_device: bool,
    embeddings: Embeddings,
    saved_inputs: SavedInputs,
    /// What the driver takes of the device, or the program of the host.
    program: u64,
    budget: Option<u64>,
}

/// Plans a run.
///
/// # Errors
/// [`Error`]: a recipe that cannot be opened, a shape without that name, a config.json that cannot be read.
pub fn forecast(subject: Subject, options: Options, environment: &Environment<'_>) -> Result<Report, Error> {
    let planned = match subject {
        Subject::Recipe(file) => recipe(*file, options, environment)?,
        Subject::Shape(name) => match shapes::spec(&name) {
            Some(spec) => model(name, spec?, options),
            None => return Err(Error::UnknownShape(name)),
        },
        Subject::Config(path) => {
            // The file is an argument: one that cannot be planned for is a wrong one.
            let refused = |error: &dyn std::fmt::Display| Error::Choice(error.to_string());
            let config = json::read_object(&path, json::CONFIG_LIMIT).map_err(|error| refused(&error))?;
            let spec = family::decoder_spec(&config).map_err(|error| refused(&error))?;
            model(path.display().to_string(), spec, options)
        }
    };
    Ok(planned.report(options.tokens_per_second))
}

fn is_gpu(device: DeviceSpec) -> bool {
    device != DeviceSpec::Named(DeviceId::Cpu)
}

/// What a run holds before anything is loaded; a GPU that is not named is one of CUDA.
fn program(device: DeviceSpec) -> u64 {
    match device {
        DeviceSpec::Named(DeviceId::Cpu) => process::resident_bytes().unwrap_or(0),
        DeviceSpec::Named(DeviceId::Vulkan(_) | DeviceId::Metal) => 0,
        _ => CUDA_CONTEXT,
    }
}

fn recipe(file: RecipeFile, options: Options, environment: &Environment<'_>) -> Result<Planned, Error> {
    let opened = open(file, environment)?;
    let recipe = &opened.recipe;
    let checkpoint = crate::model::tensors::checkpoint_dtype(&opened.spec, opened.model.weights());
    let on_device = is_gpu(options.device.unwrap_or(recipe.device));
    let is_native = |dtype| on_device || crate::device::Device::cpu().is_native(dtype);
    let dtype = FloatDtype::resolve(recipe.model.compute_dtype, checkpoint, is_native, |_| true)?;
    Ok(Planned {
        model: recipe.model.base.clone(),
        quantization: opened.quantization,
        dtype: options.compute_dtype.unwrap_or(dtype),
        micro_batch_size: recipe.train.micro_batch_size,
        seq_len: recipe.data.max_seq_len,
        tokens: plan::most_tokens(&opened),
        shares_prompts: recipe.objective.compares_answers(),
        on_device,
        embeddings: recipe.model.embeddings,
        saved_inputs: recipe.train.saved_inputs,
        program: program(options.device.unwrap_or(recipe.device)),
        budget: options.memory_budget.or(recipe.train.memory_budget),
        spec: opened.spec,
        targets: opened.targets,
        saved_modules: opened.saved_modules,
    })
}

fn model(name: String, spec: DecoderSpec, options: Options) -> Planned {
    let rank = options.rank;
    let adapter = AdapterSpec { rank, alpha: 2.0 * rank as f64, ..AdapterSpec::default() };
    Planned {
        model: name,
        // Every model has linear layers.
        targets: target::resolve(&adapter, &spec.modules()).unwrap_or_default(),
        saved_modules: Vec::new(),
        quantization: options.is_quantized.then_some(quant::spec::Spec::USUAL),
        dtype: options.compute_dtype.unwrap_or(FloatDtype::Bf16),
        micro_batch_size: options.micro_batch_size,
        seq_len: options.seq_len,
        tokens: (options.micro_batch_size as u64).saturating_mul(options.seq_len as u64),
        shares_prompts: false,
        on_device: options.device.is_none_or(is_gpu),
        embeddings: Embeddings::Auto,
        saved_inputs: SavedInputs::Auto,
        program: program(options.device.unwrap_or(DeviceSpec::Auto)),
        budget: options.memory_budget,
        spec,
    }
}

impl Planned {
    fn workload(&self, tokens: u64) -> Workload<'_> {
        Workload {
            spec: &self.spec,
            quantization: self.quantization,
            dtype: self.dtype,
            targets: &self.targets,
            saved_modules: &self.saved_modules,
            tokens,
            shares_prompts: self.shares_prompts,
            program: self.program,
            on_device: self.on_device,
            host_embeddings: false,
            host_inputs: false,
        }
    }

    fn home(&self) -> Home {
        if self.on_device { Home::Host } else { Home::Disk }
    }

    /// With all layers held.
    fn held(&self, workload: &Workload<'_>, budget: u64) -> (bool, Plan, Option<u64>) {
        let smallest = &smallest(workload, self.embeddings, self.saved_inputs);
        let plan = |workload: &Workload<'_>| Plan::new(workload, budget);
        let (fits, plan) = match chosen(workload, self.embeddings, self.saved_inputs, plan) {
            Ok(plan) => (true, plan),
            Err(_) => (false, Plan::keeping(smallest, 0)),
        };
        (fits, plan, most_tokens(smallest, budget))
    }

    /// With as many layers held as fit.
    fn streamed(&self, workload: &Workload<'_>, budget: u64) -> (bool, Plan, Option<u64>) {
        let smallest = &smallest(workload, self.embeddings, self.saved_inputs);
        let none = Some(Placement { home: self.home(), resident_layers: 0 });
        let plan = |workload: &Workload<'_>| {
            let resident_layers = most_resident(workload, self.home(), budget);
            Plan::with(workload, Some(Placement { home: self.home(), resident_layers }), budget)
        };
        let (fits, plan) = match chosen(workload, self.embeddings, self.saved_inputs, plan) {
            Ok(plan) => (true, plan),
            Err(_) => (false, Plan::placed(smallest, 0, none)),
        };
        (fits, plan, most_tokens_with(smallest, none, budget))
    }

    fn report(&self, rate: Option<f64>) -> Report {
        let tokens = self.tokens;
        let workload = &self.workload(tokens);
        let layers = self.spec.layers.len();
        let fit = |(fits, plan, max_context): (bool, Plan, Option<u64>)| Fit {
            fits,
            resident_layers: plan.resident_layers(),
            recomputed_layers: plan.layers - plan.kept_layers,
            max_context,
        };
        let cards: Vec<Card> = CARDS
            .iter()
            .map(|&gib| {
                let memory_budget = ((gib << 30) as f64 * SHARE) as u64;
                let (held, streamed) =
                    (self.held(workload, memory_budget), self.streamed(workload, memory_budget));
                Card { gib, memory_budget, held: fit(held), streamed: fit(streamed) }
            })
            .collect();
        let fits = |card: &&Card| card.held.fits;
        let smallest = cards.iter().find(fits).or(cards.last()).map(|card| card.memory_budget);
        let budget = self.budget.or(smallest).unwrap_or(u64::MAX);
        let outlook = |(fits, plan, max_context): (bool, Plan, Option<u64>)| Outlook {
            fits,
            device_bytes: plan.total(),
            host_bytes: plan.host().iter().map(|term| term.bytes).sum(),
            host: plan.host(),
            resident_layers: plan.resident_layers(),
            recomputed_layers: plan.layers - plan.kept_layers,
            host_embeddings: plan.host_embeddings,
            host_inputs: plan.host_inputs.is_some(),
            max_context,
            device: plan.terms,
        };
        let streamed = self.streamed(workload, budget);
        let fetched = streamed.1.streaming.as_ref().map_or(0, |streaming| streaming.fetched_bytes(layers));
        let operations = self.operations(&streamed.1);
        let (is_estimated, rate) =
            (rate.is_none(), rate.unwrap_or(ASSUMED_FLOPS / operations.iter().sum::<f64>()));
        let up = operations[0] / operations.iter().sum::<f64>();
        let links =
            LINKS.iter().map(|&(name, bandwidth)| Link::of(name, bandwidth, fetched, tokens, rate, up));
        Report {
            model: self.model.clone(),
            parameters: self.spec.parameters(),
            trainable_parameters: self.targets.iter().map(Target::parameters).sum::<u64>()
                + self.saved_modules.iter().map(SavedModule::parameters).sum::<u64>(),
            device: if self.on_device { "gpu" } else { "cpu" },
            compute_dtype: self.dtype.name(),
            quantization: self.quantization.map_or("none".to_owned(), |spec| spec.to_string()),
            micro_batch_size: self.micro_batch_size,
            seq_len: self.seq_len,
            tokens,
            layers,
            memory_budget: budget,
            held: outlook(self.held(workload, budget)),
            cards,
            tokens_per_second: rate,
            is_estimated,
            million_tokens_seconds: 1e6 / rate,
            links: links.filter(|_| fetched > 0).collect(),
            streamed: outlook(streamed),
        }
    }

    /// Operations for each token on the way up and on the way down: two for each frozen weight, and two more on the way down
    /// where the layer's forward pass is run again.
    fn operations(&self, plan: &Plan) -> [f64; 2] {
        let of = |layer: &Arc<LayerSpec>| layer.projection_elements();
        let again = self.spec.layers.iter().take(plan.layers - plan.kept_layers).map(of).sum::<u64>();
        let head = (self.spec.vocab_size * self.spec.hidden_size) as u64;
        let weights = self.spec.layers.iter().map(of).sum::<u64>() + head;
        [(2 * weights) as f64, (2 * weights + 2 * again) as f64]
    }
}

impl Link {
    /// A micro-batch of `tokens` tokens that fetches `bytes` bytes while it computes `rate` tokens per second, a share `up` of
    /// the time on the way up.
    fn of(name: &'static str, bytes_per_second: f64, bytes: u64, tokens: u64, rate: f64, up: f64) -> Self {
        let floor_seconds = bytes as f64 / bytes_per_second;
        let computing = tokens as f64 / rate;
        let seconds = pass_seconds(floor_seconds / 2.0, [computing * up, computing * (1.0 - up)]);
        let tokens_per_second = tokens as f64 / seconds;
        Self {
            name,
            bytes_per_second,
            floor_seconds,
            // On the way that takes less time.
            tokens_to_hide: (rate * floor_seconds / 2.0 / up.min(1.0 - up)).ceil() as u64,
            tokens_per_second,
            million_tokens_seconds: 1e6 / tokens_per_second,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(name: &str, memory_budget: Option<u64>) -> Report {
        let options = Options {
            rank: 16,
            micro_batch_size: 1,
            seq_len: 2048,
            compute_dtype: None,
            is_quantized: true,
            device: None,
            memory_budget,
            tokens_per_second: None,
        };
        model(name.to_owned(), shapes::spec(name).unwrap().unwrap(), options).report(None)
    }

    #[test]
    fn a_70b_model_trains_on_24_gib_with_its_layers_in_host_memory() {
        let found = report("llama-3.3-70b", Some(24 << 30));
        assert!(!found.held.fits && found.streamed.fits);
        assert!(found.held.device_bytes > 36 << 30, "{}", found.held.device_bytes);
        assert!(found.streamed.device_bytes <= 24 << 30);
        assert!((1..80).contains(&found.streamed.resident_layers));
        let all = found.held.device[0].bytes + found.held.device[1].bytes;
        assert!(found.streamed.host_bytes < all && found.streamed.host_bytes > 18 << 30);
        let fits: Vec<bool> = found.cards.iter().map(|card| card.streamed.fits).collect();
        assert_eq!(fits, [false, true, true, true, true, true]);
        assert!(found.cards.iter().all(|card| !card.held.fits || card.gib >= 48));
    }

    /// With adapters on attention alone and 2048 tokens, in GB as cards are sold: in less than other tools publish. The token
    /// embeddings are off the device where that is what it takes, and not where the table is the head too.
    #[test]
    fn mixtures_train_in_less_than_a_card_has() {
        for (name, most) in [("qwen3-30b-a3b", 17_500_000_000), ("gpt-oss-20b", 12_800_000_000)] {
            let found = report(name, Some(most)).held;
            assert!(found.fits && found.host_embeddings, "{name}: {}", found.device_bytes);
            let roomy = report(name, Some(80 << 30)).held;
            assert!(roomy.fits && !roomy.host_embeddings && roomy.recomputed_layers == 0, "{name}");
        }
        let tied = report("llama-3.2-1b", Some(1)).held;
        assert!(!tied.fits && !tied.host_embeddings);
    }

    /// All told, with the driver's context and what pools hold: an 8B model trains on a card of 8 GB, which leaves some 7.5
    /// of its memory to a run; and longer documents fit 24 GiB than the 78,475 tokens that Unsloth publishes.
    #[test]
    fn an_8b_model_needs_six_gib_and_long_documents_fit_a_card() {
        let found = report("llama-3.1-8b", Some(6 << 30)).held;
        assert!(found.fits && found.host_embeddings && found.host_inputs, "{}", found.device_bytes);
        assert!(found.device_bytes <= 6 << 30 && found.host_bytes > 0);
        assert!(
            found.device.iter().any(|term| term.name == "driver's context" && term.bytes == CUDA_CONTEXT)
        );
        let longest = report("llama-3.1-8b", Some(24 << 30)).held.max_context;
        assert!(longest.is_some_and(|tokens| tokens > 78_475), "{longest:?}");
        let roomy = report("llama-3.1-8b", Some(24 << 30)).held;
        assert!(!roomy.host_inputs && !roomy.host_embeddings && roomy.host_bytes == 0);
    }

    #[test]
    fn the_slower_of_copies_and_products_decides() {
        let link = |tokens| Link::of("link", 10e9, 20_000_000_000, tokens, 300.0, 0.5);
        let (few, many) = (link(300), link(1200));
        assert_eq!((few.floor_seconds, few.tokens_to_hide, few.tokens_per_second), (2.0, 600, 150.0));
        assert_eq!((many.tokens_per_second, many.tokens_to_hide), (300.0, 600));
        // A way down that takes twice as long as the way up hides its copies before that does.
        let uneven = Link::of("link", 10e9, 20_000_000_000, 600, 300.0, 1.0 / 3.0);
        assert_eq!((uneven.tokens_to_hide, uneven.tokens_per_second.round()), (900, 257.0));
        // Layers that are all held cost nothing to fetch.
        assert!(report("llama-3.2-1b", Some(24 << 30)).links.is_empty());
    }
}
