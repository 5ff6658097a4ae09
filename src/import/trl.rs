//! TRL's `SFTConfig`, `DPOConfig`, `KTOConfig`, `ORPOConfig` and `CPOConfig` with `ModelConfig` and script arguments, as its command line and Unsloth's scripts take them:
//! flat, or in tables such as `training` and `lora`.

use super::draft::{Dataset, Draft, Kind, NotTrained, Settings};
use super::hugging_face::{self as hf, Defaults};
use super::preference::{self, Goal, SUPPORTED};
use super::source::{Node, Value};
use super::template;

const DEFAULTS: Defaults = Defaults {
    epochs: 3.0,
    micro_batch_size: 8,
    learning_rate: 2e-5,
    scheduler: "linear",
    warmup_ratio: 0.0,
};
/// Of all trainers that compare answers.
const OF_ANSWERS: Defaults = Defaults { learning_rate: 1e-6, ..DEFAULTS };
/// Tables that name the trainer.
const TRAINERS: [(&str, &str); 8] = [
    ("dpo", "dpo"),
    ("dpo_config", "dpo"),
    ("kto", "kto"),
    ("kto_config", "kto"),
    ("orpo", "orpo"),
    ("orpo_config", "orpo"),
    ("cpo", "simpo"),
    ("cpo_config", "simpo"),
];
/// Tables that only sort the keys.
const TABLES: [&str; 12] = [
    "model",
    "lora",
    "peft",
    "peft_config",
    "lora_config",
    "data",
    "training",
    "training_args",
    "training_arguments",
    "sft",
    "sft_config",
    "logging",
];

pub(super) fn import(root: &Node, draft: &mut Draft) -> Result<(), NotTrained> {
    let tables: Vec<&str> = TABLES.into_iter().chain(TRAINERS.map(|(table, _)| table)).collect();
    let mut all = Settings::flattened(root, &tables);
    let settings = &mut all;
    let goal = objective(root, settings, draft)?;
    if settings.take("use_peft").is_some_and(|node| node.truth() == Some(false)) {
        let reason =
            "`use_peft` is false, so it trains all weights; only LoRA and QLoRA are supported".to_owned();
        return Err(NotTrained { line: root.line, reason });
    }
    hf::require(settings, "lora_task_type", &["CAUSAL_LM"], "only causal language models are trained")?;
    hf::require(settings, "task_type", &["CAUSAL_LM"], "only causal language models are trained")?;
    let in_four_bits = settings.take("load_in_4bit").is_some_and(|node| node.truth() == Some(true));
    // `ModelConfig`'s defaults; `r` alone is PEFT's and Unsloth's name.
    let unsloth = settings.any(&["r"]).map(|(key, node)| draft.carry(key, node)).is_some();
    // Unsloth's checkpoints have double quantization, and `ModelConfig` has it off.
    hf::quantization(settings, draft, in_four_bits, unsloth);
    for (key, ours, default) in [
        ("lora_r", "adapter.lora.rank", toml::Value::from(16)),
        ("lora_alpha", "adapter.lora.alpha", toml::Value::from(if unsloth { 16 } else { 32 })),
        ("lora_dropout", "adapter.lora.dropout", toml::Value::from(if unsloth { 0.0 } else { 0.05 })),
    ] {
        match settings.take(key) {
            Some(node) => draft.carry(key, node),
            None => draft.set(ours, default),
        }
    }
    match settings.any(&["lora_target_modules", "target_modules"]) {
        Some((key, node)) => hf::targets(key, node, draft),
        None if unsloth => {}
        None => {
            draft.set(
                "adapter.lora.target_modules",
                vec![toml::Value::from("q_proj"), toml::Value::from("v_proj")],
            );
            draft.remark(
                Kind::Changed,
                "lora_target_modules",
                "without it, PEFT chooses by the model's family, for most q_proj and v_proj; \"all-linear\" learns more",
            );
        }
    }
    data(settings, goal, draft);
    if let Some(node) = settings.take("random_state") {
        draft.carry("seed", node);
    }
    hf::training(settings, draft, if goal.is_some() { &OF_ANSWERS } else { &DEFAULTS });
    hf::batch(draft);
    hf::switched_off(
        &[
            "trust_remote_code",
            "gradient_checkpointing",
            "use_gradient_checkpointing",
            "do_eval",
            "do_train",
            "overwrite_output_dir",
            "load_in_16bit",
            "full_finetuning",
            "push_to_hub",
        ],
        settings,
        draft,
    );
    settings
        .take("report_to")
        .filter(|node| node.text() != Some("none"))
        .inspect(|node| draft.carry("report_to", node));
    settings
        .take("bias")
        .filter(|node| node.text() != Some("none"))
        .inspect(|node| draft.carry("bias", node));
    all.carry_rest(draft);
    Ok(())
}

/// The objective over answers, if the configuration trains one: a file does not name its trainer, so it is known by keys that
/// only that one has.
fn objective(
    root: &Node,
    settings: &mut Settings<'_>,
    draft: &mut Draft,
) -> Result<Option<Goal>, NotTrained> {
    let loss = settings.take("loss_type");
    let losses = loss.and_then(Node::texts).unwrap_or_default();
    let names = |known: &[&str]| losses.iter().any(|loss| known.contains(&loss.as_str()));
    let has = |keys: &[&str], settings: &Settings<'_>| keys.iter().any(|key| settings.has(key));
    let table =
        TRAINERS.iter().find(|(table, _)| root.get(table).is_some_and(|node| !node.entries().is_empty()));
    let is_guess = table.is_none() && loss.is_none();
    let goal = match table {
        Some((_, trainer)) => Goal::named(trainer),
        None if names(&["nll", "dft", "chunked_nll"]) => None,
        None if names(&["kto", "apo_zero_unpaired"])
            || has(&["desirable_weight", "undesirable_weight"], settings) =>
        {
            Some(Goal::Kto)
        }
        None if names(&["simpo"]) || has(&["simpo_gamma", "cpo_alpha"], settings) => Some(Goal::SimPo),
        None if loss.is_some()
            || has(&["beta", "rpo_alpha", "reference_free", "precompute_ref_log_probs"], settings) =>
        {
            Some(Goal::Dpo)
        }
        None => None,
    };
    let Some(goal) = goal else {
        if names(&["dft"]) {
            draft.table("objective.sft");
            draft.set("objective.sft.token_weights", "dft");
        }
        return Ok(None);
    };
    goal.begin(draft);
    let weights = settings.take("loss_weights");
    match loss {
        Some(node) => goal.loss("loss_type", node, weights, draft)?,
        None if goal == Goal::SimPo => {
            let reason = format!("it trains CPO, and {SUPPORTED}; `loss_type: simpo` is SimPO");
            return Err(NotTrained { line: 0, reason });
        }
        None => {}
    }
    if is_guess && goal == Goal::Dpo {
        let text = "the file does not name its trainer, and DPO's keys are in it; for ORPO rename the table to \
                    `[objective.orpo]`";
        draft.remark(Kind::Decide, "trainer", text);
    }
    if let Some(node) = settings.take("beta") {
        goal.carry("beta", node, "beta", draft);
    }
    goal.carry_all(
        settings,
        &[
            (Goal::Dpo, "label_smoothing", "label_smoothing"),
            (Goal::Dpo, "rpo_alpha", "rpo_alpha"),
            (Goal::SimPo, "simpo_gamma", "gamma"),
            (Goal::Kto, "desirable_weight", "wanted_weight"),
            (Goal::Kto, "undesirable_weight", "unwanted_weight"),
        ],
        draft,
    );
    goal.likelihood(settings, draft);
    // All dropout is off there unless this is false.
    let drops = settings.take("disable_dropout").and_then(Node::truth) == Some(false);
    if let Some(node) = settings.take("lora_dropout") {
        match drops {
            true => draft.carry("lora_dropout", node),
            false if node.number() == Some(0.0) => {}
            false => draft.note(
                Kind::Changed,
                "lora_dropout",
                node,
                "TRL turns dropout off in these trainers (`disable_dropout`), so the recipe has none",
            ),
        }
    }
    draft.set("adapter.lora.dropout", if drops { 0.05 } else { 0.0 });
    preference::others(settings, draft);
    goal.end(draft);
    Ok(Some(goal))
}

fn data(settings: &mut Settings<'_>, goal: Option<Goal>, draft: &mut Draft) {
    let longest = settings.any(&["max_length", "max_seq_length"]);
    match longest {
        Some((key, node)) => draft.carry(key, node),
        None => draft.set("data.max_seq_len", 1024),
    }
    let mode = settings.take("truncation_mode");
    if let Some(node) = mode.filter(|node| node.text() != Some("keep_start")) {
        draft.left("truncation_mode", node, "a row that is too long loses its end");
    }
    draft.set("data.on_overflow", "truncate");
    draft.remark(
        Kind::Changed,
        longest.map_or("max_length", |(key, _)| key),
        "it truncates longer rows, often within an answer; `data.on_overflow = \"truncate\"` does too, counts them and \
         names some; \"drop\" or \"error\" is usually better",
    );
    let packs = settings.take("packing");
    draft.set("data.packing", packs.and_then(Node::truth).unwrap_or(false));
    if let Some(node) = packs.filter(|node| node.truth() == Some(true)) {
        let text = "attention never crosses from one row of a pack to another here, and no row is split; `micro_batch_size` counts packs";
        draft.note(Kind::Changed, "packing", node, text);
    }
    settings
        .take("packing_strategy")
        .inspect(|node| draft.left("packing_strategy", node, "rows are packed in their order"));
    if let Some(node) = settings.take("chat_template_path") {
        template::template("chat_template_path", node, draft);
    }
    if let Some(node) = settings.take("chat_template") {
        template::template("chat_template", node, draft);
    }
    if let Some(node) = settings.take("eos_token") {
        let text = format!(
            "`{node}`: the tokenizer's own end token is used; set it in the base model's tokenizer_config.json"
        );
        draft.note(Kind::Decide, "eos_token", node, text);
    }
    // Rows are always drawn in a random order there; `shuffle_dataset` shuffles once more before that.
    settings.take("shuffle_dataset");
    let text_field = settings.take("dataset_text_field");
    let on_completion = settings.take("completion_only_loss");
    let on_assistant = settings.take("assistant_only_loss");
    let is_on = |node: Option<&Node>| node.and_then(Node::truth) == Some(true);
    let mut dataset = Dataset::default();
    let shape = match goal {
        Some(goal) => goal.format(),
        None => match () {
            () if is_on(on_assistant) => "messages",
            () if on_completion.is_some() => "prompt-completion",
            () if text_field.is_some() => "text",
            () => "",
        },
    };
    dataset.format = if shape.is_empty() { "messages" } else { shape };
    match dataset.format {
        "messages" if is_on(on_assistant) => {}
        "messages" => {
            dataset.train_on = Some("all");
            draft.remark(
                Kind::Changed,
                "assistant_only_loss",
                "without it, TRL trains on whole conversations, so `train_on = \"all\"`; \"assistant\" is usually better",
            );
        }
        "prompt-completion" if !is_on(on_completion) => dataset.train_on = Some("all"),
        _ => {}
    }
    if let Some(column) =
        text_field.and_then(Node::text).filter(|column| dataset.format == "text" && *column != "text")
    {
        dataset.fields.insert("text", column.to_owned());
    }
    datasets(settings, &dataset, shape.is_empty(), draft);
    draft.set("data.val_split", 0.0);
}

/// One dataset by name, or a mixture of several.
fn datasets(settings: &mut Settings<'_>, of_all: &Dataset, is_guessed: bool, draft: &mut Draft) {
    let mut found: Vec<(&Node, String)> = Vec::new();
    if let Some((_, node)) = settings.any(&["dataset_name", "dataset_path", "train_file", "dataset"]) {
        found.push((node, node.text().unwrap_or_default().to_owned()));
    }
    let mixture = settings.take("dataset_mixture");
    for (key, node) in mixture.map(Node::entries).unwrap_or_default() {
        match (key.as_str(), node.integer()) {
            ("datasets", _) => {}
            ("seed", Some(seed)) => draft.set("seed", seed),
            ("test_split_size", _) => hf::held_out("dataset_mixture.test_split_size", node, draft),
            _ => draft.carry(&format!("dataset_mixture.{key}"), node),
        }
    }
    if let Some(node) = settings.take("test_split_size") {
        hf::held_out("test_split_size", node, draft);
    }
    let listed = mixture.and_then(|node| node.get("datasets")).or_else(|| settings.take("datasets"));
    if let Some(Value::List(entries)) = listed.map(|node| &node.value) {
        for entry in entries {
            let mut of = Settings::of(entry, "datasets");
            if let Some((_, node)) = of.any(&["path", "id"]) {
                found.push((node, node.text().unwrap_or_default().to_owned()));
            }
            for key in ["name", "config", "data_dir", "columns", "weight"] {
                if let Some(node) = of.take(key) {
                    let reason = match key {
                        "columns" => "columns are found by their names; `fields` says others",
                        "weight" => {
                            "`weight` of a `[[dataset]]` says how often each row is seen an epoch: set it by hand"
                        }
                        _ => "name the file of that part in `path`",
                    };
                    draft.left(&of.name(key), node, reason);
                }
            }
            of.take("split").filter(|node| node.text() != Some("train")).inspect(|node| {
                draft.left(
                    "datasets.split",
                    node,
                    "a file is taken whole: name the file of that split in `path`",
                );
            });
            of.carry_rest(draft);
        }
    }
    for key in ["dataset_config", "dataset_train_split", "dataset_test_split"] {
        settings
            .take(key)
            .filter(|node| {
                key == "dataset_config" || node.text() == Some("test") || node.text() != Some("train")
            })
            .inspect(|node| {
                draft.left(
                    key,
                    node,
                    "a file is taken whole; a held-out file is a `[[dataset]]` with `split = \"validation\"`",
                )
            });
    }
    for (node, path) in found {
        let mut dataset = Dataset { path: path.clone(), ..of_all.clone() };
        let there = match dataset.format {
            "messages" => "the tokenizer's chat template",
            "prompt-completion" => "prompt and completion, joined as they stand",
            "preference" | "feedback" => {
                "prompt and answer, joined as they stand; lists of messages in the tokenizer's chat template"
            }
            _ => "none, the text as it stands",
        };
        draft.prompt("dataset_name", node, &mut dataset, there, None);
        hf::dataset_path("dataset_name", node, &path, draft);
        if is_guessed {
            draft.note(
                Kind::Decide,
                "dataset_name",
                node,
                "TRL recognises the shape of the rows by their columns; the recipe says `format = \"messages\"`",
            );
        }
        draft.datasets.push(dataset);
    }
}
