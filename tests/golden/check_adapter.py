"""Loads an adapter that `tune` wrote in PEFT and compares logits; run by hand.

    python check_adapter.py --base BASE --adapter RUN/adapter --tokens rows.jsonl --logits ours.safetensors
                            [--nf4-block-size 64] [--double-quant | --no-double-quant]

`rows.jsonl` holds one object with `input_ids` per line. `ours.safetensors` holds
our logits as `logits.0`, `logits.1`, ... for its rows in order, f32 [T, V] or
[1, T, V]. With --nf4-block-size the projections of the base are replaced by
their NF4 dequantization first (`nf4_rule.py`); a base that bitsandbytes
quantized is dequantized as it stands. Exits with 1 when keys are missing or left
over, or when the largest difference exceeds --tolerance.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from families import dequantize_checkpoint
from nf4_rule import quantize_nf4
from tiny_model import deterministic, load_float32


def load_base(folder: Path, block_size: int | None, double_quant: bool) -> PreTrainedModel:
    """The frozen base in f32, exactly as the adapter saw it."""
    config = AutoConfig.from_pretrained(folder)
    if getattr(config, "quantization_config", None):
        del config.quantization_config
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
        tensors = dequantize_checkpoint(folder)
        missing = model.load_state_dict(tensors, strict=False).missing_keys
        assert set(missing) <= {"lm_head.weight"} and (not missing or config.tie_word_embeddings), missing
        model.tie_weights()
        return model
    model = load_float32(folder)
    if block_size is not None:
        with torch.no_grad():
            for name, module in model.named_modules():
                if isinstance(module, torch.nn.Linear) and name != "lm_head":
                    quantized = quantize_nf4(module.weight.numpy(), block_size, double_quant)
                    module.weight.copy_(torch.from_numpy(quantized.dequantize()))
    return model


def load_adapter(model: PreTrainedModel, folder: Path) -> torch.nn.Module:
    """The adapter on the model; every tensor must find its place and every place its tensor."""
    config = PeftConfig.from_pretrained(folder)
    adapted = get_peft_model(model, config)
    tensors = load_file(folder / "adapter_model.safetensors")
    result = set_peft_model_state_dict(adapted, tensors)
    missing = [key for key in result.missing_keys if "lora_" in key]
    if missing or result.unexpected_keys:
        sys.exit(f"missing: {missing}\nunexpected: {list(result.unexpected_keys)}")
    print(f"{len(tensors)} adapter tensors, none missing, none left over")
    return adapted.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, required=True, help="Hugging Face folder of the base")
    parser.add_argument("--adapter", type=Path, required=True, help="folder with adapter_config.json")
    parser.add_argument("--tokens", type=Path, required=True, help="JSONL with input_ids")
    parser.add_argument("--logits", type=Path, required=True, help="safetensors with our logits.<row>")
    parser.add_argument("--nf4-block-size", type=int, help="quantize the base's projections to NF4 first")
    parser.add_argument("--double-quant", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    arguments = parser.parse_args()
    deterministic()

    model = load_adapter(load_base(arguments.base, arguments.nf4_block_size, arguments.double_quant), arguments.adapter)
    ours = load_file(arguments.logits)
    rows = [json.loads(line)["input_ids"] for line in arguments.tokens.read_text(encoding="utf-8").splitlines()]
    compared = [(row, index) for index, row in enumerate(rows) if f"logits.{index}" in ours]
    if not compared:
        sys.exit(f"{arguments.logits} has no logits.<row>; it has {sorted(ours)[:5]}")
    largest = 0.0
    for row, index in compared:
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([row]), use_cache=False).logits[0]
        found = ours[f"logits.{index}"].reshape(-1, expected.shape[-1])
        if found.shape != expected.shape:
            sys.exit(f"logits.{index}: shape {tuple(found.shape)}, expected {tuple(expected.shape)}")
        difference = (found - expected).abs().max().item()
        largest = max(largest, difference)
        print(f"row {index}: {len(row)} tokens, max |difference| {difference:.2e}")
    print(f"max |difference| over {len(compared)} rows: {largest:.2e}")
    sys.exit(0 if largest <= arguments.tolerance else 1)


if __name__ == "__main__":
    main()
