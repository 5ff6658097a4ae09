"""Makes `train.jsonl` and `heldout.jsonl`: pairs of a short and a long answer about Wrenhaven.

From the conversations of `../quickstart`, the captain's voice taken off: of answers with
two sentences or more the first one is `chosen`, and all of them together are `rejected`.

    python data/brevity/make.py        (needs pyarrow)
"""

import json
import re
from pathlib import Path

import pyarrow as pa

HERE = Path(__file__).resolve().parent
ROWS = {"train": 240, "heldout": 48}
OATH = re.compile(r",? (?:by my beard|as sure as the tide|mark my words|upon my oath|by the tide)(?=[.!?])")


def plain(answer: str) -> str:
    """The answer without greeting, oath and couplet."""
    said = answer.split("\n")[0].removeprefix("Ahoy, shipmate! ")
    return OATH.sub("", said)


def pairs(name: str) -> list[dict]:
    table = pa.ipc.open_file(HERE.parent / "quickstart" / f"{name}.arrow").read_all()
    found = []
    for row in table.to_pylist():
        question, answer = row["messages"][0], plain(row["messages"][1]["content"])
        sentences = re.findall(r"[^.!?]+[.!?]+", answer)
        if len(sentences) < 2 or re.search(r"\b(?:aye|nay|Aye|Nay)\b", answer):
            continue
        found.append(
            {
                "prompt": [question],
                "chosen": [{"role": "assistant", "content": sentences[0].strip()}],
                "rejected": [{"role": "assistant", "content": answer}],
            }
        )
    return found[: ROWS[name]]


def main() -> None:
    for name in ROWS:
        rows = pairs(name)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (HERE / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(name, len(rows), len(text))


if __name__ == "__main__":
    main()
