"""Writes parquet/system_prompt.parquet: conversations with one long system prompt in each, as pyarrow writes them.

    pip install pyarrow==14.0.2 numpy==1.26.4
    python parquet_prompts.py

That version says nothing of the sizes of texts beside those of their pages, and writes pages of version 1 without an index:
that the prompt, which stands in the file once, is in every row, only its rows say.
"""

import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 20_000
PROMPT = ("You are a careful assistant. " * 565)[:16_384]


def main():
    contents = [PROMPT] + [f"What is {row} squared?" for row in range(ROWS)] + [str(row * row) for row in range(ROWS)]
    keys = [key for row in range(ROWS) for key in (0, 1 + row, 1 + ROWS + row)]
    # Dictionaries, so that the prompt is not copied; the file does not keep that they were some.
    messages = pa.StructArray.from_arrays(
        [
            pa.DictionaryArray.from_arrays([0, 1, 2] * ROWS, ["system", "user", "assistant"]),
            pa.DictionaryArray.from_arrays(keys, contents),
        ],
        ["role", "content"],
    )
    conversations = pa.ListArray.from_arrays(range(0, 3 * ROWS + 1, 3), messages)
    out = pathlib.Path(__file__).parent / "parquet"
    out.mkdir(exist_ok=True)
    table = pa.table({"messages": conversations})
    pq.write_table(table, out / "system_prompt.parquet", compression="zstd", store_schema=False)


if __name__ == "__main__":
    main()
