"""Tokens of llama.cpp beside those of Hugging Face `tokenizers`, for every kind of tokenizer that tune exports.

For each pre-tokenizer that `src/export/gguf/pre.rs` knows, a small byte-level BPE is trained, exported with a tiny
model, and both sides tokenize the same texts. A BPE trained by SentencePiece, written as tokenizer.json, is compared
with SentencePiece as well; it is kept as `gguf/sentencepiece/` (tokenizer.json, and in expected.json the tokens, scores
and types that llama.cpp's converter reads from SentencePiece's own file).

    python gguf_tokens.py --llama-cpp vendor/llama.cpp --tune target/debug/tune
"""

import argparse
import json
import random
import re
import subprocess
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import sentencepiece
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers import Regex as Expression

HERE = Path(__file__).resolve().parent
OUT = HERE / "gguf" / "sentencepiece"
ROOT = HERE.parent.parent

TEXTS = [
    "Hello, world! It's we've I'LL they'D can't.",
    "12345 67 8 3.14159 ½ Ⅷ ² 1,000,000",
    "  leading and   inner    runs \t\ttabs\n\n\nlines\r\nthere \r\n\r\n end  ",
    "def f(x):\n    return x**2 # ok?\n\tif (a != b) { c += 1; }\n",
    "Größe, naïve, façade, ÅNGSTRÖM, İstanbul, ﬁne, ǅ",
    "Привет, мир! Как дела? ДОБРОЕ утро",
    "你好，世界！今天天气怎么样？ 漢字とひらがな、カタカナ。한국어 문장입니다",
    "مرحبا بالعالم हिन्दी में लिखा हुआ ไทยภาษา",
    "emoji 👩‍👩‍👧‍👦 👍🏽 ❤️ done™ ©2024 €5 £6 ½",
    "e\u0301 combining a\u0308\u0323 marks Z\u0351\u0346",
    "CamelCaseHTTPServer snake_case kebab-case path/to/file.txt https://example.org/?q=1&r=2#x",
    "\u00a0nbsp\u2003em\u3000wide\u200bzero",
    "a",
    " ",
    "",
    "\n",
    "'s 't 'S n't 'x '",
    "<|a|>special<|a|> tokens <|b|> in<|a|>between",
    "!!!??...---===>>><<<[[[]]](((",
    "x" * 40 + " " * 40 + "9" * 20,
]


def expressions() -> dict[str, str]:
    """The expressions of pre.rs: one source, so that what is tested is what is known."""
    source = (ROOT / "src/export/gguf/pre.rs").read_text(encoding="utf-8")
    raw = dict(re.findall(r'const (\w+): &str = r"(.*)";', source))
    (words,) = re.findall(r'const DEEPSEEK_V3_WORDS: &str = "(.*)";', source)
    raw["DEEPSEEK_V3_WORDS"] = words.replace('\\"', '"').replace("\\r", "\r").replace("\\n", "\n").replace("\\\\", "\\")
    return raw


def split(*patterns: str) -> pre_tokenizers.PreTokenizer:
    steps = [pre_tokenizers.Split(Expression(pattern), behavior="isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def known() -> dict[str, tuple[pre_tokenizers.PreTokenizer, bool]]:
    raw = expressions()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return {
        "gpt-2": (byte_level, False),
        "smollm": (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level]), False),
        "llama-bpe": (split(raw["LLAMA3"]), True),
        "smaug-bpe": (split(raw["LLAMA3"]), False),
        "qwen2": (split(raw["QWEN2"]), False),
        "qwen35": (split(raw["QWEN35"]), False),
        "tekken": (split(raw["TEKKEN"]), True),
        "gpt-4o": (split(raw["GPT_4O"]), False),
        "deepseek-v3": (split(r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", raw["DEEPSEEK_V3_WORDS"]), False),
    }


def texts() -> list[str]:
    """The texts above, and random cuts of all their characters."""
    generator = random.Random(7)
    pool = "".join(TEXTS) + " " * 40 + "\n" * 10 + "'" * 5 + "0123456789" * 2
    return TEXTS + ["".join(generator.choices(pool, k=generator.randint(1, 60))) for _ in range(400)]


def model_folder(folder: Path, size: int) -> None:
    """One layer of nothing in particular."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": size,
        "max_position_embeddings": 64, "tie_word_embeddings": True, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    }
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {"model.embed_tokens.weight": np.zeros((size, 32), np.float32), "model.norm.weight": np.ones(32, np.float32)}
    layer = "model.layers.0."
    for name in ["input_layernorm", "post_attention_layernorm"]:
        tensors[f"{layer}{name}.weight"] = np.ones(32, np.float32)
    for name in ["self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down"]:
        tensors[f"{layer}{name}_proj.weight"] = np.zeros((32, 32), np.float32)
    save_file(tensors, folder / "model.safetensors")


def exported(folder: Path, size: int):
    """llama.cpp with the vocabulary of a folder."""
    from llama_cpp import Llama

    model_folder(folder, size)
    command = [ARGUMENTS.tune.resolve(), "export", folder, "--gguf", "f16", "--out", folder / "gguf"]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return Llama(str(folder / "gguf" / "model-f16.gguf"), vocab_only=True, verbose=False)


def same_tokens(name: str, tokenizer: Tokenizer, llama, known_differences=lambda text: False) -> int:
    compared = 0
    for text in texts():
        if known_differences(text):
            continue
        expected = tokenizer.encode(text, add_special_tokens=False).ids
        found = llama.tokenize(text.encode(), add_bos=False, special=True)
        assert found == expected, f"{name}: {text!r}: {found} {expected}"
        compared += 1
    return compared


def byte_level(scratch: Path) -> None:
    corpus = TEXTS * 3 + (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    for name, (pre, ignores_merges) in known().items():
        tokenizer = Tokenizer(models.BPE(ignore_merges=ignores_merges))
        tokenizer.pre_tokenizer = pre
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=1200, special_tokens=["<|a|>", "<|b|>"], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        tokenizer.train_from_iterator(corpus, trainer)
        folder = scratch / name
        folder.mkdir()
        tokenizer.save(str(folder / "tokenizer.json"))
        llama = exported(folder, tokenizer.get_vocab_size())
        found = llama.metadata["tokenizer.ggml.pre"]
        assert found == name, (name, found)
        # llama.cpp's own rules for these two take letters beyond ASCII for upper and lower case at once.
        beyond = lambda text: any(c.isalpha() and not c.isascii() or unicodedata.combining(c) for c in text)  # noqa: E731
        skipped = beyond if name in ("tekken", "gpt-4o") else lambda text: False  # noqa: E731
        print(f"{name}: the same tokens for {same_tokens(name, tokenizer, llama, skipped)} texts", flush=True)


def train_sentencepiece(scratch: Path) -> sentencepiece.SentencePieceProcessor:
    corpus = scratch / "corpus.txt"
    lines = TEXTS * 3 + (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    corpus.write_text("\n".join(line.replace("\r", "") for line in lines), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(scratch / "tokenizer"), model_type="bpe", vocab_size=700,
        byte_fallback=True, character_coverage=0.98, normalization_rule_name="identity",
        remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True, num_threads=1,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(scratch / "tokenizer.model"))


def as_tokenizer_json(processor: sentencepiece.SentencePieceProcessor) -> dict:
    """What transformers makes of it: every way to cut a piece in two is a merge, best pieces first."""
    size = processor.get_piece_size()
    vocabulary = {processor.id_to_piece(number): number for number in range(size)}
    normal = {
        piece for piece, number in vocabulary.items()
        if not (processor.is_unknown(number) or processor.is_control(number) or processor.is_byte(number))
    }
    merges = []
    for piece in sorted(normal, key=lambda piece: -processor.get_score(vocabulary[piece])):
        cuts = [[piece[:at], piece[at:]] for at in range(1, len(piece))]
        merges += [cut for cut in cuts if cut[0] in normal and cut[1] in normal]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": number, "content": token, **special} for number, token in enumerate(["<unk>", "<s>", "</s>"])],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                     {"SpecialToken": {"id": "<s>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": vocabulary, "merges": merges},
    }


def sentencepiece_bpe(scratch: Path) -> None:
    processor = train_sentencepiece(scratch)
    value = as_tokenizer_json(processor)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    for name, change in {
        "prepend": {},
        "metaspace": {
            "normalizer": None,
            "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False},
        },
        "no prefix": {"normalizer": value["normalizer"]["normalizers"][1]},
    }.items():
        folder = scratch / name
        folder.mkdir()
        (folder / "tokenizer.json").write_text(json.dumps(value | change, ensure_ascii=False), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        llama = exported(folder, processor.get_piece_size() + 4)
        # Metaspace puts no space before one that is there; llama.cpp does, as the older Prepend did.
        skipped = (lambda text: text.startswith(" ")) if name == "metaspace" else (lambda text: False)
        count = same_tokens(name, tokenizer, llama, skipped)
        if name == "prepend":
            own = [processor.encode(text) for text in TEXTS if text]
            assert own == [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS if text]
        assert llama.tokenize(b"a", add_bos=True)[0] == 1
        print(f"SentencePiece, {name}: the same tokens for {count} texts")
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "tokenizer.json").write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    (OUT / "expected.json").write_text(json.dumps(converted(scratch, processor), ensure_ascii=False) + "\n", encoding="utf-8")


def converted(scratch: Path, processor: sentencepiece.SentencePieceProcessor) -> dict:
    """Tokens, scores and types as llama.cpp's converter reads them from tokenizer.model."""
    import sys

    sys.path.insert(0, str(ARGUMENTS.llama_cpp.resolve()))
    from conversion.base import TextModel

    class Reader(TextModel):
        model_arch = 0

        def __init__(self, folder: Path, size: int):
            self.dir_model, self.hparams = folder, {"vocab_size": size}

    tokens, scores, types = Reader(scratch, processor.get_piece_size())._create_vocab_sentencepiece()
    return {"tokens": [token.decode() for token in tokens], "scores": scores, "types": [int(kind) for kind in types]}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        byte_level(Path(scratch))
        sentencepiece_bpe(Path(scratch))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--llama-cpp", type=Path, required=True)
    parser.add_argument("--tune", type=Path, required=True)
    ARGUMENTS = parser.parse_args()
    main()
