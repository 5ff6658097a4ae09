"""What transformers generates, filters and measures, on the small models of the other scripts.

Writes `generation/`:

- `greedy.json`: tokens of `generate` (no sampling) by base and by adapter on base, with and without a repetition
  penalty, and with an end token; the smallest lead of a chosen token over the next, which must be beyond rounding;
- `filters.json`: fixed logits, what the logits processors leave of them, and how likely each of it is;
- `loss.json`: summed loss and supervised tokens of every row of `trajectory/tokens.jsonl`, in f32, by base and by
  adapter on base, dense and in NF4.

    python generation.py
"""

import torch
from peft import PeftModel
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import trajectory
from tiny_model import HERE, deterministic, fresh_folder, load_float32, write_json

FOLDER = HERE / "generation"
PEFT = HERE / "peft"
LEAST_LEAD = 1e-4
PROMPTS = [[3, 17, 40, 8, 25], [1], [60, 60, 60, 2, 9, 33, 12, 5, 44, 7, 21]]
NEW_TOKENS = 24


def greedy(model: torch.nn.Module, prompt: list[int], penalty: float, eos: int | None) -> dict:
    """One greedy answer, and by how much its tokens lead."""
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        repetition_penalty=penalty,
        eos_token_id=eos,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    # What a configuration leaves open, `generate` takes from the model's own; that of a Llama ends at 2.
    model.generation_config.eos_token_id = eos
    ids = torch.tensor([prompt])
    found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
    lead = min((score[0].topk(2).values.diff().abs().item()) for score in found.scores)
    assert lead > LEAST_LEAD, f"{prompt}, penalty {penalty}: a lead of {lead} may be rounding"
    tokens = found.sequences[0, len(prompt) :].tolist()
    stopped = eos is not None and tokens[-1] == eos
    return {
        "prompt": prompt,
        "repetition_penalty": penalty,
        "eos": eos,
        "tokens": tokens[:-1] if stopped else tokens,
        "stopped": stopped,
        "lead": lead,
    }


def make_greedy() -> None:
    cases = []
    for base, adapter in [("peft/base", None), ("peft/base", "peft/all_linear"), ("families/qwen3", None)]:
        model = load_float32(HERE / base)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, HERE / adapter).eval()
        for prompt in PROMPTS:
            for penalty in [1.0, 1.3, 0.9]:
                cases.append({"base": base, "adapter": adapter} | greedy(model, prompt, penalty, None))
        # The fourth token of the first answer, as an end token.
        eos = cases[-9]["tokens"][3]
        cases.append({"base": base, "adapter": adapter} | greedy(model, PROMPTS[0], 1.0, eos))
    plain = [case["tokens"] for case in cases if case["repetition_penalty"] == 1.0]
    penalized = [case["tokens"] for case in cases if case["repetition_penalty"] == 1.3]
    assert plain[0] != penalized[0] and cases[0]["tokens"] != cases[10]["tokens"]
    write_json(FOLDER / "greedy.json", cases)


def make_filters() -> None:
    generator = torch.Generator().manual_seed(7)
    rows = [(torch.randn(50, generator=generator) * scale).round(decimals=3).tolist() for scale in (0.5, 2.0, 6.0)]
    settings = [
        {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
        {"temperature": 0.7, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
        {"temperature": 1.0, "top_k": 7, "top_p": 1.0, "min_p": 0.0},
        {"temperature": 1.0, "top_k": 0, "top_p": 0.9, "min_p": 0.0},
        {"temperature": 1.0, "top_k": 0, "top_p": 0.3, "min_p": 0.0},
        {"temperature": 1.0, "top_k": 0, "top_p": 0.001, "min_p": 0.0},
        {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.1},
        {"temperature": 1.6, "top_k": 0, "top_p": 1.0, "min_p": 0.25},
        {"temperature": 1.3, "top_k": 20, "top_p": 0.8, "min_p": 0.05},
        {"temperature": 0.4, "top_k": 5, "top_p": 0.95, "min_p": 0.02},
    ]
    cases = []
    for row, logits in enumerate(rows):
        for setting in settings:
            warpers = LogitsProcessorList([TemperatureLogitsWarper(setting["temperature"])])
            if setting["top_k"] > 0:
                warpers.append(TopKLogitsWarper(setting["top_k"]))
            if setting["top_p"] < 1.0:
                warpers.append(TopPLogitsWarper(setting["top_p"]))
            if setting["min_p"] > 0.0:
                warpers.append(MinPLogitsWarper(setting["min_p"]))
            left = warpers(torch.tensor([[0]]), torch.tensor([logits], dtype=torch.float64))[0]
            kept = [id for id, logit in enumerate(left.tolist()) if logit != -float("inf")]
            shares = left.softmax(0)[kept].tolist()
            cases.append({"row": row} | setting | {"kept": kept, "shares": shares})
    seen = [3, 3, 10, 49]
    penalties = []
    for row, logits in enumerate(rows):
        for penalty in (1.2, 0.8):
            processor = RepetitionPenaltyLogitsProcessor(penalty)
            values = processor(torch.tensor([seen]), torch.tensor([logits], dtype=torch.float32))[0]
            penalties.append({"row": row, "penalty": penalty, "seen": seen, "logits": values.tolist()})
    write_json(FOLDER / "filters.json", {"rows": rows, "cases": cases, "penalties": penalties})


def make_loss() -> None:
    rows = trajectory.read_rows("tokens.jsonl")
    found = []
    for quantized in (False, True):
        for adapter in (False, True):
            model = trajectory.load_frozen_base() if quantized else load_float32(trajectory.FOLDER / "base")
            if adapter:
                model = PeftModel.from_pretrained(model, trajectory.FOLDER / "adapter").eval()
            with torch.no_grad():
                sums = [trajectory.summed_loss(model, tokens, labels).item() for tokens, labels in rows]
            counts = [trajectory.supervised_tokens([row]) for row in rows]
            found.append(
                {
                    "nf4": quantized,
                    "adapter": adapter,
                    "sums": sums,
                    "tokens": counts,
                    "loss": sum(sums) / sum(counts),
                }
            )
    write_json(FOLDER / "loss.json", found)


def main() -> None:
    deterministic()
    fresh_folder(FOLDER)
    make_greedy()
    make_filters()
    make_loss()


if __name__ == "__main__":
    main()
