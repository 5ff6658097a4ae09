//! Which columns of a file hold the fields of a record shape: names, their mapping by the recipe, and the errors of
//! absent and unfit columns. Knows nothing of rows.

use std::collections::BTreeMap;
use std::path::Path;

use arrow_schema::DataType;

use super::super::source::Error;
use super::super::spec::{DatasetSpec, Format, PromptSpec};
use super::unread;

/// A column of tools in OpenAI's older form: functions that are not wrapped as tools.
pub(super) const FUNCTIONS: &str = "functions";

/// The type of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Messages,
    /// A text, a message, or a list of messages.
    Answer,
    /// True or false.
    Truth,
    Integers,
    /// Lists or objects, also as JSON text.
    Structure,
    /// Not a column, but the name of a key inside each message.
    MessageKey,
}

/// A field of a record shape.
#[derive(Clone, Debug)]
pub(super) struct Field {
    pub(super) canonical: &'static str,
    kind: Kind,
    required: bool,
    /// The columns that may hold the field; the first one that is present and not null does.
    pub(super) columns: Vec<String>,
    /// Whether the recipe names the column.
    mapped: bool,
}

/// The fields of one dataset: which columns they come from, and how they become an example.
#[derive(Clone, Debug)]
pub(in crate::data) struct Fields {
    pub(super) format: Format,
    pub(super) fields: Vec<Field>,
    /// The recipe's names of our roles.
    pub(super) roles: BTreeMap<String, Vec<String>>,
    /// Columns and keys of messages that the recipe leaves out knowingly.
    pub(super) ignore: Vec<String>,
    pub(super) prompt: PromptSpec,
}

impl Fields {
    /// The fields of a format, mapped to the dataset's columns.
    pub(in crate::data) fn new(spec: &DatasetSpec) -> Result<Fields, Error> {
        let field = |canonical: &'static str, kind, required| Field {
            canonical,
            kind,
            required,
            columns: vec![canonical.to_owned()],
            mapped: false,
        };
        let mut fields = match spec.format {
            Format::Messages => {
                let mut messages = field("messages", Kind::Messages, true);
                messages.columns.push("conversations".to_owned());
                let mut system = field("system", Kind::Text, false);
                system.columns.push("system_prompt".to_owned());
                vec![messages, system, field("train", Kind::MessageKey, false)]
            }
            Format::Alpaca => vec![
                field("instruction", Kind::Text, true),
                field("input", Kind::Text, false),
                field("output", Kind::Text, true),
            ],
            Format::PromptCompletion => {
                vec![field("prompt", Kind::Answer, true), field("completion", Kind::Answer, true)]
            }
            Format::Preference => {
                let mut prompt = field("prompt", Kind::Answer, false);
                prompt.columns.push("conversations".to_owned());
                vec![
                    prompt,
                    field("instruction", Kind::Text, false),
                    field("input", Kind::Text, false),
                    field("chosen", Kind::Answer, true),
                    field("rejected", Kind::Answer, true),
                ]
            }
            Format::Feedback => {
                let mut prompt = field("prompt", Kind::Answer, false);
                prompt.columns.extend(["messages".to_owned(), "conversations".to_owned()]);
                let mut label = field("label", Kind::Truth, true);
                label.columns.push("kto_tag".to_owned());
                vec![
                    prompt,
                    field("instruction", Kind::Text, false),
                    field("input", Kind::Text, false),
                    field("completion", Kind::Answer, false),
                    label,
                ]
            }
            Format::Text => vec![field("text", Kind::Text, true)],
            Format::Tokens => {
                vec![field("input_ids", Kind::Integers, true), field("labels", Kind::Integers, false)]
            }
        };
        let is_chat = spec.prompt.chat;
        if is_chat {
            let mut system = field("system", Kind::Text, false);
            system.columns.push("system_prompt".to_owned());
            fields.extend([system, field("history", Kind::Structure, false)]);
        }
        // What a chat template is given, where rows may be conversations.
        let has_messages = matches!(
            spec.format,
            Format::Messages | Format::PromptCompletion | Format::Preference | Format::Feedback
        );
        if has_messages || is_chat {
            let mut tools = field("tools", Kind::Structure, false);
            tools.columns.push(FUNCTIONS.to_owned());
            let [documents, kwargs] =
                ["documents", "chat_template_kwargs"].map(|name| field(name, Kind::Structure, false));
            fields.extend([tools, documents, kwargs]);
        }
        if has_messages {
            fields.extend(["role", "content"].map(|name| field(name, Kind::MessageKey, false)));
        }
        for (name, column) in &spec.fields {
            let known: Vec<&str> = fields.iter().map(|field| field.canonical).collect();
            match fields.iter_mut().find(|field| field.canonical == name) {
                Some(field) => (field.columns, field.mapped) = (vec![column.clone()], true),
                None => {
                    return Err(Error::UnknownField {
                        name: name.clone(),
                        format: format_name(spec.format),
                        known: list(&known),
                        suggestion: nearest(name, &known)
                            .map(|name| format!("; did you mean `{name}`?"))
                            .unwrap_or_default(),
                    });
                }
            }
        }
        for field in fields.iter_mut().filter(|field| !field.required && !field.mapped) {
            field.columns.retain(|column| !spec.ignore.contains(column));
        }
        Ok(Fields {
            format: spec.format,
            fields,
            roles: spec.roles.clone(),
            ignore: spec.ignore.clone(),
            prompt: spec.prompt.clone(),
        })
    }

    /// The columns that are read.
    pub(super) fn columns(&self) -> impl Iterator<Item = &str> {
        let columns = self.fields.iter().filter(|field| field.kind != Kind::MessageKey);
        columns.flat_map(|field| &field.columns).map(String::as_str)
    }

    /// The columns of CSV files whose cells hold JSON, since CSV has no lists.
    pub(in crate::data) fn json_columns(&self) -> Vec<&str> {
        let lists = self.fields.iter().filter(|field| matches!(field.kind, Kind::Messages | Kind::Integers));
        lists.flat_map(|field| &field.columns).map(String::as_str).collect()
    }

    /// The columns of a file that are read. Checks that the required ones are present and, where columns have types,
    /// that the types fit.
    pub(in crate::data) fn choose(
        &self,
        file: &Path,
        columns: &[(&str, Option<&DataType>)],
    ) -> Result<Vec<usize>, Error> {
        let (mut chosen, mut missing) = (Vec::new(), Vec::new());
        for field in self.fields.iter().filter(|field| field.kind != Kind::MessageKey) {
            for wanted in &field.columns {
                let Some(index) = columns.iter().position(|(name, _)| name == wanted) else { continue };
                if columns[index + 1..].iter().any(|(name, _)| name == wanted) {
                    return Err(Error::DoubledColumn { file: file.to_owned(), column: wanted.clone() });
                }
                if let Some(data_type) = columns[index].1
                    && !field.kind.accepts(data_type)
                {
                    return Err(Error::ColumnType {
                        file: file.to_owned(),
                        column: wanted.clone(),
                        expected: field.kind.expected(),
                        found: data_type.to_string(),
                    });
                }
                if !chosen.contains(&index) {
                    chosen.push(index);
                }
            }
            let there = field.columns.iter().any(|wanted| columns.iter().any(|(name, _)| name == wanted));
            if !there && (field.required || field.mapped) {
                missing.push(field);
            }
        }
        if !missing.is_empty() {
            return Err(self.missing(file, &missing, columns));
        }
        // Read too, if only to know whether there is something in them.
        let is_meaningful = |name: &str| self.is_unread(name) && unread::meaning(self.format, name).is_some();
        let meaningful = columns.iter().enumerate().filter(|(_, (name, _))| is_meaningful(name));
        chosen.extend(meaningful.map(|(index, _)| index));
        Ok(chosen)
    }

    /// The error of fields without a column. It suggests one `fields` for all of them, with what the recipe maps already.
    fn missing(&self, file: &Path, missing: &[&Field], columns: &[(&str, Option<&DataType>)]) -> Error {
        let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
        let is_missing = |field: &Field| missing.iter().any(|one| one.canonical == field.canonical);
        let taken = self.fields.iter().filter(|field| !is_missing(field)).flat_map(|field| &field.columns);
        let taken: Vec<&str> = taken.map(String::as_str).collect();
        let mut free: Vec<&str> = names.iter().copied().filter(|name| !taken.contains(name)).collect();
        let (mut pairs, mut is_known) = (Vec::new(), true);
        for field in self.fields.iter().filter(|field| field.mapped || is_missing(field)) {
            let usual = || usual_names(field.canonical).iter().copied().find(|name| free.contains(name));
            let name = match is_missing(field) {
                false => Some(field.columns[0].as_str()),
                true => nearest(&field.columns[0], &free).or_else(usual),
            };
            free.retain(|one| Some(*one) != name);
            is_known &= name.is_some();
            pairs.push(format!("{} = \"{}\"", field.canonical, name.unwrap_or("…")));
        }
        let suggestion = match (is_known, pairs.join(", ")) {
            (true, pairs) => format!("; did you mean `fields = {{ {pairs} }}`?"),
            (false, pairs) => format!("; name the columns that hold them: `fields = {{ {pairs} }}`"),
        };
        let wanted: Vec<&str> = missing.iter().map(|field| field.columns[0].as_str()).collect();
        Error::MissingColumn {
            file: file.to_owned(),
            column: wanted.join("`, `"),
            field: missing[0].canonical,
            columns: if names.is_empty() { "none".to_owned() } else { list(&names) },
            suggestion,
        }
    }
}

impl Kind {
    fn expected(self) -> &'static str {
        match self {
            Kind::Text | Kind::MessageKey => "strings",
            Kind::Messages => "lists of messages",
            Kind::Answer => "strings or lists of messages",
            Kind::Truth => "true or false",
            Kind::Structure => "lists, objects or their JSON text",
            Kind::Integers => "lists of integers",
        }
    }

    /// Whether a column of that type can hold the field. A column of nulls can; each row then has its own error.
    fn accepts(self, data_type: &DataType) -> bool {
        let item = match data_type {
            DataType::Null => return true,
            DataType::Dictionary(_, values) => return self.accepts(values),
            DataType::List(item)
            | DataType::LargeList(item)
            | DataType::ListView(item)
            | DataType::LargeListView(item)
            | DataType::FixedSizeList(item, _) => Some(item.data_type()),
            _ => None,
        };
        match self {
            Kind::Text | Kind::MessageKey => data_type.is_string(),
            // Both also as JSON text.
            Kind::Messages => {
                let is_message = |item: &DataType| {
                    matches!(item, DataType::Struct(_) | DataType::Map(_, _) | DataType::Null)
                        || item.is_string()
                };
                // `datasets` makes columns of a list of messages.
                let is_columns = matches!(data_type, DataType::Struct(_));
                is_columns || data_type.is_string() || item.is_some_and(is_message)
            }
            Kind::Integers => {
                data_type.is_string() || item.is_some_and(|item| item.is_integer() || item.is_null())
            }
            Kind::Answer => {
                matches!(data_type, DataType::Struct(_) | DataType::Map(_, _))
                    || Kind::Messages.accepts(data_type)
            }
            Kind::Structure => {
                let is_object = matches!(data_type, DataType::Struct(_) | DataType::Map(_, _));
                item.is_some() || is_object || data_type.is_string()
            }
            Kind::Truth => {
                matches!(data_type, DataType::Boolean) || data_type.is_integer() || data_type.is_string()
            }
        }
    }
}

/// A format as the recipe writes it.
fn format_name(format: Format) -> &'static str {
    match format {
        Format::Messages => "messages",
        Format::Alpaca => "alpaca",
        Format::PromptCompletion => "prompt-completion",
        Format::Preference => "preference",
        Format::Feedback => "feedback",
        Format::Text => "text",
        Format::Tokens => "tokens",
    }
}

/// Other usual names of a field, for suggestions only.
pub(in crate::data) fn usual_names(canonical: &str) -> &'static [&'static str] {
    match canonical {
        "messages" => &["conversation", "dialog", "chat", "turns"],
        "instruction" => &["question", "prompt"],
        "output" | "completion" => &["response", "answer", "output", "completion", "target"],
        "prompt" => &["question", "instruction", "input", "query"],
        "chosen" => &["preferred", "win", "answer_chosen"],
        "rejected" => &["dispreferred", "lose", "answer_rejected"],
        "label" => &["desirable", "thumbs_up", "feedback"],
        "text" => &["content", "document", "body"],
        "input_ids" => &["tokens", "ids"],
        _ => &[],
    }
}

fn nearest<'a>(wanted: &str, names: &[&'a str]) -> Option<&'a str> {
    let near = names.iter().map(|name| (strsim::damerau_levenshtein(wanted, name), *name));
    near.filter(|(distance, _)| *distance <= wanted.len().div_ceil(3)).min().map(|(_, name)| name)
}

fn list(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
