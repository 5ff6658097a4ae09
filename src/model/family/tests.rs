//! config.json in every spelling, and every value that must be refused.

use serde_json::{Value, json};

use super::{decoder_spec, decoder_spec_of_run, decoder_spec_without};
use crate::model::decoder_spec::DecoderSpec;
use crate::model::dtype::FloatDtype;
use crate::model::parts::Heads;
use crate::model::rotary::RotaryScaling;

fn config(model_type: &str, changes: Value) -> Value {
    let mut config = json!({
        "model_type": model_type,
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    });
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn spec(model_type: &str, changes: Value) -> DecoderSpec {
    decoder_spec(&config(model_type, changes)).unwrap()
}

#[track_caller]
fn refused(model_type: &str, changes: Value, expected: &[&str]) {
    let message = match decoder_spec(&config(model_type, changes.clone())) {
        Ok(_) => panic!("{changes} was accepted"),
        Err(error) => error.to_string(),
    };
    for part in expected {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

#[test]
fn absent_keys_have_the_defaults_of_transformers() {
    let parts = |spec: &DecoderSpec| {
        let layer = spec.layers.last().unwrap();
        let (attention, gated) = (layer.attention().unwrap().clone(), layer.gated().unwrap());
        (attention, gated.intermediate())
    };
    let llama = decoder_spec(&json!({"model_type": "llama"})).unwrap();
    let (attention, intermediate) = parts(&llama);
    assert_eq!(
        (llama.vocab_size, llama.hidden_size, intermediate, llama.layers.len()),
        (32_000, 4096, 11_008, 32)
    );
    assert_eq!(attention.heads, Heads { queries: 32, keys: 32, dim: 128 });
    assert_eq!(
        (llama.final_norm.kind.epsilon(), llama.rotaries[0].theta, llama.max_position_embeddings),
        (1e-6, 1e4, 2048)
    );
    assert!(llama.layers.iter().all(|layer| layer.projections().all(|projection| !projection.bias)));
    assert_eq!((llama.tied, llama.dtype), (false, None));

    let mistral = decoder_spec(&json!({"model_type": "mistral"})).unwrap();
    let (attention, intermediate) = parts(&mistral);
    assert_eq!((intermediate, attention.heads.keys), (14_336, 8));
    assert_eq!((mistral.max_position_embeddings, attention.window), (131_072, Some(4096)));

    let qwen2 = decoder_spec(&json!({"model_type": "qwen2"})).unwrap();
    let (attention, intermediate) = parts(&qwen2);
    assert_eq!((qwen2.vocab_size, intermediate, attention.heads.keys), (151_936, 22_016, 32));
    assert_eq!(attention.window, None);
    assert!(attention.inner.projections()[2].bias && !attention.output.bias);

    let (attention, _) = parts(&spec("qwen3", json!({"num_key_value_heads": 2})));
    assert_eq!((attention.heads.dim, attention.head_norms.is_some()), (128, true));
}

#[test]
fn both_spellings_are_the_same_model() {
    let scaling = json!({"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32, "rope_type": "llama3"});
    let mut parameters = scaling.clone();
    parameters["rope_theta"] = json!(500_000.0);
    let old =
        spec("llama", json!({"rope_theta": 500_000.0, "rope_scaling": scaling, "torch_dtype": "bfloat16"}));
    let new = spec("llama", json!({"rope_parameters": parameters, "dtype": "bfloat16"}));
    assert_eq!(old, new);
    assert_eq!((old.dtype, old.rotaries[0].theta), (Some(FloatDtype::Bf16), 500_000.0));

    // The oldest spelling of the kind.
    let typed = spec("llama", json!({"rope_scaling": {"type": "linear", "factor": 4}}));
    assert_eq!(typed.rotaries[0].scaling, RotaryScaling::Linear { factor: 4.0 });
    let unscaled = spec("llama", json!({"rope_scaling": null, "rope_parameters": {"rope_type": "default"}}));
    assert_eq!(
        (unscaled.rotaries[0].scaling.clone(), unscaled.rotaries[0].theta),
        (RotaryScaling::None, 10_000.0)
    );
}

#[test]
fn yarn_falls_back_as_transformers_does() {
    let yarn = |parameters: Value| {
        spec("llama", json!({"max_position_embeddings": 64, "rope_parameters": parameters}))
    };
    let given = yarn(json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}));
    let RotaryScaling::Yarn { factor, attention_factor, beta_fast, beta_slow, truncate, .. } =
        given.rotaries[0].scaling
    else {
        panic!("not yarn")
    };
    assert_eq!((factor, beta_fast, beta_slow, truncate), (4.0, 32.0, 1.0, true));
    assert!((attention_factor - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12);
    let inferred = yarn(json!({"rope_type": "yarn", "factor": null, "original_max_position_embeddings": 16}));
    assert_eq!(inferred.rotaries[0], given_rotary(4.0, 16));
    let outer = spec(
        "llama",
        json!({"max_position_embeddings": 64, "original_max_position_embeddings": 16,
            "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}}),
    );
    assert_eq!(outer.rotaries[0], given_rotary(4.0, 16));
}

fn given_rotary(factor: f64, original: usize) -> crate::model::rotary::RotarySpec {
    spec(
        "llama",
        json!({"max_position_embeddings": 64, "rope_parameters":
            {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}}),
    )
    .rotaries
    .remove(0)
}

#[test]
fn dynamic_scaling_follows_the_longest_document() {
    let rotary = spec(
        "llama",
        json!({"max_position_embeddings": 24, "rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    )
    .rotaries
    .remove(0);
    let unscaled = spec("llama", json!({"max_position_embeddings": 24})).rotaries.remove(0);
    assert_eq!(rotary.inverse_frequencies(24), unscaled.inverse_frequencies(1));
    assert!(!rotary.depends_on_length(24) && rotary.depends_on_length(25));
    assert!(rotary.inverse_frequencies(40)[1] < rotary.inverse_frequencies(25)[1]);
}

#[test]
fn windows_per_layer() {
    let windows = |model_type, changes| -> Vec<Option<usize>> {
        let layers = spec(model_type, changes).layers;
        layers.iter().map(|layer| layer.attention().unwrap().window).collect()
    };
    let sliding = json!({"use_sliding_window": true, "sliding_window": 7, "max_window_layers": 1,
        "num_key_value_heads": 4});
    assert_eq!(windows("qwen2", sliding.clone()), [None, Some(7), Some(7)]);
    assert_eq!(windows("qwen3", sliding), [None, Some(7), Some(7)]);
    let off = json!({"use_sliding_window": false, "sliding_window": 7, "max_window_layers": 1,
        "num_key_value_heads": 4});
    assert_eq!(windows("qwen2", off), [None; 3]);
    let listed = json!({"use_sliding_window": true, "sliding_window": 7, "num_key_value_heads": 4,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]});
    assert_eq!(windows("qwen2", listed), [Some(7), None, Some(7)]);
    assert_eq!(windows("mistral", json!({"sliding_window": 5, "num_key_value_heads": 2})), [Some(5); 3]);
    assert_eq!(windows("mistral", json!({"sliding_window": null, "num_key_value_heads": null})), [None; 3]);
}

#[test]
fn real_configurations_are_understood() {
    // SmolLM2-135M, Qwen2.5-0.5B and Llama-2's extra keys.
    let smollm2 = spec(
        "llama",
        json!({"architectures": ["LlamaForCausalLM"], "is_llama_config": true, "rope_interleaved": false,
            "rope_theta": 100_000, "rope_scaling": null, "tie_word_embeddings": true, "pretraining_tp": 1,
            "attention_bias": false, "attention_dropout": 0.0, "mlp_bias": false, "use_cache": true,
            "transformers.js_config": {"dtype": "q4"}, "initializer_range": 0.04, "pad_token_id": 2}),
    );
    assert!(smollm2.tied);
    spec(
        "qwen2",
        json!({"architectures": ["Qwen2ForCausalLM"], "use_mrope": false, "use_sliding_window": false,
            "sliding_window": 32_768, "max_window_layers": 24, "num_key_value_heads": 2, "hidden_act": "silu",
            "_attn_implementation_autoset": true, "unsloth_fixed": true}),
    );
    spec(
        "llama",
        json!({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true},
            "temperature": 0.6, "max_length": 4096, "id2label": {"0": "LABEL_0"}, "sliding_window": null}),
    );
}

#[test]
fn what_changes_the_maths_is_refused() {
    refused("llama", json!({"logits_scaling": 8.0}), &["`logits_scaling` = 8.0", "not understood"]);
    refused(
        "llama",
        json!({"embedding_multiplier": 12, "residual_multiplier": 0.2}),
        &["embedding_", "residual_"],
    );
    refused("llama", json!({"final_logit_softcapping": 30.0}), &["final_logit_softcapping"]);
    refused("llama", json!({"attention_flag": false}), &["attention_flag", "ignore_config_keys"]);
    refused("llama", json!({"resid_pdrop": 0.1}), &["resid_pdrop"]);
    refused("llama", json!({"sliding_window": 128}), &["sliding_window"]);
    refused("llama", json!({"hidden_act": "gelu"}), &["hidden_act", "gelu", "silu"]);
    refused("llama", json!({"pretraining_tp": 2}), &["pretraining_tp", "2"]);
    refused("llama", json!({"attention_dropout": 0.1}), &["attention_dropout"]);
    refused("llama", json!({"partial_rotary_factor": 0.5}), &["partial_rotary_factor"]);
    refused("llama", json!({"rope_interleaved": true}), &["rope_interleaved"]);
    refused("llama", json!({"is_encoder_decoder": true}), &["is_encoder_decoder"]);
    refused("llama", json!({"auto_map": {"AutoModel": "x.Y"}}), &["auto_map", "code"]);
    refused(
        "llama",
        json!({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
        &["layer_types"],
    );
    refused("mistral", json!({"attention_bias": true}), &["attention_bias"]);
    refused("qwen2", json!({"use_mrope": true}), &["use_mrope"]);
    refused(
        "qwen2",
        json!({"num_key_value_heads": 4, "layer_types": vec!["linear_attention"; 3]}),
        &["linear_attention"],
    );
    refused(
        "qwen2",
        json!({"num_key_value_heads": 4, "layer_types": ["full_attention"]}),
        &["1 entries for 3 layers"],
    );
    refused(
        "qwen3",
        json!({"num_key_value_heads": 4, "layer_types": vec!["sliding_attention"; 3]}),
        &["use_sliding_window"],
    );
    for method in ["gptq", "awq", "compressed-tensors", "modelopt"] {
        refused("llama", json!({"quantization_config": {"quant_method": method}}), &["quant_method", method]);
    }
}

#[test]
fn m6_keys_that_no_implementation_reads_are_named() {
    let harmless = json!({"_note": 1, "license": "mit", "_model_name_or_path": "x", "resid_pdrop": 0.0,
        "dual_chunk_attention_config": {"chunk_size": 1}, "some_flag": true, "no_rope_layers": []});
    let (_, unread) = decoder_spec_without(&config("llama", harmless), &[]).unwrap();
    assert_eq!(
        unread,
        ["_note", "license", "_model_name_or_path", "dual_chunk_attention_config", "some_flag"]
    );
}

#[test]
fn m6_keys_can_be_left_out_by_their_path() {
    let odd = json!({"logits_scaling": 8.0, "auto_map": {"AutoModel": "x.Y"},
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "twist": 1}});
    let error = decoder_spec(&config("llama", json!({"logits_scaling": 8.0}))).unwrap_err().to_string();
    assert!(error.contains("`ignore_config_keys = [\"logits_scaling\"]`"), "{error}");
    let keys = ["logits_scaling", "auto_map", "rope_parameters.twist"].map(str::to_owned);
    let (spec, unread) = decoder_spec_without(&config("llama", odd.clone()), &keys).unwrap();
    assert!(unread.is_empty(), "{unread:?}");
    assert_eq!(spec.positions(), 2 * spec.max_position_embeddings);
    assert_eq!(
        decoder_spec_of_run(&config("llama", json!({})), &keys).unwrap().hidden_size,
        spec.hidden_size
    );
    let error = decoder_spec_without(&config("llama", json!({})), &keys[..1]).unwrap_err().to_string();
    assert_eq!(error, "`ignore_config_keys` names `logits_scaling`, which config.json does not have");
}

#[test]
fn rope_parameters_are_refused_when_not_understood() {
    let scaled = |parameters: Value| json!({"rope_parameters": parameters});
    refused(
        "llama",
        scaled(json!({"rope_type": "longrope", "factor": 2.0})),
        &["rope_parameters", "longrope"],
    );
    refused("llama", scaled(json!({"rope_type": "linear"})), &["rope_parameters.factor", "missing"]);
    refused(
        "llama",
        scaled(json!({"rope_type": "linear", "factor": -1.0})),
        &["rope_parameters.factor", "-1"],
    );
    refused(
        "llama",
        scaled(json!({"rope_type": "linear", "factor": 2.0, "twist": 1})),
        &["rope_parameters.twist"],
    );
    refused("llama", scaled(json!({"rope_type": "default", "rope_theta": 1.0})), &["rope_theta", "above 1"]);
    refused("llama", scaled(json!({"rope_type": "default", "type": "linear"})), &["rope_parameters.type"]);
    refused("llama", scaled(json!({"full_attention": {"rope_type": "default"}})), &["full_attention"]);
    refused(
        "llama",
        json!({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}}),
        &["contradict"],
    );
}

#[test]
fn sizes_are_checked() {
    refused("llama", json!({"num_attention_heads": 0}), &["num_attention_heads", "positive"]);
    refused("llama", json!({"num_hidden_layers": -1}), &["num_hidden_layers"]);
    refused("llama", json!({"num_key_value_heads": 3}), &["num_key_value_heads", "divide"]);
    refused("llama", json!({"hidden_size": 33}), &["divide"]);
    refused("llama", json!({"head_dim": 7}), &["head_dim", "even"]);
    refused("llama", json!({"hidden_size": 1u64 << 40}), &["hidden_size", "plausible"]);
    refused("llama", json!({"num_hidden_layers": 1u64 << 30}), &["num_hidden_layers", "plausible"]);
    refused("llama", json!({"vocab_size": 1e300}), &["vocab_size"]);
    refused("llama", json!({"vocab_size": "many"}), &["vocab_size", "\"many\""]);
    refused("llama", json!({"rms_norm_eps": 0.0}), &["rms_norm_eps"]);
    refused("llama", json!({"dtype": "float8_e4m3fn"}), &["dtype", "float8"]);
    refused("llama", json!({"tie_word_embeddings": "yes"}), &["tie_word_embeddings", "boolean"]);
}

#[test]
fn other_architectures_are_named() {
    refused("dbrx", json!({"architectures": ["DbrxForCausalLM"]}), &["dbrx", "Qwen3ForCausalLM"]);
    refused("qwen3_vl", json!({}), &["most like it is qwen3 (Qwen3"]);
    refused("phimoe", json!({}), &["most like it is phi (Phi-"]);
    refused(
        "llama",
        json!({"architectures": ["LlamaForSequenceClassification"]}),
        &["LlamaForSequenceClassification"],
    );
    assert!(decoder_spec(&json!({})).is_err());
    assert!(decoder_spec(&json!([1, 2])).is_err());
}

#[test]
fn m10_odd_spellings_and_other_heads_of_an_architecture_are_recognised() {
    for (model_type, architecture) in
        [("llama", "LLaMAForCausalLM"), ("Llama", "LlamaForCausalLM"), ("qwen-2", "Qwen2ForCausalLM")]
    {
        let changes = json!({"architectures": [architecture], "num_key_value_heads": 4});
        assert!(decoder_spec(&config(model_type, changes)).is_ok(), "{architecture}");
    }
    for (architecture, kind) in [
        ("LlamaForSequenceClassification", "another head"),
        ("LlamaModel", "without its output head"),
        ("FSDPLlamaForCausalLM", "a wrapper around LlamaForCausalLM"),
    ] {
        refused("llama", json!({"architectures": [architecture]}), &[architecture, kind]);
    }
}

#[test]
fn modules_are_listed_with_their_shapes() {
    let spec = spec("llama", json!({"num_key_value_heads": 2}));
    let modules = spec.modules();
    assert_eq!(modules.len(), 21);
    assert_eq!(modules[1].path, "model.layers.0.self_attn.k_proj");
    assert_eq!((modules[1].out_features, modules[1].in_features), (16, 32));
    assert_eq!(modules[20].path, "model.layers.2.mlp.down_proj");
    assert_eq!((modules[20].out_features, modules[20].in_features), (32, 48));
    let layer = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32 + 2 * 32;
    assert_eq!(spec.parameters(), (2 * 64 * 32 + 32 + 3 * layer) as u64);
}

#[test]
fn readme_shows_every_family() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let table = super::markdown();
    assert!(readme.contains(&table), "README.md has another table of models; it should have:\n{table}");
}

#[test]
fn what_only_some_members_of_a_family_have_is_refused() {
    let dense = json!({"num_local_experts": 0, "layer_types": ["attention", "attention", "attention"]});
    let hybrid = |key: &str, value: Value| {
        let mut changes = dense.clone();
        changes[key] = value;
        changes
    };
    spec("granitemoehybrid", dense.clone());
    refused("granitemoehybrid", hybrid("num_local_experts", json!(32)), &["num_local_experts", "32"]);
    refused("granitemoehybrid", hybrid("num_local_experts", Value::Null), &["8 experts"]);
    let mixed = json!(["mamba", "attention", "mamba"]);
    refused("granitemoehybrid", hybrid("layer_types", mixed), &["layer_types", "attention"]);
    refused("hunyuan_v1_dense", json!({"use_qk_norm": false}), &["use_qk_norm"]);
    refused("phi3", json!({"partial_rotary_factor": 0.4}), &["partial_rotary_factor", "3 of 8"]);
    refused(
        "phi3",
        json!({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}),
        &["short_factor", "4"],
    );
    refused("smollm3", json!({"no_rope_layers": [1]}), &["no_rope_layers", "1 entries for 3"]);
    refused(
        "exaone4",
        json!({"sliding_window_pattern": "LX", "num_key_value_heads": 4}),
        &["sliding_window_pattern"],
    );
}

#[test]
fn old_and_new_spellings_of_newer_families_are_the_same_model() {
    let scaling = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16});
    let mut full = scaling.clone();
    full["rope_theta"] = json!(500_000.0);
    let sliding = json!({"rope_type": "default", "rope_theta": 500_000.0});
    let old = spec("olmo3", json!({"rope_theta": 500_000.0, "rope_scaling": scaling}));
    let new = json!({"rope_parameters": {"full_attention": full, "sliding_attention": sliding}});
    assert_eq!(old, spec("olmo3", new));

    let factors = json!({"type": "su", "short_factor": vec![1.0; 3], "long_factor": vec![2.0; 3]});
    let old = json!({"rope_scaling": factors, "rope_theta": 1e4, "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 16, "max_position_embeddings": 64});
    let new = json!({"max_position_embeddings": 64, "rope_parameters": {"rope_type": "longrope",
        "short_factor": vec![1.0; 3], "long_factor": vec![2.0; 3], "rope_theta": 1e4,
        "partial_rotary_factor": 0.75, "original_max_position_embeddings": 16}});
    assert_eq!(spec("phi3", old), spec("phi3", new));

    // Granite 4 wrote `layers_block_type` for a time.
    let block = json!({"num_local_experts": 0, "layers_block_type": ["attention", "attention", "attention"]});
    let types = json!({"num_local_experts": 0, "layer_types": ["attention", "attention", "attention"]});
    assert_eq!(spec("granitemoehybrid", block), spec("granitemoehybrid", types));
}

#[test]
fn a_wrapper_is_its_text_decoder_elsewhere() {
    let text = json!({"model_type": "ministral3", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "head_dim": 8});
    let wrapper = json!({"model_type": "mistral3", "architectures": ["Mistral3ForConditionalGeneration"],
        "text_config": text, "vision_config": {"model_type": "pixtral", "hidden_size": 16}, "image_token_index": 10,
        "multimodal_projector_bias": false, "projector_hidden_act": "gelu", "spatial_merge_size": 2,
        "vision_feature_layer": -1, "dtype": "bfloat16", "tie_word_embeddings": true});
    let inside = decoder_spec(&wrapper).unwrap();
    let mut alone = text.clone();
    alone["dtype"] = json!("bfloat16");
    alone["tie_word_embeddings"] = json!(true);
    let alone = decoder_spec(&alone).unwrap();
    assert_eq!(inside, alone.clone().wrapped("mistral3"));
    assert_eq!(inside.modules()[0].path, "model.language_model.layers.0.self_attn.q_proj");
    assert_eq!(inside.parameters(), alone.parameters());

    let refused = |changes: Value, part: &str| {
        let mut config = wrapper.clone();
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let message = decoder_spec(&config).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    };
    refused(json!({"logits_scaling": 8.0}), "logits_scaling");
    refused(json!({"text_config": null}), "text_config");
    refused(json!({"text_config": {"model_type": "mistral4"}}), "mistral4");
}

/// Published before transformers had the families, with code of their own that computes the same.
#[test]
fn files_that_name_published_code_are_read() {
    let auto_map = json!({"AutoConfig": "configuration_phi3.Phi3Config",
        "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM", "AutoTokenizer": "Xenova/gpt-4o"});
    spec("phi3", json!({"auto_map": auto_map, "rope_scaling": null, "sliding_window": 2047}));
    refused("llama", json!({"auto_map": auto_map}), &["auto_map"]);
    refused("phi3", json!({"auto_map": {"AutoConfig": "configuration_mine.Config"}}), &["auto_map"]);
}
