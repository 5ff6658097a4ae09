"""The defaults of the configuration classes of dense families, as transformers writes them.

Writes `tests/dense_families/defaults.json`: config.json of each class's defaults, by
`model_type`. A file that names its `model_type` alone has to be the same model.

    python dense_defaults.py
"""

import json

from transformers import CONFIG_MAPPING

from tiny_model import HERE

FAMILIES = [
    "arcee",
    "cohere2",
    "ernie4_5",
    "exaone4",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gemma4_unified_text",
    "glm4",
    "gpt_neox",
    "gptj",
    "granite",
    "hunyuan_v1_dense",
    "llama",
    "ministral3",
    "mistral",
    "muse_glimmer_text",
    "olmo2",
    "olmo3",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_5_text",
    "seed_oss",
    "smollm3",
    "starcoder2",
]


def main() -> None:
    lines = []
    for name in FAMILIES:
        config = CONFIG_MAPPING[name]().to_dict()
        config.pop("transformers_version", None)
        lines.append(f"  {json.dumps(name)}: {json.dumps(config, sort_keys=True)}")
    path = HERE.parent / "dense_families" / "defaults.json"
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
