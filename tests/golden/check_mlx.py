"""Loads what `tune export --for mlx` writes in mlx-lm and compares logits and answers; run by hand.

    pip install "mlx[cpu]" mlx-lm
    python check_mlx.py --tune target/debug/tune [--base BASE --adapter RUN/adapter]

For every adapter of `peft/` that can be carried over: logits of mlx-lm beside
those that PEFT computed for the original (`golden.safetensors`); for the others
that they are refused. With --base and --adapter, of a chat model: greedy answers
of mlx-lm beside those of `tune generate`, with and without the adapter. Also a
base that `tune merge` wrote loads as it is. All in f32.
"""

import argparse
import json
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm import load, stream_generate
from mlx_lm.sample_utils import make_sampler
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model

from consumer import HERE, MOST_TOKENS, PROMPTS, compare_answers, our_answers, refusal, tune

CARRIED = ["plain_qv", "all_linear", "regex", "rslora_patterns", "bf16"]
REFUSED = ["dora", "wholes"]
TOLERANCE = 1e-4


def golden(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Token ids, and the logits that PEFT computed."""
    tensors = mx.load(str(folder / "golden.safetensors"))
    return np.array(tensors["input_ids"]), np.array(tensors["logits"])


def logits(binary: Path, scratch: Path) -> None:
    base = HERE / "peft" / "base"
    largest = 0.0
    for name in CARRIED:
        adapter, out = HERE / "peft" / name, scratch / name
        tune(binary, "export", adapter, "--base", base, "--for", "mlx", "--out", out)
        model, _ = load_model(base)
        model = load_adapters(model, str(out))
        model.eval()
        ids, expected = golden(adapter)
        found = np.array(model(mx.array(ids.reshape(1, -1))).astype(mx.float32)).reshape(expected.shape)
        difference = float(np.abs(found - expected).max())
        print(f"{name}: max |difference| of logits {difference:.2e}, largest logit {np.abs(expected).max():.2f}")
        largest = max(largest, difference)
    assert largest <= TOLERANCE, largest
    for name in REFUSED:
        error = refusal(binary, "export", HERE / "peft" / name, "--base", base, "--for", "mlx", "--out", scratch / name)
        assert "tune merge" in error, error
        print(f"{name}: refused, with the way out")


def answers(base: Path, adapter: Path | None) -> list[str]:
    """Greedy answers of mlx-lm in f32."""
    model, tokenizer = load(str(base), adapter_path=str(adapter) if adapter else None)
    model.set_dtype(mx.float32)
    greedy = make_sampler(temp=0.0)
    texts = []
    for prompt in PROMPTS:
        ids = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)
        pieces = stream_generate(model, tokenizer, ids, max_tokens=MOST_TOKENS, sampler=greedy)
        texts.append("".join(piece.text for piece in pieces))
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tune", type=Path, required=True)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--adapter", type=Path)
    arguments = parser.parse_args()
    mx.set_default_device(mx.cpu)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        logits(arguments.tune, scratch)
        if arguments.base and arguments.adapter:
            base, adapter, out = arguments.base, arguments.adapter, scratch / "chat"
            tune(arguments.tune, "export", adapter, "--base", base, "--for", "mlx", "--out", out)
            compare_answers("base", our_answers(arguments.tune, base, None), answers(base, None))
            ours = our_answers(arguments.tune, base, adapter)
            compare_answers("adapter", ours, answers(base, out))
            merged = scratch / "merged"
            tune(arguments.tune, "merge", adapter, "--base", base, "--dtype", "f32", "--out", merged)
            compare_answers("merged", ours, answers(merged, None))
            print("sample:", json.dumps(ours[0]))


if __name__ == "__main__":
    main()
