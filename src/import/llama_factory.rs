//! LLaMA-Factory: one flat YAML or JSON file, its datasets by names that a `dataset_info.json` explains.

use std::path::Path;

use super::draft::{Dataset, Draft, Kind, NotTrained, Settings};
use super::hugging_face::{self as hf, Defaults};
use super::source::{self, Node};

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
    hf::require(settings, "stage", &["sft"], "only supervised fine-tuning (`sft`) is there")?;
    hf::require(settings, "finetuning_type", &["lora"], "only `lora` is there")?;
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
    data(settings, draft);
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

fn data(settings: &mut Settings<'_>, draft: &mut Draft) {
    match settings.take("cutoff_len") {
        Some(node) => draft.carry("cutoff_len", node),
        None => draft.set("data.max_seq_len", 2048),
    }
    draft.set("data.on_overflow", "truncate");
    draft.remark(
        Kind::Changed,
        "cutoff_len",
        "it cuts longer rows off, often in the middle of an answer; `data.on_overflow = \"truncate\"` does as well, \
         counts them and names some: \"drop\" or \"error\" is what is usually wanted",
    );
    let packing = settings.take("packing");
    let neat = settings.take("neat_packing");
    let packs = [packing, neat].into_iter().flatten().any(|node| node.truth() == Some(true));
    draft.set("data.packing", packs);
    let sees_all = |node: &&Node| node.truth() == Some(true) && neat.and_then(Node::truth) != Some(true);
    if let Some(node) = packing.filter(sees_all) {
        let text = "there, the rows of a pack see each other; here they never do";
        draft.note(Kind::Changed, "packing", node, text);
    }
    match settings.take("val_size") {
        Some(node) => hf::held_out("val_size", node, draft),
        None => draft.set("data.val_split", 0.0),
    }
    if let Some(node) = settings.take("template") {
        hf::template("template", node, draft);
    }
    let is_on = |node: Option<&Node>| node.and_then(Node::truth) == Some(true);
    let train_on = match (is_on(settings.take("train_on_prompt")), is_on(settings.take("mask_history"))) {
        (true, _) => Some("all"),
        (false, true) => Some("last-assistant"),
        (false, false) => None,
    };
    let folder = settings.take("dataset_dir").and_then(Node::text).unwrap_or("data").to_owned();
    let info = info(Path::new(&folder));
    for key in ["mix_strategy", "interleave_probs"] {
        if let Some(node) = settings.take(key).filter(|node| node.text() != Some("concat")) {
            let reason = "datasets are mixed in one order of all rows; `weight` of a `[[dataset]]` says how often each row \
                          is seen an epoch";
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
                Dataset { is_held_out, ..Dataset::default() },
                train_on,
                draft,
            );
        }
    }
}

/// The list of datasets, if it lies where the tool looks for it.
fn info(folder: &Path) -> Option<Node> {
    let file = folder.join("dataset_info.json");
    let is_small = std::fs::metadata(&file).is_ok_and(|about| about.len() <= LARGEST_INFO);
    let text = is_small.then(|| std::fs::read_to_string(&file).ok())??;
    source::read(&text, "dataset_info.json").ok()
}

#[expect(
    clippy::too_many_arguments,
    reason = "a dataset is told from its key, its list and what the whole says of it"
)]
fn dataset(
    key: &str,
    node: &Node,
    name: &str,
    folder: &str,
    info: Option<&Node>,
    mut dataset: Dataset,
    train_on: Option<&'static str>,
    draft: &mut Draft,
) {
    let entry = info.and_then(|info| info.get(name));
    let file = entry.and_then(|entry| entry.get("file_name")).and_then(Node::text);
    dataset.path = match file {
        Some(file) => format!("{folder}/{file}"),
        None => {
            let text = match entry {
                Some(_) => format!("`{name}` lies on a hub: fetch it and name its file in `path`"),
                None => format!(
                    "`{name}` is a name in {folder}/dataset_info.json, which does not tell of it here: name its file in \
                     `path`, and its shape in `format`"
                ),
            };
            draft.note(Kind::Decide, key, node, text);
            format!("{folder}/{name}.json")
        }
    };
    let is_chat = entry.and_then(|entry| entry.get("formatting")).and_then(Node::text) == Some("sharegpt");
    dataset.format = if is_chat { "messages" } else { "alpaca" };
    dataset.train_on = match (train_on, dataset.format) {
        // One turn is all there is.
        (Some("last-assistant"), "alpaca") => None,
        (train_on, _) => train_on,
    };
    let columns = entry.and_then(|entry| entry.get("columns"));
    let tags = entry.and_then(|entry| entry.get("tags"));
    let mut map =
        |table: Option<&Node>, theirs: &str, usual: Option<&str>, ours: &'static str, is_usual_here: &str| {
            let column = table.and_then(|table| table.get(theirs)).and_then(Node::text).or(usual);
            if let Some(column) = column.filter(|column| *column != is_usual_here) {
                dataset.fields.insert(ours, column.to_owned());
            }
        };
    match is_chat {
        true => {
            map(columns, "messages", None, "messages", "conversations");
            map(tags, "role_tag", None, "role", "from");
            map(tags, "content_tag", None, "content", "value");
        }
        false => {
            map(columns, "prompt", None, "instruction", "instruction");
            map(columns, "query", None, "input", "input");
            map(columns, "response", None, "output", "output");
        }
    }
    let known = ["prompt", "query", "response", "messages"];
    for (column, node) in columns.map(Node::entries).unwrap_or_default() {
        if !known.contains(&column.as_str()) {
            draft.left(&format!("{key}.{name}.columns.{column}"), node, "the format has no such field");
        }
    }
    draft.datasets.push(dataset);
}
