"""Times `tune` and TRL at DPO on the same model files and pairs, alternately, and prints the ratios.

    pip install torch transformers peft bitsandbytes accelerate trl     # in an environment of its own, some 6 GB
    cargo build --release
    python benches/preference_peers.py                           # M, two rounds
    python benches/preference_peers.py --sizes S --rounds 1 --steps 2   # a look

As `benches/peers.py`, whose models and settings these are: on the processor, the same number of threads for both, each
process by itself, NF4 with double quantization, LoRA of rank 16 on all seven projections, AdamW. A step is one pair: a prompt
of 600 tokens and two answers of 200. TRL trains as its DPO trainer does, the base with the adapter off as the reference,
under `MODES`; the best one counts.

What is compared:
  pairs/s     the median over a round's steps after the warm-up, then the best round
  peak memory the largest resident set of the process, as the kernel counted it, over all rounds
  logp        the log-probability of the first chosen answer in the first step: it shows that the work is the same

All figures are written to WORKDIR/preference.json.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import time
from pathlib import Path

import peers

PROMPT, ANSWER = 600, 200
# What the base computes in (f32 is the fastest where the processor has no bf16), under autocast or not, and whether
# activations are recomputed, as TRL does unless it is asked not to.
MODES = {
    "f32": ("float32", False, False),
    "bf16": ("bfloat16", False, False),
    "bf16 + autocast": ("bfloat16", True, False),
    "bf16, recomputed": ("bfloat16", False, True),
}

RECIPE = peers.QLORA + """\
[objective.dpo]
beta = 0.1

[data]
max_seq_len = {longest}
packing = false
shuffle = false

[[dataset]]
path = {rows}
format = "preference"

[train]
max_steps = {steps}
micro_batch_size = 1
learning_rate = {learning_rate}
lr_scheduler = "constant"
warmup_steps = 0
max_grad_norm = 1.0
"""


# ---- In the processes of TRL -----------------------------------------------------------------------------------


def train(folder, mode, steps):
    """Trains `steps` steps and prints a JSON object of what was seen."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import (
        AutoModelForCausalLM,
        BitsAndBytesConfig,
        PreTrainedTokenizerFast,
        TrainerCallback,
        logging,
    )
    from trl import DPOConfig, DPOTrainer

    logging.set_verbosity_error()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    dtype, autocast, recomputes = MODES[mode]
    dtype = getattr(torch, dtype)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder / "model",
        quantization_config=quantization,
        dtype=dtype,
        device_map={"": "cpu"},
        attn_implementation="sdpa",
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "model/tokenizer.json"), eos_token="</s>", pad_token="</s>"
    )
    seconds, logps = [], []

    class Watch(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.began = time.perf_counter()

        def on_step_end(self, *_, **__):
            seconds.append(time.perf_counter() - self.began)

        def on_log(self, *_, logs, **__):
            logps.extend(logs[key] for key in ["logps/chosen"] if key in logs)

    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir=str(folder / "trl"),
            beta=0.1,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=1,
            max_steps=steps,
            max_length=PROMPT + ANSWER + 1,
            learning_rate=peers.LEARNING_RATE,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            bf16=autocast,
            gradient_checkpointing=recomputes,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([json.loads(line) for line in (folder / "pairs.jsonl").open()]),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=peers.RANK,
            lora_alpha=peers.ALPHA,
            lora_dropout=0.0,
            target_modules=peers.PROJECTIONS,
            task_type="CAUSAL_LM",
        ),
        callbacks=[Watch()],
    )
    trainer.train()
    print(json.dumps({"seconds": seconds, "logps": logps}))


# ---- In this process -------------------------------------------------------------------------------------------


def write_tokenizer(folder, vocabulary):
    """A word for every id; the last one ends a text."""
    words = {f"t{index}": index for index in range(vocabulary - 1)} | {"</s>": vocabulary - 1}
    end = {"id": vocabulary - 1, "content": "</s>", "special": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [end | flags],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "t0"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))


def prepare(size, folder, steps, environment):
    """Model, tokenizer, pairs and recipe; the model is kept if it is there."""
    model = folder / "model"
    if not (model / "model.safetensors").exists():
        print(f"writing the random model {size}", file=sys.stderr)
        shutil.rmtree(model, ignore_errors=True)
        partial = folder / "model.partial"
        peers.run(peers.this_script("--write-model", size, partial), environment)
        partial.rename(model)
    vocabulary = peers.SHAPES[size]["vocab_size"]
    write_tokenizer(model, vocabulary)
    numbers = random.Random(1)

    def text(count):
        return " ".join(f"t{numbers.randrange(3, vocabulary - 1)}" for _ in range(count))

    with (folder / "pairs.jsonl").open("w") as rows:
        for _ in range(steps):
            # Each answer ends with one more token.
            pair = {"prompt": text(PROMPT) + " ", "chosen": text(ANSWER - 1), "rejected": text(ANSWER - 1)}
            print(json.dumps(pair), file=rows)
    recipe = RECIPE.format(
        output=json.dumps(str(folder / "run")),
        base=json.dumps(str(model)),
        rows=json.dumps(str(folder / "pairs.jsonl")),
        rank=peers.RANK,
        alpha=peers.ALPHA,
        longest=PROMPT + ANSWER,
        steps=steps,
        learning_rate=peers.LEARNING_RATE,
    )
    (folder / "recipe.toml").write_text(recipe)


def time_tune(options, folder, environment):
    shutil.rmtree(folder / "run", ignore_errors=True)
    _, peak, _, _ = peers.run([options.tune, "run", folder / "recipe.toml"], environment)
    with (folder / "run" / "metrics.jsonl").open() as metrics:
        lines = [line for line in map(json.loads, metrics) if "tokens_per_second" in line]
    counts = [0] + [line["tokens"] for line in lines]
    seconds = [(b - a) / line["tokens_per_second"] for a, b, line in zip(counts, counts[1:], lines)]
    return {"seconds": seconds, "logp": lines[0]["logp_chosen"], "peak_memory_bytes": peak}


def time_peer(mode, options, folder, environment):
    steps = options.warmup + options.steps
    script = [sys.executable, str(Path(__file__).resolve())]
    command = [*script, "--train", mode, str(folder), "--steps", str(steps)]
    output, peak, _, _ = peers.run(command, environment)
    seen = json.loads(output.splitlines()[-1])
    return {"seconds": seen["seconds"], "logp": seen["logps"][0], "peak_memory_bytes": peak}


def measure(size, options, environment):
    folder = options.workdir / size
    folder.mkdir(parents=True, exist_ok=True)
    prepare(size, folder, options.warmup + options.steps, environment)
    rounds = {"tune": []} | {mode: [] for mode in options.modes}
    for number in range(options.rounds):
        names = list(rounds)
        for name in names if number % 2 == 0 else reversed(names):
            ours = name == "tune"
            seen = (
                time_tune(options, folder, environment) if ours else time_peer(name, options, folder, environment)
            )
            seen["pairs_per_second"] = 1 / statistics.median(seen["seconds"][options.warmup :])
            rounds[name].append(seen)
            rate = f"{seen['pairs_per_second']:.3f} pairs/s, {seen['peak_memory_bytes'] / 2**30:.2f} GiB"
            print(f"{size} round {number + 1} of {options.rounds}  {name:<16} {rate}", file=sys.stderr)
    return rounds


def report(size, rounds):
    def best(name):
        return max(seen["pairs_per_second"] for seen in rounds[name])

    def peak(name):
        return max(seen["peak_memory_bytes"] for seen in rounds[name])

    print(f"\n{size:<18}{'pairs/s':>24}{'ratio':>8}{'peak GiB':>10}{'ratio':>8}{'logp':>12}")
    for name, seen in rounds.items():
        rates = ", ".join(f"{one['pairs_per_second']:.3f}" for one in seen)
        ratios = [best("tune") / best(name), peak(name) / peak("tune")]
        cells = [" " * 8 if name == "tune" else f"{ratio:>7.2f}x" for ratio in ratios]
        print(f"{name:<18}{rates:>24}{cells[0]}{peak(name) / 2**30:>10.2f}{cells[1]}{seen[0]['logp']:>12.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--sizes", nargs="+", choices=peers.SHAPES, default=["M"], help="default: M")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="default: all")
    parser.add_argument("--rounds", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a round (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=1, help="steps before those (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=peers.cores(), help="default: all cores")
    parser.add_argument("--tune", type=Path, default=root / "target/release/tune", metavar="PATH")
    parser.add_argument("--workdir", type=Path, default=root / "target/peers", metavar="FOLDER")
    parser.add_argument("--train", nargs=2, metavar=("MODE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        mode, folder = options.train
        return train(Path(folder), mode, options.steps)
    found = shutil.which(options.tune)
    if found is None:
        parser.error(f"no program {options.tune}: cargo build --release, or say --tune PATH")
    options.tune, options.workdir = Path(found).resolve(), options.workdir.resolve()
    threads = str(options.threads)
    environment = os.environ | {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "RAYON_NUM_THREADS": threads,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    facts = peers.machine(options)
    print("\n".join(f"{name:<20} {value}" for name, value in facts.items()))
    sizes = {}
    for size in options.sizes:
        sizes[size] = measure(size, options, environment)
        report(size, sizes[size])
    results = options.workdir / "preference.json"
    results.write_text(json.dumps({"machine": facts, "rounds": sizes}, indent=1) + "\n")
    print(f"\nall figures: {results}")


if __name__ == "__main__":
    main()
