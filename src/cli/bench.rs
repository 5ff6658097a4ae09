//! `tune bench`.

use std::io::{self, Write};

use std::path::PathBuf;

use clap::Args;

use super::args::{memory, whole};
use super::console::Console;
use super::environment::{Context, profile_file};
use super::exit::Exit;
use super::failure::Failure;
use super::style::{STRONG, paint};
use crate::device::KernelTime;
use crate::model::FloatDtype;
use crate::model::fetch::Home;
use crate::model::spec::Offload;
use crate::recipe::{DeviceSpec, RecipeFile};
use crate::run::bench::{Options, Report, Subject, bench as measure};
use crate::train::event::{Event, Observer};
use crate::units::{Bytes, Grouped};

/// Arguments of `tune bench`.
#[derive(Debug, Args)]
pub struct BenchArguments {
    /// A recipe whose base, adapter and micro-batches are measured, on random tokens
    #[arg(conflicts_with_all = ["shape", "rank", "micro_batch_size", "seq_len", "compute_dtype"])]
    pub recipe: Option<PathBuf>,
    /// Change one key of the recipe (repeatable)
    #[arg(long = "set", value_name = "KEY.PATH=VALUE", requires = "recipe")]
    pub overrides: Vec<String>,
    /// A model shape with random weights, which needs no files: llama-3.2-1b, qwen2.5-0.5b, …
    #[arg(long, value_name = "NAME", default_value = "smollm2-135m")]
    pub shape: String,
    /// The config.json of another model, with random weights as well
    #[arg(long, value_name = "FILE", conflicts_with_all = ["recipe", "shape"])]
    pub config: Option<PathBuf>,
    /// Rank of the adapters on all linear layers
    #[arg(long, default_value_t = 16, value_parser = rank)]
    pub rank: usize,
    /// Documents per step
    #[arg(long, default_value_t = 4, value_name = "COUNT", value_parser = count)]
    pub micro_batch_size: usize,
    /// Tokens per document
    #[arg(long, default_value_t = 256, value_name = "TOKENS", value_parser = count)]
    pub seq_len: usize,
    /// Compute dtype [default: the fastest on this device]
    #[arg(long, value_enum, value_name = "DTYPE")]
    pub compute_dtype: Option<FloatDtype>,
    /// The device: auto, cpu, cuda, cuda:N, vulkan, vulkan:N, metal [default: the recipe's `device`, else auto]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceSpec>,
    /// Number of timed steps
    #[arg(long, default_value_t = 5, value_name = "COUNT", value_parser = count)]
    pub steps: usize,
    /// Number of steps before the timed ones
    #[arg(long, default_value_t = 1, value_name = "COUNT")]
    pub warmup: usize,
    /// Where frozen layers wait that are not held [default: the recipe's, else none]
    #[arg(long, value_enum, value_name = "WHERE")]
    pub offload: Option<Offload>,
    /// Layers that are held although the others are fetched
    #[arg(long, value_name = "COUNT")]
    pub resident_layers: Option<usize>,
    /// The folder of a shape's packed weights, for --offload host and disk; written if it is not there
    #[arg(long, value_name = "FOLDER")]
    pub packed: Option<PathBuf>,
    /// Memory of the device, as in 6GiB [default: the recipe's, else what is free]
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    pub memory_budget: Option<u64>,
    /// Time every GPU kernel separately; each then waits for the one before
    #[arg(long)]
    pub profile: bool,
    /// Also show the time that this many tokens would take
    #[arg(long, default_value_t = 1_000_000, value_name = "COUNT")]
    pub tokens: u64,
}

/// A count above zero, far from overflow.
pub(super) fn count(text: &str) -> Result<usize, String> {
    whole(text, 1_000_000)
}

/// A rank above zero.
pub(super) fn rank(text: &str) -> Result<usize, String> {
    whole(text, 4096)
}

/// Measures, and shows the figures.
pub(super) fn bench(
    arguments: &BenchArguments,
    context: &Context<'_>,
    console: &mut Console<'_>,
) -> Result<Exit, Failure> {
    let mut overrides = arguments.overrides.clone();
    overrides.extend(arguments.device.map(|device| format!("device=\"{device}\"")));
    let subject = match &arguments.recipe {
        Some(recipe) => Subject::Recipe(Box::new(RecipeFile::open(recipe, &overrides)?)),
        None => Subject::Shape {
            name: match &arguments.config {
                Some(config) => config.display().to_string(),
                None => arguments.shape.clone(),
            },
            config: arguments.config.clone(),
            rank: arguments.rank,
            micro_batch_size: arguments.micro_batch_size,
            seq_len: arguments.seq_len,
            compute_dtype: arguments.compute_dtype,
            device: arguments.device.unwrap_or(DeviceSpec::Auto),
        },
    };
    let profile = arguments.profile.then(profile_file);
    let options = Options {
        steps: arguments.steps,
        warmup: arguments.warmup,
        profile: profile.as_deref(),
        offload: arguments.offload,
        resident_layers: arguments.resident_layers,
        memory_budget: arguments.memory_budget,
        packed: arguments.packed.as_deref(),
    };
    let report = measure(subject, options, &context.environment, &mut Silent)?;
    console.event("result", &report);
    show(&report, arguments.tokens, console.out())?;
    Ok(Exit::Done)
}

struct Silent;

impl Observer for Silent {
    fn observe(&mut self, _: &Event<'_>) {}
}

fn show(report: &Report, tokens: u64, out: &mut dyn Write) -> io::Result<()> {
    let mut line =
        |name: &str, text: String| writeln!(out, "{} {text}", paint(STRONG, format!("{name:<10}")));
    line(
        "model",
        format!(
            "{}, {} parameters, {} of them trained",
            report.model,
            Grouped(report.parameters + report.trainable_parameters),
            Grouped(report.trainable_parameters)
        ),
    )?;
    line(
        "compute",
        match report.device.as_str() {
            "cpu" => {
                format!("{} on {} threads, {}", report.compute_dtype, report.threads, report.instruction_set)
            }
            device => format!("{} on {device}", report.compute_dtype),
        },
    )?;
    line(
        "step",
        format!(
            "{} tokens in documents of {}, {:.3} s (median of {}){}",
            Grouped(report.tokens_per_step),
            report.seq_len,
            report.tokens_per_step as f64 / report.tokens_per_second,
            report.steps,
            match report.launch_seconds {
                Some(seconds) => format!(", {seconds:.3} s of that to launch it"),
                None => String::new(),
            }
        ),
    )?;
    line(
        "speed",
        format!(
            "{:.0} tokens/s, best step {:.0}{}",
            report.tokens_per_second,
            report.tokens_per_second_best,
            report.pairs_per_second.map(|pairs| format!("; {pairs:.2} pairs/s")).unwrap_or_default()
        ),
    )?;
    if let Some((ceiling, share)) = report.ceiling_flops.zip(report.share_of_ceiling) {
        line(
            "ceiling",
            format!(
                "{:.0} GFLOP/s of {}; the step reaches {:.0} % of it, counting weights, adapters and visible scores",
                ceiling / 1e9,
                match report.device.as_str() {
                    "cpu" => "the microkernel alone",
                    _ => "a plain product of large matrices",
                },
                100.0 * share
            ),
        )?;
    }
    let planned = Bytes(report.planned_memory_bytes);
    let again = match report.recomputed_layers {
        0 => String::new(),
        layers => format!("; {layers} layers recomputed"),
    };
    let peak = report.peak_memory_bytes.map_or("unknown".to_owned(), |peak| Bytes(peak).to_string());
    match report.device_memory_bytes.zip(report.device_reserved_bytes) {
        None => line("memory", format!("peak {peak}, planned {planned}{again}"))?,
        Some((between, reserved)) => {
            let held = match report.device_peak_bytes {
                Some(peak) => format!("{} held at the peak of a step", Bytes(peak)),
                None => format!("{} held between steps", Bytes(between)),
            };
            let reserved = Bytes(reserved);
            line(
                "memory",
                format!(
                    "{held}, {planned} planned{again}; {reserved} reserved on the device, {peak} of the process"
                ),
            )?;
        }
    }
    if let Some(streaming) = &report.streaming {
        let home = match streaming.home {
            Home::Host => "host memory",
            Home::Disk => "disk",
        };
        let (held, slots) = (streaming.resident_layers, streaming.slots);
        let waiting = Bytes(streaming.streamed_bytes);
        line("layers", format!("{held} held, {waiting} fetched from {home} into {slots} slots"))?;
    }
    match &report.kernels {
        None => {
            let time = tokens as f64 / report.tokens_per_second;
            line("time", format!("{} for {} tokens", duration(time), Grouped(tokens)))
        }
        Some(kernels) => show_kernels(report, kernels, out),
    }
}

/// The time of each kernel in a step, longest first, and the lower bound of their sum.
fn show_kernels(report: &Report, kernels: &[KernelTime], out: &mut dyn Write) -> io::Result<()> {
    let steps = report.steps as f64;
    let all: f64 = kernels.iter().map(|kernel| kernel.seconds).sum();
    writeln!(
        out,
        "\nWith `--profile` every kernel waits for the one before, so steps are slower. Per step:\n"
    )?;
    let head = format!("{:>10}  {:>6}  {:>9}  kernel", "ms", "share", "launches");
    writeln!(out, "{}", paint(STRONG, head))?;
    let mut row = |seconds: f64, launches: f64, name: &str| {
        let share = 100.0 * seconds / all.max(f64::MIN_POSITIVE);
        writeln!(out, "{:>10.3}  {share:>4.1} %  {:>9.1}  {name}", 1e3 * seconds / steps, launches / steps)
    };
    for KernelTime { name, launches, seconds } in kernels {
        row(*seconds, *launches as f64, name)?;
    }
    row(all, kernels.iter().map(|kernel| kernel.launches as f64).sum(), "all")?;
    if let Some(floor) = report.floor_seconds {
        let share = 100.0 * floor / (all / steps).max(f64::MIN_POSITIVE);
        writeln!(
            out,
            "{:>10.3}  {share:>4.1} %  {:>9}  floor: the products with frozen weights at the ceiling",
            1e3 * floor,
            ""
        )?;
    }
    Ok(())
}

/// Seconds in a readable unit.
pub(super) fn duration(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 120.0 => format!("{seconds:.0} s"),
        seconds if seconds < 7200.0 => format!("{:.0} min", seconds / 60.0),
        seconds if seconds < 172_800.0 => format!("{:.1} h", seconds / 3600.0),
        seconds => format!("{:.1} days", seconds / 86_400.0),
    }
}
