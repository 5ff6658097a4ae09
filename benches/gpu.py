"""The proof on a card: is `tune` right on this GPU, and how fast is it beside the tools that it replaces?

    python benches/gpu.py                          # builds with the feature `cuda`, measures, takes about an hour
    python benches/gpu.py --tune PATH              # with a binary that is there; this checkout holds the data
    python benches/gpu.py --device vulkan --smoke  # everything once, tiny: does this script itself work here?

Python's standard library is enough. In this order:
  doctor      every op on the card against its slow oracle
  trajectory  twenty QLoRA steps beside those of transformers + PEFT + torch (tests/golden/trajectory): losses, gradient
              norms and the change of every adapter tensor in f32, losses in bf16
  quickstart  recipes/quickstart.toml on the card: held-out loss before and after
  bench       `tune bench` at two shapes, sequence 2048, batches 1, 4 and 8: tokens/s, peak memory, and the share of the
              card's own rate of plain products, measured in the same process, counting four operations a weight and token
  streamed    a model whose layers wait in host memory: `tune plan` for the card, then `tune bench --offload host`, and the
              tokens/s that the plan's formula says beside those measured
  profile     time by kernel of one step, and the floor beside it
  peers       PEFT + bitsandbytes, the same with Liger's kernels, and Unsloth: each where its packages can be imported,
              in a process of its own, on random weights of the same shapes. What is not installed is "not measured".

Prints one section in Markdown for benches/README.md. All raw numbers, and that section, are kept in --workdir. The exit
code is 1 when doctor, trajectory or quickstart fail; figures that were not measured are named in the section.
"""

import argparse
import array
import gc
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "trajectory"
RANK, ALPHA = 16, 32
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHAPES = {
    "llama-3.2-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64}
    | {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True},
    "llama-3.1-8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "head_dim": 128}
    | {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False},
}
PEERS = {
    "PEFT + bitsandbytes": ["torch", "transformers", "peft", "bitsandbytes"],
    "the same + Liger": ["torch", "transformers", "peft", "bitsandbytes", "liger_kernel"],
    "Unsloth": ["torch", "transformers", "peft", "bitsandbytes", "unsloth"],
}
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


def command(arguments, timeout, environment=None):
    """What a process prints, and its exit code."""
    began = time.monotonic()
    try:
        done = subprocess.run(
            [str(argument) for argument in arguments],
            cwd=ROOT,
            env=os.environ | {"NO_COLOR": "1"} | (environment or {}),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
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


def doctor(options):
    # A device on which an op is wrong has a result all the same.
    report = result(command([options.tune, "doctor", "--device", options.device, "--json"], 1800))
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
    done = command([options.tune, "run", recipe, "--overwrite"], 1800)
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
    done = command(arguments, 3600)
    if done.returncode != 0:
        raise Failed(told(done))
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    return {"seconds": time.monotonic() - began, "before": losses[0], "after": losses[-1]}


# ---- How fast is it? -------------------------------------------------------------------------------------------


def bench(options, shape, batch, more=()):
    arguments = [options.tune, "bench", "--device", options.device, "--shape", shape, "--json", *more]
    arguments += ["--micro-batch-size", batch, "--seq-len", options.seq, "--steps", options.steps]
    return result(command(arguments + ["--warmup", 2, "--rank", RANK], 3600))


def streamed(options):
    """Layers in host memory: what was planned, and what is measured."""
    shape, packed = options.streamed_shape, options.workdir / f"packed-{options.streamed_shape}"
    sizes = ["--micro-batch-size", 1, "--seq-len", options.seq, "--rank", RANK]
    held = options.streamed_rate
    if held is None:
        # The speed with all layers held, where the card has room for them.
        held = attempt(bench, options, shape, 1).get("tokens_per_second")
    arguments = [options.tune, "plan", "--shape", shape, "--json", *sizes]
    arguments += ["--tokens-per-second", held] if held else []
    plan = result(command(arguments, 60))
    measured = bench(options, shape, 1, ["--offload", "host", "--packed", packed])
    links = [{key: link[key] for key in ("name", "tokens_to_hide", "tokens_per_second")} for link in plan["links"]]
    return {"shape": shape, "held": held, "links": links, "planned_bytes": plan["streamed"]["device_bytes"]} | {
        key: measured[key] for key in ("tokens_per_second", "device_reserved_bytes", "streaming", "peak_memory_bytes")
    }


def attempt(what, *arguments):
    """What comes of it, or why nothing does."""
    try:
        return what(*arguments)
    except (Failed, KeyError, ValueError, OSError, StopIteration) as error:
        return {"error": str(error) or repr(error)}


# ---- In the processes of the peers -----------------------------------------------------------------------------


def peer_config(shape):
    from transformers import LlamaConfig

    common = {"rms_norm_eps": 1e-5, "max_position_embeddings": 8192, "use_cache": False}
    return LlamaConfig(**SHAPES[shape], **common, bos_token_id=1, eos_token_id=2)


def random_model(shape, is_quantized):
    """Random weights at about unit gain, made on the card one tensor at a time, so that no dense copy is ever whole."""
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM

    config = peer_config(shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    generator = torch.Generator(device="cuda").manual_seed(1)

    def weight(rows, columns):
        values = torch.randn(rows, columns, device="cuda", generator=generator)
        return values.div_(math.sqrt(columns)).to(torch.bfloat16)

    for name, module in list(model.named_modules()):
        own = name.rsplit(".", 1)[-1]
        if isinstance(module, nn.Linear) and own in PROJECTIONS:
            sizes = (module.in_features, module.out_features, False)
            values = weight(module.out_features, module.in_features)
            if is_quantized:
                import bitsandbytes as bnb

                kind = {"quant_type": "nf4", "compress_statistics": True}
                new = bnb.nn.Linear4bit(*sizes, **kind, compute_dtype=torch.bfloat16, device="meta")
                new.weight = bnb.nn.Params4bit(values, requires_grad=False, blocksize=64, module=new, **kind).to("cuda")
            else:
                new = nn.Linear(*sizes, device="meta")
                new.weight = nn.Parameter(values, requires_grad=False)
            setattr(model.get_submodule(name.rsplit(".", 1)[0]), own, new)
        elif isinstance(module, nn.Embedding):
            module.weight = nn.Parameter(weight(config.vocab_size, config.hidden_size), requires_grad=False)
        elif hasattr(module, "variance_epsilon"):
            ones = torch.ones(module.weight.shape, device="cuda", dtype=torch.bfloat16)
            module.weight = nn.Parameter(ones, requires_grad=False)
        elif hasattr(module, "inv_freq"):
            # Its buffers are computed, not stored.
            parent, own = name.rsplit(".", 1)
            with torch.device("cuda"):
                setattr(model.get_submodule(parent), own, type(module)(config))
    if config.tie_word_embeddings:
        model.tie_weights()
    else:
        model.lm_head.weight = nn.Parameter(weight(config.vocab_size, config.hidden_size), requires_grad=False)
    left = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    if left:
        raise Failed(f"without values: {left[:5]}")
    # By this PEFT knows.
    model.is_loaded_in_4bit = model.is_quantized = is_quantized
    return model


def unsloth_model(shape, seq, workdir):
    from unsloth import FastLanguageModel  # before transformers: it changes it

    import torch

    folder = Path(workdir) / f"unsloth-{shape}"
    if not (folder / "tokenizer.json").exists():
        # It loads from files alone.
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast

        model = random_model(shape, is_quantized=False).to("cpu")
        model.save_pretrained(folder)
        del model
        gc.collect()
        torch.cuda.empty_cache()
        words = {"<unk>": 0, "<s>": 1, "</s>": 2}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    model, _ = FastLanguageModel.from_pretrained(
        str(folder), max_seq_length=seq, dtype=torch.bfloat16, load_in_4bit=True, local_files_only=True
    )
    return FastLanguageModel.get_peft_model(
        model, r=RANK, lora_alpha=ALPHA, lora_dropout=0, bias="none", target_modules=PROJECTIONS,
        use_gradient_checkpointing="unsloth", max_seq_length=seq,
    )


def run_peer(name, shape, batch, options):
    """Steps of one peer; the last line printed is its figures."""
    if name == "Unsloth":
        model = unsloth_model(shape, options.seq, options.workdir)
    else:
        if "Liger" in name:
            from liger_kernel.transformers import apply_liger_kernel_to_llama

            apply_liger_kernel_to_llama(cross_entropy=False, fused_linear_cross_entropy=True)
        from peft import LoraConfig, get_peft_model

        model = random_model(shape, is_quantized=True)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
        lora = {"r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0, "target_modules": PROJECTIONS}
        model = get_peft_model(model, LoraConfig(**lora, bias="none", task_type="CAUSAL_LM"))
    import torch

    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4, fused=True)
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(3, SHAPES[shape]["vocab_size"], (batch, options.seq), generator=generator).cuda()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for step in range(2 + options.steps):
        torch.cuda.synchronize()
        began = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        if step >= 2:
            seconds.append(time.perf_counter() - began)
    packages = sorted({package for needs in PEERS.values() for package in needs})
    installed = {}
    for package in packages:
        if importlib.util.find_spec(package):
            installed[package] = importlib.metadata.version(package.replace("_", "-"))
    figures = {
        "tokens_per_second": batch * options.seq / statistics.median(seconds),
        "step_seconds": seconds,
        "peak_memory_bytes": torch.cuda.max_memory_reserved(),
        "loss": loss.item(),
        "packages": installed,
    }
    print("FIGURES " + json.dumps(figures), flush=True)


def run_cublas():
    """Rate of torch's own bf16 product of large matrices: the roof that the card's vendor reaches."""
    import torch

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(20):
        a @ b
    torch.cuda.synchronize()
    print("FIGURES " + json.dumps({"flops": 20 * 2 * 8192**3 / (time.perf_counter() - began)}))


def why_not(packages):
    """Why these packages cannot be measured with; None when they can."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    probe = command([sys.executable, "-c", "import torch; assert torch.cuda.is_available()"], 300)
    return None if probe.returncode == 0 else "torch sees no CUDA device"


def own_process(options, *arguments):
    """The figures that this script prints in a process of its own."""
    shared = ["--seq", options.seq, "--steps", options.steps, "--workdir", options.workdir]
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = command([sys.executable, __file__, *shared, *arguments], 3600, offline)
    figures = [line for line in done.stdout.splitlines() if line.startswith("FIGURES ")]
    if not figures:
        raise Failed(told(done))
    return json.loads(figures[-1].removeprefix("FIGURES "))


# ---- All of it -------------------------------------------------------------------------------------------------


def gib(size):
    return "?" if size is None else f"{size / 2**30:.2f}"


def short(error):
    """An error in one cell of a table."""
    return " ".join(error.replace("|", "/").split())[-120:]


def section(found, options):
    """The results page's section."""
    health, lines = found["doctor"], []
    say = lines.append
    card = health.get("card", {})
    name = card.get("name", options.device)
    say(f"## On a GPU: {name}\n")
    say(f"{date.today().isoformat()}, `{found['version']}`, {card.get('driver', 'driver unknown')}, {platform.platform()}.")
    if options.smoke:
        say("\n**A smoke test at tiny sizes: it shows that this script works, and nothing of speed.**")
    say("\n### Right\n")
    if "error" in health:
        say(f"- `tune doctor`: **failed**, {short(health['error'])}")
    else:
        verdict = "all right" if not health["wrong"] else "**wrong: " + ", ".join(health["wrong"]) + "**"
        say(f"- `tune doctor`: {health['ops']} checks in {', '.join(health['dtypes'])}, {verdict}")
    for run in found["trajectory"]:
        if "error" in run:
            say(f"- trajectory: **failed**, {short(run['error'])}")
        elif "skipped" in run:
            say(f"- trajectory in {run['dtype']}: not run, {run['skipped']}")
        else:
            change = "" if run["change"] is None else f", adapter within {run['change']:.1e} of its change"
            verdict = "right" if run["is_right"] else "**wrong**"
            say(
                f"- trajectory `{run['case']}` in {run['dtype']}, {run['steps']} steps: losses within {run['loss']:.1e}, "
                f"gradient norms within {run['norm']:.1e}{change}: {verdict}"
            )
    quick = found["quickstart"]
    if "error" in quick:
        say(f"- quickstart: **failed**, {short(quick['error'])}")
    else:
        say(f"- quickstart: held-out loss {quick['before']:.3f} → {quick['after']:.3f} in {quick['seconds']:.0f} s")

    say(f"\n### Fast: sequence {options.seq}, NF4, rank {RANK} on all projections\n")
    cublas = found["cublas"]
    say(
        f"Plain bf16 product of torch (cuBLAS): {cublas['flops'] / 1e12:.1f} TFLOP/s."
        if "flops" in cublas
        else f"Plain bf16 product of torch (cuBLAS): not measured ({short(cublas['error'])})."
    )
    say("\n| shape | batch | tool | tokens/s | share of the product's rate | peak memory, GiB | |")
    say("|---|--:|---|--:|--:|--:|---|")
    for run in found["bench"]:
        head = f"| {run['shape']} | {run['batch']} | {run['tool']} |"
        if "error" in run:
            say(f"{head} | | | not measured: {short(run['error'])} |")
            continue
        note = share = ""
        if run["tool"] == "tune":
            if run["ceiling_flops"]:
                share = f"{100 * run['share_of_ceiling']:.0f} % of {run['ceiling_flops'] / 1e12:.3g} TFLOP/s"
            planned, again = gib(run["planned_memory_bytes"]), run["recomputed_layers"]
            note = f"{run['compute_dtype']}; {planned} planned; {again} layers run forward twice"
            memory = run["device_reserved_bytes"]
        else:
            memory = run["peak_memory_bytes"]
        say(f"{head} {run['tokens_per_second']:.0f} | {share} | {gib(memory)} | {note} |")
    for name, why in found["not_measured"].items():
        say(f"\n{name}: not measured ({why}).")

    say("\n### Larger than the card\n")
    larger = found["streamed"]
    if "error" in larger:
        say(f"Not measured: {short(larger['error'])}.")
    else:
        held = f"{larger['held']:.0f} tokens/s with all layers held; " if larger["held"] else ""
        waiting = gib(larger["streaming"]["streamed_bytes"])
        say(
            f"{larger['shape']}, 1 × {options.seq}, layers of {waiting} GiB in host memory: "
            f"{larger['tokens_per_second']:.0f} tokens/s, {gib(larger['device_reserved_bytes'])} GiB on the card; {held}"
            + "; ".join(f"{link['tokens_per_second']:.0f} predicted over {link['name']}" for link in larger["links"])
        )

    profile = found["profile"]
    say("\n### By kernel\n")
    if "error" in profile or not profile["kernels"]:
        say(f"Not measured: {short(profile.get('error', 'the device gave no times'))}.")
        return "\n".join(lines) + "\n"
    steps, kernels = profile["steps"], profile["kernels"]
    total = sum(kernel["seconds"] for kernel in kernels)
    say(f"One step of {profile['shape']} at batch {profile['batch']}, every kernel timed alone by the device's clock.\n")
    say("| kernel | launches | ms | share |\n|---|--:|--:|--:|")
    for kernel in kernels[:20]:
        share = 100 * kernel["seconds"] / total
        row = f"{kernel['launches'] / steps:.0f} | {1e3 * kernel['seconds'] / steps:.3f} | {share:.1f} %"
        say(f"| {kernel['name']} | {row} |")
    say(f"| all | | {1e3 * total / steps:.3f} | |")
    if profile.get("floor_seconds"):
        say(f"| floor: the products with frozen weights at the measured rate | | {1e3 * profile['floor_seconds']:.3f} | |")
    largest = kernels[0]
    say(f"\nNext to mend: `{largest['name']}`, {100 * largest['seconds'] / total:.0f} % of the step.")
    return "\n".join(lines) + "\n"


def measure(options):
    found = {"version": command([options.tune, "--version"], 60).stdout.strip(), "smoke": options.smoke}
    found["doctor"] = attempt(doctor, options)
    dtypes = found["doctor"].get("dtypes", [])
    cases = ["plain"] if options.smoke else ["plain", "accumulated", "clipped"]
    found["trajectory"] = [attempt(trajectory, options, "f32", case) for case in cases]
    found["trajectory"].append(
        attempt(trajectory, options, "bf16", "plain")
        if "bf16" in dtypes
        else {"dtype": "bf16", "skipped": "the device has none"}
    )
    found["quickstart"] = attempt(quickstart, options)
    found["bench"], found["not_measured"] = [], {}
    for shape in options.shapes:
        for batch in options.batches:
            about = {"shape": shape, "batch": batch, "tool": "tune"}
            found["bench"].append(attempt(bench, options, shape, batch) | about)
    found["streamed"] = attempt(streamed, options)
    batch = options.batches[len(options.batches) // 2]
    found["profile"] = attempt(bench, options, options.shapes[0], batch, ["--profile"])
    found["profile"] |= {"shape": options.shapes[0], "batch": batch}
    why = why_not(["torch"])
    found["cublas"] = {"error": why} if why else attempt(own_process, options, "--cublas")
    for peer, packages in PEERS.items():
        why = why_not(packages)
        if why is None and not set(options.shapes) <= set(SHAPES):
            why = "the shape has no peers"
        if why:
            found["not_measured"][peer] = why
            continue
        for shape in options.shapes:
            for batch in options.batches:
                about = {"shape": shape, "batch": batch, "tool": peer}
                arguments = ["--peer", peer, "--peer-shape", shape, "--peer-batch", batch]
                found["bench"].append(attempt(own_process, options, *arguments) | about)
    return found


def is_right(found):
    runs = [run for run in found["trajectory"] if "skipped" not in run]
    trajectory_is_right = all(run.get("is_right") for run in runs)
    health = found["doctor"]
    return "error" not in health and not health["wrong"] and trajectory_is_right and "error" not in found["quickstart"]


def build(features):
    done = command(["cargo", "build", "--release", "--locked", "--features", features], 7200)
    if done.returncode != 0:
        raise SystemExit(f"the build failed; {told(done)}")
    return ROOT / "target" / "release" / ("tune.exe" if os.name == "nt" else "tune")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", type=Path, help="the binary; left out, one is built")
    parser.add_argument("--features", default="cuda", help="of the build (default: cuda)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--workdir", type=Path, default=ROOT / "target" / "gpu-proof")
    parser.add_argument("--smoke", action="store_true", help="everything once, at sizes that the processor can imitate")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 8])
    parser.add_argument("--seq", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--streamed-shape", default="llama-3.3-70b", help="a model larger than the card")
    parser.add_argument("--streamed-rate", type=float, help="its tokens/s with all layers held, where that is known")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--peer-shape", help=argparse.SUPPRESS)
    parser.add_argument("--peer-batch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--cublas", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.workdir = options.workdir.resolve()
    if options.peer:
        return run_peer(options.peer, options.peer_shape, options.peer_batch, options)
    if options.cublas:
        return run_cublas()
    options.trajectory_steps = 3 if options.smoke else 10**9
    if options.smoke:
        options.shapes, options.batches, options.seq, options.steps = ["stories-15m"], [1], 32, 2
        options.streamed_shape = "stories-15m"
    options.workdir.mkdir(parents=True, exist_ok=True)
    options.tune = options.tune.resolve() if options.tune else build(options.features)
    found = measure(options)
    (options.workdir / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    page = section(found, options)
    (options.workdir / "section.md").write_text(page, encoding="utf-8")
    print(page)
    print(f"raw numbers: {options.workdir / 'results.json'}", file=sys.stderr)
    return 0 if is_right(found) else 1


if __name__ == "__main__":
    sys.exit(main())
