"""4-bit fixtures written by bitsandbytes on the CPU, for bit-exact comparison.

Writes `nf4/`: one safetensors file per fixture in bitsandbytes' checkpoint
layout (the weight is called `weight`), with the original tensor, the flat-block
dequantization and, under double quantization, the nested codes of the CUDA rule
beside those of bitsandbytes' CPU build; `index.json` lists them.

bitsandbytes' own dequantization is never used: on AVX-512 machines it is wrong
when in_features is a multiple of 16 but not of 64.

    python nf4.py
"""

from dataclasses import dataclass

import numpy as np
import torch
from bitsandbytes import functional
from safetensors.torch import save_file

from nf4_rule import (
    NESTED_BLOCK_SIZE,
    NF4_CODEBOOK,
    NF4_MIDPOINTS,
    dynamic_map,
    from_checkpoint,
    quantize_absmax,
    quantize_nf4,
)
from tiny_model import HERE, deterministic, fresh_folder, write_json

FOLDER = HERE / "nf4"
DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16", torch.uint8: "uint8"}


@dataclass(frozen=True)
class Fixture:
    name: str
    shape: tuple[int, int]
    dtype: torch.dtype = torch.float32
    block_size: int = 64
    double_quant: bool = False
    quant_type: str = "nf4"
    quant_storage: torch.dtype = torch.uint8
    content: str = "normal"  # normal | zero_block | outliers | ties


FIXTURES = [
    Fixture("nf4_300x128_bf16", (300, 128), torch.bfloat16),
    Fixture("nf4_7x5_f32", (7, 5)),
    Fixture("nf4_7x5_bf16", (7, 5), torch.bfloat16),
    Fixture("nf4_65x96_f32", (65, 96)),
    Fixture("nf4_65x96_f16", (65, 96), torch.float16),
    Fixture("nf4_65x96_bf16_block128", (65, 96), torch.bfloat16, 128),
    Fixture("nf4_65x96_f16_block256", (65, 96), torch.float16, 256),
    Fixture("nf4_65x96_f32_block4096", (65, 96), torch.float32, 4096),
    Fixture("nf4_13x77_f32", (13, 77)),
    Fixture("nf4_1x64_f32", (1, 64)),
    Fixture("nf4_zero_block_f32", (4, 96), content="zero_block"),
    Fixture("nf4_outliers_f32", (16, 96), content="outliers"),
    Fixture("nf4_ties_f32", (1, 64), content="ties"),
    Fixture("nf4_double_300x128_bf16", (300, 128), torch.bfloat16, double_quant=True),
    Fixture("nf4_double_65x96_f32", (65, 96), double_quant=True),
    Fixture("nf4_double_65x96_f16_block128", (65, 96), torch.float16, 128, double_quant=True),
    Fixture("nf4_double_65x96_bf16_stored_bf16", (65, 96), torch.bfloat16, double_quant=True, quant_storage=torch.bfloat16),
    Fixture("nf4_double_65x96_f32_stored_f32", (65, 96), double_quant=True, quant_storage=torch.float32),
    Fixture("nf4_double_7x5_f32", (7, 5), double_quant=True),
    Fixture("nf4_double_outliers_f32", (96, 64), content="outliers", double_quant=True),
    Fixture("fp4_65x96_f32", (65, 96), quant_type="fp4"),
    Fixture("fp4_double_65x96_bf16_block128", (65, 96), torch.bfloat16, 128, double_quant=True, quant_type="fp4"),
]  # fmt: skip


def make_weight(fixture: Fixture, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(fixture.shape, generator=generator, dtype=torch.float32) * 0.05
    flat = weight.view(-1)
    if fixture.content == "zero_block":
        flat[64:128] = 0.0
        flat[200] = -0.0
    elif fixture.content == "outliers":
        flat[::97] *= 60.0
    elif fixture.content == "ties":
        midpoints = torch.from_numpy(NF4_MIDPOINTS.copy())
        infinity = torch.tensor(float("inf"))
        flat.zero_()
        flat[0:15] = midpoints
        flat[16:31] = torch.nextafter(midpoints, infinity)
        flat[32:47] = torch.nextafter(midpoints, -infinity)
        flat[47:63] = torch.from_numpy(NF4_CODEBOOK.copy())
        flat[63] = -1.0
    return weight.to(fixture.dtype)


def as_numpy(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Packed weights as bytes whatever their storage dtype."""
    return {
        key: (value.contiguous().view(torch.uint8) if key == "weight" else value).numpy()
        for key, value in tensors.items()
    }


def make(fixture: Fixture, seed: int) -> dict[str, torch.Tensor]:
    original = make_weight(fixture, seed)
    packed, state = functional.quantize_4bit(
        original,
        blocksize=fixture.block_size,
        compress_statistics=fixture.double_quant,
        quant_type=fixture.quant_type,
        quant_storage=fixture.quant_storage,
    )
    tensors = {"weight": packed.contiguous()}
    tensors |= {f"weight.{key}": value.contiguous() for key, value in state.as_dict(packed=True).items()}
    stored = from_checkpoint("weight", as_numpy(tensors))
    extra = {"orig": original, "dequantized": torch.from_numpy(stored.dequantize())}

    values = original.float().numpy()
    rule = quantize_nf4(values, fixture.block_size, double_quant=False)
    if fixture.quant_type == "nf4":
        assert np.array_equal(rule.packed, stored.packed), f"{fixture.name}: codes differ from the rule"
    if not fixture.double_quant:
        assert np.array_equal(rule.absmax, stored.absmax), f"{fixture.name}: absmax differs from the rule"
    else:
        nested = quantize_absmax(rule.absmax)
        distance = np.abs(nested.codes.astype(int) - stored.absmax.codes.astype(int))
        # Where the nested absmax is 0 (a lone block equals the mean) every code means 0.
        meaningful = np.repeat(nested.absmax != 0, NESTED_BLOCK_SIZE)[: len(distance)]
        assert (distance * meaningful).max() <= 1, f"{fixture.name}: nested codes differ by more than one"
        stored_offset = float(stored.absmax.offset)
        stored.absmax = nested
        extra |= {
            "cuda_rule.absmax": torch.from_numpy(nested.codes),
            "cuda_rule.nested_absmax": torch.from_numpy(nested.absmax),
            "cuda_rule.nested_offset": torch.tensor([nested.offset]),
            "cuda_rule.dequantized": torch.from_numpy(stored.dequantize()),
        }
        offset = stored_offset - float(nested.offset)
        print(f"{fixture.name}: from the CUDA rule the offset differs by {offset:.1e}, {np.count_nonzero(distance)} of {len(distance)} nested codes differ")
    if original.numel() > 20_000:
        # Large, and the formula is checked on the others.
        extra = {key: value for key, value in extra.items() if not key.endswith("dequantized")}
    return tensors | extra


def main() -> None:
    deterministic()
    fresh_folder(FOLDER)
    write_json(FOLDER / "dynamic_map.json", [float(value) for value in dynamic_map()])
    index = []
    for seed, fixture in enumerate(FIXTURES, start=100):
        save_file(make(fixture, seed), FOLDER / f"{fixture.name}.safetensors", metadata={"format": "pt"})
        index.append(
            {
                "file": f"{fixture.name}.safetensors",
                "shape": list(fixture.shape),
                "dtype": DTYPE_NAMES[fixture.dtype],
                "quant_type": fixture.quant_type,
                "block_size": fixture.block_size,
                "double_quant": fixture.double_quant,
                "quant_storage": DTYPE_NAMES[fixture.quant_storage],
            }
        )
    write_json(FOLDER / "index.json", index)


if __name__ == "__main__":
    main()
