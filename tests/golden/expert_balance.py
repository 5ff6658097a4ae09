"""LoRA on a mixture with transformers' loss that spreads tokens over experts.

Writes `expert_balance.json`: ten steps from `mixture_experts/adapter` on its base with a large coefficient,
the losses with and without the part of the experts. Routers are frozen.

    python expert_balance.py
"""

import torch
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from mixture_experts import DECAY, FOLDER, LEARNING_RATE, STEPS, adapted
from tiny_model import HERE, deterministic, load_float32, write_json
from trajectory import read_rows, supervised_tokens

COEFFICIENT = 0.5


def main() -> None:
    deterministic()
    model = adapted(load_float32(FOLDER / "base"))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=DECAY, foreach=False)
    rows = read_rows("../mixture_experts/tokens.jsonl")
    losses, auxiliary = [], []
    for step in range(STEPS):
        batch = [rows[(2 * step + index) % len(rows)] for index in range(2)]
        count = supervised_tokens(batch)
        optimizer.zero_grad(set_to_none=True)
        total, routed = 0.0, []
        for tokens, labels in batch:
            output = model(input_ids=torch.tensor([tokens]), output_router_logits=True)
            targets = torch.tensor(labels[1:])
            total += torch.nn.functional.cross_entropy(output.logits[0, :-1], targets, reduction="sum", ignore_index=-100)
            routed.append(output.router_logits)
        # Both rows are one micro-batch.
        logits = tuple(torch.cat(layer) for layer in zip(*routed))
        balance = load_balancing_loss_func(logits, model.config.num_experts, model.config.num_experts_per_tok)
        (total / count + COEFFICIENT * balance).backward()
        optimizer.step()
        losses.append((total / count).item() + COEFFICIENT * balance.item())
        auxiliary.append(balance.item())
    write_json(HERE / "expert_balance.json", {"coefficient": COEFFICIENT, "losses": losses, "auxiliary": auxiliary})
    print(losses, auxiliary)


if __name__ == "__main__":
    main()
