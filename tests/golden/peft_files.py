"""Adapters as PEFT saves them, and the f32 logits of base + adapter.

Writes `peft/base/` (a tiny Llama) and, for each adapter, `peft/<name>/` with
adapter_config.json, adapter_model.safetensors and `golden.safetensors`
(`input_ids` i64 [1, T], `logits` f32 [1, T, V]).

    python peft_files.py
"""

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tiny_model import HERE, deterministic, fresh_folder, load_float32, randomize, save_model, tidy_adapter_folder

FOLDER = HERE / "peft"
BASE = FOLDER / "base"
VOCAB_SIZE = 64
ADAPTERS = {
    "plain_qv": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "all_linear": {"r": 4, "lora_alpha": 16, "target_modules": "all-linear"},
    "regex": {"r": 3, "lora_alpha": 6, "target_modules": r".*\.layers\.1\.(self_attn|mlp)\.(k|down)_proj"},
    "rslora_patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "o_proj", "down_proj"],
        "use_rslora": True,
        "rank_pattern": {"layers.0.mlp.down_proj": 8, r"layers\.\d+\.self_attn\.o_proj": 2},
        "alpha_pattern": {"down_proj": 32},
    },
    "dora": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "use_dora": True},
    "wholes": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj"],
        "modules_to_save": ["embed_tokens", "lm_head"],
    },
    "bf16": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
}
SEEDS = {"plain_qv": 20, "all_linear": 21, "regex": 22, "rslora_patterns": 23, "bf16": 24, "dora": 25, "wholes": 26}


def make_base() -> None:
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    randomize(model, seed=10)
    save_model(model, BASE)


def logits(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits.contiguous()


def make_adapter(name: str, settings: dict, seed: int) -> None:
    torch.manual_seed(seed)
    config = LoraConfig(task_type="CAUSAL_LM", **settings)
    model = get_peft_model(load_float32(BASE), config)
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.1)
        if "lora_magnitude_vector" in parameter_name:
            parameter.data.mul_(1.0 + 0.2 * torch.randn(parameter.shape))
        if "modules_to_save" in parameter_name:
            parameter.data.add_(0.3 * parameter.std() * torch.randn(parameter.shape))
    if name == "bf16":
        model = model.to(torch.bfloat16)
    model.peft_config["default"].base_model_name_or_path = "tune-golden/peft-base"
    folder = FOLDER / name
    model.save_pretrained(folder, save_embedding_layers=False)
    tidy_adapter_folder(folder)

    tokens = torch.randint(VOCAB_SIZE, (1, 24), generator=torch.Generator().manual_seed(seed))
    values = logits(PeftModel.from_pretrained(load_float32(BASE), folder).eval(), tokens)
    moved = (values - logits(load_float32(BASE), tokens)).abs().max().item()
    save_file({"input_ids": tokens, "logits": values}, folder / "golden.safetensors", metadata={"format": "pt"})
    print(f"{name}: the adapter moves logits by {moved:.2f}")


def main() -> None:
    deterministic()
    fresh_folder(FOLDER)
    make_base()
    for name, settings in ADAPTERS.items():
        make_adapter(name, settings, SEEDS[name])


if __name__ == "__main__":
    main()
