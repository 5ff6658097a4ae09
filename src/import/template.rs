//! Chat templates that other tools carry under names of their own, and the models whose turns those write.

use super::draft::{Draft, Kind};
use super::source::Node;

/// How names of templates begin, and the models that they are for.
const MODELS: [(&str, &str); 23] = [
    ("gemma4", "Gemma 4"),
    ("gemma3", "Gemma 3"),
    ("gemma", "Gemma"),
    ("phi", "Phi"),
    ("ministral", "Ministral"),
    ("mistral", "Mistral"),
    ("llama4", "Llama 4"),
    ("llama3", "Llama 3"),
    ("llama", "Llama"),
    ("qwen3", "Qwen3"),
    ("qwen", "Qwen"),
    ("granite", "Granite"),
    ("glm", "GLM"),
    ("olmo", "OLMo"),
    ("smollm", "SmolLM"),
    ("command", "Command R"),
    ("cohere", "Command R"),
    ("exaone", "EXAONE"),
    ("falcon", "Falcon"),
    ("ernie", "ERNIE"),
    ("seed", "Seed-OSS"),
    ("hunyuan", "Hunyuan"),
    ("muse", "Muse Glimmer"),
];

/// The models that a template is for, by its name there (`gemma3`, `phi_4`, `qwen3_nothink`).
fn models(name: &str) -> Option<&'static str> {
    let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    let plain = plain.to_ascii_lowercase();
    MODELS.iter().find(|(start, _)| plain.starts_with(start)).map(|(_, models)| *models)
}

/// A chat template by a name that the other tool carries.
pub(super) fn template(key: &str, node: &Node, draft: &mut Draft) {
    match node.text() {
        Some("chatml") => draft.set("data.chat_template", "chatml"),
        Some(file) if file.ends_with(".jinja") || file.ends_with(".j2") => {
            draft.set("data.chat_template", file)
        }
        Some(name) if name.starts_with("tokenizer_default") => {}
        Some(name) if name.contains("{%") || name.contains("{{") => {
            draft.note(
                Kind::Decide,
                key,
                node,
                "save the template to a .jinja file and name it in `data.chat_template`",
            );
        }
        name => {
            let of = match name.and_then(models) {
                Some(models) => format!("the other tool's template for {models}"),
                None => "a template of the other tool".to_owned(),
            };
            let text = format!(
                "`{node}` is {of}; here the base model's own is used, which may differ: compare with `tune inspect`"
            );
            draft.note(Kind::Changed, key, node, text);
        }
    }
}

/// What is used here in place of a template that rows were written for there.
pub(super) fn own(name: &str) -> String {
    match models(name) {
        Some(models) => {
            format!("the base model's chat template (a {models} chat model has one in its tokenizer)")
        }
        None => "the base model's chat template".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::models;

    #[test]
    fn names_of_several_tools_are_known() {
        for (name, expected) in [
            ("gemma3n", Some("Gemma 3")),
            ("gemma", Some("Gemma")),
            ("phi_4", Some("Phi")),
            ("mistral_v7_tekken", Some("Mistral")),
            ("llama-3", Some("Llama 3")),
            ("qwen3_nothink", Some("Qwen3")),
            ("command_a", Some("Command R")),
            ("alpaca", None),
        ] {
            assert_eq!(models(name), expected, "{name}");
        }
    }
}
