"""Other kinds of adapters on the base of `trajectory/`, by transformers + PEFT + torch.

Writes `kinds/`: for each case of `CASES` the adapter it starts from (where that
is not `trajectory/adapter`), its losses, gradient norms and the adapter after
the last step. Needs `trajectory.py` to have been run.

    python adapter_kinds.py
"""

from dataclasses import asdict, dataclass

import torch
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import save_file

from tiny_model import HERE, deterministic, write_json
from trajectory import FOLDER as TRAJECTORY
from trajectory import Case, Trajectory, adamw, load_frozen_base, train

FOLDER = HERE / "kinds"


@dataclass(frozen=True)
class Kind(Case):
    """A case, and what is special about it."""

    learning_rate_ratio: float = 1.0  # B's rate over A's


CASES = [
    Kind("loraplus", "tokens.jsonl", 4, 1, 2e-4, 0.01, 1.0, learning_rate_ratio=16.0),
]


def optimizer_of(case: Kind, model: PeftModel) -> torch.optim.Optimizer:
    if case.learning_rate_ratio == 1.0:
        return adamw(case, model)
    return create_loraplus_optimizer(
        model,
        torch.optim.AdamW,
        lr=case.learning_rate,
        loraplus_lr_ratio=case.learning_rate_ratio,
        loraplus_weight_decay=case.weight_decay,
        betas=(0.9, 0.999),
        eps=1e-8,
        foreach=False,
    )


def run(case: Kind) -> Trajectory:
    model = PeftModel.from_pretrained(load_frozen_base(), TRAJECTORY / "adapter", is_trainable=True)
    return train(case, model, optimizer_of(case, model))


def write(name: str, tensors: dict[str, torch.Tensor]) -> None:
    ordered = {key: tensors[key].contiguous() for key in sorted(tensors)}
    save_file(ordered, FOLDER / name, metadata={"format": "pt"})


def main() -> None:
    deterministic()
    FOLDER.mkdir(exist_ok=True)
    for case in CASES:
        trajectory = run(case)
        series = {"losses": trajectory.losses, "grad_norms": trajectory.grad_norms}
        write_json(FOLDER / f"case_{case.name}.json", asdict(case) | series)
        write(f"final_adapter_{case.name}.safetensors", trajectory.final_adapter)
        print(f"{case.name}: loss {trajectory.losses[0]:.4f} -> {trajectory.losses[-1]:.4f}")


if __name__ == "__main__":
    main()
