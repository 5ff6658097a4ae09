//! `tune import`: a realistic configuration of each tool as the recipe it becomes, and what is refused.
//!
//! The configurations are written for these tests in the manner of each tool's own examples.
#![expect(clippy::unwrap_used, reason = "helpers of tests stop where they fail")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tune::import::{Kind, Tool, import};
use tune::recipe::RecipeFile;

mod preference;

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/import"))
}

/// The recipe of a configuration, which is one.
fn recipe(file: &str, tool: Tool) -> String {
    let text = fs::read_to_string(folder().join(file)).unwrap();
    let imported = import(&text, file, None).unwrap();
    assert_eq!(imported.tool, tool);
    // Naming the tool gives the same.
    assert_eq!(import(&text, file, Some(tool)).unwrap().recipe, imported.recipe);
    RecipeFile::parse(file, imported.recipe.as_bytes(), &[]).finish().unwrap();
    imported.recipe
}

#[test]
fn axolotl() {
    insta::assert_snapshot!(recipe("axolotl.yml", Tool::Axolotl));
}

#[test]
fn llama_factory() {
    insta::assert_snapshot!(recipe("llama_factory.yaml", Tool::LlamaFactory));
}

#[test]
fn trl() {
    insta::assert_snapshot!(recipe("trl.json", Tool::Trl));
}

#[test]
fn unsloth() {
    insta::assert_snapshot!(recipe("unsloth.yaml", Tool::Trl));
}

#[test]
fn torchtune() {
    insta::assert_snapshot!(recipe("torchtune.yaml", Tool::Torchtune));
}

/// Every key of a configuration that sets something stands in the recipe under a name of ours, or in a note.
#[test]
fn nothing_is_dropped_in_silence() {
    let base = "base_model: org/name\nadapter: lora\noutput_dir: out\nlearning_rate: 1e-4\n\
                datasets:\n  - {path: a.jsonl, type: completion}\n";
    for line in [
        "no_such_key: 1",
        "relora_steps: 5",
        "lora_r: many",
        "lora_dropout: 1.5",
        "num_epochs: soon",
        "lora_modules_to_save: [norm]",
        "fp8: {a: 1}",
        "eval_steps: 0.1",
        "hub_model_id: me/it",
    ] {
        let key = line.split(':').next().unwrap();
        let imported = import(&format!("{base}{line}\n"), "c.yml", Some(Tool::Axolotl)).unwrap();
        let note = imported.notes.iter().find(|note| note.key == key);
        let note = note.unwrap_or_else(|| panic!("`{line}` was dropped in silence:\n{}", imported.recipe));
        assert_eq!((note.kind, note.line), (Kind::Left, 7), "{note}");
        assert!(imported.recipe.contains(&format!("#   {note}")), "{}", imported.recipe);
    }
    // A key that sets nothing needs no note.
    let quiet = import(&format!("{base}wandb_project:\nspecial_tokens: {{}}\n"), "c.yml", None).unwrap();
    assert!(quiet.notes.iter().all(|note| note.kind != Kind::Left), "{:?}", quiet.notes);
}

/// The recipe of an axolotl configuration with these lines, and its notes.
fn axolotl_with(lines: &str) -> (String, Vec<String>) {
    let text = format!(
        "base_model: org/name\nadapter: lora\noutput_dir: out\nlearning_rate: 1e-4\nmicro_batch_size: 1\n{lines}"
    );
    let imported = import(&text, "c.yml", Some(Tool::Axolotl)).unwrap();
    (imported.recipe, imported.notes.iter().map(ToString::to_string).collect())
}

#[track_caller]
fn has(lines: &[String], parts: &[&str]) {
    assert!(
        lines.iter().any(|line| parts.iter().all(|part| line.contains(part))),
        "{parts:?} in\n{lines:#?}"
    );
}

const CHAT: &str = "datasets: [{path: a.jsonl, type: chat_template}]\n";

#[test]
fn anchors_and_merge_keys_are_read_as_pyyaml_reads_them() {
    let (recipe, _) = axolotl_with(
        "lora_r: &r 24\nlora_alpha: *r\nx-data: &data {type: chat_template, field_messages: turns}\ndatasets:\n  \
         - {<<: *data, path: a.jsonl}\n  - <<: *data\n    path: b.jsonl\n    field_messages: talk\n",
    );
    assert!(recipe.contains("rank = 24\nalpha = 24.0\n"), "{recipe}");
    assert!(
        recipe.contains("path = \"a.jsonl\"\nformat = \"messages\"\nfields = { messages = \"turns\" }"),
        "{recipe}"
    );
    assert!(
        recipe.contains("path = \"b.jsonl\"\nformat = \"messages\"\nfields = { messages = \"talk\" }"),
        "{recipe}"
    );
}

#[test]
fn numbers_are_what_pyyaml_and_the_tool_make_of_them() {
    let (recipe, notes) = axolotl_with(&format!(
        "warmup_steps: 010\nmax_steps: 1_000\nsave_steps: 0x10\nweight_decay: .01\nseed: 0o17\nmax_grad_norm: .inf\n{CHAT}"
    ));
    for line in ["warmup_steps = 8", "max_steps = 1000", "save_steps = 16", "weight_decay = 0.01"] {
        assert!(recipe.contains(line), "{line} in\n{recipe}");
    }
    // Python's octal digits are a text in YAML 1.1, and no finite number means no clipping.
    has(&notes, &["seed: `0o17`", "set it by hand"]);
    has(&notes, &["max_grad_norm", "set it by hand"]);
}

#[test]
fn a_byte_order_mark_resets_no_key() {
    let text =
        "\u{feff}sequence_len: 4096\nbase_model: a/b\nadapter: lora\noutput_dir: o\nlearning_rate: 1e-4\n";
    let recipe = import(&format!("{text}{CHAT}"), "c.yml", None).unwrap().recipe;
    assert!(recipe.contains("max_seq_len = 4096"), "{recipe}");
}

#[test]
fn variables_of_the_environment_are_named() {
    let text =
        format!("base_model: ${{BASE}}/base\nadapter: lora\noutput_dir: o\nlearning_rate: 1e-4\n{CHAT}");
    let imported = import(&text, "c.yml", Some(Tool::Axolotl)).unwrap();
    let notes: Vec<String> = imported.notes.iter().map(ToString::to_string).collect();
    has(&notes, &["base_model: `${BASE}/base`", "write its value", "line 1"]);
    // LLaMA-Factory reads its files with OmegaConf, which knows the other keys.
    let text = "stage: sft\nfinetuning_type: lora\nmodel_name_or_path: m\nname: x\noutput_dir: runs/${name}\ndataset: d\n";
    let recipe = import(text, "c.yml", None).unwrap().recipe;
    assert!(recipe.contains("output_dir = \"runs/x\""), "{recipe}");
}

#[test]
fn every_dataset_states_the_prompt_of_the_other_tool() {
    let (recipe, notes) = axolotl_with(
        "datasets:\n  - {path: a.jsonl, type: chat_template}\n  - {path: b.jsonl, type: alpaca}\n  \
         - {path: c.jsonl, type: completion}\n  - {path: d.jsonl, type: chat_template, chat_template: llama3}\n",
    );
    let stated: Vec<&str> =
        recipe.lines().filter_map(|line| line.strip_prefix("# The prompt there: ")).collect();
    assert_eq!(
        stated,
        [
            "the base model's chat template.",
            "Alpaca's, with a line break after `### Response:`.",
            "none, the text as it stands.",
            "axolotl's chat template `llama3`.",
        ]
    );
    let differs = |key: &str| notes.iter().any(|note| note.starts_with(key) && note.contains("here: "));
    assert_eq!(
        [0, 1, 2, 3].map(|index| differs(&format!("datasets[{index}].type"))),
        [false, false, false, true],
        "{notes:#?}"
    );
    assert!(recipe.contains("### Response:\\n\"\nprompt_without_input = \"Below is"), "{recipe}");
    let folder = tempfile::tempdir().unwrap();
    let info =
        r#"{"mine": {"file_name": "mine.json"}, "talk": {"file_name": "t.json", "formatting": "sharegpt"}}"#;
    fs::write(folder.path().join("dataset_info.json"), info).unwrap();
    let text = format!(
        "stage: sft\nfinetuning_type: lora\nmodel_name_or_path: m\noutput_dir: o\ntemplate: qwen\ndataset: mine,talk\n\
         dataset_dir: {}\n",
        folder.path().display()
    );
    let imported = import(&text, "c.yml", None).unwrap();
    let notes: Vec<String> = imported.notes.iter().map(ToString::to_string).collect();
    has(
        &notes,
        &["dataset.mine", "a user turn of `instruction`, a line break and `input`", "`qwen`", "here: "],
    );
    let turns =
        "prompt = \"{instruction}\\n{input}\"\nprompt_without_input = \"{instruction}\"\nchat = true\n";
    assert!(imported.recipe.contains(turns), "{}", imported.recipe);
    has(
        &notes,
        &["dataset.talk", "`qwen`, its system prompt included", "here: the base model's chat template"],
    );
}

#[test]
fn every_key_of_a_list_of_datasets_carries_over_or_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let info = r#"{"talk": {"file_name": "t.json", "formatting": "sharegpt", "subset": "en", "num_samples": 9,
        "ranking": true, "no_such_key": 1,
        "columns": {"messages": "talk", "system": "persona", "tools": "functions", "no_such_column": "x"},
        "tags": {"role_tag": "who", "content_tag": "said", "user_tag": "customer", "assistant_tag": "gpt"}}}"#;
    fs::write(folder.path().join("dataset_info.json"), info).unwrap();
    let text = format!(
        "stage: sft\nfinetuning_type: lora\nmodel_name_or_path: m\noutput_dir: o\ndataset: talk\ndataset_dir: {}\n",
        folder.path().display()
    );
    let imported = import(&text, "c.yml", None).unwrap();
    assert!(
        imported.recipe.contains(
            "fields = { content = \"said\", messages = \"talk\", role = \"who\", system = \"persona\", tools = \"functions\" }"
        ),
        "{}",
        imported.recipe
    );
    let notes: Vec<String> = imported.notes.iter().map(ToString::to_string).collect();
    for key in ["subset", "num_samples", "ranking", "no_such_key", "columns.no_such_column"] {
        has(&notes, &[&format!("dataset.talk.{key}: ")]);
    }
    assert!(imported.recipe.contains("roles = { user = [\"customer\"] }"), "{}", imported.recipe);
    assert!(!notes.iter().any(|note| note.contains("assistant_tag")), "{notes:#?}");
}

#[test]
fn d3_alpaca_rows_of_other_layouts_keep_their_prompt_and_context() {
    let (recipe, notes) = axolotl_with(
        "datasets:\n  - {path: a.jsonl, type: alpaca_chat.load_qa}\n  - {path: b.jsonl, type: alpaca_chat}\n  \
         - {path: c.jsonl, type: alpaca_chat.load_no_prompt}\n",
    );
    assert!(recipe.contains("fields = { instruction = \"question\", output = \"answer\" }"), "{recipe}");
    let prompts: Vec<&str> = recipe.lines().filter(|line| line.starts_with("prompt = ")).collect();
    assert!(
        prompts[0].ends_with("concisely completes the request.\\n\\n\\nUSER: {instruction}\\nASSISTANT:\""),
        "{prompts:?}"
    );
    assert!(
        prompts[1].ends_with("the request.\\nUSER: {instruction}\\n{input}\\nASSISTANT:\""),
        "{prompts:?}"
    );
    assert_eq!(prompts[2], "prompt = \"USER: {instruction}\\n{input}\\nASSISTANT:\"");
    assert!(!notes.iter().any(|note| note.contains("].type")), "{notes:#?}");
    let folder = tempfile::tempdir().unwrap();
    let info = r#"{"mine": {"file_name": "m.json", "columns": {"system": "persona", "history": "before", "tools": "api"}},
        "odd": {"file_name": "o.json", "formatting": "mine"}, "call": {"file_name": "c.json", "formatting": "openai",
        "tags": {"function_tag": "function_call", "observation_tag": "observation"}}}"#;
    fs::write(folder.path().join("dataset_info.json"), info).unwrap();
    let text = format!(
        "stage: sft\nfinetuning_type: lora\nmodel_name_or_path: m\noutput_dir: o\ndataset: mine,odd,call\ndataset_dir: {}\n",
        folder.path().display()
    );
    let imported = import(&text, "c.yml", None).unwrap();
    let notes: Vec<String> = imported.notes.iter().map(ToString::to_string).collect();
    let fields = "fields = { history = \"before\", system = \"persona\", tools = \"api\" }";
    assert!(imported.recipe.contains(fields), "{}", imported.recipe);
    has(&notes, &["dataset.mine.columns.history", "`mask_history`"]);
    has(&notes, &["dataset.odd.formatting", "plugins"]);
    assert!(imported.recipe.contains("c.json\"\nformat = \"messages\""), "{}", imported.recipe);
    assert!(!notes.iter().any(|note| note.contains("_tag")), "{notes:#?}");
}

#[test]
fn speakers_of_an_imported_dataset_have_their_roles() {
    let (recipe, notes) = axolotl_with(
        "datasets:\n  - path: a.jsonl\n    type: chat_template\n    field_messages: conversations\n    \
         message_property_mappings: {role: from, content: value}\n    \
         roles: {user: [human, customer], assistant: [gpt, agent], system: [system], critic: [judge]}\n",
    );
    assert!(recipe.contains("roles = { assistant = [\"agent\"], user = [\"customer\"] }"), "{recipe}");
    has(&notes, &["datasets[0].roles.critic: `[judge]`", "rename these speakers"]);
    assert!(recipe.contains("fields = { messages = \"conversations\" }"), "{recipe}");
}

#[test]
fn notes_say_what_a_setting_did() {
    let (recipe, notes) = axolotl_with(&format!(
        "val_set_size: 100\nspecial_tokens: {{pad_token: <pad>, eos_token: <end>}}\ntokens: [<new>]\n{CHAT}"
    ));
    assert!(!recipe.contains("val_split = 100"), "{recipe}");
    has(&notes, &["val_set_size: `100` rows were held out", "divided by the number of rows"]);
    has(&notes, &["special_tokens.pad_token", "nothing is padded"]);
    has(&notes, &["special_tokens.eos_token: `<end>`", "tokenizer_config.json"]);
    has(&notes, &["tokens: ", "no token is added"]);
    let (recipe, notes) = axolotl_with(
        "datasets:\n  - {path: a.jsonl, type: chat_template, message_field_training: learn, field_tools: functions}\n  \
         - {path: b.jsonl, type: {field_instruction: q, field_output: a, system_prompt: Be brief., \
         system_format: '{system} ', format: 'Q: {instruction} {input}', no_input_format: 'Q: {instruction}', shards: 3}}\n",
    );
    assert!(recipe.contains("fields = { tools = \"functions\", train = \"learn\" }"), "{recipe}");
    has(&notes, &["datasets[1].type.shards: `3`"]);
    let own = "format = \"alpaca\"\nprompt = \"Be brief. Q: {instruction} {input}\"\n\
               prompt_without_input = \"Be brief. Q: {instruction}\"\nfields = { instruction = \"q\", output = \"a\" }";
    assert!(recipe.contains(own), "{recipe}");
}

#[test]
fn a_mixture_of_datasets_and_an_end_token_carry_over_or_are_named() {
    let text = "use_peft: true\nmodel_name_or_path: m\noutput_dir: o\neos_token: <end>\ndataset_mixture:\n  seed: 7\n  \
                test_split_size: 0.25\n  datasets:\n    - {id: a.jsonl, config: en, columns: [messages], weight: 0.5}\n    \
                - {path: b.jsonl}\n";
    let imported = import(text, "c.yml", None).unwrap();
    let notes: Vec<String> = imported.notes.iter().map(ToString::to_string).collect();
    for line in ["path = \"a.jsonl\"", "path = \"b.jsonl\"", "seed = 7", "val_split = 0.25"] {
        assert!(imported.recipe.contains(line), "{line} in\n{}", imported.recipe);
    }
    for key in ["datasets.config", "datasets.columns", "datasets.weight", "eos_token"] {
        has(&notes, &[&format!("{key}: ")]);
    }
}

#[test]
fn a_masking_strategy_is_what_is_trained_on() {
    let recipe = |strategy: &str| {
        let text = format!(
            "output_dir: o\nmodel: {{_component_: torchtune.models.llama3.lora_llama3_8b, lora_attn_modules: [q_proj]}}\n\
             checkpointer: {{_component_: x.FullModelHFCheckpointer, checkpoint_dir: m}}\nepochs: 1\nbatch_size: 1\n\
             optimizer: {{_component_: torch.optim.AdamW, lr: 1e-4}}\ndataset:\n  _component_: torchtune.datasets.chat_dataset\n  \
             source: json\n  data_files: t.json\n  conversation_column: messages\n  masking_strategy: {strategy}\n"
        );
        import(&text, "c.yml", None).unwrap().recipe
    };
    assert!(recipe("train_on_last").contains("train_on = \"last-assistant\""), "{}", recipe("train_on_last"));
    assert!(recipe("train_on_all").contains("train_on = \"all\""));
    assert!(!recipe("train_on_assistant").contains("train_on"));
}

#[test]
fn a_configuration_of_mlx_lm_is_recognised() {
    let said = import("model: m\nfine_tune_type: lora\niters: 1000\nmax_seq_length: 512\n", "c.yml", None)
        .unwrap_err()
        .to_string();
    assert!(said.contains("mlx-lm") && said.contains("does not read"), "{said}");
}

#[test]
fn what_cannot_be_a_recipe_is_refused() {
    let said = |text: &str, from| import(text, "c.yml", from).unwrap_err().to_string();
    assert!(said("epochs: 1\n", None).contains("no key says which tool"), "{}", said("epochs: 1\n", None));
    let both = said("base_model: a\ncutoff_len: 5\n", None);
    assert!(
        both.contains("axolotl (`base_model`)") && both.contains("--from axolotl|llama-factory"),
        "{both}"
    );
    assert!(said("base_model: a\n", None).contains("trains all weights"));
    assert!(said("base_model: a\nadapter: lora\nrl: grpo\n", None).contains("line 3: `rl` is `grpo`"));
    assert!(said("stage: ppo\nfinetuning_type: lora\n", None).contains("`stage` is `ppo`, and supervised"));
    assert!(said("use_peft: false\n", None).contains("`use_peft` is false"));
    let full = "model: {_component_: torchtune.models.llama3.llama3_8b}\n";
    assert!(said(full, None).contains("trains all weights"), "{}", said(full, None));
    // A missing dataset and wrong values are refused by the reader of recipes.
    assert!(
        said("base_model: a\nadapter: lora\noutput_dir: o\n", None).contains("the recipe has no dataset")
    );
    let held_out_twice = "base_model: a\nadapter: lora\noutput_dir: o\nval_set_size: 0.1\ndatasets: [{path: a.csv, type: \
                          alpaca}]\ntest_datasets: [{path: b.csv, type: alpaca}]\n";
    let refused = said(held_out_twice, None);
    assert!(refused.contains("does not make a recipe") && refused.contains("hold rows out"), "{refused}");
}

fn tune(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tune"))
        .args(arguments)
        .current_dir(folder)
        .env("NO_COLOR", "1")
        .output()
        .unwrap()
}

#[test]
fn the_command_writes_a_recipe_and_tells_what_is_different() {
    let here = tempfile::tempdir().unwrap();
    fs::copy(folder().join("axolotl.yml"), here.path().join("old.yml")).unwrap();
    let shown = tune(here.path(), &["import", "old.yml"]);
    assert_eq!(shown.status.code(), Some(0));
    let text = String::from_utf8(shown.stdout).unwrap();
    let told = String::from_utf8(shown.stderr).unwrap();
    assert!(told.contains("Did not carry over:\n  - ") && told.contains("loss_watchdog_threshold"), "{told}");
    let written = tune(here.path(), &["import", "old.yml", "--from", "axolotl", "--out", "new.toml"]);
    assert_eq!(written.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&written.stdout).contains("Next:\n  tune validate new.toml"));
    assert_eq!(fs::read_to_string(here.path().join("new.toml")).unwrap(), text);
    // Nothing is overwritten, and nothing half-written.
    for (arguments, word) in [
        (&["import", "old.yml", "--out", "new.toml"][..], "new.toml exists"),
        (&["import", "none.yml"], "cannot read none.yml"),
        (&["import", ".", "--out", "other.toml"], "it is a folder"),
        (&["import", "old.yml", "--from", "torchtune", "--out", "other.toml"], "it has no `model`"),
    ] {
        let refused = tune(here.path(), arguments);
        let error = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(2) && error.contains(word), "{arguments:?}: {error}");
    }
    assert!(!here.path().join("other.toml").exists());
}
