"""Tiny random models with recurrent layers or short convolutions: their logits, and LoRA trajectories on them.

Writes `recurrent/<name>/`: `base/`, config.json and bf16 weights as transformers
saves them, with `golden.safetensors` (`input_ids` i64 [1, T], `logits` f32
[1, T, V]); a PEFT adapter to start from, token files, and for the dense and the
NF4 base the losses of ten steps; for the dense one the adapter after them. Also
`qwen3_5/wrapper.json`, the config of the same model behind an image tower.
transformers computes recurrences in torch: no kernels are installed.

    python recurrent.py            write everything
    python recurrent.py NAME ...   write only these
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Lfm2Config,
    PretrainedConfig,
    Qwen3_5Config,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
)

import trajectory
from mixtures import nf4
from nf4_rule import quantize_nf4
from tiny_model import (
    HERE,
    deterministic,
    fresh_folder,
    load_float32,
    randomize,
    save_model,
    tidy_adapter_folder,
    write_json,
)

VOCAB_SIZE = 64
# More than two chunks of 64.
TOKENS = 150
SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
QWEN3_5 = {
    "num_hidden_layers": 4,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25},
}
EXPERTS = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 24,
}
LFM2 = {
    "num_hidden_layers": 3,
    "layer_types": ["conv", "full_attention", "conv"],
    "block_multiple_of": 8,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Model:
    """A configuration, and the projections that get an adapter and are quantized: all but those of a few rows."""

    name: str
    config: PretrainedConfig
    targets: list[str]

    @property
    def folder(self) -> Path:
        return HERE / "recurrent" / self.name


MODELS = [
    Model(
        "qwen3_5",
        Qwen3_5TextConfig(**SHAPE, **QWEN3_5),
        ["in_proj_qkv", "in_proj_z", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj"]
        + ["gate_proj", "up_proj", "down_proj"],
    ),
    Model(
        "qwen3_5_moe",
        Qwen3_5MoeTextConfig(**{key: SHAPE[key] for key in SHAPE if key != "intermediate_size"}, **QWEN3_5, **EXPERTS),
        ["in_proj_qkv", "in_proj_z", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj"]
        + ["shared_expert.gate_proj", "shared_expert.up_proj", "shared_expert.down_proj"],
    ),
    Model(
        "lfm2",
        Lfm2Config(**SHAPE, **LFM2),
        ["in_proj", "out_proj", "q_proj", "k_proj", "v_proj", "w1", "w2", "w3"],
    ),
]
CASE = trajectory.Case("recurrent", "tokens.jsonl", 2, 1, 5e-4, 0.01, 1.0, max_steps=10)


def lively(model: torch.nn.Module, norms_around_zero: bool) -> None:
    """Decays from slow to fast, and norms as they are stored."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith(("A_log", "dt_bias")):
                parameter.copy_(noise - 1.0)
            elif name.endswith(("conv1d.weight", "conv.conv.weight")):
                parameter.copy_(noise * 0.5)
            elif name.endswith("norm.weight") and norms_around_zero and "linear_attn" not in name:
                parameter.sub_(1.0)


def make_base(kind: Model) -> None:
    model = AutoModelForCausalLM.from_config(kind.config, dtype=torch.float32)
    randomize(model, seed=400)
    lively(model, norms_around_zero=kind.name.startswith("qwen3_5"))
    save_model(model.to(torch.bfloat16), kind.folder / "base")
    tokens = torch.randint(VOCAB_SIZE, (1, TOKENS), generator=torch.Generator().manual_seed(400))
    with torch.no_grad():
        values = load_float32(kind.folder / "base")(input_ids=tokens, use_cache=False).logits.contiguous()
    path = kind.folder / "base" / "golden.safetensors"
    save_file({"input_ids": tokens, "logits": values}, path, metadata={"format": "pt"})
    print(f"{kind.name}: logits up to {values.abs().max():.1f}")


def write_wrapper(kind: Model) -> None:
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "out_hidden_size": 32}
    wrapper = Qwen3_5Config(text_config=SHAPE | QWEN3_5, vision_config=vision, tie_word_embeddings=False)
    wrapper.architectures = ["Qwen3_5ForConditionalGeneration"]
    write_json(kind.folder / "wrapper.json", json.loads(wrapper.to_json_string(use_diff=False)))


def frozen_base(kind: Model, quantized: bool) -> torch.nn.Module:
    """The base in f32; with `quantized` the projections as NF4 stores them."""
    model = load_float32(kind.folder / "base")
    if not quantized:
        return model
    stored = load_file(kind.folder / "base" / "model.safetensors")
    with torch.no_grad():
        for name in sorted(stored):
            module, _, part = name.rpartition(".")
            if part == "weight" and module.endswith(tuple(f".{target}" for target in kind.targets)):
                values = quantize_nf4(stored[name].float().numpy(), 64, double_quant=True).dequantize()
                model.get_submodule(module).weight.copy_(torch.from_numpy(values))
        for name, parameter in model.named_parameters():
            for expert in parameter if name.endswith(("experts.gate_up_proj", "experts.down_proj")) else []:
                for weight in expert.chunk(2) if name.endswith("gate_up_proj") else [expert]:
                    weight.copy_(nf4(weight))
    return model


def make_adapter(kind: Model) -> None:
    torch.manual_seed(2)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, lora_dropout=0.0, target_modules=kind.targets)
    model = get_peft_model(frozen_base(kind, False), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.peft_config["default"].base_model_name_or_path = "tune-golden/recurrent-base"
    model.save_pretrained(kind.folder / "adapter", save_embedding_layers=False)
    tidy_adapter_folder(kind.folder / "adapter")


def write_case(kind: Model, quantized: bool) -> None:
    model = PeftModel.from_pretrained(frozen_base(kind, quantized), kind.folder / "adapter", is_trainable=True)
    result = trajectory.train(CASE, model, trajectory.adamw(CASE, model))
    name = "nf4" if quantized else "dense"
    write_json(
        kind.folder / f"case_{name}.json",
        {
            "learning_rate": CASE.learning_rate,
            "weight_decay": CASE.weight_decay,
            "max_grad_norm": CASE.max_grad_norm,
            "micro_batch_size": CASE.micro_batch_size,
            "max_steps": CASE.max_steps,
            "losses": result.losses,
            "grad_norms": result.grad_norms,
        },
    )
    if not quantized:
        adapter = get_peft_model_state_dict(model)
        ordered = {key: adapter[key].contiguous() for key in sorted(adapter)}
        save_file(ordered, kind.folder / "final_adapter.safetensors", metadata={"format": "pt"})
    print(f"{kind.name}, {name}: loss {result.losses[0]:.4f} -> {result.losses[-1]:.4f}")


def main() -> None:
    deterministic()
    trajectory.VOCAB_SIZE = VOCAB_SIZE
    for kind in MODELS:
        if sys.argv[1:] and kind.name not in sys.argv[1:]:
            continue
        fresh_folder(kind.folder)
        make_base(kind)
        make_adapter(kind)
        trajectory.FOLDER = kind.folder
        trajectory.write_rows(CASE.data, trajectory.make_rows(3, [17, 90, 9, 66, 40, 3]))
        for quantized in (False, True):
            write_case(kind, quantized)
        if kind is MODELS[0]:
            write_wrapper(kind)


if __name__ == "__main__":
    main()
