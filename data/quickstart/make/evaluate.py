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
def sample(model, prompts, seeds, temperature, top_p, limit, ends=(0, 2), banned=()):
    """A continuation of each prompt (all of one length), each with its own seeded generator, until one of `ends`; `banned` tokens are never drawn."""
    generators, past = [torch.Generator().manual_seed(s) for s in seeds], None
    x, out, ended = torch.tensor(prompts), [[] for _ in seeds], set()
    for _ in range(limit):
        r = model(input_ids=x, past_key_values=past, use_cache=True)
        past, p = r.past_key_values, r.logits[:, -1].float() / temperature
        p[:, list(banned)] = -torch.inf
        p = torch.softmax(p, -1)
        p, index = p.sort(descending=True)
        p[p.cumsum(-1) - p >= top_p] = 0
        tokens = [index[i, torch.multinomial(p[i], 1, generator=g)].item() for i, g in enumerate(generators)]
        ended |= {i for i, t in enumerate(tokens) if t in ends}
        if len(ended) == len(seeds):
            break
        for i, t in enumerate(tokens):
            if i not in ended:
                out[i].append(t)
        x = torch.tensor(tokens)[:, None]
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
    a.add_argument("--samples", type=int, default=60, help="pages for the distinct-n figures")
    o = a.parse_args()
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(o.base)
    model = LlamaForCausalLM.from_pretrained(o.base, dtype=torch.float32).eval()
    rows = torch.from_numpy(load_rows(o.work / "heldout.jsonl", tokenizer.backend_tokenizer, 512, 0))[:96]
    loss = heldout_loss(model, rows)
    model.eval()
    with open(o.work / "train.jsonl") as f:
        train = [json.loads(line)["text"] for line in f]
    known = {s for t in train for s in sentences(t)}
    with open(o.work / "heldout.jsonl") as f:
        held = [json.loads(line)["text"] for line in f]
    pages = [t for t in held if not t.startswith("<|")][: o.samples]
    starts = [tokenizer(t).input_ids[:4] for t in pages]
    drawn = sample(model, starts, range(o.samples), o.temperature, o.top_p, 400, ends=(0,), banned=(1, 2))
    stories = tokenizer.batch_decode([a + b for a, b in zip(starts, drawn)])
    answers = []
    for seed, q in enumerate(QUESTIONS):
        prompt = tokenizer(chatml([{"role": "user", "content": q}]) + "<|im_start|>assistant\n").input_ids
        answers += tokenizer.batch_decode(sample(model, [prompt], [seed], o.temperature, o.top_p, 400))
    share = lambda texts: sum(s in known for t in texts for s in sentences(t)) / sum(len(sentences(t)) for t in texts)
    print(
        f"| figure | base | held-out corpus |\n|---|---|---|\n| perplexity per token ({rows[:, 1:].numel()} held-out tokens, rows of 512) | {math.exp(loss):.3f} (loss {loss:.4f}) | |"
    )
    for n in (1, 2, 3):
        print(f"| distinct-{n} ({o.samples} documents) | {distinct(stories, n):.3f} | {distinct(pages, n):.3f} |")
    print(f"| sentences (four words or more) that stand in the training corpus | {share(stories):.3f} | {share(pages):.3f} |")
    print(
        f"| documents that stand whole in the training corpus | {sum(t.strip() in {x.strip() for x in train} for t in stories)} of {o.samples} | |"
    )
    print(
        f"\nTemperature {o.temperature}, top-p {o.top_p}; the seed is the number of the sample.\n\n"
        "### Ten pages, each from the first four tokens of a held-out page\n"
    )
    for seed, text in enumerate(stories[:10]):
        print(f"**{seed}**\n\n```text\n{text.strip()}\n```\n")
    print("### Ten answers\n")
    for seed, (q, text) in enumerate(zip(QUESTIONS, answers)):
        print(f"**{seed}** *{q}*\n\n```text\n{text.strip()}\n```\n")


if __name__ == "__main__":
    main()
