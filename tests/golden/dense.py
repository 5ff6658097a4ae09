"""Tiny random models of today's dense families: logits, and ten LoRA steps, by transformers and PEFT.

Writes `dense/<name>/`: config.json and bf16 weights as transformers saves them,
`golden.safetensors` (`input_ids` i64 [1, T], `logits` f32 [1, T, V], computed in
f32), a PEFT adapter to start from, and `losses.json`: ten steps from it on the
dense base and on its NF4 form. Each feature that a family is here for is proven
to matter: switching it off must move the logits. Tokens are in
`dense/tokens.jsonl`.

    python dense.py            write everything
    python dense.py NAME ...   write only these
"""

import copy
import json
import re
import sys
from dataclasses import dataclass, field

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import (
    ArceeConfig,
    AutoModelForCausalLM,
    Cohere2Config,
    Ernie4_5Config,
    Exaone4Config,
    GraniteConfig,
    GraniteMoeHybridConfig,
    HunYuanDenseV1Config,
    Ministral3Config,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    PretrainedConfig,
    SeedOssConfig,
    SmolLM3Config,
)

from families import SHAPE, logits, random_tokens, rope
from nf4_rule import quantize_nf4
from tiny_model import HERE, deterministic, load_float32, randomize, save_model, tidy_adapter_folder, write_json
from trajectory import make_rows, read_rows, summed_loss, supervised_tokens

FOLDER = HERE / "dense"
STEPS = 10
LEARNING_RATE = 2e-3
# Two rows a step: of very different lengths, so that what follows a document's length shows.
LENGTHS = [17, 40, 9, 33]


@dataclass(frozen=True)
class Family:
    """A configuration and, in `without`, the same one with its special feature off."""

    name: str
    config_class: type[PretrainedConfig]
    settings: dict
    without: list[dict] = field(default_factory=list)
    least: float = 0.05

    def config(self, **overrides) -> PretrainedConfig:
        tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        return self.config_class(**copy.deepcopy(SHAPE | tokens | self.settings | overrides))


def nested(full: dict, sliding: dict) -> dict:
    return {"rope_parameters": {"full_attention": full, "sliding_attention": sliding}}


def plain(theta: float = 10000.0) -> dict:
    return rope(theta=theta)["rope_parameters"]


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 32.0, "beta_slow": 1.0}
MINISTRAL = YARN | {"rope_theta": 1e4, "mscale": 1.0, "mscale_all_dim": 1.0}
SHORT = [1.0, 1.1, 1.3, 1.6]
LONG = [1.5, 2.0, 3.0, 5.0]
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": SHORT, "long_factor": LONG}
SCALARS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.5,
    "residual_multiplier": 0.4,
    "logits_scaling": 0.7,
}
ATTENTION = ["attention"] * 2
PATTERN = ["sliding_attention", "full_attention"]

FAMILIES = [
    Family(
        "smollm3",
        SmolLM3Config,
        {"no_rope_layers": [1, 0], "tie_word_embeddings": True} | rope(theta=2e6),
        [{"no_rope_layers": [1, 1]}],
    ),
    Family(
        "ministral3",
        Ministral3Config,
        {"head_dim": 16, "rope_parameters": MINISTRAL | {"llama_4_scaling_beta": 0.5}},
        [{"rope_parameters": MINISTRAL | {"llama_4_scaling_beta": 0.0}}],
    ),
    Family("phi3", Phi3Config, {"sliding_window": 12} | rope(), [{"sliding_window": None}]),
    Family(
        "phi3_longrope",
        Phi3Config,
        {
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "original_max_position_embeddings": 24,
            "partial_rotary_factor": 0.5,
            "rope_parameters": LONGROPE | {"partial_rotary_factor": 0.5, "original_max_position_embeddings": 24},
            "tie_word_embeddings": True,
        },
        [
            {"rope_parameters": LONGROPE | {"partial_rotary_factor": 0.5, "long_factor": SHORT}},
            {"max_position_embeddings": 24},
        ],
    ),
    Family("olmo2", Olmo2Config, {"head_dim": 16} | rope(theta=500.0)),
    Family(
        "olmo3",
        Olmo3Config,
        {"sliding_window": 12, "layer_types": PATTERN} | nested(YARN | {"rope_theta": 1e4}, plain(1e4)),
        [{"sliding_window": 64}, nested(plain(1e4), plain(1e4)), nested(YARN | {"rope_theta": 1e4}, plain(1e2))],
    ),
    Family("granite", GraniteConfig, SCALARS | {"attention_bias": True}, [{key: 1.0} for key in SCALARS]),
    Family(
        "granite4",
        GraniteMoeHybridConfig,
        SCALARS
        | {
            "num_local_experts": 0,
            "shared_intermediate_size": 48,
            "layer_types": ATTENTION,
            "position_embedding_type": "rope",
            "mamba_n_heads": 4,
            "tie_word_embeddings": True,
        },
        [{"position_embedding_type": "nope"}],
    ),
    Family("seed_oss", SeedOssConfig, {"head_dim": 16, "attention_dropout": 0.0, "residual_dropout": 0.0}),
    Family(
        "hunyuan",
        HunYuanDenseV1Config,
        {"head_dim": 16, "rope_parameters": {"rope_type": "dynamic", "alpha": 100.0, "factor": 1.0, "rope_theta": 1e4}},
        [{"rope_parameters": plain()}],
    ),
    Family(
        "exaone4",
        Exaone4Config,
        {"head_dim": 16, "sliding_window": 12, "layer_types": PATTERN},
        [{"sliding_window": 64}, {"layer_types": PATTERN[:1] * 2}],
    ),
    Family("ernie4_5", Ernie4_5Config, {"head_dim": 16, "use_bias": True, "tie_word_embeddings": True} | rope(theta=5e5)),
    Family("arcee", ArceeConfig, {"mlp_bias": True}),
    Family(
        "cohere2",
        Cohere2Config,
        {"sliding_window": 12, "layer_types": PATTERN, "logit_scale": 0.7, "tie_word_embeddings": True} | rope(),
        [{"logit_scale": 1.0}, {"sliding_window": 64}, {"layer_types": PATTERN[:1] * 2}],
    ),
]


def projections(model: torch.nn.Module) -> list[str]:
    """Paths of the linear projections of the layers."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and re.search(r"\.(layers|h)\.\d+\.", f".{name}")
    ]


def check_features(family: Family, folder, tokens: torch.Tensor, expected: torch.Tensor) -> str:
    moves = []
    for without in family.without:
        config = family.config(**without)
        control = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().float()
        control.load_state_dict(load_float32(folder).state_dict())
        moved = (logits(control, tokens) - expected).abs().max().item()
        assert moved > family.least, f"{family.name}: {without} moves logits by {moved} only"
        moves.append(f"{moved:.2f}")
    return f"; without its features they move by {', '.join(moves)}" if moves else ""


def make_adapter(folder, seed: int) -> None:
    """All projections, A as PEFT initializes it, B random."""
    torch.manual_seed(seed)
    model = load_float32(folder)
    names = sorted({name.split(".")[-1] for name in projections(model)})
    config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, lora_dropout=0.0, target_modules=names)
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.peft_config["default"].base_model_name_or_path = f"tune-golden/{folder.name}"
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    tidy_adapter_folder(folder / "adapter")


def quantized(model: torch.nn.Module) -> torch.nn.Module:
    """The projections of the layers replaced by their NF4 dequantization."""
    with torch.no_grad():
        for name in projections(model):
            weight = model.get_submodule(name).weight
            quantization = quantize_nf4(weight.numpy(), 64, double_quant=True)
            weight.copy_(torch.from_numpy(quantization.dequantize()))
    return model


def train(base: torch.nn.Module, folder) -> list[float]:
    """The losses of AdamW at a constant rate, two rows a step, each row by itself."""
    model = PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0, foreach=False)
    rows = read_rows("../dense/tokens.jsonl")
    losses = []
    for step in range(STEPS):
        batch = [rows[(2 * step + index) % len(rows)] for index in range(2)]
        count = supervised_tokens(batch)
        total = 0.0
        optimizer.zero_grad()
        for tokens, labels in batch:
            loss = summed_loss(model, tokens, labels)
            total += loss.item()
            (loss / count).backward()
        optimizer.step()
        losses.append(total / count)
    return losses


def make(family: Family, seed: int) -> None:
    folder = FOLDER / family.name
    model = AutoModelForCausalLM.from_config(family.config(), dtype=torch.bfloat16)
    randomize(model, seed)
    save_model(model, folder)
    tokens = random_tokens(seed)
    values = logits(load_float32(folder), tokens)
    note = check_features(family, folder, tokens, values)
    save_file({"input_ids": tokens, "logits": values}, folder / "golden.safetensors", metadata={"format": "pt"})
    make_adapter(folder, seed)
    losses = {
        "dense": train(load_float32(folder), folder),
        "nf4": train(quantized(load_float32(folder)), folder),
    }
    write_json(folder / "losses.json", losses)
    ends = {key: f"{series[0]:.3f} to {series[-1]:.3f}" for key, series in losses.items()}
    print(f"{family.name}: logits up to {values.abs().max():.1f}{note}; losses {ends}")


def main() -> None:
    deterministic()
    FOLDER.mkdir(exist_ok=True)
    rows = make_rows(7, LENGTHS)
    for row in rows:
        for key in ("input_ids", "labels"):
            row[key] = [value if value < 0 else value % SHAPE["vocab_size"] for value in row[key]]
    text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
    (FOLDER / "tokens.jsonl").write_text(text, encoding="utf-8")
    for seed, family in enumerate(FAMILIES, start=400):
        if not sys.argv[1:] or family.name in sys.argv[1:]:
            make(family, seed)


if __name__ == "__main__":
    main()
