"""Tiny random models with recurrent layers: their logits, and LoRA trajectories on them, by transformers and PEFT.

Writes `recurrent/qwen3_5/`: a folder of the text class and `wrapper.json`, the
config of the same model behind an image tower, as transformers saves them; beside
the weights `golden.safetensors` (`input_ids` i64 [1, T], `logits` f32 [1, T, V]); a PEFT
adapter to start from, token files, and for the dense and the NF4 base the losses
of ten steps; for the dense one the adapter after them. transformers computes the recurrence in torch:
no kernels are installed.

    python recurrent.py
"""

import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import Qwen3_5Config, Qwen3_5ForCausalLM, Qwen3_5TextConfig

import trajectory
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

FOLDER = HERE / "recurrent" / "qwen3_5"
VOCAB_SIZE = 64
# More than one chunk of 64, and a short one behind it.
TOKENS = 150
SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25},
}
TARGETS = ["in_proj_qkv", "in_proj_z", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj"]
TARGETS += ["gate_proj", "up_proj", "down_proj"]
# Of the recurrent layers, the projections of a few rows stay dense.
DENSE = ["in_proj_a", "in_proj_b"]
CASE = trajectory.Case("recurrent", "tokens.jsonl", 2, 1, 5e-4, 0.01, 1.0, max_steps=10)


def lively(model: torch.nn.Module) -> None:
    """Decays from slow to fast, and norms that are stored around zero."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith(("A_log", "dt_bias")):
                parameter.copy_(noise - 1.0)
            elif name.endswith("conv1d.weight"):
                parameter.copy_(noise * 0.5)
            elif name.endswith("norm.weight") and "linear_attn" not in name:
                parameter.sub_(1.0)


def make_base() -> None:
    model = Qwen3_5ForCausalLM(Qwen3_5TextConfig(**SHAPE))
    randomize(model, seed=400)
    lively(model)
    save_model(model.to(torch.bfloat16), FOLDER / "base")
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "out_hidden_size": 32}
    wrapper = Qwen3_5Config(text_config=SHAPE, vision_config=vision, tie_word_embeddings=False)
    wrapper.architectures = ["Qwen3_5ForConditionalGeneration"]
    write_json(FOLDER / "wrapper.json", json.loads(wrapper.to_json_string(use_diff=False)))
    tokens = torch.randint(VOCAB_SIZE, (1, TOKENS), generator=torch.Generator().manual_seed(400))
    with torch.no_grad():
        values = load_float32(FOLDER / "base")(input_ids=tokens, use_cache=False).logits.contiguous()
    save_file({"input_ids": tokens, "logits": values}, FOLDER / "base" / "golden.safetensors", metadata={"format": "pt"})
    print(f"logits up to {values.abs().max():.1f}")


def frozen_base(quantized: bool) -> torch.nn.Module:
    """The base in f32; with `quantized` the projections as NF4 stores them."""
    model = load_float32(FOLDER / "base")
    if not quantized:
        return model
    stored = load_file(FOLDER / "base" / "model.safetensors")
    with torch.no_grad():
        for name in sorted(stored):
            module, _, part = name.rpartition(".")
            if part == "weight" and module.split(".")[-1] in TARGETS:
                values = quantize_nf4(stored[name].float().numpy(), 64, double_quant=True).dequantize()
                model.get_submodule(module).weight.copy_(torch.from_numpy(values))
    return model


def make_adapter() -> None:
    torch.manual_seed(2)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, lora_dropout=0.0, target_modules=TARGETS)
    model = get_peft_model(frozen_base(False), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.peft_config["default"].base_model_name_or_path = "tune-golden/recurrent-base"
    model.save_pretrained(FOLDER / "adapter", save_embedding_layers=False)
    tidy_adapter_folder(FOLDER / "adapter")


def make_rows() -> None:
    trajectory.VOCAB_SIZE = VOCAB_SIZE
    trajectory.FOLDER = FOLDER
    trajectory.write_rows("tokens.jsonl", trajectory.make_rows(3, [17, 90, 9, 66, 40, 3]))


def write_case(quantized: bool) -> None:
    model = PeftModel.from_pretrained(frozen_base(quantized), FOLDER / "adapter", is_trainable=True)
    result = trajectory.train(CASE, model, trajectory.adamw(CASE, model))
    name = "nf4" if quantized else "dense"
    write_json(
        FOLDER / f"case_{name}.json",
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
        save_file(ordered, FOLDER / "final_adapter.safetensors", metadata={"format": "pt"})
    print(f"{name}: loss {result.losses[0]:.4f} -> {result.losses[-1]:.4f}")


def main() -> None:
    deterministic()
    fresh_folder(FOLDER)
    make_base()
    make_adapter()
    make_rows()
    for quantized in (False, True):
        write_case(quantized)
    size = sum(path.stat().st_size for path in Path(FOLDER).rglob("*") if path.is_file())
    print(f"{size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
