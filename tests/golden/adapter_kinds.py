"""Other kinds of adapters on the base of `trajectory/`, by transformers + PEFT + torch.

Writes `kinds/`: for each case of `CASES` the adapter it starts from (where that
is not `trajectory/adapter`), its losses, gradient norms and the adapter after
the last step. Needs `trajectory.py` to have been run.

    python adapter_kinds.py
"""

from dataclasses import asdict, dataclass

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file, save_file

from tiny_model import HERE, deterministic, tidy_adapter_folder, write_json
from trajectory import PROJECTIONS, Case, Trajectory, adamw, load_frozen_base, train

FOLDER = HERE / "kinds"


@dataclass(frozen=True)
class Kind(Case):
    """A case, and what is special about it."""

    learning_rate_ratio: float = 1.0  # B's rate over A's
    start: str = "trajectory/adapter"
    modules_to_save: tuple[str, ...] = ()  # trained as a whole, from what the base has


CASES = [
    Kind("loraplus", "tokens.jsonl", 4, 1, 2e-4, 0.01, 1.0, learning_rate_ratio=16.0),
    Kind("dora", "tokens.jsonl", 4, 1, 1e-3, 0.01, 1.0, start="kinds/adapter_dora"),
    Kind("dora_loraplus", "tokens.jsonl", 2, 2, 2e-4, 0.01, 0.0, 8, learning_rate_ratio=8.0, start="kinds/adapter_dora"),
    Kind(
        "wholes", "tokens.jsonl", 2, 2, 1e-3, 0.01, 1.0, 8,
        learning_rate_ratio=4.0, modules_to_save=("embed_tokens", "lm_head"),
    ),
]
# Of a whole module every so many rows are kept in the fixtures.
ROWS = 8


def make_dora() -> None:
    """All seven projections, B random, magnitudes away from the rows' own."""
    torch.manual_seed(7)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=8, lora_alpha=16, lora_dropout=0.0, target_modules=PROJECTIONS, use_dora=True
    )
    model = get_peft_model(load_frozen_base(), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
        if "lora_magnitude_vector" in name:
            parameter.data.mul_(1.0 + 0.1 * torch.randn(parameter.shape))
    model.peft_config["default"].base_model_name_or_path = "tune-golden/trajectory-base"
    folder = FOLDER / "adapter_dora"
    model.save_pretrained(folder, save_embedding_layers=False)
    tidy_adapter_folder(folder)


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


def start(case: Kind) -> PeftModel:
    if not case.modules_to_save:
        return PeftModel.from_pretrained(load_frozen_base(), HERE / case.start, is_trainable=True)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=8,
        lora_alpha=16,
        lora_dropout=0.0,
        target_modules=PROJECTIONS,
        modules_to_save=list(case.modules_to_save),
    )
    model = get_peft_model(load_frozen_base(), config)
    tensors = load_file(HERE / case.start / "adapter_model.safetensors")
    base = load_frozen_base().state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[f"base_model.model.{name}"] = base[name]
    set_peft_model_state_dict(model, tensors)
    return model


def run(case: Kind) -> Trajectory:
    model = start(case)
    return train(case, model, optimizer_of(case, model))


def write(name: str, tensors: dict[str, torch.Tensor]) -> None:
    ordered = {key: tensors[key].contiguous() for key in sorted(tensors)}
    save_file(ordered, FOLDER / name, metadata={"format": "pt"})


def main() -> None:
    deterministic()
    FOLDER.mkdir(exist_ok=True)
    make_dora()
    for case in CASES:
        trajectory = run(case)
        series = {"losses": trajectory.losses, "grad_norms": trajectory.grad_norms}
        write_json(FOLDER / f"case_{case.name}.json", asdict(case) | series)
        if case.name == "dora":
            # PEFT holds magnitudes as a module's weight, and saves them without that word.
            gradients = {
                key.replace("magnitude_vector.weight", "magnitude_vector"): gradient
                for key, gradient in trajectory.step0_gradients.items()
            }
            write("step0_gradients_dora.safetensors", gradients)
        final = {
            key: tensor if "lora_" in key else tensor[::ROWS] for key, tensor in trajectory.final_adapter.items()
        }
        write(f"final_adapter_{case.name}.safetensors", final)
        print(f"{case.name}: loss {trajectory.losses[0]:.4f} -> {trajectory.losses[-1]:.4f}")


if __name__ == "__main__":
    main()
