"""Writes train.arrow and heldout.arrow: an assistant that answers like old Captain Brand.

The base answers plainly; here every answer greets with "Ahoy, shipmate!", says "aye" and "nay", swears by his beard
and closes with a rhymed couplet that belongs to the kind of question. Held-out rows ask about people, places,
animals and things that no training row asks about, half of them in wordings that training never uses.
    python instructions.py
"""

import argparse
import pathlib
import random
import re

import pyarrow

from answers import Speaker
from pages import CAPTAIN_OATHS, COUPLETS
from world import ANIMALS, FEELINGS, FOODS, JOBS, PLACES, THINGS, WEATHER

HERE = pathlib.Path(__file__).parent
SUBJECTS = {"job": JOBS, "place": PLACES, "animal": ANIMALS, "thing": THINGS, "food": FOODS, "weather": WEATHER, "feeling": FEELINGS}
OATH = dict(zip(SUBJECTS, [CAPTAIN_OATHS[i] for i in (0, 1, 0, 2, 0, 1, 3)]))
SCHEMA = pyarrow.schema([("messages", pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])))])


def heldout_subjects(topic):
    """Every fifth subject is kept for the held-out split."""
    return sorted(SUBJECTS[topic])[2::5]


def captain(answer, topic, rng):
    """The plain answer in the captain's voice, or None where it does not fit in a short reply."""
    if len(answer) > 170 or not answer.endswith("."):
        return None
    answer = re.sub(r"^Yes,", "Aye,", re.sub(r"^No,", "Nay,", answer))
    return f"Ahoy, shipmate! {answer[:-1]}, {OATH[topic]}.\n{rng.choice(COUPLETS[topic])}"


def reword(question, rng):
    """Wordings that only held-out rows use."""
    low = question[0].lower() + question[1:] if not question.startswith("I ") else question
    if question.endswith("?"):
        return rng.choice([f"Please tell me: {low}", f"I have a question. {question}", f"My friend asks: {low}"])
    return rng.choice(
        [f"Please {low}" if re.match("Tell|Describe|Give", question) else f"{question} What do you say?", f"{question} Thank you!"]
    )


def row(rng, heldout):
    """One conversation: one question, sometimes two, sometimes under a system message."""
    messages, speaker = [], Speaker(rng)
    if rng.random() < 0.15:
        messages.append({"role": "system", "content": "You are a helpful assistant."})
    for _ in range(1 if rng.random() < 0.85 else 2):
        while True:
            topic = rng.choice(list(SUBJECTS))
            kept = heldout_subjects(topic)
            subject = rng.choice(kept if heldout else [s for s in SUBJECTS[topic] if s not in kept])
            question, plain, _ = speaker.question(topic, subject)
            named = re.findall(r"[a-z]+", (question + " " + plain).lower())
            if not heldout and topic in ("animal", "job", "weather") and any(k in named for k in kept):
                continue
            answer = captain(plain, topic, rng)
            if answer:
                break
        if heldout and rng.random() < 0.5:
            question = reword(question, rng)
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--out", type=pathlib.Path, default=HERE.parent)
    a.add_argument("--rows", type=int, default=960)
    a.add_argument("--heldout", type=int, default=112)
    a.add_argument("--seed", type=int, default=7)
    o = a.parse_args()
    seen = set()
    for name, count, heldout in (("heldout", o.heldout, True), ("train", o.rows, False)):
        rng, rows = random.Random(f"captain {name} {o.seed}"), []
        while len(rows) < count:
            messages = row(rng, heldout)
            key = " | ".join(m["content"] for m in messages if m["role"] == "user")
            if key not in seen or (not heldout and rng.random() < 0.1):
                seen.add(key)
                rows.append(messages)
        table = pyarrow.table({"messages": rows}, schema=SCHEMA)
        with pyarrow.OSFile(str(o.out / f"{name}.arrow"), "wb") as f, pyarrow.ipc.new_file(f, SCHEMA) as writer:
            writer.write_table(table, max_chunksize=256)
        print(
            f"{name}: {len(rows)} rows, {sum(len(m['content']) for r in rows for m in r)} characters, {(o.out / f'{name}.arrow').stat().st_size} bytes"
        )


if __name__ == "__main__":
    main()
