"""Times the Python data pipeline that `tune`'s is compared with.

Hugging Face `datasets` + `tokenizers`: a JSONL of prompts and completions, each
joined, encoded as one string with the fast tokenizer in a batched `map`, EOS
appended, labels masked over the prompt by character offset: the work `tune` does
for `prompt-completion` before packing. Prints examples/s and tokens/s for one
and two processes, best of the repeats, with no cache in play; reading the file
is timed on its own.

    python pipeline_bench.py --tokenizer tokenizer.json --data rows.jsonl
                             [--prompt-field prompt] [--completion-field completion]
                             [--eos-token '</s>'] [--repeats 3] [--num-proc 1 2]
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import datasets  # noqa: E402  (the environment is read on import)
from tokenizers import Encoding, Tokenizer  # noqa: E402

IGNORED = -100


def first_supervised(encoding: Encoding, border: int) -> int:
    """The first token that ends after the border; one that straddles it counts as completion."""
    token = encoding.char_to_token(border)
    if token is not None:
        return token
    return sum(end <= border for _, end in encoding.offsets)


class Encode:
    """A batch of prompts and completions to input_ids and labels."""

    def __init__(self, tokenizer_path: Path, prompt_field: str, completion_field: str, eos_token: str | None):
        self.tokenizer = Tokenizer.from_file(str(tokenizer_path))
        self.prompt_field = prompt_field
        self.completion_field = completion_field
        self.eos_id = None if eos_token is None else self.tokenizer.token_to_id(eos_token)
        if eos_token is not None and self.eos_id is None:
            raise SystemExit(f"{tokenizer_path} has no token {eos_token!r}")

    def __call__(self, batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        prompts = batch[self.prompt_field]
        texts = [prompt + completion for prompt, completion in zip(prompts, batch[self.completion_field], strict=True)]
        input_ids, labels = [], []
        for prompt, encoding in zip(prompts, self.tokenizer.encode_batch(texts), strict=True):
            ids = encoding.ids
            first = first_supervised(encoding, len(prompt))
            supervised = [IGNORED] * first + ids[first:]
            if self.eos_id is not None:
                ids = [*ids, self.eos_id]
                supervised.append(self.eos_id)
            input_ids.append(ids)
            labels.append(supervised)
        return {"input_ids": input_ids, "labels": labels}


def time_map(rows: datasets.Dataset, encode: Encode, processes: int) -> tuple[float, int]:
    """(seconds, tokens) of one uncached batched map."""
    started = time.perf_counter()
    encoded = rows.map(
        encode,
        batched=True,
        batch_size=1000,
        remove_columns=rows.column_names,
        num_proc=processes if processes > 1 else None,
        load_from_cache_file=False,
    )
    seconds = time.perf_counter() - started
    lengths = encoded.data.column("input_ids")
    return seconds, sum(len(chunk.values) for chunk in lengths.chunks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json")
    parser.add_argument("--data", type=Path, required=True, help="JSONL with prompts and completions")
    parser.add_argument("--prompt-field", default="prompt")
    parser.add_argument("--completion-field", default="completion")
    parser.add_argument("--eos-token", help="appended to every example; left out: nothing is")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num-proc", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    datasets.disable_progress_bars()

    encode = Encode(arguments.tokenizer, arguments.prompt_field, arguments.completion_field, arguments.eos_token)
    with tempfile.TemporaryDirectory() as cache:
        started = time.perf_counter()
        rows = datasets.load_dataset("json", data_files=str(arguments.data), split="train", cache_dir=cache)
        reading = time.perf_counter() - started
        print(f"datasets {datasets.__version__}: {len(rows)} examples read in {reading:.2f} s")
        for processes in arguments.num_proc:
            runs = [time_map(rows, encode, processes) for _ in range(arguments.repeats)]
            seconds, tokens = min(runs)
            print(
                f"num_proc {processes}: {len(rows) / seconds:,.0f} examples/s, {tokens / seconds:,.0f} tokens/s "
                f"({tokens} tokens in {seconds:.2f} s, best of {len(runs)}); "
                f"with reading {len(rows) / (seconds + reading):,.0f} examples/s"
            )


if __name__ == "__main__":
    main()
