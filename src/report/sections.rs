//! The sections below the charts: samples, data, memory, provenance, and the numbers.

use super::html::{escape, facts, table};
use super::read::{Diverged, Run};
use crate::data::survey::Side;
use crate::export::quantize::report::{Kind, kinds};
use crate::record::{LOCK_FILE, RECORD_FILE};
use crate::units::{Bytes, Grouped};

/// Largest number of steps in the table of numbers.
const MOST_ROWS: usize = 300;

/// Skipped and reverted steps.
pub(super) fn diverged(run: &Run) -> String {
    if run.diverged.is_empty() {
        return String::new();
    }
    let row = |report: &Diverged| {
        let what = if report.rolled_back { "rolled back to step" } else { "skipped; continued from step" };
        vec![
            report.step.to_string(),
            escape(&format!("{} {}", report.diverged, report.value)),
            format!("{what} {}", report.continued_from),
            escape(&report.rows.join(", ")),
        ]
    };
    let head = [("step", true), ("non-finite value", false), ("action", false), ("rows", false)];
    let rows: Vec<Vec<String>> = run.diverged.iter().take(MOST_ROWS).map(row).collect();
    let caption = match run.diverged.len() - rows.len() {
        0 => "Steps that diverged".to_owned(),
        more => format!("The first steps that diverged; {} more are in metrics.jsonl", Grouped(more as u64)),
    };
    format!("<h2>Diverged steps</h2>\n{}", table(&caption, &head, &rows))
}

/// Answers before and after.
pub(super) fn samples(run: &Run) -> String {
    let Some(record) = run.record.as_ref().filter(|record| !record.samples.is_empty()) else {
        return String::new();
    };
    let mut html = String::from("<h2>Samples</h2>\n");
    for sample in &record.samples {
        let after = match &sample.after {
            Some(after) => format!("<blockquote>{}</blockquote>", escape(after.trim())),
            None => "<p class=\"soft\">not yet</p>".to_owned(),
        };
        html += &format!(
            "<section class=\"sample\">\n<p>{}</p>\n<div class=\"answers\">\n\
             <div><h3>Before training</h3><blockquote>{}</blockquote></div>\n\
             <div class=\"after\"><h3>After training</h3>{after}</div>\n</div>\n</section>\n",
            escape(sample.prompt.trim()),
            escape(sample.before.trim()),
        );
        for answered in run.answers.iter().filter(|answered| answered.prompt == sample.prompt) {
            html += &format!(
                "<section class=\"sample\"><h3>After step {}</h3><blockquote>{}</blockquote></section>\n",
                answered.step,
                escape(answered.answer.trim())
            );
        }
    }
    html
}

/// Statistics of the rows.
pub(super) fn data(run: &Run) -> String {
    let Some(record) = &run.record else { return String::new() };
    let Some(data) = &record.data else { return String::new() };
    let row = |name: &str, side: &Side| {
        let share = 100.0 * side.supervised_tokens as f64 / side.tokens.max(1) as f64;
        let mean = side.tokens as f64 / side.used.max(1) as f64;
        vec![
            name.to_owned(),
            Grouped(side.rows).to_string(),
            Grouped(side.used).to_string(),
            Grouped(side.tokens).to_string(),
            format!("{share:.0} %"),
            format!("{mean:.0}"),
            Grouped(side.longest).to_string(),
        ]
    };
    let head = [
        ("", false),
        ("rows", true),
        ("used", true),
        ("tokens", true),
        ("supervised", true),
        ("mean length", true),
        ("longest", true),
    ];
    let mut html = String::from("<h2>Data</h2>\n");
    html += &table(
        "Rows as trained on, each counted once",
        &head,
        &[row("training", &data.train), row("held out", &data.held_out)],
    );
    let most = data.train.lengths.iter().map(|bin| bin.rows).max().unwrap_or(0).max(1);
    let bins: Vec<Vec<String>> = data
        .train
        .lengths
        .iter()
        .map(|bin| {
            let to = bin.tokens.saturating_mul(2).saturating_sub(1);
            vec![
                format!("{} to {}", Grouped(bin.tokens), Grouped(to)),
                Grouped(bin.rows).to_string(),
                format!(
                    "<span class=\"bar\" style=\"width: {:.1}%\"></span>",
                    100.0 * bin.rows as f64 / most as f64
                ),
            ]
        })
        .collect();
    if !bins.is_empty() {
        html += "<h3>Lengths</h3>\n";
        html += &table(
            "Training rows by their number of tokens",
            &[("tokens", false), ("rows", true), ("", false)],
            &bins,
        );
    }
    let mut more: Vec<(&str, String)> = Vec::new();
    if let Some(shape) = &data.schedule {
        more.push(("Steps of the whole run", Grouped(shape.steps).to_string()));
        more.push(("Examples seen", Grouped(shape.examples).to_string()));
        more.push(("Tokens seen", Grouped(shape.tokens).to_string()));
        more.push(("Largest micro-batch", format!("{} tokens", Grouped(shape.largest_micro_batch))));
    }
    more.push(("Rows longer than max_seq_len", Grouped(data.overflowing_rows).to_string()));
    more.push(("Rows without supervised tokens", Grouped(data.empty_rows).to_string()));
    html += "<h3>Shape</h3>\n";
    html += &facts(&more);
    let warnings = &record.warnings;
    if !warnings.is_empty() {
        html += "<h3>Warnings</h3>\n<ul class=\"notes\">\n";
        for warning in warnings {
            html += &format!("<li>{}</li>\n", escape(warning));
        }
        html += "</ul>\n";
    }
    html
}

/// The memory plan and the measured peaks.
pub(super) fn memory(run: &Run) -> String {
    if run.plan.is_empty() {
        return String::new();
    }
    let total = run.planned();
    let share = |bytes: u64| 100.0 * bytes as f64 / total.max(1) as f64;
    let mut rows: Vec<Vec<String>> = run
        .plan
        .iter()
        .map(|(name, bytes)| {
            let bar = format!("<span class=\"bar\" style=\"width: {:.1}%\"></span>", share(*bytes));
            vec![escape(name), Bytes(*bytes).to_string(), bar]
        })
        .collect();
    rows.push(vec!["<strong>planned</strong>".into(), Bytes(total).to_string(), String::new()]);
    let against = |bytes: u64| format!("{:.0} % of the plan", share(bytes));
    let mut measured = |name: &str, bytes: u64, about: String| {
        rows.push(vec![format!("<strong>{name}</strong>"), Bytes(bytes).to_string(), about]);
    };
    let peak = run.peak_memory();
    match (peak.device, peak.process) {
        (Some((tensors, reserved)), process) => {
            measured("measured peak of tensors on the device", tensors, against(tensors));
            measured("reserved on the device", reserved, String::new());
            if let Some(process) = process {
                measured("measured peak of the process", process, String::new());
            }
        }
        (None, Some(process)) => measured("measured peak", process, against(process)),
        (None, None) => {}
    }
    let head = [("term", false), ("memory", true), ("", false)];
    format!("<h2>Memory</h2>\n{}", table("Planned before the run, and measured", &head, &rows))
}

/// What 4 bits cost the base.
pub(super) fn quantization(run: &Run) -> String {
    let Some(report) = &run.quantization else { return String::new() };
    let percent = |share: f64| format!("{:.2} %", 100.0 * share);
    let row = |kind: Kind<'_>| {
        let layer = escape(kind.worst.layer().unwrap_or("–"));
        let name = format!("<code>{}</code>", escape(&kind.name));
        let (error, largest) = (percent(kind.error), percent(kind.worst.error));
        vec![name, Grouped(kind.tensors).to_string(), error, largest, layer]
    };
    let mut rows: Vec<Vec<String>> = kinds(&report.tensors).into_iter().map(row).collect();
    let weights = Grouped(report.tensors.len() as u64).to_string();
    let empty = String::new;
    rows.push(vec!["<strong>together</strong>".into(), weights, percent(report.error), empty(), empty()]);
    let head = [("module", false), ("weights", true), ("error", true), ("largest", true), ("in layer", true)];
    let mut html = String::from("<h2>Quantization</h2>\n");
    if let Some(held_out) = &report.held_out {
        let margin = held_out.margin.map_or(String::new(), |margin| format!(" ± {margin:.4}"));
        html += &facts(&[
            ("Loss of the dense base", format!("{:.4}", held_out.dense_loss)),
            ("Loss in 4 bits", format!("{:.4}", held_out.quantized_loss)),
            ("Difference", format!("{:+.4}{margin}", held_out.difference)),
            ("Rows", format!("{}: {}", Grouped(held_out.rows), escape(&held_out.origin))),
            ("Supervised tokens", Grouped(held_out.supervised_tokens).to_string()),
        ]);
    }
    let caption = "Root mean square of what 4 bits change, over that of the weights";
    html + &table(caption, &head, &rows)
        + &format!("<p class=\"soft\">Stored as <code>{}</code>.</p>\n", escape(&report.quantization))
}

/// The inputs of the run, and its machine.
pub(super) fn provenance(run: &Run) -> String {
    let mut html = String::from("<h2>Provenance</h2>\n");
    if let Some(record) = &run.record {
        let mut rows = vec![
            ("Made with", format!("tune {}", escape(&record.tune))),
            ("Trained parameters", Grouped(record.trainable_parameters).to_string()),
            ("Parameters of the base", Grouped(record.base_parameters).to_string()),
            ("Frozen base in memory", Bytes(record.frozen_bytes).to_string()),
        ];
        if let Some(session) = record.sessions.last() {
            let machine = &session.machine;
            rows.push(("Machine", format!("{} {}", escape(&machine.os), escape(&machine.architecture))));
            rows.extend(machine.processor.as_ref().map(|name| ("Processor", escape(name))));
            rows.push(("Threads", Grouped(machine.threads).to_string()));
            rows.extend(
                machine.memory_bytes.map(|bytes| ("Memory of the machine", Bytes(bytes).to_string())),
            );
        }
        rows.push(("Sessions", Grouped(record.sessions.len() as u64).to_string()));
        html += &facts(&rows);
        if let Some(sha256) = &record.adapter_sha256 {
            html += &format!(
                "<p>SHA-256 of <code>adapter/adapter_model.safetensors</code>: <span class=\"hash\">{}</span></p>\n",
                escape(sha256)
            );
        }
    }
    if let Some(lock) = &run.lock {
        let hash = |sha256: &str| format!("<span class=\"hash\">{}</span>", escape(sha256));
        let mut rows = vec![vec!["recipe".to_owned(), String::new(), hash(&lock.recipe_sha256)]];
        let files =
            [("base", &lock.base_file), ("tokenizer", &lock.tokenizer_file), ("start", &lock.start_file)];
        for (whose, files) in files {
            rows.extend(files.iter().map(|file| {
                let name = format!("{whose}: <code>{}</code>", escape(&file.name));
                vec![name, Bytes(file.bytes).to_string(), hash(&file.sha256)]
            }));
        }
        if let Some(template) = &lock.chat_template {
            rows.push(vec![
                format!("chat template of {}", escape(&template.origin)),
                String::new(),
                hash(&template.sha256),
            ]);
        }
        rows.extend(lock.dataset.iter().map(|dataset| {
            let name = format!("dataset: <code>{}</code>", escape(&dataset.path));
            vec![name, format!("{} rows", Grouped(dataset.rows)), hash(&dataset.sha256)]
        }));
        html += "<h3>Inputs</h3>\n";
        let head = [("input", false), ("size", true), ("SHA-256", false)];
        html += &table(&format!("All inputs of the run, from {LOCK_FILE}"), &head, &rows);
        html += &format!(
            "<p class=\"soft\">Reproduce with: <code>tune reproduce {}</code></p>\n",
            escape(&run.folder.display().to_string())
        );
    }
    if let Some(recipe) = &run.recipe {
        html += &format!(
            "<details>\n<summary>The recipe with all defaults</summary>\n<pre tabindex=\"0\">{}</pre>\n</details>\n",
            escape(recipe)
        );
    }
    if run.record.is_none() {
        html += &format!("<p class=\"soft\">The folder has no {RECORD_FILE}.</p>\n");
    }
    html
}

/// The numbers of the charts as tables.
pub(super) fn numbers(run: &Run) -> String {
    if run.steps.is_empty() {
        return String::new();
    }
    let stride = run.steps.len().div_ceil(MOST_ROWS);
    let last = run.steps.len() - 1;
    let rows: Vec<Vec<String>> = run
        .steps
        .iter()
        .enumerate()
        .filter(|(index, _)| index % stride == 0 || *index == last)
        .map(|(_, step)| {
            vec![
                step.step.to_string(),
                format!("{:.2}", step.epoch),
                format!("{:.4}", step.loss),
                format!("{:.4}", step.grad_norm),
                format!("{:.3e}", step.learning_rate),
                Grouped(step.tokens).to_string(),
                Grouped(step.tokens_per_second.max(0.0) as u64).to_string(),
            ]
        })
        .collect();
    let head = ["step", "epoch", "loss", "gradient norm", "learning rate", "tokens", "tokens/s"]
        .map(|name| (name, true));
    let caption = match stride {
        1 => "Every logged step".to_owned(),
        stride => format!("Every {stride}th logged step; all of them are in metrics.jsonl"),
    };
    let evaluations: Vec<Vec<String>> = run
        .evaluations
        .iter()
        .take(MOST_ROWS)
        .map(|report| {
            vec![
                report.step.to_string(),
                format!("{:.4}", report.eval_loss),
                Grouped(report.eval_tokens).to_string(),
            ]
        })
        .collect();
    let unreadable: String = [("metrics", run.unreadable_lines), ("samples", run.unreadable_answers)]
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(file, count)| {
            let lines = Grouped(count).of("line", "lines");
            format!("<p class=\"soft\">{lines} of {file}.jsonl could not be read.</p>\n")
        })
        .collect();
    let held_out = match evaluations.is_empty() {
        true => String::new(),
        false => table(
            "Evaluations over the held-out rows",
            &[("step", true), ("held-out loss", true), ("tokens", true)],
            &evaluations,
        ),
    };
    format!(
        "<details>\n<summary>The numbers</summary>\n{held_out}{}{unreadable}</details>\n",
        table(&caption, &head, &rows)
    )
}
