"""Tiny random mixtures of experts: logits, and ten LoRA steps, by transformers and PEFT.

Writes `mixtures/<name>/` as `dense.py` writes its folders. Adapters are on attention and
on experts that every token passes. `qwen3_moe_stacked` holds the experts of a layer in
two tensors, as transformers has them in memory; the others one by one, as the hub has them, but for
gpt-oss: transposed, as transformers saves them, and in MXFP4, as the hub has them.

    python mixtures.py            write everything
    python mixtures.py NAME ...   write only these
"""

import re
import sys

import peft.utils.transformers_weight_conversion as conversion
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma4TextConfig,
    GptOssConfig,
    MixtralConfig,
    OlmoeConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

import dense
from dense import Family
from nf4_rule import quantize_nf4
from tiny_model import HERE, deterministic, load_float32, save_model, write_json

EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
YARN = {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 4.0, "original_max_position_embeddings": 16}
GPT_OSS = {
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "head_dim": 16,
    # A whole block of MXFP4.
    "intermediate_size": 32,
    "sliding_window": 12,
    "rope_parameters": YARN | {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
}
GEMMA4 = {
    "head_dim": 16,
    "global_head_dim": 32,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 0,
    "sliding_window": 12,
    "layer_types": ["sliding_attention", "full_attention"],
    "enable_moe_block": True,
    "num_experts": 5,
    "top_k_experts": 2,
    "moe_intermediate_size": 24,
}
# PEFT takes the names of projections in a mixture for those of its stacked experts; here they mean modules.
conversion._convert_peft_config_moe = lambda config, model: None
LEVELS = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
QWEN3 = EXPERTS | {"head_dim": 16, "norm_topk_prob": True}

FAMILIES = [
    Family("qwen3_moe", Qwen3MoeConfig, QWEN3 | {"mlp_only_layers": [1]}, [{"norm_topk_prob": False}]),
    Family("qwen3_moe_stacked", Qwen3MoeConfig, QWEN3, [{"num_experts_per_tok": 1}]),
    Family(
        "qwen2_moe",
        Qwen2MoeConfig,
        EXPERTS | {"shared_expert_intermediate_size": 40, "norm_topk_prob": False},
        [{"norm_topk_prob": True}],
    ),
    Family("mixtral", MixtralConfig, {"num_local_experts": 4, "num_experts_per_tok": 2}, [{"num_experts_per_tok": 1}]),
    Family("olmoe", OlmoeConfig, {"num_experts": 6, "num_experts_per_tok": 3}, [{"norm_topk_prob": True}]),
    Family("gpt_oss", GptOssConfig, GPT_OSS, [{"sliding_window": 64}]),
    Family("gpt_oss_mxfp4", GptOssConfig, GPT_OSS, [{"num_experts_per_tok": 1}]),
    Family("gemma4_moe", Gemma4TextConfig, GEMMA4, [{"top_k_experts": 1}]),
]
# The models whose files transformers does not read on a CPU, by the names of their folders.
READ = {}


def projections(model: torch.nn.Module) -> list[str]:
    """Paths of the linear projections of the layers; the gate of a shared expert and a router are none."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and re.search(r"\.layers\.\d+\.", f".{name}")
        and not name.endswith(("shared_expert_gate", "router.proj"))
    ]


def nf4(weight: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(quantize_nf4(weight.contiguous().numpy(), 64, double_quant=True).dequantize())


def quantized(model: torch.nn.Module) -> torch.nn.Module:
    """The projections of the layers and the experts, each by itself, replaced by their NF4 dequantization; experts that
    are in MXFP4 stay."""
    names = dict(model.named_parameters())
    with torch.no_grad():
        for name in projections(model):
            weight = model.get_submodule(name).weight
            weight.copy_(nf4(weight))
        for name, parameter in names.items():
            if not name.endswith(("experts.gate_up_proj", "experts.down_proj")) or model.config.name_or_path in READ:
                continue
            for expert in parameter:
                if f"{name}_bias" not in names:
                    parts = expert.chunk(2) if name.endswith("gate_up_proj") else [expert]
                else:
                    parts = [expert[:, ::2].T, expert[:, 1::2].T] if name.endswith("gate_up_proj") else [expert.T]
                for part in parts:
                    part.copy_(nf4(part))
    return model


def mxfp4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, scales and values of a weight `[out, in]`, each number the nearest of its block."""
    blocks = weight.float().reshape(weight.shape[0], -1, 32)
    exponents = torch.floor(torch.log2(blocks.abs().amax(-1))) - 2
    levels = torch.tensor(LEVELS + [-level for level in LEVELS])
    scaled = blocks * torch.exp2(-exponents)[..., None]
    codes = (scaled[..., None] - levels).abs().argmin(-1).to(torch.uint8)
    values = (levels[codes.long()] * torch.exp2(exponents)[..., None]).reshape(weight.shape)
    return codes[..., ::2] | codes[..., 1::2] << 4, (exponents + 127).to(torch.uint8), values


def pack(folder) -> None:
    """Puts the experts of a saved model into MXFP4, and remembers the model with their values."""
    tensors = load_file(folder / "model.safetensors")
    model = load_float32(folder)
    state = model.state_dict()
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        packed = [mxfp4(expert.T) for expert in tensors.pop(name)]
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"], values = map(torch.stack, zip(*packed))
        state[name] = values.transpose(1, 2).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    READ[folder.name] = state
    config = AutoConfig.from_pretrained(folder).to_dict()
    config["quantization_config"] = {"quant_method": "mxfp4"}
    # The folder that it was read from.
    config.pop("_name_or_path", None)
    write_json(folder / "config.json", config)


def save(model, folder, **arguments) -> None:
    save_model(model, folder, save_original_format=folder.name != "qwen3_moe_stacked", **arguments)
    if folder.name == "gpt_oss_mxfp4":
        pack(folder)


def load(folder) -> torch.nn.Module:
    if folder.name not in READ:
        return load_float32(folder)
    family = next(family for family in FAMILIES if family.name == folder.name)
    model = AutoModelForCausalLM.from_config(family.config(), dtype=torch.float32, attn_implementation="eager")
    model.load_state_dict(READ[folder.name])
    model.config.name_or_path = folder.name
    return model.eval()


def main() -> None:
    deterministic()
    dense.FOLDER = HERE / "mixtures"
    dense.projections, dense.quantized = projections, quantized
    dense.save_model, dense.load_float32 = save, load
    dense.FOLDER.mkdir(exist_ok=True)
    for seed, family in enumerate(FAMILIES, start=500):
        if not sys.argv[1:] or family.name in sys.argv[1:]:
            dense.make(family, seed)


if __name__ == "__main__":
    main()
