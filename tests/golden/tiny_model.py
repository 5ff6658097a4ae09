"""Small random models with lively activations, and how this folder saves files.

Owns: the random initialization, one-threaded deterministic torch, and writing a
model folder of exactly config.json and weights. Knows nothing of any golden.
"""

import json
import math
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

HERE = Path(__file__).resolve().parent
EMBEDDINGS = ("embed_tokens.weight", "embed_in.weight", "wte.weight", "word_embeddings.weight")


def deterministic() -> None:
    """One thread, deterministic algorithms, no progress bars."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    from transformers.utils import logging

    logging.disable_progress_bar()


def randomize(model: PreTrainedModel, seed: int, head_gain: float = 3.0, gain: float = 1.0) -> None:
    """Random weights that leave no part of the maths invisible.

    Linear weights have standard deviation gain / sqrt(in_features), so that
    signals keep their size; norm weights spread around 1; biases are not zero;
    an untied output head is `head_gain` times larger, so that logits spread.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(shape: torch.Size, deviation: float) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32) * deviation

    tied = model.config.tie_word_embeddings
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if name.endswith("weight") and parameter.dim() == 1:
                value = 1.0 + normal(parameter.shape, 0.2)
            elif name.endswith("bias"):
                value = normal(parameter.shape, 0.3)
            elif name.endswith(EMBEDDINGS):
                value = normal(parameter.shape, head_gain / math.sqrt(parameter.shape[1]) if tied else 1.0)
            elif name in ("lm_head.weight", "embed_out.weight"):
                value = normal(parameter.shape, head_gain / math.sqrt(parameter.shape[1]))
            else:
                value = normal(parameter.shape, gain / math.sqrt(parameter.shape[-1]))
            parameter.copy_(value.to(parameter.dtype))
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.fill_(0.75)


def fresh_folder(path: Path) -> Path:
    """An empty folder at `path`; what lay there is removed."""
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)
    return path


def save_model(model: PreTrainedModel, folder: Path, **save_arguments) -> None:
    """config.json and weights, nothing else."""
    fresh_folder(folder)
    model.save_pretrained(folder, **save_arguments)
    for path in folder.iterdir():
        if path.name != "config.json" and not path.name.startswith("model"):
            path.unlink()


def load_float32(folder: Path) -> PreTrainedModel:
    """The saved model in f32 with the plain attention implementation."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def write_json(path: Path, value: object) -> None:
    """Indented JSON with a final newline; floats are written so that they read back exactly."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def tidy_adapter_folder(folder: Path) -> None:
    """Leaves adapter_config.json (lists in a fixed order) and adapter_model.safetensors.

    PEFT writes target_modules in the order of a Python set, which differs from
    process to process.
    """
    for path in folder.iterdir():
        if path.name not in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    config_path = folder / "adapter_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    if isinstance(config.get("target_modules"), list):
        config["target_modules"].sort()
    write_json(config_path, config)
