//! Settings that the tools built on transformers and PEFT share: precision, schedule, optimizer, intervals.

use super::draft::{Draft, Kind, NotTrained, Settings};
use super::source::{Node, Value};
use crate::adapter::spec::ALL_LINEAR;
use crate::recipe::foreign;

/// A tool's values for settings that its configuration leaves out. They are written out, since tune's defaults differ.
pub(super) struct Defaults {
    pub(super) epochs: f64,
    pub(super) micro_batch_size: i64,
    pub(super) learning_rate: f64,
    pub(super) scheduler: &'static str,
    /// Share of the steps.
    pub(super) warmup_ratio: f64,
}

/// All settings of training that the tools have in common. Values of `defaults` need no note: they are what the
/// configuration means.
pub(super) fn training(settings: &mut Settings<'_>, draft: &mut Draft, defaults: &Defaults) {
    precision(settings, draft);
    schedule(settings, draft, defaults);
    optimizer(settings, draft);
    due(settings, draft);
    if let Some((key, node)) = settings.any(&["num_train_epochs", "num_epochs"]) {
        draft.carry(key, node);
    }
    if let Some(node) = settings.take("max_steps") {
        // transformers writes -1 for "not set".
        match node.integer() {
            Some(steps) if steps > 0 => {
                draft.set("train.max_steps", steps);
                // There, steps replace epochs; here the first to be reached ends the run.
                if draft.get("train.epochs").is_some() {
                    draft.unset("train.epochs");
                    draft.note(
                        Kind::Changed,
                        "max_steps",
                        node,
                        "it replaces the number of epochs, as in the other tool",
                    );
                }
            }
            Some(_) => {}
            None => draft.left("max_steps", node, "expected a whole number"),
        }
    }
    if draft.get("train.max_steps").is_none() {
        draft.set("train.epochs", defaults.epochs);
    }
    for (key, ours, default) in [
        ("per_device_train_batch_size", "train.micro_batch_size", defaults.micro_batch_size),
        ("gradient_accumulation_steps", "train.gradient_accumulation_steps", 1),
    ] {
        if let Some(node) = settings.take(key) {
            draft.carry(key, node);
        }
        if ours != "train.micro_batch_size"
            || settings.take("micro_batch_size").is_none_or(|node| {
                draft.carry("micro_batch_size", node);
                false
            })
        {
            draft.set(ours, default);
        }
    }
    if let Some(node) = settings.take("learning_rate") {
        draft.carry("learning_rate", node);
    }
    draft.set("train.learning_rate", defaults.learning_rate);
}

/// Sequences of an optimizer step, since other machines may have had several devices.
pub(super) fn batch(draft: &mut Draft) {
    let of = |key| draft.get(key).and_then(toml::Value::as_integer).unwrap_or(1);
    let (micro, steps) = (of("train.micro_batch_size"), of("train.gradient_accumulation_steps"));
    let is_packed = draft.get("data.packing").and_then(toml::Value::as_bool) == Some(true);
    let packs = match draft.datasets.first().map(|dataset| dataset.format) {
        _ if is_packed => "packs",
        Some("preference") => "pairs",
        _ => "sequences",
    };
    draft.remark(
        Kind::Changed,
        "effective batch size",
        format!(
            "{micro} x {steps} = {} {packs} in an optimizer step, on one device; after a run on N devices, multiply \
             `train.gradient_accumulation_steps` by N. For several here set `train.lanes`, and start with \
             `mpirun -n N tune run RECIPE --ranks mpi`",
            micro.saturating_mul(steps)
        ),
    );
}

fn precision(settings: &mut Settings<'_>, draft: &mut Draft) {
    for (key, dtype) in
        [("bf16", "bf16"), ("bfloat16", "bf16"), ("pure_bf16", "bf16"), ("fp16", "f16"), ("float16", "f16")]
    {
        if let Some(node) = settings.take(key) {
            match &node.value {
                Value::Truth(true) => draft.set("model.compute_dtype", dtype),
                // `auto`: bf16 where the device has it, which is what `auto` is here.
                _ if node.truth() == Some(false) || node.text() == Some("auto") => {}
                _ => draft.left(key, node, "set `model.compute_dtype` by hand"),
            }
        }
    }
    for key in ["torch_dtype", "dtype", "bnb_4bit_compute_dtype"] {
        if let Some(node) = settings.take(key) {
            match node.text().map(|text| text.trim_start_matches("torch.")) {
                Some("bfloat16" | "bf16") => draft.set("model.compute_dtype", "bf16"),
                Some("float16" | "fp16" | "half") => draft.set("model.compute_dtype", "f16"),
                Some("float32" | "fp32" | "float") => draft.set("model.compute_dtype", "f32"),
                Some("auto") => {}
                _ => draft.left(key, node, "set `model.compute_dtype` by hand"),
            }
        }
    }
    if let Some(node) = settings.take("tf32").filter(|node| node.truth() == Some(true)) {
        draft.left("tf32", node, "matmuls run in `model.compute_dtype`, and sum in f32");
    }
}

fn schedule(settings: &mut Settings<'_>, draft: &mut Draft, defaults: &Defaults) {
    let steps = settings.take("warmup_steps");
    let ratio = settings.take("warmup_ratio");
    match (steps.map(|node| (node, node.integer())), ratio) {
        // transformers takes the steps where both are given.
        (Some((node, Some(count))), ratio) if count > 0 => {
            draft.carry("warmup_steps", node);
            if let Some(ratio) = ratio {
                draft.left("warmup_ratio", ratio, "`warmup_steps` is set too, and wins");
            }
        }
        (Some((node, None)), None) => match node.number() {
            // Below one it is a share.
            Some(share) if (0.0..1.0).contains(&share) => draft.set("train.warmup_ratio", share),
            _ => draft.left("warmup_steps", node, "expected a whole number"),
        },
        (_, Some(ratio)) => draft.carry("warmup_ratio", ratio),
        (Some(_), None) => draft.set("train.warmup_steps", 0),
        (None, None) => draft.set("train.warmup_ratio", defaults.warmup_ratio),
    }
    let found = settings.any(&["lr_scheduler_type", "lr_scheduler"]);
    let name = found.and_then(|(_, node)| node.text()).unwrap_or(defaults.scheduler);
    let special = settings.take("lr_scheduler_kwargs");
    let mut special = special.map(|node| Settings::of(node, "lr_scheduler_kwargs"));
    let mut of_special =
        |keys: &[&'static str]| special.as_mut().and_then(|all| all.any(keys)).map(|(_, node)| node);
    let floor = of_special(&["min_lr_rate", "min_lr_ratio"]).and_then(Node::number);
    let decay = of_special(&["num_decay_steps"]).and_then(Node::integer);
    match (name, found) {
        ("cosine_with_min_lr", _) if floor.is_some() => draft.set("train.lr_scheduler", name),
        ("warmup_stable_decay", _) => draft.set("train.lr_scheduler", name),
        ("linear" | "cosine" | "inverse_sqrt", _) => draft.set("train.lr_scheduler", name),
        ("constant_with_warmup", _) => draft.set("train.lr_scheduler", "constant"),
        ("constant", found) => {
            draft.set("train.lr_scheduler", "constant");
            let warms = ["train.warmup_steps", "train.warmup_ratio"].iter().any(|key| {
                draft.get(key).is_some_and(|value| {
                    value.as_float().or(value.as_integer().map(|n| n as f64)) > Some(0.0)
                })
            });
            draft.unset("train.warmup_ratio");
            draft.unset("train.warmup_steps");
            draft.set("train.warmup_steps", 0);
            if let Some((key, node)) = found.filter(|_| warms) {
                draft.note(
                    Kind::Changed,
                    key,
                    node,
                    "the other tool's `constant` ignores the warm-up, so the recipe has none",
                );
            }
        }
        (_, Some((key, node))) => {
            draft.set("train.lr_scheduler", "cosine");
            let text = format!(
                "`{node}` is not supported (`tune keys train.lr_scheduler` lists the others); the recipe has `cosine`"
            );
            draft.note(Kind::Changed, key, node, text);
        }
        (_, None) => {}
    }
    if let (Some(floor), "cosine_with_min_lr" | "warmup_stable_decay") = (floor, name) {
        draft.set("train.min_lr_rate", floor);
    }
    if let (Some(decay), "warmup_stable_decay") = (decay, name) {
        draft.set("train.decay_steps", decay);
    }
    if let Some(special) = special {
        special.carry_rest(draft);
    }
}

fn optimizer(settings: &mut Settings<'_>, draft: &mut Draft) {
    let Some((key, node)) = settings.any(&["optim", "optimizer"]) else { return };
    match node.text() {
        Some("adamw_torch" | "adamw_torch_fused" | "adamw_hf" | "adamw" | "adamw_apex_fused") => {}
        Some(name) if name.contains("adamw") => draft.note(
            Kind::Changed,
            key,
            node,
            format!("`{name}` becomes AdamW with moments in f32: the same update without their rounding"),
        ),
        _ => draft.carry("optim", node),
    }
}

/// Intervals of evaluation, checkpoints and log lines: those in steps carry over by name.
fn due(settings: &mut Settings<'_>, draft: &mut Draft) {
    for (keys, ours, counted) in [
        (&["eval_strategy", "evaluation_strategy"][..], "train.eval_steps", "eval_steps"),
        (&["save_strategy"][..], "train.save_steps", "save_steps"),
    ] {
        let strategy = settings.any(keys);
        let count = settings.take(counted);
        match strategy.map(|(key, node)| (key, node, node.text())) {
            // PyYAML reads a bare `no` as false.
            Some((key, node, text)) if text == Some("no") || node.truth() == Some(false) => {
                draft.left(key, node, &format!("it cannot be switched off; set a large `{ours}`"));
            }
            Some((key, node, Some("epoch"))) => {
                draft.left(key, node, &format!("`{ours}` counts optimizer steps, not epochs"));
            }
            Some((key, node, text)) if !matches!(text, Some("steps" | "best")) => {
                draft.left(key, node, &format!("set `{ours}` by hand"));
            }
            _ => {}
        }
        match count.map(|node| (node, node.integer())) {
            Some((node, Some(steps))) if steps > 0 => draft.carry(counted, node),
            Some((node, _)) => {
                draft.left(counted, node, &format!("`{ours}` counts optimizer steps, not a share of them"))
            }
            None => {}
        }
    }
    if let Some(node) = settings.take("logging_steps") {
        match node.integer() {
            Some(steps) if steps > 0 => draft.carry("logging_steps", node),
            _ => draft.left(
                "logging_steps",
                node,
                "`train.logging_steps` counts optimizer steps, not a share of them",
            ),
        }
    }
}

/// 4 bits, with double quantization if the configuration or, where it is silent, `doubled` says so; types other than NF4
/// are noted.
pub(super) fn quantization(
    settings: &mut Settings<'_>,
    draft: &mut Draft,
    in_four_bits: bool,
    doubled: bool,
) {
    let kind = settings.take("bnb_4bit_quant_type").or_else(|| settings.take("quantization_type"));
    let double = settings.any(&["bnb_4bit_use_double_quant", "use_bnb_nested_quant", "double_quantization"]);
    if let Some(node) = settings.take("load_in_8bit").filter(|node| node.truth() == Some(true)) {
        draft.note(
            Kind::Changed,
            "load_in_8bit",
            node,
            "8 bits are not supported: the base stays dense; `[quantization.nf4]` stores it in 4 bits",
        );
    }
    if !in_four_bits {
        return;
    }
    draft.table("quantization.nf4");
    if let Some(node) = kind.filter(|node| node.text() != Some("nf4")) {
        draft.note(Kind::Changed, "bnb_4bit_quant_type", node, format!("`{node}` becomes NF4"));
    }
    match double.map(|(key, node)| (key, node, node.truth())) {
        Some((_, _, Some(double))) => draft.set("quantization.nf4.double_quant", double),
        Some((key, node, None)) => draft.left(key, node, "expected true or false"),
        None if doubled => {}
        None => draft.set("quantization.nf4.double_quant", false),
    }
}

/// `all-linear`, names, or a pattern.
pub(super) fn targets(key: &str, node: &Node, draft: &mut Draft) {
    match &node.value {
        Value::Text(text) if matches!(text.as_str(), "all" | "all-linear") => {
            draft.set("adapter.lora.target_modules", ALL_LINEAR);
        }
        Value::Text(text) if text.contains(['*', '(', '[', '^', '\\', '|']) => {
            draft.set("adapter.lora.target_modules", text.as_str());
        }
        _ => match node.texts() {
            Some(names) if names.iter().any(|name| matches!(name.as_str(), "all" | "all-linear")) => {
                draft.set("adapter.lora.target_modules", ALL_LINEAR);
            }
            Some(names) => {
                let heads: Vec<String> = names
                    .iter()
                    .filter(|name| matches!(name.as_str(), "lm_head" | "embed_tokens"))
                    .cloned()
                    .collect();
                if !heads.is_empty() {
                    draft.note(
                        Kind::Left,
                        key,
                        node,
                        format!("`{}`: embeddings and output head stay frozen", heads.join(", ")),
                    );
                }
                let kept = names.into_iter().filter(|name| !heads.contains(name));
                draft.set("adapter.lora.target_modules", kept.map(toml::Value::from).collect::<Vec<_>>());
            }
            None => draft.left(key, node, "set `adapter.lora.target_modules` by hand"),
        },
    }
}

/// A held-out share; a number of rows has no counterpart.
pub(super) fn held_out(key: &str, node: &Node, draft: &mut Draft) {
    match node.number() {
        Some(share) if (0.0..1.0).contains(&share) => draft.set("data.val_split", share),
        _ => draft.note(
            Kind::Decide,
            key,
            node,
            format!(
                "`{node}` rows were held out, and `data.val_split` is a share: set it to {node} divided by the number of rows"
            ),
        ),
    }
}

/// Settings without a counterpart here, which matter only if they are not false.
pub(super) fn switched_off(keys: &[&'static str], settings: &mut Settings<'_>, draft: &mut Draft) {
    for key in keys {
        if let Some(node) = settings.take(key).filter(|node| node.truth() != Some(false)) {
            draft.carry(key, node);
        }
    }
}

/// Refuses a configuration whose `key` has a value that is not `allowed`.
pub(super) fn require(
    settings: &mut Settings<'_>,
    key: &str,
    allowed: &[&str],
    what: &str,
) -> Result<(), NotTrained> {
    match settings.take(key) {
        Some(node) if !node.text().is_some_and(|text| allowed.contains(&text)) => {
            Err(NotTrained { line: node.line, reason: format!("`{key}` is `{node}`, and {what}") })
        }
        _ => Ok(()),
    }
}

/// Notes a dataset whose path is not a file of a known kind.
pub(super) fn dataset_path(key: &str, node: &Node, path: &str, draft: &mut Draft) {
    let known = [".jsonl", ".json", ".parquet", ".arrow", ".csv"];
    if !known.iter().any(|ending| path.ends_with(ending)) {
        draft.note(
            Kind::Decide,
            key,
            node,
            format!(
                "`{path}` is not a file (.jsonl, .json, .parquet, .arrow, .csv): download the dataset and name its file \
                 in `path`"
            ),
        );
    }
}

/// The note on a foreign name, for settings that several tools spell alike.
pub(super) fn reason(name: &str) -> &'static str {
    match foreign::meaning(name) {
        Some(crate::document::Meaning::Note(reason)) => reason,
        _ => "tune has no such setting",
    }
}
