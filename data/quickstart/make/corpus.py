"""Writes the corpus: train.jsonl and heldout.jsonl, one document a line, and prints how varied it is.

Deterministic: document i of a split depends on the seed and on i alone.
    python corpus.py --documents 60000
"""

import argparse
import collections
import json
import multiprocessing
import pathlib
import random
import re

import pages
import talk

HERE = pathlib.Path(__file__).parent


def chatml(messages):
    return "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)


def document(key):
    """`key` = (seed, index). About half are conversations, the rest plain pages."""
    rng = random.Random(f"wrenhaven {key[0]} {key[1]}")
    return chatml(talk.conversation(rng)) if rng.random() < 0.52 else pages.page(rng)


def sentences(text):
    text = re.sub(r"<\|im_start\|>\w+\n|<\|im_end\|>", "\n", text)
    return [s.strip() for s in re.split(r'(?<=[.?!])"?\s+|\n', text) if len(s.split()) >= 4]


def measure(texts):
    """Words, vocabulary, distinct-3 and the share of sentences seen before (four words or more)."""
    seen, repeated, total, grams, n, vocabulary = set(), 0, 0, set(), 0, collections.Counter()
    for t in texts:
        words = re.findall(r"[A-Za-z']+", t.lower())
        vocabulary.update(words)
        for g in zip(words, words[1:], words[2:]):
            grams.add(g)
            n += 1
        for s in sentences(t):
            total += 1
            repeated += s in seen
            seen.add(s)
    whole = len(texts) - len(set(texts))
    return (
        f"{len(texts)} documents, {sum(vocabulary.values())} words, vocabulary {len(vocabulary)}, distinct-3 {len(grams) / n:.4f} "
        f"({len(grams)} trigrams), sentences seen before {repeated / total:.3f} of {total}, whole documents repeated {whole}"
    )


def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--work", type=pathlib.Path, default=HERE / ".work", help="folder for everything that is not committed")
    a.add_argument("--documents", type=int, default=60000)
    a.add_argument("--heldout", type=int, default=2000)
    a.add_argument("--seed", type=int, default=1)
    o = a.parse_args()
    o.work.mkdir(parents=True, exist_ok=True)
    for split, count, seed in (("train", o.documents, o.seed), ("heldout", o.heldout, o.seed + 1000)):
        with multiprocessing.Pool(2) as pool:
            texts = pool.map(document, ((seed, i) for i in range(count)), chunksize=500)
        with open(o.work / f"{split}.jsonl", "w") as f:
            f.writelines(json.dumps({"text": t}) + "\n" for t in texts)
        print(split, measure(texts), flush=True)


if __name__ == "__main__":
    main()
