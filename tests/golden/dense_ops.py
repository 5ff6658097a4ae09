"""The goldens of `dense/` for families that compute what Llama does not: Gemma, GLM-4, and those with LayerNorm.

As `dense.py`, whose file of tokens it reads.

    python dense_ops.py            write everything
    python dense_ops.py NAME ...   write only these
"""

import json
import sys

from transformers import (
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GemmaConfig,
    Glm4Config,
    GPTJConfig,
    GPTNeoXConfig,
    PhiConfig,
    Starcoder2Config,
)

from dense import FOLDER, PATTERN, Family, make, nested, plain
from families import rope
from tiny_model import deterministic, write_json

TIED = {"tie_word_embeddings": True, "head_dim": 16}
GEMMA2 = TIED | {"query_pre_attn_scalar": 10, "sliding_window": 12, "layer_types": PATTERN}
CAPS = {"attn_logit_softcapping": 4.0, "final_logit_softcapping": 6.0}
LINEAR = {"rope_type": "linear", "rope_theta": 1e6, "factor": 4.0}
TWO_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
PARTIAL = plain() | {"partial_rotary_factor": 0.5}

FAMILIES = [
    Family("gemma", GemmaConfig, TIED, [rope(theta=100.0)]),
    Family(
        "gemma2",
        Gemma2Config,
        GEMMA2 | CAPS,
        [{key: 1e4} for key in CAPS] + [{"sliding_window": 64}, {"query_pre_attn_scalar": 16}],
    ),
    Family(
        "gemma3",
        Gemma3TextConfig,
        TIED
        | {"query_pre_attn_scalar": 10, "sliding_window": 12, "layer_types": PATTERN}
        | nested(LINEAR, plain(1e4)),
        [
            {"sliding_window": 64},
            {"query_pre_attn_scalar": 16},
            nested(plain(1e6), plain(1e4)),
            nested(LINEAR, plain(1e2)),
        ],
    ),
    Family(
        "gemma4",
        Gemma4TextConfig,
        TIED
        | {
            "num_hidden_layers": 3,
            "global_head_dim": 32,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "hidden_size_per_layer_input": 0,
            "sliding_window": 12,
            "layer_types": [*PATTERN, "full_attention"],
            "final_logit_softcapping": 6.0,
        },
        [{"sliding_window": 64}, {"final_logit_softcapping": None}],
    ),
    Family(
        "gemma4_small",
        Gemma4TextConfig,
        TIED
        | {
            "num_hidden_layers": 5,
            "global_head_dim": 32,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 64,
            "num_kv_shared_layers": 3,
            "use_double_wide_mlp": True,
            "sliding_window": 12,
            "layer_types": [*PATTERN, "sliding_attention", *PATTERN],
        },
        [{"sliding_window": 64}],
    ),
    Family(
        "glm4",
        Glm4Config,
        {"head_dim": 16, "attention_bias": True, "rope_parameters": PARTIAL},
        [{"rope_parameters": plain() | {"partial_rotary_factor": 1.0}}],
    ),
    Family(
        "gpt_neox",
        GPTNeoXConfig,
        TWO_HEADS | {"rope_parameters": plain() | {"partial_rotary_factor": 0.25}},
        [{"use_parallel_residual": False}],
    ),
    Family("gpt_neox_serial", GPTNeoXConfig, TWO_HEADS | {"use_parallel_residual": False, "hidden_act": "gelu_new"}),
    Family(
        "phi",
        PhiConfig,
        TWO_HEADS | {"rope_parameters": PARTIAL},
        [{"rope_parameters": plain() | {"partial_rotary_factor": 1.0}}],
    ),
    Family(
        "starcoder2",
        Starcoder2Config,
        {"sliding_window": 12, "tie_word_embeddings": True, "norm_epsilon": 1e-2},
        [{"sliding_window": None}, {"norm_epsilon": 1e-5}],
    ),
    Family(
        "falcon",
        FalconConfig,
        {"multi_query": True, "parallel_attn": True, "bias": False, "alibi": False, "tie_word_embeddings": True},
    ),
    Family(
        "gptj",
        GPTJConfig,
        TWO_HEADS | {"rotary_dim": 8, "n_inner": 48},
        [{"rotary_dim": 4}],
    ),
]


# Keys of `families.SHAPE` that say nothing to these classes, which keep them.
FOREIGN = ["num_key_value_heads", "intermediate_size"]


def tidy(family: Family) -> None:
    """config.json without the keys that its class does not have."""
    path = FOLDER / family.name / "config.json"
    known = set(family.config_class().to_dict())
    config = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {key: value for key, value in config.items() if key not in FOREIGN or key in known})


def main() -> None:
    deterministic()
    for seed, family in enumerate(FAMILIES, start=500):
        if not sys.argv[1:] or family.name in sys.argv[1:]:
            make(family, seed)
            tidy(family)


if __name__ == "__main__":
    main()
