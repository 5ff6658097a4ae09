"""GGUF files of tune beside llama.cpp: what its converter writes, and what it computes from ours.

Makes `gguf/tokenizer/` (60 tokens for the 64 rows of the tiny models), `gguf/files.json` (keys and tensors of every
tiny model as llama.cpp's own `convert_hf_to_gguf.py` writes them; of adapters and merged models, ours that llama.cpp
was run on) and `gguf/greedy.json` (the tokens that llama.cpp
gives for files that tune wrote: models, merged models, adapters on models). On the way it reads every file of every
type back with the `gguf` package, and compares llama.cpp's logits with those of transformers and PEFT.

    python gguf_files.py --llama-cpp vendor/llama.cpp --tune target/debug/tune [--also FOLDER …]

with `llama_cpp` importable (LLAMA_CPP_LIB_PATH names the folder of its libraries). README.md says how to get all this.
"""

import argparse
import hashlib
import json
import logging
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

HERE = Path(__file__).resolve().parent
OUT = HERE / "gguf"
ROOT = HERE.parent.parent
TYPES = {"f32": 0, "f16": 4e-4, "bf16": 3e-3, "q8_0": 8e-3, "q6_k": 0.025, "q5_k_m": 0.06, "q4_k_m": 0.1, "q4_0": 0.12}
NEW_TOKENS = 12
# What a key or a tensor of ours may differ in from the converter's, and why.
OURS_ALONE = {
    "attention.key_length": "written by the converter only where config.json has head_dim",
    "attention.value_length": "the same",
    "rope.dimension_count": "written by the converter for llama alone",
    "vocab_size": "the same",
    "rope.scaling.yarn_beta_fast": "the converter leaves defaults to llama.cpp",
    "rope.scaling.yarn_beta_slow": "the same",
    "rope.scaling.attn_factor": "what llama.cpp reads; the converter's yarn_attn_factor is overwritten there",
    "eot_token_id": "the second end token",
    "add_bos_token": "the converter says it only where a post-processor does",
    "add_eos_token": "the same",
}
THEIRS_ALONE = {
    "rope.scaling.yarn_attn_factor": "see attn_factor",
    "general.basename": "guessed from the folder's name",
    "general.finetune": "the same",
    "general.version": "the same",
}
DIFFERENT = {
    "context_length": "ends where llama.cpp, which has no window here, would begin to differ",
    "general.name": "title-cased by the converter",
    "tokenizer.ggml.token_type": "unused rows alone",
}


def tiny_tokenizer() -> None:
    """Byte-level BPE with a few merges; a BOS goes before every text."""
    folder = OUT / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    plain = list("abcdefghijklmnopqrstuvwxyzABHIT0123456789.,!?-Ġ") + ["Ċ"]
    merged = ["he", "Ġt", "Ġthe", "in", "er", "Ġa", "ou"]
    merges = [["h", "e"], ["Ġ", "t"], ["Ġt", "he"], ["i", "n"], ["e", "r"], ["Ġ", "a"], ["o", "u"]]
    special = ["<unk>", "<s>", "</s>", "<|user|>", "<|end|>"]
    vocabulary = {token: number for number, token in enumerate(special + plain + merged)}
    assert len(vocabulary) == 60, len(vocabulary)
    added = [
        {"id": vocabulary[token], "content": token, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for token in special
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": vocabulary, "merges": merges},
    }
    template = (
        "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
        "{% endfor %}"
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "chat_template": template, "clean_up_tokenization_spaces": False,
    }
    for name, value in [("tokenizer.json", tokenizer), ("tokenizer_config.json", config)]:
        text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


def stage(source: Path, into: Path) -> Path:
    """A model with a tokenizer: its own, or the tiny one."""
    folder = into / source.name
    folder.mkdir()
    for path in source.iterdir():
        if path.name.startswith(("model", "config.json", "generation_config", "tokenizer", "chat_template")):
            shutil.copy(path, folder)
    if not (folder / "tokenizer.json").exists():
        for path in (OUT / "tokenizer").iterdir():
            shutil.copy(path, folder)
    return folder


def tune(*arguments) -> str:
    finished = subprocess.run([ARGUMENTS.tune.resolve(), *map(str, arguments)], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def convert(folder: Path, out: Path, kind: str, *options: str) -> Path:
    """llama.cpp's converter, told the pre-tokenizer, which it knows by a hash of well-known vocabularies alone."""
    import convert_hf_to_gguf
    import transformers
    from conversion.base import TextModel

    TextModel.get_vocab_base_pre = lambda self, tokenizer: "smollm"
    # The tokenizer of the folder, where transformers 5 would build the one that a qwen2 usually has.
    transformers.AutoTokenizer.from_pretrained = transformers.PreTrainedTokenizerFast.from_pretrained
    file = out / f"{folder.name}-{kind}.gguf"
    sys.argv = ["convert", str(folder), "--outfile", str(file), "--outtype", kind, *options]
    logging.disable(logging.CRITICAL)
    convert_hf_to_gguf.main()
    return file


def read(file: Path) -> tuple[dict, dict]:
    """Keys (long lists as a hash) and tensors (name → type, shape, hash)."""
    import gguf

    reader = gguf.GGUFReader(file)
    keys = {}
    for name, field in reader.fields.items():
        if name.startswith("GGUF."):
            continue
        value = field.contents()
        if isinstance(value, list) and len(value) > 16:
            text = json.dumps([round(x, 4) if isinstance(x, float) else x for x in value], ensure_ascii=False)
            value = f"{len(value)} items, sha256 {hashlib.sha256(text.encode()).hexdigest()}"
        keys[name] = value
    tensors = {
        tensor.name: [
            tensor.tensor_type.name.lower(),
            [int(size) for size in reversed(tensor.shape)],
            # Computed, not copied: the numbers themselves, to be held against ours with a tolerance.
            tensor.data.tolist() if tensor.name == "rope_freqs.weight" else hashlib.sha256(tensor.data.tobytes()).hexdigest(),
        ]
        for tensor in reader.tensors
    }
    return keys, tensors


def same_tensors(ours: dict, theirs: dict) -> bool:
    """The same names, types, shapes and bytes, computed numbers to the last bits."""
    computed = lambda tensors: np.array(tensors.get("rope_freqs.weight", ["", [], []])[2])  # noqa: E731
    copied = lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "rope_freqs.weight"}  # noqa: E731
    return copied(ours) == copied(theirs) and np.allclose(computed(ours), computed(theirs), rtol=1e-6, atol=0)


def compare(name: str, ours: Path, theirs: Path) -> None:
    (own_keys, own_tensors), (keys, tensors) = read(ours), read(theirs)
    assert same_tensors(own_tensors, tensors), {
        key: (own_tensors.get(key), tensors.get(key))
        for key in own_tensors.keys() | tensors.keys()
        if own_tensors.get(key) != tensors.get(key)
    }
    architecture = keys["general.architecture"] + "."
    short = lambda key: key.removeprefix(architecture).removeprefix("tokenizer.ggml.")  # noqa: E731
    for key in own_keys.keys() | keys.keys():
        if key not in keys:
            assert short(key) in OURS_ALONE or key.startswith("tune."), f"{name}: {key} is ours alone: {own_keys[key]}"
        elif key not in own_keys:
            assert short(key) in THEIRS_ALONE, f"{name}: {key} is theirs alone: {keys[key]}"
        elif own_keys[key] != keys[key]:
            close = isinstance(keys[key], float) and abs(own_keys[key] - keys[key]) <= 1e-6 * abs(keys[key])
            known = short(key) in DIFFERENT
            assert close or known, f"{name}: {key} is {own_keys[key]!r}, theirs {keys[key]!r}"


def compare_lora(adapter: Path, base: Path, ours: Path, theirs: Path) -> None:
    converter = ARGUMENTS.llama_cpp / "convert_lora_to_gguf.py"
    command = [sys.executable, converter, "--base", base, "--outfile", theirs, "--outtype", "f32", adapter]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    (own_keys, own_tensors), (keys, tensors) = read(ours), read(theirs)
    assert own_tensors == tensors, adapter.name
    for key in ["general.architecture", "general.type", "adapter.type", "adapter.lora.alpha"]:
        assert own_keys[key] == keys[key], (adapter.name, key, own_keys[key], keys[key])


def check_types(name: str, folder: Path, out: Path) -> str:
    """Every type of file, decoded by the `gguf` package, beside the f32 one."""
    import gguf

    errors = []
    exact = None
    for kind, bound in TYPES.items():
        tune("export", folder, "--gguf", kind, "--out", out / kind)
        reader = gguf.GGUFReader(out / kind / f"model-{kind}.gguf")
        # Divisors of frequencies are never rounded, and as large as 1e30.
        weights = [tensor for tensor in reader.tensors if not tensor.name.startswith("rope_")]
        values = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in weights}
        if exact is None:
            exact = values
        squares = [
            (float(((values[key] - exact[key]).astype(np.float64) ** 2).sum()), float((exact[key].astype(np.float64) ** 2).sum()))
            for key in exact
        ]
        error = (sum(s[0] for s in squares) / sum(s[1] for s in squares)) ** 0.5
        worst = max((a / b) ** 0.5 for a, b in squares if b)
        assert worst <= bound, f"{name} {kind}: {worst}"
        errors.append(f"{kind} {error:.1e}")
    return ", ".join(errors)


class Runner:
    """One file in llama.cpp, one thread, keys and values in f32."""

    def __init__(self, file: Path, lora: Path | None = None):
        from llama_cpp import Llama

        self.llama = Llama(
            str(file), n_ctx=64, n_batch=64, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False,
            type_k=0, type_v=0, lora_path=None if lora is None else str(lora), use_mmap=lora is None,
        )

    def logits(self, ids: list[int]) -> np.ndarray:
        self.llama.reset()
        self.llama.eval(ids)
        return np.array(self.llama.scores[: len(ids)])

    def greedy(self, ids: list[int], count: int) -> tuple[list[int], float]:
        """Tokens, and the smallest lead that one of them had."""
        self.llama.reset()
        self.llama.eval(ids)
        tokens, lead = [], float("inf")
        for _ in range(count):
            scores = self.llama.scores[self.llama.n_tokens - 1]
            first, second = np.sort(scores)[::-1][:2]
            tokens.append(int(scores.argmax()))
            lead = min(lead, float(first - second))
            self.llama.eval(tokens[-1:])
        return tokens, lead


def transformers_logits(folder: Path, ids: list[int]) -> np.ndarray:
    """A shorter text than the golden one: dynamic scaling depends on its length."""
    import torch

    from tiny_model import load_float32

    with torch.no_grad():
        return load_float32(folder)(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()


def context_of(file: Path) -> int:
    keys, _ = read(file)
    return keys[keys["general.architecture"] + ".context_length"]


def main() -> None:
    tiny_tokenizer()
    sys.path.insert(0, str(ARGUMENTS.llama_cpp.resolve()))
    files, greedy = {}, {}
    families = sorted(path for path in (HERE / "families").iterdir() if path.is_dir())
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        staged = {}
        for source in [*families, HERE / "peft" / "base", ROOT / "data/quickstart/base", *ARGUMENTS.also]:
            name = source.name if source.parent.name == "families" else f"{source.parent.name}/{source.name}"
            (scratch / name).parent.mkdir(exist_ok=True)
            folder = stage(source, scratch / Path(name).parent) if "/" in name else stage(source, scratch)
            staged[name] = folder
            out = scratch / "out" / name
            out.mkdir(parents=True)
            tune("export", folder, "--gguf", "f16", "--out", out / "ours")
            ours = out / "ours" / "model-f16.gguf"
            report = name
            if not name.startswith("bnb"):
                theirs = convert(folder, out, "f16")
                compare(name, ours, theirs)
                keys, tensors = read(theirs)
                if source not in ARGUMENTS.also and "quickstart" not in name:
                    files[name] = {"keys": keys, "tensors": tensors}
                report += ": the converter's keys and tensors"
            report += f"; {check_types(name, folder, out)}"
            golden = source / "golden.safetensors"
            if golden.exists():
                tensors = load_file(golden)
                ids, expected = tensors["input_ids"][0].tolist(), tensors["logits"][0]
                usable = min(len(ids), context_of(ours))
                if usable < len(ids):
                    expected = transformers_logits(source, ids[:usable])
                found = Runner(out / "f32" / "model-f32.gguf").logits(ids[:usable])
                difference = float(np.abs(found - expected[:usable]).max())
                assert difference < 2e-3, f"{name}: logits differ by {difference}"
                report += f"; llama.cpp's logits within {difference:.1e} of transformers' over {usable} tokens"
                count = min(NEW_TOKENS, usable // 2)
                tokens, lead = Runner(ours).greedy(ids[: usable - count], count)
                greedy[name] = {"prompt": ids[: usable - count], "tokens": tokens, "lead": lead}
            print(report, flush=True)
        base = staged["peft/base"]
        plain = scratch / "out/peft/base/f32/model-f32.gguf"
        for adapter in sorted(path for path in (HERE / "peft").iterdir() if path.name != "base"):
            tensors = load_file(adapter / "golden.safetensors")
            ids, expected = tensors["input_ids"][0].tolist(), tensors["logits"][0]
            out = scratch / "out" / adapter.name
            out.mkdir()
            tune("export", adapter, "--gguf-lora", "--base", base, "--out", out / "lora")
            tune("export", adapter, "--gguf", "f32", "--base", base, "--out", out / "merged")
            files[f"peft/{adapter.name} lora"] = dict(zip(("keys", "tensors"), read(out / "lora" / "adapter-f32.gguf")))
            files[f"peft/{adapter.name} merged"] = dict(zip(("keys", "tensors"), read(out / "merged" / "model-f32.gguf")))
            if adapter.name != "rslora_patterns":  # which llama.cpp's converter reads as if it had neither
                compare_lora(adapter, base, out / "lora" / "adapter-f32.gguf", out / "theirs.gguf")
            both = {
                "lora": Runner(plain, out / "lora" / "adapter-f32.gguf"),
                "merged": Runner(out / "merged" / "model-f32.gguf"),
            }
            for kind, runner in both.items():
                difference = float(np.abs(runner.logits(ids) - expected).max())
                assert difference < 2e-3, f"{adapter.name} {kind}: {difference}"
                tokens, lead = runner.greedy(ids, NEW_TOKENS)
                greedy[f"peft/{adapter.name} {kind}"] = {"prompt": ids, "tokens": tokens, "lead": lead}
                print(f"{adapter.name} {kind}: llama.cpp's logits within {difference:.1e} of PEFT's")
    for name, value in [("files.json", files), ("greedy.json", greedy)]:
        (OUT / name).write_text(json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    print(f"smallest lead of a greedy token: {min(case['lead'] for case in greedy.values()):.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--llama-cpp", type=Path, required=True)
    parser.add_argument("--tune", type=Path, required=True)
    parser.add_argument("--also", type=Path, nargs="*", default=[])
    ARGUMENTS = parser.parse_args()
    main()
