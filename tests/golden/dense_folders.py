"""Folders that hold a text decoder in other ways: beside towers, and in 8-bit floats.

Writes `dense_folders/<name>/`: config.json and weights, `golden.safetensors`
(`input_ids`, `logits` in f32) and, for the wrapper, PEFT adapters over it and
over its text decoder's own class.

    python dense_folders.py
"""

import json

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Ministral3Config,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralVisionConfig,
    Qwen3Config,
)

from dense import MINISTRAL
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


def golden(folder, tokens: torch.Tensor, **values: torch.Tensor) -> None:
    save_file({"input_ids": tokens} | values, folder / "golden.safetensors", metadata={"format": "pt"})


def wrapper_config() -> Mistral3Config:
    return Mistral3Config(
        text_config=Ministral3Config(**TEXT).to_dict() | {"model_type": "ministral3"},
        vision_config=PixtralVisionConfig(**VISION).to_dict() | {"model_type": "pixtral"},
        tie_word_embeddings=False,
    )


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


def load_wrapper(folder):
    return Mistral3ForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def make_wrapper() -> None:
    """As transformers 5.24 saves it."""
    folder = FOLDER / "mistral3"
    torch.manual_seed(499)
    model = Mistral3ForConditionalGeneration(wrapper_config()).to(torch.bfloat16)
    randomize(model.model.language_model, 500)
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.randn(model.lm_head.weight.shape) * 3 / 32**0.5)
    save_model(model, folder)
    tokens = random_tokens(500)
    # The id of an image would stand for features of a tower.
    tokens[tokens == 10] = 11
    values = logits(load_wrapper(folder), tokens)
    names = list(load_file(folder / "model.safetensors"))
    print("mistral3:", json.dumps(sorted({name.split(".layers.")[0] for name in names})))
    wrapped = logits(adapted(load_wrapper(folder), folder / "adapter", TARGETS, 501), tokens)
    # The same numbers under the paths of the text decoder's own class.
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    text = fresh_folder(folder / "adapter_text")
    renamed = {name.replace("model.language_model.", "model.", 1): value for name, value in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, text / "adapter_model.safetensors", metadata={"format": "pt"})
    config = (folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8")
    (text / "adapter_config.json").write_text(config, encoding="utf-8")
    # That class loads them.
    own = AutoModelForCausalLM.from_config(
        Ministral3Config(**TEXT), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    state = {name.replace("model.language_model.", "model.", 1): value for name, value in load_wrapper(folder).state_dict().items()}
    own.load_state_dict({name: value for name, value in state.items() if name in own.state_dict()})
    assert (logits(own, tokens) - values).abs().max() < 1e-5
    again = PeftModel.from_pretrained(own, text).eval()
    assert (logits(again, tokens) - wrapped).abs().max() < 1e-5
    assert (wrapped - values).abs().max() > 0.05
    golden(folder, tokens, logits=values, adapted=wrapped)


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
    make_wrapper()
    make_fp8("mistral3_fp8", Ministral3Config(**TEXT), 510, None, ("model.", "language_model.model."))
    wide = {
        "hidden_size": 144,
        "intermediate_size": 136,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    }
    make_fp8("qwen3_fp8", Qwen3Config(**SHAPE | wide), 511, 128, None)


if __name__ == "__main__":
    main()
