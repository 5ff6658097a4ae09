"""Tiny random models of every supported family, with their f32 logits by transformers.

Writes `families/<name>/`: config.json and weights as transformers saves them,
`config.v4.json` (the same model in the spelling of transformers 4) and
`golden.safetensors` (`input_ids` i64 [1, T], `logits` f32 [1, T, V]). Each
feature a family is here for is proven to matter: switching it off must move the
logits. Also checkpoints that bitsandbytes quantized, `families/bnb_*`.

    python families.py
"""

import copy
import json
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from nf4 import as_numpy
from nf4_rule import from_checkpoint
from tiny_model import HERE, deterministic, fresh_folder, load_float32, randomize, save_model, write_json

FOLDER = HERE / "families"
TOKENS = 40
VOCAB_SIZE = 64
SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}


def rope(rope_type: str = "default", theta: float = 10000.0, **parameters) -> dict:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": theta, **parameters}}


@dataclass(frozen=True)
class Family:
    """A configuration and, in `without`, the same one with its special feature off."""

    name: str
    config_class: type[PretrainedConfig]
    settings: dict
    without: dict = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    save_arguments: dict = field(default_factory=dict)
    legacy_rope_key: str = "rope_type"  # rope_scaling's oldest spelling is "type"

    def config(self, **overrides) -> PretrainedConfig:
        return self.config_class(**copy.deepcopy(SHAPE | self.settings | overrides))


FAMILIES = [
    Family("llama2", LlamaConfig, {"num_key_value_heads": 4, "rms_norm_eps": 1e-2}, {"rms_norm_eps": 1e-6}),
    Family(
        "llama3",
        LlamaConfig,
        {"head_dim": 16}
        | rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32),
        rope(),
    ),
    Family("llama_theta", LlamaConfig, rope(theta=500.0), rope()),
    Family("llama_linear", LlamaConfig, rope("linear", factor=4.0), rope(), legacy_rope_key="type"),
    Family(
        "llama_dynamic",
        LlamaConfig,
        {"max_position_embeddings": 24} | rope("dynamic", factor=2.0),
        rope(),
        legacy_rope_key="type",
    ),
    Family(
        "llama_yarn",
        LlamaConfig,
        {"head_dim": 16} | rope("yarn", factor=4.0, original_max_position_embeddings=16),
        rope(),
    ),
    Family(
        "llama_yarn_explicit",
        LlamaConfig,
        {"head_dim": 16}
        | rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=16,
            attention_factor=1.3,
            beta_fast=8.0,
            beta_slow=2.0,
        ),
        {"head_dim": 16} | rope("yarn", factor=4.0, original_max_position_embeddings=16),
    ),
    Family("llama_bias", LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    Family("smollm2", LlamaConfig, {"tie_word_embeddings": True} | rope(theta=100000.0)),
    Family("mistral", MistralConfig, {"sliding_window": 12, "head_dim": 16}, {"sliding_window": None}),
    Family("mistral_full", MistralConfig, {"sliding_window": None}),
    Family("qwen2", Qwen2Config, {"tie_word_embeddings": True} | rope(theta=1000000.0)),
    Family(
        "qwen2_sliding",
        Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1},
        {"use_sliding_window": False},
    ),
    Family("qwen3", Qwen3Config, {"head_dim": 16} | rope(theta=1000000.0)),
    Family("llama_f16", LlamaConfig, {}, dtype=torch.float16),
    Family("llama_bf16", LlamaConfig, {}, dtype=torch.bfloat16),
    Family("llama_sharded", LlamaConfig, {}, dtype=torch.bfloat16, save_arguments={"max_shard_size": "12KB"}),
]


def random_tokens(seed: int) -> torch.Tensor:
    """i64 [1, T]."""
    return torch.randint(VOCAB_SIZE, (1, TOKENS), generator=torch.Generator().manual_seed(seed))


def logits(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """f32 [1, T, V]."""
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits.contiguous()


def write_golden(folder: Path, tokens: torch.Tensor, values: torch.Tensor) -> None:
    save_file({"input_ids": tokens, "logits": values}, folder / "golden.safetensors", metadata={"format": "pt"})


def v4_spelling(config: dict, rope_key: str) -> dict:
    """config.json as transformers 4 wrote it: rope_theta, rope_scaling, torch_dtype, no layer_types."""
    config = copy.deepcopy(config)
    parameters = config.pop("rope_parameters")
    config["rope_theta"] = parameters.pop("rope_theta")
    rope_type = parameters.pop("rope_type")
    config["rope_scaling"] = None if rope_type == "default" else {rope_key: rope_type, **parameters}
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    config["transformers_version"] = "4.46.0"
    return dict(sorted(config.items()))


def check_v4_spelling(folder: Path, tokens: torch.Tensor, expected: torch.Tensor) -> None:
    """transformers itself must read config.v4.json as the same model."""
    with tempfile.TemporaryDirectory() as scratch:
        for path in folder.glob("model*"):
            shutil.copy(path, scratch)
        shutil.copy(folder / "config.v4.json", Path(scratch) / "config.json")
        assert torch.equal(logits(load_float32(Path(scratch)), tokens), expected), folder.name


def check_feature_matters(family: Family, folder: Path, tokens: torch.Tensor, expected: torch.Tensor) -> str:
    if not family.without:
        return ""
    control = AutoModelForCausalLM.from_config(family.config(**family.without), attn_implementation="eager").eval()
    control.load_state_dict(load_float32(folder).state_dict())
    moved = (logits(control, tokens) - expected).abs().max().item()
    assert moved > 0.05, f"{family.name}: the feature moves logits by {moved} only"
    return f"; without its feature they move by {moved:.2f}"


def make(family: Family, seed: int) -> None:
    folder = FOLDER / family.name
    model = AutoModelForCausalLM.from_config(family.config(), dtype=family.dtype)
    randomize(model, seed)
    save_model(model, folder, **family.save_arguments)
    tokens = random_tokens(seed)
    values = logits(load_float32(folder), tokens)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.v4.json", v4_spelling(config, family.legacy_rope_key))
    check_v4_spelling(folder, tokens, values)
    note = check_feature_matters(family, folder, tokens, values)
    write_golden(folder, tokens, values)
    print(f"{family.name}: logits up to {values.abs().max():.1f}{note}")


BITSANDBYTES = {
    "bnb_nf4": {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "bnb_nf4_stored_bf16": {
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_quant_storage": torch.bfloat16,
    },
    "bnb_fp4": {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False},
}
SKIPPED_MODULES = ["lm_head", "model.layers.0.mlp.down_proj"]


def dequantize_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    """A bitsandbytes checkpoint as dense f32 tensors, by the flat-block formula, never rounded to bf16."""
    stored = load_file(folder / "model.safetensors")
    marker = ".quant_state.bitsandbytes__"
    quantized = {key.split(marker)[0] for key in stored if marker in key}
    dense = {}
    for key, value in stored.items():
        if key in quantized:
            parts = {part: stored[part] for part in stored if part == key or part.startswith(f"{key}.")}
            renamed = {"weight" + part.removeprefix(key): tensor for part, tensor in parts.items()}
            dense[key] = torch.from_numpy(from_checkpoint("weight", as_numpy(renamed)).dequantize())
        elif not any(key.startswith(f"{name}.") for name in quantized):
            dense[key] = value.float()
    return dense


def make_bitsandbytes(name: str, settings: dict, source: Path, seed: int) -> None:
    """`source` quantized and saved by transformers and bitsandbytes, some modules left alone."""
    folder = FOLDER / name
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=SKIPPED_MODULES,
        **settings,
    )
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.bfloat16, quantization_config=quantization, device_map="cpu"
    )
    save_model(model, folder)
    dense = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(source), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    dense.load_state_dict(dequantize_checkpoint(folder))
    tokens = random_tokens(seed)
    values = logits(dense, tokens)
    write_golden(folder, tokens, values)
    moved = (values - logits(load_float32(source), tokens)).abs().max().item()
    print(f"{name}: quantization moves logits by {moved:.2f}")


def main() -> None:
    deterministic()
    fresh_folder(FOLDER)
    for seed, family in enumerate(FAMILIES, start=200):
        make(family, seed)
    for seed, (name, settings) in enumerate(BITSANDBYTES.items(), start=300):
        make_bitsandbytes(name, settings, FOLDER / "llama_bf16", seed)


if __name__ == "__main__":
    main()
