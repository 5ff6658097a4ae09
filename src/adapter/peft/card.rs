//! The model card beside an adapter: the front matter that hubs read, and how to load it.

use super::Config;

/// The text of `README.md`.
pub(super) fn card(config: &Config) -> String {
    let base = config.base_model.as_deref().unwrap_or_default();
    // A JSON string is a Python string.
    let python = |text: &str| serde_json::Value::from(text).to_string();
    let revision =
        config.revision.as_ref().map_or(String::new(), |revision| format!(", revision={}", python(revision)));
    let patterns = match config.has_patterns() {
        true => " (some modules differ: `adapter_config.json`)",
        false => "",
    };
    let kind = if config.use_dora { "DoRA" } else { "LoRA" };
    let rslora = if config.use_rslora { ", rank-stabilized" } else { "" };
    format!(
        "---\n\
         base_model: {}\n\
         library_name: peft\n\
         pipeline_tag: text-generation\n\
         tags:\n\
         - {}\n\
         - lora\n\
         - tune\n\
         ---\n\
         \n\
         # {kind} adapter for {base}\n\
         \n\
         Rank {}, alpha {}{rslora}{patterns}. Trained with tune; what it was trained with stands in the metadata of\n\
         `adapter_model.safetensors`.\n\
         \n\
         ```python\n\
         from peft import PeftModel\n\
         from transformers import AutoModelForCausalLM\n\
         \n\
         base = AutoModelForCausalLM.from_pretrained({}{revision})\n\
         model = PeftModel.from_pretrained(base, \"this folder\")\n\
         ```\n",
        yaml(base),
        yaml(&format!("base_model:adapter:{base}")),
        config.rank,
        config.alpha,
        python(base),
    )
}

/// A YAML scalar: as it stands where that is safe, else quoted (JSON strings are YAML strings).
fn yaml(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '_' | '.' | ':');
    let safe = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(plain)
        && !text.ends_with(':')
        && !matches!(text, "true" | "false" | "null" | "yes" | "no" | "on" | "off");
    match safe {
        true => text.to_owned(),
        false => serde_json::Value::from(text).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strange_names_are_quoted() {
        assert_eq!(yaml("meta-llama/Llama-3.2-1B"), "meta-llama/Llama-3.2-1B");
        assert_eq!(yaml("base_model:adapter:a/b"), "base_model:adapter:a/b");
        assert_eq!(yaml("my models/x"), r#""my models/x""#);
        assert_eq!(yaml("null"), r#""null""#);
        assert_eq!(yaml("a: b"), r#""a: b""#);
        assert_eq!(yaml("x\n---\n"), r#""x\n---\n""#);
        assert_eq!(yaml(""), r#""""#);
    }
}
