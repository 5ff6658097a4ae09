//! Models with towers for images or sound: their config.json has that of the text decoder inside, which is all that is run.

use serde_json::{Map, Value};

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
    /// Keys of the towers and of their place in a prompt.
    beside: &'static [&'static str],
}

/// Keys beside the text decoders of Qwen3.5, dense and with experts.
const QWEN3_5: [&str; 6] = [
    "image_token_id",
    "language_model_only",
    "video_token_id",
    "vision_config",
    "vision_end_token_id",
    "vision_start_token_id",
];

const WRAPPERS: [Wrapper; 4] = [
    Wrapper {
        model_type: "mistral3",
        architecture: "Mistral3ForConditionalGeneration",
        text: "mistral",
        beside: &[
            "image_token_id",
            "image_token_index",
            "multimodal_projector_bias",
            "projector_hidden_act",
            "spatial_merge_size",
            "vision_config",
            "vision_feature_layer",
        ],
    },
    Wrapper {
        model_type: "gemma4",
        architecture: "Gemma4ForConditionalGeneration",
        text: "gemma4_text",
        beside: &[
            "audio_config",
            "audio_token_id",
            "boa_token_id",
            "boi_token_id",
            "eoa_token_id",
            "eoa_token_index",
            "eoi_token_id",
            "image_token_id",
            "video_token_id",
            "vision_config",
            "vision_soft_tokens_per_image",
        ],
    },
    Wrapper {
        model_type: "qwen3_5",
        architecture: "Qwen3_5ForConditionalGeneration",
        text: "qwen3_5_text",
        beside: &QWEN3_5,
    },
    Wrapper {
        model_type: "qwen3_5_moe",
        architecture: "Qwen3_5MoeForConditionalGeneration",
        text: "qwen3_5_moe_text",
        beside: &QWEN3_5,
    },
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
        let Some(Value::Object(text)) = config.get("text_config") else {
            return Err(config.fail("text_config", "is missing; it describes the text decoder"));
        };
        config.ignore(wrapper.beside);
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
