"""Loads adapters of ours in mistral.rs and compares answers; run by hand.

    pip install mistralrs
    MISTRALRS_CPU_KV_F32=1 python check_mistralrs.py --tune target/debug/tune --base BASE --adapter RUN/adapter

BASE is a chat model, the adapter one of a run on it. Greedy answers of mistral.rs
beside those of `tune generate`, in f32: of the base, of the adapter as the run
wrote it, and of what `tune export --for mistralrs` makes of it. mistral.rs
gives no logits of a prompt; it does refuse tensors that it has no place for.
"""

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("MISTRALRS_CPU_KV_F32", "1")

from mistralrs import ChatCompletionRequest, LoraAdapter, ModelDType, Runner, Which

from consumer import HERE, MOST_TOKENS, PROMPTS, compare_answers, our_answers, refusal, tune


def answers(runner: Runner, adapter: str | None) -> list[str]:
    texts = []
    for prompt in PROMPTS:
        request = ChatCompletionRequest(
            model="default",
            messages=[{"role": "user", "content": prompt}],
            max_tokens=MOST_TOKENS,
            temperature=0.0,
            adapter=adapter,
        )
        texts.append(runner.send_chat_completion_request(request).choices[0].message.content)
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tune", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    arguments = parser.parse_args()
    binary, base, adapter = arguments.tune, arguments.base.resolve(), arguments.adapter.resolve()
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "exported"
        tune(binary, "export", adapter, "--base", base, "--for", "mistralrs", "--out", exported)
        adapters = [LoraAdapter("as-it-is", str(adapter)), LoraAdapter("exported", str(exported))]
        which = Which.Lora(model_id=str(base), adapters=adapters, dtype=ModelDType.F32)
        runner = Runner(which, max_seqs=1, no_paged_attn=True)
        compare_answers("base", our_answers(binary, base, None), answers(runner, None))
        ours = our_answers(binary, base, adapter)
        compare_answers("as it is", ours, answers(runner, "as-it-is"))
        compare_answers("exported", ours, answers(runner, "exported"))
        for name in ["dora", "wholes"]:
            source = HERE / "peft" / name
            error = refusal(binary, "export", source, "--for", "mistralrs", "--out", Path(folder) / name)
            assert "tune merge" in error, error
            print(f"{name}: refused, with the way out")


if __name__ == "__main__":
    main()
