//! The page: head, key figures, charts, and the sections below them.

use super::REFRESH;
use super::chart::{Chart, Series};
use super::experts;
use super::html::escape;
use super::read::Run;
use super::sections;
use super::summary::State;
use crate::objective::statistics::Means;
use crate::units::{Bytes, Grouped};

const STYLE: &str = include_str!("style.css");
/// With more logged steps than this, the loss chart shows a running mean.
const SMOOTHED_FROM: usize = 50;

/// Title, points and number format of a chart with one line.
type Single<'a> = (&'a str, Vec<(f64, f64)>, fn(f64) -> String);

/// The whole page.
pub(super) fn page(run: &Run) -> String {
    let name = escape(&run.folder.display().to_string());
    let (word, class) = status(run);
    let refresh = match State::of(run) {
        State::Running => format!("<meta http-equiv=\"refresh\" content=\"{}\">\n", REFRESH.as_secs()),
        _ => String::new(),
    };
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         {refresh}<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{name} · tune</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<header>\n\
         <h1>{name} <span class=\"status {class}\">{word}</span></h1>\n<p class=\"lead\">{}</p>\n",
        lead(run)
    );
    html += &problem(run);
    html += &figures(run);
    html += "</header>\n";
    html += &charts(run);
    html += &experts::experts(run);
    html += &sections::diverged(run);
    html += &sections::samples(run);
    html += &sections::data(run);
    html += &sections::memory(run);
    html += &sections::quantization(run);
    html += &sections::provenance(run);
    html += &sections::numbers(run);
    html + "</main>\n</body>\n</html>\n"
}

/// The status of the run: its word and its CSS class.
fn status(run: &Run) -> (&'static str, &'static str) {
    let state = State::of(run);
    let class = match state {
        State::Done => "done",
        State::Stopped | State::CutOff => "stopped",
        State::Failed => "failed",
        State::Running | State::Unknown => "running",
    };
    (state.word(), class)
}

fn lead(run: &Run) -> String {
    let mut parts = Vec::new();
    if let Some(lock) = &run.lock {
        parts.push(format!("A LoRA adapter for <code>{}</code>", escape(&lock.base.name)));
    }
    if let Some(record) = &run.record {
        parts.push(escape(&record.compute));
        let times: Vec<String> = record
            .sessions
            .iter()
            .map(|session| match &session.ended {
                Some(ended) => period(&session.started, ended),
                None => format!("since {} UTC", escape(&readable(&session.started))),
            })
            .collect();
        parts.push(times.join("; "));
    }
    parts.join(" · ")
}

/// `2026-01-31T10:00:00Z` without its letters.
fn readable(instant: &str) -> String {
    instant.trim_end_matches('Z').replacen('T', " ", 1)
}

/// A time span; a common day is written once.
fn period(started: &str, ended: &str) -> String {
    let (started, ended) = (readable(started), readable(ended));
    let end = match (started.split_once(' '), ended.split_once(' ')) {
        (Some((day, _)), Some((same, time))) if day == same => time,
        _ => &ended,
    };
    format!("{} to {} UTC", escape(&started), escape(end))
}

fn problem(run: &Run) -> String {
    let last = run.record.as_ref().and_then(|record| record.sessions.last());
    match last.and_then(|session| session.problem.as_deref()) {
        Some(problem) => format!("<p class=\"problem\">{}</p>\n", escape(problem)),
        None => String::new(),
    }
}

/// The key figures.
fn figures(run: &Run) -> String {
    let mut rows: Vec<(&str, String, String)> = Vec::new();
    let evaluations = (run.evaluations.first(), run.evaluations.last());
    if let (Some(first), Some(last)) = evaluations {
        let change = match first.step == last.step {
            true => format!("after step {}", last.step),
            false => format!("{:.4} before", first.eval_loss),
        };
        rows.push(("Held-out loss", format!("{:.4}", last.eval_loss), change));
    }
    if let Some(last) = run.steps.last() {
        rows.push(("Training loss", format!("{:.4}", last.loss), format!("at step {}", last.step)));
        let total = run.record.as_ref().map(|record| record.total_steps).filter(|total| *total > 0);
        let of = total.map(|total| format!("of {}", Grouped(total))).unwrap_or_default();
        rows.push(("Optimizer steps", Grouped(last.step).to_string(), of));
        rows.push(("Tokens", Grouped(last.tokens).to_string(), format!("{:.2} epochs", last.epoch)));
    }
    if let Some(speed) = median(run.steps.iter().map(|step| step.tokens_per_second).collect()) {
        rows.push(("Tokens per second", Grouped(speed as u64).to_string(), "median".into()));
    }
    let measured = run.peak_memory();
    if let Some(peak) = measured.of_plan() {
        let total = run.planned();
        let planned = match (total, measured.device) {
            (1.., _) => format!("{} planned", Bytes(total)),
            (0, Some(_)) => "peak, on the device".into(),
            (0, None) => "peak, whole process".into(),
        };
        rows.push(("Memory", Bytes(peak).to_string(), planned));
    }
    if rows.is_empty() {
        return "<p class=\"soft\">No step has been logged yet.</p>\n".into();
    }
    let mut html = String::from("<dl class=\"figures\">\n");
    for (name, value, small) in rows {
        html += &format!(
            "<div><dt>{name}</dt><dd>{}<small>{}</small></dd></div>\n",
            escape(&value),
            escape(&small)
        );
    }
    html + "</dl>\n"
}

fn charts(run: &Run) -> String {
    let steps = |value: fn(&crate::train::event::StepReport) -> f64| -> Vec<(f64, f64)> {
        run.steps.iter().map(|step| (step.step as f64, value(step))).collect()
    };
    let ends = |name: &str, points: &[(f64, f64)], format: fn(f64) -> String| match (
        points.first(),
        points.last(),
    ) {
        (Some(first), Some(last)) => {
            format!("{name}: {} at step {}, {} at step {}.", format(first.1), first.0, format(last.1), last.0)
        }
        _ => String::new(),
    };
    let losses = steps(|step| step.loss);
    let held_out: Vec<(f64, f64)> =
        run.evaluations.iter().map(|report| (report.step as f64, report.eval_loss)).collect();
    let summary =
        format!("{} {}", ends("Training loss", &losses, plain), ends("Held-out loss", &held_out, plain));
    let mut series = Vec::new();
    if losses.len() > SMOOTHED_FROM {
        series.push(Series {
            name: "training, running mean",
            class: "c",
            points: running_mean(&losses),
            marked: false,
        });
        series.push(Series {
            name: "training, each logged step",
            class: "pale",
            points: losses,
            marked: false,
        });
        series.swap(0, 1);
    } else {
        series.push(Series { name: "training", class: "a", points: losses, marked: false });
    }
    series.push(Series { name: "held out", class: "b", points: held_out, marked: true });
    let loss = Chart { title: "Loss", summary, series, from_zero: false, format: plain, wide: true };
    let mut html = loss.figure();

    let peak = run.peak_memory();
    let is_large = peak.of_plan().is_some_and(|peak| peak >= 10 << 30);
    let unit = if is_large { 1_u64 << 30 } else { 1 << 20 } as f64;
    let memory_title = match (peak.device, is_large) {
        (Some(_), true) => "Peak memory of tensors on the device, GiB",
        (Some(_), false) => "Peak memory of tensors on the device, MiB",
        (None, true) => "Peak memory of the process, GiB",
        (None, false) => "Peak memory of the process, MiB",
    };
    let memory: Vec<(f64, f64)> = run
        .steps
        .iter()
        .filter_map(|step| {
            let bytes = if peak.device.is_some() { step.device_memory_bytes } else { step.peak_memory_bytes };
            Some((step.step as f64, bytes? as f64 / unit))
        })
        .collect();
    let answers = |name: &str, of: fn(&Means) -> Option<f64>| Chart {
        title: "",
        summary: name.to_owned(),
        series: vec![
            Series {
                name: "training",
                class: "a",
                points: run
                    .steps
                    .iter()
                    .filter_map(|step| Some((step.step as f64, of(step.answers.as_ref()?)?)))
                    .collect(),
                marked: false,
            },
            Series {
                name: "held out",
                class: "b",
                points: run
                    .evaluations
                    .iter()
                    .filter_map(|report| Some((report.step as f64, of(report.answers.as_ref()?)?)))
                    .collect(),
                marked: true,
            },
        ],
        from_zero: false,
        format: plain,
        wide: false,
    };
    if run.steps.iter().any(|step| step.answers.is_some()) {
        let summary = "Reward of chosen answers less that of rejected ones.";
        let margin = answers(summary, |means| means.reward_margin);
        html += &Chart { title: "Reward margin", ..margin }.figure();
        let accuracy =
            answers("Share of pairs ranked as the data ranks them.", |means| means.preference_accuracy);
        html += &Chart { title: "Preference accuracy", ..accuracy }.figure();
    }
    let busiest = run.steps.iter().filter_map(|step| Some((step.step as f64, step.experts.expert_load_max?)));
    let single: [Single<'_>; 5] = [
        ("Learning rate", steps(|step| step.learning_rate), scientific),
        ("Gradient norm, before clipping", steps(|step| step.grad_norm), plain),
        ("Tokens per second", steps(|step| step.tokens_per_second), whole),
        (memory_title, memory, whole),
        ("Tokens of the busiest expert, over the mean of its layer", busiest.collect(), plain),
    ];
    for (title, points, format) in single {
        let summary = ends(title, &points, format);
        let series = vec![Series { name: "", class: "a", points, marked: false }];
        html += &Chart { title, summary, series, from_zero: true, format, wide: false }.figure();
    }
    match html.is_empty() {
        true => html,
        false => format!("<h2>How it went</h2>\n<div class=\"charts\">\n{html}</div>\n"),
    }
}

/// Running mean over about a fortieth of the run.
fn running_mean(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let reach = (points.len() / 80).clamp(2, 250);
    let mut sums = vec![0.0];
    sums.extend(points.iter().scan(0.0, |sum, (_, value)| {
        *sum += value;
        Some(*sum)
    }));
    let mean = |(index, (step, _)): (usize, &(f64, f64))| {
        // A symmetric window, so that the mean of a falling line is not above it.
        let reach = reach.min(index).min(points.len() - 1 - index);
        let (from, to) = (index - reach, index + reach + 1);
        (*step, (sums[to] - sums[from]) / (to - from) as f64)
    };
    points.iter().enumerate().map(mean).collect()
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.retain(|value| value.is_finite());
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn plain(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if !(1e-3..1e5).contains(&size) => scientific(value),
        size if size >= 100.0 => format!("{value:.0}"),
        _ => {
            let text = format!("{value:.4}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
    }
}

fn scientific(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let text = format!("{value:.2e}");
    match text.split_once('e') {
        Some((digits, power)) => {
            let digits = if digits.contains('.') {
                digits.trim_end_matches('0').trim_end_matches('.')
            } else {
                digits
            };
            format!("{digits}e{power}")
        }
        None => text,
    }
}

fn whole(value: f64) -> String {
    if value.abs() < 10.0 && value.fract() != 0.0 {
        plain(value)
    } else {
        Grouped(value.max(0.0) as u64).to_string()
    }
}
