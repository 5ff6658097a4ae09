"""Trains the byte-level BPE on the corpus and writes tokenizer.json and tokenizer_config.json.

Byte-level, so any UTF-8 text works; digits stand alone; ChatML markers are the special tokens.
    python tokenizer.py
"""

import argparse
import json
import pathlib
import re

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = pathlib.Path(__file__).parent
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # ids 0, 1, 2
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--work", type=pathlib.Path, default=HERE / ".work")
    a.add_argument("--out", type=pathlib.Path, default=HERE.parent / "base")
    a.add_argument("--vocabulary", type=int, default=2048)
    o = a.parse_args()
    with open(o.work / "train.jsonl") as f:
        texts = [re.sub(r"<\|im_start\|>|<\|im_end\|>", "", json.loads(line)["text"]) for line, _ in zip(f, range(12000))]
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=o.vocabulary, special_tokens=SPECIAL, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    o.out.mkdir(parents=True, exist_ok=True)
    t.save(str(o.out / "tokenizer.json"))
    config = {
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": None,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": 1024,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }
    (o.out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    n = sum(len(e.ids) for e in t.encode_batch(texts[:2000]))
    w = sum(len(x.split()) for x in texts[:2000])
    print(f"vocabulary {t.get_vocab_size()}, {n / w:.3f} tokens per word, {n / 2000:.0f} tokens per document")


if __name__ == "__main__":
    main()
