//! The Modelfile beside a GGUF file, for `ollama create`.
//!
//! Ollama uses Go templates, not Jinja. If test renderings prove that the model's template is ChatML, a Go version of
//! it is written. Any other template stays in the GGUF file, where Ollama recognises common ones; a comment says so.

use crate::data::example::Message;
use crate::data::template::ChatTemplate;

/// Name of the file.
pub const FILE: &str = "Modelfile";

/// ChatML as a Go template.
const CHATML: &str = "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n";

/// The inputs of a Modelfile.
pub struct Modelfile<'a> {
    /// The file of the model, or of the adapter.
    pub file: &'a str,
    /// The base's name, if the file is an adapter.
    pub base: Option<&'a str>,
    /// The chat template.
    pub template: Option<&'a ChatTemplate>,
    /// The texts that end an answer.
    pub stops: &'a [String],
}

impl Modelfile<'_> {
    /// The content of the file.
    pub fn text(&self) -> String {
        let mut text = String::from("# ollama create NAME -f Modelfile\n");
        match self.base {
            None => text.push_str(&format!("FROM ./{}\n", self.file)),
            Some(base) => {
                let base = one_line(base);
                text.push_str(&format!(
                    "# The base model as a GGUF file, from `tune export {base} --gguf f16 --out base` or quantized;\n\
                     # the name of the same model in Ollama's library works too.\nFROM ./base/model-f16.gguf\nADAPTER ./{}\n",
                    self.file
                ));
            }
        }
        match self.template {
            Some(template) if is_chatml(template) => text.push_str(&format!("TEMPLATE \"\"\"{CHATML}\"\"\"\n")),
            Some(_) if self.base.is_some() => text.push_str(
                "# No TEMPLATE: Ollama does not read Jinja, the language of the chat template. It uses the base's template \
                 if it\n# knows that one; `ollama show --template NAME` shows the template in use.\n",
            ),
            Some(_) => text.push_str(
                "# No TEMPLATE: the chat template is Jinja, stored in the GGUF file (tokenizer.chat_template). Ollama uses \
                 it\n# if it recognises it; `ollama show --template NAME` shows the template in use.\n",
            ),
            None => text.push_str("# No TEMPLATE: the model has no chat template.\n"),
        }
        for stop in self.stops {
            match stop.contains(['"', '\n', '\r']) {
                false => text.push_str(&format!("PARAMETER stop \"{stop}\"\n")),
                true => text.push_str(&format!(
                    "# Another stop string, which a Modelfile cannot contain: {stop:?}\n"
                )),
            }
        }
        text
    }
}

fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

/// Whether a template renders exactly ChatML: for every order of roles and unusual white space, without adding or
/// dropping a system message or a part of an answer.
pub fn is_chatml(template: &ChatTemplate) -> bool {
    let contents = ["Hello.", "  two\n\nlines {{ braces }} \n", "<think>\na\n</think>\n\nb", "ä\t", ""];
    let orders: [&[&str]; 5] = [
        &["user"],
        &["system", "user"],
        &["user", "assistant", "user"],
        &["system", "user", "assistant", "user"],
        &["user", "assistant", "user", "assistant", "user", "assistant", "user"],
    ];
    orders.iter().enumerate().all(|(shift, roles)| {
        (0..contents.len()).all(|first| {
            let messages: Vec<Message> = roles
                .iter()
                .enumerate()
                .map(|(at, role)| Message {
                    role: (*role).to_owned(),
                    content: contents[(first + at + shift) % contents.len()].to_owned(),
                    extra: serde_json::Map::new(),
                })
                .collect();
            let turn =
                |message: &Message| format!("<|im_start|>{}\n{}<|im_end|>\n", message.role, message.content);
            let expected: String = messages.iter().map(turn).collect();
            template
                .render(&messages.into(), true)
                .is_ok_and(|text| text == expected + "<|im_start|>assistant\n")
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::template::CHATML as OWN;

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::new(source.to_owned(), "test", [], ["<|im_end|>".to_owned()]).unwrap()
    }

    #[test]
    fn chatml_is_told_from_what_only_looks_like_it() {
        assert!(is_chatml(&template(OWN)));
        let trimmed = OWN.replace("message.content", "message.content | trim");
        assert!(!is_chatml(&template(&trimmed)));
        let system = format!(
            "{{% if messages[0].role != 'system' %}}<|im_start|>system\nHi<|im_end|>\n{{% endif %}}{OWN}"
        );
        assert!(!is_chatml(&template(&system)));
    }

    #[test]
    fn a_model_and_an_adapter() {
        let own = template(OWN);
        let stops = ["<|im_end|>".to_owned(), "a\"b".to_owned()];
        let model =
            Modelfile { file: "model-q8_0.gguf", base: None, template: Some(&own), stops: &stops }.text();
        assert_eq!(
            model,
            "# ollama create NAME -f Modelfile\nFROM ./model-q8_0.gguf\nTEMPLATE \"\"\"{{- range .Messages }}\
             <|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n\"\"\"\n\
             PARAMETER stop \"<|im_end|>\"\n# Another stop string, which a Modelfile cannot contain: \"a\\\"b\"\n"
        );
        let other = template("{{ messages[0].content }}");
        let adapter = Modelfile {
            file: "adapter-f32.gguf",
            base: Some("org/base"),
            template: Some(&other),
            stops: &[],
        }
        .text();
        assert!(adapter.contains("ADAPTER ./adapter-f32.gguf") && adapter.contains("tune export org/base"));
        assert!(!adapter.contains("\nTEMPLATE"), "{adapter}");
    }
}
