//! Hunyuan, dense: norms of queries and keys behind their rotation, a fixed stretch of the rotary base. Defaults:
//! `HunYuanDenseV1Config`.

use std::sync::Arc;

use serde_json::json;

use super::Declared;
use super::layer_types::uniform_layer_types;
use super::shared::{Defaults, Shared};
use crate::model::Error;
use crate::model::config::ConfigReader;
use crate::model::decoder_spec::DecoderSpec;
use crate::model::gguf_spec::{GgufSpec, RotaryPairs};
use crate::model::parts::{AttentionSpec, HeadNorms, LayerSpec, pre};
use crate::model::rotary::{RotarySpec, Rules};

pub(super) const HUNYUAN: Declared = Declared {
    model_type: "hunyuan_v1_dense",
    architecture: "HunYuanDenseV1ForCausalLM",
    models: "Hunyuan (dense)",
    read,
};

fn read(config: &ConfigReader<'_>) -> Result<DecoderSpec, Error> {
    config.must_be("pretraining_tp", &[json!(1)])?;
    config.must_be("mlp_bias", &[json!(false)])?;
    config.must_be("use_qk_norm", &[json!(true)])?;
    config.must_be("use_cla", &[json!(false)])?;
    config.must_be("use_rotary_pos_emb", &[json!(true)])?;
    config.must_be("position_embedding_xdrope", &[json!(false)])?;
    config.must_be("norm_type", &[json!("rms"), json!("hf_rms"), json!("fused")])?;
    config.ignore(&[
        "attention_head_dim",
        "add_classification_head",
        "class_num",
        "pool_type",
        "skip_cls_token",
        "cla_share_factor",
        "dense_list",
        "enable_attention_fp32_softmax",
        "enable_lm_head_fp32",
        "eod_token_id",
        "im_end_id",
        "im_newline_id",
        "im_start_id",
        "image_token_id",
        "mask_init_id",
        "org_vocab_size",
        "pad_id",
        "text_end_id",
        "text_start_id",
    ]);
    let defaults = Defaults {
        vocab_size: 290_943,
        epsilon: 1e-5,
        published_code: &["configuration_hunyuan.", "hunyuan.", "modeling_hunyuan."],
        ..Defaults::LLAMA
    };
    let shared = Shared::read(config, &defaults)?;
    uniform_layer_types(config, shared.layers, false)?;
    let bias = config.flag("attention_bias")?.unwrap_or(false);
    let norms = shared.head_norms("self_attn.query_layernorm", "self_attn.key_layernorm");
    let head_norms = Some(HeadNorms { follow_rotation: true, ..norms });
    let attention = AttentionSpec { head_norms, ..shared.attention() }.biased(bias, bias);
    let blocks = [
        pre(shared.norm("input_layernorm", "attn_norm"), attention),
        pre(shared.norm("post_attention_layernorm", "ffn_norm"), shared.gated("mlp")),
    ];
    let layer = Arc::new(LayerSpec::of(shared.hidden_size, blocks));
    let rotary = RotarySpec::read(config, &Rules { takes_alpha: true, ..shared.rotary_rules() })?;
    let gguf = GgufSpec::of("hunyuan-dense", RotaryPairs::Halves);
    Ok(shared.decoder_with(vec![rotary], &HUNYUAN, vec![layer; shared.layers], Some(gguf)))
}
