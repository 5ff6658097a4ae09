"""Loads a folder that `tune merge` wrote in transformers and compares it with the adapter on its base in PEFT.

    python check_merged.py --base BASE --adapter ADAPTER --merged OUT [--nf4-block-size 64] [--tolerance 1e-4]

Run by hand. Both run in f32 on random tokens. With --nf4-block-size the
projections of the base are replaced by their NF4 dequantization first, which is
what `--onto nf4` merges onto. Exits with 1 when a weight is missing or left
over, when tied weights came apart, or when logits differ by more than
--tolerance.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from check_adapter import load_adapter, load_base
from tiny_model import deterministic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--merged", type=Path, required=True)
    parser.add_argument("--nf4-block-size", type=int)
    parser.add_argument("--double-quant", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    arguments = parser.parse_args()
    deterministic()

    merged, info = AutoModelForCausalLM.from_pretrained(
        arguments.merged, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    if info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]:
        sys.exit(f"loading: {info}")
    config = AutoConfig.from_pretrained(arguments.merged)
    assert getattr(config, "quantization_config", None) is None, "the merged folder claims to be quantized"
    if config.tie_word_embeddings:
        head, embedding = merged.get_output_embeddings().weight, merged.get_input_embeddings().weight
        assert head.data_ptr() == embedding.data_ptr(), "tied weights came apart"
    if (arguments.merged / "tokenizer.json").exists():
        print("tokenizer:", len(AutoTokenizer.from_pretrained(arguments.merged)), "tokens")
    if (arguments.merged / "generation_config.json").exists():
        print("end tokens:", GenerationConfig.from_pretrained(arguments.merged).eos_token_id)
    index = arguments.merged / "model.safetensors.index.json"
    if index.exists():
        print("shards:", sorted(set(json.loads(index.read_text())["weight_map"].values())))

    adapted = load_adapter(load_base(arguments.base, arguments.nf4_block_size, arguments.double_quant), arguments.adapter)
    tokens = torch.randint(config.vocab_size, (4, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = adapted(input_ids=tokens, use_cache=False).logits
        found = merged.eval()(input_ids=tokens, use_cache=False).logits
    difference = (found - expected).abs().max().item()
    print(f"max |difference| of logits {difference:.2e}, largest logit {expected.abs().max().item():.2f}")
    sys.exit(0 if difference <= arguments.tolerance else 1)


if __name__ == "__main__":
    main()
