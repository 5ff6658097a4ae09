"""Blocks of numbers as ggml quantizes them: `gguf/blocks.safetensors`.

`numbers` f32 [rows, 256] and, for each type, its bytes as ggml's own `ggml_quantize_chunk` (no importance matrix)
writes them. ggml is called through its shared library; how to build it stands in README.md.

    python gguf_blocks.py --ggml build/bin/libggml-base.so
"""

import argparse
import ctypes
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HERE = Path(__file__).resolve().parent
TYPES = {"f16": 1, "q4_0": 2, "q5_0": 6, "q5_1": 7, "q8_0": 8, "q4_K": 12, "q5_K": 13, "q6_K": 14, "bf16": 30, "mxfp4": 39}
COLUMNS = 256


def numbers() -> np.ndarray:
    """Rows of every kind that weights come in, and some that they do not."""
    generator = np.random.Generator(np.random.PCG64(20))
    normal = lambda rows: generator.standard_normal((rows, COLUMNS))  # noqa: E731
    outliers = normal(8) * 0.02
    outliers[np.arange(8), generator.integers(0, COLUMNS, 8)] = [3, -3, 1, -1, 0.5, -0.5, 8, -8]
    steps = np.round(normal(4) * 4) / 8
    grown = normal(4) * np.repeat(np.logspace(-6, 2, COLUMNS // 32), 32)
    sparse = normal(4) * (generator.random((4, COLUMNS)) < 0.1)
    rows = [
        normal(12) * 0.02,
        generator.laplace(size=(8, COLUMNS)) * 0.05,
        outliers,
        np.abs(normal(4)),
        -np.abs(normal(4)),
        normal(2) + 5,
        steps,
        grown,
        sparse,
        generator.uniform(-1, 1, (4, COLUMNS)),
        np.zeros((1, COLUMNS)),
        np.full((1, COLUMNS), 0.75),
        np.full((1, COLUMNS), -0.75),
        normal(2) * 1e-7,
        normal(2) * 1e-20,
        normal(2) * 1e3,
    ]
    return np.concatenate(rows).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ggml", type=Path, required=True)
    ggml = ctypes.CDLL(str(parser.parse_args().ggml.resolve()))
    ggml.ggml_row_size.restype = ctypes.c_size_t
    ggml.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
    values = np.ascontiguousarray(numbers())
    tensors = {"numbers": values}
    for name, number in TYPES.items():
        coded = np.zeros((len(values), ggml.ggml_row_size(number, COLUMNS)), np.uint8)
        written = ggml.ggml_quantize_chunk(
            number, values.ctypes.data, coded.ctypes.data, 0, len(values), COLUMNS, None
        )
        assert written == coded.size, name
        tensors[name] = coded
    (HERE / "gguf").mkdir(exist_ok=True)
    save_file(tensors, HERE / "gguf" / "blocks.safetensors")
    print(f"{len(values)} rows; {', '.join(f'{name} {coded.shape[1]}' for name, coded in tensors.items())}")


if __name__ == "__main__":
    main()
