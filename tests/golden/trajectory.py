"""Twenty-step QLoRA trajectories in f32, by transformers + PEFT + torch.

Writes `trajectory/`: a tiny Llama, its NF4 form, a PEFT adapter to start from,
token files, and for each case the losses, gradient norms, step-0 gradients and
the adapter after the last step. Knows nothing of bitsandbytes' kernels: the
frozen weights PEFT sees are `nf4_rule`'s flat-block dequantization.

    python trajectory.py             write everything
    python trajectory.py --margins   write nothing; say how far f64, another
                                     epsilon, no decay or no clipping move each case
"""

import argparse
import json
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from nf4_rule import Quantized4Bit, quantize_nf4, to_checkpoint
from tiny_model import HERE, deterministic, load_float32, randomize, save_model, tidy_adapter_folder, write_json

FOLDER = HERE / "trajectory"
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VOCAB_SIZE = 512
IGNORED = -100


@dataclass(frozen=True)
class Case:
    """One run: its data and hyperparameters. Constant rate, no warm-up, file order."""

    name: str
    data: str
    micro_batch_size: int
    gradient_accumulation_steps: int
    learning_rate: float
    weight_decay: float
    max_grad_norm: float  # 0 = no clipping
    max_steps: int = 20


CASES = [
    Case("plain", "tokens.jsonl", 4, 1, 2e-4, 0.0, 0.0),
    # One row a step, of very different lengths: Adam undoes a factor that is the same in every step.
    Case("clipped", "tokens_nolabels.jsonl", 1, 1, 5e-4, 0.01, 0.5),
    Case("repeated", "tokens_repeated.jsonl", 2, 1, 1e-3, 0.01, 0.0),
    Case("accumulated", "tokens.jsonl", 1, 4, 2e-4, 0.01, 1.0),
]


def make_base() -> None:
    """Three layers, grouped-query attention, rows that straddle blocks, a short last block.

    96 inputs are one and a half blocks of 64; 96 x 173 weights end in half a block.
    """
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=96,
        intermediate_size=173,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False,
        dtype=torch.bfloat16,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    randomize(model, seed=1, head_gain=3.0)
    save_model(model, FOLDER / "base")


def quantize_base() -> dict[str, Quantized4Bit]:
    """NF4 with double quantization of every projection, by module path."""
    tensors = load_file(FOLDER / "base" / "model.safetensors")
    return {
        name.removesuffix(".weight"): quantize_nf4(tensors[name].float().numpy(), 64, double_quant=True)
        for name in sorted(tensors)
        if name.split(".")[-2] in PROJECTIONS
    }


def write_quantized(base: dict[str, Quantized4Bit]) -> None:
    tensors = {}
    for module, quantized in base.items():
        tensors |= to_checkpoint(f"{module}.weight", quantized, "float32")
    save_numpy(tensors, FOLDER / "base_nf4.safetensors", metadata={"format": "pt"})


def load_frozen_base() -> LlamaForCausalLM:
    """The base in f32 with every projection replaced by its NF4 dequantization."""
    model = load_float32(FOLDER / "base")
    with torch.no_grad():
        for module, quantized in quantize_base().items():
            model.get_submodule(module).weight.copy_(torch.from_numpy(quantized.dequantize()))
    return model


def make_adapter() -> None:
    """All seven projections, A as PEFT initializes it, B random."""
    torch.manual_seed(2)
    config = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, lora_dropout=0.0, target_modules=PROJECTIONS)
    model = get_peft_model(load_frozen_base(), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.peft_config["default"].base_model_name_or_path = "tune-golden/trajectory-base"
    folder = FOLDER / "adapter"
    model.save_pretrained(folder, save_embedding_layers=False)
    tidy_adapter_folder(folder)


def make_rows(seed: int, lengths: list[int]) -> list[dict]:
    """Random tokens with labels that stand at their token's position.

    Prompts are unsupervised, so are single tokens in between; the first label
    is set (it must not matter) and some labels are not their position's token.
    """
    generator = random.Random(seed)
    rows = []
    for length in lengths:
        tokens = [generator.randrange(VOCAB_SIZE) for _ in range(length)]
        labels = list(tokens)
        prompt = generator.randrange(1, max(2, length // 2))
        labels[1:prompt] = [IGNORED] * (prompt - 1)
        for position in range(prompt, length - 1):
            if generator.random() < 0.15:
                labels[position] = IGNORED
            elif generator.random() < 0.1:
                labels[position] = generator.randrange(VOCAB_SIZE)
        rows.append({"input_ids": tokens, "labels": labels})
    return rows


def write_rows(name: str, rows: list[dict]) -> None:
    lines = (json.dumps(row, separators=(",", ":")) for row in rows)
    (FOLDER / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def make_data() -> None:
    write_rows("tokens.jsonl", make_rows(3, [17, 33, 9, 26, 40, 12, 5, 29]))
    unlabelled = make_rows(4, [21, 5, 38, 9, 4, 30])
    write_rows("tokens_nolabels.jsonl", [{"input_ids": row["input_ids"]} for row in unlabelled])
    write_rows("tokens_repeated.jsonl", make_rows(5, [14, 9]))


def read_rows(name: str) -> list[tuple[list[int], list[int]]]:
    """(input_ids, labels); without labels every token is supervised."""
    rows = [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]
    return [(row["input_ids"], row.get("labels", row["input_ids"])) for row in rows]


def supervised_tokens(rows: list[tuple[list[int], list[int]]]) -> int:
    return sum(label != IGNORED for _, labels in rows for label in labels[1:])


def summed_loss(model: torch.nn.Module, tokens: list[int], labels: list[int]) -> torch.Tensor:
    """Sum of -log p(labels[t + 1] | tokens[..= t]) over supervised positions; one row, so no padding."""
    logits = model(input_ids=torch.tensor([tokens])).logits[0]
    return cross_entropy(logits[:-1], torch.tensor(labels[1:]), ignore_index=IGNORED, reduction="sum")


@dataclass
class Trajectory:
    losses: list[float]
    grad_norms: list[float]
    step0_gradients: dict[str, torch.Tensor]
    final_adapter: dict[str, torch.Tensor]


def adapter_gradients(model: PeftModel) -> dict[str, torch.Tensor]:
    """Gradients under the names the adapter file uses."""
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name.replace(".default", ""): gradient.clone() for name, gradient in gradients.items()}


def adamw(case: Case, model: PeftModel, epsilon: float = 1e-8) -> torch.optim.Optimizer:
    """One rate and one decay for everything that is trained."""
    return torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=case.learning_rate,
        betas=(0.9, 0.999),
        eps=epsilon,
        weight_decay=case.weight_decay,
        foreach=False,
    )


def run(case: Case, dtype: torch.dtype = torch.float32, epsilon: float = 1e-8) -> Trajectory:
    """A case with plain AdamW. f64 covers weights and products; norms and softmax stay in f32."""
    model = PeftModel.from_pretrained(load_frozen_base(), FOLDER / "adapter", is_trainable=True).to(dtype)
    return train(case, model, adamw(case, model, epsilon))


def train(case: Case, model: PeftModel, optimizer: torch.optim.Optimizer) -> Trajectory:
    """The training loop, written out."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rows = read_rows(case.data)
    rows_per_step = case.micro_batch_size * case.gradient_accumulation_steps
    assert len(rows) % rows_per_step == 0, "an epoch must end with a whole optimizer step"

    result = Trajectory([], [], {}, {})
    for step in range(case.max_steps):
        start = step * rows_per_step % len(rows)
        batch = rows[start : start + rows_per_step]
        count = supervised_tokens(batch)
        total = 0.0
        optimizer.zero_grad()
        for tokens, labels in batch:
            loss = summed_loss(model, tokens, labels)
            total += loss.item()
            (loss / count).backward()
        if step == 0:
            result.step0_gradients = adapter_gradients(model)
        squares = sum(parameter.grad.double().pow(2).sum().item() for parameter in parameters)
        norm = squares**0.5
        if case.max_grad_norm > 0:
            factor = min(1.0, case.max_grad_norm / (norm + 1e-6))
            for parameter in parameters:
                parameter.grad.mul_(factor)
        optimizer.step()
        result.losses.append(total / count)
        result.grad_norms.append(norm)
    result.final_adapter = {key: value.clone() for key, value in get_peft_model_state_dict(model).items()}
    return result


def write_case(case: Case) -> None:
    trajectory = run(case)
    assert set(trajectory.step0_gradients) == set(trajectory.final_adapter)
    if case.max_grad_norm > 0:
        assert min(trajectory.grad_norms) > case.max_grad_norm, "clipping must bite in every step"
    fields = asdict(case)
    fields |= {
        "lr_scheduler": "constant",
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "losses": trajectory.losses,
        "grad_norms": trajectory.grad_norms,
    }
    write_json(FOLDER / f"case_{case.name}.json", fields)
    for kind, tensors in (
        ("step0_gradients", trajectory.step0_gradients),
        ("final_adapter", trajectory.final_adapter),
    ):
        ordered = {key: tensors[key].contiguous() for key in sorted(tensors)}
        save_file(ordered, FOLDER / f"{kind}_{case.name}.safetensors", metadata={"format": "pt"})
    print(f"{case.name}: loss {trajectory.losses[0]:.4f} -> {trajectory.losses[-1]:.4f}")


def write_logits() -> None:
    """Logits of base + starting adapter for two rows of different length."""
    model = PeftModel.from_pretrained(load_frozen_base(), FOLDER / "adapter").eval()
    tensors = {}
    for index, (tokens, _) in enumerate(read_rows("tokens.jsonl")[:2]):
        ids = torch.tensor([tokens])
        with torch.no_grad():
            tensors[f"logits.{index}"] = model(input_ids=ids).logits.contiguous()
        tensors[f"input_ids.{index}"] = ids
    save_file(tensors, FOLDER / "logits.safetensors", metadata={"format": "pt"})


def moved(reference: Trajectory, other: Trajectory) -> str:
    """The largest difference between two runs' losses."""
    pairs = zip(reference.losses, other.losses, strict=True)
    return f"{max(abs(left - right) for left, right in pairs):.1e}"


def print_margins() -> None:
    """What rounding costs, and what a wrong optimizer would cost, per case."""
    for case in CASES:
        reference = run(case)
        double = run(case, dtype=torch.float64)
        start = load_file(FOLDER / "adapter" / "adapter_model.safetensors")
        adapter_error = max(
            (reference.final_adapter[key].double() - double.final_adapter[key]).abs().max().item() for key in start
        )
        change_error = max(
            (
                (reference.final_adapter[key].double() - double.final_adapter[key]).norm()
                / (double.final_adapter[key] - start[key].double()).norm()
            ).item()
            for key in start
        )
        gradients = [
            ((gradient.double() - exact).norm() / exact.norm()).item()
            for gradient, exact in zip(
                reference.step0_gradients.values(), double.step0_gradients.values(), strict=True
            )
        ]
        smallest = min(gradient.norm().item() for gradient in reference.step0_gradients.values())
        print(
            f"{case.name}: loss {reference.losses[0]:.3f} -> {reference.losses[-1]:.3f}; "
            f"norms {min(reference.grad_norms):.2f}..{max(reference.grad_norms):.2f}; "
            f"f64 moves losses {moved(reference, double)}, "
            f"step-0 gradients {max(gradients):.1e} relative (smallest norm {smallest:.1e}), "
            f"final adapter {adapter_error:.1e} (its change {change_error:.1e} relative); "
            f"epsilon 1e-5 moves losses {moved(reference, run(case, epsilon=1e-5))}, "
            f"no decay {moved(reference, run(replace(case, weight_decay=0.0)))}, "
            f"no clipping {moved(reference, run(replace(case, max_grad_norm=0.0)))}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--margins", action="store_true", help="measure sensitivity of the committed cases")
    arguments = parser.parse_args()
    deterministic()
    if arguments.margins:
        print_margins()
        return
    FOLDER.mkdir(exist_ok=True)
    make_base()
    write_quantized(quantize_base())
    make_adapter()
    make_data()
    for case in CASES:
        write_case(case)
    write_logits()


if __name__ == "__main__":
    main()
