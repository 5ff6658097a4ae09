"""GGUF files of today's dense families, hybrids and mixtures beside llama.cpp: what its converter writes, and what it
computes from ours.

Writes `gguf/dense_files.json` (keys and tensors, type, shape, hash, of the models of `dense/`, `recurrent/`, `mixtures/`
and of wrappers in f16 as llama.cpp's own `convert_hf_to_gguf.py` writes them, after a comparison with the files of tune)
and `gguf/dense_greedy.json` (the tokens that llama.cpp gives for files that tune wrote). Every file of ours, of every
type, is also read back by the `gguf` package, whose tables know the tensors of every architecture; logits that llama.cpp
computes from f32 are held against those of transformers, and those from q8_0 against both. `config` are keys that were
changed for the export. Makes `gguf/models/`: models that llama.cpp takes, where it takes none of those goldens.

    python gguf_dense.py --llama-cpp vendor/llama.cpp --tune target/debug/tune [NAME …]

with `llama_cpp` importable, as for gguf_files.py.
"""

import argparse
import contextlib
import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import gguf_files
import numpy as np
import torch
from gguf_files import HERE, NEW_TOKENS, OUT, Runner, check_types, compare, context_of, convert, read, stage, tune
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

# llama.cpp has these architectures without biases in the feed-forward block. It does not have GPT-J, nor OLMo 2 and EXAONE 4
# with heads that are not as wide together as hidden states, nor layers with experts beside others without, nor an OLMoE whose
# heads share keys; a Gemma 4 with experts has no place in files of ours yet.
WITHOUT_BIASES = {"dense/arcee": ["mlp_bias"], "dense/ernie4_5": ["use_bias"]}
REFUSED = ["dense/gptj", "dense/olmo2", "dense/exaone4", "mixtures/gemma4_moe", "mixtures/olmoe", "mixtures/qwen3_moe"]
# Beside towers, of which the file has nothing; and in place of models that llama.cpp does not have, also of recurrent heads
# of two widths.
OTHERS = [
    "dense_folders/mistral3", "dense_folders/gemma3", "dense_folders/muse_glimmer", "dense_folders/gemma4_unified",
    "recurrent/lfm2/base", "gguf/models/exaone4", "gguf/models/olmo2", "gguf/models/qwen3_5", "gguf/models/qwen3_5_moe",
]
# The converter takes the values of released models alone, and what transformers 5 calls attention for recurrent layers.
NOT_CONVERTED = ["dense/hunyuan", "dense/granite4", "dense_folders/gemma4_unified"]
# Weights in 4 bits whatever the type of the file, whose products round what they are multiplied with.
ROUNDED = ["mixtures/gpt_oss_mxfp4"]
# Keys as released files have them, where transformers writes others and the converter wants those.
OTHER_KEYS = {
    "dense/cohere2": {"rotary_pct": 1.0},
    "dense/falcon": {"num_kv_heads": 1},
    # llama.cpp has no key for the factor on scores.
    "dense/gemma2": {"query_pre_attn_scalar": 16},
    "dense/gemma3": {"query_pre_attn_scalar": 16},
    "dense_folders/gemma3": {"text_config.query_pre_attn_scalar": 16},
    # It leaves each fourth layer unrotated, of which there is none.
    "dense/smollm3": {"no_rope_layers": [1, 1]},
    # It has one epsilon for norms behind blocks.
    "dense_folders/muse_glimmer": {"text_config.post_norm_eps": 1e-8},
    # It rounds the ends of YaRN's ramp.
    "mixtures/gpt_oss": {"rope_parameters.truncate": True},
    "mixtures/gpt_oss_mxfp4": {"rope_parameters.truncate": True},
}

gguf_files.OURS_ALONE |= {
    "attention.sliding_window_pattern": "llama.cpp has a pattern of its own where there is none",
    "attention.sliding_window": "phi3: no window, which llama.cpp wants to be told",
    "rope.freq_base": "the converter leaves the default to llama.cpp",
    "rope.freq_base_swa": "the same",
    "attention.head_count_kv": "the same: as many as heads",
    "expert_feed_forward_length": "the same: of Mixtral",
    "feed_forward_length": "the same: of a Qwen3.5 with experts",
    "final_logit_softcapping": "none, where an absent key stands for another",
    "rope.scaling.yarn_log_multiplier": "a temperature of 1, where llama.cpp has its own",
    "general.file_type": "the converter has none for GPT-NeoX",
    "rope.scaling.finetuned": "that a Granite rotates, which its absence means",
}
gguf_files.THEIRS_ALONE |= {
    "rope.scaling.type": "`none`, which its absence means",
    "rope.scaling.yarn_attn_factor": "see attn_factor",
    "rope.freq_base_swa": "of an OLMo 3: the one base there is",
    "rope.scaling.original_context_length": "of a Phi-3 that stretches nothing",
    "attention.sliding_window": "of a StarCoder2, which llama.cpp does not read",
}
gguf_files.DIFFERENT |= {
    "feed_forward_length": "four times the width, whatever the file says, for Phi-2 and Falcon",
}


def use_byte_level_vocabulary() -> None:
    """The tiny tokenizer for families whose converter wants a file of SentencePiece."""
    from conversion.base import ModelBase, TextModel

    load = ModelBase.load_hparams

    def as_released(*arguments, **named) -> dict:
        """What transformers 5 spells in another way than the converter reads it, spelled as released files do."""
        config = load(*arguments, **named)
        share = (config.get("rope_parameters") or {}).get("partial_rotary_factor")
        config |= {} if share is None else {"rotary_pct": share}
        return config

    ModelBase.load_hparams = staticmethod(as_released)
    # The converter imports a family's module when it meets one.
    for module in [
        "command_r", "ernie", "exaone", "falcon", "gemma", "glm", "gpt_oss", "gptneox", "hunyuan", "lfm2", "muse_glimmer",
        "phi", "qwen", "starcoder",
    ]:
        importlib.import_module(f"conversion.{module}")

    def classes(base):
        for inner in base.__subclasses__():
            yield inner
            yield from classes(inner)

    TextModel._set_vocab_sentencepiece = TextModel._set_vocab_gpt2
    for inner in classes(TextModel):
        if "set_vocab" in vars(inner):
            inner.set_vocab = TextModel._set_vocab_gpt2


def changed(folder: Path, keys: dict, without_biases: bool = False) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key, value in keys.items():
        *outer, last = key.split(".")
        (config[outer[0]] if outer else config)[last] = value
    path.write_text(json.dumps(config, indent=1), encoding="utf-8")
    if without_biases:
        tensors = load_file(folder / "model.safetensors")
        kept = {name: value for name, value in tensors.items() if not name.endswith(".bias")}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def known_tensors(file: Path) -> None:
    """Every tensor is one of the architecture's, as the gguf package lists them."""
    reader = gguf.GGUFReader(file)
    name = reader.fields["general.architecture"].contents()
    architecture = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    layers = reader.fields[f"{name}.block_count"].contents()
    kinds = [*gguf.MODEL_TENSORS[architecture], gguf.MODEL_TENSOR.ROPE_FACTORS_LONG, gguf.MODEL_TENSOR.ROPE_FACTORS_SHORT]
    # Heads that may or may not be tied.
    kinds.append(gguf.MODEL_TENSOR.OUTPUT)
    names = {gguf.TENSOR_NAMES[kind].format(bid=layer) for kind in kinds for layer in range(layers)}
    for tensor in reader.tensors:
        assert tensor.name.removesuffix(".weight").removesuffix(".bias") in names, f"{name} has no {tensor.name}"


def make_models() -> None:
    """Hybrids whose recurrent keys and values are equally wide, and attention whose heads fill hidden states."""
    import recurrent
    from tiny_model import deterministic, randomize, save_model

    deterministic()
    for name in ["exaone4", "olmo2"]:
        config = AutoConfig.from_pretrained(HERE / "dense" / name)
        config.head_dim = config.hidden_size // config.num_attention_heads
        if name == "exaone4":  # which has windows in models of 64 layers alone
            config.sliding_window, config.layer_types = None, ["full_attention"] * config.num_hidden_layers
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        randomize(model, seed=24)
        save_model(model.to(torch.bfloat16), OUT / "models" / name)
    for name in ["qwen3_5", "qwen3_5_moe"]:
        config = next(model.config for model in recurrent.MODELS if model.name == name)
        config.linear_value_head_dim = config.linear_key_head_dim
        config.rope_parameters = config.rope_parameters | {"mrope_section": [1, 1, 0]}
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        randomize(model, seed=23)
        recurrent.lively(model, norms_around_zero=True)
        save_model(model.to(torch.bfloat16), OUT / "models" / name)


@contextlib.contextmanager
def ggmls_gelu():
    """GELU as ggml has it: by tanh, from a table of half precision."""
    from torch.nn import functional
    from transformers.activations import NewGELUActivation

    before = functional.gelu, NewGELUActivation.forward

    def gelu(x, approximate="none"):
        inner = before[0](x.half().float(), approximate="tanh").half().float()
        return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, inner))

    functional.gelu, NewGELUActivation.forward = gelu, lambda self, x: gelu(x)
    yield
    functional.gelu, NewGELUActivation.forward = before


def expected_logits(folder: Path, ids: list[int], adapter: Path | None = None) -> np.ndarray:
    with ggmls_gelu(), torch.no_grad():
        arguments = {"dtype": torch.float32, "attn_implementation": "eager"}
        try:
            model = AutoModelForCausalLM.from_pretrained(folder, **arguments)
        except ValueError:  # beside towers
            model = AutoModelForImageTextToText.from_pretrained(folder, **arguments)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter)
        return model.eval()(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()


def run(name: str, folder: Path, golden: Path, out: Path) -> tuple[dict, str]:
    """llama.cpp on our files: logits in f32 and q8_0 beside transformers', and greedy tokens."""
    ids = load_file(golden)["input_ids"][0].tolist() if golden.exists() else list(range(3, 43))
    ids = ids[: min(40, context_of(out / "ours" / "model-f16.gguf"))]
    expected = expected_logits(folder, ids)
    found = Runner(out / "f32" / "model-f32.gguf").logits(ids)
    difference = float(np.abs(found - expected).max())
    assert difference < 2e-3 or name in ROUNDED, f"{name}: logits differ by {difference}"
    # llama.cpp rounds what it multiplies with such weights to 8 bits too.
    rounded = Runner(out / "q8_0" / "model-q8_0.gguf").logits(ids) - expected
    share = float(np.sqrt((rounded**2).mean() / (expected**2).mean()))
    assert share < 0.2, f"{name}: logits from q8_0 differ by {share} of their size"
    count = min(NEW_TOKENS, len(ids) // 2)
    prompt = ids[: len(ids) - count]
    tokens, lead = Runner(out / "ours" / "model-f16.gguf").greedy(prompt, count)
    report = f"llama.cpp's logits within {difference:.1e} of transformers' over {len(ids)} tokens, from q8_0 {share:.1e} of them"
    return {"prompt": prompt, "tokens": tokens, "lead": lead}, report


def run_adapter(name: str, folder: Path, adapter: Path, out: Path, ids: list[int]) -> str:
    """llama.cpp on the base and the adapter that PEFT made, beside PEFT; or why there is no such file."""
    command = [ARGUMENTS.tune.resolve(), "export", adapter, "--gguf-lora", "--base", folder, "--out", out / "lora"]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode != 0:
        assert "merge it first" in finished.stderr, finished.stderr
        return "its adapter has to be merged"
    found = Runner(out / "f32" / "model-f32.gguf", out / "lora" / "adapter-f32.gguf").logits(ids)
    difference = float(np.abs(found - expected_logits(folder, ids, adapter)).max())
    assert difference < 2e-3 or name in ROUNDED, f"{name}: logits of the adapter differ by {difference}"
    return f"with its adapter {difference:.1e}"


def main() -> None:
    sys.path.insert(0, str(ARGUMENTS.llama_cpp.resolve()))
    use_byte_level_vocabulary()
    stored = {}
    for file in ["dense_files.json", "dense_greedy.json"]:
        path = OUT / file
        stored[file] = json.loads(path.read_text(encoding="utf-8")) if ARGUMENTS.names and path.exists() else {}
    if not (OUT / "models").exists():
        make_models()
    folders = [f"{base}/{entry.name}" for base in ["dense", "mixtures"] for entry in sorted((HERE / base).iterdir()) if entry.is_dir()]
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        for name in folders + OTHERS:
            if name in REFUSED or (ARGUMENTS.names and name not in ARGUMENTS.names):
                continue
            (scratch / name).mkdir(parents=True)
            folder = stage(HERE / name, scratch / name)
            # llama.cpp expects certain tokens of a model that is named after some families.
            folder = folder.rename(folder.with_name("tiny"))
            if name in WITHOUT_BIASES:
                changed(folder, dict.fromkeys(WITHOUT_BIASES[name], False), without_biases=True)
            changed(folder, OTHER_KEYS.get(name, {}))
            out = scratch / "out" / name
            out.mkdir(parents=True)
            tune("export", folder, "--gguf", "f16", "--out", out / "ours")
            ours = out / "ours" / "model-f16.gguf"
            known_tensors(ours)
            report = name
            if name not in NOT_CONVERTED:
                # Without layers that draft further tokens, which files of ours do not have.
                options = ["--no-mtp"] if "qwen3_5" in name else []
                theirs = convert(folder, out, "f16", *options)
                compare(name, ours, theirs)
                keys, tensors = read(theirs)
                report += ": the converter's keys and tensors"
                if name not in WITHOUT_BIASES:
                    stored["dense_files.json"][name] = {"config": OTHER_KEYS.get(name, {}), "keys": keys, "tensors": tensors}
            report += f"; {check_types(name, folder, out)}"
            greedy, computed = run(name, folder, HERE / name / "golden.safetensors", out)
            adapters = [HERE / name / "adapter", (HERE / name).parent / "adapter"]
            for adapter in [adapter for adapter in adapters if adapter.exists() and name not in WITHOUT_BIASES]:
                computed += f", {run_adapter(name, folder, adapter, out, greedy['prompt'])}"
            if name not in [*WITHOUT_BIASES, *ROUNDED]:
                stored["dense_greedy.json"][name] = {"config": OTHER_KEYS.get(name, {})} | greedy
            print(f"{report}; {computed}, smallest lead {greedy['lead']:.3f}", flush=True)
    for file, value in stored.items():
        (OUT / file).write_text(json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--llama-cpp", type=Path, required=True)
    parser.add_argument("--tune", type=Path, required=True)
    parser.add_argument("names", nargs="*")
    ARGUMENTS = parser.parse_args()
    gguf_files.ARGUMENTS = ARGUMENTS
    main()
