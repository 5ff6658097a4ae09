"""What transformers saves of small models that bitsandbytes quantized to NF4, and a check of folders of ours.

    python quantized.py                          # makes quantized/ of families/
    python quantized.py --base BASE --folder OUT # loads what `tune quantize BASE --out OUT` wrote

Owns: `quantized/<model>_<single|double>/`: config.json and model.safetensors as
`save_pretrained` writes them after a load with `BitsAndBytesConfig`. A model
is kept under double quantization only where bitsandbytes' CPU build gives the
codes of its CUDA rule and the mean of the scales is the pairwise one; see
`nf4_rule.py`.

The check loads both in transformers: BASE with a `BitsAndBytesConfig` of the
folder's own settings, and OUT as it is. It exits with 1 when a weight is
missing or left over, a module is quantized in one and not in the other, a
4-bit code differs, a scale differs by more than a level, or logits differ
by more than --tolerance. By default that is 0 where scales are not quantized.
Under double quantization bitsandbytes' CPU build takes another mean in the
last bit, and another code on near-ties, than its CUDA build, whose rule ours
is: then 1e-4 for f32, and for bf16, where one bit more or less moves a sum by
a rounding, a fiftieth of the largest logit.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

import torch
from bitsandbytes.nn import Linear4bit
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel

from tiny_model import HERE, deterministic, save_model

CASES = [("llama_bf16", False), ("llama_bf16", True), ("smollm2", False), ("../dense/gemma3", False)]


def quantized(base: Path, double: bool) -> PreTrainedModel:
    """`base`, quantized while transformers loads it."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    dtype = config.get("dtype", config.get("torch_dtype"))
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    return AutoModelForCausalLM.from_pretrained(base, quantization_config=settings, device_map="cpu").eval()


def make() -> None:
    for name, double in CASES:
        folder = HERE / "quantized" / f"{Path(name).name}_{'double' if double else 'single'}"
        save_model(quantized(HERE / "families" / name, double), folder)


def modules_in_4_bits(model: PreTrainedModel) -> list[str]:
    return sorted(name for name, module in model.named_modules() if isinstance(module, Linear4bit))


def check(base: Path, folder: Path, tolerance: float | None) -> None:
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    double = settings["bnb_4bit_use_double_quant"]
    ours, info = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", output_loading_info=True)
    ours.eval()
    if info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]:
        sys.exit(f"loading: {info}")
    theirs = quantized(base, double)
    if modules_in_4_bits(ours) != modules_in_4_bits(theirs):
        sys.exit(f"other modules in 4 bits: {set(modules_in_4_bits(ours)) ^ set(modules_in_4_bits(theirs))}")
    scales, other = 0, 0
    for name, module in ours.named_modules():
        if isinstance(module, Linear4bit):
            here, there = module.weight, theirs.get_submodule(name).weight
            assert torch.equal(here.data, there.data), f"{name}: other codes"
            here, there = here.quant_state.absmax, there.quant_state.absmax
            if double:
                apart = (here.int() - there.int()).abs()
                assert apart.max() <= 1, f"{name}: a scale is {apart.max()} levels away"
                scales, other = scales + apart.numel(), other + int(apart.count_nonzero())
            else:
                assert torch.equal(here, there), f"{name}: other scales"
    if double:
        print(f"codes of weights equal, of {scales} scales {other} have another code")
    if (folder / "tokenizer.json").exists():
        print("tokenizer:", len(AutoTokenizer.from_pretrained(folder)), "tokens")
    for module in [*ours.modules(), *theirs.modules()]:
        if isinstance(module, Linear4bit):
            # bitsandbytes' fast path for CPUs wants rows of whole blocks, which small models lack.
            module.support_avx512bf16_for_cpu = False
    tokens = torch.randint(ours.config.vocab_size, (4, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(input_ids=tokens, use_cache=False).logits.float()
        found = ours(input_ids=tokens, use_cache=False).logits.float()
    difference = (found - expected).abs().max().item()
    print(
        f"{len(modules_in_4_bits(ours))} modules in 4 bits, max |difference| of logits {difference:.2e}, "
        f"largest logit {expected.abs().max().item():.2f}"
    )
    if tolerance is None:
        narrow = expected.abs().max().item() / 50 if ours.dtype == torch.bfloat16 else 1e-4
        tolerance = narrow if double else 0.0
    sys.exit(0 if difference <= tolerance else 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--tolerance", type=float)
    arguments = parser.parse_args()
    deterministic()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if arguments.base and arguments.folder:
        check(arguments.base, arguments.folder, arguments.tolerance)
    make()


if __name__ == "__main__":
    main()
