//! Configurations that train on answers: each tool's objectives, and what is said of every other key of theirs.

use std::fs;

use tune::import::{Tool, import};
use tune::recipe::RecipeFile;

/// The recipe and notes of a configuration, whose tool is recognised.
fn imported(text: &str, tool: Tool) -> (String, Vec<String>) {
    let imported = import(text, "c.yml", None).unwrap();
    assert_eq!(imported.tool, tool);
    RecipeFile::parse("c.toml", imported.recipe.as_bytes(), &[]).finish().unwrap();
    (imported.recipe, imported.notes.iter().map(ToString::to_string).collect())
}

#[track_caller]
fn has_lines(recipe: &str, lines: &[&str]) {
    for line in lines {
        assert!(recipe.lines().any(|found| found == *line), "{line} in\n{recipe}");
    }
}

#[track_caller]
fn names(notes: &[String], keys: &[&str]) {
    for key in keys {
        let start = format!("{key}: ");
        assert!(notes.iter().any(|note| note.starts_with(&start)), "{key} in\n{notes:#?}");
    }
}

const DPO_OF_TRL: &str = "\
model_name_or_path: Qwen/Qwen2.5-0.5B-Instruct
dtype: bfloat16
use_peft: true
lora_r: 32
lora_alpha: 16
lora_dropout: 0.1
lora_target_modules: [q_proj, v_proj]
dataset_name: data/feedback.jsonl
beta: 0.05
loss_type: [sigmoid]
label_smoothing: 0.1
rpo_alpha: 1.0
precompute_ref_log_probs: true
f_divergence_type: reverse_kl
max_length: 1536
max_prompt_length: 1024
truncation_mode: keep_end
padding_free: false
sync_ref_model: false
use_weighting: true
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
learning_rate: 5.0e-6
num_train_epochs: 1
output_dir: out/dpo
";

#[test]
fn dpo_of_trl() {
    let (recipe, notes) = imported(DPO_OF_TRL, Tool::Trl);
    let table = "[objective.dpo]\nbeta = 0.05\nloss = \"sigmoid\"\nlabel_smoothing = 0.1\nrpo_alpha = 1.0\n";
    assert!(recipe.contains(table), "{recipe}");
    // Dropout is off in these trainers.
    has_lines(
        &recipe,
        &["format = \"preference\"", "dropout = 0.0", "max_seq_len = 1536", "learning_rate = 0.000005"],
    );
    names(
        &notes,
        &[
            "precompute_ref_log_probs",
            "max_prompt_length",
            "truncation_mode",
            "use_weighting",
            "lora_dropout",
        ],
    );
    assert!(
        !notes.iter().any(|note| note.contains("padding_free") || note.contains("f_divergence")),
        "{notes:#?}"
    );
}

#[test]
fn other_trainers_of_trl() {
    let base = "model_name_or_path: m\nuse_peft: true\noutput_dir: o\ndataset_name: a.jsonl\n";
    let with = |lines: &str| imported(&format!("{base}{lines}"), Tool::Trl);
    for (lines, table) in [
        ("loss_type: ipo\nbeta: 0.2\n", "[objective.dpo]\nbeta = 0.2\nloss = \"ipo\"\n"),
        ("loss_type: hinge\n", "[objective.dpo]\nloss = \"hinge\"\n"),
        ("loss_type: sigmoid_norm\n", "[objective.dpo]\nlength_normalized = true\n"),
        (
            "loss_type: [sigmoid, sft]\nloss_weights: [1.0, 0.2]\n",
            "[objective.dpo]\nloss = \"sigmoid\"\nrpo_alpha = 0.2\n",
        ),
        ("orpo:\n  beta: 0.25\n", "[objective.orpo]\nbeta = 0.25\n"),
        (
            "loss_type: simpo\nbeta: 2.5\nsimpo_gamma: 1.2\ncpo_alpha: 0.0\n",
            "[objective.simpo]\nbeta = 2.5\ngamma = 1.2\n",
        ),
        // What TRL takes where nothing is said.
        ("cpo_config: {loss_type: simpo}\n", "[objective.simpo]\nbeta = 0.1\ngamma = 0.5\n"),
        (
            "desirable_weight: 1.5\nundesirable_weight: 0.5\nbeta: 0.3\n",
            "[objective.kto]\nbeta = 0.3\nwanted_weight = 1.5\nunwanted_weight = 0.5\n",
        ),
        ("loss_type: apo_zero_unpaired\n", "[objective.kto]\nloss = \"apo-zero-unpaired\"\n"),
    ] {
        let (recipe, _) = with(lines);
        assert!(recipe.contains(table), "{table} in\n{recipe}");
        let format = if table.contains("kto") { "feedback" } else { "preference" };
        // As in TRL.
        has_lines(&recipe, &[&format!("format = \"{format}\""), "learning_rate = 0.000001", "dropout = 0.0"]);
    }
    // Keys of more than one trainer: the choice is named.
    let (recipe, notes) = with("beta: 0.1\n");
    assert!(recipe.contains("[objective.dpo]"), "{recipe}");
    names(&notes, &["trainer"]);
    let (_, notes) = with("loss_type: simpo\nlabel_smoothing: 0.1\n");
    names(&notes, &["cpo_alpha", "label_smoothing"]);
    let (recipe, _) = with("loss_type: sigmoid\ndisable_dropout: false\nlora_dropout: 0.2\n");
    has_lines(&recipe, &["dropout = 0.2"]);
    let refused = |lines: &str| import(&format!("{base}{lines}"), "c.yml", None).unwrap_err().to_string();
    for lines in ["loss_type: exo_pair\n", "loss_type: [sigmoid, bco_pair]\n", "cpo_alpha: 0.5\n"] {
        assert!(refused(lines).contains("a recipe"), "{}", refused(lines));
    }
    let (recipe, _) = with("loss_type: dft\nassistant_only_loss: true\n");
    assert!(recipe.contains("[objective.sft]\ntoken_weights = \"dft\"\n"), "{recipe}");
}

const AXOLOTL: &str = "\
base_model: meta-llama/Llama-3.2-1B-Instruct
load_in_4bit: true
adapter: qlora
lora_r: 32
lora_alpha: 16
lora_target_linear: true
chat_template: tokenizer_default
sequence_len: 2048
val_set_size: 0.0
output_dir: ./outputs/dpo
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 2
learning_rate: 0.0002
";

#[test]
fn axolotl() {
    let with = |lines: &str| imported(&format!("{AXOLOTL}{lines}"), Tool::Axolotl);
    let (recipe, notes) = with(
        "rl: dpo\nrl_beta: 0.2\nrpo_alpha: 0.5\ndpo_label_smoothing: 0.05\nkto_desirable_weight: 1.0\ndpo_use_weighting: true\n\
         datasets:\n  - path: data/pairs.jsonl\n    type: chat_template.default\n    field_messages: conversation\n    \
         field_chosen: better\n    field_rejected: worse\n    message_property_mappings: {role: from, content: value}\n",
    );
    assert!(
        recipe.contains("[objective.dpo]\nbeta = 0.2\nlabel_smoothing = 0.05\nrpo_alpha = 0.5\n"),
        "{recipe}"
    );
    has_lines(
        &recipe,
        &[
            "format = \"preference\"",
            "fields = { chosen = \"better\", prompt = \"conversation\", rejected = \"worse\" }",
            "# The prompt there: the base model's chat template.",
        ],
    );
    names(&notes, &["kto_desirable_weight", "dpo_use_weighting"]);
    for (lines, table, fields) in [
        (
            "rl: ipo\ndatasets: [{path: a.jsonl, type: chatml.intel}]\n",
            "[objective.dpo]\nloss = \"ipo\"\n",
            "fields = { prompt = \"question\" }",
        ),
        (
            "rl: orpo\norpo_alpha: 0.3\ndatasets: [{path: a.jsonl, type: chat_template.argilla}]\n",
            "[objective.orpo]\nbeta = 0.3\n",
            "fields = { chosen = \"chosen_response\", prompt = \"instruction\", rejected = \"rejected_response\" }",
        ),
        (
            "rl: simpo\nrl_beta: 2.0\nsimpo_gamma: 0.8\ncpo_alpha: 0\ndatasets: [{path: a.jsonl, type: chatml.ultra}]\n",
            "[objective.simpo]\nbeta = 2.0\ngamma = 0.8\n",
            "format = \"preference\"",
        ),
        (
            "rl: kto\nkto_undesirable_weight: 0.7\ndatasets:\n  - path: a.jsonl\n    type: {field_prompt: ask, \
             field_completion: said, field_label: good, prompt_format: 'Q: {prompt}'}\n",
            "[objective.kto]\nunwanted_weight = 0.7\n",
            "fields = { completion = \"said\", label = \"good\", prompt = \"ask\" }",
        ),
    ] {
        let (recipe, notes) = with(lines);
        assert!(recipe.contains(table), "{table} in\n{recipe}");
        has_lines(&recipe, &[fields]);
        if !lines.contains("chat_template") {
            names(&notes, &["datasets[0].type"]);
        }
        if lines.contains("prompt_format") {
            names(&notes, &["datasets[0].type.prompt_format"]);
        }
    }
}

#[test]
fn llama_factory() {
    let folder = tempfile::tempdir().unwrap();
    let info = r#"{"pairs": {"file_name": "pairs.json", "ranking": true, "formatting": "sharegpt",
            "columns": {"messages": "talk", "chosen": "better", "rejected": "worse"}},
        "rows": {"file_name": "rows.json", "ranking": true,
            "columns": {"prompt": "question", "query": "input", "chosen": "chosen", "rejected": "worse"}},
        "votes": {"file_name": "votes.json", "formatting": "sharegpt",
            "columns": {"messages": "messages", "kto_tag": "vote"}}}"#;
    fs::write(folder.path().join("dataset_info.json"), info).unwrap();
    let with = |lines: &str| {
        let text = format!(
            "model_name_or_path: m\nfinetuning_type: lora\nlora_rank: 8\ntemplate: llama3\ncutoff_len: 2048\noutput_dir: o\n\
             per_device_train_batch_size: 4\nlearning_rate: 5.0e-6\nnum_train_epochs: 3.0\ndataset_dir: {}\n{lines}",
            folder.path().display()
        );
        imported(&text, Tool::LlamaFactory)
    };
    let (recipe, notes) = with(
        "stage: dpo\npref_beta: 0.1\npref_loss: sigmoid\npref_ftx: 0.2\ndpo_label_smoothing: 0.1\nref_model: other\n\
         dataset: pairs,rows\n",
    );
    assert!(
        recipe.contains(
            "[objective.dpo]\nbeta = 0.1\nloss = \"sigmoid\"\nlabel_smoothing = 0.1\nrpo_alpha = 0.2\n"
        ),
        "{recipe}"
    );
    has_lines(
        &recipe,
        &[
            "fields = { chosen = \"better\", prompt = \"talk\", rejected = \"worse\" }",
            "fields = { instruction = \"question\", rejected = \"worse\" }",
        ],
    );
    names(&notes, &["ref_model"]);
    assert!(!notes.iter().any(|note| note.contains("ranking")), "{notes:#?}");
    for (lines, table) in [
        ("stage: dpo\npref_loss: ipo\ndataset: rows\n", "[objective.dpo]\nloss = \"ipo\"\n"),
        ("stage: dpo\npref_loss: orpo\npref_beta: 0.2\ndataset: rows\n", "[objective.orpo]\nbeta = 0.2\n"),
        (
            "stage: dpo\npref_loss: simpo\nsimpo_gamma: 0.7\ndataset: rows\n",
            "[objective.simpo]\nbeta = 0.1\ngamma = 0.7\n",
        ),
    ] {
        let (recipe, _) = with(lines);
        assert!(recipe.contains(table), "{table} in\n{recipe}");
    }
    let (recipe, notes) =
        with("stage: kto\npref_beta: 0.2\nkto_chosen_weight: 1.5\npref_ftx: 0.1\ndataset: votes\n");
    assert!(recipe.contains("[objective.kto]\nbeta = 0.2\nwanted_weight = 1.5\n"), "{recipe}");
    has_lines(&recipe, &["format = \"feedback\"", "fields = { label = \"vote\", prompt = \"messages\" }"]);
    names(&notes, &["pref_ftx"]);
    let refused =
        import("stage: dpo\nfinetuning_type: lora\npref_loss: kto_pair\n", "c.yml", None).unwrap_err();
    assert!(refused.to_string().contains("`pref_loss` is `kto_pair`"), "{refused}");
}

#[test]
fn torchtune() {
    let with = |loss: &str, dataset: &str| {
        let text = format!(
            "output_dir: o\nmodel: {{_component_: torchtune.models.llama3_1.lora_llama3_1_8b, lora_attn_modules: [q_proj, v_proj]}}\n\
             tokenizer: {{_component_: torchtune.models.llama3.llama3_tokenizer, path: t, max_seq_len: 1024}}\n\
             checkpointer: {{_component_: torchtune.training.FullModelHFCheckpointer, checkpoint_dir: m}}\nepochs: 1\n\
             batch_size: 4\ngradient_accumulation_steps: 8\noptimizer: {{_component_: torch.optim.AdamW, lr: 5e-4}}\n\
             loss:\n  _component_: torchtune.rlhf.loss.{loss}\ndataset:\n  _component_: torchtune.datasets.{dataset}\n"
        );
        imported(&text, Tool::Torchtune)
    };
    let (recipe, notes) = with(
        "DPOLoss\n  beta: 0.05\n  label_smoothing: 0.1",
        "preference_dataset\n  source: json\n  data_files: p.json\n  column_map: {chosen: better, rejected: worse}",
    );
    assert!(recipe.contains("[objective.dpo]\nbeta = 0.05\nlabel_smoothing = 0.1\n"), "{recipe}");
    has_lines(
        &recipe,
        &[
            "format = \"preference\"",
            "path = \"p.json\"",
            "fields = { chosen = \"better\", rejected = \"worse\" }",
        ],
    );
    names(&notes, &["dataset"]);
    let (recipe, notes) = with("RSOLoss\n  gamma: 0.2", "stack_exchange_paired_dataset");
    assert!(recipe.contains("[objective.dpo]\nbeta = 0.2\nloss = \"hinge\"\n"), "{recipe}");
    has_lines(
        &recipe,
        &["fields = { chosen = \"response_j\", prompt = \"question\", rejected = \"response_k\" }"],
    );
    names(&notes, &["dataset.source"]);
    let (recipe, _) = with("SimPOLoss", "hh_rlhf_helpful_dataset");
    assert!(recipe.contains("[objective.simpo]\nbeta = 2.0\ngamma = 0.5\n"), "{recipe}");
}
