"""What PEFT's `add_weighted_adapter` makes of adapters of `peft/`, in f32.

Writes `peft/combined/<name>.safetensors` for each entry of `COMBINATIONS`. DARE
drops values at random, so it is compared where nothing is dropped; TIES keeps
any of equal values, so it prunes no adapter that was rounded. Needs
`peft_files.py` to have been run.

    python peft_combined.py
"""

from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file

from peft_files import BASE, FOLDER
from tiny_model import deterministic, fresh_folder, load_float32

COMBINATIONS = {
    "linear": ("linear", None, {"all_linear": 0.7, "plain_qv": -0.3}),
    "linear_single": ("linear", None, {"plain_qv": 0.25}),
    "cat": ("cat", None, {"plain_qv": 0.6, "rslora_patterns": 0.5, "bf16": -0.2}),
    "ties": ("ties", 0.45, {"all_linear": 0.7, "plain_qv": 0.4}),
    "ties_whole": ("ties", 1.0, {"all_linear": 0.7, "bf16": -0.9}),
    "dare_linear_whole": ("dare_linear", 1.0, {"all_linear": 0.7, "bf16": 0.5}),
    "dare_ties_whole": ("dare_ties", 1.0, {"all_linear": 0.7, "plain_qv": 0.3, "bf16": 0.5}),
}


def main() -> None:
    deterministic()
    folder = fresh_folder(FOLDER / "combined")
    for name, (how, density, weights) in COMBINATIONS.items():
        first, *others = weights
        model = PeftModel.from_pretrained(load_float32(BASE), FOLDER / first, adapter_name=first)
        for other in others:
            model.load_adapter(FOLDER / other, adapter_name=other)
        model.add_weighted_adapter(list(weights), list(weights.values()), "whole", how, density=density)
        tensors = get_peft_model_state_dict(model, adapter_name="whole")
        ordered = {key: tensors[key].contiguous() for key in sorted(tensors)}
        save_file(ordered, folder / f"{name}.safetensors", metadata={"format": "pt"})
        print(f"{name}: {len(ordered)} tensors")


if __name__ == "__main__":
    main()
