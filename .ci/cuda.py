#!/usr/bin/env python3
"""Machine code of every GPU kernel, without a GPU: what it takes, what its loops do, and what a card would make of it.

    python .ci/cuda.py work_folder sources_75 sources_80 … [--recorded table.md] [--table table.md]

`sources_N` holds what `TUNE_CUDA_ARCH=N TUNE_CUDA_SOURCES=sources_N cargo test -p tune-kernels --features cuda-sources
--test cuda_without_gpu sources::` wrote: the kernels that a card of capability N/10 would run. Each becomes machine code of that card,
by NVRTC with the options that CubeCL gives it, and by ptxas; results are kept in `work_folder` by the hash of source and
compilers. Wants the wheels nvidia-cuda-nvrtc-cu12, nvidia-cuda-runtime-cu12, nvidia-cuda-nvcc-cu12, nvidia-cuda-cccl-cu12
and nvidia-cuda-nvdisasm. Fails where a kernel

- does not compile, or takes more shared memory or registers than a block may have;
- in f16 or bf16 spills more than a few registers, or more than one in an inner loop;
- multiplies 16-bit numbers that did not come by `LDSM`, or has generic loads or a division of integers in an inner loop,
  unless `OWED` says so;
- takes more registers or spills more than `--recorded` says, by more than one run of the compilers differs from another.

A few spills are allowed because ptxas chooses them: it gives up a few registers where one more block then fits on a
multiprocessor, or parks what only matters before and after the loop.
"""

import collections
import concurrent.futures
import ctypes
import glob
import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile

import nvidia

import sass

ROOT = list(nvidia.__path__)[0]
INCLUDE = [f"{ROOT}/cuda_{part}/include" for part in ("runtime", "cccl", "nvcc")]
WHEELS = [f"nvidia-cuda-{part}-cu12" for part in ("nvrtc", "runtime", "nvcc", "cccl")] + ["nvidia-cuda-nvdisasm"]
COMPILERS = " ".join(f"{wheel} {importlib.metadata.version(wheel)}" for wheel in WHEELS)
# Bytes of registers that a thread of a hot kernel may spill, and instructions of its inner loops that may do it: ptxas
# stores a register once and loads it up to three times.
MAY_SPILL, MAY_LOOP = 20, 4
# Registers and spilled bytes by which a kernel may exceed what is recorded of it.
MAY_DRIFT = 8
# What kernels still do and should not, by the beginning of their names. An entry that no kernel needs is an error.
OWED = {
    # NVRTC leaves loads of bf16 fragments generic: attention has to multiply by mma.sync, as products do.
    ("attention_", "LDSM"),
    ("attention_", "generic loads"),
    # Capped scores keep their slopes beside all else.
    ("attention_backward_kernel", "spills"),
    # States of 128 by 128 take all registers of the recurrence.
    ("forward_kernel", "spills"),
    ("back_by_columns_kernel", "spills"),
}
# Results of another form do not count.
FORM = "3"

Row = collections.namedtuple("Row", "kernel part variant arch threads registers spilled shared hot inner")


def is_hot(row):
    """Whether spills matter: f32 products are for comparing."""
    return "f16" in row.kernel


def ptx(library, source, arch):
    """PTX of CUDA C++, or the compiler's complaint."""
    target = f"sm_{arch}a" if arch >= 90 else f"sm_{arch}"
    options = [f"--gpu-architecture={target}", "-lineinfo", *(f"--include-path={path}" for path in INCLUDE)]
    program = ctypes.c_void_p()
    library.nvrtcCreateProgram(ctypes.byref(program), source, None, 0, None, None)
    arguments = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    size = ctypes.c_size_t()
    try:
        if library.nvrtcCompileProgram(program, len(options), arguments):
            library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            library.nvrtcGetProgramLog(program, log)
            return None, target, log.value.decode()
        library.nvrtcGetPTXSize(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        library.nvrtcGetPTX(program, text)
        return text.raw[:-1], target, ""
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def assemble(path, arch, work):
    """What one source becomes on its card, or what is wrong with it; from `work` if it is there."""
    with open(path, "rb") as file:
        source = file.read()
    kernel = os.path.basename(path)[4:-3]
    key = hashlib.sha256("\n".join([FORM, COMPILERS, str(arch), kernel]).encode() + source).hexdigest()[:24]
    kept = os.path.join(work, f"{key}.json")
    if os.path.exists(kept):
        with open(kept) as file:
            row = json.load(file)
        return Row(*row[:-2], *(sass.Loop(*loop) for loop in row[-2:])), None
    library = ctypes.CDLL(glob.glob(f"{ROOT}/cuda_nvrtc/lib/libnvrtc.so.*")[0])
    units, shared, part = re.match(rb"// units (\d+) shared (\d+) of (.*)", source).groups()
    code, target, log = ptx(library, source, arch)
    if code is None:
        return None, f"{kernel} for {target} ({path}): {log}"
    with tempfile.TemporaryDirectory() as folder:
        text, binary = os.path.join(folder, "ptx"), os.path.join(folder, "cubin")
        with open(text, "wb") as file:
            file.write(code)
        command = [f"{ROOT}/cuda_nvcc/bin/ptxas", "-v", f"-arch={target}", text, "-o", binary]
        run = subprocess.run(command, capture_output=True, text=True)
        # A figure that is not there would pass for 0.
        figures = re.search(r"(\d+) bytes spill stores.*Used (\d+) registers", run.stderr, re.DOTALL)
        if run.returncode or figures is None:
            return None, f"{kernel} for {target} ({path}): {run.stderr}"
        code = sass.disassembled(glob.glob(f"{ROOT}/cu*/bin/nvdisasm")[0], binary)
    static = re.search(r"(\d+) bytes smem", run.stderr)
    shared = max(int(shared), int(static[1]) if static else 0)
    spilled, registers = map(int, figures.groups())
    loops = sass.hot(*code), sass.in_loops(*code)
    row = Row(kernel, part.decode(), key[:8], arch, int(units), registers, spilled, shared, *loops)
    with open(kept + ".new", "w") as file:
        json.dump(row, file)
    os.replace(kept + ".new", kept)
    return row, None


def complaints(row):
    """What a card would refuse, or what would be slow on it: of which kind, and the text."""
    name, card, loops = f"{row.kernel} {row.variant} of {row.part} on sm_{row.arch}", sass.CARDS[row.arch], row.inner
    if row.shared > card.shared:
        yield "shared memory", f"{name}: {row.shared} bytes of shared memory, a block may have {card.shared}"
    if row.registers * row.threads > sass.REGISTERS:
        yield "registers", f"{name}: {row.registers} registers for each of {row.threads} threads, a block has {sass.REGISTERS}"
    if not is_hot(row):
        return
    if row.spilled > MAY_SPILL:
        yield "spills", f"{name}: {row.spilled} bytes of registers spill, {MAY_SPILL} may"
    if loops.spills > MAY_LOOP:
        yield "spills", f"{name}: {loops.spills} instructions of inner loops spill, {MAY_LOOP} may"
    if not row.hot.products:
        return
    if not row.hot.matrices:
        yield "LDSM", f"{name}: no LDSM beside {row.hot.products} products"
    if loops.generic:
        yield "generic loads", f"{name}: {loops.generic} generic loads or stores in inner loops"
    if loops.divisions:
        yield "divisions", f"{name}: {loops.divisions} divisions of integers in inner loops"


def judged(rows):
    """All complaints that nothing owed excuses, and what is owed no more."""
    due = set()
    for row in rows:
        for kind, text in complaints(row):
            debts = {debt for debt in OWED if row.kernel.startswith(debt[0]) and kind == debt[1]}
            due |= debts
            if not debts:
                yield text
    yield from (f"{kernel} has no {kind} any more: strike it from OWED" for kernel, kind in sorted(OWED - due))


def worst(rows):
    """By kernel and card: registers, spilled bytes and spilling instructions of inner loops, the worst of its variants."""
    found = collections.defaultdict(lambda: (0, 0, 0))
    for row in rows:
        figures = (row.registers, row.spilled, row.inner.spills)
        key = row.kernel, row.arch
        found[key] = tuple(map(max, found[key], figures))
    return found


def recorded(path):
    """The same, as a table written by `summary` has it."""
    found, archs = {}, []
    with open(path) as file:
        lines = file.read().split("## ")[0].splitlines()
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == "kernel":
            archs = [int(cell[3:]) for cell in cells[4:]]
        for arch, cell in zip(archs, cells[4:]):
            if figures := re.fullmatch(r"(\d+)(?: \+ (\d+))?(?: \((\d+)\))?", cell):
                found[cells[0], arch] = tuple(int(figure or 0) for figure in figures.groups())
    return found


def drift(rows, path):
    """What became worse than the table at `path` says."""
    known = recorded(path)
    cards = {arch for _, arch in known}
    for (kernel, arch), (registers, spilled, _) in sorted(worst(rows).items()):
        before = known.get((kernel, arch))
        if before is None:
            if arch in cards:
                yield f"{kernel} on sm_{arch} is not recorded"
        elif registers > before[0] + MAY_DRIFT or spilled > before[1] + MAY_DRIFT:
            yield f"{kernel} on sm_{arch}: {registers} registers + {spilled} bytes spilled; recorded: {before[0]} + {before[1]}"


def jobs(folders):
    """Each source with the card it is for."""
    for folder in folders:
        arch = int(re.search(r"(\d+)/*$", folder)[1])
        paths = sorted(glob.glob(os.path.join(folder, "*.cu")))
        if not paths:
            sys.exit(f"{folder}: no kernels")
        yield from ((path, arch) for path in paths)


def summary(rows):
    """A line for each kernel: the worst over its variants, card by card."""
    figures, archs = worst(rows), sorted({row.arch for row in rows})
    lines = [
        "# Machine code of the GPU kernels",
        "",
        "What NVRTC and ptxas make of the kernels that each card would run, with CubeCL's options; written by `.ci/cuda.py`.",
        "Registers of a thread; after a + bytes of them that spill, in parentheses how many instructions of inner loops do",
        "it. Each figure is the worst over a kernel's variants (shapes, operands, head dimensions). A dash: not for that card.",
        "",
        f"Compilers: {COMPILERS}.",
        "",
        "| kernel | variants | threads | shared KiB | " + " | ".join(f"sm_{arch}" for arch in archs) + " |",
        "|---|--:|--:|--:|" + "--:|" * len(archs),
    ]
    for kernel in sorted({row.kernel for row in rows}):
        of = [row for row in rows if row.kernel == kernel]
        cells = []
        for arch in archs:
            registers, spilled, looped = figures.get((kernel, arch), (0, 0, 0))
            cell = f"{registers} + {spilled}" if spilled else f"{registers}" if registers else "–"
            cells.append(f"{cell} ({looped})" if looped else cell)
        variants = max(sum(row.arch == arch for row in of) for arch in archs)
        threads, shared = max(row.threads for row in of), max(row.shared for row in of) / 1024
        lines.append(f"| {kernel} | {variants} | {threads} | {shared:.1f} | " + " | ".join(cells) + " |")
    return "\n".join(lines + [""] + predictions(rows)) + "\n"


def predictions(rows):
    """What tensor cores could do at most: a line for each kernel with products and what it is for."""
    archs = sorted({row.arch for row in rows})
    kinds = sorted({(row.part, row.kernel.split("_f_")[0].split("_lhs_")[0]) for row in rows if is_hot(row) and row.hot.products})
    lines = [
        "## Predicted",
        "",
        "TFLOP/s at most of the innermost loop with products, least and most over a kernel's variants; after a slash",
        "instructions for each 1000 multiply-adds of a thread's share, and blocks on a multiprocessor, of the slowest; what",
        "binds it: issue slots (i), tensor cores (t), shared memory (s). By `.ci/sass.py`, which leaves out DRAM, caches, bank",
        "conflicts and latency: it ranks changes of one kernel, and no card has confirmed it.",
        "",
        "| part | kernel | " + " | ".join(f"{sass.CARDS[arch].name}" for arch in archs) + " |",
        "|---|---|" + "--:|" * len(archs),
        "| all tensor cores | – | " + " | ".join(f"{sass.peak(arch):.0f}" for arch in archs) + " |",
    ]
    for part, kind in kinds:
        cells = []
        for arch in archs:
            of = [row for row in rows if row.part == part and row.arch == arch and row.kernel.startswith(kind)]
            costs = [(sass.cost(arch, row.hot, row.threads, row.registers, row.shared), row) for row in of if row.hot.products]
            if not costs:
                cells.append("–")
                continue
            least, row = min(costs, key=lambda pair: pair[0].teraflops)
            most = max(cost.teraflops for cost, _ in costs)
            rates = f"{least.teraflops:.0f}" if round(most) == round(least.teraflops) else f"{least.teraflops:.0f}–{most:.0f}"
            share = row.hot.slots * 64000 / row.hot.flops
            cells.append(f"{rates} / {share:.0f}, {least.blocks}{least.binds[0]}")
        lines.append(f"| {part} | {kind} | " + " | ".join(cells) + " |")
    return lines


def option(arguments, name):
    """The value of an option, which is taken out of the arguments."""
    if name not in arguments:
        return None
    at = arguments.index(name)
    value = arguments[at + 1]
    del arguments[at : at + 2]
    return value


def main():
    arguments = sys.argv[1:]
    table, before = option(arguments, "--table"), option(arguments, "--recorded")
    if len(arguments) < 2:
        sys.exit(__doc__)
    work, folders = arguments[0], arguments[1:]
    os.makedirs(work, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda job: assemble(*job, work), jobs(folders)))
    rows = [row for row, _ in results if row]
    wrong = [problem for _, problem in results if problem]
    wrong += judged(rows)
    if before:
        wrong += drift(rows, before)
    if table:
        with open(table, "w") as file:
            file.write(summary(rows))
    print(f"{len(rows)} pieces of machine code: {len(wrong)} wrong")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
