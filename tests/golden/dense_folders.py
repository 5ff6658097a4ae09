"""Folders that hold a text decoder in other ways: beside towers, and in 8-bit floats.

Writes `dense_folders/<name>/`: config.json and weights, `golden.safetensors`
(`input_ids`, `logits` in f32) and, for wrappers, PEFT adapters over them and
over their text decoders' own classes.

    python dense_folders.py            write everything
    python dense_folders.py NAME ...   write only these
"""

import json
import sys
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForConditionalGeneration,
    Gemma4UnifiedTextConfig,
    Ministral3Config,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    MuseGlimmerConfig,
    MuseGlimmerForConditionalGeneration,
    PixtralVisionConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5TextConfig,
    Qwen3Config,
    SiglipVisionConfig,
)

from dense import MINISTRAL, PATTERN, nested, plain
from families import SHAPE, logits, random_tokens
from tiny_model import HERE, deterministic, fresh_folder, load_float32, randomize, save_model, tidy_adapter_folder

FOLDER = HERE / "dense_folders"
TEXT = SHAPE | {
    "head_dim": 16,
    "rope_parameters": MINISTRAL | {"llama_4_scaling_beta": 0.5},
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "head_dim": 8,
    "image_size": 28,
    "patch_size": 14,
}
TARGETS = r"(?!.*vision).*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
RECURRENT = TARGETS.replace("q_proj|", "in_proj_qkv|in_proj_z|out_proj|q_proj|")
GEMMA = TEXT | {"tie_word_embeddings": True}
LINEAR = {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}
SIGLIP = {key: VISION[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")}
TOWER_OF_MUSE = SIGLIP | {"patch_size": 4, "pos_emb_height": 2, "pos_emb_width": 2, "max_position_embeddings": 4}
TOWER = SIGLIP | {"image_size": 28, "patch_size": 14}


@dataclass(frozen=True)
class Wrapper:
    """A text decoder beside towers; `own` is its configuration without them, where it has a class."""

    name: str
    model: type[PreTrainedModel]
    config: PretrainedConfig
    own: PretrainedConfig | None
    seed: int
    targets: str = TARGETS


def wrappers() -> list[Wrapper]:
    ministral = Ministral3Config(**TEXT)
    mistral = MistralConfig(**TEXT | {"rope_parameters": plain(1e4), "sliding_window": None})
    gemma3 = Gemma3TextConfig(**GEMMA | {"query_pre_attn_scalar": 10, "sliding_window": 12, "layer_types": PATTERN} | nested(LINEAR, plain(1e4)))
    gemma4 = Gemma4UnifiedTextConfig(
        **{key: value for key, value in GEMMA.items() if key != "rope_parameters"}
        | {"sliding_window": 12, "layer_types": PATTERN, "global_head_dim": 32, "num_global_key_value_heads": 1}
        | {"attention_k_eq_v": True, "final_logit_softcapping": 6.0}
    )
    qwen = Qwen3_5TextConfig(
        **TEXT
        | {"rope_parameters": plain(1e4) | {"partial_rotary_factor": 0.25, "mrope_section": [1, 1, 0]}}
        | {"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 2}
        | {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_conv_kernel_dim": 4}
    )
    return [
        Wrapper(
            "mistral3",
            Mistral3ForConditionalGeneration,
            Mistral3Config(
                text_config=ministral.to_dict() | {"model_type": "ministral3"},
                vision_config=PixtralVisionConfig(**VISION).to_dict() | {"model_type": "pixtral"},
                tie_word_embeddings=False,
            ),
            ministral,
            500,
        ),
        # As Mistral Small 3.1 and its successors have it.
        Wrapper(
            "mistral_small",
            Mistral3ForConditionalGeneration,
            Mistral3Config(
                text_config=mistral.to_dict() | {"model_type": "mistral"},
                vision_config=PixtralVisionConfig(**VISION).to_dict() | {"model_type": "pixtral"},
                tie_word_embeddings=False,
            ),
            mistral,
            570,
        ),
        Wrapper(
            "gemma3",
            Gemma3ForConditionalGeneration,
            Gemma3Config(text_config=gemma3, vision_config=SiglipVisionConfig(**TOWER), image_token_index=10),
            gemma3,
            520,
        ),
        Wrapper(
            "gemma4_unified",
            Gemma4UnifiedForConditionalGeneration,
            Gemma4UnifiedConfig(
                text_config=gemma4,
                vision_config={"patch_size": 2, "pooling_kernel_size": 1, "mm_embed_dim": 8, "mm_posemb_size": 4, "output_proj_dims": 32},
                audio_config={"audio_embed_dim": 8},
                image_token_id=10,
                video_token_id=10,
                audio_token_id=10,
            ),
            gemma4,
            530,
        ),
        Wrapper(
            "muse_glimmer",
            MuseGlimmerForConditionalGeneration,
            MuseGlimmerConfig(
                text_config=TEXT
                | {"rope_parameters": plain(1e4), "sliding_window": 12, "num_hidden_layers": 4, "rms_norm_eps": 1e-3}
                | {"post_norm_eps": 1e-2, "output_multiplier": 0.7, "final_logit_softcapping": 6.0},
                vision_config=TOWER_OF_MUSE,
                out_hidden_size=64,
                projector_hidden_size=16,
                image_token_id=10,
                video_token_id=10,
                tie_word_embeddings=False,
            ),
            None,
            550,
        ),
        Wrapper(
            "qwen3_5",
            Qwen3_5ForConditionalGeneration,
            Qwen3_5Config(
                text_config=qwen.to_dict(),
                vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 4, "out_hidden_size": 32, "num_position_embeddings": 4},
                image_token_id=10,
                video_token_id=10,
                tie_word_embeddings=False,
            ),
            qwen,
            560,
            RECURRENT,
        ),
    ]


def golden(folder, tokens: torch.Tensor, **values: torch.Tensor) -> None:
    save_file({"input_ids": tokens} | values, folder / "golden.safetensors", metadata={"format": "pt"})


def adapted(model, folder, targets, seed: int):
    torch.manual_seed(seed)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, lora_dropout=0.0, target_modules=targets)
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.peft_config["default"].base_model_name_or_path = f"tune-golden/{folder.parent.name}"
    model.save_pretrained(folder, save_embedding_layers=False)
    tidy_adapter_folder(folder)
    return model.eval()


def make_wrapper(wrapper: Wrapper) -> None:
    """As transformers 5.24 saves it."""
    folder = FOLDER / wrapper.name
    seed = wrapper.seed
    torch.manual_seed(seed - 1)
    model = wrapper.model(wrapper.config).to(torch.bfloat16)
    text = model.model.language_model
    text.config.tie_word_embeddings = wrapper.config.tie_word_embeddings
    randomize(text, seed)
    if not wrapper.config.tie_word_embeddings:
        with torch.no_grad():
            model.lm_head.weight.copy_(torch.randn(model.lm_head.weight.shape) * 3 / 32**0.5)
    save_model(model, folder)

    def load():
        return wrapper.model.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()

    tokens = random_tokens(seed)
    # The id of an image would stand for features of a tower.
    tokens[tokens == 10] = 11
    values = logits(load(), tokens)
    names = list(load_file(folder / "model.safetensors"))
    print(f"{wrapper.name}:", json.dumps(sorted({name.split(".layers.")[0] for name in names})))
    wrapped = logits(adapted(load(), folder / "adapter", wrapper.targets, seed + 1), tokens)
    assert (wrapped - values).abs().max() > 0.05
    if wrapper.own is not None:
        check_own_class(wrapper, folder, load().state_dict(), tokens, values, wrapped)
    golden(folder, tokens, logits=values, adapted=wrapped)


def check_own_class(wrapper: Wrapper, folder, state: dict, tokens, values, wrapped) -> None:
    """The same numbers under the paths of the text decoder's own class, which loads them."""
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    text = fresh_folder(folder / "adapter_text")
    renamed = {name.replace("model.language_model.", "model.", 1): value for name, value in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, text / "adapter_model.safetensors", metadata={"format": "pt"})
    config = (folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8")
    (text / "adapter_config.json").write_text(config, encoding="utf-8")
    own = AutoModelForCausalLM.from_config(wrapper.own, dtype=torch.float32, attn_implementation="eager").eval()
    state = {name.replace("model.language_model.", "model.", 1): value for name, value in state.items()}
    own.load_state_dict({name: value for name, value in state.items() if name in own.state_dict()})
    assert (logits(own, tokens) - values).abs().max() < 1e-5
    again = PeftModel.from_pretrained(own, text).eval()
    assert (logits(again, tokens) - wrapped).abs().max() < 1e-5


def to_fp8(weight: torch.Tensor, block: int | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, scales that multiply, and the numbers that they stand for."""
    rows, columns = weight.shape
    down, across = (1, 1) if block is None else (-(-rows // block), -(-columns // block))
    height, width = (rows, columns) if block is None else (block, block)
    scales = torch.zeros(down, across)
    codes = torch.zeros(rows, columns, dtype=torch.float8_e4m3fn)
    back = torch.zeros(rows, columns)
    for i in range(down):
        for j in range(across):
            part = (slice(i * height, (i + 1) * height), slice(j * width, (j + 1) * width))
            scales[i, j] = weight[part].abs().max() / 448
            codes[part] = (weight[part] / scales[i, j]).to(torch.float8_e4m3fn)
            back[part] = codes[part].float() * scales[i, j]
    return codes, scales if block else scales.reshape(()), back


def make_fp8(name: str, config, seed: int, block: int | None, prefix: tuple[str, str] | None) -> None:
    """Projections in 8-bit floats; `prefix` renames modules as released wrappers do."""
    folder = FOLDER / name
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    randomize(model, seed)
    save_model(model, folder)
    tensors = load_file(folder / "model.safetensors")
    dense = load_float32(folder)
    out = {}
    with torch.no_grad():
        for key, value in tensors.items():
            module = key.removesuffix(".weight")
            if not module.endswith("_proj"):
                out[key] = value
                continue
            codes, scales, back = to_fp8(value.float(), block)
            dense.get_submodule(module).weight.copy_(back)
            out |= {key: codes, f"{module}.weight_scale_inv": scales}
            if block is None:
                out[f"{module}.activation_scale"] = torch.tensor(0.5)
    tokens = random_tokens(seed)
    golden(folder, tokens, logits=logits(dense, tokens))
    path = folder / "config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    quantization = {"quant_method": "fp8", "activation_scheme": "static" if block is None else "dynamic"}
    quantization["weight_block_size"] = None if block is None else [block, block]
    if prefix:
        out = {key.replace(*prefix, 1) if key.startswith(prefix[0]) else f"language_model.{key}": v for key, v in out.items()}
        fields = {
            "architectures": ["Mistral3ForConditionalGeneration"],
            "model_type": "mistral3",
            "image_token_index": 10,
            "multimodal_projector_bias": False,
            "projector_hidden_act": "gelu",
            "spatial_merge_size": 2,
            "text_config": {key: value for key, value in fields.items() if key not in ("architectures", "dtype")},
            "torch_dtype": "bfloat16",
            "vision_config": VISION | {"model_type": "pixtral"},
            "vision_feature_layer": -1,
        }
        out["vision_tower.patch_conv.weight"] = torch.ones(2, 3, 1, 1, dtype=torch.bfloat16)
        out["multi_modal_projector.norm.weight"] = torch.ones(4, dtype=torch.bfloat16)
    fields["quantization_config"] = quantization
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    save_file(out, folder / "model.safetensors", metadata={"format": "pt"})
    print(name, "done")


def main() -> None:
    deterministic()
    FOLDER.mkdir(exist_ok=True)

    def wanted(name: str) -> bool:
        return not sys.argv[1:] or name in sys.argv[1:]

    for wrapper in wrappers():
        if wanted(wrapper.name):
            make_wrapper(wrapper)
    if wanted("mistral3_fp8"):
        make_fp8("mistral3_fp8", Ministral3Config(**TEXT), 510, None, ("model.", "language_model.model."))
    wide = {
        "hidden_size": 144,
        "intermediate_size": 136,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    }
    if wanted("qwen3_fp8"):
        make_fp8("qwen3_fp8", Qwen3Config(**SHAPE | wide), 511, 128, None)


if __name__ == "__main__":
    main()
