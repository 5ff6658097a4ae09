"""Times how `tune` and the Python tools make conversations into tokens, on the same file and cores, and prints the ratios.

    pip install trl peft datasets transformers torch      # in an environment of its own, some 6 GB
    cargo build --release && cargo bench --bench data_pipeline --no-run
    python benches/data_peers.py train.jsonl --base FOLDER                 # the rows of a file
    python benches/data_peers.py train.jsonl --base FOLDER --megabytes 1000 --rounds 1

The file has an object with `messages` on each line, or with `question` and `answer` (GSM8K), which become the two turns
of a conversation. --megabytes writes conversations of two to eight turns, made of sentences of that file, until there are
as many. FOLDER is a model's folder: its tokenizer and chat template are used.

  tune         `cargo bench --bench data_pipeline` for one epoch: read, render, tokenize, mask, shuffle, pack into sequences of
               1024 tokens, through the stream that training takes them from; the index of the file is not counted
  validate     `tune validate` as a whole process, which surveys every row before a run
  map          datasets.map with the tokenizer's apply_chat_template, in one process, whose tokenizer uses all cores, and in
               one process a core
  TRL          what SFTTrainer makes of the rows before it trains (`_prepare_dataset`): the same masks, packed to 1024
               tokens; with one process and with one a core

Imports are not counted, and neither is reading the file where it is not said; caches are off. Peak memory is the largest
resident set of a process with its children's.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import peers

TOKENS = 1024


# ---- In the processes of the peers -----------------------------------------------------------------------------


def time_peer(kind, processes, folder, base):
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_caching()
    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(base)
    path = str(folder / "conversations.jsonl")
    began = time.perf_counter()
    rows = datasets.load_dataset("json", data_files=path, split="train", cache_dir=str(folder / "cache"))
    read = time.perf_counter() - began
    if kind == "map":
        began = time.perf_counter()
        tokens = mapped(rows, tokenizer, processes)
        prepared = time.perf_counter() - began
    else:
        prepared, tokens = by_trl(rows, tokenizer, processes, folder)
    peaks = [resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    found = {"read_seconds": read, "seconds": prepared, "examples": len(rows), "tokens": tokens}
    print(json.dumps(found | {"peak_memory_bytes": sum(peaks) if processes else peaks[0]}))


def mapped(rows, tokenizer, processes):
    """Every conversation rendered and tokenized, in batches."""

    def encode(batch):
        texts = tokenizer.apply_chat_template(batch["messages"], tokenize=False)
        return {"input_ids": tokenizer(texts, add_special_tokens=False)["input_ids"]}

    done = rows.map(encode, batched=True, num_proc=processes or None, remove_columns=rows.column_names)
    return sum(len(ids) for batch in done.iter(1000) for ids in batch["input_ids"])


def by_trl(rows, tokenizer, processes, folder):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, logging
    from trl import SFTConfig, SFTTrainer

    logging.set_verbosity_error()
    torch.set_num_threads(1)
    # A model that takes no time.
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    rows = rows.map(
        lambda row: {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}, remove_columns=["messages"]
    )
    found = {}

    class Timed(SFTTrainer):
        def _prepare_dataset(self, *arguments, **named):
            began = time.perf_counter()
            found["rows"] = super()._prepare_dataset(*arguments, **named)
            found["seconds"] = time.perf_counter() - began
            return found["rows"]

    Timed(
        model=model,
        args=SFTConfig(
            output_dir=str(folder / "trl"),
            max_length=TOKENS,
            packing=True,
            dataset_num_proc=processes or None,
            use_cpu=True,
            bf16=False,
            report_to="none",
        ),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    tokens = sum(len(ids) for batch in found["rows"].iter(1000) for ids in batch["input_ids"])
    return found["seconds"], tokens


# ---- In this process -------------------------------------------------------------------------------------------


def turns(row):
    if "messages" in row:
        return row["messages"]
    return [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]


def prepare(file, folder, megabytes):
    """The conversations of a file, or as many megabytes made of them, each text once."""
    rows = [turns(json.loads(line)) for line in open(file)]
    with (folder / "conversations.jsonl").open("w") as out:
        if not megabytes:
            out.writelines(json.dumps({"messages": row}) + "\n" for row in rows)
            return
        numbers = random.Random(1)
        sentences = [text for row in rows for turn in row for text in turn["content"].split(". ")]
        size = 0
        while size < megabytes * 1_000_000:
            roles = ["user", "assistant"] * numbers.randrange(1, 5)
            parts = [". ".join(numbers.choices(sentences, k=numbers.randrange(1, 9))) for _ in roles]
            row = [{"role": role, "content": part} for role, part in zip(roles, parts)]
            size += out.write(json.dumps({"messages": row}) + "\n")


def time_stream(options, folder, environment):
    variables = {
        "TUNE_BENCH_DATA": str(folder / "conversations.jsonl"),
        "TUNE_BENCH_FORMAT": "messages",
        "TUNE_BENCH_BASE": str(options.base),
        "TUNE_BENCH_TOKENS": str(TOKENS),
        "TUNE_BENCH_ONCE": "1",
    }
    root = Path(__file__).resolve().parent.parent
    command = ["cargo", "bench", "--bench", "data_pipeline"]
    command = [options.stream] if options.stream else command
    done = subprocess.run(command, env=environment | variables, cwd=root, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def time_validate(options, folder, environment):
    recipe = folder / "recipe.toml"
    recipe.write_text(
        f"version = 1\noutput_dir = {json.dumps(str(folder / 'run'))}\n"
        f"[model]\nbase = {json.dumps(str(options.base))}\n"
        f'[adapter.lora]\nrank = 16\n[data]\nmax_seq_len = {TOKENS}\npacking = true\non_overflow = "truncate"\non_empty = "drop"\n'
        f"[[dataset]]\npath = {json.dumps(str(folder / 'conversations.jsonl'))}\n"
        'format = "messages"\ntrain_on = "completion"\n[train]\nmicro_batch_size = 1\nlearning_rate = 2e-4\nepochs = 1\n'
    )
    output, peak, _, wall = peers.run([options.tune, "validate", recipe, "--json"], environment)
    train = next(event for event in map(json.loads, output.splitlines()) if event["event"] == "data")["train"]
    return {"seconds": wall, "examples": train["rows"], "tokens": train["tokens"], "peak_memory_bytes": peak}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--base", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--megabytes", type=int, default=0, help="size of the conversations made of the file's sentences")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=peers.cores(), help="default: all cores")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these rows of the table alone")
    parser.add_argument("--tune", type=Path, default=root / "target/release/tune", metavar="PATH")
    parser.add_argument("--stream", type=Path, metavar="PATH", help="the built bench, instead of `cargo bench`")
    parser.add_argument("--workdir", type=Path, default=root / "target/peers/data", metavar="FOLDER")
    parser.add_argument("--peer", nargs=2, metavar=("KIND", "PROCESSES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        kind, processes = options.peer
        return time_peer(kind, int(processes), options.file, options.base)
    options.base, folder = options.base.resolve(), options.workdir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    prepare(options.file, folder, options.megabytes)
    threads = str(options.threads)
    environment = os.environ | {
        "RAYON_NUM_THREADS": threads,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "true",
    }

    def by_peer(kind, processes):
        def timed():
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                inside = Path(scratch) / "conversations.jsonl"
                inside.symlink_to(folder / "conversations.jsonl")
                script = [sys.executable, str(Path(__file__).resolve()), scratch, "--base", str(options.base)]
                output, _, _, _ = peers.run([*script, "--peer", kind, str(processes)], environment)
            return json.loads(output.splitlines()[-1])

        return timed

    sides = {
        "tune": lambda: time_stream(options, folder, environment),
        "validate": lambda: time_validate(options, folder, environment),
        "map": by_peer("map", 0),
        f"map, {threads} processes": by_peer("map", options.threads),
        "TRL": by_peer("trl", 0),
        f"TRL, {threads} processes": by_peer("trl", options.threads),
    }
    sides = {name: side for name, side in sides.items() if options.only is None or name in options.only}
    rounds = {name: [] for name in sides}
    for number in range(options.rounds):
        for name in list(sides) if number % 2 == 0 else reversed(list(sides)):
            rounds[name].append(sides[name]())
            print(f"round {number + 1} of {options.rounds}  {name:<20} {rounds[name][-1]}", file=sys.stderr)
    (folder / "results.json").write_text(json.dumps(rounds, indent=1) + "\n")
    print(f"\n{'':<20}{'seconds':>24}{'examples/s':>12}{'tokens/s':>12}{'peak GiB':>10}")
    for name, seen in rounds.items():
        best = min(one["seconds"] for one in seen)
        seconds = ", ".join(f"{one['seconds']:.2f}" for one in seen)
        peak = max(one["peak_memory_bytes"] for one in seen) / 2**30
        print(f"{name:<20}{seconds:>24}{seen[0]['examples'] / best:>12,.0f}", end="")
        print(f"{seen[0]['tokens'] / best:>12,.0f}{peak:>10.2f}")


if __name__ == "__main__":
    main()
