"""Preference tuning by TRL in f32: losses of ten steps and the gradients of the first.

Writes `preference/`: the tokenizer, pairs and single answers, an adapter to start
from (which is also the reference), and for each case its losses, gradient norms
and step-0 gradients. The base is that of `trajectory/`, dense.

TRL differs from us in two terms, and is made to agree:
- `rpo`: TRL takes the mean of the chosen answers' negative log-likelihood over all
  tokens of a micro-batch, we per pair: the case has micro-batches of one pair.
- `orpo`: TRL takes that mean over prompt and answer, we over the answer alone:
  `AnswerOnly` replaces it.
"""

import json
import random
import tempfile
from dataclasses import asdict, dataclass, field

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from tiny_model import HERE, deterministic, fresh_folder, load_float32, tidy_adapter_folder, write_json

FOLDER = HERE / "preference"
BASE = HERE / "trajectory" / "base"
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VOCAB_SIZE = 512
STEPS = 10


@dataclass(frozen=True)
class Case:
    """One run: the objective's table, the trainer's own words for it, and batches."""

    name: str
    objective: str
    keys: dict
    trl: dict = field(default_factory=dict)
    data: str = "pairs.jsonl"
    micro_batch_size: int = 2
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-3


CASES = [
    Case("sigmoid", "dpo", {"beta": 0.1}, {"loss_type": ["sigmoid"]}),
    Case("hinge", "dpo", {"beta": 0.3, "loss": "hinge"}, {"loss_type": ["hinge"]}),
    Case("ipo", "dpo", {"beta": 0.2, "loss": "ipo"}, {"loss_type": ["ipo"]}),
    Case(
        "robust",
        "dpo",
        {"beta": 0.1, "loss": "robust", "label_smoothing": 0.1},
        {"loss_type": ["robust"], "label_smoothing": 0.1},
    ),
    Case("normalized", "dpo", {"beta": 2.0, "length_normalized": True}, {"loss_type": ["sigmoid_norm"]}),
    Case(
        "rpo",
        "dpo",
        {"beta": 0.1, "rpo_alpha": 0.5},
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
        micro_batch_size=1,
        gradient_accumulation_steps=2,
    ),
    Case("orpo", "orpo", {"beta": 0.1}),
    Case("simpo", "simpo", {"beta": 2.0, "gamma": 1.0}, {"loss_type": "simpo", "simpo_gamma": 1.0, "cpo_alpha": 0.0}),
    Case(
        "kto",
        "kto",
        {"beta": 0.1, "wanted_weight": 1.0, "unwanted_weight": 1.5},
        {"loss_type": "kto", "desirable_weight": 1.0, "undesirable_weight": 1.5},
        data="answers.jsonl",
        micro_batch_size=4,
    ),
    Case(
        "apo",
        "kto",
        {"beta": 0.2, "loss": "apo-zero-unpaired"},
        {"loss_type": "apo_zero_unpaired"},
        data="answers.jsonl",
        micro_batch_size=4,
    ),
]


class AnswerOnly(ORPOTrainer):
    """The likelihood term as the mean over each answer's own tokens."""

    def concatenated_forward(self, model, batch):
        chosen, rejected, chosen_logits, rejected_logits, _ = super().concatenated_forward(model, batch)
        return chosen, rejected, chosen_logits, rejected_logits, -chosen.mean()


TRAINERS = {
    "dpo": (DPOTrainer, DPOConfig),
    "kto": (KTOTrainer, KTOConfig),
    "orpo": (AnswerOnly, ORPOConfig),
    "simpo": (CPOTrainer, CPOConfig),
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Words `t0` to `t510` and an end-of-sequence token."""
    words = {f"t{index}": index for index in range(VOCAB_SIZE - 1)}
    words["</s>"] = VOCAB_SIZE - 1
    inner = Tokenizer(WordLevel(words, unk_token="t0"))
    inner.pre_tokenizer = WhitespaceSplit()
    inner.add_special_tokens([AddedToken("</s>", special=True, normalized=False)])
    inner.save(str(FOLDER / "tokenizer.json"))
    write_json(FOLDER / "tokenizer_config.json", {"eos_token": "</s>"})
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="</s>")


def words(generator: random.Random, least: int, most: int) -> str:
    return " ".join(f"t{generator.randrange(VOCAB_SIZE - 1)}" for _ in range(generator.randint(least, most)))


def make_data() -> None:
    generator = random.Random(7)
    pairs = [
        {
            "prompt": words(generator, 2, 9) + " ",
            "chosen": words(generator, 1, 12),
            "rejected": words(generator, 1, 12),
        }
        for _ in range(2 * STEPS)
    ]
    answers = [
        {
            "prompt": words(generator, 2, 9) + " ",
            "completion": words(generator, 1, 12),
            "label": generator.random() < 0.5,
        }
        for _ in range(4 * STEPS)
    ]
    for name, rows in [("pairs", pairs), ("answers", answers)]:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (FOLDER / f"{name}.jsonl").write_text(text, encoding="utf-8")


def make_adapter() -> None:
    torch.manual_seed(3)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, lora_dropout=0.0, target_modules=PROJECTIONS)
    model = get_peft_model(load_float32(BASE), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.peft_config["default"].base_model_name_or_path = "tune-golden/trajectory-base"
    model.save_pretrained(FOLDER / "adapter", save_embedding_layers=False)
    tidy_adapter_folder(FOLDER / "adapter")


def run(case: Case, tokenizer: PreTrainedTokenizerFast) -> tuple[dict, dict]:
    trainer_class, config_class = TRAINERS[case.objective]
    rows = [json.loads(line) for line in (FOLDER / case.data).read_text(encoding="utf-8").splitlines()]
    model = PeftModel.from_pretrained(load_float32(BASE), FOLDER / "adapter", is_trainable=True)
    losses, norms, gradients = [], [], {}

    class Recorded(trainer_class):
        def compute_loss(self, *arguments, **named):
            found = super().compute_loss(*arguments, **named)
            losses.append((found[0] if isinstance(found, tuple) else found).item())
            return found

        def get_train_dataloader(self):
            return super().get_train_dataloader()

        def _get_train_sampler(self, *_arguments, **_named):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    class Watch(__import__("transformers").TrainerCallback):
        def on_pre_optimizer_step(self, arguments, state, control, model=None, **_named):
            with torch.no_grad():
                parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
                norms.append(torch.stack([p.grad.norm() for p in parameters.values()]).norm().item())
                if not gradients:
                    for name, parameter in parameters.items():
                        gradients[name.replace(".default", "")] = parameter.grad.detach().clone().contiguous()

    with tempfile.TemporaryDirectory() as folder:
        options = dict(
            output_dir=folder,
            per_device_train_batch_size=case.micro_batch_size,
            gradient_accumulation_steps=case.gradient_accumulation_steps,
            max_steps=STEPS,
            learning_rate=case.learning_rate,
            lr_scheduler_type="constant",
            optim="adamw_torch",
            weight_decay=0.0,
            max_grad_norm=0.0,
            bf16=False,
            fp16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            dataloader_drop_last=False,
            remove_unused_columns=False,
            beta=case.keys["beta"],
            max_length=128,
        )
        if case.objective in ("dpo", "kto"):
            options["train_sampling_strategy"] = "sequential"
        trainer = Recorded(
            model=model,
            args=config_class(**options, **case.trl),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Watch()],
        )
        trainer.train()
    accumulation = case.gradient_accumulation_steps
    # Trainers differ in whether the loss that they return is divided by the accumulation already.
    grouped = [losses[at : at + accumulation] for at in range(0, len(losses), accumulation)]
    assert len(grouped) == STEPS and len(norms) == STEPS
    means = [sum(group) / len(group) for group in grouped]
    assert set(gradients) == set(get_peft_model_state_dict(model)), "gradients under the adapter's names"
    return {"losses": means, "grad_norms": norms}, gradients


def main() -> None:
    deterministic()
    fresh_folder(FOLDER)
    tokenizer = make_tokenizer()
    make_data()
    make_adapter()
    for case in CASES:
        found, gradients = run(case, tokenizer)
        described = {key: value for key, value in asdict(case).items() if key != "trl"}
        write_json(FOLDER / f"case_{case.name}.json", described | {"max_steps": STEPS} | found)
        save_file(gradients, FOLDER / f"step0_gradients_{case.name}.safetensors")
        print(case.name, found["losses"][0], found["losses"][-1])


if __name__ == "__main__":
    main()
