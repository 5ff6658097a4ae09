//! The `[[dataset]]` entries of a recipe: their keys, and the checks of what they say together.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::{Choice, DatasetSpec, Format, PromptSpec, Split, TrainOn};
use crate::data::roles::ROLES;
use crate::document::{
    Key, KeyTable, Kind, Limits, Parsed, Problem, Shaped, TableReader, Value, Word, Writer, Written, list,
    pairs, text,
};

impl Parsed for BTreeMap<String, String> {
    fn expected() -> String {
        "table of field = \"column\"".to_owned()
    }

    fn schema() -> Json {
        json!({"type": "object", "additionalProperties": {"type": "string", "minLength": 1}})
    }

    fn read(value: &Value) -> Shaped<Self> {
        Ok(pairs(text)(value)?.into_iter().collect())
    }

    fn written(&self) -> String {
        let pairs: Vec<_> = self.iter().map(|(ours, theirs)| (ours.clone(), theirs)).collect();
        pairs.as_slice().written()
    }
}

impl Parsed for BTreeMap<String, Vec<String>> {
    fn expected() -> String {
        "table of ours = \"theirs\", or a list of theirs".to_owned()
    }

    fn schema() -> Json {
        let theirs = json!({"type": ["string", "array"], "items": {"type": "string"}});
        json!({"type": "object", "additionalProperties": theirs})
    }

    fn read(value: &Value) -> Shaped<Self> {
        let names = |value: &Value| match &value.kind {
            Kind::Array(_) => list(text)(value),
            _ => Ok(vec![text(value)?]),
        };
        Ok(pairs(names)(value)?.into_iter().collect())
    }

    fn written(&self) -> String {
        let pairs: Vec<_> = self.iter().map(|(ours, theirs)| (ours.clone(), theirs)).collect();
        pairs.as_slice().written()
    }
}

/// A `[[dataset]]` while it is read: without a path or a format there is no [`DatasetSpec`].
pub(crate) struct Draft {
    path: Option<String>,
    format: Option<Format>,
    weight: f64,
    split: Split,
    train_on: Option<TrainOn>,
    fields: Option<BTreeMap<String, String>>,
    roles: Option<BTreeMap<String, Vec<String>>>,
    ignore: Vec<String>,
    prompt: Option<String>,
    prompt_without_input: Option<String>,
    chat: Option<bool>,
    hub: Choice,
}

impl Default for Draft {
    fn default() -> Self {
        Self {
            path: None,
            format: None,
            weight: 1.0,
            split: Split::Train,
            train_on: None,
            fields: None,
            roles: None,
            ignore: Vec::new(),
            prompt: None,
            prompt_without_input: None,
            chat: None,
            hub: Choice::default(),
        }
    }
}

type K = Key<Draft>;

pub(crate) static DATASET: KeyTable<Draft> = KeyTable {
    path: "dataset",
    meaning: "Files of rows; a recipe has one or more of these tables.",
    also: &[
        "datasets",
        "data_files",
        "train_file",
        "dataset_name",
        "dataset_path",
        "dataset_dir",
        "train_data",
    ],
    keys: &[
        K::text("path", |dataset| &mut dataset.path)
            .required("\"data/train.jsonl\"")
            .means("A file (.jsonl, .json, .parquet, .arrow, .csv, .tsv), a glob over files, or a dataset of the hub.")
            .also(&["file", "file_name", "filename", "source"]),
        K::parsed("format", |dataset| &mut dataset.format)
            .required("\"messages\"")
            .means("What a row holds.")
            .also(&["type", "ds_type", "formatting", "kind", "style"]),
        K::number("weight", Limits::above(0.0).to(1e6), |dataset| &mut dataset.weight)
            .means("How often each row is seen in an epoch; a fraction by a deterministic draw.")
            .also(&["probability", "mix_ratio", "interleave_probs", "ratio"]),
        K::parsed("split", |dataset| &mut dataset.split)
            .means("Whether the rows are trained on or held out for evaluation."),
        K::parsed("train_on", |dataset| &mut dataset.train_on)
            .optional("`train_on` of `[data]`")
            .means("The tokens of these rows that the loss is taken over."),
        K::parsed("fields", |dataset| &mut dataset.fields)
            .optional("each field is a column of the same name")
            .means("Names of the columns where they differ from the format's fields: { ours = \"theirs\" }.")
            .also(&[
                "columns",
                "field",
                "column_map",
                "column_mapping",
                "message_property_mappings",
                "field_messages",
                "field_instruction",
                "field_output",
                "prompt_column",
                "completion_column",
            ]),
        K::parsed("roles", |dataset| &mut dataset.roles)
            .optional("the names that other tools use")
            .means("Names of the roles of messages: { ours = \"theirs\" }, or a list of theirs.")
            .also(&["role_mapping", "role_tags", "user_tag", "assistant_tag"])
            .added(),
        K::list("ignore", text, |dataset| &mut dataset.ignore)
            .means("Columns and keys of messages to leave out although other tools give them a meaning.")
            .also(&["remove_columns", "drop_columns"])
            .added(),
        K::text("prompt", |dataset| &mut dataset.prompt)
            .added()
            .optional("the format's own")
            .means("Prompt of a row, with names of the format's fields in braces: \"Q: {prompt}\\nA:\"."),
        K::text("prompt_without_input", |dataset| &mut dataset.prompt_without_input)
            .added()
            .optional("as `prompt` says")
            .means("Prompt of an alpaca row whose input is empty."),
        K::flag("chat", |dataset| &mut dataset.chat)
            .added()
            .optional("false")
            .means("Make prompt and completion a user and an assistant turn of the chat template."),
        K::text("hub_config", |dataset| &mut dataset.hub.config)
            .added()
            .optional("the only one, or \"default\"")
            .means("Configuration (subset) of a dataset of the hub.")
            .also(&["config_name", "subset", "name"]),
        K::text("hub_split", |dataset| &mut dataset.hub.split)
            .added()
            .optional("the only one, or \"train\"")
            .means("Split of a dataset of the hub whose files are read; `split` says what its rows are for."),
    ],
    checks: &[
        report_foreign_fields,
        report_foreign_roles,
        report_misplaced_train_on,
        report_weight_of_held_out,
        report_misplaced_prompt,
    ],
    repeated: true,
    ..KeyTable::NEW
};

impl DatasetSpec {
    /// Reads one `[[dataset]]`; `None` if it has no path or no format.
    pub fn read(table: &mut TableReader<'_, '_>) -> Option<Self> {
        let draft = DATASET.read(table);
        let Draft { path, format, weight, split, train_on, fields, roles, ignore, .. } = draft;
        let prompt = PromptSpec {
            template: draft.prompt,
            without_input: draft.prompt_without_input,
            chat: draft.chat.unwrap_or(false),
        };
        let (fields, roles) = (fields.unwrap_or_default(), roles.unwrap_or_default());
        let hub = draft.hub;
        Some(Self {
            path: path?,
            format: format?,
            weight,
            split,
            train_on,
            fields,
            roles,
            ignore,
            prompt,
            hub,
        })
    }

    /// Writes the entry.
    pub fn write(&self, writer: &mut Writer) {
        let Self { path, format, weight, split, train_on, fields, roles, ignore, prompt, hub } = self.clone();
        let PromptSpec { template: prompt, without_input: prompt_without_input, chat } = prompt;
        let chat = Some(chat).filter(|chat| *chat);
        let fields = Some(fields).filter(|fields| !fields.is_empty());
        let roles = Some(roles).filter(|roles| !roles.is_empty());
        let (path, format) = (Some(path), Some(format));
        let mut draft = Draft {
            path,
            format,
            weight,
            split,
            train_on,
            fields,
            roles,
            ignore,
            prompt,
            prompt_without_input,
            chat,
            hub,
        };
        DATASET.write(&mut draft, writer);
    }
}

fn report_foreign_fields(table: &mut TableReader<'_, '_>, dataset: &Draft) {
    let Some(format) = dataset.format else { return };
    let Some(Kind::Table(fields)) = table.value("fields").map(|value| &value.kind) else { return };
    let (word, names) = (format.word(), format.field_names());
    for entry in fields.entries().iter().filter(|entry| !names.contains(&entry.key.as_str())) {
        let reversed = match &entry.value.kind {
            Kind::String(theirs) if names.contains(&theirs.as_str()) => {
                format!("our name comes first: {{ {theirs} = \"{}\" }}", entry.key)
            }
            _ => format!("its fields are {}", names.join(", ")),
        };
        let message = format!("the format `{word}` has no field `{}`", entry.key);
        let problem = Problem::new("recipe::unknown_field", entry.key_place.clone(), message);
        table.report(problem.label("unknown field").help(reversed));
    }
}

fn report_foreign_roles(table: &mut TableReader<'_, '_>, dataset: &Draft) {
    let Some(Kind::Table(roles)) = table.value("roles").map(|value| &value.kind) else { return };
    let known: Vec<&str> = ROLES.iter().map(|(role, _)| *role).collect();
    for entry in roles.entries().iter().filter(|entry| !known.contains(&entry.key.as_str())) {
        let message = format!("`{}` is not one of our roles", entry.key);
        let help = format!("ours come first, of {}: {{ user = \"{}\" }}", known.join(", "), entry.key);
        let problem = Problem::new("recipe::unknown_role", entry.key_place.clone(), message);
        table.report(problem.label("unknown role").help(help));
    }
    let has_roles = |format: Format| format.field_names().contains(&"role");
    if let Some(format) = dataset.format.filter(|format| !has_roles(*format)) {
        let Some(place) = table.place_of("roles") else { return };
        let message = format!("rows of the format `{}` have no roles", format.word());
        let problem = Problem::new("recipe::contradiction", place, message);
        table.report(problem.label("has no meaning here").help("remove it"));
    }
}

fn report_misplaced_train_on(table: &mut TableReader<'_, '_>, dataset: &Draft) {
    let (Some(format), Some(train_on)) = (dataset.format, dataset.train_on) else { return };
    let Some(value) = table.value("train_on") else { return };
    if !format.train_on_choices().contains(&train_on) {
        table.report(train_on_problem(value, format, train_on));
    }
}

fn report_weight_of_held_out(table: &mut TableReader<'_, '_>, dataset: &Draft) {
    let Some(place) = table.place_of("weight") else { return };
    if dataset.split == Split::Validation && dataset.weight != 1.0 {
        let message = "`weight` says how often a row is trained on, and these rows are held out";
        table.report(
            Problem::new("recipe::contradiction", place, message)
                .label("has no meaning here")
                .help("remove it, or `split = \"validation\"`"),
        );
    }
}

/// A prompt is made of the fields of `alpaca` and `prompt-completion` alone.
fn report_misplaced_prompt(table: &mut TableReader<'_, '_>, dataset: &Draft) {
    let Some(format) = dataset.format else { return };
    let names = match format {
        Format::Alpaca => &["instruction", "input"][..],
        Format::PromptCompletion => &["prompt"],
        _ => &[],
    };
    for key in ["prompt", "prompt_without_input", "chat"] {
        let Some(value) = table.value(key) else { continue };
        let place = value.place.clone();
        if names.is_empty() || (key == "prompt_without_input" && format != Format::Alpaca) {
            let message = format!("`{key}` does not apply to the format `{}`", format.word());
            let problem = Problem::new("recipe::contradiction", place, message);
            table.report(problem.label("does not apply").help("remove it"));
            continue;
        }
        let Kind::String(text) = &value.kind else { continue };
        if let Some(name) = placeholders(text).find(|name| !names.contains(name)) {
            let message = format!("the format `{}` has no field `{name}` for a prompt", format.word());
            let problem = Problem::new("recipe::unknown_field", place, message);
            table.report(problem.label("unknown field").help(format!("its fields are {}", names.join(", "))));
        }
    }
}

/// The words in braces.
fn placeholders(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split('{').skip(1).filter_map(|rest| rest.split_once('}').map(|(word, _)| word));
    words.filter(|word| !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
}

/// The problem of a `train_on` that does not apply to the rows of `format`.
pub(crate) fn train_on_problem(value: &Value, format: Format, train_on: TrainOn) -> Problem {
    let (word, chosen) = (format.word(), train_on.word());
    let choices: Vec<_> = format.train_on_choices().iter().map(|c| format!("\"{}\"", c.word())).collect();
    let help = match choices.as_slice() {
        [] if format == Format::Tokens => {
            "leave it out: the `labels` column says which tokens are supervised".to_owned()
        }
        [] => "leave it out: answers are what is learned".to_owned(),
        choices => {
            format!("for `{word}` it is {}; left out, each format has its own default", choices.join(" or "))
        }
    };
    Problem::new(
        "recipe::contradiction",
        value.place.clone(),
        format!("`train_on = \"{chosen}\"` does not apply to the format `{word}`"),
    )
    .label("does not apply")
    .help(help)
}
