"""Times `tune` and the Python tools it replaces on the same model files, alternately, and prints the ratios.

    pip install torch transformers peft bitsandbytes accelerate      # in an environment of its own, some 6 GB
    cargo build --release
    python benches/peers.py                                      # S, M and L, three rounds
    python benches/peers.py --sizes E R                          # a mixture, a hybrid
    python benches/peers.py --sizes S --rounds 1 --steps 4       # a look

On the processor, with the same number of threads for all. In each round the same steps are trained by `tune bench`
and by transformers + PEFT + bitsandbytes, each in a process of its own, one after another: 4 x 256 tokens a step,
NF4 with double quantization, LoRA of rank 16 on all seven projections, AdamW, gradients clipped to a norm of 1.
A `tune run` of one step gives the time to the first step.
E is a mixture of the Qwen3-30B-A3B kind with 0.4 B parameters, whose attention is adapted, R a hybrid of the Qwen3.5 kind
with 0.1 B and adapters on all projections. transformers keeps stacked experts in bf16, where `tune` has them in NF4.
The peers run in each of their modes (`MODES`), and the best one counts. The models have random weights; S, M and L
have the shapes of a 15 M, a 135 M (SmolLM2) and a 0.5 B (Qwen2.5) model. They are written once, with the rest, to
--workdir.

What is compared:
  tokens/s    the median over a round's steps after the warm-up, then over the rounds; beside it the best round
  peak memory the largest resident set of the process, as the kernel counted it, over all rounds
  first step  from the start of the process to the end of the first step; for `tune` to the end of the process, which
              has then written the adapter and a checkpoint as well
  loss        of the first step, on the same tokens by the same weights: it shows that the work is the same. With
              bitsandbytes 0.50.2 it differs on S: its AVX-512 kernel unpacks rows wrongly whose length is a multiple
              of 16 and not of 64, as S's hidden size is. The time is not affected.

A machine that does something else meanwhile gives other numbers to whoever runs then; the load average is shown.
All figures, those of each round too, are written to WORKDIR/results.json.

Rows of real lengths instead, beside TRL with its padding and its packing: `--real FILE --base FOLDER`, see
`benches/real_rows.py`.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

ROWS, TOKENS = 4, 256
RANK, ALPHA = 16, 32
LEARNING_RATE = 2e-4
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ATTENTION = PROJECTIONS[:4]
RECURRENT = ["in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"]
PACKAGES = ["torch", "transformers", "peft", "bitsandbytes", "accelerate"]

LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5, "attention_bias": False, "mlp_bias": False}
QWEN2 = {"model_type": "qwen2", "rms_norm_eps": 1e-6, "use_sliding_window": False}
SHAPES = {
    "S": LLAMA
    | {"hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 6, "vocab_size": 32000}
    | {"num_attention_heads": 6, "num_key_value_heads": 6, "max_position_embeddings": 2048},
    "M": LLAMA
    | {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
    | {"num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192},
    "L": QWEN2
    | {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "vocab_size": 151936}
    | {"num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32768},
    "E": {"model_type": "qwen3_moe", "hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 12}
    | {"num_attention_heads": 12, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 32000}
    | {"num_experts": 32, "num_experts_per_tok": 4, "moe_intermediate_size": 384, "norm_topk_prob": True},
    "R": {"model_type": "qwen3_5_text", "hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 12}
    | {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 32000}
    | {"linear_num_key_heads": 8, "linear_num_value_heads": 8},
}
# What the adapters of the peers are on; those of `tune` are on the same modules by default.
TARGETS = {"E": ATTENTION, "R": PROJECTIONS + RECURRENT}

# Name of a mode, and whether the forward pass runs under autocast. Weights and computation are bf16 in both.
MODES = {"bf16": False, "bf16 + autocast": True}

# What the recipes of all benches begin with.
QLORA = """\
version = 1
output_dir = {output}

[model]
base = {base}
compute_dtype = "bf16"

[quantization.nf4]
double_quant = true

[adapter.lora]
rank = {rank}
alpha = {alpha}

"""
RECIPE = QLORA + """\
[data]
max_seq_len = {tokens}
packing = false
shuffle = false

[[dataset]]
path = {rows}
format = "tokens"

[train]
max_steps = {steps}
micro_batch_size = {batch}
learning_rate = {learning_rate}
lr_scheduler = "constant"
warmup_steps = 0
max_grad_norm = 1.0
"""


# ---- In the processes of the peers -----------------------------------------------------------------------------


def write_model(size, folder):
    """A model with random weights that keep activations at about one, in bf16."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = dict(SHAPES[size])
    config = AutoConfig.for_model(shape.pop("model_type"), **shape, tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise / math.sqrt(parameter.shape[-1]))
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            else:
                parameter.copy_(1 + 0.1 * noise)
    model.to(torch.bfloat16).save_pretrained(folder)


def train(folder, mode, steps):
    """Trains `steps` steps and prints a JSON object of what was seen."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, logging

    logging.set_verbosity_error()
    torch.manual_seed(1)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder / "model",
        quantization_config=quantization,
        dtype=torch.bfloat16,
        device_map={"": "cpu"},
        attn_implementation="sdpa",
    )
    model.config.use_cache = False
    targets = TARGETS.get(folder.name, PROJECTIONS)
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(model, lora).train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    rows = [json.loads(line)["input_ids"] for line in (folder / "rows.jsonl").open()]
    seconds, losses, first = [], [], None
    for step in range(steps):
        begin = time.perf_counter()
        tokens = torch.tensor(rows[step * ROWS : (step + 1) * ROWS])
        with torch.autocast("cpu", torch.bfloat16) if MODES[mode] else contextlib.nullcontext():
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        seconds.append(time.perf_counter() - begin)
        first = first or time.time()
    print(json.dumps({"seconds": seconds, "losses": losses, "first_step_at": first}))


# ---- In this process, which needs the standard library alone ----------------------------------------------------


def run(command, environment):
    """Runs a command to its end; (its output, its peak memory in bytes, when it started, how long it took)."""
    start = time.time()
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # Both pipes are read to their ends, so that neither fills; `wait4` then tells what this child alone used.
    errors = []
    reader = threading.Thread(target=lambda: errors.append(child.stderr.read()))
    reader.start()
    output = child.stdout.read()
    reader.join()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    wall = time.time() - start
    if child.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nended with {child.returncode}:\n{errors[0]}")
    # Linux counts in KiB, macOS in bytes.
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return output, peak, start, wall


def this_script(*arguments):
    return [sys.executable, str(Path(__file__).resolve()), *map(str, arguments)]


def prepare(size, folder, steps, environment):
    """Model, rows and recipe; the model is kept if it is there."""
    model = folder / "model"
    if not (model / "model.safetensors").exists():
        print(f"writing the random model {size}", file=sys.stderr)
        shutil.rmtree(model, ignore_errors=True)
        partial = folder / "model.partial"
        run(this_script("--write-model", size, partial), environment)
        partial.rename(model)
    numbers = random.Random(1)
    vocabulary = SHAPES[size]["vocab_size"]
    with (folder / "rows.jsonl").open("w") as rows:
        for _ in range(ROWS * steps):
            print(json.dumps({"input_ids": [numbers.randrange(3, vocabulary) for _ in range(TOKENS)]}), file=rows)
    recipe = RECIPE.format(
        output=json.dumps(str(folder / "run")),
        base=json.dumps(str(model)),
        rows=json.dumps(str(folder / "rows.jsonl")),
        rank=RANK,
        alpha=ALPHA,
        tokens=TOKENS,
        steps=steps,
        batch=ROWS,
        learning_rate=LEARNING_RATE,
    )
    (folder / "recipe.toml").write_text(recipe)


def time_tune(options, folder, environment):
    recipe = folder / "recipe.toml"
    counts = ["--steps", str(options.steps), "--warmup", str(options.warmup)]
    output, bench_peak, _, _ = run([options.tune, "bench", recipe, "--json", *counts], environment)
    events = map(json.loads, output.splitlines())
    seen = next(event for event in events if event["event"] == "result")
    one_step = ["--overwrite", "--set", "train.max_steps=1"]
    _, run_peak, _, wall = run([options.tune, "run", recipe, *one_step], environment)
    with (folder / "run" / "metrics.jsonl").open() as metrics:
        loss = json.loads(metrics.readline())["loss"]
    return {
        "tokens_per_second": seen["tokens_per_second"],
        "peak_memory_bytes": max(bench_peak, run_peak),
        "first_step_seconds": wall,
        "first_loss": loss,
        "bench": seen,
    }


def time_peer(mode, options, folder, environment):
    steps = options.warmup + options.steps
    output, peak, start, _ = run(this_script("--train", mode, folder, "--steps", steps), environment)
    seen = json.loads(output.splitlines()[-1])
    return {
        "tokens_per_second": ROWS * TOKENS / statistics.median(seen["seconds"][options.warmup :]),
        "peak_memory_bytes": peak,
        "first_step_seconds": seen["first_step_at"] - start,
        "first_loss": seen["losses"][0],
        "step_seconds": seen["seconds"],
        "losses": seen["losses"],
    }


def measure(size, options, environment):
    """All rounds of one size: for `tune` and each mode, a list of summaries."""
    folder = options.workdir / size
    folder.mkdir(parents=True, exist_ok=True)
    prepare(size, folder, options.warmup + options.steps, environment)
    rounds = {"tune": []} | {mode: [] for mode in MODES}
    for number in range(options.rounds):
        names = list(rounds)
        # Whoever comes first finds another machine than who comes last: the order is turned round by round.
        for name in names if number % 2 == 0 else reversed(names):
            if name == "tune":
                seen = time_tune(options, folder, environment)
            else:
                seen = time_peer(name, options, folder, environment)
            rounds[name].append(seen)
            rate = f"{seen['tokens_per_second']:,.0f} tokens/s"
            print(f"{size} round {number + 1} of {options.rounds}  {name:<16} {rate}", file=sys.stderr)
    return rounds


def over_rounds(rounds):
    return {
        "tokens_per_second": statistics.median(seen["tokens_per_second"] for seen in rounds),
        "best_round": max(seen["tokens_per_second"] for seen in rounds),
        "peak_memory_bytes": max(seen["peak_memory_bytes"] for seen in rounds),
        "first_step_seconds": statistics.median(seen["first_step_seconds"] for seen in rounds),
        "first_loss": rounds[0]["first_loss"],
    }


def report(size, rounds):
    """One table: a row each for `tune` and the modes, and how many times better `tune` is than each."""
    rows = {name: over_rounds(seen) for name, seen in rounds.items()}
    ours = rows["tune"]
    print(f"\n{size:<18}{'tokens/s':>10}{'ratio':>8}{'best':>10}{'ratio':>8}", end="")
    print(f"{'peak GiB':>10}{'ratio':>8}{'first step s':>14}{'ratio':>8}{'loss':>9}")
    for name, row in rows.items():
        peer = name != "tune"
        columns = [
            (f"{row['tokens_per_second']:,.0f}", ours["tokens_per_second"] / row["tokens_per_second"], 10),
            (f"{row['best_round']:,.0f}", ours["best_round"] / row["best_round"], 10),
            (f"{row['peak_memory_bytes'] / 2**30:.2f}", row["peak_memory_bytes"] / ours["peak_memory_bytes"], 10),
            (f"{row['first_step_seconds']:.2f}", row["first_step_seconds"] / ours["first_step_seconds"], 14),
        ]
        cells = [f"{value:>{width}}" + (f"{ratio:>7.2f}x" if peer else " " * 8) for value, ratio, width in columns]
        print(f"{name:<18}{''.join(cells)}{row['first_loss']:>9.3f}")
    best = max(MODES, key=lambda mode: rows[mode]["tokens_per_second"])
    ratio = ours["tokens_per_second"] / rows[best]["tokens_per_second"]
    print(f"tune trains {ratio:.2f} times as many tokens per second as the best mode, {best}")


def processor():
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").open():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def machine(options):
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    tune = subprocess.run([options.tune, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return {
        "processor": processor(),
        "system": f"{platform.system()} {platform.release()}",
        "threads": options.threads,
        "load_average_before": round(os.getloadavg()[0], 2),
        "tune": tune,
        "python": platform.python_version(),
        **versions,
        "date": time.strftime("%Y-%m-%d"),
        "steps": options.steps,
        "rounds": options.rounds,
    }


def arguments():
    repository = Path(__file__).resolve().parent.parent
    description, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=["S", "M", "L"], help="default: S M L")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of a round (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before those (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=cores(), help="default: the cores there are, %(default)s")
    parser.add_argument("--tune", type=Path, default=repository / "target/release/tune", metavar="PATH")
    parser.add_argument("--workdir", type=Path, default=repository / "target/peers", metavar="FOLDER")
    parser.add_argument("--real", type=Path, metavar="FILE", help="train on these conversations, beside TRL")
    parser.add_argument("--base", type=Path, metavar="FOLDER", help="of --real: model, tokenizer and chat template")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of --real: these rows of the table alone")
    parser.add_argument("--write-model", nargs=2, metavar=("SIZE", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--train", nargs=2, metavar=("MODE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.real and not options.base:
        parser.error("--real takes the model from --base FOLDER")
    if min(options.rounds, options.steps, options.threads) < 1 or options.warmup < 0:
        parser.error("--rounds, --steps and --threads are at least 1, --warmup at least 0")
    return parser, options


def main():
    parser, options = arguments()
    if options.write_model:
        size, folder = options.write_model
        return write_model(size, Path(folder))
    if options.train:
        mode, folder = options.train
        return train(Path(folder), mode, options.steps)
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        parser.error(f"{sys.executable} has no {', '.join(missing)}: pip install {' '.join(PACKAGES)}")
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
    if options.real:
        import real_rows

        return real_rows.measure(options, environment)
    facts = machine(options)
    print("\n".join(f"{name:<20} {value}" for name, value in facts.items()))
    sizes = {}
    for size in options.sizes:
        sizes[size] = measure(size, options, environment)
        report(size, sizes[size])
    results = options.workdir / "results.json"
    results.write_text(json.dumps({"machine": facts, "rounds": sizes}, indent=1) + "\n")
    print(f"\nall figures: {results}")


if __name__ == "__main__":
    main()
