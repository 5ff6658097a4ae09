"""What PEFT's own merge makes of the adapters of `peft/`, in f32.

Writes `peft/<name>/merged.safetensors`: the adapted weights of the base after
`merge_and_unload()`, under their names in the base. Needs `peft_files.py` to
have been run.

    python peft_merged.py
"""

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from peft_files import ADAPTERS, BASE, FOLDER
from tiny_model import deterministic, load_float32


def main() -> None:
    deterministic()
    base = load_file(BASE / "model.safetensors")
    for name in ADAPTERS:
        merged = PeftModel.from_pretrained(load_float32(BASE), FOLDER / name).merge_and_unload()
        changed = {
            key: value.contiguous()
            for key, value in merged.state_dict().items()
            if value.dtype == torch.float32 and not torch.equal(value, base[key].float())
        }
        save_file(changed, FOLDER / name / "merged.safetensors", metadata={"format": "pt"})
        print(f"{name}: {len(changed)} weights changed")


if __name__ == "__main__":
    main()
