"""How the cost of a step grows with the length of documents, the rank of adapters and the number of threads: a table for
benches/README.md, from `tune bench`.

    cargo build --release
    python benches/growth.py                      # all rows, some minutes
    python benches/growth.py --only length        # or rank, or threads

Beside each measurement stands its floor: 4 operations for each frozen weight and token, 6 for each weight of an adapter,
14 for each visible pair of tokens, head and dimension of attention (two products forward, five backward), at the rate of
the microkernel alone on as many threads, which `tune bench` measures in the same process.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import peers

# Operations of a step from which it is timed once.
LONG = 4e12
SHAPES = {"S": "stories-15m", "M": "smollm2-135m"}
# Size, documents of a step, tokens of each, rank, threads; a row of the table each.
ROWS = {
    "length": [("S", 32, 256), ("S", 8, 1024), ("S", 2, 4096), ("S", 1, 8192), ("S", 1, 16384), ("S", 1, 32768)]
    + [("M", 4, 256), ("M", 1, 1024), ("M", 1, 4096), ("M", 1, 8192)],
    "rank": [("M", 4, 256, rank) for rank in (8, 16, 64, 256)],
    "threads": [(size, 4, 256, 16, threads) for size in SHAPES for threads in (1, 2)],
}


def operations(size, documents, length, rank):
    """Those of a step: in products with frozen weights, in adapters, in attention."""
    shape = peers.SHAPES[size]
    hidden, inner, layers = (shape[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    heads, shared = shape["num_attention_heads"], shape["num_key_value_heads"]
    width = hidden // heads
    projections = [(hidden, hidden), (hidden, shared * width), (hidden, shared * width), (hidden, hidden)]
    projections += [(hidden, inner), (hidden, inner), (inner, hidden)]
    frozen = layers * sum(a * b for a, b in projections) + shape["vocab_size"] * hidden
    adapters = layers * rank * sum(a + b for a, b in projections)
    pairs = documents * length * (length + 1) // 2
    tokens = documents * length
    return 4 * frozen * tokens, 6 * adapters * tokens, 14 * layers * heads * width * pairs


def measure(options, size, documents, length, rank=16, threads=None):
    threads = threads or options.threads
    command = [options.tune, "bench", "--json", "--shape", SHAPES[size], "--micro-batch-size", documents]
    work = operations(size, documents, length, rank)
    # A step of minutes is timed once.
    steps, warmup = (options.steps, 1) if sum(work) < LONG else (1, 0)
    command += ["--seq-len", length, "--rank", rank, "--steps", steps, "--warmup", warmup]
    environment = os.environ | {"RAYON_NUM_THREADS": str(threads)}
    done = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    seen = next(event for event in map(json.loads, done.stdout.splitlines()) if event["event"] == "result")
    floor = seen["tokens_per_step"] / (sum(work) / seen["ceiling_flops"])
    again = f", {seen['recomputed_layers']} layers recomputed" if seen["recomputed_layers"] else ""
    cells = [
        f"{size}, {documents} × {length}, rank {rank}, {threads} threads{again}",
        f"{seen['tokens_per_second']:,.0f}",
        f"{seen['tokens_per_second_best']:,.0f}",
        f"{floor:,.0f}",
        f"{100 * seen['tokens_per_second_best'] / floor:.0f} %",
        f"{100 * work[2] / sum(work):.0f} %",
        f"{seen['peak_memory_bytes'] / 2**20:,.0f} MiB",
        f"{seen['planned_memory_bytes'] / 2**20:,.0f} MiB",
    ]
    print("| " + " | ".join(cells) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), help="default: all")
    parser.add_argument("--rows", type=int, nargs="+", help="numbers of the rows of one group, from 0")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a row (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=peers.cores(), help="default: all cores")
    parser.add_argument("--tune", type=Path, default=root / "target/release/tune", metavar="PATH")
    options = parser.parse_args()
    print("| documents | tokens/s | best step | floor | share | attention's part of it | peak | planned |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.only:
        for number, row in enumerate(ROWS[name]):
            if options.rows is None or number in options.rows:
                measure(options, *row)


if __name__ == "__main__":
    main()
