//! Shapes of well-known models by name: what a bench needs of them, as their config.json would say it.

use serde_json::{Value, json};

use super::decoder_spec::DecoderSpec;
use super::{Error, family};

/// One model's shape.
struct Shape {
    name: &'static str,
    family: &'static str,
    hidden: u32,
    intermediate: u32,
    layers: u32,
    heads: u32,
    key_value_heads: u32,
    head_dim: u32,
    vocabulary: u32,
    tied: bool,
    /// Value heads of recurrent layers; 0 in models without any.
    recurrent_heads: u32,
    experts: Option<Experts>,
}

/// The experts of a mixture.
struct Experts {
    count: u32,
    used: u32,
    /// Of gate and up of each.
    width: u32,
    /// The same of the expert that every token passes; 0: there is none.
    shared: u32,
}

const fn shape(
    name: &'static str,
    family: &'static str,
    [hidden, intermediate, layers]: [u32; 3],
    [heads, key_value_heads, head_dim]: [u32; 3],
    vocabulary: u32,
    tied: bool,
) -> Shape {
    Shape {
        name,
        family,
        hidden,
        intermediate,
        layers,
        heads,
        key_value_heads,
        head_dim,
        vocabulary,
        tied,
        recurrent_heads: 0,
        experts: None,
    }
}

/// A mixture, whose output head is a table of its own.
const fn mixture(
    name: &'static str,
    family: &'static str,
    sizes: [u32; 3],
    heads: [u32; 3],
    vocabulary: u32,
    [count, used, width, shared]: [u32; 4],
) -> Shape {
    let experts = Some(Experts { count, used, width, shared });
    Shape { experts, ..shape(name, family, sizes, heads, vocabulary, false) }
}

/// With the embeddings as its output head.
const fn tied(shape: Shape) -> Shape {
    Shape { tied: true, ..shape }
}

/// With recurrent layers of so many value heads.
const fn recurrent(shape: Shape, recurrent_heads: u32) -> Shape {
    Shape { recurrent_heads, ..shape }
}

/// As the models' config.json files on the hub say.
const SHAPES: [Shape; 38] = [
    shape("stories-15m", "llama", [288, 768, 6], [6, 6, 48], 32_000, true),
    shape("smollm2-135m", "llama", [576, 1536, 30], [9, 3, 64], 49_152, true),
    shape("smollm2-360m", "llama", [960, 2560, 32], [15, 5, 64], 49_152, true),
    shape("smollm2-1.7b", "llama", [2048, 8192, 24], [32, 32, 64], 49_152, true),
    shape("qwen2.5-0.5b", "qwen2", [896, 4864, 24], [14, 2, 64], 151_936, true),
    shape("qwen2.5-1.5b", "qwen2", [1536, 8960, 28], [12, 2, 128], 151_936, true),
    shape("qwen2.5-3b", "qwen2", [2048, 11_008, 36], [16, 2, 128], 151_936, true),
    shape("qwen2.5-7b", "qwen2", [3584, 18_944, 28], [28, 4, 128], 152_064, false),
    shape("qwen2.5-14b", "qwen2", [5120, 13_824, 48], [40, 8, 128], 152_064, false),
    shape("qwen2.5-32b", "qwen2", [5120, 27_648, 64], [40, 8, 128], 152_064, false),
    shape("qwen2.5-72b", "qwen2", [8192, 29_568, 80], [64, 8, 128], 152_064, false),
    shape("qwen3-0.6b", "qwen3", [1024, 3072, 28], [16, 8, 128], 151_936, true),
    shape("qwen3-1.7b", "qwen3", [2048, 6144, 28], [16, 8, 128], 151_936, true),
    shape("qwen3-4b", "qwen3", [2560, 9728, 36], [32, 8, 128], 151_936, true),
    shape("qwen3-8b", "qwen3", [4096, 12_288, 36], [32, 8, 128], 151_936, false),
    shape("qwen3-14b", "qwen3", [5120, 17_408, 40], [40, 8, 128], 151_936, false),
    shape("qwen3-32b", "qwen3", [5120, 25_600, 64], [64, 8, 128], 151_936, false),
    recurrent(shape("qwen3.5-0.8b", "qwen3_5_text", [1024, 3584, 24], [8, 2, 256], 248_320, true), 16),
    recurrent(shape("qwen3.5-2b", "qwen3_5_text", [2048, 6144, 24], [8, 2, 256], 248_320, true), 16),
    recurrent(shape("qwen3.5-4b", "qwen3_5_text", [2560, 9216, 32], [16, 4, 256], 248_320, true), 32),
    recurrent(shape("qwen3.5-9b", "qwen3_5_text", [4096, 12_288, 32], [16, 4, 256], 248_320, false), 32),
    recurrent(shape("qwen3.5-27b", "qwen3_5_text", [5120, 17_408, 64], [24, 4, 256], 248_320, false), 48),
    shape("lfm2-350m", "lfm2", [1024, 4608, 16], [16, 8, 64], 65_536, true),
    shape("lfm2-700m", "lfm2", [1536, 6912, 16], [24, 8, 64], 65_536, true),
    shape("lfm2-1.2b", "lfm2", [2048, 8192, 16], [32, 8, 64], 65_536, true),
    shape("llama-3.2-1b", "llama", [2048, 8192, 16], [32, 8, 64], 128_256, true),
    shape("llama-3.2-3b", "llama", [3072, 8192, 28], [24, 8, 128], 128_256, true),
    shape("llama-3.1-8b", "llama", [4096, 14_336, 32], [32, 8, 128], 128_256, false),
    shape("llama-3.3-70b", "llama", [8192, 28_672, 80], [64, 8, 128], 128_256, false),
    shape("llama-3.1-405b", "llama", [16_384, 53_248, 126], [128, 8, 128], 128_256, false),
    shape("mistral-7b", "mistral", [4096, 14_336, 32], [32, 8, 128], 32_768, false),
    shape("mistral-small-24b", "mistral", [5120, 32_768, 40], [32, 8, 128], 131_072, false),
    mixture("olmoe-1b-7b", "olmoe", [2048, 1024, 16], [16, 16, 128], 50_304, [64, 8, 1024, 0]),
    mixture("gpt-oss-20b", "gpt_oss", [2880, 2880, 24], [64, 8, 64], 201_088, [32, 4, 2880, 0]),
    mixture("qwen3-30b-a3b", "qwen3_moe", [2048, 6144, 48], [32, 4, 128], 151_936, [128, 8, 768, 0]),
    tied(mixture(
        "gemma-4-26b-a4b",
        "gemma4_text",
        [2816, 2112, 30],
        [16, 8, 256],
        262_144,
        [128, 8, 704, 0],
    )),
    mixture("mixtral-8x7b", "mixtral", [4096, 14_336, 32], [32, 8, 128], 32_000, [8, 2, 14_336, 0]),
    mixture("qwen2-57b-a14b", "qwen2_moe", [3584, 18_944, 28], [28, 4, 128], 151_936, [64, 8, 2560, 20_480]),
];

/// The names there are.
pub fn names() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|shape| shape.name)
}

/// The decoder of a name; `None` for one that is not listed.
pub fn spec(name: &str) -> Option<Result<DecoderSpec, Error>> {
    SHAPES.iter().find(|shape| shape.name == name).map(|shape| family::decoder_spec(&shape.config()))
}

impl Shape {
    fn config(&self) -> Value {
        let mut config = json!({
            "model_type": self.family,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-6,
            "rope_theta": 500_000.0,
            "hidden_act": "silu",
            "torch_dtype": "bfloat16",
        });
        // Elsewhere it follows from the hidden size.
        if self.heads * self.head_dim != self.hidden {
            config["head_dim"] = json!(self.head_dim);
        }
        if self.recurrent_heads > 0 {
            config["linear_num_value_heads"] = json!(self.recurrent_heads);
        }
        if self.family == "lfm2" {
            config["full_attn_idxs"] = json!([2, 5, 8, 10, 12, 14]);
            config["block_auto_adjust_ff_dim"] = json!(false);
        }
        if self.family == "gemma4_text" {
            config = json!({
                "model_type": self.family, "hidden_size": self.hidden, "intermediate_size": self.intermediate,
                "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
                "num_key_value_heads": self.key_value_heads, "head_dim": self.head_dim, "global_head_dim": 512,
                "num_global_key_value_heads": 2, "attention_k_eq_v": true, "vocab_size": self.vocabulary,
                "sliding_window": 1024, "hidden_size_per_layer_input": 0, "final_logit_softcapping": 30.0,
                "enable_moe_block": true, "torch_dtype": "bfloat16",
            });
        }
        if self.family == "mistral" {
            config["sliding_window"] = Value::Null;
        }
        if let Some(Experts { count, used, width, shared }) = self.experts {
            config["num_experts"] = json!(count);
            if self.family != "gemma4_text" {
                config["num_experts_per_tok"] = json!(used);
            }
            // Elsewhere it is the intermediate size.
            if width != self.intermediate {
                config["moe_intermediate_size"] = json!(width);
            }
            if shared > 0 {
                config["shared_expert_intermediate_size"] = json!(shared);
            }
            match self.family {
                "gemma4_text" => config["top_k_experts"] = json!(used),
                "qwen3_moe" => config["norm_topk_prob"] = json!(true),
                "gpt_oss" => {
                    config["quantization_config"] = json!({ "quant_method": "mxfp4" });
                    config["rope_scaling"] = json!({
                        "rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": false,
                    });
                }
                _ => {}
            }
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_is_a_decoder_of_about_its_name() {
        for name in names() {
            let found = spec(name).unwrap().unwrap_or_else(|error| panic!("{name}: {error}"));
            // The largest number that has a unit: others count what a token passes.
            let size = |part: &str| {
                let (number, unit) = part.split_at(part.len() - 1);
                let factors = number.split('x').map(str::parse::<f64>).collect::<Result<Vec<_>, _>>().ok()?;
                let unit = [("b", 1e9), ("m", 1e6)].into_iter().find(|(name, _)| *name == unit)?.1;
                Some(factors.into_iter().product::<f64>() * unit)
            };
            let expected = name.split('-').filter_map(size).fold(0.0, f64::max);
            let ratio = found.parameters() as f64 / expected;
            assert!((0.75..1.3).contains(&ratio), "{name}: {} parameters", found.parameters());
        }
        assert!(spec("gpt-2").is_none());
    }
}
