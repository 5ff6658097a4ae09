//! torchtune: YAML of components, each a table whose `_component_` names a function, with `${…}` for values that stand
//! elsewhere.

use super::draft::{Dataset, Draft, Kind, NotTrained, Settings};
use super::hugging_face as hf;
use super::preference::{Goal, SUPPORTED};
use super::source::{Node, Value};
use super::template;
use super::tool::COMPONENT;

pub(super) fn import(root: &Node, draft: &mut Draft) -> Result<(), NotTrained> {
    let mut all = Settings::of(root, "");
    let settings = &mut all;
    if let Some(node) = settings.take("output_dir") {
        draft.carry("output_dir", node);
    }
    let goal = objective(root, settings, draft)?;
    model(settings, draft)?;
    checkpointer(settings, draft);
    let (max_seq_len, prompt) = tokenizer(settings, draft);
    dataset(settings, goal, max_seq_len, &prompt, draft);
    training(settings, draft);
    hf::batch(draft);
    for (key, reason) in [
        ("metric_logger", hf::reason("report_to")),
        ("profiler", "there is no profiler; `tune bench` shows where time goes"),
    ] {
        settings.take(key).filter(|node| node.get("enabled").and_then(Node::truth) != Some(false)).inspect(
            |node| {
                draft.left(key, node, reason);
            },
        );
    }
    hf::switched_off(
        &[
            "resume_from_checkpoint",
            "compile",
            "enable_activation_checkpointing",
            "enable_activation_offloading",
            "log_peak_memory_stats",
            "save_adapter_weights_only",
        ],
        settings,
        draft,
    );
    all.carry_rest(draft);
    Ok(())
}

/// The last part of a component's name.
fn component<'a>(settings: &mut Settings<'a>) -> &'a str {
    settings.take(COMPONENT).and_then(Node::text).and_then(|name| name.rsplit('.').next()).unwrap_or_default()
}

/// The objective over pairs of answers, if the loss is one.
fn objective(
    root: &Node,
    settings: &mut Settings<'_>,
    draft: &mut Draft,
) -> Result<Option<Goal>, NotTrained> {
    let name = |node: &Node| node.get(COMPONENT).and_then(Node::text).map(|name| name.contains(".rlhf."));
    let Some(node) = root.get("loss").filter(|node| name(node) == Some(true)) else { return Ok(None) };
    settings.take("loss");
    let mut all = Settings::of(node, "loss");
    let kind = component(&mut all);
    let (goal, keys): (_, &[(Goal, &'static str, &'static str)]) = match kind {
        "DPOLoss" => {
            (Goal::Dpo, &[(Goal::Dpo, "beta", "beta"), (Goal::Dpo, "label_smoothing", "label_smoothing")])
        }
        // The margin scaled by γ, below 1.
        "RSOLoss" => (Goal::Dpo, &[(Goal::Dpo, "gamma", "beta")]),
        "SimPOLoss" => (Goal::SimPo, &[(Goal::SimPo, "beta", "beta"), (Goal::SimPo, "gamma", "gamma")]),
        _ => {
            let reason = format!("`loss` is `{kind}`, and {SUPPORTED}");
            return Err(NotTrained { line: node.line, reason });
        }
    };
    goal.begin(draft);
    if kind == "RSOLoss" {
        draft.set("objective.dpo.loss", "hinge");
    }
    goal.carry_all(&mut all, keys, draft);
    if goal == Goal::SimPo {
        // torchtune's own.
        draft.set("objective.simpo.beta", 2.0);
        draft.set("objective.simpo.gamma", 0.5);
    }
    all.carry_rest(draft);
    Ok(Some(goal))
}

fn model(settings: &mut Settings<'_>, draft: &mut Draft) -> Result<(), NotTrained> {
    let Some(node) = settings.take("model") else {
        return Err(NotTrained { line: 0, reason: "it has no `model`".to_owned() });
    };
    let mut all = Settings::of(node, "model");
    let settings = &mut all;
    let builder = component(settings);
    let is_quantized =
        builder.starts_with("qlora_") || settings.take("quantize_base").and_then(Node::truth) == Some(true);
    if !is_quantized && !builder.starts_with("lora_") {
        let reason = format!(
            "`{builder}` trains all weights; only builders of LoRA and QLoRA (`lora_…`, `qlora_…`) have a recipe"
        );
        return Err(NotTrained { line: node.line, reason });
    }
    if is_quantized {
        draft.table("quantization.nf4");
        let text =
            "torchtune quantizes the scales of NF4 differently: the same codes, slightly different weights";
        draft.note(Kind::Changed, "model", node, text);
    }
    let mut targets: Vec<String> = Vec::new();
    if let Some(node) = settings.take("lora_attn_modules") {
        for name in node.texts().unwrap_or_default() {
            targets.push(if name == "output_proj" { "o_proj".to_owned() } else { name });
        }
    }
    if settings.take("apply_lora_to_mlp").and_then(Node::truth) == Some(true) {
        targets.extend(["gate_proj", "up_proj", "down_proj"].map(str::to_owned));
    }
    if let Some(node) = settings.take("apply_lora_to_output").filter(|node| node.truth() == Some(true)) {
        draft.left("model.apply_lora_to_output", node, "the output head stays frozen");
    }
    draft.set("adapter.lora.target_modules", targets.into_iter().map(toml::Value::from).collect::<Vec<_>>());
    // The builders' own defaults.
    for (key, ours, default) in [
        ("lora_rank", "adapter.lora.rank", toml::Value::from(8)),
        ("lora_alpha", "adapter.lora.alpha", toml::Value::from(16)),
        ("lora_dropout", "adapter.lora.dropout", toml::Value::from(0.0)),
    ] {
        match settings.take(key) {
            Some(node) => draft.carry(&settings.name(key), node),
            None => draft.set(ours, default),
        }
    }
    if let Some(node) = settings.take("use_dora") {
        draft.carry("use_dora", node);
    }
    all.carry_rest(draft);
    Ok(())
}

fn checkpointer(settings: &mut Settings<'_>, draft: &mut Draft) {
    let Some(node) = settings.take("checkpointer") else {
        draft.remark(
            Kind::Decide,
            "checkpointer",
            "it names no base model: name a folder or a hub id in `model.base`",
        );
        return draft.set("model.base", "");
    };
    let mut all = Settings::of(node, "checkpointer");
    let settings = &mut all;
    let kind = component(settings);
    match settings.take("checkpoint_dir") {
        Some(folder) => draft.carry("checkpointer.checkpoint_dir", folder),
        None => draft.remark(Kind::Decide, "checkpointer.checkpoint_dir", "name the base in `model.base`"),
    }
    if !kind.contains("HF") {
        let text =
            format!("`{kind}` reads another layout: `model.base` takes a Hugging Face folder or a hub id");
        draft.note(Kind::Decide, "checkpointer", node, text);
    }
    for (key, reason) in [
        ("checkpoint_files", "the base's folder says which files it has"),
        ("model_type", "the base's config.json says which family it is of"),
        ("output_dir", "everything is written below the recipe's `output_dir`"),
    ] {
        if let Some(node) = settings.take(key) {
            draft.left(&settings.name(key), node, reason);
        }
    }
    hf::switched_off(&["safe_serialization"], settings, draft);
    all.carry_rest(draft);
}

/// The longest row, and how turns are written.
fn tokenizer<'a>(settings: &mut Settings<'a>, draft: &mut Draft) -> (Option<&'a Node>, String) {
    let Some(node) = settings.take("tokenizer") else { return (None, "the tokenizer's turns".to_owned()) };
    let mut all = Settings::of(node, "tokenizer");
    let settings = &mut all;
    let mut prompt = format!("the turns of torchtune's `{}`", component(settings));
    for key in ["path", "merges_file"] {
        if let Some(node) = settings.take(key) {
            draft.left(&settings.name(key), node, hf::reason("tokenizer"));
        }
    }
    if let Some(node) = settings.take("prompt_template") {
        template::template("tokenizer.prompt_template", node, draft);
        prompt += &format!(" with its prompt template `{node}`");
    }
    let max_seq_len = settings.take("max_seq_len");
    all.carry_rest(draft);
    (max_seq_len, prompt)
}

fn dataset(
    settings: &mut Settings<'_>,
    goal: Option<Goal>,
    max_seq_len: Option<&Node>,
    prompt: &str,
    draft: &mut Draft,
) {
    match max_seq_len {
        Some(node) => {
            draft.carry("tokenizer.max_seq_len", node);
            draft.set("data.on_overflow", "truncate");
            let text = "it truncates longer rows; `data.on_overflow = \"truncate\"` does too, counts them and names some";
            draft.note(Kind::Changed, "tokenizer.max_seq_len", node, text);
        }
        None => draft.remark(
            Kind::Decide,
            "tokenizer.max_seq_len",
            "it limits no row; here `data.max_seq_len` does, and a longer row is an error",
        ),
    }
    draft.set("data.val_split", 0.0);
    let Some(node) = settings.take("dataset") else { return };
    let entries = match &node.value {
        Value::List(entries) => entries.as_slice(),
        _ => std::slice::from_ref(node),
    };
    for entry in entries {
        match goal {
            Some(_) => pairs(entry, prompt, draft),
            None => one_dataset(entry, prompt, draft),
        }
    }
    settings.take("dataset_val").inspect(|node| {
        draft.left("dataset_val", node, "a held-out file is a `[[dataset]]` with `split = \"validation\"`");
    });
}

/// A dataset of pairs of answers.
fn pairs(node: &Node, prompt: &str, draft: &mut Draft) {
    let mut all = Settings::of(node, "dataset");
    let settings = &mut all;
    let builder = component(settings);
    let (hub, columns): (_, &[(&'static str, &str)]) = match builder {
        "preference_dataset" => ("", &[]),
        "hh_rlhf_helpful_dataset" => ("RLHFlow/HH-RLHF-Helpful-standard", &[]),
        "stack_exchange_paired_dataset" => (
            "lvwerra/stack-exchange-paired",
            &[("prompt", "question"), ("chosen", "response_j"), ("rejected", "response_k")],
        ),
        _ => {
            let text =
                format!("`{builder}` is not supported: write rows with `prompt`, `chosen` and `rejected`");
            draft.note(Kind::Decide, "dataset", node, text);
            ("", &[])
        }
    };
    let mut dataset = Dataset { format: "preference", ..Dataset::default() };
    let here =
        "texts are joined as they stand, and lists of messages go through the base model's chat template";
    draft.prompt("dataset", node, &mut dataset, prompt, Some(here));
    dataset.fields.extend(columns.iter().map(|(ours, column)| (*ours, (*column).to_owned())));
    for (theirs, column) in settings.take("column_map").map(Node::entries).unwrap_or_default() {
        let ours = ["prompt", "chosen", "rejected"].into_iter().find(|ours| ours == theirs);
        match (ours, column.text()) {
            (Some(ours), Some(column)) => _ = dataset.fields.insert(ours, column.to_owned()),
            _ => draft.left(&format!("dataset.column_map.{theirs}"), column, "the format has no such field"),
        }
    }
    dataset.fields.retain(|ours, column| *ours != column.as_str());
    if let Some(node) = settings.take("new_system_prompt") {
        let text = format!("`{node}` stands before every row there: put it into the rows");
        draft.note(Kind::Decide, "dataset.new_system_prompt", node, text);
    }
    if settings.take("train_on_input").and_then(Node::truth) == Some(true) {
        draft.remark(Kind::Changed, "dataset.train_on_input", "the answers alone are learned");
    }
    draft.set("data.packing", false);
    source(settings, node, hub, dataset, draft);
    all.carry_rest(draft);
}

fn one_dataset(node: &Node, prompt: &str, draft: &mut Draft) {
    let mut all = Settings::of(node, "dataset");
    let settings = &mut all;
    let builder = component(settings);
    // What each builder reads, and whether it trains on the prompt where nothing is said.
    let (format, hub, on_input) = match builder {
        "alpaca_dataset" => ("alpaca", "tatsu-lab/alpaca", true),
        "alpaca_cleaned_dataset" => ("alpaca", "yahma/alpaca-cleaned", true),
        "instruct_dataset" => ("prompt-completion", "", false),
        "chat_dataset" => ("messages", "", false),
        "text_completion_dataset" => ("text", "", true),
        _ => {
            let text = format!(
                "`{builder}` is not supported: convert the rows to one of messages, alpaca, prompt-completion, text, tokens"
            );
            draft.note(Kind::Decide, "dataset", node, text);
            ("messages", "", false)
        }
    };
    let mut dataset = Dataset { format, ..Dataset::default() };
    if matches!(format, "alpaca" | "prompt-completion") {
        dataset.is_chat = true;
    }
    if format == "alpaca" {
        Draft::alpaca_prompt(&mut dataset);
    }
    match format {
        "alpaca" => draft.prompt(
            "dataset",
            node,
            &mut dataset,
            format!("Alpaca's, with a line break after `### Response:`, as a user turn in {prompt}"),
            Some("the same prompt as a user turn of the base model's chat template"),
        ),
        "prompt-completion" => draft.prompt(
            "dataset",
            node,
            &mut dataset,
            format!("a user turn in {prompt}"),
            Some("a user turn in the base model's chat template"),
        ),
        "messages" => draft.prompt(
            "dataset",
            node,
            &mut dataset,
            prompt,
            Some("the base model's chat template, its system prompt included"),
        ),
        _ => draft.prompt("dataset", node, &mut dataset, "none, the text as it stands", None),
    }
    match settings.take("masking_strategy").map(|node| (node, node.text())) {
        Some((_, Some("train_on_last"))) if format == "messages" => dataset.train_on = Some("last-assistant"),
        Some((_, Some("train_on_all"))) => dataset.train_on = Some("all"),
        None | Some((_, Some("train_on_assistant"))) => {}
        Some((node, _)) => draft.left("dataset.masking_strategy", node, "set `train_on` by hand"),
    }
    if let Some(node) = settings.take("new_system_prompt") {
        let text = format!("`{node}` stands before every row there: put it into the rows");
        draft.note(Kind::Decide, "dataset.new_system_prompt", node, text);
    }
    let on_input = settings.take("train_on_input").and_then(Node::truth).unwrap_or(on_input);
    if on_input && format != "text" {
        dataset.train_on = Some("all");
        let text =
            "the prompt is trained on too, as this builder does; `train_on = \"completion\"` leaves it out";
        draft.note(Kind::Changed, "dataset", node, text);
    }
    let packs = settings.take("packed").and_then(Node::truth).unwrap_or(false);
    draft.set("data.packing", packs);
    if let Some(columns) = settings.take("column_map") {
        for (theirs, column) in columns.entries() {
            let ours = match (format, theirs.as_str()) {
                ("prompt-completion", "input") => "prompt",
                ("prompt-completion", "output") => "completion",
                ("alpaca", "instruction") => "instruction",
                ("alpaca", "input") => "input",
                ("alpaca", "output") => "output",
                _ => {
                    draft.left(
                        &format!("dataset.column_map.{theirs}"),
                        column,
                        "the format has no such field",
                    );
                    continue;
                }
            };
            dataset.fields.insert(ours, column.text().unwrap_or_default().to_owned());
        }
    }
    match format {
        "prompt-completion" => {
            dataset.fields.entry("prompt").or_insert_with(|| "input".to_owned());
            dataset.fields.entry("completion").or_insert_with(|| "output".to_owned());
        }
        "messages" => {
            let column = settings.take("conversation_column").and_then(Node::text).unwrap_or("conversations");
            if column != "conversations" {
                dataset.fields.insert("messages", column.to_owned());
            }
            if let Some(node) = settings.take("conversation_style") {
                draft.left("dataset.conversation_style", node, "the keys of a message say which");
            }
        }
        "text" => {
            if let Some(column) =
                settings.take("column").and_then(Node::text).filter(|column| *column != "text")
            {
                dataset.fields.insert("text", column.to_owned());
            }
        }
        _ => {}
    }
    source(settings, node, hub, dataset, draft);
    all.carry_rest(draft);
}

/// Where a dataset's rows are.
fn source(settings: &mut Settings<'_>, node: &Node, hub: &str, mut dataset: Dataset, draft: &mut Draft) {
    let source = settings.take("source");
    let files = settings.take("data_files");
    let is_file =
        |source: &Node| matches!(source.text(), Some("json" | "csv" | "parquet" | "text" | "arrow"));
    let found = match (source, files) {
        (source, Some(files)) if source.is_none_or(is_file) => files,
        (Some(source), _) => source,
        (None, _) => node,
    };
    dataset.path = found.text().unwrap_or(hub).to_owned();
    hf::dataset_path("dataset.source", found, &dataset.path, draft);
    if let Some(node) = settings.take("split").filter(|node| node.text() != Some("train")) {
        draft.left("dataset.split", node, "a file is taken whole: name the file of that split in `path`");
    }
    draft.datasets.push(dataset);
}

fn training(settings: &mut Settings<'_>, draft: &mut Draft) {
    if let Some(node) = settings.take("optimizer") {
        let mut all = Settings::of(node, "optimizer");
        let settings = &mut all;
        let kind = component(settings);
        if !matches!(kind, "AdamW") {
            let text = format!("`{kind}` becomes AdamW, betas 0.9 and 0.999, epsilon 1e-8, moments in f32");
            draft.note(Kind::Changed, "optimizer", node, text);
        }
        if let Some(node) = settings.take("fused") {
            draft.left("optimizer.fused", node, hf::reason("optimizer"));
        }
        // Where it is silent, torch's AdamW decays by 0.01.
        if settings.take("weight_decay").map(|node| draft.carry("optimizer.weight_decay", node)).is_none() {
            draft.set("train.weight_decay", 0.01);
        }
        all.carry_rest(draft);
    }
    match settings.take("lr_scheduler") {
        Some(node) => {
            let mut all = Settings::of(node, "lr_scheduler");
            let settings = &mut all;
            let kind = component(settings);
            draft.set("train.lr_scheduler", "cosine");
            if kind != "get_cosine_schedule_with_warmup" {
                let text = format!(
                    "`{kind}` is not there (constant, linear, cosine are): `cosine` stands in its place"
                );
                draft.note(Kind::Changed, "lr_scheduler", node, text);
            }
            match settings.take("num_warmup_steps") {
                Some(node) => draft.carry("lr_scheduler.num_warmup_steps", node),
                None => draft.set("train.warmup_steps", 0),
            }
            if let Some(node) = settings.take("num_cycles").filter(|node| node.number() != Some(0.5)) {
                draft.left("lr_scheduler.num_cycles", node, "half a cosine, always");
            }
            all.carry_rest(draft);
        }
        None => {
            draft.set("train.lr_scheduler", "constant");
            draft.set("train.warmup_steps", 0);
        }
    }
    let is_other = |node: &&Node| !component(&mut Settings::of(node, "loss")).contains("CrossEntropy");
    if let Some(node) = settings.take("loss").filter(is_other) {
        draft.left("loss", node, "the loss is cross-entropy over the supervised tokens");
    }
    let epochs = settings.take("epochs");
    if let Some(node) = epochs {
        draft.carry("epochs", node);
    }
    if let Some((node, steps)) =
        settings.take("max_steps_per_epoch").and_then(|node| Some((node, node.integer()?)))
    {
        let all = epochs.and_then(Node::integer).unwrap_or(1).saturating_mul(steps);
        draft.set("train.max_steps", all);
        let text = format!(
            "it shortens each epoch; here the run ends after {all} steps in all, whatever its epochs"
        );
        draft.note(Kind::Changed, "max_steps_per_epoch", node, text);
    }
    for (key, ours, default) in [
        ("batch_size", "train.micro_batch_size", 1),
        ("gradient_accumulation_steps", "train.gradient_accumulation_steps", 1),
    ] {
        match settings.take(key) {
            Some(node) => draft.carry(key, node),
            None => draft.set(ours, default),
        }
    }
    match settings.take("clip_grad_norm") {
        Some(node) => draft.carry("clip_grad_norm", node),
        // Left out, nothing is clipped there.
        None => draft.set("train.max_grad_norm", 0.0),
    }
    match settings.take("dtype").map(|node| (node, node.text())) {
        Some((_, Some("bf16"))) => draft.set("model.compute_dtype", "bf16"),
        Some((_, Some("fp32"))) => draft.set("model.compute_dtype", "f32"),
        Some((_, Some("fp16"))) => draft.set("model.compute_dtype", "f16"),
        Some((node, _)) => draft.left("dtype", node, "set `model.compute_dtype` by hand"),
        None => {}
    }
    settings.take("device").filter(|node| node.text() != Some("cuda")).inspect(|node| {
        draft.left(
            "device",
            node,
            "the best device there is, is taken; `device = \"cpu\"` stands at the top of a recipe",
        );
    });
}
