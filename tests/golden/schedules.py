"""Learning rates of transformers' `get_scheduler` before each of ten steps, with a peak of 1: schedules.json.

    python tests/golden/schedules.py        (transformers 5.24, torch)
"""

import json
import pathlib

import torch
from transformers import get_scheduler

STEPS = 10
CASES = [
    ("constant_with_warmup", 2, {}),
    ("linear", 3, {}),
    ("cosine", 3, {}),
    ("cosine_with_min_lr", 3, {"min_lr_rate": 0.1}),
    ("cosine_with_min_lr", 0, {"min_lr_rate": 0.5}),
    ("warmup_stable_decay", 3, {"num_decay_steps": 4, "min_lr_ratio": 0.2}),
    ("warmup_stable_decay", 0, {"num_decay_steps": 1}),
    ("inverse_sqrt", 3, {}),
    ("inverse_sqrt", 0, {}),
]


def rates(name, warmup, settings):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_scheduler(name, optimizer, warmup, STEPS, scheduler_specific_kwargs=dict(settings))
    found = []
    for _ in range(STEPS):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


cases = [
    {"name": name, "warmup_steps": warmup, **settings, "rates": rates(name, warmup, settings)}
    for name, warmup, settings in CASES
]
path = pathlib.Path(__file__).with_name("schedules.json")
path.write_text(json.dumps(cases, indent=1) + "\n")
