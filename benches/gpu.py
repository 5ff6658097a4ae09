"""The proof on a card: is `tune` right on this GPU, and how fast is it beside the tools that it replaces?

    python benches/gpu.py                          # builds with the feature `cuda`, measures, takes about an hour
    python benches/gpu.py --tune PATH              # with a binary that is there; this checkout holds the data
    python benches/gpu.py --tune PATH --minutes 10 # what comes first, then `--resume` on another day
    python benches/gpu.py --tune PATH --only first bench --shapes llama-3.1-8b --batches 1 4
    python benches/gpu.py --device vulkan --smoke  # everything once, tiny: does this script itself work here?

Python's standard library is enough, and no network is used. In this order:
  first       the ops that a step spends its time in, in bf16, against their slow oracles
  trajectory  twenty QLoRA steps beside those of transformers + PEFT + torch (tests/golden/trajectory): losses, gradient
              norms and the change of every adapter tensor in f32, losses in bf16
  bench       `tune bench` at two shapes, sequence 2048, batches 1, 4 and 8: tokens/s, peak memory, and the share of the
              card's own rate of plain products, measured in the same process, that weights, adapters and visible scores take
  torch       torch's products and attention at the same shapes, where torch can be imported and sees the card
  profile     time by kernel of one step, and the floor beside it
  ncu         the same by NVIDIA's profiler, where it is installed: device time of each kernel
  doctor      every op in every dtype of the card against its oracle
  quickstart  recipes/quickstart.toml on the card: held-out loss before and after
  streamed    a model whose layers wait in host memory: `tune plan` for the card, then `tune bench --offload host`, and the
              tokens/s that the plan's formula says beside those measured
  peers       PEFT + bitsandbytes, the same with Liger's kernels, and Unsloth: each where its packages can be imported,
              in a process of its own, on random weights of the same shapes. What is not installed is "not measured".

Everything that was measured is written to WORKDIR/results.json at once, and the page made of it, one section in Markdown for
benches/README.md, to WORKDIR/section.md: an end at any moment loses what was under way alone, and `--resume` measures what is
left or failed. Compiled kernels lie in WORKDIR/cache and can be taken to another machine of the same kind.

The exit code is 1 when first, trajectory, doctor or quickstart fail; figures that were not measured are named in the section.
"""

import argparse
import array
import csv
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

from gpu_peers import PEERS, RANK, SHAPES

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "trajectory"
# Largest difference of a loss, the same over the loss, of a gradient norm over the norm, and of the change of an adapter
# tensor over its size. That of bf16 is the processor's (tests/learning/trajectory.rs).
TOLERANCE = {"f32": (1e-3, None, 1e-3, 2e-2), "bf16": (None, 1e-2, None, None)}

RECIPE = """\
version = 1
output_dir = {output}
device = {device}
model = {{ base = {base}, compute_dtype = "{dtype}" }}
quantization.nf4 = {{ block_size = 64, double_quant = true }}
adapter.lora = {{ rank = 8, alpha = 16, init_from = {adapter} }}
data = {{ max_seq_len = 128, shuffle = false, packing = false }}
dataset = [{{ path = {data}, format = "tokens" }}]
[train]
max_steps = {max_steps}
micro_batch_size = {micro_batch_size}
gradient_accumulation_steps = {gradient_accumulation_steps}
learning_rate = {learning_rate}
lr_scheduler = "constant"
warmup_steps = 0
weight_decay = {weight_decay}
max_grad_norm = {max_grad_norm}
logging_steps = 1
"""


class Failed(Exception):
    """A step that did not come out; what it says."""


class Late(Exception):
    """There is no time left."""


class Results:
    """What was measured, by name, each with its phase; in a file from the moment it is known."""

    def __init__(self, path, about, ends, is_resumed):
        self.path, self.about, self.ends = path, about, ends
        self.rows = {}
        if is_resumed and path.exists():
            earlier = json.loads(path.read_text(encoding="utf-8"))
            if earlier["about"] != about:
                raise SystemExit(f"{path} is of other settings: {earlier['about']}, now {about}; start without --resume")
            self.rows = {name: row for name, row in earlier["rows"].items() if not {"error", "left"} & set(row)}

    def once(self, phase, name, what, *arguments, **more):
        """Calls `what`, unless an earlier run did; keeps what it gives, or why it gives nothing."""
        if name in self.rows:
            return self.rows[name]
        try:
            self.time_left()
            row = what(*arguments)
        except Late:
            row = {"left": "no time was left"}
        except KeyError as error:
            row = {"error": f"the result has no {error}"}
        except (Failed, ValueError, OSError, StopIteration) as error:
            row = {"error": str(error) or repr(error)}
        self.rows[name] = row | more | {"phase": phase}
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps({"about": self.about, "rows": self.rows}, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.path)
        return self.rows[name]

    def of(self, phase):
        return [row for row in self.rows.values() if row["phase"] == phase]

    def one(self, phase):
        return next(iter(self.of(phase)), {"left": "not asked for"})

    def time_left(self):
        left = self.ends - time.monotonic()
        if left <= 0:
            raise Late
        return left


def command(options, arguments, timeout, environment=None):
    """What a process prints, and its exit code."""
    began = time.monotonic()
    left = options.results.time_left() if options.results else timeout
    try:
        done = subprocess.run(
            [str(argument) for argument in arguments],
            cwd=ROOT,
            env=os.environ | {"NO_COLOR": "1", "XDG_CACHE_HOME": str(options.workdir / "cache")} | (environment or {}),
            capture_output=True,
            text=True,
            timeout=min(timeout, left),
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        if left < timeout:
            raise Late from late
        raise Failed(f"took longer than {timeout:.0f} s") from late
    except OSError as error:
        raise Failed(str(error)) from error
    print(f"  {time.monotonic() - began:6.1f} s  {' '.join(map(str, arguments))[:110]}", file=sys.stderr, flush=True)
    return done


def told(done):
    """The last words of a process that failed."""
    words = (done.stderr or done.stdout).strip()
    return f"exit code {done.returncode}: {words[-600:]}"


def result(done):
    """The `result` event of `tune … --json`."""
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    results = [event for event in events if event.get("event") == "result"]
    if not results:
        raise Failed(told(done))
    return results[0]


def tensors(path):
    """The f32 tensors of a safetensors file, by name."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "F32":
            raise Failed(f"{path.name}: {name} is {entry['dtype']}")
        begin, end = entry["data_offsets"]
        values = array.array("f", raw[8 + length + begin : 8 + length + end])
        if sys.byteorder == "big":
            values.byteswap()
        found[name] = values
    return found


# ---- Is it right? ----------------------------------------------------------------------------------------------


# The ops that a step spends its time in.
FIRST = ["linear", "attention", "linear_cross_entropy", "rms_norm", "swiglu"]


def doctor(options, more=()):
    # A device on which an op is wrong has a result all the same.
    report = result(command(options, [options.tune, "doctor", "--device", options.device, "--json", *more], 1800))
    device = report["devices"][0]
    wrong = [f"{op['op']} in {op['dtype']}" for op in device["ops"] if not op["is_right"]]
    listed = [gpu for api in report["apis"] for gpu in api["devices"] if gpu["device"] == device["device"]]
    return {
        "device": device["device"],
        "card": listed[0] if listed else {},
        "machine": report["machine"],
        "dtypes": device["dtypes"],
        "ops": len(device["ops"]),
        "wrong": wrong + ([device["fault"]] if device.get("fault") else []),
        "raw": report,
    }


def first(options):
    few = [word for op in FIRST[: 2 if options.smoke else None] for word in ("--op", op)]
    dtype = "f32" if options.device.startswith("vulkan") else "bf16"
    return doctor(options, [*few, "--dtype", dtype])


def trajectory(options, dtype, case_name):
    """The run of one golden case on the card, and how far it is from the reference."""
    case = json.loads((GOLDEN / f"case_{case_name}.json").read_text())
    steps = min(case["max_steps"], options.trajectory_steps)
    output = options.workdir / f"trajectory-{case_name}-{dtype}"
    text = RECIPE.format(
        output=json.dumps(str(output)),
        device=json.dumps(options.device),
        base=json.dumps(str(GOLDEN / "base")),
        adapter=json.dumps(str(GOLDEN / "adapter")),
        data=json.dumps(str(GOLDEN / case["data"])),
        dtype=dtype,
        max_steps=steps,
        **{key: case[key] for key in ("micro_batch_size", "gradient_accumulation_steps", "learning_rate")},
        weight_decay=float(case["weight_decay"]),
        max_grad_norm=float(case["max_grad_norm"]),
    )
    recipe = options.workdir / f"trajectory-{case_name}-{dtype}.toml"
    recipe.write_text(text)
    done = command(options, [options.tune, "run", recipe, "--overwrite"], 1800)
    if done.returncode != 0:
        raise Failed(told(done))
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    found = {
        "case": case_name,
        "dtype": dtype,
        "steps": steps,
        "loss": max(abs(line["loss"] - loss) for line, loss in zip(lines, case["losses"], strict=False)),
        "relative_loss": max(abs(line["loss"] / loss - 1) for line, loss in zip(lines, case["losses"], strict=False)),
        "norm": max(abs(line["grad_norm"] / norm - 1) for line, norm in zip(lines, case["grad_norms"], strict=False)),
        "change": None,
    }
    if steps == case["max_steps"] and dtype == "f32":
        start = tensors(GOLDEN / "adapter" / "adapter_model.safetensors")
        theirs = tensors(GOLDEN / f"final_adapter_{case_name}.safetensors")
        ours = tensors(output / "adapter" / "adapter_model.safetensors")
        found["change"] = max(
            math.dist(ours[name], theirs[name]) / max(math.dist(theirs[name], start[name]), 1e-30) for name in theirs
        )
    limits = zip(("loss", "relative_loss", "norm", "change"), TOLERANCE[dtype], strict=True)
    found["is_right"] = len(lines) == steps and all(
        limit is None or found[key] is None or found[key] <= limit for key, limit in limits
    )
    return found


def quickstart(options):
    output = options.workdir / "quickstart"
    arguments = [options.tune, "run", "recipes/quickstart.toml", "--device", options.device, "--overwrite"]
    settings = [f"output_dir={json.dumps(str(output))}"]
    if options.smoke:
        settings += ["train.max_steps=2", "train.micro_batch_size=1", "data.max_seq_len=64", "data.on_overflow=drop"]
        settings += ["sample.max_new_tokens=1"]
    for setting in settings:
        arguments += ["--set", setting]
    began = time.monotonic()
    done = command(options, arguments, 3600)
    if done.returncode != 0:
        raise Failed(told(done))
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    return {"seconds": time.monotonic() - began, "before": losses[0], "after": losses[-1]}


# ---- How fast is it? -------------------------------------------------------------------------------------------


def bench(options, shape, batch, more=()):
    arguments = [options.tune, "bench", "--device", options.device, "--shape", shape, "--json", *more]
    arguments += ["--micro-batch-size", batch, "--seq-len", options.seq, "--steps", options.steps]
    if options.memory_budget:
        arguments += ["--memory-budget", options.memory_budget]
    return result(command(options, arguments + ["--warmup", 2, "--rank", RANK], 3600))


def streamed(options):
    """Layers in host memory: what was planned, and what is measured."""
    shape, packed = options.streamed_shape, options.workdir / f"packed-{options.streamed_shape}"
    sizes = ["--micro-batch-size", 1, "--seq-len", options.seq, "--rank", RANK]
    held = options.streamed_rate
    if held is None:
        # The speed with all layers held, where the card has room for them.
        try:
            held = bench(options, shape, 1)["tokens_per_second"]
        except (Failed, KeyError):
            held = None
    arguments = [options.tune, "plan", "--shape", shape, "--json", *sizes]
    arguments += ["--tokens-per-second", held] if held else []
    plan = result(command(options, arguments, 60))
    measured = bench(options, shape, 1, ["--offload", "host", "--packed", packed])
    links = [{key: link[key] for key in ("name", "tokens_to_hide", "tokens_per_second")} for link in plan["links"]]
    return {"shape": shape, "held": held, "links": links, "planned_bytes": plan["streamed"]["device_bytes"]} | {
        key: measured[key] for key in ("tokens_per_second", "device_reserved_bytes", "streaming", "peak_memory_bytes")
    }


def ncu(options, shape, batch):
    """Device time by kernel of one step, by NVIDIA's profiler."""
    profiler = shutil.which("ncu")
    if profiler is None:
        raise Failed("ncu is not installed")
    arguments = [profiler, "--csv", "--metrics", "gpu__time_duration.sum", options.tune, "bench", "--device", options.device]
    arguments += ["--shape", shape, "--micro-batch-size", batch, "--seq-len", options.seq, "--rank", RANK]
    done = command(options, [*arguments, "--steps", 1, "--warmup", 0], 3600)
    (options.workdir / "ncu.csv").write_text(done.stdout, encoding="utf-8")
    table = [line for line in done.stdout.splitlines() if line.startswith('"')]
    kernels = {}
    unit = {"nsecond": 1e-9, "ns": 1e-9, "usecond": 1e-6, "us": 1e-6, "msecond": 1e-3, "ms": 1e-3, "second": 1.0, "s": 1.0}
    for row in csv.DictReader(table):
        seen = kernels.setdefault(row["Kernel Name"], {"name": row["Kernel Name"], "launches": 0, "seconds": 0.0})
        seen["launches"] += 1
        seen["seconds"] += float(row["Metric Value"].replace(",", "")) * unit[row["Metric Unit"]]
    if not kernels:
        raise Failed(told(done))
    return {"steps": 1, "kernels": sorted(kernels.values(), key=lambda kernel: -kernel["seconds"])}


# ---- Beside it -------------------------------------------------------------------------------------------------


def why_not(options, packages):
    """Why these packages cannot be measured with; None when they can."""
    probe = "import importlib.util, sys; print(*(p for p in sys.argv[1:] if importlib.util.find_spec(p) is None))"
    done = command(options, [options.python, "-c", probe, *packages], 60)
    if done.returncode != 0:
        return told(done)
    if done.stdout.strip():
        return f"not installed: {', '.join(done.stdout.split())}"
    probe = "import torch; assert torch.cuda.is_available()"
    return None if command(options, [options.python, "-c", probe], 300).returncode == 0 else "torch sees no CUDA device"


def own_process(options, packages, *arguments):
    """The figures that `gpu_peers.py` prints."""
    why = why_not(options, packages)
    if why:
        raise Failed(why)
    shared = ["--seq", options.seq, "--steps", options.steps, "--workdir", options.workdir]
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    script = Path(__file__).resolve().parent / "gpu_peers.py"
    done = command(options, [options.python, script, *shared, *arguments], 3600, offline)
    figures = [line for line in done.stdout.splitlines() if line.startswith("FIGURES ")]
    if not figures:
        raise Failed(told(done))
    return json.loads(figures[-1].removeprefix("FIGURES "))


# ---- All of it -------------------------------------------------------------------------------------------------


def gib(size):
    return "?" if size is None else f"{size / 2**30:.2f}"


def missing(row):
    """Why a row has no figures, in one cell of a table; None when it has."""
    why = row.get("error") or row.get("left")
    return why and " ".join(why.replace("|", "/").split())[-120:]


def health(say, what, row):
    if "left" in row:
        say(f"- {what}: not run, {row['left']}")
    elif "error" in row:
        say(f"- {what}: **failed**, {missing(row)}")
    else:
        verdict = "all right" if not row["wrong"] else "**wrong: " + ", ".join(row["wrong"]) + "**"
        say(f"- {what}: {row['ops']} checks, {verdict}")


def rightness(say, found):
    health(say, "the ops of a step (`tune doctor --op`)", found.one("first"))
    for run in found.of("trajectory"):
        if missing(run):
            verdict = f"not run, {run['left']}" if "left" in run else f"**failed**, {missing(run)}"
            say(f"- trajectory `{run['case']}` in {run['dtype']}: {verdict}")
            continue
        change = "" if run["change"] is None else f", adapter within {run['change']:.1e} of its change"
        verdict = "right" if run["is_right"] else "**wrong**"
        say(
            f"- trajectory `{run['case']}` in {run['dtype']}, {run['steps']} steps: losses within {run['loss']:.1e}, "
            f"gradient norms within {run['norm']:.1e}{change}: {verdict}"
        )
    health(say, "every op (`tune doctor`)", found.one("doctor"))
    quick = found.one("quickstart")
    if missing(quick):
        say(f"- quickstart: {'not run, ' if 'left' in quick else '**failed**, '}{missing(quick)}")
    else:
        say(f"- quickstart: held-out loss {quick['before']:.3f} → {quick['after']:.3f} in {quick['seconds']:.0f} s")


def speed(say, found):
    say("| shape | batch | tool | tokens/s | share of the product's rate | reserved, GiB | at the peak live, GiB | |")
    say("|---|--:|---|--:|--:|--:|--:|---|")
    for run in [*found.of("bench"), *found.of("peers")]:
        head = f"| {run['shape']} | {run['batch']} | {run['tool']} |"
        if missing(run):
            say(f"{head} | | | | not measured: {missing(run)} |")
            continue
        note = share = live = ""
        if run["tool"] == "tune":
            if run["ceiling_flops"]:
                share = f"{100 * run['share_of_ceiling']:.0f} % of {run['ceiling_flops'] / 1e12:.3g} TFLOP/s"
            planned, again = gib(run["planned_memory_bytes"]), run["recomputed_layers"]
            note = f"{run['compute_dtype']}; {planned} planned; {again} layers run forward twice"
            memory, live = run["device_reserved_bytes"], gib(run["device_peak_bytes"])
        else:
            memory = run["peak_memory_bytes"]
        say(f"{head} {run['tokens_per_second']:.0f} | {share} | {gib(memory)} | {live} | {note} |")


def torch_calls(say, row):
    if missing(row):
        say(f"Not measured: {missing(row)}.")
        return
    say(f"Its product of 8192 × 8192 matrices in bf16: {row['flops'] / 1e12:.1f} TFLOP/s.\n")
    say("| shape | batch | call | ms | TFLOP/s |\n|---|--:|---|--:|--:|")
    for call in row["calls"]:
        time_and_rate = f"{1e3 * call['seconds']:.3f} | {call['flops'] / 1e12:.1f}"
        say(f"| {call['shape']} | {call['batch']} | {call['what']} | {time_and_rate} |")


def larger(say, row, seq):
    if missing(row):
        say(f"Not measured: {missing(row)}.")
        return
    held = f"{row['held']:.0f} tokens/s with all layers held; " if row["held"] else ""
    waiting = gib(row["streaming"]["streamed_bytes"])
    say(
        f"{row['shape']}, 1 × {seq}, layers of {waiting} GiB in host memory: "
        f"{row['tokens_per_second']:.0f} tokens/s, {gib(row['device_reserved_bytes'])} GiB on the card; {held}"
        + "; ".join(f"{link['tokens_per_second']:.0f} predicted over {link['name']}" for link in row["links"])
    )


def by_kernel(say, row, clock):
    if missing(row) or not row["kernels"]:
        say(f"\nBy {clock}: not measured ({missing(row) or 'the device gave no times'}).")
        return
    steps, kernels = row["steps"], row["kernels"]
    total = sum(kernel["seconds"] for kernel in kernels)
    say(f"\nOne step of {row['shape']} at batch {row['batch']}, every kernel timed alone by {clock}.\n")
    say("| kernel | launches | ms | share |\n|---|--:|--:|--:|")
    for kernel in kernels[:20]:
        share = 100 * kernel["seconds"] / total
        figures = f"{kernel['launches'] / steps:.0f} | {1e3 * kernel['seconds'] / steps:.3f} | {share:.1f} %"
        say(f"| {kernel['name']} | {figures} |")
    say(f"| all | | {1e3 * total / steps:.3f} | |")
    if row.get("floor_seconds"):
        say(f"| floor: the products with frozen weights at the measured rate | | {1e3 * row['floor_seconds']:.3f} | |")
    largest = kernels[0]
    say(f"\nNext to mend: `{largest['name']}`, {100 * largest['seconds'] / total:.0f} % of the step.")


def section(found, options):
    """The results page's section."""
    lines = []
    say = lines.append
    seen = [row for row in (found.one("doctor"), found.one("first")) if row.get("card")]
    card = seen[0]["card"] if seen else {}
    say(f"## On a GPU: {card.get('name', options.device)}\n")
    say(f"{date.today().isoformat()}, `{found.about['version']}`, {card.get('driver', 'driver unknown')}, {platform.platform()}.")
    if options.smoke:
        say("\n**A smoke test at tiny sizes: it shows that this script works, and nothing of speed.**")
    if options.memory_budget:
        say(f"\nBenches within a budget of {options.memory_budget}.")
    say("\n### Right\n")
    rightness(say, found)
    say(f"\n### Fast: sequence {options.seq}, NF4, rank {RANK} on all projections\n")
    speed(say, found)
    say("\n### torch at the same shapes, bf16\n")
    torch_calls(say, found.one("torch"))
    say("\n### Larger than the card\n")
    larger(say, found.one("streamed"), options.seq)
    say("\n### By kernel")
    by_kernel(say, found.one("profile"), "the device's clock")
    by_kernel(say, found.one("ncu"), "ncu")
    return "\n".join(lines) + "\n"


def phase_first(options, once):
    once("first", "first", first, options)


def phase_trajectory(options, once):
    cases = ["plain"] if options.smoke else ["plain", "accumulated", "clipped"]
    for dtype, case in [*(("f32", case) for case in cases), ("bf16", "plain")]:
        if dtype == "bf16" and options.device.startswith("vulkan"):
            continue
        about = {"dtype": dtype, "case": case}
        once("trajectory", f"trajectory {case} {dtype}", trajectory, options, dtype, case, **about)


def phase_bench(options, once):
    for shape in options.shapes:
        for batch in options.batches:
            about = {"shape": shape, "batch": batch, "tool": "tune"}
            once("bench", f"bench {shape} {batch}", bench, options, shape, batch, **about)


def layers_of(options):
    """Shapes and batches for a script that knows the larger shapes alone."""
    shapes = [shape for shape in options.shapes if shape in SHAPES]
    return ["--shapes", *(shapes or [next(iter(SHAPES))]), "--batches", *options.batches]


def phase_torch(options, once):
    once("torch", "torch", own_process, options, ["torch"], "--torch", *layers_of(options))


def phase_profile(options, once):
    shape, batch = options.shapes[0], options.batches[len(options.batches) // 2]
    once("profile", "profile", bench, options, shape, batch, ["--profile"], shape=shape, batch=batch)


def phase_ncu(options, once):
    shape, batch = options.shapes[0], options.batches[0]
    once("ncu", "ncu", ncu, options, shape, batch, shape=shape, batch=batch)


def phase_doctor(options, once):
    once("doctor", "doctor", doctor, options)


def phase_quickstart(options, once):
    once("quickstart", "quickstart", quickstart, options)


def phase_streamed(options, once):
    once("streamed", "streamed", streamed, options)


def phase_peers(options, once):
    for peer, packages in PEERS.items():
        for shape in options.shapes:
            for batch in options.batches:
                about = {"shape": shape, "batch": batch, "tool": peer}
                arguments = ["--peer", peer, "--shapes", shape, "--batches", batch]
                once("peers", f"{peer} {shape} {batch}", own_process, options, packages, *arguments, **about)


PHASES = {
    "first": phase_first,
    "trajectory": phase_trajectory,
    "bench": phase_bench,
    "torch": phase_torch,
    "profile": phase_profile,
    "ncu": phase_ncu,
    "doctor": phase_doctor,
    "quickstart": phase_quickstart,
    "streamed": phase_streamed,
    "peers": phase_peers,
}
# Those that prove something; the others measure.
PROOFS = ["first", "trajectory", "doctor", "quickstart"]


def is_right(found):
    proofs = [row for phase in PROOFS for row in found.of(phase)]
    return not any("error" in row or row.get("wrong") or row.get("is_right") is False for row in proofs)


def build(options):
    done = command(options, ["cargo", "build", "--release", "--locked", "--features", options.features], 7200)
    if done.returncode != 0:
        raise SystemExit(f"the build failed; {told(done)}")
    return ROOT / "target" / "release" / ("tune.exe" if os.name == "nt" else "tune")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", type=Path, help="the binary; left out, one is built")
    parser.add_argument("--features", default="cuda", help="of the build (default: cuda)")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has torch and the peers")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--workdir", type=Path, default=ROOT / "target" / "gpu-proof")
    parser.add_argument("--only", nargs="+", choices=PHASES, default=list(PHASES), metavar="PHASE")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin nothing and wait for nothing after them")
    parser.add_argument("--resume", action="store_true", help="keep what WORKDIR/results.json has, measure the rest")
    parser.add_argument("--smoke", action="store_true", help="everything once, at sizes that the processor can imitate")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 8])
    parser.add_argument("--seq", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--memory-budget", help="of the benches: how a smaller card would fare, as 24GiB")
    parser.add_argument("--streamed-shape", default="llama-3.3-70b", help="a model larger than the card")
    parser.add_argument("--streamed-rate", type=float, help="its tokens/s with all layers held, where that is known")
    options = parser.parse_args()
    ends = time.monotonic() + 60 * options.minutes
    options.workdir = options.workdir.resolve()
    options.trajectory_steps = 3 if options.smoke else 10**9
    if options.smoke:
        options.shapes, options.batches, options.seq, options.steps = ["stories-15m"], [1], 32, 2
        options.streamed_shape = "stories-15m"
    (options.workdir / "cache").mkdir(parents=True, exist_ok=True)
    options.results = None
    options.tune = options.tune.resolve() if options.tune else build(options)
    settings = {name: getattr(options, name) for name in ("device", "smoke", "seq", "steps", "memory_budget")}
    about = {"version": command(options, [options.tune, "--version"], 60).stdout.strip(), **settings}
    found = options.results = Results(options.workdir / "results.json", about, ends, options.resume)
    for name, phase in PHASES.items():
        if name in options.only:
            phase(options, found.once)
            (options.workdir / "section.md").write_text(section(found, options), encoding="utf-8")
    print(section(found, options))
    print(f"raw numbers: {found.path}", file=sys.stderr)
    if any("left" in row for row in found.rows.values()):
        print("no time was left for all of it: the same command with --resume goes on", file=sys.stderr)
    return 0 if is_right(found) else 1


if __name__ == "__main__":
    sys.exit(main())
