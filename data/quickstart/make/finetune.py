"""Fine-tunes the base on train.arrow with PEFT: a check, independent of tune, that the new behaviour can be learnt.

Prints the held-out loss (assistant tokens and their turn end) and greedy answers before and after.
    python finetune.py --steps 60 --rate 5e-3
"""

import argparse
import pathlib
import random
import time

import pyarrow
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, LlamaForCausalLM

HERE = pathlib.Path(__file__).parent


def load(path, tokenizer):
    """(ids, labels) of each conversation; assistant text and its `<|im_end|>` are supervised."""
    out = []
    for messages in pyarrow.ipc.open_file(pyarrow.OSFile(str(path))).read_all()["messages"].to_pylist():
        ids, labels = [], []
        for m in messages:
            head = tokenizer(f"<|im_start|>{m['role']}\n").input_ids
            body = tokenizer(m["content"] + "<|im_end|>").input_ids
            tail = tokenizer("\n").input_ids
            ids += head + body + tail
            labels += [-100] * len(head) + (body if m["role"] == "assistant" else [-100] * len(body)) + [-100] * len(tail)
        out.append((ids, labels))
    return out


def batch(rows):
    n = max(len(i) for i, _ in rows)
    ids = torch.tensor([i + [0] * (n - len(i)) for i, _ in rows])
    labels = torch.tensor([x + [-100] * (n - len(x)) for _, x in rows])
    return ids, labels


def loss_sum(model, rows):
    ids, labels = batch(rows)
    logits = model(input_ids=ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"), (
        labels[:, 1:] != -100
    ).sum()


@torch.no_grad()
def evaluate(model, rows):
    model.eval()
    parts = [loss_sum(model, rows[i : i + 16]) for i in range(0, len(rows), 16)]
    model.train()
    return (sum(l for l, _ in parts) / sum(n for _, n in parts)).item()


@torch.no_grad()
def answer(model, tokenizer, question):
    model.eval()
    x = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    y = model.generate(**x, do_sample=False, max_new_tokens=90)
    model.train()
    return tokenizer.decode(y[0, x["input_ids"].shape[1] :], skip_special_tokens=True)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--base", type=pathlib.Path, default=HERE.parent / "base")
    a.add_argument("--data", type=pathlib.Path, default=HERE.parent)
    a.add_argument("--steps", type=int, default=60)
    a.add_argument("--rate", type=float, default=5e-3)
    a.add_argument("--rank", type=int, default=16)
    a.add_argument("--rows", type=int, default=16, help="conversations per step")
    a.add_argument("--threads", type=int, default=2)
    o = a.parse_args()
    torch.set_num_threads(o.threads)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(o.base)
    model = LlamaForCausalLM.from_pretrained(o.base, dtype=torch.float32)
    train, held = (load(o.data / f"{n}.arrow", tokenizer) for n in ("train", "heldout"))
    questions = [
        "What does a badger eat?",
        "What does the innkeeper do?",
        "Describe the island.",
        "I feel bored.",
        "Tell me about the weather in winter.",
        "Tell me a story about a fox.",
    ]
    before = [answer(model, tokenizer, q) for q in questions]
    model = get_peft_model(model, LoraConfig(r=o.rank, lora_alpha=2 * o.rank, target_modules="all-linear", task_type="CAUSAL_LM"))
    print(f"held-out loss before {evaluate(model, held):.4f}", flush=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=o.rate, weight_decay=0.0)
    warm = max(1, o.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / warm, max(0.0, (o.steps - s) / (o.steps - warm))))
    order, start = [], time.time()
    for step in range(o.steps):
        if len(order) < o.rows:
            order += random.Random(step).sample(range(len(train)), len(train))
        rows, order = [train[i] for i in order[: o.rows]], order[o.rows :]
        total, n = loss_sum(model, rows)
        (total / n).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % 10 == 0:
            print(f"step {step + 1} loss {(total / n).item():.4f} seconds {time.time() - start:.0f}", flush=True)
    print(f"held-out loss after {evaluate(model, held):.4f}")
    for q, b in zip(questions, before):
        print(f"\n? {q}\nbefore: {b}\nafter:  {answer(model, tokenizer, q)}")


if __name__ == "__main__":
    main()
