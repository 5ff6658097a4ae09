"""Pretrains the base on the corpus: a Llama of 2.8 million parameters, f32 on the CPU, until the clock runs out.

Documents are shuffled and laid into rows of 256 tokens (512 in the last quarter); every row begins where a document begins and its last document
is cut. Matrices are trained with Muon (orthogonalised momentum), embeddings and norms with Adam. The rate warms up,
stays, and falls linearly to zero over the last part of the minutes given. A checkpoint is written every few minutes.
    python pretrain.py --minutes 55
"""

import argparse
import json
import math
import os
import pathlib
import time

import numpy
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

HERE = pathlib.Path(__file__).parent
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 192,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "max_position_embeddings": 1024,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 6,
    "num_hidden_layers": 6,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 2048,
}
GENERATION = {"bos_token_id": 0, "eos_token_id": [2, 0], "pad_token_id": 0}


def load_rows(path, tokenizer, length, seed):
    """Rows of `length` + 1 token ids, each starting at the start of a document, as one array."""
    with open(path) as f:
        texts = [json.loads(line)["text"] for line in f]
    order = numpy.random.default_rng(seed).permutation(len(texts))
    rows, row = [], []
    for start in range(0, len(order), 4000):
        for e in tokenizer.encode_batch([texts[i] for i in order[start : start + 4000]]):
            row += e.ids + [0]
            if len(row) > length:
                rows.append(row[: length + 1])
                row = []
    return numpy.array(rows, dtype=numpy.int64)


def load_documents(path, tokenizer):
    """Token ids of every document of at most 512 tokens, its end token included."""
    with open(path) as f:
        texts = [json.loads(line)["text"] for line in f]
    ids = [e.ids + [0] for i in range(0, len(texts), 4000) for e in tokenizer.encode_batch(texts[i : i + 4000])]
    return [torch.tensor(x) for x in ids if len(x) <= 512]


def document_batches(documents, budget, rng):
    """Endless batches of one document a row, of like length, right-padded with -1, about `budget` tokens each."""
    while True:
        order = [documents[i] for i in torch.randperm(len(documents), generator=rng).tolist()]
        for start in range(0, len(order), 1500):
            chunk, batches = sorted(order[start : start + 1500], key=len), []
            while chunk:
                rows = max(1, budget // len(chunk[-1]))
                batches.append(torch.nn.utils.rnn.pad_sequence(chunk[-rows:], batch_first=True, padding_value=-1))
                chunk = chunk[:-rows]
            for i in torch.randperm(len(batches), generator=rng).tolist():
                yield batches[i]


def orthogonal(g, steps=5):
    """Newton-Schulz iteration towards the nearest orthogonal matrix, for a stack of matrices."""
    flip = g.shape[-2] > g.shape[-1]
    x = g.mT if flip else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if flip else x


class Muon:
    """Momentum whose update is orthogonalised; matrices of one shape are treated together."""

    def __init__(self, matrices, momentum=0.95, decay=0.02):
        self.momentum, self.decay, self.groups = momentum, decay, {}
        for p in matrices:
            self.groups.setdefault(tuple(p.shape), []).append(p)
        self.state = {s: torch.zeros(len(ps), *s) for s, ps in self.groups.items()}

    @torch.no_grad()
    def step(self, rate):
        for shape, ps in self.groups.items():
            g, m = torch.stack([p.grad for p in ps]), self.state[shape]
            m.lerp_(g, 1 - self.momentum)
            update = orthogonal(g.lerp(m, self.momentum)) * max(1, shape[0] / shape[1]) ** 0.5
            for p, u in zip(ps, update):
                p.mul_(1 - rate * self.decay).sub_(u, alpha=rate)


def save(model, out):
    """config.json, generation_config.json and bf16 weights; tied weights once."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {n: p.detach().to(torch.bfloat16).contiguous() for n, p in model.state_dict().items() if n != "lm_head.weight"}
    save_file(tensors, out / "model.safetensors.part", metadata={"format": "pt"})
    os.replace(out / "model.safetensors.part", out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (out / "generation_config.json").write_text(json.dumps(GENERATION, indent=2) + "\n")


@torch.no_grad()
def heldout_loss(model, rows):
    model.eval()
    total = n = 0
    for i in range(0, len(rows), 8):
        x = rows[i : i + 8]
        logits = model(input_ids=x[:, :-1], use_cache=False).logits
        total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten(), reduction="sum").item()
        n += x[:, 1:].numel()
    model.train()
    return total / n


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--work", type=pathlib.Path, default=HERE / ".work")
    a.add_argument("--out", type=pathlib.Path, default=HERE.parent / "base")
    a.add_argument("--minutes", type=float, default=55)
    a.add_argument("--batch", type=int, default=8)
    a.add_argument("--length", type=int, default=256, help="of a row; doubled in the last quarter")
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--rate", type=float, default=0.02, help="of the matrices")
    a.add_argument("--adam-rate", type=float, default=4e-3, help="of embeddings and norms")
    a.add_argument("--decay", type=float, default=0.55, help="share of the time in which the rate falls")
    a.add_argument("--alone", action="store_true", help="one document a row, instead of rows that hold several")
    a.add_argument("--short", type=float, default=0.35, help="with --alone: share of the time with documents of at most 100 tokens only")
    a.add_argument("--resume", action="store_true", help="start from the weights in --out, with a fresh optimizer")
    a.add_argument("--seed", type=int, default=1, help="of initialization and of the order of documents")
    o = a.parse_args()
    torch.set_num_threads(o.threads)
    torch.manual_seed(o.seed)
    tokenizer = Tokenizer.from_file(str(o.out / "tokenizer.json"))
    if o.alone:
        documents, rng = load_documents(o.work / "train.jsonl", tokenizer), torch.Generator().manual_seed(o.seed)
        every = document_batches(documents, o.batch * o.length, rng)
        short = document_batches([d for d in documents if len(d) <= 100], o.batch * o.length, rng)
    else:
        rows = torch.from_numpy(load_rows(o.work / "train.jsonl", tokenizer, o.length, o.seed))
        long_rows = torch.from_numpy(load_rows(o.work / "train.jsonl", tokenizer, 2 * o.length, o.seed + 1))
        order = torch.randperm(len(rows))
    held = torch.from_numpy(load_rows(o.work / "heldout.jsonl", tokenizer, 2 * o.length, o.seed))[:16]
    model = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in CONFIG.items() if k not in ("torch_dtype", "architectures")}))
    if o.resume:
        model.load_state_dict({n: p.float() for n, p in load_file(o.out / "model.safetensors").items()}, strict=False)
    else:
        for name, p in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                torch.nn.init.zeros_(p)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    muon = Muon(matrices)
    adam = torch.optim.AdamW(others, lr=o.adam_rate, betas=(0.9, 0.98), weight_decay=0.0)
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    start = last = time.time()
    step = at = seen = 0
    smooth = None
    while True:
        part = (time.time() - start) / (60 * o.minutes)
        if part >= 1:
            break
        if o.alone:
            x = next(short if part < o.short else every)
        else:
            if part >= 0.75 and rows is not long_rows:
                rows, o.batch, at, order = long_rows, o.batch // 2, 0, torch.randperm(len(long_rows))
            if at + o.batch > len(rows):
                at, order = 0, torch.randperm(len(rows))
            x = rows[order[at : at + o.batch]]
            at += o.batch
        seen += (x[:, 1:] >= 0).sum().item()
        scale = min(1, (step + 1) / 60, (1 - part) / o.decay)
        logits = model(input_ids=x[:, :-1].clamp(min=0), use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten(), ignore_index=-1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for g in adam.param_groups:
            g["lr"] = o.adam_rate * scale
        muon.step(o.rate * scale)
        adam.step()
        model.zero_grad(set_to_none=True)
        step += 1
        smooth = loss.item() if smooth is None else 0.95 * smooth + 0.05 * loss.item()
        if not math.isfinite(smooth):
            raise SystemExit(f"loss is not finite at step {step}")
        if step % 20 == 0:
            spent = time.time() - start
            print(
                f"step {step} minutes {spent / 60:.1f} loss {smooth:.4f} rate {scale:.3f} tokens/s {seen / spent:.0f}",
                flush=True,
            )
        if time.time() - last > 300:
            save(model, o.out)
            print(f"held-out loss {heldout_loss(model, held):.4f}", flush=True)
            last = time.time()
    save(model, o.out)
    print(f"done: {step} steps, {seen} tokens, held-out loss {heldout_loss(model, held):.4f}", flush=True)


if __name__ == "__main__":
    main()
