"""The NF4 arithmetic of bitsandbytes' CUDA kernels, restated in numpy float32.

Owns: quantizing a flat tensor to 4-bit codes and absmax, quantizing the absmax
again (double quantization), the bitsandbytes checkpoint layout, and the
flat-block dequantization used as ground truth everywhere in this folder.
Knows nothing of models or of training.

Rule, with n weights, blocks of `block_size` over the flattened row-major tensor
(blocks straddle rows, the last one may be short):

    absmax[b] = max |w| over the block
    x         = w * (1 / absmax[b])                  one f32 reciprocal, one f32 product
    code      = number of midpoints t with x > t     ties go down

Double quantization of the absmax, in blocks of 256:

    offset      = f32 mean of absmax, summed pairwise (see `pairwise_sum`)
    d           = absmax - offset                    f32
    nested[k]   = max |d| over the block
    code8       = number of k with d * (1 / nested) > (map[k] + map[k + 1]) / 2
    absmax'     = map[code8] * nested + offset       f32 product, then f32 sum
    w'          = codebook[code] * absmax'           f32
"""

import hashlib
import json
from dataclasses import dataclass

import numpy as np

NESTED_BLOCK_SIZE = 256

NF4_CODEBOOK = np.array(
    [
        0xBF800000, 0xBF3239B1, 0xBF066B30, 0xBECA32A0, 0xBE91A24D, 0xBE3D353F, 0xBDBA7871, 0x00000000,
        0x3DA2FAFF, 0x3E24CAE3, 0x3E7C04DD, 0x3EAD033A, 0x3EE1A4B8, 0x3F1007AB, 0x3F3913B3, 0x3F800000,
    ],
    dtype=np.uint32,
).view(np.float32)  # fmt: skip

NF4_MIDPOINTS = np.array(
    [
        -0.8480964004993439, -0.6106329262256622, -0.4599952697753906, -0.33967943489551544,
        -0.23460740596055984, -0.13791173323988914, -0.045525018125772476, 0.03979014977812767,
        0.1202552504837513, 0.2035212516784668, 0.2920137718319893, 0.3893125355243683,
        0.5016634166240692, 0.6427869200706482, 0.8614784181118011,
    ],
    dtype=np.float32,
)  # fmt: skip

DYNAMIC_MAP_SHA256 = "e732639a65f497b4ad684bb166a4467708255edd5207757de8b8f0c7e1fda89c"


def dynamic_map() -> np.ndarray:
    """bitsandbytes' signed 8-bit dynamic map: 256 ascending f32 values."""
    from bitsandbytes.functional import create_dynamic_map

    values = create_dynamic_map().numpy().astype("<f4")
    assert hashlib.sha256(values.tobytes()).hexdigest() == DYNAMIC_MAP_SHA256
    return values


def pairwise_sum(values: np.ndarray) -> np.float32:
    """Sum of f32 values in the order numpy uses for a contiguous array.

    Fewer than 8 values: left to right. Up to 128: eight running sums over
    stride 8, joined as ((0+1)+(2+3))+((4+5)+(6+7)), the tail added one by one.
    More: split at the multiple of 8 at or below the half, sum both sides.
    """
    count = len(values)
    if count < 8:
        total = np.float32(0.0)
        for value in values:
            total = np.float32(total + value)
        return total
    if count <= 128:
        lanes = values[:8].copy()
        whole = count - count % 8
        for start in range(8, whole, 8):
            lanes += values[start : start + 8]
        total = np.float32(
            ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]))
        )
        for value in values[whole:]:
            total = np.float32(total + value)
        return total
    half = count // 2
    half -= half % 8
    return np.float32(pairwise_sum(values[:half]) + pairwise_sum(values[half:]))


def float32_mean(values: np.ndarray) -> np.float32:
    """Pairwise f32 sum divided by the count, in f32; equal to `np.mean` of the array."""
    mean = np.float32(pairwise_sum(values) / np.float32(len(values)))
    assert mean == values.mean(dtype=np.float32), "numpy sums in another order here"
    return mean


@dataclass
class NestedAbsmax:
    """An absmax vector quantized to 8 bits."""

    codes: np.ndarray  # u8 [blocks]
    absmax: np.ndarray  # f32 [ceil(blocks / 256)]
    offset: np.float32
    code_map: np.ndarray  # f32 [256]

    def dequantize(self) -> np.ndarray:
        """f32 [blocks]."""
        scale = self.absmax[np.arange(len(self.codes)) // NESTED_BLOCK_SIZE]
        return (self.code_map[self.codes] * scale).astype(np.float32) + self.offset


@dataclass
class Quantized4Bit:
    """A tensor in 4-bit blocks, as a bitsandbytes checkpoint stores it."""

    shape: tuple[int, ...]
    block_size: int
    packed: np.ndarray  # u8 [ceil(n / 2)], even elements in the high nibble
    absmax: np.ndarray | NestedAbsmax
    codebook: np.ndarray  # f32 [16]

    def codes(self) -> np.ndarray:
        """u8 [n], one code per weight."""
        codes = np.empty(self.packed.size * 2, dtype=np.uint8)
        codes[0::2] = self.packed >> 4
        codes[1::2] = self.packed & 15
        return codes[: int(np.prod(self.shape))]

    def block_absmax(self) -> np.ndarray:
        """f32 [blocks], after undoing double quantization."""
        return self.absmax.dequantize() if isinstance(self.absmax, NestedAbsmax) else self.absmax

    def dequantize(self) -> np.ndarray:
        """f32 of the tensor's shape, by the flat-block formula."""
        codes = self.codes()
        scale = self.block_absmax()[np.arange(len(codes)) // self.block_size]
        return (self.codebook[codes] * scale).astype(np.float32).reshape(self.shape)


def _blocks(flat: np.ndarray, block_size: int) -> list[np.ndarray]:
    return [flat[start : start + block_size] for start in range(0, len(flat), block_size)]


def _normalize(flat: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Each block times the f32 reciprocal of its absmax, and the absmax.

    An all-zero block stays zero: its codes cannot matter, since its absmax is 0.
    """
    absmax = np.array([np.abs(block).max() for block in _blocks(flat, block_size)], dtype=np.float32)
    safe = np.where(absmax == 0, np.float32(1), absmax)
    reciprocal = (np.float32(1) / safe).astype(np.float32)
    scaled = (flat * reciprocal[np.arange(len(flat)) // block_size]).astype(np.float32)
    return scaled, absmax


def quantize_absmax(absmax: np.ndarray) -> NestedAbsmax:
    """Double quantization of an f32 absmax vector."""
    code_map = dynamic_map()
    offset = float32_mean(absmax)
    scaled, nested = _normalize((absmax - offset).astype(np.float32), NESTED_BLOCK_SIZE)
    midpoints = ((code_map[:-1] + code_map[1:]) / np.float32(2)).astype(np.float32)
    codes = np.searchsorted(midpoints, scaled, side="left").astype(np.uint8)
    return NestedAbsmax(codes, nested, offset, code_map)


def quantize_nf4(weight: np.ndarray, block_size: int = 64, double_quant: bool = True) -> Quantized4Bit:
    """NF4 of an array that converts to f32 exactly."""
    flat = np.ascontiguousarray(weight, dtype=np.float32).reshape(-1)
    scaled, absmax = _normalize(flat, block_size)
    codes = np.searchsorted(NF4_MIDPOINTS, scaled, side="left").astype(np.uint8)
    if len(codes) % 2:
        # bitsandbytes pads the scaled values with a zero, whose code is 7.
        codes = np.append(codes, np.uint8(7))
    packed = (codes[0::2] << 4) | codes[1::2]
    return Quantized4Bit(
        shape=tuple(weight.shape),
        block_size=block_size,
        packed=packed.astype(np.uint8),
        absmax=quantize_absmax(absmax) if double_quant else absmax,
        codebook=NF4_CODEBOOK,
    )


def to_checkpoint(name: str, quantized: Quantized4Bit, dtype: str) -> dict[str, np.ndarray]:
    """The tensors a bitsandbytes NF4 checkpoint holds for the weight called `name`."""
    state = {
        "quant_type": "nf4",
        "blocksize": quantized.block_size,
        "dtype": dtype,
        "shape": list(quantized.shape),
    }
    tensors = {name: quantized.packed.reshape(-1, 1), f"{name}.quant_map": quantized.codebook}
    if isinstance(quantized.absmax, NestedAbsmax):
        nested = quantized.absmax
        state |= {
            "nested_blocksize": NESTED_BLOCK_SIZE,
            "nested_dtype": "float32",
            "nested_offset": float(nested.offset),
        }
        tensors[f"{name}.absmax"] = nested.codes
        tensors[f"{name}.nested_absmax"] = nested.absmax
        tensors[f"{name}.nested_quant_map"] = nested.code_map
    else:
        tensors[f"{name}.absmax"] = quantized.absmax
    encoded = json.dumps(state).encode("utf-8")
    tensors[f"{name}.quant_state.bitsandbytes__nf4"] = np.frombuffer(encoded, dtype=np.uint8)
    return tensors


def from_checkpoint(name: str, tensors: dict[str, np.ndarray]) -> Quantized4Bit:
    """Reads one 4-bit weight (NF4 or FP4) from checkpoint tensors; packed bytes must already be u8."""
    state_key = next(key for key in tensors if key.startswith(f"{name}.quant_state.bitsandbytes__"))
    state = json.loads(tensors[state_key].tobytes().decode("utf-8"))
    absmax: np.ndarray | NestedAbsmax = tensors[f"{name}.absmax"]
    if "nested_offset" in state:
        assert state["nested_blocksize"] == NESTED_BLOCK_SIZE
        absmax = NestedAbsmax(
            absmax,
            tensors[f"{name}.nested_absmax"],
            np.float32(state["nested_offset"]),
            tensors[f"{name}.nested_quant_map"],
        )
    return Quantized4Bit(
        shape=tuple(state["shape"]),
        block_size=state["blocksize"],
        packed=tensors[name].reshape(-1).view(np.uint8),
        absmax=absmax,
        codebook=tensors[f"{name}.quant_map"],
    )
