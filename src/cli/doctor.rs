//! `tune doctor`.

use std::io::{self, Write};

use clap::Args;
use clap::builder::PossibleValuesParser;

use super::console::Console;
use super::environment::Context;
use super::exit::Exit;
use super::failure::Failure;
use super::finding::Finding;
use super::style::{self, ERROR, FAINT, GOOD, STRONG, WARNING, interactive, output_width, paint, visible};
use crate::model::FloatDtype;
use crate::recipe::DeviceSpec;
use crate::run::doctor::{Only, Reached, Report, Tried, Verdict, doctor as examine, ops};
use crate::units::Bytes;

/// Lines below the name of an API begin here.
const INDENT: &str = "           ";

/// Arguments of `tune doctor`.
#[derive(Debug, Args)]
pub struct DoctorArguments {
    /// Test only this device: auto, cpu, cuda, cuda:N, vulkan, vulkan:N, metal [default: the CPU and every GPU]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceSpec>,
    /// Test only this op (repeatable)
    #[arg(long, value_name = "OP", value_parser = PossibleValuesParser::new(ops()), hide_possible_values = true)]
    pub op: Vec<String>,
    /// Test only in this compute dtype (repeatable)
    #[arg(long, value_enum, value_name = "DTYPE")]
    pub dtype: Vec<FloatDtype>,
}

/// Dtypes in the order of the table's columns.
const COLUMNS: [&str; 3] = ["f32", "bf16", "f16"];

/// Tests every device and shows the results.
pub(super) fn doctor(
    arguments: &DoctorArguments,
    context: &Context<'_>,
    console: &mut Console<'_>,
) -> Result<Exit, Failure> {
    let mut testing = |device: &str| {
        if interactive() {
            // Explains the wait; a closed terminal changes nothing.
            let _ = writeln!(anstream::stderr(), "testing {device} ...");
        }
    };
    let only = Only { ops: &arguments.op, dtypes: &arguments.dtype };
    let report = examine(arguments.device, only, &context.environment, &mut testing)?;
    console.event("result", &report);
    show(&report, console.out())?;
    for tried in report.devices.iter().filter(|tried| !tried.is_right()) {
        console.problem(&Finding::new(
            format!("{} is not usable for training: {}", tried.device, why(tried)),
            None,
        ));
    }
    Ok(if report.is_right() { Exit::Done } else { Exit::Resources })
}

/// The fault of a device, in one line.
fn why(tried: &Tried) -> String {
    match &tried.fault {
        Some(fault) => format!("it does not start: {fault}"),
        None => {
            let of = |verdict: &Verdict| format!("{} in {}", verdict.op, verdict.dtype);
            let wrong: Vec<String> = tried.ops.iter().filter(|verdict| !verdict.is_right).map(of).collect();
            format!("wrong results of {}", wrong.join(", "))
        }
    }
}

fn show(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let machine = &report.machine;
    let memory = machine.memory_bytes.map_or("memory unknown".to_owned(), |bytes| Bytes(bytes).to_string());
    let model = machine.processor.as_deref().unwrap_or(&machine.architecture);
    writeln!(
        out,
        "{} {}, {} threads, {memory}, ops use {}",
        paint(STRONG, format!("{:<10}", "cpu")),
        visible(model),
        machine.threads,
        report.instruction_set
    )?;
    for api in &report.apis {
        show_api(api, &report.devices, out)?;
    }
    for tried in &report.devices {
        show_tried(tried, out)?;
    }
    let wrong: Vec<&str> =
        report.devices.iter().filter(|tried| !tried.is_right()).map(|tried| tried.device.as_str()).collect();
    match wrong.as_slice() {
        [] => writeln!(out, "\n{}", paint(GOOD, "All tested ops are correct on all tested devices.")),
        wrong => {
            writeln!(out, "\n{}", paint(ERROR, format!("Not usable for training: {}.", wrong.join(", "))))
        }
    }
}

fn show_api(api: &Reached, tried: &[Tried], out: &mut dyn Write) -> io::Result<()> {
    let name = paint(STRONG, format!("{:<10}", api.name));
    if !api.is_built {
        let way = format!("not in this build; add it with `cargo build --release --features {}`", api.name);
        let text = style::wrapped(&format!("{name} {}", paint(FAINT, way)), output_width(), INDENT);
        return writeln!(out, "{text}");
    }
    if let Some(missing) = &api.missing {
        writeln!(out, "{name} {}", paint(WARNING, missing))?;
        for line in wrapped(api.help.unwrap_or_default(), 88) {
            writeln!(out, "{:<10} {line}", "")?;
        }
    }
    for gpu in &api.devices {
        let memory = match (gpu.memory_bytes, gpu.free_memory_bytes) {
            (Some(total), Some(free)) => format!("{} of {} free", Bytes(free), Bytes(total)),
            (Some(total), None) => Bytes(total).to_string(),
            (None, _) => "memory unknown".to_owned(),
        };
        writeln!(
            out,
            "{} {} ({}), {memory}, {}",
            paint(STRONG, format!("{:<10}", gpu.device)),
            visible(&gpu.name),
            gpu.kind,
            visible(&gpu.driver)
        )?;
        if gpu.kind == "software" && tried.iter().all(|tried| tried.device != gpu.device) {
            let text = format!(
                "emulated by the CPU; used only on request; test it with `tune doctor --device {}`",
                gpu.device
            );
            writeln!(out, "{:<10} {}", "", paint(FAINT, text))?;
        }
    }
    Ok(())
}

/// One line per op: the largest relative error in every dtype.
fn show_tried(tried: &Tried, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out)?;
    if let Some(fault) = &tried.fault {
        return writeln!(
            out,
            "{} {} {}",
            paint(STRONG, &tried.device),
            paint(ERROR, "does not start:"),
            visible(fault)
        );
    }
    let columns: String = COLUMNS.iter().map(|dtype| format!("{dtype:>10}")).collect();
    writeln!(out, "{}{columns}   largest relative error", paint(STRONG, format!("{:<22}", tried.device)))?;
    let mut ops: Vec<&str> = Vec::new();
    for verdict in &tried.ops {
        if !ops.contains(&verdict.op) {
            ops.push(verdict.op);
        }
    }
    for op in ops {
        let of_op: Vec<&Verdict> = tried.ops.iter().filter(|verdict| verdict.op == op).collect();
        let cell = |dtype: &&str| match of_op.iter().find(|verdict| verdict.dtype == *dtype) {
            None => format!("{:>10}", "-"),
            Some(Verdict { error: Some(error), .. }) => format!("{error:>10.1e}"),
            Some(_) => format!("{:>10}", "none"),
        };
        let cells: String = COLUMNS.iter().map(cell).collect();
        let wrong: Vec<&&Verdict> = of_op.iter().filter(|verdict| !verdict.is_right).collect();
        let verdict = if wrong.is_empty() { paint(GOOD, "ok") } else { paint(ERROR, "WRONG") };
        writeln!(out, "  {op:<20}{cells}   {verdict}")?;
        for verdict in wrong {
            let why = match (&verdict.fault, verdict.error) {
                (Some(fault), _) => format!("failed: {}", first_line(fault)),
                (None, Some(error)) => {
                    format!("{}: error {error:.1e}, tolerance {:.1e}", verdict.of, verdict.tolerance)
                }
                (None, None) => format!("{}: NaN", verdict.of),
            };
            writeln!(out, "    {} {}", verdict.dtype, visible(&why))?;
        }
    }
    let lacking: Vec<&str> = COLUMNS.into_iter().filter(|dtype| !tried.dtypes.contains(dtype)).collect();
    if !lacking.is_empty() {
        writeln!(out, "  {}", paint(FAINT, format!("not supported: {}", lacking.join(", "))))?;
    }
    Ok(())
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// `text` in lines of at most `width` characters, broken between words.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_not_broken() {
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("", 7), [""]);
    }
}
