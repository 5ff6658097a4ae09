"""LoRA on experts that are stacked in one parameter, as PEFT has them on transformers 5.

Writes `stacked_adapters/<name>/`, each an adapter folder as PEFT saves it with `logits.safetensors`: ids
and logits of the base with the adapter.

| name | base | adapter |
|---|---|---|
| `qwen3_moe` | `mixture_experts/base` | `mixture_experts/adapter`, stacked by PEFT |
| `gpt_oss` | `mixtures/gpt_oss` | random, on both parameters and `q_proj`; gate and up take turns |
| `gpt_oss_down` | the same | random, on one parameter alone |

    python stacked_adapters.py
"""

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import nn

from tiny_model import HERE, deterministic, fresh_folder, load_float32, tidy_adapter_folder

FOLDER = HERE / "stacked_adapters"
TOKENS = 24


def save(model: PeftModel, name: str, base: str) -> None:
    folder = FOLDER / name
    config = model.peft_config["default"]
    config.base_model_name_or_path = f"tune-golden/{base}"
    model.save_pretrained(folder)
    tidy_adapter_folder(folder)
    ids = torch.arange(TOKENS)[None] * 7 % model.config.vocab_size
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0]
    save_file({"ids": ids[0], "logits": logits.contiguous()}, folder / "logits.safetensors")


def fresh(base: str, **targets) -> PeftModel:
    config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, **targets)
    model = get_peft_model(load_float32(HERE / base), config)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def main() -> None:
    deterministic()
    fresh_folder(FOLDER)
    base = load_float32(HERE / "mixture_experts" / "base")
    save(PeftModel.from_pretrained(base, HERE / "mixture_experts" / "adapter"), "qwen3_moe", "mixture-experts")
    torch.manual_seed(11)
    both = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    save(fresh("mixtures/gpt_oss", target_modules=["q_proj"], target_parameters=both), "gpt_oss", "gpt-oss")
    save(fresh("mixtures/gpt_oss", target_modules=[], target_parameters=both[1:]), "gpt_oss_down", "gpt-oss")


if __name__ == "__main__":
    main()
