//! Which template a run uses: the recipe's, else `chat_template.jinja`, else the one in tokenizer_config.json, else that
//! in chat_template.json.
//! Reads files and renders nothing.

use std::path::Path;

use serde_json::Value;

use super::{ChatTemplate, TemplateError};
use crate::assets::folder::ADDITIONAL_TEMPLATES;
use crate::data::spec::ChatTemplateSource;
use crate::data::tokenize::Tokenizer;

/// ChatML, as OpenAI published it and most open models use it. It writes no BOS.
pub const CHATML: &str = "\
{%- for message in messages -%}
{{ '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
";

impl ChatTemplate {
    /// The template for the model in `folder`: `choice` if the recipe makes one, else the model's own; `None` where
    /// the model has none.
    ///
    /// A `chat_template.jinja` beats the key in tokenizer_config.json, as in transformers; of named templates (a list there,
    /// or files in `additional_chat_templates/`), the one called `default` is taken, and for conversations with tools the
    /// one called `tool_use`.
    ///
    /// # Errors
    /// An unreadable file, a `chat_template` of another shape, invalid Jinja.
    pub fn open(
        choice: Option<&ChatTemplateSource>,
        folder: &Path,
        tokenizer: &Tokenizer,
    ) -> Result<Option<ChatTemplate>, TemplateError> {
        let found = match choice {
            Some(ChatTemplateSource::ChatMl) => Some((CHATML.into(), "chatml (built-in)".to_owned())),
            Some(ChatTemplateSource::File(file)) => Some((read(file)?.into(), file.display().to_string())),
            None => {
                let file = folder.join("chat_template.jinja");
                if file.is_file() {
                    let tool_use = folder.join(ADDITIONAL_TEMPLATES).join("tool_use.jinja");
                    let tool_use = tool_use.is_file().then(|| read(&tool_use)).transpose()?;
                    Some((Declared { default: read(&file)?, tool_use }, file.display().to_string()))
                } else {
                    let origin = folder.join("tokenizer_config.json").display().to_string();
                    match declared(tokenizer.config(), &origin)? {
                        Some(declared) => Some((declared, origin)),
                        None => of_processor(&folder.join("chat_template.json"))?,
                    }
                }
            }
        };
        let Some((Declared { default, tool_use }, origin)) = found else { return Ok(None) };
        let variables = tokenizer.template_variables();
        let template = ChatTemplate::new(default, origin, variables, tokenizer.special_texts())?;
        match tool_use {
            Some(source) => template.with_tool_use(&source).map(Some),
            None => Ok(Some(template)),
        }
    }
}

fn read(file: &Path) -> Result<String, TemplateError> {
    std::fs::read_to_string(file)
        .map_err(|error| TemplateError::Io { file: file.display().to_string(), problem: error.to_string() })
}

/// The template that a processor of text and images was saved with.
fn of_processor(file: &Path) -> Result<Option<(Declared, String)>, TemplateError> {
    if !file.is_file() {
        return Ok(None);
    }
    let origin = file.display().to_string();
    let problem = |problem: String| TemplateError::Declaration { origin: origin.clone(), problem };
    let value: Value = serde_json::from_str(&read(file)?).map_err(|error| problem(error.to_string()))?;
    Ok(declared(&value, &origin)?.map(|declared| (declared, origin.clone())))
}

/// The templates of a model.
#[derive(Debug, PartialEq, Eq)]
struct Declared {
    default: String,
    /// For conversations with tools, in place of the default.
    tool_use: Option<String>,
}

impl<T: Into<String>> From<T> for Declared {
    fn from(default: T) -> Self {
        Self { default: default.into(), tool_use: None }
    }
}

/// The templates that a tokenizer_config.json declares.
fn declared(config: &Value, origin: &str) -> Result<Option<Declared>, TemplateError> {
    let problem = |problem: String| TemplateError::Declaration { origin: origin.to_owned(), problem };
    match config.get("chat_template") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(source)) => Ok(Some(source.as_str().into())),
        Some(Value::Array(named)) => {
            let field = |entry: &Value, key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
            let called = |name| {
                let entry = named.iter().find(|entry| field(entry, "name").as_deref() == Some(name));
                entry.and_then(|entry| field(entry, "template"))
            };
            match called("default") {
                Some(default) => Ok(Some(Declared { default, tool_use: called("tool_use") })),
                None => {
                    let names: Vec<String> = named.iter().filter_map(|entry| field(entry, "name")).collect();
                    Err(problem(format!(
                        "none of the named templates is called `default` (found: {}); save the one you want to a file \
                         and name it in `data.chat_template`",
                        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
                    )))
                }
            }
        }
        Some(other) => Err(problem(format!("expected a string or a list of named templates, found {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::example::{Context, Conversation, Message};
    use serde_json::json;

    #[test]
    fn d12_a_template_for_tools_may_be_a_file_beside_the_default_one() {
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/quickstart/base");
        let folder = tempfile::tempdir().unwrap();
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(base.join(file), folder.path().join(file)).unwrap();
        }
        std::fs::create_dir(folder.path().join(ADDITIONAL_TEMPLATES)).unwrap();
        std::fs::write(folder.path().join("chat_template.jinja"), "plain").unwrap();
        std::fs::write(folder.path().join(ADDITIONAL_TEMPLATES).join("tool_use.jinja"), "with tools")
            .unwrap();
        let tokenizer = Tokenizer::open(folder.path()).unwrap();
        let template = ChatTemplate::open(None, folder.path(), &tokenizer).unwrap().unwrap();
        let shown = |tools| {
            let context = Context { tools, ..Context::default() };
            let messages = vec![Message::new("user", "Hi")];
            template.render(&Conversation { messages, context, given: 0 }, false).unwrap()
        };
        assert_eq!(
            (shown(json!(null)), shown(json!([{"name": "f"}]))),
            ("plain".into(), "with tools".into())
        );
        // A processor's own, where the tokenizer has none.
        let alone = folder.path().join("alone");
        std::fs::create_dir(&alone).unwrap();
        assert!(of_processor(&alone.join("chat_template.json")).unwrap().is_none());
        std::fs::write(alone.join("chat_template.json"), r#"{"chat_template": "p"}"#).unwrap();
        let (found, origin) = of_processor(&alone.join("chat_template.json")).unwrap().unwrap();
        assert!(found == "p".into() && origin.ends_with("chat_template.json"));
    }

    #[test]
    fn the_declared_template_is_a_string_or_the_default_of_a_list() {
        let text = |config| declared(&config, "tokenizer_config.json");
        assert_eq!(text(json!({})).unwrap(), None);
        assert_eq!(text(json!({"chat_template": "a"})).unwrap(), Some("a".into()));
        let list = json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]);
        let both = Declared { default: "d".into(), tool_use: Some("t".into()) };
        assert_eq!(text(json!({"chat_template": list})).unwrap(), Some(both));
        let error = text(json!({"chat_template": [{"name": "rag", "template": "r"}]})).unwrap_err();
        assert!(error.to_string().contains("found: rag"), "{error}");
        assert!(text(json!({"chat_template": 3})).is_err());
    }
}
