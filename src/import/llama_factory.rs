//! LLaMA-Factory: one flat YAML or JSON file, its datasets by names that a `dataset_info.json` explains.

use std::path::Path;

use super::draft::{Dataset, Draft, Kind, NotTrained, Settings};
use super::hugging_face::{self as hf, Defaults};
use super::preference::{self, Goal, SUPPORTED};
use super::source::{self, Node};
use super::template;
use crate::data::roles::is_call;

const DEFAULTS: Defaults = Defaults {
    epochs: 3.0,
    micro_batch_size: 8,
    learning_rate: 5e-5,
    scheduler: "linear",
    warmup_ratio: 0.0,
};
/// Larger than any list of datasets.
const LARGEST_INFO: u64 = 4 << 20;

pub(super) fn import(root: &Node, draft: &mut Draft) -> Result<(), NotTrained> {
    let mut all = Settings::of(root, "");
    let settings = &mut all;
    let goal = objective(settings, draft)?;
    hf::require(settings, "finetuning_type", &["lora"], "only `lora` is supported")?;
    settings.take("do_train");
    if let Some(node) = settings.take("quantization_method").filter(|node| node.text() != Some("bnb")) {
        draft.left("quantization_method", node, "4 bits are NF4, as bitsandbytes has them");
    }
    let bits = settings.take("quantization_bit");
    hf::quantization(settings, draft, bits.is_some(), true);
    if let Some(node) = bits.filter(|node| node.integer() != Some(4)) {
        draft.note(Kind::Changed, "quantization_bit", node, format!("{node} bits become NF4's 4 bits"));
    }
    // Its defaults: rank 8, alpha twice the rank, all linear layers.
    match settings.take("lora_rank") {
        Some(node) => draft.carry("lora_rank", node),
        None => draft.set("adapter.lora.rank", 8),
    }
    match settings.take("lora_alpha") {
        Some(node) => draft.carry("lora_alpha", node),
        None => {
            let rank = draft.get("adapter.lora.rank").and_then(toml::Value::as_integer).unwrap_or(8);
            draft.set("adapter.lora.alpha", rank.saturating_mul(2));
        }
    }
    if let Some(node) = settings.take("lora_target") {
        hf::targets("lora_target", node, draft);
    }
    data(settings, goal, draft);
    hf::training(settings, draft, &DEFAULTS);
    hf::batch(draft);
    hf::switched_off(
        &[
            "trust_remote_code",
            "overwrite_cache",
            "overwrite_output_dir",
            "plot_loss",
            "save_only_model",
            "flash_attn",
            "gradient_checkpointing",
            "pissa_init",
        ],
        settings,
        draft,
    );
    settings
        .take("report_to")
        .filter(|node| node.text() != Some("none"))
        .inspect(|node| draft.carry("report_to", node));
    all.carry_rest(draft);
    Ok(())
}

/// The objective over answers, if the configuration trains one.
fn objective(settings: &mut Settings<'_>, draft: &mut Draft) -> Result<Option<Goal>, NotTrained> {
    let stage = settings.take("stage");
    let loss = settings.take("pref_loss");
    let goal = match stage.and_then(Node::text) {
        None | Some("sft") => {
            if let Some(node) = loss {
                draft.left("pref_loss", node, "it belongs to another objective");
            }
            return Ok(None);
        }
        Some("kto") => Goal::Kto,
        // One stage there, told apart by the loss.
        Some("dpo") => loss.and_then(Node::text).and_then(Goal::named).unwrap_or(Goal::Dpo),
        Some(other) => {
            let line = stage.map_or(0, |node| node.line);
            return Err(NotTrained { line, reason: format!("`stage` is `{other}`, and {SUPPORTED}") });
        }
    };
    goal.begin(draft);
    if let Some(node) = loss.filter(|_| goal != Goal::Kto) {
        goal.loss("pref_loss", node, None, draft)?;
    }
    if let Some(node) = settings.take("pref_beta") {
        goal.carry("pref_beta", node, "beta", draft);
    }
    match settings.take("pref_ftx") {
        Some(node) if goal == Goal::Dpo => goal.carry("pref_ftx", node, "rpo_alpha", draft),
        Some(node) if node.number() != Some(0.0) => {
            draft.left("pref_ftx", node, "only DPO adds the likelihood of the chosen answers");
        }
        _ => {}
    }
    goal.carry_all(
        settings,
        &[
            (Goal::Dpo, "dpo_label_smoothing", "label_smoothing"),
            (Goal::SimPo, "simpo_gamma", "gamma"),
            (Goal::Kto, "kto_chosen_weight", "wanted_weight"),
            (Goal::Kto, "kto_rejected_weight", "unwanted_weight"),
        ],
        draft,
    );
    preference::others(settings, draft);
    goal.end(draft);
    Ok(Some(goal))
}

fn data(settings: &mut Settings<'_>, goal: Option<Goal>, draft: &mut Draft) {
    match settings.take("cutoff_len") {
        Some(node) => draft.carry("cutoff_len", node),
        None => draft.set("data.max_seq_len", 2048),
    }
    draft.set("data.on_overflow", "truncate");
    draft.remark(
        Kind::Changed,
        "cutoff_len",
        "it truncates longer rows, often within an answer; `data.on_overflow = \"truncate\"` does too, counts them and \
         names some; \"drop\" or \"error\" is usually better",
    );
    let packing = settings.take("packing");
    let neat = settings.take("neat_packing");
    let packs = [packing, neat].into_iter().flatten().any(|node| node.truth() == Some(true));
    draft.set("data.packing", packs);
    let sees_all = |node: &&Node| node.truth() == Some(true) && neat.and_then(Node::truth) != Some(true);
    if let Some(node) = packing.filter(sees_all) {
        let text = "in LLaMA-Factory, attention crosses between the rows of a pack; here it never does";
        draft.note(Kind::Changed, "packing", node, text);
    }
    match settings.take("val_size") {
        Some(node) => hf::held_out("val_size", node, draft),
        None => draft.set("data.val_split", 0.0),
    }
    let is_on = |node: Option<&Node>| node.and_then(Node::truth) == Some(true);
    let train_on = match (is_on(settings.take("train_on_prompt")), is_on(settings.take("mask_history"))) {
        (true, _) => Some("all"),
        (false, true) => Some("last-assistant"),
        (false, false) => None,
    };
    let template = settings.take("template").and_then(Node::text).unwrap_or("default").to_owned();
    let folder = settings.take("dataset_dir").and_then(Node::text).unwrap_or("data").to_owned();
    let info = info(Path::new(&folder));
    for key in ["mix_strategy", "interleave_probs"] {
        if let Some(node) = settings.take(key).filter(|node| node.text() != Some("concat")) {
            let reason = "all rows are shuffled together; `weight` of a `[[dataset]]` says how often each row is seen in an \
                          epoch";
            draft.left(key, node, reason);
        }
    }
    for (key, is_held_out) in [("dataset", false), ("eval_dataset", true)] {
        let Some(node) = settings.take(key) else { continue };
        let Some(names) = node.texts() else {
            draft.left(key, node, "expected names of datasets");
            continue;
        };
        for name in names {
            dataset(
                key,
                node,
                &name,
                &folder,
                info.as_ref(),
                Dataset { is_held_out, format: goal.map_or("", Goal::format), ..Dataset::default() },
                (train_on, &template),
                draft,
            );
        }
    }
}

/// The list of datasets, if it is where the tool reads it.
fn info(folder: &Path) -> Option<Node> {
    let file = folder.join("dataset_info.json");
    let is_small = std::fs::metadata(&file).is_ok_and(|about| about.len() <= LARGEST_INFO);
    let text = is_small.then(|| std::fs::read_to_string(&file).ok())??;
    source::read(&text, "dataset_info.json").ok()
}

#[expect(
    clippy::too_many_arguments,
    reason = "a dataset depends on its key, its list and settings of the whole"
)]
fn dataset(
    key: &str,
    node: &Node,
    name: &str,
    folder: &str,
    info: Option<&Node>,
    mut dataset: Dataset,
    (train_on, template): (Option<&'static str>, &str),
    draft: &mut Draft,
) {
    let entry = info.and_then(|info| info.get(name));
    let file = entry.and_then(|entry| entry.get("file_name")).and_then(Node::text);
    dataset.path = match file {
        Some(file) => format!("{folder}/{file}"),
        None => {
            let text = match entry {
                Some(_) => format!("`{name}` is on a hub: download it and name its file in `path`"),
                None => format!(
                    "`{name}` is a name in {folder}/dataset_info.json, and that file is missing or has no such name: name \
                     the dataset's file in `path`, and its shape in `format`"
                ),
            };
            draft.note(Kind::Decide, key, node, text);
            format!("{folder}/{name}.json")
        }
    };
    let formatting = entry.and_then(|entry| entry.get("formatting"));
    let is_chat = matches!(formatting.and_then(Node::text), Some("sharegpt" | "openai"));
    if let Some(node) = formatting.filter(|node| !is_chat && node.text() != Some("alpaca")) {
        let text = format!(
            "`{node}` is a layout of LLaMA-Factory's plugins: convert the rows to messages or alpaca"
        );
        draft.note(Kind::Decide, &format!("{key}.{name}.formatting"), node, text);
    }
    let compares = !dataset.format.is_empty();
    if !compares {
        dataset.format = if is_chat { "messages" } else { "alpaca" };
    }
    dataset.train_on = match (train_on, dataset.format) {
        // One turn is all there is.
        (Some("last-assistant"), "alpaca") => None,
        // All of an answer is learned, and nothing before it.
        (_, "preference" | "feedback") => None,
        (train_on, _) => train_on,
    };
    let at = format!("{key}.{name}");
    match is_chat {
        true => draft.prompt(
            &at,
            node,
            &mut dataset,
            format!("LLaMA-Factory's template `{template}`, its system prompt included"),
            Some(&template::own(template)),
        ),
        false if compares => draft.prompt(
            &at,
            node,
            &mut dataset,
            format!("a user turn of `instruction`, a line break and `input`, in LLaMA-Factory's template `{template}`"),
            Some("the same turn in the base model's chat template"),
        ),
        false => {
            dataset.template = Some("{instruction}\n{input}".to_owned());
            dataset.without_input = Some("{instruction}".to_owned());
            dataset.is_chat = true;
            draft.prompt(
                &at,
                node,
                &mut dataset,
                format!(
                    "a user turn of `instruction`, a line break and `input`, in LLaMA-Factory's template `{template}`"
                ),
                Some("the same turn in the base model's chat template"),
            );
        }
    }
    if let Some(entry) = entry {
        describe(&at, entry, is_chat, compares, &mut dataset, draft);
    }
    draft.datasets.push(dataset);
}

/// Reads an entry of the list of datasets, every key of it.
fn describe(at: &str, entry: &Node, is_chat: bool, compares: bool, dataset: &mut Dataset, draft: &mut Draft) {
    let mut all = Settings::of(entry, at);
    settings_taken(&mut all, &["file_name", "formatting"]);
    // Where the columns and tags of each layout go, and what they are called where nothing is said.
    let fields: &[(&str, &str, &str, &str)] = match (is_chat, dataset.format) {
        (true, "preference" | "feedback") => &[
            ("columns", "messages", "prompt", "conversations"),
            ("columns", "chosen", "chosen", "chosen"),
            ("columns", "rejected", "rejected", "rejected"),
            ("columns", "kto_tag", "label", "kto_tag"),
            ("columns", "tools", "tools", "tools"),
            ("tags", "role_tag", "role", "from"),
            ("tags", "content_tag", "content", "value"),
        ],
        (false, "preference" | "feedback") => &[
            ("columns", "prompt", "instruction", "instruction"),
            ("columns", "query", "input", "input"),
            ("columns", "response", "completion", "completion"),
            ("columns", "chosen", "chosen", "chosen"),
            ("columns", "rejected", "rejected", "rejected"),
            ("columns", "kto_tag", "label", "kto_tag"),
            ("columns", "tools", "tools", "tools"),
        ],
        (true, _) => &[
            ("columns", "messages", "messages", "conversations"),
            ("columns", "system", "system", "system"),
            ("columns", "tools", "tools", "tools"),
            ("tags", "role_tag", "role", "from"),
            ("tags", "content_tag", "content", "value"),
        ],
        (false, _) => &[
            ("columns", "prompt", "instruction", "instruction"),
            ("columns", "query", "input", "input"),
            ("columns", "response", "output", "output"),
            ("columns", "system", "system", "system"),
            ("columns", "tools", "tools", "tools"),
            ("columns", "history", "history", "history"),
        ],
    };
    for table in ["columns", "tags"] {
        let Some(node) = all.take(table) else { continue };
        let mut inner = Settings::of(node, &all.name(table));
        if let Some(node) = node.get("history").filter(|_| dataset.format == "alpaca") {
            let text = "the answers in earlier turns are shown and not learned here; LLaMA-Factory learns them unless \
                        `mask_history` is set";
            draft.note(Kind::Changed, &format!("{at}.columns.history"), node, text);
        }
        for (_, theirs, ours, usual) in fields.iter().filter(|(of, ..)| *of == table) {
            let column = inner.take(theirs).and_then(Node::text).filter(|column| column != usual);
            if let Some(column) = column {
                dataset.fields.insert(ours, column.to_owned());
            }
        }
        for (tag, role) in [
            ("user_tag", "user"),
            ("assistant_tag", "assistant"),
            ("system_tag", "system"),
            ("observation_tag", "tool"),
            ("function_tag", "function"),
        ] {
            let name = inner.name(tag);
            // Calls of tools go by their name.
            let is_known = |node: &&Node| tag == "function_tag" && node.text().is_some_and(is_call);
            if let Some(node) = inner.take(tag).filter(|node| !is_known(node)) {
                draft.roles(&name, node, dataset, role, node.text().map(str::to_owned).into_iter().collect());
            }
        }
        for (column, what) in [
            ("images", "images"),
            ("videos", "videos"),
            ("audios", "sound"),
            ("chosen", "preferred answers"),
            ("rejected", "rejected answers"),
            ("kto_tag", "judgements"),
        ] {
            let name = inner.name(column);
            if let Some(node) = inner.take(column) {
                let text = format!(
                    "`{node}` holds {what}: check with `tune inspect` that the rows are read as they are meant"
                );
                draft.note(Kind::Decide, &name, node, text);
            }
        }
        inner.carry_rest(draft);
    }
    for (key, reason) in [
        ("subset", "a file is taken whole: name the file of that subset in `path`"),
        ("split", "a file is taken whole: name the file of that split in `path`"),
        ("folder", "name the files of that folder in `path`"),
        ("num_samples", "every row is taken; `weight` says how often"),
        ("hf_hub_url", "fetch the dataset and name its file in `path`"),
        ("ms_hub_url", "fetch the dataset and name its file in `path`"),
        ("om_hub_url", "fetch the dataset and name its file in `path`"),
        ("script_url", "no code of a dataset is run; write its rows to a file"),
        ("cloud_file_name", "fetch the dataset and name its file in `path`"),
    ] {
        let name = all.name(key);
        if let Some(node) = all.take(key).filter(|node| key != "split" || node.text() != Some("train")) {
            draft.left(&name, node, reason);
        }
    }
    if let Some(node) = all.take("ranking").filter(|node| !compares && node.truth() != Some(false)) {
        let text = "pairs of answers are not trained on by supervised fine-tuning: choose the rows to learn";
        draft.note(Kind::Decide, &all.name("ranking"), node, text);
    }
    all.carry_rest(draft);
}

/// Takes settings that have been read already.
fn settings_taken(settings: &mut Settings<'_>, keys: &[&str]) {
    for key in keys {
        settings.take(key);
    }
}
