//! Models with towers for images or sound: their config.json has that of the text decoder inside, which is all that is run.

use serde_json::{Map, Value};

use crate::assets::json::kind;
use crate::model::Error;
use crate::model::config::ConfigReader;

/// A model whose text decoder is of a known family.
pub(super) struct Wrapper {
    /// As `model_type` spells it.
    pub(super) model_type: &'static str,
    /// As `architectures` spells it.
    architecture: &'static str,
    /// The `model_type` of its text decoder where that is not named.
    text: &'static str,
}

const fn wrapper(model_type: &'static str, architecture: &'static str, text: &'static str) -> Wrapper {
    Wrapper { model_type, architecture, text }
}

const WRAPPERS: [Wrapper; 7] = [
    wrapper("mistral3", "Mistral3ForConditionalGeneration", "mistral"),
    wrapper("qwen3_5", "Qwen3_5ForConditionalGeneration", "qwen3_5_text"),
    wrapper("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe_text"),
    wrapper("gemma3", "Gemma3ForConditionalGeneration", "gemma3_text"),
    wrapper("gemma4", "Gemma4ForConditionalGeneration", "gemma4_text"),
    wrapper("muse_glimmer", "MuseGlimmerForConditionalGeneration", "muse_glimmer_text"),
    wrapper("gemma4_unified", "Gemma4UnifiedForConditionalGeneration", "gemma4_unified_text"),
];

/// Keys of the towers and of their place in a prompt.
const BESIDE: [&str; 26] = [
    "audio_config",
    "audio_token_id",
    "audio_token_index",
    "boa_token_id",
    "boa_token_index",
    "boi_token_id",
    "boi_token_index",
    "eoa_token_id",
    "eoa_token_index",
    "eoi_token_id",
    "eoi_token_index",
    "image_token_id",
    "image_token_index",
    "language_model_only",
    "mm_tokens_per_image",
    "multimodal_projector_bias",
    "out_hidden_size",
    "projector_hidden_act",
    "projector_hidden_size",
    "spatial_merge_size",
    "video_token_id",
    "vision_config",
    "vision_end_token_id",
    "vision_feature_layer",
    "vision_soft_tokens_per_image",
    "vision_start_token_id",
];

/// Keys that stand outside the text decoder's part and hold for it too.
const SHARED: [&str; 4] = ["dtype", "torch_dtype", "quantization_config", "tie_word_embeddings"];

/// A wrapper, the configuration of its text decoder, and the keys around that which are not read.
type Wrapped = (&'static Wrapper, Value, Vec<String>);

impl Wrapper {
    /// The wrapper that config.json describes.
    ///
    /// # Errors
    /// A key of the wrapper that is not understood; no text decoder.
    pub(super) fn of(config: &Value) -> Result<Option<Wrapped>, Error> {
        let config = ConfigReader::new(config)?;
        let architectures = config.texts("architectures")?.unwrap_or_default();
        let name = config.text("model_type")?;
        let is = |wrapper: &&Self| {
            name == Some(wrapper.model_type)
                || name.is_none() && architectures.contains(&wrapper.architecture)
        };
        let Some(wrapper) = WRAPPERS.iter().find(is) else { return Ok(None) };
        let text = match config.get("text_config") {
            Some(Value::Object(text)) => text,
            Some(other) => {
                let message =
                    format!("is {}; expected an object that describes the text decoder", kind(other));
                return Err(config.fail("text_config", message));
            }
            None => return Err(config.fail("text_config", "is missing; it describes the text decoder")),
        };
        config.ignore(&BESIDE);
        let mut text: Map<String, Value> = text.clone();
        // The text decoder's own class, or none; the wrapper's was looked at here.
        text.remove("architectures");
        text.entry("model_type").or_insert_with(|| Value::from(wrapper.text));
        for key in SHARED {
            if let Some(value) = config.get(key)
                && text.get(key).is_none_or(Value::is_null)
            {
                text.insert(key.to_owned(), value.clone());
            }
        }
        Ok(Some((wrapper, Value::Object(text), config.finish()?)))
    }
}
