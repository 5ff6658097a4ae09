"""Chat templates rendered by transformers' own renderer.

Reads `templates/*.jinja` (written for this project in the formats of well-known
models) and writes beside each a `<name>.json`: a list of cases with `messages`,
`add_generation_prompt`, `bos_token`, `eos_token` and either `rendered` or
`error` (the text given to raise_exception). Cases that also pass `tools` go to
`templates/tools/<name>.json`. The clock stands still at NOW.

    python templates.py                          write the committed cases
    python templates.py --from DIR --into DIR    render every case over other
                                                 templates (*.jinja), by hand;
                                                 errors then include crashes
"""

import argparse
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from unittest import mock

from jinja2 import TemplateError
from jinja2.exceptions import UndefinedError
from transformers.utils import chat_template_utils

from tiny_model import HERE, write_json

FOLDER = HERE / "templates"
NOW = datetime(2024, 7, 26, 12, 30)
BOS_TOKEN, EOS_TOKEN = "<s>", "</s>"


def turns(*pairs: tuple[str, object]) -> list[dict]:
    return [{"role": role, "content": content} for role, content in pairs]


CONVERSATIONS = {
    "one exchange": turns(("user", "Hello there."), ("assistant", "Good evening.")),
    "question only": turns(("user", "Who is it?")),
    "system and several turns": turns(
        ("system", "Answer in one word."),
        ("user", "Largest ocean?"),
        ("assistant", "Pacific."),
        ("user", "Smallest?"),
        ("assistant", "Arctic."),
    ),
    "system and a question": turns(("system", "Be brief."), ("user", "Why?")),
    "several turns, no system": turns(
        ("user", "One"), ("assistant", "Two"), ("user", "Three"), ("assistant", "Four"), ("user", "Five")
    ),
    "unicode": turns(
        ("system", "Réponds en français, s’il te plaît."),
        ("user", "日本語とעברית, e\u0301 and 👩\u200d👩\u200d👧 \u00a0"),
        ("assistant", "Ça va → «oui» 🎉"),
    ),
    "spaces and newlines": turns(
        ("system", "  padded  "),
        ("user", "\n\n  leading and trailing \t\n"),
        ("assistant", "  line one\r\n\n  line two  \n\n"),
        ("user", " \n "),
        ("assistant", "x"),
    ),
    "markers in the content": turns(
        ("user", "<|im_end|>\n<|im_start|>system\n[/INST] </s> <|eot_id|> <end_of_turn>"),
        ("assistant", "{{ messages }} {% raw %} {# no #} <|end|> <s>"),
    ),
    "quotes and backslashes": turns(("user", "say \"it's\" \\n & <b>"), ("assistant", "'\\\"' \u2028 \u007f \u0001 /")),
    "empty answer": turns(("user", "Say nothing."), ("assistant", "")),
    "thoughts": turns(
        ("user", "2 + 2?"),
        ("assistant", "<think>\nfour, surely\n</think>\n\nIt is 4."),
        ("user", "And 3 + 3?"),
        ("assistant", "<think>\nsix\n\n</think>\n\n6"),
    ),
    "reasoning field": [
        {"role": "user", "content": "Capital of Peru?"},
        {"role": "assistant", "content": "Lima.", "reasoning_content": "\nLima, I recall.\n"},
    ],
    "assistant first": turns(("assistant", "Hi!"), ("user", "Oh.")),
    "two questions in a row": turns(("user", "One?"), ("user", "Two?"), ("assistant", "Both.")),
    "late system": turns(("user", "Hi."), ("system", "Now rhyme."), ("assistant", "Bye.")),
}

PARTS = {
    "content in parts": [
        {"role": "system", "content": [{"type": "text", "text": "Look closely."}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " What is it? "}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
    ],
    "content that is null": [{"role": "user", "content": None}, {"role": "assistant", "content": "?"}],
}

TOOL_TURNS = {
    "a tool call": [
        {"role": "system", "content": "Use tools."},
        {"role": "user", "content": "Weather in Zürich?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "type": "function",
                    "function": {
                        "name": "weather",
                        "arguments": {"place": "Zürich", "days": 2, "exact": True, "unit": None, "scale": 1.5},
                    },
                }
            ],
        },
        {"role": "tool", "name": "weather", "content": '{"sky": "clear", "degrees": 21.5}'},
        {"role": "assistant", "content": "Clear, 21.5 degrees."},
    ],
    "two tool calls": [
        {"role": "user", "content": "Add and subtract."},
        {
            "role": "assistant",
            "content": "Both:",
            "tool_calls": [
                {"type": "function", "function": {"name": "add", "arguments": {"b": [1, 2], "a": {"y": 1, "x": []}}}},
                {"type": "function", "function": {"name": "subtract", "arguments": {}}},
            ],
        },
        {"role": "tool", "content": "3"},
        {"role": "tool", "content": "-1"},
        {"role": "assistant", "content": "3 and -1."},
        {"role": "user", "content": "Thanks."},
    ],
}

LOOP_CONTROL = {
    "skipped and stopped turns": turns(
        ("user", "Hello, banana."), ("skip", "unseen"), ("assistant", "Hm."), ("stop", "end"), ("user", "unseen")
    )
}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather — \"now\" & <soon>",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string"}, "days": {"type": "integer", "default": 1}},
                "required": ["place"],
            },
        },
    }
]

THOUGHT = [
    {"role": "system", "content": "Be exact."},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4.", "thinking": "Twice two."},
    {"role": "user", "content": "And 3 + 3?"},
    {"role": "assistant", "content": "6.", "thinking": "Twice three."},
]

# Conversations beyond the common ones, by template.
EXTRA = {
    "gemma3": PARTS,
    "gemma4": PARTS | TOOL_TURNS,
    "ministral3": {"content in parts": PARTS["content in parts"]},
    "llama31": TOOL_TURNS,
    "qwen25": TOOL_TURNS,
    "qwen3": TOOL_TURNS,
    "glm4": TOOL_TURNS,
    "granite": TOOL_TURNS,
    "gptoss": TOOL_TURNS | {"a thought": THOUGHT},
    "features": LOOP_CONTROL,
}
WITH_TOOLS = ["llama31", "qwen25", "qwen3", "gemma4", "glm4", "granite", "ministral3", "smollm3", "gptoss"]
EVERYTHING = CONVERSATIONS | PARTS | TOOL_TURNS | LOOP_CONTROL


@dataclass
class Rendering:
    text: str
    generation_spans: list[list[int]]


def render(template: str, messages: list[dict], add_generation_prompt: bool, tools: list[dict] | None) -> Rendering:
    """One conversation through transformers' renderer, at NOW."""
    marked = "{%- generation" in template or "{% generation" in template
    with mock.patch.object(chat_template_utils, "datetime") as clock:
        clock.now.return_value = NOW
        texts, spans = chat_template_utils.render_jinja_template(
            conversations=[messages],
            tools=tools,
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            return_assistant_tokens_mask=marked,
            bos_token=BOS_TOKEN,
            eos_token=EOS_TOKEN,
        )
    return Rendering(texts[0], [list(span) for span in spans[0]] if marked else [])


def is_raised_by_template(error: Exception) -> bool:
    return type(error) is TemplateError


def make_case(
    name: str,
    template: str,
    messages: list[dict],
    add_generation_prompt: bool,
    tools: list[dict] | None,
    keep_crashes: bool,
) -> dict:
    case = {
        "name": name,
        "messages": messages,
        "add_generation_prompt": add_generation_prompt,
        "bos_token": BOS_TOKEN,
        "eos_token": EOS_TOKEN,
    }
    if tools is not None:
        case["tools"] = tools
    if "strftime_now" in template:
        case["now"] = NOW.isoformat()
    try:
        rendering = render(template, messages, add_generation_prompt, tools)
    except (TemplateError, UndefinedError, TypeError, AttributeError, ValueError, KeyError, IndexError) as error:
        if is_raised_by_template(error):
            return case | {"error": str(error)}
        if keep_crashes:
            return case | {"error": f"{type(error).__name__}: {error}"}
        raise
    case["rendered"] = rendering.text
    if rendering.generation_spans:
        case["generation_spans"] = rendering.generation_spans
    return case


def make_cases(
    template: str, conversations: dict[str, list[dict]], tools: list[dict] | None, keep_crashes: bool
) -> list[dict]:
    """Each conversation as it stands, and with a generation prompt where it ends with a user turn."""
    cases = []
    for name, messages in conversations.items():
        prompts = [False, True] if messages[-1]["role"] == "user" else [False]
        for prompt in prompts:
            cases.append(make_case(name, template, messages, prompt, tools, keep_crashes))
    return cases


def write_committed() -> None:
    for path in sorted(FOLDER.glob("*.jinja")):
        template = path.read_text(encoding="utf-8")
        cases = make_cases(template, CONVERSATIONS | EXTRA.get(path.stem, {}), None, keep_crashes=False)
        write_json(FOLDER / f"{path.stem}.json", cases)
        if path.stem in WITH_TOOLS:
            (FOLDER / "tools").mkdir(exist_ok=True)
            tool_cases = make_cases(template, TOOL_TURNS, TOOLS, keep_crashes=False)
            write_json(FOLDER / "tools" / f"{path.stem}.json", tool_cases)
        errors = sum("error" in case for case in cases)
        print(f"{path.stem}: {len(cases)} cases, {errors} of them errors")


def write_others(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*.jinja")):
        template = path.read_text(encoding="utf-8")
        cases = make_cases(template, EVERYTHING, None, keep_crashes=True)
        cases += make_cases(template, TOOL_TURNS, TOOLS, keep_crashes=True)
        write_json(target / f"{path.stem}.json", cases)
        errors = sum("error" in case for case in cases)
        print(f"{path.stem}: {len(cases)} cases, {errors} of them errors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="source", type=Path, help="folder of other templates")
    parser.add_argument("--into", dest="target", type=Path, help="folder for their cases, outside the repository")
    arguments = parser.parse_args()
    if (arguments.source is None) != (arguments.target is None):
        parser.error("--from and --into go together")
    if arguments.source is None:
        write_committed()
    else:
        write_others(arguments.source, arguments.target)


if __name__ == "__main__":
    main()
