"""`benches/peers.py --real FILE`: `tune` and TRL trained on conversations of real lengths, as their users train.

FILE has an object with `messages` on each line, or one with `question` and `answer` (GSM8K), which become the two turns of
a conversation. Both sides learn the last turn of each alone, by NF4 with double quantization and LoRA of rank 16 on all
seven projections. `tune` packs conversations into sequences; TRL's SFTTrainer runs with its defaults (eight padded rows a
step, activations recomputed), with activations saved, and with its packing (see `MODES`).

    python benches/peers.py --real train.jsonl --base FOLDER --rounds 2 --steps 6

FOLDER is a model with a tokenizer and a chat template, for the published figures SmolLM2-135M-Instruct.

What is compared:
  supervised/s  supervised tokens per second of the timed steps of a round
  peak memory   the largest resident set of the process, over all rounds
  epoch         minutes from the start of the process to the end of an epoch: the time before the first step, seen, and
                the supervised tokens of all rows at the rate of the timed steps, which is extrapolated

`tune, all supervised` learns the other turns too: what a supervised token costs, which the head is multiplied for.
All figures are written to WORKDIR/real.json.
"""

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import peers

TOKENS = 1024
# Sequences of a step of `tune`, and of TRL where it packs.
SEQUENCES = 2

# Settings of SFTConfig beside its defaults.
MODES = {
    "TRL": {},
    "TRL, activations saved": {"gradient_checkpointing": False},
    "TRL, packing": {"packing": True, "per_device_train_batch_size": SEQUENCES},
    "TRL, packing, saved": {
        "packing": True,
        "per_device_train_batch_size": SEQUENCES,
        "gradient_checkpointing": False,
    },
}
OURS = {"tune": "completion", "tune, all supervised": "all"}

RECIPE = peers.QLORA + """\
[data]
max_seq_len = {tokens}
packing = true
on_overflow = "truncate"
train_on = {train_on}

[[dataset]]
path = {rows}
format = "messages"

[train]
max_steps = {steps}
micro_batch_size = {sequences}
learning_rate = {learning_rate}
lr_scheduler = "constant"
warmup_steps = 0
max_grad_norm = 1.0
logging_steps = 1
"""


# ---- In the processes of TRL -----------------------------------------------------------------------------------


def train(folder, base, mode, steps):
    """Trains `steps` steps and prints a JSON object of what was seen."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        BitsAndBytesConfig,
        TrainerCallback,
        logging,
    )
    from trl import SFTConfig, SFTTrainer

    logging.set_verbosity_error()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=quantization, dtype=torch.bfloat16, device_map={"": "cpu"}
    )
    messages = [json.loads(line)["messages"] for line in (folder / "conversations.jsonl").open()]
    rows = Dataset.from_list([{"prompt": turns[:-1], "completion": turns[-1:]} for turns in messages])
    seconds, supervised, first = [], [], []

    class Watch(TrainerCallback):
        def on_step_begin(self, *_, **__):
            first.append(time.time())
            self.began = time.perf_counter()

        def on_step_end(self, *_, **__):
            seconds.append(time.perf_counter() - self.began)

    class Trainer(SFTTrainer):
        def training_step(self, model, inputs, *rest, **named):
            supervised.append(int((inputs["labels"] != -100).sum()))
            return super().training_step(model, inputs, *rest, **named)

    config = {
        "output_dir": str(folder / "trl"),
        "max_steps": steps,
        "learning_rate": peers.LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    trainer = Trainer(
        model=model,
        args=SFTConfig(**config | MODES[mode]),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(
            r=peers.RANK, lora_alpha=peers.ALPHA, target_modules=peers.PROJECTIONS, task_type="CAUSAL_LM"
        ),
        callbacks=[Watch()],
    )
    # A trainer prints its progress to standard output.
    with contextlib.redirect_stdout(sys.stderr):
        trainer.train()
    print(json.dumps({"seconds": seconds, "supervised": supervised, "first_step_at": first[0]}))


# ---- In this process -------------------------------------------------------------------------------------------


def prepare(file, folder):
    """The conversations of a file, in the form that both sides read."""

    def turns(row):
        if "messages" in row:
            return row["messages"]
        return [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]

    with (folder / "conversations.jsonl").open("w") as out, open(file) as rows:
        for line in rows:
            print(json.dumps({"messages": turns(json.loads(line))}), file=out)


def write_recipe(folder, base, train_on, steps):
    recipe = RECIPE.format(
        output=json.dumps(str(folder / "run")),
        base=json.dumps(str(base)),
        rows=json.dumps(str(folder / "conversations.jsonl")),
        rank=peers.RANK,
        alpha=peers.ALPHA,
        tokens=TOKENS,
        sequences=SEQUENCES,
        train_on=json.dumps(train_on),
        steps=steps,
        learning_rate=peers.LEARNING_RATE,
    )
    path = folder / "recipe.toml"
    path.write_text(recipe)
    return path


def epoch_of(options, recipe):
    """Tokens and supervised tokens of all rows."""
    command = [options.tune, "validate", recipe, "--json"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    events = map(json.loads, output.splitlines())
    return next(event for event in events if event["event"] == "data")["train"]


def time_tune(name, options, folder, environment):
    steps = options.warmup + options.steps
    recipe = write_recipe(folder, options.base, OURS[name], steps)
    epoch = epoch_of(options, recipe)
    shutil.rmtree(folder / "run", ignore_errors=True)
    _, peak, _, wall = peers.run([options.tune, "run", recipe], environment)
    with (folder / "run" / "metrics.jsonl").open() as metrics:
        lines = [line for line in map(json.loads, metrics) if "tokens_per_second" in line]
    counts = [0] + [line["tokens"] for line in lines]
    tokens = [after - before for before, after in zip(counts, counts[1:])]
    seconds = [count / line["tokens_per_second"] for count, line in zip(tokens, lines)]
    # Of the tokens of packed rows the usual share is supervised.
    share = epoch["supervised_tokens"] / epoch["tokens"]
    supervised = [share * count for count in tokens]
    return summary(seconds, supervised, epoch, wall - sum(seconds), peak, options) | {"tokens": tokens}


def time_peer(mode, options, folder, environment):
    steps = options.warmup + options.steps
    epoch = epoch_of(options, write_recipe(folder, options.base, "completion", steps))
    command = [sys.executable, str(Path(__file__).resolve()), str(folder), str(options.base), mode, str(steps)]
    output, peak, start, _ = peers.run(command, environment)
    seen = json.loads(output.splitlines()[-1])
    before = seen["first_step_at"] - start
    return summary(seen["seconds"], seen["supervised"], epoch, before, peak, options)


def summary(seconds, supervised, epoch, before, peak, options):
    timed = slice(options.warmup, None)
    rate = sum(supervised[timed]) / sum(seconds[timed])
    return {
        "supervised_per_second": rate,
        "peak_memory_bytes": peak,
        "seconds_before": before,
        "epoch_minutes": (before + epoch["supervised_tokens"] / rate) / 60,
        "step_seconds": seconds,
        "supervised": supervised,
    }


def measure(options, environment):
    folder = options.workdir / "real"
    folder.mkdir(parents=True, exist_ok=True)
    prepare(options.real, folder)
    rounds = {name: [] for name in [*OURS, *MODES] if options.only is None or name in options.only}
    for number in range(options.rounds):
        names = list(rounds)
        for name in names if number % 2 == 0 else reversed(names):
            timed = time_tune if name in OURS else time_peer
            seen = timed(name, options, folder, environment)
            rounds[name].append(seen)
            rate = f"{seen['supervised_per_second']:,.1f} supervised tokens/s"
            peak = f"{seen['peak_memory_bytes'] / 2**30:.2f} GiB, epoch {seen['epoch_minutes']:.1f} min"
            print(f"round {number + 1} of {options.rounds}  {name:<24} {rate}, {peak}", file=sys.stderr)
    results = options.workdir / "real.json"
    facts = peers.machine(options)
    results.write_text(json.dumps({"machine": facts, "rounds": rounds}, indent=1) + "\n")
    report(rounds)
    print(f"\nall figures: {results}")


def report(rounds):
    print(f"\n{'':<26}{'supervised/s':>18}{'peak GiB':>10}{'epoch min':>11}")
    for name, seen in rounds.items():
        rates = ", ".join(f"{one['supervised_per_second']:,.0f}" for one in seen)
        peak = max(one["peak_memory_bytes"] for one in seen) / 2**30
        minutes = statistics.median(one["epoch_minutes"] for one in seen)
        print(f"{name:<26}{rates:>18}{peak:>10.2f}{minutes:>11.1f}")


if __name__ == "__main__":
    train(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
