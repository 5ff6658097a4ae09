#!/usr/bin/env python3
"""Machine code of every GPU kernel, without a GPU: registers, spills and shared memory of each.

    python .ci/cuda.py work_folder sources_75 sources_80 [--table table.md]

`sources_N` holds what `TUNE_CUDA_ARCH=N TUNE_CUDA_SOURCES=sources_N cargo test -p tune-kernels --features cuda-sources
--test cuda_sources` wrote. Sources for 75 become machine code of sm_75, sources for 80 that of every later card; each
distinct source goes through NVRTC once, for the oldest card it is for, and results are kept in `work_folder` by the hash of
source and compilers. Wants the wheels nvidia-cuda-nvrtc-cu12, nvidia-cuda-runtime-cu12, nvidia-cuda-nvcc-cu12,
nvidia-cuda-cccl-cu12 and nvidia-cuda-nvdisasm. Fails where a kernel does not compile, takes more shared memory or registers
than a block may have, or spills in f16 or bf16 more than a few registers, or more than one in an inner loop.

That much is allowed because ptxas chooses it: it gives up a few registers where one more block then fits on a
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

ROOT = list(nvidia.__path__)[0]
INCLUDE = [f"{ROOT}/cuda_runtime/include", f"{ROOT}/cuda_cccl/include", f"{ROOT}/cuda_nvcc/include"]
WHEELS = [f"nvidia-cuda-{part}-cu12" for part in ("nvrtc", "runtime", "nvcc", "cccl")] + ["nvidia-cuda-nvdisasm"]
COMPILERS = " ".join(f"{wheel} {importlib.metadata.version(wheel)}" for wheel in WHEELS)
# What a block may ask for, in bytes, by compute capability.
SHARED = {75: 65536, 80: 166912, 86: 101376, 89: 101376, 90: 232448, 120: 101376}
# Which cards the sources for one are for.
CARDS = {75: [75], 80: [80, 86, 89, 90, 120]}
# Bytes of registers that a thread of a hot kernel may spill, and instructions of its inner loops that may do it: ptxas
# stores a register once and loads it up to three times.
MAY_SPILL, MAY_LOOP = 20, 4
# Results of another form do not count.
FORM = "2"

Row = collections.namedtuple("Row", "kernel variant arch threads registers spilled looped shared products")


def is_hot(row):
    """Whether spills matter: f32 products are for comparing."""
    return "f16" in row.kernel


def spills_in_loops(binary):
    """How many instructions of the innermost loops move registers to memory of the thread or back."""
    text = subprocess.run([glob.glob(f"{ROOT}/cu*/bin/nvdisasm")[0], "-c", binary], capture_output=True, text=True, check=True)
    labels, instructions = {}, []
    for line in text.stdout.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(instructions)
        elif re.search(r"/\*[0-9a-f]{4,}\*/", line):
            instructions.append(line)
    loops = []
    for end, line in enumerate(instructions):
        back = re.search(r"\bBRA\b.*`\((\.L\w+)\)", line)
        if back and labels[back[1]] <= end:
            loops.append((labels[back[1]], end))
    innermost = [loop for loop in loops if not any(other != loop and loop[0] <= other[0] and other[1] <= loop[1] for other in loops)]
    return sum(len(re.findall(r"\b(?:STL|LDL)\b", line)) for start, end in innermost for line in instructions[start : end + 1])


def ptx(library, source, arch):
    """PTX of CUDA C++, or the compiler's complaint."""
    options = [f"--gpu-architecture=compute_{arch}", *(f"--include-path={path}" for path in INCLUDE)]
    program = ctypes.c_void_p()
    library.nvrtcCreateProgram(ctypes.byref(program), source, None, 0, None, None)
    arguments = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    size = ctypes.c_size_t()
    try:
        if library.nvrtcCompileProgram(program, len(options), arguments):
            library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            library.nvrtcGetProgramLog(program, log)
            return None, log.value.decode()
        library.nvrtcGetPTXSize(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        library.nvrtcGetPTX(program, text)
        return text.raw[:-1], ""
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def assemble(path, archs, work):
    """What one source becomes on each card, and what is wrong with it; from `work` if it is there."""
    with open(path, "rb") as file:
        source = file.read()
    kernel = os.path.basename(path)[4:-3]
    key = hashlib.sha256("\n".join([FORM, COMPILERS, str(archs), kernel]).encode() + source).hexdigest()[:24]
    kept = os.path.join(work, f"{key}.json")
    if os.path.exists(kept):
        with open(kept) as file:
            return [Row(*row) for row in json.load(file)], []
    library = ctypes.CDLL(glob.glob(f"{ROOT}/cuda_nvrtc/lib/libnvrtc.so.*")[0])
    units, shared = re.match(rb"// units (\d+) shared (\d+)", source).groups()
    code, log = ptx(library, source, archs[0])
    if code is None:
        return [], [f"{kernel} ({path}): {log}"]
    products = code.count(b"mma.sync") + code.count(b"wmma.mma")
    rows, wrong = [], []
    with tempfile.TemporaryDirectory() as folder:
        text, binary = os.path.join(folder, "ptx"), os.path.join(folder, "cubin")
        with open(text, "wb") as file:
            file.write(code)
        for arch in archs:
            command = [f"{ROOT}/cuda_nvcc/bin/ptxas", "-v", f"-arch=sm_{arch}", text, "-o", binary]
            run = subprocess.run(command, capture_output=True, text=True)
            if run.returncode:
                wrong.append(f"{kernel} for sm_{arch} ({path}): {run.stderr}")
                continue
            # A figure that is not there would pass for 0.
            figures = re.search(r"(\d+) bytes spill stores.*Used (\d+) registers", run.stderr, re.DOTALL)
            if figures is None:
                wrong.append(f"{kernel} for sm_{arch}: ptxas does not say what it takes: {run.stderr}")
                continue
            static = re.search(r"(\d+) bytes smem", run.stderr)
            taken = max(int(shared), int(static[1]) if static else 0)
            spilled, registers = map(int, figures.groups())
            looped = spills_in_loops(binary) if spilled else 0
            rows.append(Row(kernel, key[:8], arch, int(units), registers, spilled, looped, taken, products))
    if not wrong:
        with open(kept + ".new", "w") as file:
            json.dump(rows, file)
        os.replace(kept + ".new", kept)
    return rows, wrong


def complaints(row):
    """What a card would refuse, or what would be slow on it."""
    name = f"{row.kernel} {row.variant} on sm_{row.arch}"
    if row.shared > SHARED[row.arch]:
        yield f"{name}: {row.shared} bytes of shared memory, a block may have {SHARED[row.arch]}"
    if row.registers * row.threads > 65536:
        yield f"{name}: {row.registers} registers for each of {row.threads} threads, a block has 65536"
    if is_hot(row) and row.spilled > MAY_SPILL:
        yield f"{name}: {row.spilled} bytes of registers spill, {MAY_SPILL} may"
    if is_hot(row) and row.looped > MAY_LOOP:
        yield f"{name}: {row.looped} instructions of inner loops spill, {MAY_LOOP} may"


def jobs(folders):
    """Each distinct source with the cards it is for, oldest first."""
    found = {}
    for folder in folders:
        family = int(re.search(r"(\d+)/*$", folder)[1])
        paths = sorted(glob.glob(os.path.join(folder, "*.cu")))
        if not paths:
            sys.exit(f"{folder}: no kernels")
        for path in paths:
            with open(path, "rb") as file:
                text = file.read()
            found.setdefault(text, (path, []))[1].extend(CARDS[family])
    return [(path, sorted(set(archs))) for path, archs in found.values()]


def summary(rows):
    """A line for each kernel: the worst over its variants, card by card."""
    kernels = collections.defaultdict(list)
    for row in rows:
        kernels[row.kernel].append(row)
    archs = sorted(SHARED)
    lines = [
        "# Registers, spills and shared memory of the GPU kernels",
        "",
        "What NVRTC and ptxas make of each kernel; written by `.ci/cuda.py`. Registers of a thread; after a + bytes of them",
        "that spill, in parentheses how many instructions of inner loops do it. Each figure is the worst over a kernel's",
        "variants (shapes, operands, head dimensions). A dash: not for that card.",
        "",
        f"Compilers: {COMPILERS}.",
        "",
        "| kernel | variants | threads | shared KiB | " + " | ".join(f"sm_{arch}" for arch in archs) + " |",
        "|---|--:|--:|--:|" + "--:|" * len(archs),
    ]
    for kernel, of in sorted(kernels.items()):
        cells = []
        for arch in archs:
            here = [row for row in of if row.arch == arch]
            spilled = max((row.spilled for row in here), default=0)
            registers = max((row.registers for row in here), default="–")
            looped = max((row.looped for row in here), default=0)
            cell = f"{registers} + {spilled}" if spilled else f"{registers}"
            cells.append(f"{cell} ({looped})" if looped else cell)
        variants = len({row.variant for row in of})
        threads, shared = max(row.threads for row in of), max(row.shared for row in of) / 1024
        lines.append(f"| {kernel} | {variants} | {threads} | {shared:.1f} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main():
    arguments = sys.argv[1:]
    table = None
    if "--table" in arguments:
        at = arguments.index("--table")
        table = arguments[at + 1]
        del arguments[at : at + 2]
    if len(arguments) < 2:
        sys.exit(__doc__)
    work, folders = arguments[0], arguments[1:]
    os.makedirs(work, exist_ok=True)
    wanted = jobs(folders)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda job: assemble(*job, work), wanted))
    rows = [row for found, _ in results for row in found]
    print(f"{'kernel':<90} {'variant':<8} {'sm':>4} {'threads':>7} {'registers':>9} {'spilled':>7} {'looped':>6} {'shared':>7} {'mma':>5}")
    for row in rows:
        print(
            f"{row.kernel:<90} {row.variant:<8} {row.arch:>4} {row.threads:>7} {row.registers:>9} {row.spilled:>7} "
            f"{row.looped:>6} {row.shared:>7} {row.products:>5}"
        )
    wrong = [problem for _, problems in results for problem in problems]
    wrong += [problem for row in rows for problem in complaints(row)]
    if table:
        with open(table, "w") as file:
            file.write(summary(rows))
    print(f"{len(wanted)} kernels as {len(rows)} pieces of machine code: {len(wrong)} wrong")
    if wrong:
        sys.exit("\n".join(wrong))


main()
