"""What `gpu.py` measures beside `tune`, each in a process of its own: steps of the Python tools, and torch's own products and
attention at the shapes of a layer. `gpu.py` calls it; the last line printed is the figures.
"""

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import math
import statistics
import time
from pathlib import Path

RANK, ALPHA = 16, 32
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHAPES = {
    "llama-3.2-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64}
    | {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True},
    "llama-3.1-8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "head_dim": 128}
    | {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False},
}
PEERS = {
    "PEFT + bitsandbytes": ["torch", "transformers", "peft", "bitsandbytes"],
    "the same + Liger": ["torch", "transformers", "peft", "bitsandbytes", "liger_kernel"],
    "Unsloth": ["torch", "transformers", "peft", "bitsandbytes", "unsloth"],
}


def peer_config(shape):
    from transformers import LlamaConfig

    common = {"rms_norm_eps": 1e-5, "max_position_embeddings": 8192, "use_cache": False}
    return LlamaConfig(**SHAPES[shape], **common, bos_token_id=1, eos_token_id=2)


def random_model(shape, is_quantized):
    """Random weights at about unit gain, made on the card one tensor at a time, so that no dense copy is ever whole."""
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM

    config = peer_config(shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    generator = torch.Generator(device="cuda").manual_seed(1)

    def weight(rows, columns):
        values = torch.randn(rows, columns, device="cuda", generator=generator)
        return values.div_(math.sqrt(columns)).to(torch.bfloat16)

    for name, module in list(model.named_modules()):
        own = name.rsplit(".", 1)[-1]
        if isinstance(module, nn.Linear) and own in PROJECTIONS:
            sizes = (module.in_features, module.out_features, False)
            values = weight(module.out_features, module.in_features)
            if is_quantized:
                import bitsandbytes as bnb

                kind = {"quant_type": "nf4", "compress_statistics": True}
                new = bnb.nn.Linear4bit(*sizes, **kind, compute_dtype=torch.bfloat16, device="meta")
                new.weight = bnb.nn.Params4bit(values, requires_grad=False, blocksize=64, module=new, **kind).to("cuda")
            else:
                new = nn.Linear(*sizes, device="meta")
                new.weight = nn.Parameter(values, requires_grad=False)
            setattr(model.get_submodule(name.rsplit(".", 1)[0]), own, new)
        elif isinstance(module, nn.Embedding):
            module.weight = nn.Parameter(weight(config.vocab_size, config.hidden_size), requires_grad=False)
        elif hasattr(module, "variance_epsilon"):
            ones = torch.ones(module.weight.shape, device="cuda", dtype=torch.bfloat16)
            module.weight = nn.Parameter(ones, requires_grad=False)
        elif hasattr(module, "inv_freq"):
            # Its buffers are computed, not stored.
            parent, own = name.rsplit(".", 1)
            with torch.device("cuda"):
                setattr(model.get_submodule(parent), own, type(module)(config))
    if config.tie_word_embeddings:
        model.tie_weights()
    else:
        model.lm_head.weight = nn.Parameter(weight(config.vocab_size, config.hidden_size), requires_grad=False)
    left = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    if left:
        raise SystemExit(f"without values: {left[:5]}")
    # By this PEFT knows.
    model.is_loaded_in_4bit = model.is_quantized = is_quantized
    return model


def unsloth_model(shape, seq, workdir):
    from unsloth import FastLanguageModel  # before transformers: it changes it

    import torch

    folder = Path(workdir) / f"unsloth-{shape}"
    if not (folder / "tokenizer.json").exists():
        # It loads from files alone.
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast

        model = random_model(shape, is_quantized=False).to("cpu")
        model.save_pretrained(folder)
        del model
        gc.collect()
        torch.cuda.empty_cache()
        words = {"<unk>": 0, "<s>": 1, "</s>": 2}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    model, _ = FastLanguageModel.from_pretrained(
        str(folder), max_seq_length=seq, dtype=torch.bfloat16, load_in_4bit=True, local_files_only=True
    )
    return FastLanguageModel.get_peft_model(
        model, r=RANK, lora_alpha=ALPHA, lora_dropout=0, bias="none", target_modules=PROJECTIONS,
        use_gradient_checkpointing="unsloth", max_seq_length=seq,
    )


def run_peer(name, shape, batch, options):
    """Steps of one peer; the last line printed is its figures."""
    if name == "Unsloth":
        model = unsloth_model(shape, options.seq, options.workdir)
    else:
        if "Liger" in name:
            from liger_kernel.transformers import apply_liger_kernel_to_llama

            apply_liger_kernel_to_llama(cross_entropy=False, fused_linear_cross_entropy=True)
        from peft import LoraConfig, get_peft_model

        model = random_model(shape, is_quantized=True)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
        lora = {"r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0, "target_modules": PROJECTIONS}
        model = get_peft_model(model, LoraConfig(**lora, bias="none", task_type="CAUSAL_LM"))
    import torch

    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4, fused=True)
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(3, SHAPES[shape]["vocab_size"], (batch, options.seq), generator=generator).cuda()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for step in range(2 + options.steps):
        torch.cuda.synchronize()
        began = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        if step >= 2:
            seconds.append(time.perf_counter() - began)
    packages = sorted({package for needs in PEERS.values() for package in needs})
    installed = {}
    for package in packages:
        if importlib.util.find_spec(package):
            installed[package] = importlib.metadata.version(package.replace("_", "-"))
    figures = {
        "tokens_per_second": batch * options.seq / statistics.median(seconds),
        "step_seconds": seconds,
        "peak_memory_bytes": torch.cuda.max_memory_reserved(),
        "loss": loss.item(),
        "packages": installed,
    }
    print("FIGURES " + json.dumps(figures), flush=True)


def timed(work, calls):
    """Seconds of one call, the best of three rounds."""
    import torch

    work()
    best = math.inf
    for _ in range(3):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(calls):
            work()
        torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - began) / calls)
    return best


def run_torch(options):
    """Times of torch's bf16 products and attention at the shapes of a layer, and its rate at large matrices."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    def random(*shape):
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)

    a, b = random(8192, 8192), random(8192, 8192)
    figures = {"flops": 2 * 8192**3 / timed(lambda: a @ b, 20), "calls": []}
    del a, b
    for name in options.shapes:
        shape = SHAPES[name]
        width, inner, head = (shape[key] for key in ("hidden_size", "intermediate_size", "head_dim"))
        heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
        products = {
            "q, k, v": (width, (heads + 2 * kv_heads) * head),
            "o": (heads * head, width),
            "gate, up": (width, 2 * inner),
            "down": (inner, width),
        }
        for batch in options.batches:
            rows = batch * options.seq
            for what, (k, n) in products.items():
                x, w = random(rows, k), random(n, k)
                about = {"shape": name, "batch": batch, "what": f"product {what}: {rows} × {k} × {n}"}
                seconds = timed(lambda x=x, w=w: x @ w.T, 10)
                figures["calls"].append(about | {"seconds": seconds, "flops": 2 * rows * k * n / seconds})
            q = random(batch, heads, options.seq, head).requires_grad_()
            k, v = (random(batch, kv_heads, options.seq, head).requires_grad_() for _ in range(2))
            dy = random(batch, heads, options.seq, head)

            def forward(q=q, k=k, v=v):
                return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

            def both(forward=forward, dy=dy):
                forward().backward(dy)

            # Causal: half of the scores. The backward has five products where the forward has two.
            flops = 2 * batch * heads * options.seq**2 * head
            once, whole = timed(forward, 10), timed(both, 10)
            for what, seconds, factor in [("forward", once, 1), ("backward", whole - once, 2.5)]:
                about = {"shape": name, "batch": batch, "what": f"attention {what}: {batch} × {options.seq}"}
                figures["calls"].append(about | {"seconds": seconds, "flops": factor * flops / seconds})
    print("FIGURES " + json.dumps(figures))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--peer", choices=PEERS)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES)
    parser.add_argument("--batches", nargs="+", type=int)
    parser.add_argument("--seq", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--workdir", type=Path)
    options = parser.parse_args()
    if options.torch:
        return run_torch(options)
    return run_peer(options.peer, options.shapes[0], options.batches[0], options)


if __name__ == "__main__":
    main()
