"""What the checks of other programs share: running `tune`, and what it answers.

Owns: exporting, greedy answers of ours, prompts of the quickstart. Knows nothing
of the programs.
"""

import json
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROMPTS = ["Tell me about a cat.", "What is a harbour for?", "What does the baker do?", "Who are you?"]
MOST_TOKENS = 40


def tune(binary: Path, *arguments) -> str:
    """Standard output of a command that has to succeed."""
    finished = subprocess.run([binary.resolve(), *map(str, arguments)], capture_output=True, text=True)
    if finished.returncode != 0:
        raise SystemExit(f"tune {' '.join(map(str, arguments))}\n{finished.stderr}")
    return finished.stdout


def refusal(binary: Path, *arguments) -> str:
    """Standard error of a command that has to fail."""
    finished = subprocess.run([binary.resolve(), *map(str, arguments)], capture_output=True, text=True)
    assert finished.returncode != 0, f"tune {' '.join(map(str, arguments))} succeeded"
    return finished.stderr


def our_answers(binary: Path, base: Path, adapter: Path | None) -> list[str]:
    """Greedy answers to the prompts, through the chat template, in f32 on the dense base."""
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.jsonl"
        prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS), encoding="utf-8")
        model = ["--base", base, "--quantize", "none", "--compute-dtype", "f32", "--max-new-tokens", MOST_TOKENS]
        model += ["--adapter", adapter] if adapter else []
        lines = tune(binary, "generate", *model, "--prompts", prompts).splitlines()
    return [json.loads(line)["response"] for line in lines]


def compare_answers(who: str, ours: list[str], theirs: list[str]) -> None:
    """All the same, or an error that shows the first that is not."""
    for prompt, own, other in zip(PROMPTS, ours, theirs, strict=True):
        assert own.strip() == other.strip(), f"{who}: {prompt!r}\n ours   {own!r}\n theirs {other!r}"
    print(f"{who}: {len(ours)} greedy answers, all the same")
