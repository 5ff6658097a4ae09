"""GGUF files of today's dense families beside llama.cpp's converter.

Writes `gguf/dense_files.json`: keys and tensors (type, shape, hash) of the models of
`dense/` in f16 as llama.cpp's own `convert_hf_to_gguf.py` writes them, after a
comparison with the files of tune. Every file of ours, of every type, is also read
back by the `gguf` package, whose tables know the tensors of every architecture.
Nothing is run in llama.cpp. `config` are keys that were changed for the export.

    python gguf_dense.py --llama-cpp vendor/llama.cpp --tune target/debug/tune [NAME …]
"""

import argparse
import importlib
import json
import sys
import tempfile
from pathlib import Path

import gguf
import gguf_files
from gguf_files import HERE, OUT, check_types, compare, convert, read, stage, tune

# llama.cpp has these architectures without biases in the feed-forward block, and does not have GPT-J.
WITHOUT_BIASES = {"arcee": ["mlp_bias"], "ernie4_5": ["use_bias"]}
REFUSED = ["gptj"]
# Beside towers, of which the file has nothing.
WRAPPERS = ["mistral3", "gemma3", "muse_glimmer"]
# The converter takes the values of released models alone, and what transformers 5 calls attention for recurrent layers.
NOT_CONVERTED = ["hunyuan", "granite4"]
# Keys as released files have them, where transformers writes others and the converter wants those.
OTHER_KEYS = {
    "cohere2": {"rotary_pct": 1.0},
    "falcon": {"num_kv_heads": 1},
    # llama.cpp has no key for the factor on scores.
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3": {"query_pre_attn_scalar": 16},
    "dense_folders/gemma3": {"text_config.query_pre_attn_scalar": 16},
    # It leaves each fourth layer unrotated, of which there is none.
    "smollm3": {"no_rope_layers": [1, 1]},
}

gguf_files.OURS_ALONE |= {
    "attention.sliding_window_pattern": "llama.cpp has a pattern of its own where there is none",
    "attention.sliding_window": "phi3: no window, which llama.cpp wants to be told",
    "rope.freq_base": "the converter leaves the default to llama.cpp",
    "rope.freq_base_swa": "the same",
    "attention.head_count_kv": "the same: as many as heads",
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
    for module in ["command_r", "ernie", "falcon", "gemma", "glm", "gptneox", "phi", "starcoder", "exaone", "hunyuan", "muse_glimmer"]:
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
        assert tensor.name.rpartition(".")[0] in names, f"{name} has no {tensor.name}"


def main() -> None:
    sys.path.insert(0, str(ARGUMENTS.llama_cpp.resolve()))
    use_byte_level_vocabulary()
    path = OUT / "dense_files.json"
    files = json.loads(path.read_text(encoding="utf-8")) if ARGUMENTS.names and path.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        families = sorted(entry for entry in (HERE / "dense").iterdir() if entry.is_dir())
        for source in [*families, *(HERE / "dense_folders" / name for name in WRAPPERS)]:
            name = source.name if source in families else f"{source.parent.name}/{source.name}"
            if name in REFUSED + NOT_CONVERTED or (ARGUMENTS.names and name not in ARGUMENTS.names):
                continue
            (scratch / name).parent.mkdir(exist_ok=True)
            folder = stage(source, (scratch / name).parent)
            if name in WITHOUT_BIASES:
                changed(folder, dict.fromkeys(WITHOUT_BIASES[name], False), without_biases=True)
            changed(folder, OTHER_KEYS.get(name, {}))
            out = scratch / "out" / name
            out.mkdir(parents=True)
            tune("export", folder, "--gguf", "f16", "--out", out / "ours")
            ours = out / "ours" / "model-f16.gguf"
            theirs = convert(folder, out, "f16")
            compare(name, ours, theirs)
            known_tensors(ours)
            keys, tensors = read(theirs)
            if name not in WITHOUT_BIASES:
                files[name if "/" in name else f"dense/{name}"] = {"config": OTHER_KEYS.get(name, {}), "keys": keys, "tensors": tensors}
            print(f"{name}: the converter's keys and tensors; {check_types(name, folder, out)}", flush=True)
    path.write_text(json.dumps(files, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--llama-cpp", type=Path, required=True)
    parser.add_argument("--tune", type=Path, required=True)
    parser.add_argument("names", nargs="*")
    ARGUMENTS = parser.parse_args()
    gguf_files.ARGUMENTS = ARGUMENTS
    main()
