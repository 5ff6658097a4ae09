"""LoRA on every expert of a tiny random mixture, by PEFT: an adapter for each expert's projections.

Writes `mixture_experts/`: `base/`, a Qwen3-MoE as the hub has it; `adapter/` to start from, with
a pair for each projection of each expert, as PEFT writes where experts are modules;
`tokens.jsonl`, rows so short that some experts see no token of a step; `losses.json`, ten steps with decay
on the dense base (`dense`) and on its NF4 form (`nf4`), and `final_adapter.safetensors` after the
dense ones. transformers stacks experts in two parameters; here they are modules again.

    python mixture_experts.py
"""

import json

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from families import SHAPE
from mixtures import QWEN3, quantized
from tiny_model import HERE, deterministic, fresh_folder, load_float32, randomize, save_model, tidy_adapter_folder, write_json
from trajectory import make_rows, read_rows, summed_loss, supervised_tokens

FOLDER = HERE / "mixture_experts"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
STEPS = 10
LEARNING_RATE = 2e-3
DECAY = 0.1
LENGTHS = [4, 9, 3, 5]


class Expert(nn.Module):
    def __init__(self, gate_up: torch.Tensor, down: torch.Tensor):
        super().__init__()
        for name, weight in zip(("gate_proj", "up_proj", "down_proj"), (*gate_up.chunk(2), down)):
            module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            module.weight = nn.Parameter(weight.clone())
            setattr(self, name, module)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.ModuleList):
    def forward(self, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        result = torch.zeros_like(hidden)
        for index, expert in enumerate(self):
            tokens, places = torch.where(chosen == index)
            if len(tokens) > 0:
                result.index_add_(0, tokens, expert(hidden[tokens]) * weights[tokens, places, None])
        return result


def apart(model: nn.Module) -> nn.Module:
    for layer in model.model.layers:
        stacked = layer.mlp.experts
        layer.mlp.experts = Experts(Expert(*pair) for pair in zip(stacked.gate_up_proj, stacked.down_proj))
    return model


def adapted(base: nn.Module) -> nn.Module:
    """The base with the adapter to start from, the same each time."""
    torch.manual_seed(3)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, lora_dropout=0.0, target_modules=TARGETS)
    model = get_peft_model(apart(base), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    return model


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    state = get_peft_model_state_dict(model)
    return {key: state[key].contiguous() for key in sorted(state)}


def train(model: nn.Module) -> tuple[list[float], int]:
    """The losses, and how often an expert's adapter saw no token of a step."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=DECAY, foreach=False)
    rows = read_rows("../mixture_experts/tokens.jsonl")
    losses, unreached = [], 0
    for step in range(STEPS):
        batch = [rows[(2 * step + index) % len(rows)] for index in range(2)]
        count = supervised_tokens(batch)
        total = 0.0
        optimizer.zero_grad(set_to_none=True)
        for tokens, labels in batch:
            loss = summed_loss(model, tokens, labels)
            total += loss.item()
            (loss / count).backward()
        unreached += sum(parameter.grad is None for parameter in parameters)
        optimizer.step()
        losses.append(total / count)
    return losses, unreached


def main() -> None:
    deterministic()
    fresh_folder(FOLDER)
    config = Qwen3MoeConfig(**SHAPE | QWEN3 | {"num_experts": 12, "moe_intermediate_size": 16})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    randomize(model, 600)
    save_model(model, FOLDER / "base")
    rows = make_rows(8, LENGTHS)
    for row in rows:
        for key in ("input_ids", "labels"):
            row[key] = [value if value < 0 else value % SHAPE["vocab_size"] for value in row[key]]
    text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
    (FOLDER / "tokens.jsonl").write_text(text, encoding="utf-8")

    model = adapted(load_float32(FOLDER / "base"))
    model.peft_config["default"].base_model_name_or_path = "tune-golden/mixture-experts"
    (FOLDER / "adapter").mkdir()
    model.peft_config["default"].save_pretrained(FOLDER / "adapter")
    save_file(tensors(model), FOLDER / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    tidy_adapter_folder(FOLDER / "adapter")
    losses = {}
    losses["dense"], unreached = train(model)
    assert unreached > 0, "every expert is reached by every step"
    save_file(tensors(model), FOLDER / "final_adapter.safetensors", metadata={"format": "pt"})
    losses["nf4"], _ = train(adapted(quantized(load_float32(FOLDER / "base"))))
    write_json(FOLDER / "losses.json", losses)
    print(f"{unreached} tensors unreached; dense {losses['dense'][0]:.3f} to {losses['dense'][-1]:.3f}")


if __name__ == "__main__":
    main()
