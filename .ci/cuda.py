#!/usr/bin/env python3
"""Machine code of every GPU kernel, without a GPU: registers, spills and shared memory of each.

    TUNE_CUDA_ARCH=80 TUNE_CUDA_SOURCES=folder \
        cargo test -p tune-kernels --features cuda-sources --test cuda_sources
    python .ci/cuda.py folder 80 86 89

Compiles to PTX for the first architecture and assembles that for each of them.
Wants the wheels nvidia-cuda-nvrtc-cu12, nvidia-cuda-runtime-cu12, nvidia-cuda-nvcc-cu12 and nvidia-cuda-cccl-cu12.
Fails where a kernel does not compile, takes more shared memory or registers than a block may have, or spills
more than a few registers in f16 or bf16.
"""

import concurrent.futures
import ctypes
import glob
import os
import re
import subprocess
import sys

import nvidia

ROOT = list(nvidia.__path__)[0]
INCLUDE = [f"{ROOT}/cuda_runtime/include", f"{ROOT}/cuda_cccl/include", f"{ROOT}/cuda_nvcc/include"]
# What a block may ask for, in bytes, by compute capability.
SHARED = {75: 65536, 80: 166912, 86: 101376, 89: 101376, 90: 232448, 120: 101376}


def ptx(library, source, arch):
    """PTX of CUDA C++, or the compiler's complaint."""
    options = [f"--gpu-architecture=sm_{arch}", *(f"--include-path={path}" for path in INCLUDE)]
    program = ctypes.c_void_p()
    library.nvrtcCreateProgram(ctypes.byref(program), source, None, 0, None, None)
    arguments = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    size = ctypes.c_size_t()
    if library.nvrtcCompileProgram(program, len(options), arguments):
        library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        library.nvrtcGetProgramLog(program, log)
        return None, log.value.decode()
    library.nvrtcGetPTXSize(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    library.nvrtcGetPTX(program, text)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return text.raw[:-1], ""


def assemble(path, archs):
    """One kernel's lines of the table, and what is wrong with it."""
    library = ctypes.CDLL(glob.glob(f"{ROOT}/cuda_nvrtc/lib/libnvrtc.so.*")[0])
    name = os.path.basename(path)[:-3]
    source = open(path, "rb").read()
    units, shared = re.match(rb"// units (\d+) shared (\d+)", source).groups()
    code, log = ptx(library, source, archs[0])
    if code is None:
        return [], [f"{name}: {log}"]
    with open(path[:-3] + ".ptx", "wb") as file:
        file.write(code)
    products = code.count(b"mma.sync") + code.count(b"wmma.mma")
    lines, wrong = [], []
    for arch in archs:
        output = path[:-3] + ".cubin"
        command = [f"{ROOT}/cuda_nvcc/bin/ptxas", "-v", f"-arch=sm_{arch}", path[:-3] + ".ptx", "-o", output]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            wrong.append(f"{name} for sm_{arch}: {run.stderr}")
            continue
        number = lambda pattern: int((re.search(pattern, run.stderr) or [0, "0"])[1])
        registers, spills = number(r"Used (\d+) registers"), number(r"(\d+) bytes spill stores")
        taken = max(int(shared), number(r"(\d+) bytes smem"))
        lines.append((name, arch, int(units), registers, spills, taken, products))
        if taken > SHARED[arch]:
            wrong.append(f"{name}: {taken} bytes of shared memory, a block of sm_{arch} may have {SHARED[arch]}")
        if registers * int(units) > 65536:
            wrong.append(f"{name}: {registers} registers for {int(units)} threads of sm_{arch}")
        # A register or two round a loop does not matter; f32 products, which are for comparing, may spill more.
        if spills > 32 and "f16" in name:
            wrong.append(f"{name}: {spills} bytes of registers spill on sm_{arch}")
    return lines, wrong


def main():
    folder, archs = sys.argv[1], [int(arch) for arch in sys.argv[2:]]
    paths = sorted(glob.glob(os.path.join(folder, "*.cu")))
    if not paths or not archs:
        sys.exit(f"{len(paths)} kernels in {folder} for {len(archs)} architectures")
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda path: assemble(path, archs), paths))
    print(f"{'kernel':<80} {'sm':>4} {'threads':>7} {'registers':>9} {'spilled':>7} {'shared':>7} {'mma':>5}")
    for lines, _ in results:
        for name, arch, units, registers, spills, shared, products in lines:
            print(f"{name:<80} {arch:>4} {units:>7} {registers:>9} {spills:>7} {shared:>7} {products:>5}")
    wrong = [problem for _, problems in results for problem in problems]
    print(f"{len(paths)} kernels for sm_{', sm_'.join(map(str, archs))}: {len(wrong)} wrong")
    if wrong:
        sys.exit("\n".join(wrong))


main()
