//! Axolotl: one flat YAML file, with a list of datasets.

use std::collections::BTreeMap;

use super::draft::{Dataset, Draft, Kind, NotTrained, Settings};
use super::hugging_face::{self as hf, Defaults};
use super::preference::{self, Goal, SUPPORTED};
use super::source::{Node, Value};
use super::template;
use crate::adapter::spec::ALL_LINEAR;
use crate::data::roles::role as known_role;

/// Axolotl warms up over 3 % of the steps, and runs one epoch of single rows.
const DEFAULTS: Defaults = Defaults {
    epochs: 1.0,
    micro_batch_size: 1,
    learning_rate: 2e-4,
    scheduler: "cosine",
    warmup_ratio: 0.03,
};

pub(super) fn import(root: &Node, draft: &mut Draft) -> Result<(), NotTrained> {
    let mut all = Settings::of(root, "");
    let settings = &mut all;
    let goal = objective(settings, draft)?;
    let adapter = settings.take("adapter");
    let is_quantized = match adapter.map(|node| (node, node.text())) {
        Some((_, Some("qlora"))) => true,
        Some((_, Some("lora"))) => false,
        Some((node, _)) => {
            return Err(NotTrained {
                line: node.line,
                reason: format!("`adapter: {node}` is not supported; lora and qlora are"),
            });
        }
        None => {
            let reason = "it names no `adapter`, so it trains all weights; only LoRA and QLoRA are supported"
                .to_owned();
            return Err(NotTrained { line: 0, reason });
        }
    };
    let in_four_bits = settings.take("load_in_4bit").is_some_and(|node| node.truth() == Some(true));
    hf::quantization(settings, draft, is_quantized || in_four_bits, true);
    if let Some(node) = settings.take("lora_target_modules") {
        hf::targets("lora_target_modules", node, draft);
    }
    if settings.take("lora_target_linear").is_some_and(|node| node.truth() == Some(true)) {
        draft.set("adapter.lora.target_modules", ALL_LINEAR);
    }
    data(settings, goal, draft);
    for key in ["evals_per_epoch", "saves_per_epoch"] {
        if let Some(node) = settings.take(key) {
            let ours = if key == "evals_per_epoch" { "train.eval_steps" } else { "train.save_steps" };
            draft.left(key, node, &format!("`{ours}` counts optimizer steps, not parts of an epoch"));
        }
    }
    if settings.take("learning_rate").map(|node| draft.carry("learning_rate", node)).is_none() {
        draft.remark(
            Kind::Decide,
            "learning_rate",
            "the configuration has none; the recipe has a usual value",
        );
    }
    hf::training(settings, draft, &DEFAULTS);
    hf::batch(draft);
    hf::switched_off(
        &[
            "strict",
            "trust_remote_code",
            "gradient_checkpointing",
            "flash_attention",
            "xformers_attention",
            "sdp_attention",
            "group_by_length",
            "lora_fan_in_fan_out",
            "eval_sample_packing",
            "pad_to_sequence_len",
            "use_tensorboard",
            "debug",
        ],
        settings,
        draft,
    );
    all.carry_rest(draft);
    Ok(())
}

/// The objective over answers, if the configuration trains one.
fn objective(settings: &mut Settings<'_>, draft: &mut Draft) -> Result<Option<Goal>, NotTrained> {
    let Some(node) = settings.take("rl") else { return Ok(None) };
    let name = node.text().unwrap_or_default();
    let Some(goal) = Goal::named(name) else {
        let reason = format!("`rl` is `{node}`, and {SUPPORTED}");
        return Err(NotTrained { line: node.line, reason });
    };
    goal.begin(draft);
    if name == "ipo" {
        draft.set("objective.dpo.loss", "ipo");
    }
    let weights = settings.take("dpo_loss_weights");
    if let Some(node) = settings.take("dpo_loss_type") {
        goal.loss("dpo_loss_type", node, weights, draft)?;
    }
    if settings.take("dpo_norm_loss").and_then(Node::truth) == Some(true) {
        draft.set("objective.dpo.length_normalized", true);
    }
    if let Some(node) = settings.take("rl_beta") {
        goal.carry("rl_beta", node, "beta", draft);
    }
    goal.carry_all(
        settings,
        &[
            (Goal::Dpo, "dpo_label_smoothing", "label_smoothing"),
            (Goal::Dpo, "rpo_alpha", "rpo_alpha"),
            (Goal::Orpo, "orpo_alpha", "beta"),
            (Goal::SimPo, "simpo_gamma", "gamma"),
            (Goal::Kto, "kto_desirable_weight", "wanted_weight"),
            (Goal::Kto, "kto_undesirable_weight", "unwanted_weight"),
        ],
        draft,
    );
    goal.likelihood(settings, draft);
    preference::others(settings, draft);
    goal.end(draft);
    Ok(Some(goal))
}

fn data(settings: &mut Settings<'_>, goal: Option<Goal>, draft: &mut Draft) {
    // Axolotl's own default is 512, and it leaves longer rows out.
    match settings.take("sequence_len") {
        Some(node) => draft.carry("sequence_len", node),
        None => draft.set("data.max_seq_len", 512),
    }
    let strategy = settings.take("excess_length_strategy");
    match strategy.and_then(Node::text) {
        Some("truncate") => draft.set("data.on_overflow", "truncate"),
        Some("raise") => draft.set("data.on_overflow", "error"),
        _ => {
            draft.set("data.on_overflow", "drop");
            if strategy.is_none() {
                draft.remark(
                    Kind::Changed,
                    "sequence_len",
                    "axolotl drops longer rows; `data.on_overflow = \"drop\"` does too, counts them and names some",
                );
            }
        }
    }
    let packs = settings.take("sample_packing");
    draft.set("data.packing", packs.and_then(Node::truth).unwrap_or(false));
    if let Some(node) = packs.filter(|node| node.truth() == Some(true)) {
        draft.note(
            Kind::Changed,
            "sample_packing",
            node,
            "attention never crosses from one row of a pack to another here; `micro_batch_size` counts packs",
        );
    }
    match settings.take("val_set_size") {
        Some(node) => hf::held_out("val_set_size", node, draft),
        None => draft.set("data.val_split", 0.0),
    }
    let on_inputs = settings.take("train_on_inputs").and_then(Node::truth) == Some(true);
    let template = settings.take("chat_template");
    if let Some(node) = template.filter(|node| node.text() != Some("jinja")) {
        template::template("chat_template", node, draft);
    }
    if let Some(node) = settings.take("chat_template_jinja") {
        template::template("chat_template_jinja", node, draft);
    }
    special_tokens(settings, draft);
    let default = template.and_then(Node::text).unwrap_or("tokenizer_default").to_owned();
    for (key, is_held_out) in [("datasets", false), ("test_datasets", true)] {
        let Some(node) = settings.take(key) else { continue };
        let Value::List(entries) = &node.value else {
            draft.left(key, node, "expected a list of datasets");
            continue;
        };
        for (index, entry) in entries.iter().enumerate() {
            let name = format!("{key}[{index}]");
            match goal {
                Some(goal) => answers(&name, entry, is_held_out, goal, &default, draft),
                None => dataset(&name, entry, is_held_out, on_inputs, &default, draft),
            }
        }
    }
}

/// Tokens that the configuration gives the tokenizer.
fn special_tokens(settings: &mut Settings<'_>, draft: &mut Draft) {
    for (key, token) in settings.take("special_tokens").map(Node::entries).unwrap_or_default() {
        let name = format!("special_tokens.{key}");
        match key.as_str() {
            "pad_token" => draft.carry(&name, token),
            _ => draft.note(
                Kind::Decide,
                &name,
                token,
                format!("`{token}`: the tokenizer's own `{key}` is used; set it in the base model's tokenizer_config.json"),
            ),
        }
    }
    if let Some(node) = settings.take("eot_tokens") {
        draft.left("eot_tokens", node, "the chat template says where a turn ends");
    }
    for key in ["tokens", "added_tokens_overrides"] {
        if let Some(node) = settings.take(key) {
            let text = format!("`{node}`: no token is added to a vocabulary; add it to the base model first");
            draft.note(Kind::Decide, key, node, text);
        }
    }
}

fn dataset(name: &str, entry: &Node, is_held_out: bool, on_inputs: bool, template: &str, draft: &mut Draft) {
    let mut all = Settings::of(entry, name);
    let settings = &mut all;
    let mut dataset = Dataset { is_held_out, ..Dataset::default() };
    let kind = settings.take("type");
    // `alpaca_chat.load_qa`, `sharegpt:chat`: the prompt strategy, then which of its functions.
    let strategy = kind.and_then(Node::text).unwrap_or_default();
    let shape = strategy.split(['.', ':']).next().unwrap_or_default();
    // A prompt that the configuration writes itself.
    let is_own = kind.is_some_and(|kind| !kind.entries().is_empty());
    dataset.format = match shape {
        "alpaca" | "alpaca_chat" => "alpaca",
        "chat_template" | "sharegpt" => "messages",
        "completion" => "text",
        _ if is_own => "alpaca",
        _ => {
            let text = match kind {
                Some(kind) => format!("`{kind}` is not supported: convert the rows to one of messages, alpaca, prompt-completion, text, tokens, and name it in `format`"),
                None => "the dataset has no type: name one of messages, alpaca, prompt-completion, text, tokens in `format`".to_owned(),
            };
            draft.note(Kind::Decide, &settings.name("type"), kind.unwrap_or(entry), text);
            "messages"
        }
    };
    let key = settings.name("type");
    let node = kind.unwrap_or(entry);
    let own = settings.take("chat_template").and_then(Node::text).map(str::to_owned);
    let template = own.as_deref().unwrap_or(template);
    match (dataset.format, shape) {
        _ if is_own => own_prompt(&key, node, &mut dataset, draft),
        ("alpaca", "alpaca") if strategy == shape => {
            Draft::alpaca_prompt(&mut dataset);
            let there = "Alpaca's, with a line break after `### Response:`";
            draft.prompt(&key, node, &mut dataset, there, None);
        }
        ("alpaca", "alpaca_chat") if alpaca_chat(strategy, &mut dataset) => {
            let there = format!("axolotl's `{strategy}`, turns of USER and ASSISTANT");
            draft.prompt(&key, node, &mut dataset, there, None);
        }
        ("alpaca", _) => {
            let there = format!("axolotl's `{strategy}`");
            draft.prompt(
                &key,
                node,
                &mut dataset,
                there,
                Some("Alpaca's as published; `prompt` takes another"),
            );
        }
        ("text", _) => draft.prompt(&key, node, &mut dataset, "none, the text as it stands", None),
        (_, "chat_template") if template.starts_with("tokenizer_default") => {
            draft.prompt(&key, node, &mut dataset, "the base model's chat template", None);
        }
        (_, "chat_template") if matches!(template, "chatml" | "jinja") && own.is_none() => {
            draft.prompt(&key, node, &mut dataset, format!("the chat template `{template}`"), None);
        }
        (_, "chat_template" | "sharegpt") => {
            let there = format!("axolotl's chat template `{template}`");
            draft.prompt(
                &key,
                node,
                &mut dataset,
                there,
                Some("the chat template of the recipe, or the base model's"),
            );
        }
        _ => {}
    }
    if on_inputs && matches!(dataset.format, "messages" | "alpaca") {
        dataset.train_on = Some("all");
    }
    fields(settings, &mut dataset, draft);
    files(settings, entry, dataset, draft);
    all.carry_rest(draft);
}

/// A dataset of answers that are compared or judged.
fn answers(name: &str, entry: &Node, is_held_out: bool, goal: Goal, template: &str, draft: &mut Draft) {
    let mut all = Settings::of(entry, name);
    let settings = &mut all;
    let mut dataset = Dataset { is_held_out, format: goal.format(), ..Dataset::default() };
    let key = settings.name("type");
    let kind = settings.take("type");
    let node = kind.unwrap_or(entry);
    let strategy = kind.and_then(Node::text).unwrap_or_default();
    let (family, layout) = strategy.split_once('.').unwrap_or((strategy, "default"));
    // Where each layout of axolotl has what tune calls `prompt`, and the two answers.
    let columns: &[(&'static str, &str)] = match layout {
        "intel" => &[("prompt", "question")],
        "icr" => &[("prompt", "input")],
        "argilla" if goal == Goal::Kto => &[("prompt", "instruction")],
        "argilla" => {
            &[("prompt", "instruction"), ("chosen", "chosen_response"), ("rejected", "rejected_response")]
        }
        "default" if family == "chat_template" => &[("prompt", "messages")],
        _ => &[],
    };
    dataset.fields.extend(columns.iter().map(|(ours, column)| (*ours, (*column).to_owned())));
    let mut own = kind.filter(|kind| !kind.entries().is_empty()).map(|kind| Settings::of(kind, &key));
    for settings in [Some(&mut *settings), own.as_mut()].into_iter().flatten() {
        for (theirs, ours) in [
            ("field_messages", "prompt"),
            ("field_prompt", "prompt"),
            ("field_chosen", "chosen"),
            ("field_rejected", "rejected"),
            ("field_completion", "completion"),
            ("field_label", "label"),
        ] {
            if let Some(column) = settings.take(theirs).and_then(Node::text) {
                dataset.fields.insert(ours, column.to_owned());
            }
        }
        if let Some(node) = settings.take("message_property_mappings") {
            for (key, column) in node.entries() {
                match (key.as_str(), column.text()) {
                    ("role", Some(column)) => _ = dataset.fields.insert("role", column.to_owned()),
                    ("content", Some(column)) => _ = dataset.fields.insert("content", column.to_owned()),
                    _ => draft.left(&settings.name(key), column, "a message has a role and a content"),
                }
            }
        }
    }
    let usual = |(field, column): (&&str, &String)| {
        *field == column.as_str()
            || matches!((*field, column.as_str()), ("role", "from") | ("content", "value"))
    };
    dataset.fields =
        dataset.fields.iter().filter(|entry| !usual(*entry)).map(|(k, v)| (*k, v.clone())).collect();
    if let Some(own) = own {
        let here = "prompt and answers as they stand in the rows, joined without anything between";
        draft.prompt(&key, node, &mut dataset, "its own, written in the configuration", Some(here));
        own.carry_rest(draft);
    } else {
        let is_own_template = family == "chat_template" && template.starts_with("tokenizer_default");
        let here =
            "texts are joined as they stand, and lists of messages go through the base model's chat template";
        let there = match family {
            _ if is_own_template => "the base model's chat template".to_owned(),
            "chat_template" => format!("axolotl's chat template `{template}`"),
            _ => format!("axolotl's `{strategy}`"),
        };
        draft.prompt(&key, node, &mut dataset, there, (!is_own_template).then_some(here));
    }
    files(settings, entry, dataset, draft);
    all.carry_rest(draft);
}

/// The files of a dataset, and which rows of them are taken.
fn files(settings: &mut Settings<'_>, entry: &Node, dataset: Dataset, draft: &mut Draft) {
    if let Some(node) = settings.take("train_on_eos").filter(|node| node.text() != Some("turn")) {
        draft.left(&settings.name("train_on_eos"), node, "the end token of every trained turn is trained on");
    }
    if let Some(node) = settings.take("split").filter(|node| node.text() != Some("train")) {
        draft.left(
            &settings.name("split"),
            node,
            "a file is taken whole: name the file of that split in `path`",
        );
    }
    for key in ["ds_type", "drop_system_message"] {
        // The extension of a file says what it is.
        settings.take(key).filter(|node| key != "ds_type" && node.truth() != Some(false)).inspect(|node| {
            draft.left(&settings.name(key), node, "tune has no such setting");
        });
    }
    let path = settings.take("path");
    let files = settings.take("data_files").and_then(|node| Some((node, node.texts()?)));
    let here: Vec<(&Node, String)> = match (files, path) {
        (Some((node, files)), _) => files.into_iter().map(|file| (node, file)).collect(),
        (None, Some(node)) => vec![(node, node.text().unwrap_or_default().to_owned())],
        (None, None) => vec![(entry, String::new())],
    };
    for (node, file) in here {
        hf::dataset_path(&settings.name("path"), node, &file, draft);
        draft.datasets.push(Dataset { path: file, ..dataset.clone() });
    }
}

/// The prompts of `alpaca_chat` and its functions; false for another one.
fn alpaca_chat(strategy: &str, dataset: &mut Dataset) -> bool {
    let concise = |input: &str| {
        format!(
            "SYSTEM: Below is an instruction from a USER that describes a task{input}. The ASSISTANT writes a response that \
             {} completes the request.\n\n\n",
            if input.is_empty() { "appropriately and concisely" } else { "concisely and appropriately" }
        )
    };
    let usual = |input: &str| {
        format!(
            "SYSTEM: Below is an instruction that describes a task{input}. Write a response that appropriately completes the \
             request.\n"
        )
    };
    let columns = match strategy.split_once('.').map_or("load", |(_, function)| function) {
        "load_qa" => Some(("question", "answer")),
        "load_camel_ai" => Some(("message_1", "message_2")),
        "load" | "load_concise" | "load_no_prompt" => None,
        _ => return false,
    };
    let system = |input: &str| match strategy.rsplit('.').next() {
        Some("load_no_prompt") => String::new(),
        Some("load_concise" | "load_qa" | "load_camel_ai") => concise(input),
        _ => usual(input),
    };
    let without_input = format!("{}USER: {{instruction}}\nASSISTANT:", system(""));
    match columns {
        // Their rows have no input.
        Some((instruction, output)) => {
            dataset.fields.insert("instruction", instruction.to_owned());
            dataset.fields.insert("output", output.to_owned());
            dataset.template = Some(without_input);
        }
        None => {
            let system = system(", paired with an input that provides further context");
            dataset.template = Some(format!("{system}USER: {{instruction}}\n{{input}}\nASSISTANT:"));
            dataset.without_input = Some(without_input);
        }
    }
    true
}

/// A prompt that the configuration writes itself, over an instruction, an input and a system prompt.
fn own_prompt(key: &str, node: &Node, dataset: &mut Dataset, draft: &mut Draft) {
    let mut all = Settings::of(node, key);
    let settings = &mut all;
    let mut text = |key: &str| settings.take(key).and_then(Node::text).map(str::to_owned);
    for (theirs, ours) in
        [("field_instruction", "instruction"), ("field_input", "input"), ("field_output", "output")]
    {
        if let Some(column) = text(theirs).filter(|column| column != ours) {
            dataset.fields.insert(ours, column);
        }
    }
    // Python's braces: twice for themselves.
    let unescaped = |text: String| text.replace("{{", "{").replace("}}", "}");
    let system_format = text("system_format").unwrap_or_else(|| "{system}".to_owned());
    let system =
        text("system_prompt").map(|system| system_format.replace("{system}", &system)).unwrap_or_default();
    let format = text("format");
    let without_input = text("no_input_format").or_else(|| format.clone());
    dataset.template = format.map(|format| unescaped(format!("{system}{format}")));
    dataset.without_input = without_input.map(|format| unescaped(format!("{system}{format}")));
    let there = "its own, written in the configuration";
    match settings.take("field_system") {
        None => draft.prompt(key, node, dataset, there, None),
        Some(_) => {
            draft.prompt(
                key,
                node,
                dataset,
                there,
                Some("the same without a row's own system prompt (`field_system`)"),
            );
        }
    }
    all.carry_rest(draft);
}

/// The columns that a dataset's keys name.
fn fields(settings: &mut Settings<'_>, dataset: &mut Dataset, draft: &mut Draft) {
    let columns: &[(&str, &str, &str)] = match dataset.format {
        "messages" => &[
            ("field_messages", "messages", "messages"),
            ("message_field_role", "role", "role"),
            ("message_field_content", "content", "content"),
            ("message_field_training", "train", "train"),
            ("field_tools", "tools", "tools"),
        ],
        "alpaca" => &[
            ("field_instruction", "instruction", "instruction"),
            ("field_input", "input", "input"),
            ("field_output", "output", "output"),
        ],
        _ => &[("field", "text", "text")],
    };
    for (key, ours, usual) in columns {
        if let Some(column) = settings.take(key).and_then(Node::text).filter(|column| column != usual) {
            dataset.fields.insert(ours, column.to_owned());
        }
    }
    if let Some(node) = settings.take("message_property_mappings") {
        for (key, column) in node.entries() {
            match (key.as_str(), column.text()) {
                ("role" | "content", Some(column)) if column == key => {}
                // The other widespread layout, in which speakers have names of their own.
                ("role", Some("from")) | ("content", Some("value")) => {}
                ("role", Some(column)) => _ = dataset.fields.insert("role", column.to_owned()),
                ("content", Some(column)) => _ = dataset.fields.insert("content", column.to_owned()),
                _ => draft.left(&settings.name(key), column, "a message has a role and a content"),
            }
        }
    }
    for (role, names) in settings.take("roles").map(Node::entries).unwrap_or_default() {
        let key = settings.name(&format!("roles.{role}"));
        draft.roles(&key, names, dataset, role, names.texts().unwrap_or_default());
    }
    for (key, what) in [
        ("message_field_training_detail", "which part of a turn is trained on"),
        ("field_system", "a system prompt"),
        ("field_thinking", "the thoughts of a turn"),
        ("template_thinking_key", "the template's key of the thoughts"),
    ] {
        if let Some(node) = settings.take(key) {
            let text = format!(
                "`{node}` names {what}: check with `tune inspect` that the rows are read as they are meant"
            );
            draft.note(Kind::Decide, &settings.name(key), node, text);
        }
    }
    let others = |node: &&Node| {
        let roles = node.texts().unwrap_or_default();
        roles.is_empty() || roles.iter().any(|role| known_role(role, &BTreeMap::new()) != Some("assistant"))
    };
    if let Some(node) = settings.take("roles_to_train").filter(others) {
        let reason = "`train_on` knows the assistant's turns and everything";
        draft.left(&settings.name("roles_to_train"), node, reason);
    }
}
