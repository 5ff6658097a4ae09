"""Measures the base and prints the figures and samples of README.md, as Markdown.

Held-out perplexity (documents of another seed), distinct-n of samples, the share of sampled sentences that stand
word for word in the training corpus, and the first twenty samples of fixed seeds. Nothing is picked.
    python evaluate.py > .work/figures.md
"""

import argparse
import json
import math
import pathlib
import re

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from corpus import chatml, sentences
from pretrain import heldout_loss, load_rows

HERE = pathlib.Path(__file__).parent
QUESTIONS = [
    "Tell me a story about a fox.",
    "What does the baker do?",
    "Describe the lighthouse.",
    "What does an owl eat?",
    "How do I make apple pie?",
    "I am sad.",
    "What is a compass for?",
    "Where is the mill?",
    "What is going on at the market?",
    "Write a short story about a shy carpenter.",
]


@torch.no_grad()
def sample(model, ids, seed, temperature, top_p, limit):
    """One sample, with its own generator, until a turn or a document ends."""
    generator, past, out = torch.Generator().manual_seed(seed), None, []
    x = torch.tensor([ids])
    for _ in range(limit):
        r = model(input_ids=x, past_key_values=past, use_cache=True)
        past, p = r.past_key_values, torch.softmax(r.logits[0, -1].float() / temperature, -1)
        p, index = p.sort(descending=True)
        p[p.cumsum(0) - p >= top_p] = 0
        token = index[torch.multinomial(p / p.sum(), 1, generator=generator)].item()
        if token in (0, 2):
            break
        out.append(token)
        x = torch.tensor([[token]])
    return out


def distinct(texts, n):
    grams = [g for t in texts for w in [re.findall(r"[A-Za-z']+", t.lower())] for g in zip(*(w[i:] for i in range(n)))]
    return len(set(grams)) / len(grams)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--work", type=pathlib.Path, default=HERE / ".work")
    a.add_argument("--base", type=pathlib.Path, default=HERE.parent / "base")
    a.add_argument("--temperature", type=float, default=0.7)
    a.add_argument("--top-p", type=float, default=0.95)
    a.add_argument("--samples", type=int, default=100, help="stories for the distinct-n figures")
    o = a.parse_args()
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(o.base)
    model = LlamaForCausalLM.from_pretrained(o.base, dtype=torch.float32).eval()
    rows = torch.from_numpy(load_rows(o.work / "heldout.jsonl", tokenizer.backend_tokenizer, 512, 0))
    loss = heldout_loss(model, rows)
    model.eval()
    with open(o.work / "train.jsonl") as f:
        train = [json.loads(line)["text"] for line in f]
    known = {s for t in train for s in sentences(t)}
    with open(o.work / "heldout.jsonl") as f:
        held = [json.loads(line)["text"] for line in f]
    write = lambda ids, seed: tokenizer.decode(sample(model, ids, seed, o.temperature, o.top_p, 400))
    stories = [write([0], seed) for seed in range(o.samples)]
    answers = [
        write(tokenizer(chatml([{"role": "user", "content": q}]) + "<|im_start|>assistant\n").input_ids, seed)
        for seed, q in enumerate(QUESTIONS)
    ]
    pages = [t for t in held if not t.startswith("<|")][: o.samples]
    plain = [re.sub(r"<\|im_(start|end)\|>(system|user|assistant)?", "", s) for s in stories]
    share = lambda texts: sum(s in known for t in texts for s in sentences(t)) / sum(len(sentences(t)) for t in texts)
    print(
        f"| figure | base | held-out corpus |\n|---|---|---|\n| perplexity per token ({rows[:, 1:].numel()} held-out tokens, rows of 512) | {math.exp(loss):.3f} (loss {loss:.4f}) | |"
    )
    for n in (1, 2, 3):
        print(f"| distinct-{n} ({o.samples} documents) | {distinct(plain, n):.3f} | {distinct(pages, n):.3f} |")
    print(f"| sentences (four words or more) that stand in the training corpus | {share(plain):.3f} | {share(pages):.3f} |")
    print(
        f"| documents that stand whole in the training corpus | {sum(t.strip() in {x.strip() for x in train} for t in stories)} of {o.samples} | |"
    )
    print(
        f"\nTemperature {o.temperature}, top-p {o.top_p}; the seed is the number of the sample.\n\n### Ten documents from nothing (`<|endoftext|>`)\n"
    )
    for seed, text in enumerate(stories[:10]):
        print(f"**{seed}**\n\n```text\n{text.strip()}\n```\n")
    print("### Ten answers\n")
    for seed, (q, text) in enumerate(zip(QUESTIONS, answers)):
        print(f"**{seed}** *{q}*\n\n```text\n{text.strip()}\n```\n")


if __name__ == "__main__":
    main()
