//! `tune bench`.

use std::io::{self, Write};

use super::args::BenchArguments;
use super::console::Console;
use super::environment::{Signals, hub_cache, profile_file};
use super::exit::Exit;
use super::style::{STRONG, paint};
use crate::device::KernelTime;
use crate::recipe::{DeviceSpec, RecipeFile};
use crate::run::bench::{Options, Report, Subject, bench as measure};
use crate::run::{self, Environment};
use crate::train::event::{Event, Observer};
use crate::units::{Bytes, Grouped};

/// Measures, and shows what was found.
pub(super) fn bench(arguments: &BenchArguments, console: &mut Console<'_>) -> io::Result<Exit> {
    let mut overrides = arguments.overrides.clone();
    overrides.extend(arguments.device.map(|device| format!("device=\"{device}\"")));
    let subject = match &arguments.recipe {
        Some(recipe) => match RecipeFile::open(recipe, &overrides) {
            Ok(file) => Subject::Recipe(Box::new(file)),
            Err(error) => return Ok(console.failure(&error.into())),
        },
        None => Subject::Shape {
            name: arguments.shape.clone(),
            rank: arguments.rank,
            micro_batch_size: arguments.micro_batch_size,
            seq_len: arguments.seq_len,
            compute_dtype: arguments.compute_dtype.map(Into::into),
            device: arguments.device.unwrap_or(DeviceSpec::Auto),
        },
    };
    let signals = Signals::listen();
    let stop = || signals.raised();
    let cache = hub_cache();
    let environment = Environment { hub_cache: &cache, stop: &stop };
    let profile = arguments.profile.then(profile_file);
    let options = Options { steps: arguments.steps, warmup: arguments.warmup, profile: profile.as_deref() };
    match measure(subject, options, &environment, &mut Silent) {
        Ok(report) => {
            console.event("result", &report);
            if !console.json() {
                show(&report, arguments.tokens, console.out())?;
            }
            Ok(Exit::Done)
        }
        Err(run::Error::Stopped) => Ok(signals.exit()),
        Err(error) => Ok(console.failure(&error)),
    }
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
                Some(seconds) => format!(", {seconds:.3} s of them to launch it"),
                None => String::new(),
            }
        ),
    )?;
    line(
        "speed",
        format!("{:.0} tokens/s, at best {:.0}", report.tokens_per_second, report.tokens_per_second_best),
    )?;
    if let Some((ceiling, share)) = report.ceiling_flops.zip(report.share_of_ceiling) {
        line(
            "ceiling",
            format!(
                "{:.0} GFLOP/s of {}; the step reaches {:.0} % of it, counting 4 operations a weight and token",
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
        layers => format!("; {layers} layers run forward twice"),
    };
    let peak = report.peak_memory_bytes.map_or("unknown".to_owned(), |peak| Bytes(peak).to_string());
    match report.device_memory_bytes.zip(report.device_reserved_bytes) {
        None => line("memory", format!("{peak} at its peak, {planned} planned{again}"))?,
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
    match &report.kernels {
        None => {
            let time = tokens as f64 / report.tokens_per_second;
            line("time", format!("{} tokens would take {}", Grouped(tokens), duration(time)))
        }
        Some(kernels) => show_kernels(report, kernels, out),
    }
}

/// What a step's kernels took, the longest first, and what they could not go below.
fn show_kernels(report: &Report, kernels: &[KernelTime], out: &mut dyn Write) -> io::Result<()> {
    let steps = report.steps as f64;
    let all: f64 = kernels.iter().map(|kernel| kernel.seconds).sum();
    writeln!(out, "\nEvery kernel was waited for: a step is faster without `--profile`. Of one step:\n")?;
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

/// Seconds as people say them.
fn duration(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 120.0 => format!("{seconds:.0} s"),
        seconds if seconds < 7200.0 => format!("{:.0} min", seconds / 60.0),
        seconds if seconds < 172_800.0 => format!("{:.1} h", seconds / 3600.0),
        seconds => format!("{:.1} days", seconds / 86_400.0),
    }
}
